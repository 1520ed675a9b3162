// Package bustest is the contract of [bus.Bus] as a test suite: every
// implementation must pass it. It knows no implementation.
package bustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// Config says how to get a bus and what it can do.
type Config struct {
	// Open returns a fresh, empty bus that is closed by the test's cleanup.
	Open func(t *testing.T) bus.Bus
	// Small returns one whose EVENTS log holds at most about 1 MiB and RUNS
	// about 1 MiB; nil skips what needs it.
	Small func(t *testing.T) bus.Bus
	// Redeliver is how long the bus waits before it delivers an unfinished job
	// again; cases that wait for it are skipped when it is above 2 s.
	Redeliver time.Duration
}

// Run runs the suite.
func Run(t *testing.T, c Config) {
	t.Helper()
	for _, tc := range []struct {
		name string
		f    func(*testing.T, Config)
	}{
		{"Append", testAppend},
		{"AppendOrder", testAppendOrder},
		{"AppendAsyncOnce", testAppendAsyncOnce},
		{"AppendCanceled", testAppendCanceled},
		{"AppendTooLarge", testTooLarge},
		{"AppendFull", testFull},
		{"RecordIntact", testRecordIntact},
		{"Dedup", testDedup},
		{"Fence", testFence},
		{"Read", testRead},
		{"ReadFilter", testReadFilter},
		{"ReadLive", testReadLive},
		{"ReadGaps", testReadGaps},
		{"ReadLarge", testReadLarge},
		{"ReadClosed", testReadClosed},
		{"GetNextDelete", testGetNextDelete},
		{"GetBatch", testGetBatch},
		{"PurgeTo", testPurge},
		{"Counts", testCounts},
		{"Info", testInfo},
		{"RunsDropOldest", testRunsDropOldest},
		{"Queue", testQueue},
		{"QueueOutstanding", testQueueOutstanding},
		{"QueueRedelivers", testQueueRedelivers},
		{"QueueTakeOver", testQueueTakeOver},
		{"QueueEnds", testQueueEnds},
		{"Store", testStore},
		{"StoreUpdate", testStoreUpdate},
		{"StoreAsyncOrder", testStoreAsyncOrder},
		{"StoreScan", testStoreScan},
		{"StoreKeys", testStoreKeys},
		{"Concurrent", testConcurrent},
		{"Close", testClose},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.f(t, c) })
	}
}

// Timeout bounds each wait of the suite.
const Timeout = 20 * time.Second

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), Timeout)
	t.Cleanup(cancel)
	return c
}

func record(source, event, data string) bus.Record {
	return bus.Record{Subject: bus.EventSubject(source, event), Data: []byte(data)}
}

func job(partition int, sensor, trigger, data string) bus.Record {
	return bus.Record{Subject: fmt.Sprintf("%s%d.%s.%s", bus.JobsPrefix, partition, sensor, trigger), Data: []byte(data)}
}

func mustAppend(t *testing.T, l bus.Log, r bus.Record) uint64 {
	t.Helper()
	a, err := l.Append(ctx(t), r)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return a.Seq
}

// fill appends n records with the data 0, 1, … in order.
func fill(t *testing.T, l bus.Log, n int, r func(i int) bus.Record) {
	t.Helper()
	c := ctx(t)
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		wg.Add(1)
		err := l.AppendAsync(c, r(i), func(_ bus.Ack, err error) {
			if err != nil {
				errs <- err
			}
			wg.Done()
		})
		if err != nil {
			t.Fatalf("AppendAsync %d: %v", i, err)
		}
	}
	wg.Wait()
	if len(errs) > 0 {
		t.Fatalf("%d of %d failed: %v", len(errs), n, <-errs)
	}
}

// read reads n records.
func read(t *testing.T, r bus.Reader, n int) []bus.Record {
	t.Helper()
	c := ctx(t)
	var out []bus.Record
	for len(out) < n {
		rs, err := r.Next(c, 256)
		if err != nil {
			t.Fatalf("Next after %d of %d: %v", len(out), n, err)
		}
		if len(rs) == 0 || len(rs) > 256 {
			t.Fatalf("Next returned %d records", len(rs))
		}
		out = append(out, rs...)
	}
	if len(out) != n {
		t.Fatalf("read %d records, want %d", len(out), n)
	}
	return out
}

