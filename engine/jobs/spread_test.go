package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// spread makes a trigger whose jobs are spread.
func spread(sensor, name string, fn triggers.Function) *Trigger {
	t := trigger(sensor, name, fn)
	t.Spread = true
	return t
}

func scattered(j *Job) { j.Spread = true }

// Jobs that are spread come to about the same number in each partition, whatever
// their keys have in common; those of another trigger stay together.
func TestJobsAreSpreadEvenly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 16 * 400
		partitions := rapid.SampledFrom([]int{2, 3, 8, 16}).Draw(t, "partitions")
		prefix, suffix := rapid.String().Draw(t, "prefix"), rapid.String().Draw(t, "suffix")
		counts := make([]int, partitions)
		for i := range n {
			j := Job{Key: fmt.Sprint(prefix, i, suffix), Sensor: "s", Trigger: "a"}
			if j.Partition(partitions) != Partition("s", "a", partitions) {
				t.Fatal("a job that is not spread is not with its trigger")
			}
			j.Spread = true
			counts[j.Partition(partitions)]++
		}
		for p, c := range counts {
			if mean := n / partitions; c < mean*3/4 || c > mean*5/4 {
				t.Fatalf("partition %d of %d has %d of %d jobs", p, partitions, c, n)
			}
		}
	})
}

// counted notes how often each job was called.
type counted struct {
	mu    sync.Mutex
	calls map[string]int
	do    func(key string, attempt int) error
}

func (f *counted) Invoke(_ context.Context, c *triggers.Call) (triggers.Result, error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[c.Key]++
	f.mu.Unlock()
	if f.do != nil {
		return triggers.Result{}, f.do(c.Key, c.Attempt)
	}
	return triggers.Result{}, nil
}

func (f *counted) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// check checks that so many jobs were called, each as often as it should, or more
// often unless that is exact.
func (f *counted) check(t *testing.T, jobs int, exact bool, times func(key string) int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) != jobs {
		t.Errorf("%d jobs of %d were called", len(f.calls), jobs)
	}
	for key, n := range f.calls {
		if least := times(key); n < least || exact && n > least {
			t.Errorf("%s was called %d times", key, n)
		}
	}
}

// A trigger that is spread, and not, and spread again loses and repeats nothing,
// wherever its jobs are by then, with triggers beside it. Those that fail are
// retried, those that are given up are redriven from where they are. Across stops
// it loses nothing.
func TestSpreadCanBeSwitched(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			pick := rand.New(rand.NewPCG(seed, 4))
			o := Options{MaxOutstanding: []int{16, 64, 1024}[pick.IntN(3)]}
			f := newFixture(t, o)
			var mu sync.Mutex
			dies := true
			fn := &counted{do: func(key string, attempt int) error {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case strings.HasPrefix(key, "retry") && attempt == 1:
					return errors.New("not now")
				case strings.HasPrefix(key, "die") && dies:
					return triggers.Permanentf("never")
				}
				return nil
			}}
			beside := &counted{}
			tables := func(i int) []*Trigger {
				tr := trigger("s", "a", fn)
				tr.Spread = i%2 == 0
				return []*Trigger{tr, trigger("s", f.neighbour("s", "a"), beside)}
			}
			f.again(o, -1, tables(0)...)
			n := 0
			for i := range 8 {
				for range 40 {
					kind := []string{"retry", "die", "plain", "plain"}[n%4]
					f.enqueue("s", "a", fmt.Sprintf("%s%d", kind, n), func(j *Job) { j.Spread = i%2 == 0 })
					f.enqueue("s", f.neighbour("s", "a"), fmt.Sprint(n), nil)
					n++
				}
				if seed%2 == 1 && pick.IntN(3) == 0 {
					f.stop()
					f.again(o, -1, tables(i+1)...)
				} else {
					f.pool.Apply(table(tables(i + 1)...))
				}
			}
			f.empty(t)
			until(t, "the dead letters", func() bool { return records(t, f.bus.DeadLetters()) >= uint64(n/4) })
			exact := seed%2 == 0
			fn.check(t, n, exact, func(key string) int {
				if strings.HasPrefix(key, "retry") {
					return 2
				}
				return 1
			})
			mu.Lock()
			dies = false
			mu.Unlock()
			letters, err := Letters(t.Context(), f.bus, TriggerRef{"s", "a"}, 0, 1000)
			if err != nil || len(letters) < n/4 {
				t.Fatal(len(letters), err)
			}
			for _, l := range letters {
				if err := Redrive(t.Context(), f.bus, l, nil); err != nil {
					t.Fatal(err)
				}
			}
			f.empty(t)
			fn.check(t, n, exact, func(key string) int {
				if strings.HasPrefix(key, "plain") {
					return 1
				}
				return 2
			})
			beside.check(t, n, exact, func(string) int { return 1 })
		})
	}
}

