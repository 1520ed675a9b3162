package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

// results are the results in EVENTS.
func (f *fixture) results() (out []*bus.Event) {
	f.t.Helper()
	for seq := f.seq + 1; ; {
		r, err := f.bus.Events().Next(f.t.Context(), bus.EventsPrefix+bus.SourceFunction+".*", seq)
		if errors.Is(err, bus.ErrNotFound) {
			return out
		}
		if err != nil {
			f.t.Fatal(err)
		}
		ev, err := bus.DecodeEvent(r)
		if err != nil {
			f.t.Fatal(err)
		}
		out, seq = append(out, ev), r.Seq+1
	}
}

// told is a trigger whose results are told.
func told(fn triggers.Function) *Trigger {
	t := trigger("s", "a", fn)
	t.Tell, t.Callee.Name = true, "build"
	return t
}

// start runs the pool with triggers and a checkpoint that covers everything.
func (f *fixture) start(ts ...*Trigger) {
	f.pool.Apply(table(ts...))
	f.pool.Covered(f.seq, f.seq)
	f.run()
}

// settled waits until nothing is left of the jobs, and returns their results.
func (f *fixture) settled(want int) []*bus.Event {
	f.t.Helper()
	until(f.t, "JOBS and PARKED to empty", func() bool { return records(f.t, f.bus.Jobs())+records(f.t, f.bus.Parked()) == 0 })
	got := f.results()
	if len(got) != want {
		f.t.Fatalf("%d results, want %d", len(got), want)
	}
	return got
}

func TestResultsAreTold(t *testing.T) {
	f := newFixture(t, Options{})
	f.start(told(&function{}))
	f.enqueue("s", "a", "k1", func(j *Job) {
		j.Correlation, j.Flow, j.Item, j.Items = "#7", "flow", 0, 3
	})
	ev := f.settled(1)[0]
	if ev.ID != "k1/result" || ev.Type != bus.TypeFunctionSucceeded || ev.Source != "/functions/build" || ev.Subject != "s/a" ||
		ev.EventSource != "_function" || ev.EventName != "build" || !ev.ProducerID || ev.Cause != "k1" || ev.Hops != 1 {
		t.Errorf("event %+v", ev)
	}
	if want := `{"function":"build","sensor":"s","trigger":"a","key":7,"firing":"k1","outcome":"succeeded","output":{"ok":true},"attempts":1}`; string(ev.Data) != want {
		t.Errorf("data %s\nwant %s", ev.Data, want)
	}
	want := map[string]string{"enginesensor": "s", "enginetrigger": "a", "enginekey": "#7", "engineflow": "flow", "engineitem": "0", "engineitems": "3"}
	if fmt.Sprint(ev.Extensions) != fmt.Sprint(want) {
		t.Errorf("extensions %v, want %v", ev.Extensions, want)
	}
}

// TestOnlyWhatSomethingDependsOnIsTold: jobs of a workflow are, others when
// their trigger says so, from the next job on.
func TestOnlyWhatSomethingDependsOnIsTold(t *testing.T) {
	f := newFixture(t, Options{})
	f.start(trigger("s", "a", &function{}))
	f.enqueue("s", "a", "k1", nil)
	f.settled(0)
	f.enqueue("s", "a", "k2", func(j *Job) { j.Flow = "flow" })
	if ev := f.settled(1)[0]; ev.EventName != "s.a" || ev.Extensions["engineflow"] != "flow" {
		t.Errorf("event %+v", ev)
	}
	f.pool.Apply(table(told(&function{})))
	f.enqueue("s", "a", "k3", nil)
	f.settled(2)
	f.pool.Apply(table(trigger("s", "a", &function{})))
	f.enqueue("s", "a", "k4", nil)
	f.settled(2)
}

func TestFailureIsTold(t *testing.T) {
	f := newFixture(t, Options{})
	var fail atomic.Bool
	fail.Store(true)
	tr := told(&function{do: func(context.Context, *triggers.Call) error {
		if fail.Load() {
			return errors.New("no disk, token s3cret")
		}
		return nil
	}})
	tr.Callee.Mask = func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("s3cret"), []byte("***")) }
	f.start(tr)
	f.enqueue("s", "a", "k1", nil)
	ev := f.settled(1)[0]
	if want := `{"function":"build","sensor":"s","trigger":"a","key":null,"firing":"k1","outcome":"failed","output":null,"error":"no disk, token ***","attempts":3}`; string(ev.Data) != want || ev.Type != bus.TypeFunctionFailed {
		t.Errorf("%s %s\nwant %s", ev.Type, ev.Data, want)
	}
	letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatalf("letters %v, error %v", letters, err)
	}
	fail.Store(false)
	if err := Redrive(t.Context(), f.bus, letters[0], nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the result of the redriven job", func() bool { return len(f.results()) == 2 })
	ev = f.settled(2)[1]
	if want := `{"function":"build","sensor":"s","trigger":"a","key":null,"firing":"k1","outcome":"succeeded","output":{"ok":true},"attempts":1,"redrive":1}`; string(ev.Data) != want || ev.ID != "k1/result/1" {
		t.Errorf("%s %s\nwant %s", ev.ID, ev.Data, want)
	}
}