func open(t *testing.T, l bus.Log, from uint64, filter string) bus.Reader {
	t.Helper()
	r, err := l.Read(ctx(t), from, filter)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func number(i int) bus.Record { return record("s", "e", fmt.Sprint(i)) }

func testAppend(t *testing.T, c Config) {
	b := c.Open(t)
	for i := 1; i <= 3; i++ {
		if seq := mustAppend(t, b.Events(), number(i)); seq != uint64(i) {
			t.Fatalf("seq %d, want %d", seq, i)
		}
	}
	for _, l := range []struct {
		log bus.Log
		r   bus.Record
	}{
		{b.Jobs(), job(0, "s", "t", "x")},
		{b.Parked(), bus.Record{Subject: bus.ParkedPrefix + "s.t.retry", Data: []byte("x")}},
		{b.DeadLetters(), bus.Record{Subject: bus.DLQPrefix + "s.t", Data: []byte("x")}},
		{b.Runs(), bus.Record{Subject: bus.RunsPrefix + "f", Data: []byte("x")}},
		{b.FailedRuns(), bus.Record{Subject: bus.FailedPrefix + "f", Data: []byte("x")}},
	} {
		seq := mustAppend(t, l.log, l.r)
		got, err := l.log.Get(ctx(t), seq)
		if err != nil || got.Subject != l.r.Subject || string(got.Data) != "x" {
			t.Errorf("%s: got %+v, %v", l.r.Subject, got, err)
		}
	}
}

func testAppendOrder(t *testing.T, c Config) {
	b := c.Open(t)
	const n = 5000
	fill(t, b.Events(), n, number)
	for i, r := range read(t, open(t, b.Events(), 0, ""), n) {
		if string(r.Data) != fmt.Sprint(i) || r.Seq != uint64(i+1) {
			t.Fatalf("record %d is %q with seq %d", i, r.Data, r.Seq)
		}
	}
}

func testAppendAsyncOnce(t *testing.T, c Config) {
	b := c.Open(t)
	const workers, each = 8, 500
	var mu sync.Mutex
	calls := map[string]int{}
	seqs := map[uint64]bool{}
	var wg, all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				key := fmt.Sprintf("%d-%d", w, i)
				wg.Add(1)
				err := b.Events().AppendAsync(t.Context(), record("s", "e", key), func(a bus.Ack, err error) {
					defer wg.Done()
					mu.Lock()
					defer mu.Unlock()
					calls[key]++
					if err != nil || seqs[a.Seq] {
						t.Errorf("%s: ack %+v, %v", key, a, err)
					}
					seqs[a.Seq] = true
				})
				if err != nil {
					t.Errorf("AppendAsync: %v", err)
					wg.Done()
				}
			}
		})
	}
	all.Wait()
	wg.Wait()
	if len(calls) != workers*each {
		t.Errorf("%d of %d were acknowledged", len(calls), workers*each)
	}
	for k, n := range calls {
		if n != 1 {
			t.Errorf("%s: done was called %d times", k, n)
		}
	}
}

func testAppendCanceled(t *testing.T, c Config) {
	b := c.Open(t)
	cctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Either it was quick enough or it says why not; it does not hang.
	if _, err := b.Events().Append(cctx, number(0)); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Append: %v, want context.Canceled", err)
	}
	if _, err := open(t, b.Jobs(), 0, "").Next(cctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Next: %v, want context.Canceled", err)
	}
	if seq := mustAppend(t, b.Events(), number(1)); seq == 0 {
		t.Error("no sequence")
	}
}

func testTooLarge(t *testing.T, c Config) {
	b := c.Open(t)
	limit := b.MaxPayload()
	r := record("s", "e", "")
	r.Data = make([]byte, limit)
	mustAppend(t, b.Events(), r)
	r.Header = bus.Header{"ce-id": {"1"}}
	if _, err := b.Events().Append(ctx(t), r); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("limit and a header: %v, want ErrTooLarge", err)
	}
	r.Data = make([]byte, limit+1)
	if _, err := b.Events().Append(ctx(t), r); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("limit+1: %v, want ErrTooLarge", err)
	}
	if err := b.Events().AppendAsync(ctx(t), r, func(bus.Ack, error) { t.Error("done was called") }); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("async: %v, want ErrTooLarge", err)
	}
	if got, err := b.Events().Get(ctx(t), 1); err != nil || len(got.Data) != limit {
		t.Errorf("Get: %d bytes, %v", len(got.Data), err)
	}
}

func testFull(t *testing.T, c Config) {
	if c.Small == nil {
		t.Skip("no small bus")
	}
	b := c.Small(t)
	r := record("s", "e", "")
	r.Data = make([]byte, 16<<10)
	stored := uint64(0)
	var err error
	for range 200 {
		var a bus.Ack
		if a, err = b.Events().Append(ctx(t), r); err != nil {
			break
		}
		stored = a.Seq
	}
	if !errors.Is(err, bus.ErrFull) {
		t.Fatalf("Append to a full log: %v, want ErrFull", err)
	}
	i, err := b.Events().Info(ctx(t))
	if err != nil || i.First != 1 || i.Last != stored || i.Records != stored || i.Bytes > i.MaxBytes {
		t.Fatalf("a full log must keep everything: %+v, stored %d, %v", i, stored, err)
	}
	wait(t, "health to say that the log is full", func() bool { h := b.Health(); return !h.OK && h.Reason != "" && h.RetryAfter > 0 })
	mustAppend(t, b.Jobs(), job(0, "s", "t", "x"))
	if _, err := b.State().Put(ctx(t), "k", []byte("v")); err != nil {
		t.Errorf("state of a bus with full events: %v", err)
	}
	if err := b.Events().PurgeTo(ctx(t), stored/2); err != nil {
		t.Fatal(err)
	}
	if seq := mustAppend(t, b.Events(), r); seq != stored+1 {
		t.Errorf("seq after the purge %d, want %d", seq, stored+1)
	}
	wait(t, "health to recover", func() bool { return b.Health().OK })
}

