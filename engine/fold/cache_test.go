package fold

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
)

// memoryLog holds events 1 to n but for those removed, with size bytes each.
type memoryLog struct {
	bus.Log
	mu      sync.Mutex // reads ahead go on beside the test
	n, size uint64
	removed map[uint64]bool
	tag     string
	gets    atomic.Int64 // reads of one event
	batches atomic.Int64 // reads of many
	records atomic.Int64 // what they returned
}

func (l *memoryLog) record(seq uint64) bus.Record {
	ev := &bus.Event{ID: fmt.Sprint(l.tag, seq), Source: "/t", Type: "t", EventSource: "s", EventName: "e", Data: make([]byte, l.size)}
	r := ev.Record()
	r.Seq = seq
	return r
}

// become makes it another log.
func (l *memoryLog) become(tag string, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tag, l.n = tag, n
}

func (l *memoryLog) Get(_ context.Context, seq uint64) (bus.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gets.Add(1)
	if seq == 0 || seq > l.n || l.removed[seq] {
		return bus.Record{}, bus.ErrNotFound
	}
	return l.record(seq), nil
}

func (l *memoryLog) GetBatch(_ context.Context, from uint64, limit, maxBytes int) (out []bus.Record, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches.Add(1)
	for seq, bytes := max(from, 1), 0; seq <= l.n && len(out) < limit && bytes < maxBytes; seq++ {
		if l.removed[seq] {
			continue
		}
		out = append(out, l.record(seq))
		bytes += int(l.size)
	}
	l.records.Add(int64(len(out)))
	if len(out) == 0 {
		return nil, bus.ErrNotFound
	}
	return out, nil
}

// want checks that the cache gives the event of its log.
func want(t *testing.T, c *Cache, l *memoryLog, seq uint64) {
	t.Helper()
	ev, err := c.Event(t.Context(), seq)
	switch {
	case l.removed[seq] || seq > l.n:
		if !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("event %d: %v, want ErrNotFound", seq, err)
		}
	case err != nil:
		t.Errorf("event %d: %v", seq, err)
	case ev.ID != fmt.Sprint(l.tag, seq):
		t.Errorf("event %d is %s", seq, ev.ID)
	}
}

// TestBacklogIsReadAhead works events off in order from many goroutines.
func TestBacklogIsReadAhead(t *testing.T) {
	const n = 20_000
	l := &memoryLog{n: n, removed: map[uint64]bool{17: true, 4000: true, 4001: true}}
	c := NewCache(l, 16, 1<<20)
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for seq := next.Add(1); seq <= n+5; seq = next.Add(1) {
				want(t, c, l, seq)
			}
		})
	}
	wg.Wait()
	if reads := l.gets.Load() + l.batches.Load(); reads > n/10 {
		t.Errorf("%d reads of %d events: nothing was read ahead", reads, n)
	}
}

// TestScatteredEventsAreNotReadAhead asks for few of many events.
func TestScatteredEventsAreNotReadAhead(t *testing.T) {
	for _, tc := range []struct{ step, most uint64 }{{100, 1}, {40, 12}, {7919, 1}} {
		l := &memoryLog{n: 200_000}
		c := NewCache(l, 16, 1<<20)
		seq := uint64(1)
		const n = 1000
		for range n {
			want(t, c, l, seq)
			seq = 1 + (seq+tc.step)%l.n
		}
		if read := l.gets.Load() + l.records.Load(); read > int64(n*tc.most) {
			t.Errorf("every %dth event: %d were read for %d", tc.step, read, n)
		}
	}
}

// TestReadAheadIsBounded reads large events, in order and at several places.
func TestReadAheadIsBounded(t *testing.T) {
	const limit = 32 << 20
	l := &memoryLog{n: 3000, size: 100 << 10}
	c := NewCache(l, 16, limit)
	for i := range l.n / 3 {
		for place := range uint64(3) {
			want(t, c, l, 1+place*l.n/3+i)
			c.ahead.mu.Lock()
			got := c.ahead.bytes
			c.ahead.mu.Unlock()
			if got > limit/4 {
				t.Fatalf("%d bytes are held, more than %d", got, limit/4)
			}
		}
	}
	if l.gets.Load()+l.batches.Load() > int64(l.n)/2 {
		t.Errorf("%d reads of %d events", l.gets.Load()+l.batches.Load(), l.n)
	}
}

// TestCacheForgetsAnotherLog exchanges and shortens the log behind the cache.
func TestCacheForgetsAnotherLog(t *testing.T) {
	l := &memoryLog{n: 100, tag: "old"}
	c := NewCache(l, 64, 1<<20)
	fill := func() {
		for seq := uint64(1); seq <= l.n; seq++ {
			if seq > l.n/2 {
				ev, err := bus.DecodeEvent(l.record(seq))
				if err != nil {
					t.Fatal(err)
				}
				c.put(ev)
			}
			want(t, c, l, seq)
		}
	}
	c.adopt("a", 0)
	fill()
	gets := l.gets.Load()
	c.adopt("a", 100)
	want(t, c, l, 100)
	if l.gets.Load() != gets {
		t.Error("the same log was forgotten")
	}
	l.become("other", l.n)
	c.adopt("b", 100)
	fill()
	l.become("restored", 60)
	c.adopt("b", 50)
	fill()
}

// BenchmarkBacklog reads events in order while memory is short, which is when
// the garbage collector takes the blocks of the store.
func BenchmarkBacklog(b *testing.B) {
	bb, err := jetstream.Open(b.Context(), jetstream.Options{Dir: bustest.Dir(b), MinFree: -1, Reserve: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer bb.Close(context.Background())
	const n = 20_000
	var wg sync.WaitGroup
	for i := range n {
		ev := &bus.Event{ID: fmt.Sprint(i), Source: "/t", Type: "t", EventSource: "s", EventName: "e", Data: make([]byte, 256)}
		wg.Add(1)
		if err := bb.Events().AppendAsync(b.Context(), ev.Record(), func(bus.Ack, error) { wg.Done() }); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	for _, tc := range []struct {
		name string
		get  func(seq uint64) error
	}{
		{"single", func(seq uint64) error { _, err := bb.Events().Get(b.Context(), seq); return err }},
		{"ahead", func() func(seq uint64) error {
			c := NewCache(bb.Events(), 1<<10, 32<<20)
			return func(seq uint64) error { _, err := c.Event(b.Context(), seq); return err }
		}()},
	} {
		b.Run(tc.name, func(b *testing.B) {
			b.ReportAllocs()
			for seq := uint64(0); b.Loop(); seq++ {
				if seq%500 == 0 {
					runtime.GC()
				}
				if err := tc.get(1 + seq%n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