// TestGivenUpWithoutACallIsTold: a fault, and a job beyond the parking limit.
func TestGivenUpWithoutACallIsTold(t *testing.T) {
	f := newFixture(t, Options{})
	f.start(told(&function{}))
	f.enqueue("s", "a", "k1", func(j *Job) { j.Fault = "spec.input: data.x is missing" })
	ev := f.settled(1)[0]
	if !strings.Contains(string(ev.Data), `"outcome":"failed","output":null,"error":"spec.input: data.x is missing","attempts":0`) {
		t.Errorf("data %s", ev.Data)
	}
}

// TestTraceIsPassedOn also in the failure of what is redriven with its event.
func TestTraceIsPassedOn(t *testing.T) {
	f := newFixture(t, Options{})
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	cause := &bus.Event{
		ID: "2", Source: "/test", Type: "t", EventSource: "shop", EventName: "orders", Hops: 4,
		Extensions: map[string]string{"traceparent": trace, "tracestate": strings.Repeat("x", 600), "other": "1"},
	}
	ack, err := f.bus.Events().Append(t.Context(), cause.Record())
	if err != nil {
		t.Fatal(err)
	}
	f.seq = ack.Seq
	f.start(told(&function{do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no") }}))
	f.enqueue("s", "a", "k1", nil)
	f.settled(1)
	letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatalf("letters %v, error %v", letters, err)
	}
	if err := Redrive(t.Context(), f.bus, letters[0], nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the second result", func() bool { return len(f.results()) == 2 })
	for _, ev := range f.settled(2) {
		if ev.Hops != 5 || ev.Extensions["traceparent"] != trace || ev.Extensions["tracestate"] != "" || ev.Extensions["other"] != "" {
			t.Errorf("hops %d, extensions %v", ev.Hops, ev.Extensions)
		}
	}
}

// TestLoopOfResultsEnds: what is beyond the hop limit is not called, and the
// dead letter says why. Without a result to tell it is called.
func TestLoopOfResultsEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		edit   func(*Trigger)
		fault  string
		calls  int
		reason string
	}{
		{name: "told", calls: 0, reason: "hop limit 16 reached: trigger a of sensor s would call build"},
		{name: "told, with a fault", fault: "no input", calls: 0, reason: "no input; its result is not told: hop limit 16 reached"},
		{name: "not told", edit: func(t *Trigger) { t.Tell = false }, calls: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, Options{})
			cause := &bus.Event{ID: "2", Source: "/test", Type: "t", EventSource: "shop", EventName: "orders", Hops: bus.MaxHops}
			ack, err := f.bus.Events().Append(t.Context(), cause.Record())
			if err != nil {
				t.Fatal(err)
			}
			f.seq = ack.Seq
			fn := &function{}
			tr := told(fn)
			if c.edit != nil {
				c.edit(tr)
			}
			f.start(tr)
			f.enqueue("s", "a", "k1", func(j *Job) { j.Fault = c.fault })
			f.settled(0)
			letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			if fn.count() != c.calls || len(letters) != 1-c.calls {
				t.Fatalf("%d calls, %d letters", fn.count(), len(letters))
			}
			if len(letters) > 0 && !strings.HasPrefix(letters[0].Job.Error, c.reason) {
				t.Errorf("reason %q, want %q", letters[0].Job.Error, c.reason)
			}
		})
	}
}

// TestStepsOfAWorkflowCountAsOneFunction, so that one may have many; a step of
// another workflow counts.
func TestStepsOfAWorkflowCountAsOneFunction(t *testing.T) {
	for flow, calls := range map[string]int{"f": 1, "g": 0} {
		f := newFixture(t, Options{})
		r := sensors.Result{Function: "build", Sensor: "s", Trigger: "first", Firing: "k0", Flow: "f"}
		step := r.Event(1000)
		step.Hops = bus.MaxHops
		ack, err := f.bus.Events().Append(t.Context(), step.Record())
		if err != nil {
			t.Fatal(err)
		}
		f.seq = ack.Seq
		fn := &function{}
		f.start(told(fn))
		f.enqueue("s", "a", "k1", func(j *Job) { j.Flow = flow })
		for _, ev := range f.settled(calls) {
			if ev.Hops != bus.MaxHops {
				t.Errorf("hops %d", ev.Hops)
			}
		}
		if fn.count() != calls || records(t, f.bus.DeadLetters()) != uint64(1-calls) {
			t.Errorf("workflow %s: %d calls", flow, fn.count())
		}
	}
}

