package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

func heapInUse() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// jitter is how late a call may be seen that was made in time, on a busy machine;
// [TestEveryKeyHasItsRate] has none.
const jitter = 500 * time.Millisecond

// keyed notes when jobs "<key>/<n>" were called.
type keyed struct {
	mu   sync.Mutex
	keys map[string]*times
	jobs []string
	late []string // whose attempt is not the first
	do   func(key string) error
}

func (f *keyed) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	key, _, _ := strings.Cut(c.Key, "/")
	f.mu.Lock()
	if f.keys == nil {
		f.keys = map[string]*times{}
	}
	at := f.keys[key]
	if at == nil {
		at = &times{}
		f.keys[key] = at
	}
	f.jobs = append(f.jobs, c.Key)
	if c.Attempt != 1 {
		f.late = append(f.late, c.Key)
	}
	f.mu.Unlock()
	_, _ = at.Invoke(ctx, c)
	if f.do != nil {
		return triggers.Result{}, f.do(key)
	}
	return triggers.Result{}, nil
}

func (f *keyed) count(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at := f.keys[key]; at != nil {
		return at.count()
	}
	return 0
}

func (f *keyed) all() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.jobs)
}

// check checks that no key had more calls than it may, that none was repeated
// and that waiting was no attempt.
func (f *keyed) check(t *testing.T, began time.Time, limit rate.Limit, burst int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, at := range f.keys {
		at.check(t, began, limit, burst)
	}
	if len(f.late) > 0 {
		t.Errorf("%d calls are not the first, such as that of %s", len(f.late), f.late[0])
	}
	slices.Sort(f.jobs)
	if n := len(f.jobs); len(slices.Compact(f.jobs)) != n {
		t.Error("a job was called twice")
	}
}

func limited(sensor, name string, fn triggers.Function, limits ...*KeyLimit) *Trigger {
	t := trigger(sensor, name, fn)
	t.KeyLimits = limits
	return t
}

// enqueueKeys stores each jobs of each key, in the order of their numbers.
func (f *fixture) enqueueKeys(sensor, trigger string, each int, keys ...string) {
	for i := range each {
		for _, k := range keys {
			f.enqueue(sensor, trigger, fmt.Sprintf("%s/%d", k, i), of(k))
		}
	}
}

