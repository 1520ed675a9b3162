package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

// called is what a function was called with.
type called struct {
	key, trigger, eventType, data string
	attempt, hops                 int
	input                         any
}

// callers notes the calls of a function, which fails with err if that is set.
type callers struct {
	mu    sync.Mutex
	calls []called
	err   error
}

func (f *callers) Invoke(_ context.Context, c *triggers.Call) (triggers.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, called{
		key: c.Key, trigger: c.Trigger, attempt: c.Attempt, input: c.Input, eventType: c.Event.Type, data: string(c.Event.Data), hops: c.Event.Hops,
	})
	return triggers.Result{}, f.err
}

func (f *callers) seen() []called {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]called(nil), f.calls...)
}

// keys are the keys of the calls, each once for each call.
func (f *callers) keys() string {
	var keys []string
	for _, c := range f.seen() {
		keys = append(keys, c.key)
	}
	return strings.Join(keys, " ")
}

// handled is a trigger with a deadLetter that calls a function, and the trigger
// that it stands for.
func handled(fn, handler triggers.Function) (of, it *Trigger) {
	of, it = trigger("s", "a", fn), trigger("s", "a.deadLetter", handler)
	of.DeadLetter = &DeadLetter{SpecHash: "spec"}
	return of, it
}

// fails is a function that fails.
func fails() *function {
	return &function{do: func(context.Context, *triggers.Call) error { return errors.New("down") }}
}

// emptied waits until nothing is left of the jobs. It looks twice: a job that
// moves from one log to the other may be seen in neither.
func (f *fixture) emptied() {
	f.t.Helper()
	until(f.t, "JOBS and PARKED to empty", func() bool {
		left := uint64(0)
		for range 2 {
			left += records(f.t, f.bus.Jobs()) + records(f.t, f.bus.Parked())
		}
		return left == 0
	})
}

// letters are the dead letters of a trigger.
func (f *fixture) letters(trigger string) []Letter {
	f.t.Helper()
	ls, err := Letters(f.t.Context(), f.bus, TriggerRef{"s", trigger}, 0, 1000)
	if err != nil {
		f.t.Fatal(err)
	}
	return ls
}

// TestDeadLetterIsCalled for each cause of death, once, with what the result of
// the job would tell, and for nothing else.
func TestDeadLetterIsCalled(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(context.Context, *triggers.Call) error
		edit func(*Job)
		err  string
		n    int // attempts
	}{
		{name: "last attempt", do: func(context.Context, *triggers.Call) error { return errors.New("down, token s3cret") }, err: "down, token ***", n: 3},
		{name: "permanent failure", do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no such order") }, err: "no such order", n: 1},
		{name: "panic", do: func(context.Context, *triggers.Call) error { panic("oh") }, err: "function panicked: oh", n: 3},
		{name: "fault in rendering", edit: func(j *Job) { j.Fault = "spec.input: data.x is missing" }, err: "spec.input: data.x is missing"},
		{name: "event that is gone", edit: func(j *Job) { j.Last = 99 }, err: "event 99 of this job is no longer stored", n: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			h := &callers{}
			of, it := handled(&function{do: c.do}, h)
			of.Callee.Mask = func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("s3cret"), []byte("***")) }
			f.start(of, it)
			f.enqueue("s", "a", "k1", func(j *Job) {
				j.Correlation = "#7"
				if c.edit != nil {
					c.edit(j)
				}
			})
			until(t, "the call", func() bool { return len(h.seen()) == 1 })
			f.emptied()
			want := fmt.Sprintf(`{"function":"s.a","sensor":"s","trigger":"a","key":7,"firing":"k1","outcome":"failed","output":null,"error":"%s","attempts":%d}`, c.err, c.n)
			got := h.seen()
			if len(got) != 1 || got[0].key != "k1.deadLetter" || got[0].trigger != "a.deadLetter" || got[0].attempt != 1 ||
				got[0].eventType != bus.TypeFunctionFailed || got[0].data != want || got[0].input != nil {
				t.Errorf("calls %+v\nwant data %s", got, want)
			}
			if ls := f.letters("a"); len(ls) != 1 || len(f.letters("a.deadLetter")) != 0 || len(f.results()) != 0 {
				t.Errorf("dead letters %v, %v; %d results", ls, f.letters("a.deadLetter"), len(f.results()))
			}
		})
	}
}

