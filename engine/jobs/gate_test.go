package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// times notes when a function was called.
type times struct {
	mu sync.Mutex
	at []time.Time
}

func (f *times) Invoke(context.Context, *triggers.Call) (triggers.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = append(f.at, time.Now())
	return triggers.Result{}, nil
}

func (f *times) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.at)
}

// check checks that there were no more calls than a limit has let since began, to
// the moment, and no more in any window, in which a busy machine may have delayed
// calls by jitter.
func (f *times) check(t *testing.T, began time.Time, limit rate.Limit, burst int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	most := func(d time.Duration) float64 { return float64(burst) + float64(limit)*d.Seconds() + 1 }
	for j := range f.at {
		if d := f.at[j].Sub(began); float64(j+1) > most(d) {
			t.Fatalf("%d calls in the first %v, at most %.1f may be", j+1, d, most(d))
		}
		for i := range j {
			if d := f.at[j].Sub(f.at[i]) + jitter; float64(j-i+1) > most(d) {
				t.Fatalf("%d calls in %v, at most %.1f may be", j-i+1, d, most(d))
			}
		}
	}
}

// Two triggers share a limit: together they keep it, neither starves, nobody
// beside them waits, and what waits holds no slot.
func TestRateLimitIsShared(t *testing.T) {
	f := newFixture(t, Options{})
	shared := rate.NewLimiter(100, 10)
	fn, free := &times{}, &function{}
	a, b := trigger("s", "a", fn), trigger("s", "b", fn)
	b.Callee = a.Callee
	a.Limits, b.Limits = []*rate.Limiter{shared}, []*rate.Limiter{shared}
	f.pool.Apply(table(a, b, trigger("s", f.neighbour("s", "a"), free)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 300 {
		f.enqueue("s", "a", fmt.Sprintf("a%d", i), nil)
	}
	for i := range 20 {
		f.enqueue("s", "b", fmt.Sprintf("b%d", i), nil)
		f.enqueue("s", f.neighbour("s", "a"), fmt.Sprintf("free%d", i), nil)
	}
	until(t, "the neighbour", func() bool { return free.count() == 20 })
	done := func(name string) uint64 {
		for _, s := range f.pool.Status() {
			if s.Ref.Trigger == name {
				return s.Stats.Succeeded.Load()
			}
		}
		return 0
	}
	until(t, "the trigger with few jobs", func() bool { return done("b") == 20 })
	if n := done("a"); n > 200 {
		t.Errorf("the other one had %d calls meanwhile", n)
	}
	for _, s := range f.pool.Status() {
		if s.Running > 1 {
			t.Errorf("%s holds %d slots", s.Ref, s.Running)
		}
	}
	until(t, "some more", func() bool { return fn.count() > 120 })
	fn.check(t, f.began, 100, 10)
}

// A limit that a reload lifts holds nobody back any more.
func TestRateLimitIsLifted(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{}
	slow, fast := trigger("s", "a", fn), trigger("s", "a", fn)
	fast.Callee = slow.Callee
	slow.Limits = []*rate.Limiter{rate.NewLimiter(rate.Every(time.Hour), 1)}
	f.pool.Apply(table(slow))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 10 {
		f.enqueue("s", "a", fmt.Sprint(i), nil)
	}
	until(t, "the first", func() bool { return fn.count() == 1 && f.pool.Status()[0].Waiting == 9 })
	f.pool.Apply(table(fast))
	until(t, "the others", func() bool { return fn.count() == 10 })
}

func TestDirectCallsKeepTheRateLimit(t *testing.T) {
	f := newFixture(t, Options{MaxWait: 50 * time.Millisecond})
	tr := direct("f", &echo{}, nil)
	tr.Limits = []*rate.Limiter{rate.NewLimiter(rate.Every(time.Hour), 1)}
	f.pool.Apply(table(tr))
	f.run()
	until(t, "the start", f.pool.running.Load)
	r := Request{Ref: tr.Ref, Input: []byte(`{}`)}
	if _, err := f.pool.Call(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := f.pool.Call(t.Context(), r); !errors.Is(err, ErrBusy) {
		t.Errorf("the second call: %v", err)
	}
}

// While its function is down a trigger is paused; its jobs lose no attempts,
// however long that is, and go on when a probe succeeds.
func TestBreaker(t *testing.T) {
	var alarms atomic.Int64
	f := newFixture(t, Options{Alarm: func(code, _ string) {
		if code == AlarmBreaker {
			alarms.Add(1)
		}
	}})
	var down atomic.Bool
	down.Store(true)
	fn := &function{do: func(context.Context, *triggers.Call) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	tr := trigger("s", "a", fn)
	tr.Concurrency = 1
	tr.Policy.Attempts = 4
	tr.Breaker = Breaker{Failures: 3, Wait: 5 * time.Millisecond, Max: 20 * time.Millisecond}
	f.pool.Apply(table(tr))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 10 {
		f.enqueue("s", "a", fmt.Sprintf("k%d", i), nil)
	}
	until(t, "many probes", func() bool { return fn.count() >= 15 })
	if s := f.pool.Status()[0]; s.Breaker == BreakerClosed || s.Running > 1 {
		t.Errorf("status %+v", s)
	}
	down.Store(false)
	until(t, "all jobs", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 10 })
	until(t, "PARKED to empty", func() bool { return records(t, f.bus.Parked()) == 0 })
	if n := records(t, f.bus.DeadLetters()); n != 0 || alarms.Load() != 1 || f.pool.Status()[0].Breaker != BreakerClosed {
		t.Errorf("%d dead letters, %d alarms, breaker %s", n, alarms.Load(), f.pool.Status()[0].Breaker)
	}
}

// A job that always fails does not keep the trigger paused for the others, and
// dies in the end. Failures that are permanent do not pause it at all.
func TestBreakerAndPoisonedJobs(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		switch c.Key[0] {
		case 'p':
			return errors.New("poison")
		case 'n':
			return triggers.Permanentf("no")
		}
		return nil
	}}
	tr := trigger("s", "a", fn)
	tr.Concurrency = 1
	tr.Breaker = Breaker{Failures: 2, Wait: time.Millisecond, Max: 4 * time.Millisecond}
	f.pool.Apply(table(tr))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 10 {
		f.enqueue("s", "a", fmt.Sprintf("never%d", i), nil)
	}
	stats := f.pool.Status()[0].Stats
	until(t, "what fails for good", func() bool { return stats.Dead.Load() == 10 })
	if s := f.pool.Status()[0]; s.Breaker != BreakerClosed {
		t.Fatalf("breaker %s", s.Breaker)
	}
	for i := range 3 {
		f.enqueue("s", "a", fmt.Sprintf("poison%d", i), nil)
	}
	good := 0
	until(t, "the poison", func() bool { // while others come
		f.enqueue("s", "a", fmt.Sprintf("good%d", good), nil)
		good++
		return stats.Dead.Load() == 13
	})
	until(t, "the others", func() bool { return stats.Succeeded.Load() == uint64(good) })
}

// A function that answers again after a reload is asked at once.
func TestAnotherFunctionClosesTheBreaker(t *testing.T) {
	f := newFixture(t, Options{})
	bad, good := trigger("s", "a", &function{do: func(context.Context, *triggers.Call) error { return errors.New("down") }}), trigger("s", "a", &function{})
	bad.Breaker = Breaker{Failures: 1, Wait: time.Hour, Max: time.Hour}
	good.Breaker = bad.Breaker
	f.pool.Apply(table(bad))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k", nil)
	until(t, "the pause", func() bool { return f.pool.Status()[0].Breaker == BreakerOpen })
	f.pool.Apply(table(good))
	until(t, "the call", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
}

// BenchmarkDelivery compares triggers that have nothing with those that have
// one of the features, none of which holds a job back here.
func BenchmarkDelivery(b *testing.B) {
	for _, c := range []struct {
		name string
		edit func(*Trigger)
	}{
		{"plain", func(*Trigger) {}},
		{"slots", func(t *Trigger) { t.Callee.Slots = NewSlots(1 << 20) }},
		{"ordered", func(t *Trigger) { t.Ordered = true }},
		{"limited", func(t *Trigger) { t.Limits = []*rate.Limiter{rate.NewLimiter(1e9, 1<<20)} }},
		{"keyed", func(t *Trigger) { t.KeyLimits = []*KeyLimit{NewKeyLimit(1e9, time.Second, 1<<20)} }},
		{"breaker", func(t *Trigger) { t.Breaker = Breaker{Failures: 5, Wait: time.Second, Max: time.Second} }},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := newFixture(b, Options{})
			under := make(chan struct{}, 256) // few enough for none to wait in the bus
			tr := trigger("s", "a", quick{under})
			c.edit(tr)
			f.start(tr)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				under <- struct{}{}
				j := &Job{
					Key: fmt.Sprintf("k%d", n), Sensor: "s", Trigger: "a", Correlation: fmt.Sprint(n % 512), Position: f.seq, Last: f.seq, Time: time.Now(),
				}
				rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
				if err := f.bus.Jobs().AppendAsync(b.Context(), rec, func(bus.Ack, error) {}); err != nil {
					b.Fatal(err)
				}
				n++
			}
			until(b, "the jobs' end", func() bool { return records(b, f.bus.Jobs()) == 0 })
			b.ReportMetric(float64(f.pool.Status()[0].Stats.Parked.Load())/float64(n), "parked/op")
		})
	}
}
