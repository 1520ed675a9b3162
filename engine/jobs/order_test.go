package jobs

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

func ordered(sensor, name string, fn triggers.Function) *Trigger {
	t := trigger(sensor, name, fn)
	t.Ordered = true
	return t
}

func of(correlation string) func(*Job) { return func(j *Job) { j.Correlation = correlation } }

// again lets a fresh pool go on, of whose writes only so many are made.
func (f *fixture) again(o Options, writes int, ts ...*Trigger) {
	var made atomic.Int64
	o.Bus = faultyBus{f.bus, func(string) (error, bool) {
		switch n := int(made.Add(1)); {
		case writes < 0 || n <= writes:
			return nil, false
		default:
			return bus.ErrUnavailable, n == writes+1
		}
	}}
	o.Events, o.Logger = directEvents{f.bus}, slog.New(slog.DiscardHandler)
	f.pool = NewPool(o)
	f.pool.Apply(table(ts...))
	f.pool.Covered(f.seq, f.seq)
	f.run()
}

// ledger checks the calls of jobs "<key>/<n>": those of a key one at a time, and
// of n only after all before it have ended.
type ledger struct {
	mu      sync.Mutex
	running map[string]string
	ended   map[string]bool
	wrong   []string
}

func newLedger() *ledger { return &ledger{running: map[string]string{}, ended: map[string]bool{}} }

func (l *ledger) begin(job string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, number, _ := strings.Cut(job, "/")
	if other := l.running[key]; other != "" {
		l.wrong = append(l.wrong, fmt.Sprintf("%s was called while %s ran", job, other))
	}
	l.running[key] = job
	var n int
	_, _ = fmt.Sscan(number, &n)
	for i := range n {
		if before := fmt.Sprintf("%s/%d", key, i); !l.ended[before] {
			l.wrong = append(l.wrong, fmt.Sprintf("%s was called before %s had ended", job, before))
		}
	}
}

func (l *ledger) end(job string, final bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, _, _ := strings.Cut(job, "/")
	delete(l.running, key)
	if final {
		l.ended[job] = true
	}
}

func (l *ledger) finished() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ended)
}

func (l *ledger) check(t testing.TB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong[:min(len(l.wrong), 5)] {
		t.Errorf("%s", w)
	}
}

// TestOrderSurvivesEverything: retries, dead letters, a full partition and
// stops at any moment leave the calls of each key in order.
func TestOrderSurvivesEverything(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			pick := rand.New(rand.NewPCG(seed, 0))
			keys, each, stops := 1+pick.IntN(5), 1+pick.IntN(40), pick.IntN(5)
			o := Options{MaxOutstanding: []int{16, 64, 1024}[pick.IntN(3)]}
			concurrency := 1 + pick.IntN(4)
			l := newLedger()
			do := func(ctx context.Context, c *triggers.Call) error {
				l.begin(c.Key)
				h := fnv.New64a()
				_, _ = fmt.Fprint(h, c.Key, c.Attempt)
				r := rand.New(rand.NewPCG(seed, h.Sum64()))
				select {
				case <-time.After(time.Duration(r.IntN(3)) * time.Millisecond):
				case <-ctx.Done():
					l.end(c.Key, false)
					return ctx.Err()
				}
				var err error
				switch outcome := r.IntN(10); {
				case outcome < 2:
					err = errors.New("not now")
				case outcome == 2:
					err = triggers.Permanentf("never")
				}
				l.end(c.Key, err == nil || triggers.Permanent(err) || c.Attempt >= 3)
				return err
			}
			f := newFixture(t, o)
			both := func() []*Trigger {
				tr := ordered("s", "a", &function{do: do})
				tr.Concurrency = concurrency
				return []*Trigger{tr, trigger("s", f.neighbour("s", "a"), &function{})}
			}
			f.grace = time.Millisecond
			writes := func(i int) int { // the last one makes all
				if i == stops {
					return -1
				}
				return pick.IntN(keys * each * 2)
			}
			f.again(o, writes(0), both()...)
			for i := range each {
				for k := range keys {
					f.enqueue("s", "a", fmt.Sprintf("k%d/%d", k, i), of(fmt.Sprintf("k%d", k)))
				}
			}
			for i := range stops {
				<-time.After(time.Duration(pick.IntN(25)) * time.Millisecond)
				f.stop()
				f.again(o, writes(i+1), both()...)
			}
			until(t, "all jobs", func() bool { return l.finished() == keys*each })
			until(t, "JOBS and PARKED to empty", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
			l.check(t)
		})
	}
}