// TestDeadLetterOfSuccessIsNotCalled, nor of a failure that is retried.
func TestDeadLetterOfSuccessIsNotCalled(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{}
	f.start(handled(&function{do: func(_ context.Context, c *triggers.Call) error {
		if c.Attempt == 1 {
			return errors.New("not yet")
		}
		return nil
	}}, h))
	for i := range 20 {
		f.enqueue("s", "a", fmt.Sprint("k", i), nil)
	}
	f.emptied()
	if h.keys() != "" {
		t.Errorf("called for %s", h.keys())
	}
}

// TestDeadLetterOfOverflow: jobs beyond the parking limit.
func TestDeadLetterOfOverflow(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 8, ParkLimit: 3})
	h := &callers{}
	open := make(chan struct{})
	of, it := handled(&function{do: func(ctx context.Context, _ *triggers.Call) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, h)
	of.Concurrency, of.Timeout = 1, time.Minute
	// Another trigger uses the partition, so that jobs are parked.
	beside := "b"
	for i := 0; Partition("s", beside, f.bus.Jobs().Partitions()) != Partition("s", "a", f.bus.Jobs().Partitions()); i++ {
		beside = fmt.Sprint("b", i)
	}
	f.start(of, it, trigger("s", beside, &function{}))
	for i := range 30 {
		f.enqueue("s", "a", fmt.Sprint("k", i), nil)
	}
	until(t, "the dead letters to be told", func() bool { n := len(f.letters("a")); return n > 0 && len(h.seen()) == n })
	close(open)
	f.emptied()
	for _, c := range h.seen() {
		if !strings.Contains(c.data, "more than 3 jobs of this trigger are waiting") {
			t.Errorf("data %s", c.data)
		}
	}
	if n := len(f.letters("a")); len(h.seen()) != n {
		t.Errorf("%d calls for %d dead letters", len(h.seen()), n)
	}
}

// TestDeadLetterRendered: templates are rendered with the events of the firing
// and the result of its call; what cannot be rendered is a dead letter of its own.
func TestDeadLetterRendered(t *testing.T) {
	for _, c := range []struct {
		name, fault string
		render      func(sensors.Failure) (map[string]any, error)
		input       any
	}{
		{name: "rendered", input: map[string]any{"n": "{\"n\":1}", "item": int64(2)}, render: func(f sensors.Failure) (map[string]any, error) {
			return map[string]any{"in": map[string]any{"n": string(f.Kept(f.Events[0].Seq).Data), "item": f.Item}}, nil
		}},
		{name: "missing", fault: "in: data.x is missing", render: func(sensors.Failure) (map[string]any, error) { return nil, errors.New("in: data.x is missing") }},
		{name: "purged", fault: "gone: true", render: func(f sensors.Failure) (map[string]any, error) {
			return nil, fmt.Errorf("gone: %v", f.Kept(99) == nil)
		}},
		{name: "too large", fault: "the rendered input has ", render: func(sensors.Failure) (map[string]any, error) {
			return map[string]any{"in": strings.Repeat("x", 8<<20)}, nil
		}},
		{name: "no JSON", fault: "json: unsupported type: func()", render: func(sensors.Failure) (map[string]any, error) {
			return map[string]any{"in": func() {}}, nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			h := &callers{}
			of, it := handled(fails(), h)
			of.DeadLetter.Render, it.InputPath = c.render, "in"
			f.start(of, it)
			f.enqueue("s", "a", "k1", func(j *Job) { j.Item, j.Items = 2, 3 })
			until(t, "the end", func() bool { return len(h.seen()) > 0 || len(f.letters("a.deadLetter")) > 0 })
			f.emptied()
			ls := f.letters("a.deadLetter")
			if c.fault != "" {
				if len(ls) != 1 || !strings.HasPrefix(ls[0].Job.Error, c.fault) || len(h.seen()) != 0 || len(f.letters("a")) != 1 {
					t.Errorf("letters %+v, calls %+v", ls, h.seen())
				}
				return
			}
			if got := h.seen(); len(ls) != 0 || len(got) != 1 || fmt.Sprint(got[0].input) != fmt.Sprint(c.input) {
				t.Errorf("letters %+v, calls %+v", ls, got)
			}
		})
	}
}