func (f *fixture) empty(t testing.TB) {
	t.Helper()
	until(t, "JOBS and PARKED to empty", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
}

// memoryBus is as much of a bus as jobs need that are handed to a pool, without
// goroutines or time of its own.
type memoryBus struct {
	bus.Bus
	log bus.Log
}

func (b memoryBus) Parked() bus.Log { return b.log }
func (b memoryBus) Runs() bus.Log   { return &memoryLog{} }
func (b memoryBus) Jobs() bus.Queue { return memoryQueue{} }

type memoryQueue struct{ bus.Queue }

func (memoryQueue) Partitions() int { return 2 }

type memoryLog struct {
	bus.Log
	mu      sync.Mutex
	records map[uint64]bus.Record
	last    uint64
	refuse  func() error // asked before a record is read
}

func (l *memoryLog) AppendAsync(_ context.Context, r bus.Record, done func(bus.Ack, error)) error {
	l.mu.Lock()
	l.last++
	r.Seq = l.last
	if l.records == nil {
		l.records = map[uint64]bus.Record{}
	}
	l.records[r.Seq] = r
	l.mu.Unlock()
	done(bus.Ack{Seq: r.Seq}, nil)
	return nil
}

func (l *memoryLog) Get(_ context.Context, seq uint64) (bus.Record, error) {
	if l.refuse != nil {
		if err := l.refuse(); err != nil {
			return bus.Record{}, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.records[seq]
	if !ok {
		return r, bus.ErrNotFound
	}
	return r, nil
}

func (l *memoryLog) Delete(_ context.Context, seq uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.records, seq)
	return nil
}

func (l *memoryLog) Next(_ context.Context, _ string, from uint64) (bus.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for seq := max(from, 1); seq <= l.last; seq++ {
		if r, ok := l.records[seq]; ok {
			return r, nil
		}
	}
	return bus.Record{}, bus.ErrNotFound
}

// Counts counts no records of other subjects than the one that is asked for.
func (l *memoryLog) Counts(_ context.Context, subject string) (map[string]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]uint64{subject: uint64(len(l.records))}, nil
}

// TestEveryKeyHasItsRate is a model in virtual time: whenever jobs of whatever
// keys come, and however many wait, in memory and parked, each is called at the
// very moment at which the buckets of its key allow it, in the order of its key.
// Triggers that share limits lose none of their calls to each other.
func TestEveryKeyHasItsRate(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			pick := rand.New(rand.NewPCG(seed, 3))
			type limit struct{ every, tolerance time.Duration }
			var model []limit
			fn := &keyed{}
			tr := trigger("s", "a", fn)
			tr.Concurrency = 1000
			for range 1 + pick.IntN(2) {
				calls, burst := 1+pick.IntN(3), 1+pick.IntN(4)
				per := time.Duration(1+pick.IntN(2000)) * time.Millisecond
				tr.KeyLimits = append(tr.KeyLimits, NewKeyLimit(calls, per, burst))
				every := (per-1)/time.Duration(calls) + 1
				model = append(model, limit{every, every * time.Duration(burst-1)})
			}
			tr.Ordered = seed%3 == 0
			other := trigger("s", "b", fn)
			other.Concurrency, other.KeyLimits, other.Ordered = 1000, tr.KeyLimits, tr.Ordered
			triggers := 1 + pick.IntN(2)
			parked := &memoryLog{}
			p := NewPool(Options{Bus: memoryBus{log: parked}, Logger: slog.New(slog.DiscardHandler), MaxOutstanding: 16 + pick.IntN(300)})
			p.Apply(table(tr, other))
			if tr.Ordered {
				for _, q := range p.queues {
					q.turns.load(nil)
				}
			}
			want := map[string][]time.Time{}
			full := map[string][]time.Time{}
			for i := range 150 {
				if pick.IntN(3) > 0 {
					<-time.After(time.Duration(pick.ExpFloat64() * float64(300*time.Millisecond)))
				}
				key := fmt.Sprint(min(pick.IntN(6), pick.IntN(6), pick.IntN(6)))
				at := time.Now()
				if n := len(want[key]); n > 0 && want[key][n-1].After(at) {
					at = want[key][n-1]
				}
				if full[key] == nil {
					full[key] = make([]time.Time, len(model))
				}
				for i, l := range model {
					if free := full[key][i].Add(-l.tolerance); free.After(at) {
						at = free
					}
				}
				for i, l := range model {
					if full[key][i].Before(at) {
						full[key][i] = at
					}
					full[key][i] = full[key][i].Add(l.every)
				}
				want[key] = append(want[key], at)
				q := p.queues[TriggerRef{"s", []string{"a", "b"}[pick.IntN(triggers)]}]
				t := &task{part: q.part, seq: uint64(i + 1), job: &Job{Key: fmt.Sprintf("%s/%d", key, i), Sensor: "s", Trigger: q.ref.Trigger, Correlation: key, Time: time.Now()}}
				p.admit(t)
				synctest.Wait()
			}
			for fn.all() < 150 {
				<-time.After(time.Second)
			}
			<-time.After(time.Second)
			p.shut()
			p.stop()
			p.cancel()
			p.work.Wait()
			for key, at := range want {
				if got := fn.keys[key].at; !slices.EqualFunc(at, got, time.Time.Equal) {
					t.Errorf("seed %d, key %s: calls at\n%v, want\n%v", seed, key, got, at)
				}
			}
			n := map[string]int{}
			for _, j := range fn.jobs {
				key, number, _ := strings.Cut(j, "/")
				var i int
				_, _ = fmt.Sscan(number, &i)
				if i < n[key] && triggers == 1 {
					t.Errorf("seed %d: %s was called too late", seed, j)
				}
				n[key] = i
			}
			for _, q := range p.queues {
				if len(parked.records) > 0 || len(fn.late) > 0 || len(q.lines.keys) > 0 || q.lines.memory+q.lines.parked != 0 {
					t.Errorf("seed %d: left: %d records, %d lines, %+v; %d attempts", seed, len(parked.records), len(q.lines.keys), q.lines, len(fn.late))
				}
			}
		})
	}
}

// exceeds reports the calls in some window that are more than burst + rate·t.
func exceeds(at []time.Time, calls int, per time.Duration, burst int) string {
	for i := range at {
		for j := i + 1; j < len(at); j++ {
			if d := at[j].Sub(at[i]); float64(j-i+1-burst)*float64(per) > float64(calls)*float64(d)+1 {
				return fmt.Sprintf("%d calls in %v, of at most %d in %v and %d at once", j-i+1, d, calls, per, burst)
			}
		}
	}
	return ""
}