func testRecordIntact(t *testing.T, c Config) {
	b := c.Open(t)
	before := time.Now().Add(-time.Minute)
	want := []bus.Record{
		{Subject: bus.EventSubject("a.b*c>", "ü x"), Data: []byte("\x00\xff\r\n"), Header: bus.Header{"ce-id": {"1"}, "Ce-ID": {"2"}, "x": {"a: b", "c"}}},
		{Subject: bus.EventSubject("", ""), Data: nil},
		{Subject: bus.EventSubject("s", "e"), Data: []byte(`{"a":1}`), MsgID: "id", Header: bus.Header{"engine-request": {`{"path":"/x","q":"ä"}`}}},
	}
	for _, r := range want {
		mustAppend(t, b.Events(), r)
	}
	if len(want[2].Header) != 1 {
		t.Errorf("the caller's header was changed: %v", want[2].Header)
	}
	equal := func(how string, i int, got bus.Record) {
		t.Helper()
		w := want[i]
		if got.Subject != w.Subject || !bytes.Equal(got.Data, w.Data) || got.Seq != uint64(i+1) ||
			!maps.EqualFunc(got.Header, w.Header, slices.Equal) {
			t.Errorf("%s: got %+v, want %+v", how, got, w)
		}
		if got.Time.Before(before) || got.Time.After(time.Now().Add(time.Minute)) {
			t.Errorf("%s: time %v", how, got.Time)
		}
	}
	for i, r := range read(t, open(t, b.Events(), 0, ""), len(want)) {
		equal("Read", i, r)
		g, err := b.Events().Get(ctx(t), r.Seq)
		if err != nil {
			t.Fatal(err)
		}
		equal("Get", i, g)
		if !g.Time.Equal(r.Time) {
			t.Errorf("Get and Read differ in time: %v, %v", g.Time, r.Time)
		}
		if g, err = b.Events().Next(ctx(t), r.Subject, r.Seq); err != nil {
			t.Fatal(err)
		}
		equal("Next", i, g)
	}
}

func testDedup(t *testing.T, c Config) {
	b := c.Open(t)
	for name, l := range map[string]bus.Log{"events": b.Events(), "jobs": b.Jobs()} {
		r := record("s", "e", "x")
		if name == "jobs" {
			r = job(1, "s", "t", "x")
		}
		r.MsgID = "one"
		a, err := l.Append(ctx(t), r)
		if err != nil || a.Duplicate {
			t.Fatalf("%s: first: %+v, %v", name, a, err)
		}
		d, err := l.Append(ctx(t), r)
		if err != nil || !d.Duplicate || d.Seq != a.Seq {
			t.Errorf("%s: second: %+v, %v, want a duplicate of %d", name, d, err, a.Seq)
		}
		r.MsgID = "two"
		if d, err = l.Append(ctx(t), r); err != nil || d.Duplicate || d.Seq != a.Seq+1 {
			t.Errorf("%s: other id: %+v, %v", name, d, err)
		}
		r.MsgID = ""
		if d, err = l.Append(ctx(t), r); err != nil || d.Duplicate || d.Seq != a.Seq+2 {
			t.Errorf("%s: no id: %+v, %v", name, d, err)
		}
	}
}

func testFence(t *testing.T, c Config) {
	b := c.Open(t)
	l := b.Events()
	fenced := func(event, id string, last uint64) (bus.Ack, error) {
		r := record("s", event, id)
		r.MsgID, r.Fence, r.Header = id, &last, bus.Header{"n": {id}}
		return l.Append(ctx(t), r)
	}
	if _, err := l.Last(ctx(t), bus.EventSubject("s", "e")); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Last of nothing: %v, want ErrNotFound", err)
	}
	first, err := fenced("e", "1", 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, record("s", "other", "x"))
	if _, err := fenced("e", "2", 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("after another one: %v, want ErrConflict", err)
	}
	second, err := fenced("e", "2", first.Seq)
	if err != nil || second.Duplicate {
		t.Errorf("refused before: %+v, %v", second, err)
	}
	switch again, err := fenced("e", "1", 0); {
	case errors.Is(err, bus.ErrConflict):
	case err != nil || !again.Duplicate || again.Seq != first.Seq:
		t.Errorf("again: %+v, %v, want a duplicate of %d or ErrConflict", again, err, first.Seq)
	}
	last, err := l.Last(ctx(t), bus.EventSubject("s", "e"))
	if err != nil || last.Seq != second.Seq || string(last.Data) != "2" || len(last.Header) != 1 || last.Header.Get("n") != "2" {
		t.Errorf("Last: %+v, %v", last, err)
	}
	if err := l.PurgeTo(ctx(t), second.Seq+1); err != nil {
		t.Fatal(err)
	}
	if _, err := fenced("e", "3", second.Seq); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("after a purge: %v, want ErrConflict", err)
	}
	if _, err := fenced("e", "3", 0); err != nil {
		t.Errorf("after a purge: %v", err)
	}
}

