package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

func TestReopen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	o := options(t)
	o.Partitions = 3
	b := mustOpen(t, o)
	l := startLoad(b, 8)
	eventually(t, "some load", func() bool { n, _ := l.counts(); return n > 500 })
	if _, err := b.State().Put(ctx, "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	was, err := b.Events().Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Abrupt: the server goes, nothing is drained.
	b.emb.stop()
	l.cancel()
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	l.wg.Wait()

	o.Partitions = 7 // too late
	o.Limits.Events = 5 * gib
	b = mustOpen(t, o)
	now, err := b.Events().Info(ctx)
	if err != nil || now.ID != was.ID || now.MaxBytes != 5*gib {
		t.Errorf("reopened: %+v, was %+v, %v", now, was, err)
	}
	if n := b.Jobs().Partitions(); n != 3 {
		t.Errorf("%d partitions, want the 3 it was made with", n)
	}
	for key, seq := range l.acked {
		if r, err := b.Events().Get(ctx, seq); err != nil || string(r.Data) != key {
			t.Fatalf("acknowledged event %s with seq %d: %+v, %v", key, seq, r, err)
		}
	}
	if e, err := b.State().Get(ctx, "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("state: %+v, %v", e, err)
	}
}

func TestReconcile(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		change func(*jetstream.StreamConfig)
		stream string
		want   string
	}{
		"retention":   {func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy }, "EVENTS", "has retention Interest and needs Limits"},
		"storage":     {func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage; c.MaxBytes = mib }, "EVENTS", "storage"},
		"subjects":    {func(c *jetstream.StreamConfig) { c.Subjects = []string{"engine.events.a.>"} }, "EVENTS", "subjects"},
		"no identity": {func(c *jetstream.StreamConfig) { c.Metadata = nil }, "RUNS", "was not made by an engine"},
		"limits": {func(c *jetstream.StreamConfig) {
			c.MaxBytes, c.MaxAge, c.Discard = 5*mib, time.Hour, jetstream.DiscardOld
		}, "EVENTS", ""},
		"direct": {func(c *jetstream.StreamConfig) { c.AllowDirect, c.Duplicates = false, time.Minute }, "PARKED", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExternal(t, nil)
			o := e.options()
			b := mustOpen(t, o)
			s, err := b.js.Stream(ctx, tc.stream)
			if err != nil {
				t.Fatal(err)
			}
			want := s.CachedInfo().Config
			if err := b.js.DeleteStream(ctx, tc.stream); err != nil {
				t.Fatal(err)
			}
			changed := want
			tc.change(&changed)
			if _, err := b.js.CreateStream(ctx, changed); err != nil {
				t.Fatal(err)
			}
			b2, err := Open(ctx, o)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b2.Close(ctx) }()
			if s, err = b2.js.Stream(ctx, tc.stream); err != nil {
				t.Fatal(err)
			}
			c := s.CachedInfo().Config
			if c.MaxBytes != want.MaxBytes || c.MaxAge != 0 || c.Discard != want.Discard || c.AllowDirect != want.AllowDirect || c.Duplicates != want.Duplicates {
				t.Errorf("not brought back: %+v", c)
			}
		})
	}
}

func TestStoreDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.Dir = filepath.Join(file, "bus")
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "cannot be written") || !strings.Contains(err.Error(), o.Dir) {
		t.Errorf("below a file: %v", err)
	}
}