// TestLimitsInAnyMix runs triggers in virtual time whose limits are their own and
// shared, of each key and of all calls, with few slots, functions that take their
// time and fail, breakers, and reloads: no limit is ever exceeded, and every job
// has an end.
func TestLimitsInAnyMix(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			pick := rand.New(rand.NewPCG(seed, 5))
			const per = time.Second
			calls, burst := 1+pick.IntN(20), 1+pick.IntN(3)
			allCalls, allBurst := 5+pick.IntN(50), 1+pick.IntN(3)
			var failing atomic.Bool
			fn := &keyed{do: func(string) error {
				<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
				if failing.Load() {
					return errors.New("down")
				}
				return nil
			}}
			byKey, all := NewKeyLimit(calls, per, burst), rate.NewLimiter(rate.Limit(allCalls), allBurst)
			a, b := limited("s", "a", fn, byKey), limited("s", "b", fn, NewKeyLimit(5, per, 2), byKey)
			slots := NewSlots(1 + pick.IntN(5))
			for _, tr := range []*Trigger{a, b} {
				tr.Callee.Slots, tr.Timeout = slots, time.Hour
				tr.Concurrency = 1 + pick.IntN(8)
				tr.Policy.Attempts = 1000
				tr.Ordered = pick.IntN(3) == 0
				tr.Limits = []*rate.Limiter{all}
				if pick.IntN(2) == 0 {
					tr.Breaker = Breaker{Failures: 2, Wait: 2 * time.Second, Max: 4 * time.Second}
				}
			}
			parked := &memoryLog{}
			p := NewPool(Options{Bus: memoryBus{log: parked}, Logger: slog.New(slog.DiscardHandler), MaxOutstanding: 16 + pick.IntN(300)})
			p.Apply(table(a, b))
			for _, q := range p.queues {
				if q.turns != nil {
					q.turns.load(nil)
					q.turns.delivered(0, 0)
				}
			}
			const n = 100
			for i := range n {
				if pick.IntN(2) == 0 {
					<-time.After(time.Duration(pick.ExpFloat64() * float64(100*time.Millisecond)))
				}
				if pick.IntN(20) == 0 {
					failing.Store(!failing.Load())
				}
				key := fmt.Sprint(min(pick.IntN(5), pick.IntN(5)))
				q := p.queues[TriggerRef{"s", []string{"a", "b"}[pick.IntN(2)]}]
				p.admit(&task{part: q.part, seq: uint64(i + 1), job: &Job{Key: fmt.Sprintf("%s/%d", key, i), Sensor: "s", Trigger: q.ref.Trigger, Correlation: key, Time: time.Now()}})
			}
			failing.Store(false)
			for done := uint64(0); done < n; {
				<-time.After(time.Second)
				done = 0
				for _, s := range p.Status() {
					done += s.Stats.Succeeded.Load()
				}
			}
			p.shut()
			p.stop()
			p.cancel()
			p.work.Wait()
			var union []time.Time
			for key, at := range fn.keys {
				if wrong := exceeds(at.at, calls, per, burst); wrong != "" {
					t.Errorf("seed %d, key %s: %s", seed, key, wrong)
				}
				union = append(union, at.at...)
			}
			slices.SortFunc(union, time.Time.Compare)
			// A call on all is counted when its job is chosen, so that each of those
			// that wait for a slot may come late.
			if wrong := exceeds(union, allCalls, per, allBurst+a.Concurrency+b.Concurrency); wrong != "" {
				t.Errorf("seed %d, all: %s", seed, wrong)
			}
			if len(parked.records) > 0 {
				t.Errorf("seed %d: %d jobs are parked", seed, len(parked.records))
			}
		})
	}
}