func testRead(t *testing.T, c Config) {
	b := c.Open(t)
	const n = 3000
	fill(t, b.Events(), n, number)
	for _, from := range []uint64{0, 1, 2, 1500, n} {
		r := open(t, b.Events(), from, "")
		first := max(from, 1)
		got := read(t, r, n-int(first)+1)
		for i, rec := range got {
			if rec.Seq != first+uint64(i) {
				t.Fatalf("from %d: record %d has seq %d", from, i, rec.Seq)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	// Records are the caller's after the next call.
	r := open(t, b.Events(), 1, "")
	first, err := r.Next(ctx(t), 1)
	if err != nil || len(first) != 1 {
		t.Fatalf("Next(1): %d records, %v", len(first), err)
	}
	keep := first[0]
	read(t, r, n-1)
	if keep.Seq != 1 || string(keep.Data) != "0" {
		t.Errorf("a kept record changed: %+v", keep)
	}
}

func testReadFilter(t *testing.T, c Config) {
	b := c.Open(t)
	fill(t, b.Events(), 300, func(i int) bus.Record {
		return record([]string{"a", "b"}[i%2], []string{"x", "y", "z"}[i%3], fmt.Sprint(i))
	})
	for filter, want := range map[string]int{
		"": 300, "engine.events.>": 300, "engine.events.a.>": 150, "engine.events.*.x": 100, "engine.events.b.y": 50,
	} {
		got := read(t, open(t, b.Events(), 0, filter), want)
		if !slices.IsSortedFunc(got, func(a, b bus.Record) int { return int(a.Seq) - int(b.Seq) }) {
			t.Errorf("%q: not in order", filter)
		}
	}
	r := open(t, b.Events(), 0, "engine.events.none.>")
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if rs, err := r.Next(short, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next without a match: %d records, %v", len(rs), err)
	}
}

func testReadLive(t *testing.T, c Config) {
	b := c.Open(t)
	r := open(t, b.Events(), 0, "")
	for i := range 50 {
		done := make(chan []bus.Record, 1)
		go func() {
			rs, err := r.Next(ctx(t), 16)
			if err != nil {
				t.Errorf("Next: %v", err)
			}
			done <- rs
		}()
		mustAppend(t, b.Events(), number(i))
		rs := <-done
		// One is enough: a reader waits for nobody else.
		if len(rs) != 1 || string(rs[0].Data) != fmt.Sprint(i) {
			t.Fatalf("round %d: %d records", i, len(rs))
		}
	}
}

func testReadGaps(t *testing.T, c Config) {
	b := c.Open(t)
	const n = 100
	fill(t, b.Events(), n, number)
	if err := b.Events().PurgeTo(ctx(t), 21); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{30, 31, 50, 100} {
		if err := b.Events().Delete(ctx(t), seq); err != nil {
			t.Fatal(err)
		}
	}
	var want []uint64
	for s := uint64(21); s <= n; s++ {
		if s != 30 && s != 31 && s != 50 && s != 100 {
			want = append(want, s)
		}
	}
	mustAppend(t, b.Events(), number(n))
	want = append(want, n+1)
	var got []uint64
	for _, r := range read(t, open(t, b.Events(), 5, ""), len(want)) {
		got = append(got, r.Seq)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// testReadLarge reads records of which few fit into one request.
func testReadLarge(t *testing.T, c Config) {
	b := c.Open(t)
	big := b.MaxPayload()
	for i := range 12 {
		r := record("s", "e", "")
		r.Data = bytes.Repeat([]byte{byte(i)}, max(big-i*(big/13), 1))
		mustAppend(t, b.Events(), r)
	}
	for i, r := range read(t, open(t, b.Events(), 0, ""), 12) {
		if len(r.Data) != max(big-i*(big/13), 1) || r.Data[0] != byte(i) {
			t.Errorf("record %d has %d bytes", i, len(r.Data))
		}
	}
}

func testReadClosed(t *testing.T, c Config) {
	b := c.Open(t)
	r := open(t, b.Events(), 0, "")
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Next(ctx(t), 1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Next after Close: %v, want ErrClosed", err)
	}
}

func testGetNextDelete(t *testing.T, c Config) {
	b := c.Open(t)
	l := b.Parked()
	subject := func(s string) string { return bus.ParkedPrefix + s + ".t.retry" }
	for i := range 6 {
		mustAppend(t, l, bus.Record{Subject: subject([]string{"a", "b"}[i%2]), Data: []byte(fmt.Sprint(i)), Header: bus.Header{"n": {fmt.Sprint(i)}}})
	}
	for _, seq := range []uint64{0, 7, 1 << 40} {
		if _, err := l.Get(ctx(t), seq); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("Get(%d): %v, want ErrNotFound", seq, err)
		}
	}
	var got []string
	for from := uint64(0); ; {
		r, err := l.Next(ctx(t), bus.ParkedPrefix+"b.>", from)
		if errors.Is(err, bus.ErrNotFound) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r.Data)+r.Header.Get("n"))
		if err := l.Delete(ctx(t), r.Seq); err != nil {
			t.Fatal(err)
		}
		if err := l.Delete(ctx(t), r.Seq); err != nil {
			t.Errorf("Delete again: %v", err)
		}
		if _, err := l.Get(ctx(t), r.Seq); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("Get of a deleted record: %v", err)
		}
	}
	if !slices.Equal(got, []string{"11", "33", "55"}) {
		t.Errorf("got %v", got)
	}
	if r, err := l.Next(ctx(t), "", 2); err != nil || r.Seq != 3 {
		t.Errorf("Next without filter: %d, %v", r.Seq, err)
	}
	if err := l.Delete(ctx(t), 999); err != nil {
		t.Errorf("Delete of a missing record: %v", err)
	}
}

func testGetBatch(t *testing.T, c Config) {
	b := c.Open(t)
	l := b.Parked()
	big := strings.Repeat("x", 1000)
	for i := range 10 {
		mustAppend(t, l, bus.Record{Subject: bus.ParkedPrefix + "a.t.retry", Data: []byte(fmt.Sprint(i, " ", big)), Header: bus.Header{"n": {fmt.Sprint(i)}}})
	}
	if err := l.Delete(ctx(t), 4); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		from            uint64
		limit, maxBytes int
		want            []uint64
	}{
		{0, 2, 1 << 20, []uint64{1, 2}},
		{3, 3, 1 << 20, []uint64{3, 5, 6}},
		{4, 1, 1 << 20, []uint64{5}},
		{9, 100, 1 << 20, []uint64{9, 10}},
		{1, 100, 1, []uint64{1}},
		{11, 10, 1 << 20, nil},
	} {
		recs, err := l.GetBatch(ctx(t), tc.from, tc.limit, tc.maxBytes)
		if (err != nil) != (tc.want == nil) || err != nil && !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("GetBatch(%d, %d, %d): %v", tc.from, tc.limit, tc.maxBytes, err)
		}
		var got []uint64
		for _, r := range recs {
			got = append(got, r.Seq)
			if n := fmt.Sprint(r.Seq - 1); string(r.Data) != n+" "+big || r.Header.Get("n") != n || len(r.Header) != 1 || r.Time.IsZero() {
				t.Errorf("record %d: %.3s… %v %v", r.Seq, r.Data, r.Header, r.Time)
			}
		}
		if n := len(got); n > len(tc.want) || n == 0 && tc.want != nil || !slices.Equal(got, tc.want[:n]) {
			t.Errorf("GetBatch(%d, %d, %d): %v, want %v", tc.from, tc.limit, tc.maxBytes, got, tc.want)
		}
	}
	if recs, err := l.GetBatch(ctx(t), 1, 10, 2500); err != nil || len(recs) > 3 {
		t.Errorf("up to 2500 bytes: %d records, %v, want at most 3", len(recs), err)
	}
}