// TestWatermark lets the disk look almost full.
func TestWatermark(t *testing.T) {
	ctx := context.Background()
	var free atomic.Int64
	free.Store(gib)
	o := options(t)
	o.MinFree, o.Reserve = 100*mib, mib
	var logs logBuffer
	o.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	o.disk = func(string) (int64, int64, error) { return free.Load(), 10 * gib, nil }
	b := mustOpen(t, o)
	reserve := filepath.Join(o.Dir, "reserve")
	if st, err := os.Stat(reserve); err != nil || st.Size() != mib {
		t.Fatalf("reserve: %v, %v", st, err)
	}
	mustAppend(t, b.Events(), 0)

	free.Store(99 * mib)
	eventually(t, "health to say no", func() bool { return !b.Health().OK })
	if h := b.Health(); !strings.Contains(h.Reason, "almost full") || h.RetryAfter == 0 || h.Since.IsZero() {
		t.Errorf("health: %+v", h)
	}
	for name, l := range map[string]bus.Log{"events": b.Events(), "jobs": b.Jobs(), "runs": b.Runs()} {
		if _, err := l.Append(ctx, bus.Record{Subject: "engine." + name + ".0.x"}); !errors.Is(err, bus.ErrFull) || !strings.Contains(err.Error(), "99.0 MiB free") {
			t.Errorf("%s: %v, want ErrFull", name, err)
		}
	}
	// What drains the queues goes on.
	if _, err := b.State().Put(ctx, "k", nil); err != nil {
		t.Error(err)
	}
	if _, err := b.Parked().Append(ctx, bus.Record{Subject: bus.ParkedPrefix + "s.t.x"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(reserve); err != nil {
		t.Error("the reserve was given up too early")
	}
	free.Store(20 * mib)
	eventually(t, "the reserve to be given up", func() bool { _, err := os.Stat(reserve); return err != nil })
	free.Store(105 * mib) // more than the mark, less than what resumes
	for range 5 {
		b.look()
	}
	if b.Health().OK {
		t.Error("resumed at the mark itself: it will flap")
	}
	free.Store(gib)
	eventually(t, "health to recover", func() bool { return b.Health().OK })
	mustAppend(t, b.Events(), 1)
	eventually(t, "the reserve to be taken again", func() bool { st, err := os.Stat(reserve); return err == nil && st.Size() == mib })
	if n := strings.Count(logs.String(), "\n"); n > 8 {
		t.Errorf("%d lines of log for one outage:\n%s", n, logs.String())
	}
}

// TestDiskFull fills a real, small file system until writes fail.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, 64*mib)
	ctx := context.Background()
	o := options(t)
	o.Dir = filepath.Join(dir, "bus")
	o.AckTimeout = 500 * time.Millisecond
	var logs logBuffer
	o.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	o.Limits = Limits{Events: gib, Jobs: gib, Parked: gib, DeadLetters: gib, Runs: gib, State: gib}
	b := mustOpen(t, o) // no watermark, no reserve: the worst case
	r, err := b.Events().Read(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	acked := map[uint64]int{}
	data := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 100*kib) }
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 24*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	i := 0
	for failures := 0; failures < 3; i++ {
		a, err := b.Events().Append(ctx, bus.Record{Subject: bus.EventSubject("s", "e"), Data: data(i)})
		if err == nil {
			acked[a.Seq] = i
		} else {
			failures++
			if !errors.Is(err, bus.ErrUnavailable) && !errors.Is(err, bus.ErrFull) {
				t.Errorf("Append on a full disk: %v", err)
			}
		}
		if i > 1000 {
			t.Fatal("the disk does not become full")
		}
	}
	eventually(t, "health to say no", func() bool { return !b.Health().OK })
	t.Logf("%d acknowledged, then: %s", len(acked), b.Health().Reason)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// Nobody helps.
	eventually(t, "recovery", func() bool { return b.Health().OK })
	eventually(t, "appends to work", func() bool {
		i++
		a, err := b.Events().Append(ctx, bus.Record{Subject: bus.EventSubject("s", "e"), Data: data(i)})
		if err == nil {
			acked[a.Seq] = i
		}
		return err == nil
	})
	var last uint64
	for seq := range acked {
		last = max(last, seq)
	}
	seen := map[uint64][]byte{}
	rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for seq := uint64(0); seq < last; {
		rs, err := r.Next(rctx, 100)
		if err != nil {
			t.Fatalf("the reader did not survive: %v", err)
		}
		for _, rec := range rs {
			seen[rec.Seq], seq = rec.Data, rec.Seq
		}
	}
	for seq, i := range acked {
		if !bytes.Equal(seen[seq], data(i)) {
			t.Errorf("acknowledged event %d is lost", seq)
		}
	}
	if n := strings.Count(logs.String(), "\n"); n > 10 {
		t.Errorf("%d lines of log for one outage:\n%s", n, logs.String())
	}
}