// TestDeadLetterWithoutBusWaits: while events cannot be read, nothing is given up
// for that.
func TestDeadLetterWithoutBusWaits(t *testing.T) {
	f := newFixture(t, Options{})
	var asked atomic.Int64
	h := &callers{}
	of, it := handled(&function{do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no") }}, h)
	of.DeadLetter.Render = func(f sensors.Failure) (map[string]any, error) {
		ev := f.Kept(1)
		if ev == nil {
			return nil, errors.New("gone")
		}
		return map[string]any{"in": ev.ID}, nil
	}
	it.InputPath = "in"
	f.pool = NewPool(Options{Bus: f.bus, Logger: slog.New(slog.DiscardHandler), Events: eventsFunc(func(ctx context.Context, seq uint64) (*bus.Event, error) {
		if seq == 1 && asked.Add(1) <= 2 {
			return nil, bus.ErrUnavailable
		}
		return directEvents{f.bus}.Event(ctx, seq)
	})})
	f.start(of, it)
	f.enqueue("s", "a", "k1", func(j *Job) { j.Last = 0 })
	until(t, "the call", func() bool { return len(h.seen()) == 1 })
	f.emptied()
	if got := h.seen(); len(got) != 1 || got[0].input != "1" || asked.Load() != 3 || len(f.letters("a")) != 1 {
		t.Errorf("calls %+v, asked %d times, letters %v", got, asked.Load(), f.letters("a"))
	}
}

type eventsFunc func(ctx context.Context, seq uint64) (*bus.Event, error)

func (f eventsFunc) Event(ctx context.Context, seq uint64) (*bus.Event, error) { return f(ctx, seq) }

// TestDeadLetterOfRedriven: each redrive that dies again calls it again, also
// with an event that is purged by then.
func TestDeadLetterOfRedriven(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{}
	of, it := handled(fails(), h)
	of.DeadLetter.Render = func(f sensors.Failure) (map[string]any, error) {
		return map[string]any{"in": f.Kept(f.Events[0].Seq).ID}, nil
	}
	it.InputPath = "in"
	f.start(of, it)
	f.enqueue("s", "a", "k1", nil)
	for n := 1; n <= 3; n++ {
		until(t, "the call", func() bool { return len(h.seen()) == n })
		f.emptied()
		ls := f.letters("a")
		if len(ls) != 1 {
			t.Fatalf("letters %v", ls)
		}
		if err := f.bus.Events().PurgeTo(t.Context(), f.seq+1); err != nil {
			t.Fatal(err)
		}
		if n < 3 {
			if err := Redrive(t.Context(), f.bus, ls[0], nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if h.keys() != "k1.deadLetter k1.1.deadLetter k1.2.deadLetter" {
		t.Errorf("calls %s", h.keys())
	}
	for i, c := range h.seen() {
		if c.input != "1" || i > 0 && !strings.Contains(c.data, fmt.Sprintf(`"redrive":%d`, i)) {
			t.Errorf("call %+v", c)
		}
	}
}

// TestDeadLetterDies: what a deadLetter calls is retried, and becomes an ordinary
// dead letter, which can be redriven.
func TestDeadLetterDies(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{err: errors.New("nobody listens")}
	of, it := handled(fails(), h)
	it.Tell = true
	f.start(of, it)
	f.enqueue("s", "a", "k1", nil)
	until(t, "its dead letter", func() bool { return len(f.letters("a.deadLetter")) == 1 })
	f.emptied()
	results := f.settled(1)
	if results[0].Subject != "s/a.deadLetter" || results[0].Type != bus.TypeFunctionFailed || results[0].Hops != 2 {
		t.Errorf("its result is %+v", results[0])
	}
	l := f.letters("a.deadLetter")[0]
	if l.Job.Attempt != 3 || l.Job.Error != "nobody listens" || l.Job.SpecHash != "spec" {
		t.Errorf("letter %+v", l.Job)
	}
	if len(f.letters("a")) != 1 || h.keys() != "k1.deadLetter k1.deadLetter k1.deadLetter" {
		t.Errorf("letters %v, calls %s", f.letters("a"), h.keys())
	}
	h.mu.Lock()
	h.err = nil
	h.mu.Unlock()
	if err := Redrive(t.Context(), f.bus, l, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the redriven call", func() bool { return len(h.seen()) == 4 })
	f.settled(2)
	if got := h.seen()[3]; got.key != "k1.deadLetter" || got.attempt != 1 || got.data != h.seen()[0].data || len(f.letters("a.deadLetter")) != 0 {
		t.Errorf("call %+v, letters %v", got, f.letters("a.deadLetter"))
	}
}

// TestDeadLetterSpread: its jobs live where their keys say, when it says so.
func TestDeadLetterSpread(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{err: triggers.Permanentf("no")}
	of, it := handled(fails(), h)
	of.DeadLetter.Spread, it.Spread = true, true
	f.start(of, it)
	for i := range 20 {
		f.enqueue("s", "a", fmt.Sprint("k", i), func(j *Job) { j.Fault = "no input" })
	}
	until(t, "the dead letters of what it calls", func() bool { return len(f.letters("a.deadLetter")) == 20 })
	f.emptied()
	in := map[int]bool{}
	for _, l := range f.letters("a.deadLetter") {
		if !l.Job.Spread {
			t.Errorf("%s is not spread", l.Job.Key)
		}
		in[l.Job.Partition(f.bus.Jobs().Partitions())] = true
	}
	if len(in) < 5 || len(h.seen()) != 20 {
		t.Errorf("%d calls, in partitions %v", len(h.seen()), in)
	}
}

// TestDeadLetterOfLoop: it is called beyond the hop limit, too; but what it would
// tell is not told.
func TestDeadLetterOfLoop(t *testing.T) {
	f := newFixture(t, Options{})
	cause := &bus.Event{ID: "2", Source: "/test", Type: "t", EventSource: "shop", EventName: "orders", Hops: bus.MaxHops}
	ack, err := f.bus.Events().Append(t.Context(), cause.Record())
	if err != nil {
		t.Fatal(err)
	}
	f.seq = ack.Seq
	h := &callers{}
	of, it := handled(&function{}, h)
	of.Tell = true
	f.start(of, it)
	f.enqueue("s", "a", "k1", nil)
	until(t, "the call", func() bool { return len(h.seen()) == 1 })
	f.settled(0)
	if c := h.seen()[0]; c.hops != bus.MaxHops+1 || !strings.Contains(c.data, hopLimit) {
		t.Errorf("call %+v", c)
	}
	told := *it
	told.Tell = true
	f.pool.Apply(table(of, &told))
	f.enqueue("s", "a", "k2", nil)
	until(t, "the dead letter of what it calls", func() bool { return len(f.letters("a.deadLetter")) == 1 })
	f.settled(0)
	if len(h.seen()) != 1 || !strings.HasPrefix(f.letters("a.deadLetter")[0].Job.Error, hopLimit) {
		t.Errorf("calls %+v, letter %+v", h.seen(), f.letters("a.deadLetter")[0].Job)
	}
}

// TestDeadLetterIsTold with the result, when something depends on that, too.
func TestDeadLetterIsTold(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{}
	of, it := handled(fails(), h)
	of.Tell = true
	f.start(of, it)
	f.enqueue("s", "a", "k1", nil)
	f.emptied()
	ev := f.settled(1)[0]
	if got := h.seen(); len(got) != 1 || got[0].data != string(ev.Data) {
		t.Errorf("calls %+v, result %s", got, ev.Data)
	}
}

// TestDeadLetterGone: jobs of a deadLetter that was removed wait for it, parked,
// and go on when it returns.
func TestDeadLetterGone(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{}
	of, it := handled(fails(), h)
	f.start(of) // without the trigger it stands for
	f.enqueue("s", "a", "k1", nil)
	ref := TriggerRef{"s", "a.deadLetter"}
	until(t, "the orphan", func() bool {
		n, err := f.pool.Orphans(t.Context())
		return err == nil && n[ref] == 1 && records(t, f.bus.Jobs()) == 0
	})
	f.pool.Apply(table(of, it))
	until(t, "the call", func() bool { return len(h.seen()) == 1 })
	f.emptied()
}

// TestDeadLetterOfReplacedQueue: the order of a trigger is switched during its
// last call.
func TestDeadLetterOfReplacedQueue(t *testing.T) {
	f := newFixture(t, Options{})
	h := &callers{}
	began, goOn := make(chan struct{}), make(chan struct{})
	of, it := handled(&function{do: func(context.Context, *triggers.Call) error {
		close(began)
		<-goOn
		return triggers.Permanentf("no")
	}}, h)
	f.start(of, it)
	f.enqueue("s", "a", "k1", nil)
	<-began
	ordered := *of
	ordered.Ordered = true
	f.pool.Apply(table(&ordered, it))
	close(goOn)
	until(t, "the call", func() bool { return len(h.seen()) == 1 })
	f.emptied()
}

// TestDeadLetterCrashAtAnyWrite: whichever write is the first that fails, or the
// last whose answer is not heard, after a restart each job that dies has its
// deadLetter called, by one job, and nothing is left.
func TestDeadLetterCrashAtAnyWrite(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(*Job)
		least int // writes there are at least
	}{
		{name: "failure", least: 8},
		{name: "fault", edit: func(j *Job) { j.Fault = "no input" }, least: 4},
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, answer lost %v", c.name, lost), func(t *testing.T) {
				f := newFixture(t, Options{})
				n := 0
				for crashed := true; crashed; n++ {
					key := fmt.Sprintf("k%d", n)
					h := &callers{}
					of, it := handled(fails(), h)
					crashed = f.crash(n, lost, key, c.edit, of, it)
					of, it = handled(fails(), h)
					f.pool = NewPool(Options{Bus: f.bus, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
					f.start(of, it)
					f.emptied()
					f.stop()
					got := h.seen()
					if len(got) == 0 || len(f.letters("a")) < n+1 {
						t.Fatalf("write %d: no call, or no letter", n)
					}
					// A call that was not seen to end is repeated; with the same job.
					if want := strings.TrimSpace(strings.Repeat(key+".deadLetter ", len(got))); h.keys() != want || len(got) > 2 {
						t.Errorf("write %d: calls %s", n, h.keys())
					}
				}
				if n <= c.least {
					t.Errorf("only %d writes", n)
				}
			})
		}
	}
}

// TestDeadLetterIsEnqueuedOnce: a job that dies again, because it was stopped
// between its dead letter and its leaving, enqueues the same.
func TestDeadLetterIsEnqueuedOnce(t *testing.T) {
	f := newFixture(t, Options{})
	f.grace = time.Millisecond
	partition := Partition("s", "a.deadLetter", f.bus.Jobs().Partitions())
	f.enqueue("s", "a", "k1", func(j *Job) { j.Fault = "no input" })
	for range 3 {
		var tries atomic.Int64
		b := refusingBus{f.bus, func() (error, bool) { return bus.ErrUnavailable, tries.Add(1) == 1 }, partition}
		f.pool = NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
		f.start(handled(fails(), &callers{}))
		until(t, "it to be enqueued, without an answer", func() bool { return tries.Load() >= 2 })
		f.stop()
	}
	counts, err := f.bus.Jobs().Counts(t.Context(), bus.JobsPrefix+">")
	if err != nil {
		t.Fatal(err)
	}
	if n := counts[(&Job{Sensor: "s", Trigger: "a.deadLetter"}).Subject(f.bus.Jobs().Partitions())]; n != 1 || len(f.letters("a")) != 3 {
		t.Errorf("jobs %v, %d letters", counts, len(f.letters("a")))
	}
}

// TestJobsRefuseDeadLetters: while JOBS is full, what deadLetters call is parked:
// the jobs that died leave JOBS, so that it does not stay full. While nothing
// takes it, they stay, and nothing is lost.
func TestJobsRefuseDeadLetters(t *testing.T) {
	for _, c := range []struct {
		name    string
		parked  bool
		ordered bool
		err     error
	}{
		{"JOBS is full", true, false, bus.ErrFull},
		{"JOBS is full, in order", true, true, bus.ErrFull},
		{"JOBS is away", false, false, bus.ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			var refuse atomic.Bool
			var refused atomic.Int64
			refuse.Store(true)
			b := refusingBus{f.bus, func() (error, bool) {
				if refuse.Load() {
					refused.Add(1)
					return c.err, false
				}
				return nil, false
			}, -1}
			f.pool = NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
			h := &callers{}
			of, it := handled(fails(), h)
			it.Ordered = c.ordered
			f.start(of, it)
			for i := range 30 {
				f.enqueue("s", "a", fmt.Sprint("k", i), func(j *Job) { j.Fault = "no input" })
			}
			if c.parked {
				f.emptied()
			} else {
				until(t, "refusals", func() bool { return refused.Load() >= 60 })
				if n := records(t, f.bus.Jobs()); n != 30 || len(h.seen()) != 0 {
					t.Errorf("%d jobs, %d calls", n, len(h.seen()))
				}
			}
			refuse.Store(false)
			until(t, "the calls", func() bool { return len(h.seen()) == 30 })
			f.emptied()
			seen := map[string]bool{}
			for _, call := range h.seen() {
				seen[call.key] = true
			}
			if len(seen) != 30 || len(f.letters("a")) != 30 {
				t.Errorf("%d different calls, %d letters", len(seen), len(f.letters("a")))
			}
		})
	}
}

// TestParkedDeadLettersSurviveAStop: what was parked while JOBS was full is
// called by the next process, in its order.
func TestParkedDeadLettersSurviveAStop(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("ordered %v", ordered), func(t *testing.T) {
			f := newFixture(t, Options{})
			f.grace = time.Millisecond
			of, it := handled(fails(), &function{do: func(ctx context.Context, _ *triggers.Call) error {
				<-ctx.Done() // until the stop
				return ctx.Err()
			}})
			it.Ordered, it.Concurrency, it.Timeout = ordered, 1, time.Minute
			b := refusingBus{f.bus, func() (error, bool) { return bus.ErrFull, false }, -1}
			f.pool = NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
			f.start(of, it)
			const n = 20
			for i := range n {
				f.enqueue("s", "a", fmt.Sprintf("k%02d", i), func(j *Job) { j.Fault = "no input" })
				until(t, "it to die", func() bool { return records(t, f.bus.Jobs()) == 0 })
			}
			f.stop()
			if parked := records(t, f.bus.Parked()); parked != n {
				t.Fatalf("%d are parked", parked)
			}
			h := &callers{}
			of, it = handled(fails(), h)
			it.Ordered = ordered
			f.pool = NewPool(Options{Bus: f.bus, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
			f.start(of, it)
			until(t, "the calls", func() bool { return len(h.seen()) == n })
			f.emptied()
			if keys := strings.Fields(h.keys()); ordered && !slices.IsSorted(keys) {
				t.Errorf("called in the order %v", keys)
			}
		})
	}
}

// refusingBus has JOBS refuse what the pool appends, with an error, or loses the
// answer. One partition is not consumed.
type refusingBus struct {
	bus.Bus
	refuse func() (err error, made bool)
	deaf   int
}

func (b refusingBus) Jobs() bus.Queue { return refusingQueue{b.Bus.Jobs(), b} }

type refusingQueue struct {
	bus.Queue
	b refusingBus
}

func (q refusingQueue) Append(ctx context.Context, r bus.Record) (bus.Ack, error) {
	return faultyLog{q.Queue, faultyBus{q.b, func(string) (error, bool) { return q.b.refuse() }}, ""}.Append(ctx, r)
}

func (q refusingQueue) Consume(ctx context.Context, partition, outstanding int, deliver func(bus.Delivery)) error {
	if partition == q.b.deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	return q.Queue.Consume(ctx, partition, outstanding, deliver)
}

// BenchmarkDeadLetters compares jobs that die with jobs that die and have a
// deadLetter called, to the end of that.
func BenchmarkDeadLetters(b *testing.B) {
	for _, handle := range []bool{false, true} {
		b.Run(fmt.Sprintf("called=%v", handle), func(b *testing.B) {
			f := newFixture(b, Options{})
			of, it := handled(&function{do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no") }}, &callers{})
			if !handle {
				of.DeadLetter = nil
			}
			f.start(of, it)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for range 16 {
					n++
					f.enqueue("s", "a", fmt.Sprint("k", n), nil)
				}
				f.emptied()
			}
		})
	}
}