func testPurge(t *testing.T, c Config) {
	b := c.Open(t)
	fill(t, b.Events(), 10, number)
	for _, p := range []struct{ to, first uint64 }{{0, 1}, {1, 1}, {4, 4}, {3, 4}, {11, 11}} {
		if err := b.Events().PurgeTo(ctx(t), p.to); err != nil {
			t.Fatalf("PurgeTo(%d): %v", p.to, err)
		}
		if i, err := b.Events().Info(ctx(t)); err != nil || i.First != p.first || i.Last != 10 {
			t.Errorf("after PurgeTo(%d): %+v, %v", p.to, i, err)
		}
	}
	if seq := mustAppend(t, b.Events(), number(0)); seq != 11 {
		t.Errorf("seq %d after the purge, want 11", seq)
	}
}

func testCounts(t *testing.T, c Config) {
	b := c.Open(t)
	if m, err := b.Parked().Counts(ctx(t), ""); err != nil || len(m) != 0 {
		t.Errorf("empty: %v, %v", m, err)
	}
	want := map[string]uint64{}
	fill(t, b.Parked(), 600, func(i int) bus.Record {
		s := fmt.Sprintf("%ss%d.t%d.retry", bus.ParkedPrefix, i%7, i%11)
		want[s]++
		return bus.Record{Subject: s}
	})
	got, err := b.Parked().Counts(ctx(t), "")
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	got, err = b.Parked().Counts(ctx(t), bus.ParkedPrefix+"s3.>")
	maps.DeleteFunc(want, func(k string, _ uint64) bool { return !strings.HasPrefix(k, bus.ParkedPrefix+"s3.") })
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("filtered: got %v, %v, want %v", got, err, want)
	}
}

func testInfo(t *testing.T, c Config) {
	b := c.Open(t)
	i, err := b.Events().Info(ctx(t))
	if err != nil || i.ID == "" || i.First != 1 || i.Last != 0 || i.Records != 0 || !i.FirstTime.IsZero() {
		t.Errorf("empty: %+v, %v", i, err)
	}
	id := i.ID
	fill(t, b.Events(), 5, number)
	if i, err = b.Events().Info(ctx(t)); err != nil || i.ID != id || i.First != 1 || i.Last != 5 || i.Records != 5 ||
		i.Bytes == 0 || i.MaxBytes == 0 || i.FirstTime.IsZero() || i.LastTime.Before(i.FirstTime) {
		t.Errorf("filled: %+v, %v", i, err)
	}
	if j, err := b.Jobs().Info(ctx(t)); err != nil || j.ID == id {
		t.Errorf("two streams have one id: %+v, %v", j, err)
	}
}

func testRunsDropOldest(t *testing.T, c Config) {
	if c.Small == nil {
		t.Skip("no small bus")
	}
	b := c.Small(t)
	for range 200 {
		mustAppend(t, b.Runs(), bus.Record{Subject: bus.RunsPrefix + "f", Data: make([]byte, 16<<10)})
	}
	i, err := b.Runs().Info(ctx(t))
	if err != nil || i.Last != 200 || i.First < 2 || i.Bytes > i.MaxBytes {
		t.Errorf("history must drop the oldest: %+v, %v", i, err)
	}
}