// A parked job that cannot be read for a while is read later, also when its limit
// was lifted at that moment.
func TestLimitedJobThatCannotBeRead(t *testing.T) {
	for _, lift := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fn := &keyed{}
			tr, free := limited("s", "a", fn, NewKeyLimit(1, 10*time.Second, 1)), trigger("s", "a", fn)
			free.Callee = tr.Callee
			parked := &memoryLog{}
			p := NewPool(Options{Bus: memoryBus{log: parked}, Logger: slog.New(slog.DiscardHandler)})
			p.Apply(table(tr))
			q := p.queues[tr.Ref]
			var asked atomic.Int64
			parked.refuse = func() error {
				if asked.Add(1) > 3 {
					return nil
				}
				if lift {
					p.Apply(table(free))
				}
				return bus.ErrUnavailable
			}
			start := time.Now()
			for i := range 4 {
				p.admit(&task{part: q.part, seq: uint64(i + 1), job: &Job{Key: fmt.Sprint("k/", i), Sensor: "s", Trigger: "a", Correlation: "k"}})
				synctest.Wait()
			}
			<-time.After(time.Minute)
			p.shut()
			p.stop()
			p.cancel()
			p.work.Wait()
			at := fn.keys["k"].at
			if len(at) != 4 || len(parked.records) > 0 {
				t.Fatalf("lift %v: %d calls, %d jobs are parked", lift, len(at), len(parked.records))
			}
			if first := at[1].Sub(start); !lift && first != 13*time.Second || lift && first > 13*time.Second {
				t.Errorf("lift %v: the first parked job was called after %v", lift, first)
			}
		})
	}
}

// However many jobs of one key wait for their rate, the others and the triggers
// beside do not wait for them; the key itself has all of its rate.
func TestHotKeyHoldsUpNobody(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 128})
	fn, beside := &keyed{}, &function{}
	tr := limited("s", "a", fn, NewKeyLimit(50, time.Second, 5))
	next := f.neighbour("s", "a")
	f.pool.Apply(table(tr, trigger("s", next, beside)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	const hot = 2000
	f.enqueueKeys("s", "a", hot, "hot")
	for i := range 100 {
		f.enqueue("s", "a", fmt.Sprintf("cold%d/0", i), of(fmt.Sprintf("cold%d", i)))
		f.enqueue("s", next, fmt.Sprint(i), nil)
	}
	until(t, "the other keys and the neighbour", func() bool { return fn.all()-fn.count("hot") == 100 && beside.count() == 100 })
	if n := fn.count("hot"); n > hot/2 {
		t.Errorf("the hot key had %d calls by then", n)
	}
	status := func() TriggerStatus {
		for _, s := range f.pool.Status() {
			if s.Ref == tr.Ref {
				return s
			}
		}
		return TriggerStatus{}
	}
	until(t, "the rest to be parked", func() bool { return records(t, f.bus.Jobs()) < 64 })
	if s := status(); s.Limited < hot-fn.count("hot")-64 || s.Running > 1 {
		t.Errorf("status %+v", s)
	}
	from := fn.count("hot")
	until(t, "more of the hot key", func() bool { return fn.count("hot") > from+100 })
	fn.check(t, f.began, 50, 5)
}

// Keys at random, in memory and parked, beside limits of all calls and with
// functions whose slots are taken: none is faster than its limit, all have their
// calls, and each once.
func TestKeyedLimitsAtRandom(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			pick := rand.New(rand.NewPCG(seed, 1))
			f := newFixture(t, Options{MaxOutstanding: []int{32, 1024}[pick.IntN(2)]})
			calls, burst := 20+pick.IntN(80), 1+pick.IntN(5)
			shared := NewKeyLimit(calls, time.Second, burst)
			fn := &keyed{do: func(string) error {
				if seed%2 == 0 {
					<-time.After(time.Duration(rand.IntN(5)) * time.Millisecond)
				}
				return nil
			}}
			a, b := limited("s", "a", fn, shared), limited("s", "b", fn, NewKeyLimit(200, time.Second, 10), shared)
			b.Callee = a.Callee
			if pick.IntN(2) == 0 {
				a.Limits = []*rate.Limiter{rate.NewLimiter(300, 10)}
			}
			if pick.IntN(2) == 0 {
				a.Callee.Slots = NewSlots(1 + pick.IntN(3))
			}
			a.Ordered = pick.IntN(2) == 0
			f.start(a, b)
			n := 0
			var keys []string
			for i := range 1 + pick.IntN(6) {
				keys = append(keys, fmt.Sprint("k", i))
			}
			for i := range 150 {
				k := keys[min(pick.IntN(len(keys)), pick.IntN(len(keys)))]
				f.enqueue("s", []string{"a", "b"}[pick.IntN(2)], fmt.Sprintf("%s/%d", k, i), of(k))
				n++
			}
			until(t, "all calls", func() bool { return fn.all() >= n })
			f.empty(t)
			fn.check(t, f.began, rate.Limit(calls), burst)
			if fn.all() != n {
				t.Errorf("%d calls of %d jobs", fn.all(), n)
			}
		})
	}
}