// faultyBus counts writes and lets some of them fail.
type faultyBus struct {
	bus.Bus
	// fail is asked before each write to a log with the log's name. With an
	// error the write is not made, or made and its answer lost.
	fail func(log string) (err error, made bool)
}

func (b faultyBus) Events() bus.Log      { return faultyLog{b.Bus.Events(), b, "EVENTS"} }
func (b faultyBus) Parked() bus.Log      { return faultyLog{b.Bus.Parked(), b, "PARKED"} }
func (b faultyBus) DeadLetters() bus.Log { return faultyLog{b.Bus.DeadLetters(), b, "DLQ"} }
func (b faultyBus) Jobs() bus.Queue      { return faultyQueue{b.Bus.Jobs(), b} }

type faultyLog struct {
	bus.Log
	b    faultyBus
	name string
}

func (l faultyLog) Append(ctx context.Context, r bus.Record) (bus.Ack, error) {
	err, made := l.b.fail(l.name)
	if err == nil || made {
		a, err2 := l.Log.Append(ctx, r)
		if err == nil {
			return a, err2
		}
	}
	return bus.Ack{}, err
}

func (l faultyLog) AppendAsync(ctx context.Context, r bus.Record, done func(bus.Ack, error)) error {
	err, made := l.b.fail(l.name)
	if err == nil {
		return l.Log.AppendAsync(ctx, r, done)
	}
	if made {
		return l.Log.AppendAsync(ctx, r, func(bus.Ack, error) { done(bus.Ack{}, err) })
	}
	return err
}

func (l faultyLog) Delete(ctx context.Context, seq uint64) error {
	err, made := l.b.fail(l.name)
	if err == nil || made {
		if err2 := l.Log.Delete(ctx, seq); err == nil {
			return err2
		}
	}
	return err
}

type faultyQueue struct {
	bus.Queue
	b faultyBus
}

func (q faultyQueue) Append(ctx context.Context, r bus.Record) (bus.Ack, error) {
	return faultyLog{q.Queue, q.b, "JOBS"}.Append(ctx, r)
}

func (q faultyQueue) Consume(ctx context.Context, partition, outstanding int, deliver func(bus.Delivery)) error {
	return q.Queue.Consume(ctx, partition, outstanding, func(d bus.Delivery) { deliver(faultyDelivery{d, q.b}) })
}

type faultyDelivery struct {
	bus.Delivery
	b faultyBus
}

func (d faultyDelivery) Done() error {
	err, made := d.b.fail("JOBS")
	if err == nil || made {
		if err2 := d.Delivery.Done(); err == nil {
			return err2
		}
	}
	return err
}

// TestCrashAtAnyWrite: whichever write is the first that fails, or the last
// whose answer is not heard, after a restart each job has one result, of its
// first end, and nothing is left.
func TestCrashAtAnyWrite(t *testing.T) {
	fails := func(context.Context, *triggers.Call) error { return errors.New("down") }
	for _, c := range []struct {
		name  string
		do    func(context.Context, *triggers.Call) error
		edit  func(*Job)
		typ   string
		least int // writes there are at least
	}{
		{name: "success", typ: bus.TypeFunctionSucceeded, least: 2},
		{name: "success after a retry", typ: bus.TypeFunctionSucceeded, least: 4, do: func(ctx context.Context, c *triggers.Call) error {
			if c.Attempt == 1 {
				return fails(ctx, c)
			}
			return nil
		}},
		{name: "failure", do: fails, typ: bus.TypeFunctionFailed, least: 6},
		{name: "fault", edit: func(j *Job) { j.Fault = "no input" }, typ: bus.TypeFunctionFailed, least: 3},
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, answer lost %v", c.name, lost), func(t *testing.T) {
				f := newFixture(t, Options{})
				n := 0
				for crashed := true; crashed; n++ {
					key := fmt.Sprintf("k%d", n)
					crashed = f.crash(n, lost, key, c.edit, told(&function{do: c.do}))
					fresh := NewPool(Options{Bus: f.bus, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
					f.pool = fresh
					f.start(told(&function{do: c.do}))
					for i, ev := range f.settled(n + 1) {
						if ev.Type != c.typ || ev.ID != fmt.Sprintf("k%d/result", i) {
							t.Fatalf("result %d is %s of %s", i, ev.Type, ev.ID)
						}
					}
					f.stop()
				}
				if n <= c.least {
					t.Errorf("only %d writes", n)
				}
			})
		}
	}
}