// consume collects deliveries of one partition until the test ends.
func consume(t *testing.T, q bus.Queue, partition, outstanding int) (<-chan bus.Delivery, func() error) {
	t.Helper()
	c, cancel := context.WithCancel(t.Context())
	ch := make(chan bus.Delivery, 10000)
	end := make(chan error, 1)
	go func() { end <- q.Consume(c, partition, outstanding, func(d bus.Delivery) { ch <- d }) }()
	stop := sync.OnceValue(func() error { cancel(); return <-end })
	t.Cleanup(func() { _ = stop() })
	return ch, stop
}

func take(t *testing.T, ch <-chan bus.Delivery) bus.Delivery {
	t.Helper()
	select {
	case d := <-ch:
		return d
	case <-time.After(Timeout):
		t.Fatal("no delivery")
		return nil
	}
}

func none(t *testing.T, ch <-chan bus.Delivery, d time.Duration) {
	t.Helper()
	select {
	case d := <-ch:
		t.Fatalf("unexpected delivery of %d %q", d.Record().Seq, d.Record().Data)
	case <-time.After(d):
	}
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(Timeout); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func empty(t *testing.T, l bus.Log) {
	t.Helper()
	wait(t, "the queue to be empty", func() bool {
		i, err := l.Info(ctx(t))
		return err == nil && i.Records == 0
	})
}

func testQueue(t *testing.T, c Config) {
	b := c.Open(t)
	q := b.Jobs()
	if q.Partitions() < 2 {
		t.Fatalf("%d partitions", q.Partitions())
	}
	const n = 1000
	fill(t, q, n, func(i int) bus.Record { return job(i%2, "s", "t", fmt.Sprint(i)) })
	for p := range 2 {
		ch, stop := consume(t, q, p, 64)
		for i := p; i < n; i += 2 {
			d := take(t, ch)
			if string(d.Record().Data) != fmt.Sprint(i) || d.Record().Seq != uint64(i+1) || d.Record().Time.IsZero() {
				t.Fatalf("partition %d: got %+v, want %d", p, d.Record(), i)
			}
			if err := d.Done(); err != nil {
				t.Fatal(err)
			}
		}
		mustAppend(t, q, job(p, "s", "t", "live"))
		d := take(t, ch)
		if string(d.Record().Data) != "live" {
			t.Errorf("got %q", d.Record().Data)
		}
		if err := d.Done(); err != nil {
			t.Fatal(err)
		}
		none(t, ch, 20*time.Millisecond)
		if p == 0 {
			wait(t, "partition 0 to be worked off", func() bool {
				m, err := q.Counts(ctx(t), bus.JobsPrefix+"0.>")
				return err == nil && len(m) == 0
			})
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Consume: %v", err)
		}
	}
	empty(t, q)
	err := q.Consume(t.Context(), q.Partitions(), 1, func(bus.Delivery) {})
	if err == nil {
		t.Error("a partition that does not exist was consumed")
	}
}

func testQueueOutstanding(t *testing.T, c Config) {
	b := c.Open(t)
	fill(t, b.Jobs(), 50, func(i int) bus.Record { return job(3, "s", "t", fmt.Sprint(i)) })
	ch, _ := consume(t, b.Jobs(), 3, 10)
	var held []bus.Delivery
	for range 10 {
		held = append(held, take(t, ch))
	}
	none(t, ch, 50*time.Millisecond)
	// Out of order, and one at a time.
	for i := range 10 {
		if err := held[9-i].Done(); err != nil {
			t.Fatal(err)
		}
		if d := take(t, ch); string(d.Record().Data) != fmt.Sprint(10+i) {
			t.Errorf("got %q, want %d", d.Record().Data, 10+i)
		}
	}
}

func testQueueRedelivers(t *testing.T, c Config) {
	if c.Redeliver == 0 || c.Redeliver > 2*time.Second {
		t.Skip("it waits too long before it delivers again")
	}
	b := c.Open(t)
	fill(t, b.Jobs(), 2, func(i int) bus.Record { return job(0, "s", "t", fmt.Sprint(i)) })
	ch, _ := consume(t, b.Jobs(), 0, 10)
	lost, alive := take(t, ch), take(t, ch)
	// The second is kept alive for three waits, the first is not.
	c2, cancel := context.WithTimeout(t.Context(), 3*c.Redeliver)
	defer cancel()
	tick := time.NewTicker(c.Redeliver / 4)
	defer tick.Stop()
	again := 0
	for c2.Err() == nil {
		select {
		case <-tick.C:
			if err := alive.InProgress(); err != nil {
				t.Fatal(err)
			}
		case d := <-ch:
			if d.Record().Seq != lost.Record().Seq {
				t.Fatalf("%d was kept alive and came again", d.Record().Seq)
			}
			again++
		case <-c2.Done():
		}
	}
	if again == 0 {
		t.Error("an unfinished job did not come again")
	}
	if err := lost.Done(); err != nil {
		t.Fatal(err)
	}
	if err := alive.Done(); err != nil {
		t.Fatal(err)
	}
	empty(t, b.Jobs())
}

func testQueueTakeOver(t *testing.T, c Config) {
	b := c.Open(t)
	fill(t, b.Jobs(), 5, func(i int) bus.Record { return job(0, "s", "t", fmt.Sprint(i)) })
	old, end := consume(t, b.Jobs(), 0, 10)
	for range 5 {
		take(t, old)
	}
	began := time.Now()
	ch, _ := consume(t, b.Jobs(), 0, 10)
	for i := range 5 {
		d := take(t, ch)
		if string(d.Record().Data) != fmt.Sprint(i) {
			t.Errorf("got %q, want %d", d.Record().Data, i)
		}
		if err := d.Done(); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("taking over took %v", d)
	}
	empty(t, b.Jobs())
	// The loser stays away.
	<-time.After(500 * time.Millisecond)
	fill(t, b.Jobs(), 20, func(i int) bus.Record { return job(0, "s", "t", fmt.Sprint(i)) })
	for range 20 {
		if err := take(t, ch).Done(); err != nil {
			t.Fatal(err)
		}
	}
	none(t, old, 0)
	if err := end(); err == nil {
		t.Error("the loser's Consume returned no error")
	}
}

func testQueueEnds(t *testing.T, c Config) {
	b := c.Open(t)
	var ends []func() error
	for p := range b.Jobs().Partitions() {
		_, stop := consume(t, b.Jobs(), p, 10)
		ends = append(ends, stop)
	}
	for _, stop := range ends {
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Consume: %v, want context.Canceled", err)
		}
	}
	// What was delivered to nobody is still there.
	mustAppend(t, b.Jobs(), job(1, "s", "t", "x"))
	ch, _ := consume(t, b.Jobs(), 1, 1)
	take(t, ch)
}