// A call that waits for a slot of its function is made when it has one, and only
// then counted: those of a key that have waited together do not come together.
func TestKeyLimitHoldsWhereSlotsAreTaken(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &keyed{}
	gate := make(chan struct{})
	slow := trigger("s", "slow", &function{do: func(context.Context, *triggers.Call) error { <-gate; return nil }})
	tr := limited("s", "a", fn, NewKeyLimit(50, time.Second, 1))
	slow.Callee.Slots = NewSlots(1)
	tr.Callee.Slots = slow.Callee.Slots
	tr.Concurrency = 64
	clock := &keyed{}
	f.start(slow, tr, limited("s", "clock", clock, NewKeyLimit(50, time.Second, 1)))
	f.enqueue("s", "slow", "slow", nil)
	until(t, "the slow one", func() bool { return slow.Callee.Function.(*function).count() == 1 })
	f.enqueueKeys("s", "a", 30, "k")
	until(t, "the first to wait for the slot", func() bool { return f.running("a") == 1 })
	f.enqueueKeys("s", "clock", 15, "k")
	until(t, "as much time as 15 calls have", func() bool { return clock.all() == 15 })
	if n := f.running("a"); n != 1 {
		t.Errorf("%d jobs of a key that may have one call at a time hold a place", n)
	}
	close(gate)
	until(t, "all calls", func() bool { return fn.all() == 30 })
	fn.check(t, f.began, 50, 1)
}

func (f *fixture) running(trigger string) int {
	for _, s := range f.pool.Status() {
		if s.Ref.Trigger == trigger {
			return s.Running
		}
	}
	return 0
}

// With an order, the jobs of a key are called in it at the key's rate.
func TestOrderedKeysKeepTheirRate(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	fn := &keyed{}
	tr := limited("s", "a", fn, NewKeyLimit(40, time.Second, 2))
	tr.Ordered = true
	f.start(tr)
	keys := []string{"a", "b", "c"}
	f.enqueueKeys("s", "a", 40, keys...)
	until(t, "all calls", func() bool { return fn.all() == 120 })
	for _, k := range keys {
		n := 0
		for _, j := range fn.jobs {
			if key, number, _ := strings.Cut(j, "/"); key == k {
				if number != fmt.Sprint(n) {
					t.Fatalf("%s was called as number %d", j, n)
				}
				n++
			}
		}
	}
	f.empty(t)
	fn.check(t, f.began, 40, 2)
}

// What became due while a trigger was paused does not come all at once.
func TestPausedTriggerGoesOnAtItsRate(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	var down atomic.Bool
	down.Store(true)
	fn := &keyed{do: func(string) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	tr := limited("s", "a", fn, NewKeyLimit(50, time.Second, 1))
	tr.Policy.Attempts = 1000
	tr.Breaker = Breaker{Failures: 2, Wait: 200 * time.Millisecond, Max: 200 * time.Millisecond}
	f.start(tr)
	f.enqueueKeys("s", "a", 60, "k")
	until(t, "the pause", func() bool { return f.pool.Status()[0].Breaker == BreakerOpen })
	until(t, "probes", func() bool { return fn.all() > 4 })
	down.Store(false)
	until(t, "all jobs", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 60 })
	fn.keys["k"].check(t, f.began, 50, 1)
	f.empty(t)
}

// Retries are calls too.
func TestRetriesKeepTheRateOfTheirKey(t *testing.T) {
	f := newFixture(t, Options{})
	var n atomic.Int64
	fn := &keyed{do: func(string) error {
		if n.Add(1)%2 == 0 {
			return errors.New("not now")
		}
		return nil
	}}
	tr := limited("s", "a", fn, NewKeyLimit(100, time.Second, 3))
	tr.Policy = triggers.Policy{Attempts: 1000, Backoff: time.Millisecond, Factor: 1, Max: time.Millisecond}
	f.start(tr)
	f.enqueueKeys("s", "a", 30, "x", "y")
	until(t, "all jobs", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 60 })
	for _, at := range fn.keys {
		at.check(t, f.began, 100, 3)
	}
	f.empty(t)
}