// TestDiskFullWatermark fills the same disk with the watermark on: no write
// ever fails, and nothing has to be restarted.
func TestDiskFullWatermark(t *testing.T) {
	dir := smallDisk(t, 64*mib)
	o := options(t)
	o.Dir = filepath.Join(dir, "bus")
	o.MinFree, o.Reserve = 0, 4*mib // the default mark: a quarter of so small a disk
	o.Limits = Limits{Events: gib, Jobs: gib, Parked: gib, DeadLetters: gib, Runs: gib, State: gib}
	b := mustOpen(t, o)
	srv := b.emb.server()
	var err error
	for range 2000 {
		if _, err = b.Events().Append(context.Background(), bus.Record{Subject: bus.EventSubject("s", "e"), Data: make([]byte, 64*kib)}); err != nil {
			break
		}
	}
	if !errors.Is(err, bus.ErrFull) || b.Health().OK {
		t.Errorf("Append: %v, health %+v", err, b.Health())
	}
	if err := b.Events().PurgeTo(context.Background(), 1<<40); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovery", func() bool { return b.Health().OK })
	mustAppend(t, b.Events(), 0)
	if b.emb.server() != srv {
		t.Error("the server was restarted")
	}
}

// TestAckTimeout gives up what is never answered, once.
func TestAckTimeout(t *testing.T) {
	o := options(t)
	o.AckTimeout = 100 * time.Millisecond
	o.MaxOutstanding = 4
	b := mustOpen(t, o)
	ctx := context.Background()
	// A subject that no stream listens to, but somebody else does.
	sub, err := b.rc.SubscribeSync("engine.nowhere")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.rc.Flush(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var calls [8]atomic.Int32
	var wg sync.WaitGroup
	for i := range calls {
		wg.Add(1)
		// From the fifth on this waits for the first ones to be given up.
		if err := b.Parked().AppendAsync(ctx, bus.Record{Subject: "engine.nowhere"}, func(_ bus.Ack, err error) {
			if !errors.Is(err, bus.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable", err)
			}
			if calls[i].Add(1) == 1 {
				wg.Done()
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if err := b.Parked().AppendAsync(short, bus.Record{Subject: "engine.nowhere"}, func(bus.Ack, error) { t.Error("done after an error") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AppendAsync with everything outstanding: %v", err)
	}
	wg.Wait()
	// Late answers hurt nobody, also not those who have the slots now.
	wg.Add(o.MaxOutstanding)
	for range o.MaxOutstanding {
		if err := b.Parked().AppendAsync(ctx, bus.Record{Subject: "engine.nowhere"}, func(_ bus.Ack, err error) {
			if err == nil {
				t.Error("took the acknowledgement of another record")
			}
			wg.Done()
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range calls {
		m, err := sub.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Respond([]byte(`{"stream":"PARKED","seq":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	for i := range 20 {
		mustAppend(t, b.Events(), i)
	}
	for i := range calls {
		if n := calls[i].Load(); n != 1 {
			t.Errorf("done was called %d times", n)
		}
	}
	if !b.pub.idle() {
		t.Error("slots are lost")
	}
}

// TestReadGapInDelivery loses a message on the way.
func TestReadGapInDelivery(t *testing.T) {
	b := mustOpen(t, options(t))
	r := b.events.newReader(0, "")
	defer func() { _ = r.Close() }()
	if err := r.p.openFirst(t.Context()); err != nil {
		t.Fatal(err)
	}
	const n = 20
	for i := range n {
		mustAppend(t, b.Events(), i)
	}
	eventually(t, "messages to steal", func() bool { return len(r.p.ch) == n })
	keep := <-r.p.ch
	<-r.p.ch
	r.p.ch <- keep // now the last: out of order, and one is missing
	for seq := uint64(1); seq <= n; {
		rs, err := r.Next(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range rs {
			if rec.Seq != seq {
				t.Fatalf("seq %d, want %d", rec.Seq, seq)
			}
			seq++
		}
	}
}

func TestScanWhileWriting(t *testing.T) {
	b := mustOpen(t, options(t))
	s := b.State()
	ctx, cancel := context.WithCancel(context.Background())
	for i := range 2000 {
		if err := s.PutAsync(ctx, fmt.Sprintf("k.%d", i), []byte("v"), func(uint64, error) {}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(ctx, "other", nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = s.Put(ctx, fmt.Sprintf("k.%d", (i*37)%2000), []byte("w"))
			_ = s.Delete(ctx, fmt.Sprintf("gone.%d", i%100))
		}
	})
	for range 20 {
		keys := map[string]bool{}
		if err := s.Scan(ctx, "k.", func(e bus.Entry) error { keys[e.Key] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		if len(keys) != 2000 {
			t.Errorf("%d keys, want all 2000", len(keys))
		}
	}
	cancel()
	wg.Wait()
}

// TestTombstones are removed by the server.
func TestTombstones(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the tombstones' end")
	}
	t.Parallel()
	b := mustOpen(t, options(t))
	ctx := context.Background()
	for i := range 10 {
		if _, err := b.State().Put(ctx, fmt.Sprintf("k.%d", i), []byte("v")); err != nil {
			t.Fatal(err)
		}
		if err := b.State().Delete(ctx, fmt.Sprintf("k.%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the tombstones to go", func() bool {
		i, err := b.state.Info(ctx)
		return err == nil && i.Records == 0
	})
	if _, err := b.State().Update(ctx, "k.1", []byte("new"), 0); err != nil {
		t.Error(err)
	}
}

func TestListen(t *testing.T) {
	o := options(t)
	b := mustOpen(t, o)
	if u := b.ClientURL(); u != "" {
		t.Errorf("it listens on %s unasked", u)
	}
	o = options(t)
	o.ListenPort = -1
	b = mustOpen(t, o)
	if !strings.HasPrefix(b.ClientURL(), "nats://127.0.0.1:") {
		t.Fatalf("ClientURL %q", b.ClientURL())
	}
	client := mustOpen(t, Options{URL: b.ClientURL()})
	seq := mustAppend(t, client.Events(), 7)
	if r, err := b.Events().Get(context.Background(), seq); err != nil || string(r.Data) != "7" {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add("$JS.ACK.EVENTS.c1.1.22.3.1700000000000000000.5")
	f.Add("$JS.ACK._.hash.EVENTS.c1.1.22.3.1700000000000000000.5.rnd")
	f.Add("$JS.ACK.EVENTS.c1.1.x.3.4.5")
	f.Add("$JS.ACK.........")
	f.Fuzz(func(t *testing.T, s string) {
		m := message{Msg: msg(s)}
		if m.parse() && strings.Count(s, ".") == 8 {
			p := strings.Split(s, ".")
			if len(p[5]) < 19 && fmt.Sprint(m.seq) != strings.TrimLeft(p[5], "0") && m.seq != 0 {
				t.Errorf("seq %d of %q", m.seq, s)
			}
		}
	})
}

func FuzzParseAck(f *testing.F) {
	lg := (&Bus{}).newStream("EVENTS", false, false)
	for _, s := range []string{
		`{"stream":"EVENTS","seq":1}`, `{"stream":"EVENTS","seq":2,"duplicate":true}`, `{"stream":"EVENTS","domain":"x","seq":3}`,
		`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"EVENTS","seq":0}`, `{}`, ``, `nil`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := msg("")
		m.Data = data
		if ack, err := lg.parseAck(m); err == nil && ack.Seq == 0 {
			t.Errorf("%q was taken as an acknowledgement", data)
		}
	})
}

func TestParseAck(t *testing.T) {
	lg := (&Bus{}).newStream("EVENTS", false, false)
	for _, tc := range []struct {
		data string
		want bus.Ack
		err  error
	}{
		{`{"stream":"EVENTS","seq":18446744073709551615}`, bus.Ack{Seq: 1<<64 - 1}, nil},
		{`{"stream":"EVENTS","seq":2,"duplicate":true}`, bus.Ack{Seq: 2, Duplicate: true}, nil},
		{`{"stream":"EVENTS","domain":"x","seq":3}`, bus.Ack{Seq: 3}, nil},
		{`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"EVENTS","seq":0}`, bus.Ack{}, bus.ErrFull},
		{`{"error":{"code":503,"err_code":10023,"description":"insufficient resources"},"stream":"EVENTS","seq":0}`, bus.Ack{}, bus.ErrFull},
		{`{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"},"stream":"EVENTS","seq":0}`, bus.Ack{}, bus.ErrTooLarge},
		{`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"EVENTS","seq":0}`, bus.Ack{}, bus.ErrConflict},
		{`{"error":{"code":503,"err_code":10039,"description":"JetStream not enabled for account"}}`, bus.Ack{}, bus.ErrUnavailable},
		{`{"stream":"EVENTS","seq":0}`, bus.Ack{}, bus.ErrUnavailable},
		{`+OK`, bus.Ack{}, bus.ErrUnavailable},
		{``, bus.Ack{}, bus.ErrUnavailable},
	} {
		m := msg("")
		m.Data = []byte(tc.data)
		got, err := lg.parseAck(m)
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %+v, %v", tc.data, got, err)
		}
	}
}