func testStore(t *testing.T, c Config) {
	s := c.Open(t).State()
	if _, err := s.Get(ctx(t), "a"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	if err := s.Delete(ctx(t), "a"); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
	last := uint64(0)
	for _, v := range []string{"1", "", "a\x00b"} {
		rev, err := s.Put(ctx(t), "a.b", []byte(v))
		if err != nil || rev <= last {
			t.Fatalf("Put: %d, %v", rev, err)
		}
		last = rev
		e, err := s.Get(ctx(t), "a.b")
		if err != nil || e.Key != "a.b" || string(e.Value) != v || e.Revision != rev {
			t.Errorf("Get: %+v, %v", e, err)
		}
	}
	if err := s.Delete(ctx(t), "a.b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx(t), "a.b"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Get after Delete: %v", err)
	}
	if _, err := s.Get(ctx(t), "a"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("Get of a prefix: %v", err)
	}
}

func testStoreUpdate(t *testing.T, c Config) {
	s := c.Open(t).State()
	if _, err := s.Update(ctx(t), "k", []byte("x"), 7); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Update of nothing: %v", err)
	}
	r1, err := s.Update(ctx(t), "k", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx(t), "k", []byte("x"), 0); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Update as new: %v", err)
	}
	r2, err := s.Update(ctx(t), "k", []byte("2"), r1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx(t), "k", []byte("x"), r1); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Update of an old revision: %v", err)
	}
	if e, err := s.Get(ctx(t), "k"); err != nil || string(e.Value) != "2" || e.Revision != r2 {
		t.Errorf("Get: %+v, %v", e, err)
	}
	// A deleted key does not exist.
	if err := s.Delete(ctx(t), "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(ctx(t), "k", []byte("x"), r2); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("Update after Delete: %v", err)
	}
	if _, err := s.Update(ctx(t), "k", []byte("3"), 0); err != nil {
		t.Errorf("Update as new after Delete: %v", err)
	}
	// Of many at once, one wins.
	e, err := s.Get(ctx(t), "k")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	wins := 0
	for range 16 {
		wg.Go(func() {
			_, err := s.Update(ctx(t), "k", []byte("w"), e.Revision)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				wins++
			case !errors.Is(err, bus.ErrConflict):
				t.Errorf("Update: %v", err)
			}
		})
	}
	wg.Wait()
	if wins != 1 {
		t.Errorf("%d updates of one revision won", wins)
	}
}

func testStoreAsyncOrder(t *testing.T, c Config) {
	s := c.Open(t).State()
	var wg sync.WaitGroup
	var last uint64
	done := func(rev uint64, err error) {
		defer wg.Done()
		if err != nil || rev <= last {
			t.Errorf("revision %d after %d, %v", rev, last, err)
		}
		last = rev
	}
	for i := range 200 {
		wg.Add(2)
		if err := s.PutAsync(ctx(t), "k", []byte(fmt.Sprint(i)), done); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteAsync(ctx(t), "k", done); err != nil {
			t.Fatal(err)
		}
	}
	wg.Add(1)
	if err := s.PutAsync(ctx(t), "k", []byte("end"), done); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if e, err := s.Get(ctx(t), "k"); err != nil || string(e.Value) != "end" || e.Revision != last {
		t.Errorf("Get: %+v, %v", e, err)
	}
}