// neighbour names a trigger in the same partition.
func (f *fixture) neighbour(sensor, trigger string) string {
	n := f.bus.Jobs().Partitions()
	for i := 0; ; i++ {
		if name := fmt.Sprintf("beside%d", i); Partition(sensor, name, n) == Partition(sensor, trigger, n) {
			return name
		}
	}
}

// A job that waits for its retry holds back those of its key, however many,
// and no others; when it is given up, they go on.
func TestPoisonedKeyHoldsBackItsOwn(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 64})
	var mu sync.Mutex
	broken := true
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if broken && strings.HasPrefix(c.Key, "bad/0") {
			return errors.New("down")
		}
		return nil
	}}
	tr := ordered("s", "a", fn)
	tr.Policy = triggers.Policy{Attempts: 1000, Backoff: 20 * time.Millisecond, Factor: 1, Max: time.Second}
	f.pool.Apply(table(tr))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 200 {
		f.enqueue("s", "a", fmt.Sprintf("bad/%d", i), of("bad"))
	}
	for i := range 200 {
		f.enqueue("s", "a", fmt.Sprintf("good/%d", i), of(fmt.Sprintf("good%d", i%7)))
	}
	stats := f.pool.Status()[0].Stats
	until(t, "the other keys", func() bool { return stats.Succeeded.Load() == 200 })
	mu.Lock()
	broken = false
	mu.Unlock()
	until(t, "the key itself", func() bool { return stats.Succeeded.Load() == 400 })
	var bad []string
	for _, c := range fn.calls {
		if strings.HasPrefix(c, "bad/") && !strings.HasPrefix(c, "bad/0#") {
			bad = append(bad, c)
		}
	}
	for i, c := range bad {
		if want := fmt.Sprintf("bad/%d#1", i+1); c != want {
			t.Fatalf("call %d is %s, want %s", i, c, want)
		}
	}
}

func TestDeadLetterReleasesItsKey(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		if c.Key == "first" {
			return triggers.Permanentf("no")
		}
		return nil
	}}
	f.pool.Apply(table(ordered("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "first", of("k"))
	f.enqueue("s", "a", "second", of("k"))
	until(t, "the second", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
	if !slices.Equal(fn.calls, []string{"first#1", "second#1"}) {
		t.Errorf("calls %v", fn.calls)
	}
}

// An order that comes or goes with a reload loses and repeats nothing.
func TestOrderCanBeSwitched(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	gate := make(chan struct{})
	fn := &function{do: func(context.Context, *triggers.Call) error { <-gate; return nil }}
	none, key, beside := trigger("s", "a", fn), ordered("s", "a", fn), trigger("s", f.neighbour("s", "a"), &function{})
	none.Concurrency, key.Concurrency = 1, 1
	key.Callee = none.Callee
	f.pool.Apply(table(none, beside))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 100 {
		f.enqueue("s", "a", fmt.Sprintf("k%d", i), of(fmt.Sprint(i%3)))
	}
	until(t, "some to be parked", func() bool { return records(t, f.bus.Parked()) > 20 })
	for i := range 6 {
		f.pool.Apply(table([]*Trigger{key, none}[i%2], beside))
		for range 5 {
			gate <- struct{}{}
		}
	}
	close(gate)
	until(t, "JOBS and PARKED to empty", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
	seen := map[string]bool{}
	for _, c := range fn.calls {
		seen[c] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d of 100 jobs were called", len(seen))
	}
}