// Stops at any moment lose no job that waits for its rate.
func TestLimitedJobsSurviveStops(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			pick := rand.New(rand.NewPCG(seed, 2))
			o := Options{MaxOutstanding: []int{16, 256}[pick.IntN(2)]}
			f := newFixture(t, o)
			fn := &keyed{}
			f.grace = time.Millisecond
			fresh := func() *Trigger {
				tr := limited("s", "a", fn, NewKeyLimit(100, time.Second, 2))
				tr.Ordered = seed%2 == 1
				return tr
			}
			stops := 3
			f.again(o, pick.IntN(300), fresh())
			f.enqueueKeys("s", "a", 60, "x", "y", "z")
			for i := range stops {
				<-time.After(time.Duration(pick.IntN(100)) * time.Millisecond)
				f.stop()
				writes := -1
				if i < stops-1 {
					writes = pick.IntN(300)
				}
				f.again(o, writes, fresh())
			}
			f.empty(t)
			fn.mu.Lock()
			defer fn.mu.Unlock()
			slices.Sort(fn.jobs)
			if n := len(slices.Compact(fn.jobs)); n != 180 {
				t.Errorf("%d of 180 jobs were called", n)
			}
		})
	}
}

// A reload that lifts or changes the limit holds for what waits, wherever it
// does; one that does not change it leaves everything as it is.
func TestKeyLimitIsChanged(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &keyed{}
	never, slow, fast, none := NewKeyLimit(1, time.Hour, 1), NewKeyLimit(2, time.Hour, 2), NewKeyLimit(1000, time.Second, 1000), trigger("s", "a", fn)
	with := func(l *KeyLimit) *Trigger {
		tr := limited("s", "a", fn, l)
		tr.Callee = none.Callee
		return tr
	}
	f.start(with(never))
	f.enqueueKeys("s", "a", 100, "x", "y")
	parked := func(n int) {
		t.Helper()
		until(t, "the others to be parked, and asked for much later", func() bool {
			q := f.pool.queues[none.Ref]
			q.mu.Lock()
			at, _ := q.lines.next()
			q.mu.Unlock()
			return f.pool.Status()[0].Limited == n && records(t, f.bus.Parked()) >= uint64(n)-2 && time.Until(at) > time.Minute
		})
	}
	parked(198)
	f.pool.Apply(table(with(never)))
	parked(198)
	f.pool.Apply(table(with(slow)))
	parked(194)
	f.pool.Apply(table(with(fast)))
	until(t, "all calls", func() bool { return fn.all() == 200 })
	f.empty(t)
	f.pool.Apply(table(with(never)))
	f.enqueueKeys("s", "a", 50, "z")
	parked(49)
	f.pool.Apply(table(none))
	until(t, "the rest", func() bool { return fn.all() == 250 })
	f.empty(t)
	if len(fn.late) > 0 {
		t.Errorf("waiting was an attempt: %v", fn.late)
	}
}

// Jobs that wait for their rate wait for a trigger that is gone, too, and an
// engine that starts without the limit calls them at once.
func TestLimitedJobsOfATriggerThatIsGone(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &keyed{}
	fresh := func() *Trigger { return limited("s", "a", fn, NewKeyLimit(1, time.Hour, 1)) }
	f.start(fresh())
	f.enqueueKeys("s", "a", 20, "x", "y")
	until(t, "the first calls", func() bool { return fn.all() == 2 && f.pool.Status()[0].Limited == 38 })
	f.pool.Apply(nil)
	until(t, "all to be parked", func() bool {
		orphans, err := f.pool.Orphans(t.Context())
		return err == nil && orphans[TriggerRef{"s", "a"}] == 38
	})
	f.pool.Apply(table(fresh()))
	until(t, "the next calls", func() bool { return fn.all() == 4 && f.pool.Status()[0].Limited == 36 })
	f.stop()
	f.again(Options{}, -1, trigger("s", "a", fn))
	f.empty(t)
	if fn.all() != 40 {
		t.Errorf("%d calls of 40", fn.all())
	}
}