// Where jobs of a trigger lie that was spread once, and another one alone has a
// backlog, they are delivered all the same.
func TestFormerlySpreadJobsBesideABacklog(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	release := make(chan struct{})
	slow := &function{do: func(ctx context.Context, _ *triggers.Call) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	fn := &counted{}
	for i := range 200 {
		f.enqueue("s", "slow", fmt.Sprintf("slow%d", i), nil)
	}
	var keys []string
	n := f.bus.Jobs().Partitions()
	for i := 0; len(keys) < 10; i++ {
		if j := (&Job{Key: fmt.Sprint("k", i), Spread: true}); j.Partition(n) == Partition("s", "slow", n) && Partition("s", "a", n) != Partition("s", "slow", n) {
			keys = append(keys, j.Key)
			f.enqueue("s", "a", j.Key, scattered)
		}
	}
	ts := trigger("s", "slow", slow)
	ts.Timeout = time.Minute
	f.start(ts, trigger("s", "a", fn))
	until(t, "the slow calls", func() bool { return slow.count() == 4 })
	release <- struct{}{} // whatever ends lets the next ones in, which are parked
	until(t, "the others", func() bool { return fn.count() == len(keys) })
	close(release)
}

// An order that takes the place of spread keeps its jobs in it, too.
func TestSpreadBecomesOrder(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	gate := make(chan struct{})
	var mu sync.Mutex
	var jobs []string
	fn := &function{do: func(ctx context.Context, c *triggers.Call) error {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
		mu.Lock()
		defer mu.Unlock()
		jobs = append(jobs, c.Key)
		return nil
	}}
	free, key := spread("s", "a", fn), ordered("s", "a", fn)
	free.Concurrency = 4
	f.grace = time.Millisecond
	f.start(free, trigger("s", f.neighbour("s", "a"), &function{}))
	for i := range 100 {
		f.enqueue("s", "a", fmt.Sprintf("x/%d", i), func(j *Job) { j.Correlation, j.Spread = "x", true })
	}
	until(t, "the first calls", func() bool { return fn.count() == 4 })
	f.stop()
	f.again(Options{MaxOutstanding: 32}, -1, key, trigger("s", f.neighbour("s", "a"), &function{}))
	until(t, "one call", func() bool { return fn.count() == 5 })
	close(gate)
	f.empty(t)
	mu.Lock()
	defer mu.Unlock()
	seen := map[string]bool{}
	for _, j := range jobs {
		seen[j] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d of 100 jobs were called", len(seen))
	}
}

// An offered job that is spread is found again when it is delivered.
func TestOfferedSpreadJobIsCalledOnce(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &counted{}
	f.start(spread("s", "a", fn))
	f.enqueue("s", "a", "first", scattered)
	until(t, "the first call", func() bool { return fn.count() == 1 })
	const n = 500
	for i := range n {
		j := &Job{Key: fmt.Sprint("k", i), Sensor: "s", Trigger: "a", Position: f.seq, Last: f.seq, Time: time.Now(), Spread: true}
		f.offer(j)
	}
	until(t, "all calls", func() bool { return fn.count() == n+1 })
	f.empty(t)
	fn.check(t, n+1, true, func(string) int { return 1 })
}

// BenchmarkSpread compares triggers whose jobs are spread with those whose jobs
// are in one partition: a backlog that is there at the start, and jobs as fast
// as they can be stored.
func BenchmarkSpread(b *testing.B) {
	for _, scatter := range []bool{false, true} {
		store := func(b *testing.B, f *fixture, n int) {
			j := &Job{Key: fmt.Sprintf("k%d", n), Sensor: "s", Trigger: "a", Position: f.seq, Last: f.seq, Time: time.Now(), Spread: scatter}
			rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
			if err := f.bus.Jobs().AppendAsync(b.Context(), rec, func(bus.Ack, error) {}); err != nil {
				b.Fatal(err)
			}
		}
		for _, concurrency := range []int{4, 64} {
			made := func(fn triggers.Function) *Trigger {
				tr := spread("s", "a", fn)
				tr.Spread, tr.Concurrency = scatter, concurrency
				return tr
			}
			b.Run(fmt.Sprintf("backlog/concurrency=%d/spread=%v", concurrency, scatter), func(b *testing.B) {
				f := newFixture(b, Options{})
				for n := range b.N {
					store(b, f, n)
				}
				until(b, "the jobs", func() bool { return records(b, f.bus.Jobs()) == uint64(b.N) })
				b.ResetTimer()
				f.start(made(triggersFunc(func(*triggers.Call) (triggers.Result, error) { return triggers.Result{}, nil })))
				until(b, "the jobs' end", func() bool { return records(b, f.bus.Jobs()) == 0 })
			})
			b.Run(fmt.Sprintf("stream/concurrency=%d/spread=%v", concurrency, scatter), func(b *testing.B) {
				f := newFixture(b, Options{})
				under := make(chan struct{}, 1024) // what waits in the bus is another question
				f.start(made(quick{under}))
				for n := range b.N {
					under <- struct{}{}
					store(b, f, n)
				}
				until(b, "the jobs' end", func() bool { return records(b, f.bus.Jobs()) == 0 })
			})
		}
	}
}