// crash lets a pool with triggers work on one job until its write n, from 0, and every later
// one is not made, and stops it. It reports whether there was such a write.
func (f *fixture) crash(n int, lost bool, key string, edit func(*Job), ts ...*Trigger) bool {
	f.t.Helper()
	var mu sync.Mutex
	count := 0
	b := faultyBus{f.bus, func(string) (error, bool) {
		mu.Lock()
		defer mu.Unlock()
		count++
		if count > n {
			return bus.ErrUnavailable, lost && count == n+1
		}
		return nil, false
	}}
	writes := func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
	p := NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	p.Apply(table(ts...))
	p.Covered(f.seq, f.seq)
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, time.Millisecond) }()
	f.enqueue("s", "a", key, edit)
	until(f.t, "the crash or the end", func() bool {
		return writes() > n || records(f.t, f.bus.Jobs())+records(f.t, f.bus.Parked()) == 0
	})
	cancel()
	if err := <-done; err != nil {
		f.t.Error(err)
	}
	return writes() > n
}

// TestEventsRefuseResults: while EVENTS is full, results are parked; jobs leave
// JOBS, other triggers go on, and the results are told in the end, also by
// another process.
func TestEventsRefuseResults(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			f := newFixture(t, Options{})
			var full atomic.Bool
			full.Store(true)
			b := faultyBus{f.bus, func(log string) (error, bool) {
				if log == "EVENTS" && full.Load() {
					return bus.ErrFull, false
				}
				return nil, false
			}}
			f.pool = NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
			fn, other := &function{}, &function{}
			f.pool.Apply(table(told(fn), trigger("s", "b", other)))
			f.pool.Covered(f.seq, f.seq)
			f.run()
			for i := range 50 {
				f.enqueue("s", "a", fmt.Sprintf("a%d", i), nil)
				f.enqueue("s", "b", fmt.Sprintf("b%d", i), nil)
			}
			until(t, "JOBS to empty and the results to be parked", func() bool {
				return records(t, f.bus.Jobs()) == 0 && records(t, f.bus.Parked()) == 50
			})
			if fn.count() != 50 || other.count() != 50 || len(f.results()) != 0 {
				t.Errorf("%d and %d calls, %d results", fn.count(), other.count(), len(f.results()))
			}
			if restart {
				f.stop()
				f.pool = NewPool(Options{Bus: b, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
				f.run() // without the trigger: what has ended needs none
			}
			full.Store(false)
			f.settled(50)
			if fn.count() != 50 {
				t.Errorf("%d calls", fn.count())
			}
		})
	}
}

// TestBusTakesNothing: neither EVENTS nor PARKED takes a result for a while.
func TestBusTakesNothing(t *testing.T) {
	f := newFixture(t, Options{})
	var tries atomic.Int64
	f.pool = NewPool(Options{Bus: faultyBus{f.bus, func(log string) (error, bool) {
		if log != "JOBS" && tries.Add(1) <= 4 {
			return bus.ErrUnavailable, false
		}
		return nil, false
	}}, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	fn := &function{}
	f.start(told(fn))
	f.enqueue("s", "a", "k1", nil)
	f.settled(1)
	if fn.count() != 1 {
		t.Errorf("%d calls", fn.count())
	}
}

func TestUnreadableParkedResult(t *testing.T) {
	f := newFixture(t, Options{})
	for _, data := range [][]byte{[]byte("nothing"), (&Job{Key: "k", Sensor: "s", Trigger: "a"}).Encode(nil)} {
		if _, err := f.bus.Parked().Append(t.Context(), bus.Record{Subject: parkedSubject("s", "a", WhyResult), Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	f.run()
	until(t, "the dead letters", func() bool { return records(t, f.bus.DeadLetters()) == 2 && records(t, f.bus.Parked()) == 0 })
}

// BenchmarkPool compares jobs nobody depends on with jobs whose results are
// told.
func BenchmarkPool(b *testing.B) {
	for _, tell := range []bool{false, true} {
		b.Run(fmt.Sprintf("told=%v", tell), func(b *testing.B) {
			f := newFixture(b, Options{})
			under := make(chan struct{}, 256) // few enough for none to wait in the bus
			tr := trigger("s", "a", quick{under})
			tr.Tell = tell
			f.start(tr)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				under <- struct{}{}
				j := &Job{Key: fmt.Sprintf("k%d", n), Sensor: "s", Trigger: "a", Position: f.seq, Last: f.seq, Time: time.Now()}
				rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
				if err := f.bus.Jobs().AppendAsync(b.Context(), rec, func(bus.Ack, error) {}); err != nil {
					b.Fatal(err)
				}
				n++
			}
			until(b, "the jobs' end", func() bool { return records(b, f.bus.Jobs()) == 0 })
		})
	}
}

// quick is a function that does nothing.
type quick struct{ under chan struct{} }

func (f quick) Invoke(context.Context, *triggers.Call) (triggers.Result, error) {
	<-f.under
	return triggers.Result{Output: []byte(`{"ok":true}`), ContentType: "application/json", Status: "ok"}, nil
}