// Beyond the parking limit, what waits for its rate is given up, or stays in JOBS.
func TestTooManyLimitedJobs(t *testing.T) {
	for _, block := range []bool{false, true} {
		t.Run(fmt.Sprint("block=", block), func(t *testing.T) {
			f := newFixture(t, Options{ParkLimit: 10, MaxOutstanding: 64})
			fn := &keyed{}
			tr := limited("s", "a", fn, NewKeyLimit(1, time.Hour, 1))
			tr.Block = block
			f.start(tr)
			f.enqueueKeys("s", "a", 40, "k")
			until(t, "all to be somewhere", func() bool {
				return fn.all() == 1 && records(t, f.bus.Jobs())+records(t, f.bus.DeadLetters()) == 29 && records(t, f.bus.Parked()) == 10
			})
			if dead := records(t, f.bus.DeadLetters()); (dead == 0) != block {
				t.Errorf("%d dead letters", dead)
			}
			fast := limited("s", "a", fn, NewKeyLimit(1000, time.Second, 1000))
			fast.Callee, fast.Block = tr.Callee, block
			f.pool.Apply(table(fast))
			f.empty(t)
		})
	}
}

// A parked job that somebody drops does not hold up those behind it.
func TestDroppedLimitedJob(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &keyed{}
	f.start(limited("s", "a", fn, NewKeyLimit(1, 500*time.Millisecond, 1)))
	f.enqueueKeys("s", "a", 5, "k")
	until(t, "some to be parked", func() bool { return records(t, f.bus.Parked()) == 2 && records(t, f.bus.Jobs()) <= 2 })
	r, err := f.bus.Parked().Next(t.Context(), parkedSubject("s", "a", WhyRetry), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.bus.Parked().Delete(t.Context(), r.Seq); err != nil {
		t.Fatal(err)
	}
	until(t, "the other calls", func() bool { return fn.all() == 4 })
	f.empty(t)
}

func TestDirectCallsKeepTheKeyLimit(t *testing.T) {
	f := newFixture(t, Options{MaxWait: 50 * time.Millisecond})
	l := NewKeyLimit(1, time.Hour, 2)
	fn := &echo{}
	tr := direct("f", fn, nil)
	tr.KeyLimits = []*KeyLimit{l}
	other := limited("s", "a", fn, l)
	f.start(tr, other)
	until(t, "the start", f.pool.running.Load)
	r := exec("f", `{}`)
	if _, err := f.pool.Call(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	f.enqueue("s", "a", "keyed", of("k"))  // has a bucket of its own
	f.enqueue("s", "a", "plain", of(""))   // has that of direct calls
	f.enqueue("s", "a", "another", of("")) // is too many
	until(t, "two jobs", func() bool { return fn.count() == 3 })
	if _, err := f.pool.Call(t.Context(), r); !errors.Is(err, ErrBusy) {
		t.Errorf("one call too many: %v", err)
	}
	if _, err := f.pool.Submit(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	until(t, "both to wait", func() bool {
		n := 0
		for _, s := range f.pool.Status() {
			n += s.Limited
		}
		return n == 2
	})
}

// BenchmarkBesideHotKey compares the calls of other keys with and without jobs
// of one that wait for its rate, and tells what a waiting job keeps in memory.
func BenchmarkBesideHotKey(b *testing.B) {
	for _, hot := range []int{0, 100_000} {
		b.Run(fmt.Sprint("waiting=", hot), func(b *testing.B) {
			f := newFixture(b, Options{})
			under := make(chan struct{}, 256)
			f.start(limited("s", "a", quick{under}, NewKeyLimit(10, time.Second, 10)))
			store := func(key, correlation string) {
				j := &Job{Key: key, Sensor: "s", Trigger: "a", Correlation: correlation, Position: f.seq, Last: f.seq, Time: time.Now()}
				rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
				if err := f.bus.Jobs().AppendAsync(b.Context(), rec, func(bus.Ack, error) {}); err != nil {
					b.Fatal(err)
				}
			}
			stop := make(chan struct{})
			defer close(stop)
			go func() { // lets the hot ones that are called end
				for {
					select {
					case under <- struct{}{}:
					case <-stop:
						return
					}
				}
			}()
			before := heapInUse()
			for i := range hot {
				store(fmt.Sprint("hot", i), "hot")
			}
			until(b, "the others to be parked", func() bool { return records(b, f.bus.Jobs()) < 100 })
			size := (heapInUse() - before) / float64(max(hot, 1))
			done := &f.pool.Status()[0].Stats.Succeeded
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				store(fmt.Sprint("cold", n), fmt.Sprint(n))
				if n++; n%128 == 0 {
					until(b, "some calls", func() bool { return done.Load()+256 > uint64(n) })
				}
			}
			until(b, "the calls", func() bool { return done.Load() >= uint64(n) })
			b.ReportMetric(size, "B/waiting")
		})
	}
}