func testStoreScan(t *testing.T, c Config) {
	s := c.Open(t).State()
	scan := func(prefix string) map[string]string {
		t.Helper()
		m := map[string]string{}
		err := s.Scan(ctx(t), prefix, func(e bus.Entry) error {
			if _, ok := m[e.Key]; ok {
				t.Errorf("%s came twice", e.Key)
			}
			m[e.Key] = string(e.Value)
			return nil
		})
		if err != nil {
			t.Fatalf("Scan(%q): %v", prefix, err)
		}
		return m
	}
	if m := scan(""); len(m) != 0 {
		t.Errorf("empty: %v", m)
	}
	want := map[string]string{}
	var wg sync.WaitGroup
	put := func(k, v string) {
		t.Helper()
		wg.Add(1)
		want[k] = v
		err := s.PutAsync(ctx(t), k, []byte(v), func(_ uint64, err error) {
			if err != nil {
				t.Errorf("PutAsync: %v", err)
			}
			wg.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	const n = 3000
	for i := range n {
		put(fmt.Sprintf("a.%d", i), fmt.Sprint(i))
	}
	for i := 0; i < n; i += 3 {
		put(fmt.Sprintf("a.%d", i), fmt.Sprint("new", i))
	}
	put("ab.1", "x")
	put("b.1.2", "y")
	wg.Wait()
	for _, k := range []string{"a.7", "a.2999", "ab.1"} {
		if err := s.Delete(ctx(t), k); err != nil {
			t.Fatal(err)
		}
		delete(want, k)
	}
	for _, prefix := range []string{"", "a.", "a", "b.", "b.1.", "c.", "a.12"} {
		w := maps.Clone(want)
		maps.DeleteFunc(w, func(k, _ string) bool { return !strings.HasPrefix(k, prefix) })
		if got := scan(prefix); !maps.Equal(got, w) {
			t.Errorf("Scan(%q): %d keys, want %d", prefix, len(got), len(w))
		}
	}
	stop := errors.New("stop")
	calls := 0
	if err := s.Scan(ctx(t), "a.", func(bus.Entry) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("Scan that is stopped: %v after %d calls", err, calls)
	}
}

func testStoreKeys(t *testing.T, c Config) {
	s := c.Open(t).State()
	for _, k := range []string{"", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a\nb"} {
		if _, err := s.Put(ctx(t), k, nil); err == nil {
			t.Errorf("Put(%q) was accepted", k)
		}
		if _, err := s.Get(ctx(t), k); err == nil {
			t.Errorf("Get(%q) was accepted", k)
		}
		if err := s.Delete(ctx(t), k); err == nil {
			t.Errorf("Delete(%q) was accepted", k)
		}
	}
	for _, raw := range []string{"", "a.b", "*", ">", "ü x", "\x00\n"} {
		k := "s." + bus.Token(raw)
		if _, err := s.Put(ctx(t), k, []byte(raw)); err != nil {
			t.Errorf("Put(%q): %v", k, err)
		}
		if e, err := s.Get(ctx(t), k); err != nil || string(e.Value) != raw {
			t.Errorf("Get(%q): %+v, %v", k, e, err)
		}
	}
}

// testConcurrent uses everything at once.
func testConcurrent(t *testing.T, c Config) {
	b := c.Open(t)
	const n = 2000
	var wg sync.WaitGroup
	wg.Go(func() { fill(t, b.Events(), n, number) })
	wg.Go(func() { fill(t, b.Jobs(), n, func(i int) bus.Record { return job(i%4, "s", "t", fmt.Sprint(i)) }) })
	for range 3 {
		r := open(t, b.Events(), 0, "")
		wg.Go(func() {
			last := uint64(0)
			for _, rec := range read(t, r, n) {
				if rec.Seq != last+1 {
					t.Errorf("seq %d after %d", rec.Seq, last)
				}
				last = rec.Seq
			}
		})
	}
	for p := range 4 {
		ch, _ := consume(t, b.Jobs(), p, 100)
		wg.Go(func() {
			for range n / 4 {
				if err := take(t, ch).Done(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 300 {
			if _, err := b.State().Put(ctx(t), fmt.Sprintf("k.%d", i%10), []byte("v")); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	empty(t, b.Jobs())
	if h := b.Health(); !h.OK {
		t.Errorf("health: %+v", h)
	}
}

func testClose(t *testing.T, c Config) {
	b := c.Open(t)
	r := open(t, b.Events(), 0, "")
	next := make(chan error, 1)
	go func() { _, err := r.Next(ctx(t), 1); next <- err }()
	_, stop := consume(t, b.Jobs(), 0, 1)
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Add(1)
		err := b.Parked().AppendAsync(ctx(t), bus.Record{Subject: bus.ParkedPrefix + "s.t.x", Data: []byte(fmt.Sprint(i))}, func(_ bus.Ack, err error) {
			if err != nil {
				t.Errorf("what was under way failed at Close: %v", err)
			}
			wg.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(ctx(t)); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	if err := <-next; !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Next of a closed bus: %v, want ErrClosed", err)
	}
	if err := stop(); !errors.Is(err, bus.ErrClosed) && !errors.Is(err, context.Canceled) {
		t.Errorf("Consume of a closed bus: %v", err)
	}
	if err := b.Close(ctx(t)); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if _, err := b.Events().Append(ctx(t), number(0)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Append: %v, want ErrClosed", err)
	}
	if _, err := b.Events().Get(ctx(t), 1); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Get: %v, want ErrClosed", err)
	}
	if _, err := b.State().Put(ctx(t), "k", nil); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Put: %v, want ErrClosed", err)
	}
	if b.Health().OK {
		t.Error("a closed bus says it is well")
	}
}
