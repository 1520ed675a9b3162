package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

// echo gives back what it was called with; a call may say what it wants.
type echo struct {
	mu    sync.Mutex
	calls []*triggers.Call
	gate  chan struct{} // calls with {"wait":true} wait for it
	fail  error
}

func (e *echo) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	e.mu.Lock()
	e.calls = append(e.calls, c)
	fail := e.fail
	e.mu.Unlock()
	in, err := c.Payload()
	if err != nil {
		return triggers.Result{}, err
	}
	var ask struct{ Wait, Panic bool }
	_ = json.Unmarshal(in, &ask)
	switch {
	case ask.Wait:
		select {
		case <-e.gate:
		case <-ctx.Done():
			return triggers.Result{}, ctx.Err()
		}
	case ask.Panic:
		panic("s3cret")
	}
	return triggers.Result{Output: in, ContentType: "application/json", Status: "ok", Logs: triggers.Logs{Stdout: []byte("said s3cret\n")}}, fail
}

func (e *echo) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.calls)
}

func hide(b []byte) []byte { return bytes.ReplaceAll(b, []byte("s3cret"), []byte("***")) }

// direct makes the trigger of a function that is called by hand.
func direct(name string, fn triggers.Function, slots *Slots) *Trigger {
	t := trigger(SensorExec, name, fn)
	t.Direct, t.Hash, t.Callee.Name, t.Callee.Slots, t.Callee.Mask = true, "hash", name, slots, hide
	return t
}

func exec(name, input string) Request {
	return Request{Ref: TriggerRef{SensorExec, name}, Input: json.RawMessage(input)}
}

// runsOf waits for n runs in the history and returns them.
func (f *fixture) runsOf(n int, filter RunFilter) []map[string]any {
	f.t.Helper()
	var out []map[string]any
	until(f.t, fmt.Sprintf("%d runs", n), func() bool {
		found, err := ReadRuns(f.t.Context(), f.bus, filter)
		if err != nil {
			f.t.Fatal(err)
		}
		out = nil
		for _, r := range found {
			var m map[string]any
			if err := json.Unmarshal(r.JSON, &m); err != nil {
				f.t.Fatalf("%s: %v", r.JSON, err)
			}
			out = append(out, m)
		}
		return len(out) >= n
	})
	return out
}

func TestCall(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &echo{}
	f.pool.Apply(table(direct("f", fn, NewSlots(2))))
	if _, err := f.pool.Call(t.Context(), exec("f", `1`)); !errors.Is(err, ErrStopping) {
		t.Errorf("before the pool runs: %v", err)
	}
	f.run()
	until(t, "the pool to run", func() bool { return f.pool.running.Load() })
	r := exec("f", `{"n": 12345678901234567890, "of": "s3cret"}`)
	r.Grants, r.HTTPContext, r.Key = []string{"g"}, json.RawMessage(`{"method":"GET"}`), "k"
	out, err := f.pool.Call(t.Context(), r)
	if err != nil || out.Err != nil {
		t.Fatal(err, out)
	}
	// The caller gets the output as it is; what others see is masked.
	if string(out.Result.Output) != string(r.Input) || string(out.Result.Logs.Stdout) != "said ***\n" || out.Key != "k" || out.Function != "f" {
		t.Errorf("outcome %+v", out)
	}
	c := fn.calls[0]
	if c.Key != "k" || c.Attempt != 1 || c.Function != "f" || c.Sensor != "" || c.Event != nil || string(c.HTTPContext) != `{"method":"GET"}` || !slices.Equal(c.Grants, r.Grants) {
		t.Errorf("call %+v", c)
	}
	run := f.runsOf(1, RunFilter{Function: "f"})[0]
	if run["id"] != out.ID || run["sensor"] != "_exec" || run["trigger"] != "f" || run["status"] != "succeeded" || run["spec"] != "hash" ||
		fmt.Sprint(run["input"]) != fmt.Sprint(run["output"]) || !strings.Contains(fmt.Sprint(run["input"]), "***") || strings.Contains(fmt.Sprint(run), "s3cret") {
		t.Errorf("run %v", run)
	}
	if n := records(t, f.bus.Jobs()); n != 0 {
		t.Errorf("%d jobs", n)
	}

	fn.fail = &triggers.Error{Class: triggers.InputError, Message: "no s3cret", Stacktrace: []string{"line 1"}}
	out, err = f.pool.Call(t.Context(), exec("f", `null`))
	if err != nil {
		t.Fatal(err)
	}
	if e := ErrorOf(out.Err); e.Type != triggers.InputError || e.Message != "no ***" || len(e.Stacktrace) != 1 || out.TimedOut {
		t.Errorf("error %+v", e)
	}
	if out, err = f.pool.Call(t.Context(), exec("f", `{"panic": true}`)); err != nil || !strings.Contains(out.Err.Error(), "panicked: ***") {
		t.Errorf("a panic: %v, %v", out, err)
	}
	runs := f.runsOf(3, RunFilter{Function: "f"})
	if runs[1]["status"] != "failed" || runs[1]["class"] != "InputError" || runs[2]["status"] != "failed" {
		t.Errorf("runs %v", runs)
	}
	if n := records(t, f.bus.DeadLetters()) + records(t, f.bus.Parked()); n != 0 {
		t.Errorf("%d records of failed calls", n)
	}
	if _, err := f.pool.Call(t.Context(), exec("g", `1`)); !errors.Is(err, ErrNotCallable) {
		t.Errorf("unknown function: %v", err)
	}
}

func TestCallTimesOut(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &echo{}
	f.pool.Apply(table(direct("f", fn, NewSlots(2))))
	f.run()
	until(t, "the pool to run", func() bool { return f.pool.running.Load() })
	r := exec("f", `{"wait": true}`)
	r.Timeout = 20 * time.Millisecond
	out, err := f.pool.Call(t.Context(), r)
	if err != nil || !out.TimedOut || !strings.Contains(out.Err.Error(), "within the timeout of 20ms") {
		t.Errorf("%v, %v", out, err)
	}
}

// All callers of a function share its slots: triggers, and those who call it
// directly, who wait for a while and are then told that it is busy.
func TestCallersShareTheLimit(t *testing.T) {
	f := newFixture(t, Options{MaxWait: 50 * time.Millisecond})
	fn := &echo{gate: make(chan struct{})}
	slots := NewSlots(2)
	byHand, bySensor := direct("f", fn, slots), trigger("s", "a", fn)
	bySensor.Callee, bySensor.InputPath = byHand.Callee, "i"
	f.pool.Apply(table(byHand, bySensor))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 6 {
		f.enqueue("s", "a", fmt.Sprint("k", i), func(j *Job) { j.Rendered = []byte(`{"i":{"wait":true}}`) })
	}
	until(t, "two calls", func() bool { return fn.count() == 2 })
	if _, err := f.pool.Call(t.Context(), exec("f", `1`)); !errors.Is(err, ErrBusy) {
		t.Errorf("a call beyond the limit: %v, want ErrBusy", err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := f.pool.Call(gone, exec("f", `1`)); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who went away: %v", err)
	}
	if fn.count() != 2 {
		t.Errorf("%d calls at a limit of 2", fn.count())
	}
	f.pool.o.MaxWait = time.Minute
	done := make(chan error, 1)
	go func() {
		_, err := f.pool.Call(t.Context(), exec("f", `1`))
		done <- err
	}()
	// In its turn, not after the whole backlog.
	until(t, "the caller to wait", func() bool { slots.mu.Lock(); defer slots.mu.Unlock(); return len(slots.waiting)-slots.head == 3 })
	for range 3 {
		fn.gate <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(fn.gate)
}

func TestSubmit(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &echo{fail: errors.New("down")}
	f.pool.Apply(table(direct("f", fn, NewSlots(2))))
	f.run()
	until(t, "the pool to run", func() bool { return f.pool.running.Load() })
	r := exec("f", `{"a":"<1>"}`)
	r.Key, r.Grants, r.HTTPContext = DeriveKey("x", "y"), []string{"g"}, json.RawMessage(`{"method":"GET"}`)
	first, err := f.pool.Submit(t.Context(), r)
	if err != nil || first.Known || first.Key != r.Key {
		t.Fatal(first, err)
	}
	if again, err := f.pool.Submit(t.Context(), r); err != nil || !again.Known || again.Key != r.Key {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	if fn.count() != 3 {
		t.Errorf("%d calls, the policy says 3", fn.count())
	}
	if c := fn.calls[2]; c.Key != r.Key || c.Attempt != 3 || string(c.Input.(json.RawMessage)) != `{"a":"<1>"}` || string(c.HTTPContext) != `{"method":"GET"}` || !slices.Equal(c.Grants, r.Grants) {
		t.Errorf("last call %+v", c)
	}
	status, run, ok := f.pool.Submission(r.Key)
	if !ok || status != StatusDead || !strings.Contains(string(run), `"error":"down"`) {
		t.Errorf("submission %s %s %v", status, run, ok)
	}
	runs := f.runsOf(4, RunFilter{Key: r.Key})
	// A call may be made before it is noted that it is queued.
	slices.SortFunc(runs, func(a, b map[string]any) int {
		return strings.Compare(fmt.Sprint(a["started"]), fmt.Sprint(b["started"]))
	})
	var seen []string
	for _, run := range runs {
		seen = append(seen, fmt.Sprint(run["status"], run["attempt"]))
	}
	if want := []string{"queued0", "retrying1", "retrying2", "dead3"}; !slices.Equal(seen, want) {
		t.Errorf("runs %v, want %v", seen, want)
	}
	letters, err := Letters(t.Context(), f.bus, TriggerRef{Sensor: SensorExec}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatal(letters, err)
	}
	fn.mu.Lock()
	fn.fail = nil
	fn.mu.Unlock()
	if err := Redrive(t.Context(), f.bus, letters[0], nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the redriven call", func() bool { status, _, _ := f.pool.Submission(r.Key); return status == StatusSucceeded })
	until(t, "JOBS to empty", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
	if _, err := f.pool.Submit(t.Context(), exec("g", `1`)); !errors.Is(err, ErrNotCallable) {
		t.Errorf("unknown function: %v", err)
	}
}

// A call that is submitted again while it waits is still known.
func TestSubmittedAgain(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &echo{gate: make(chan struct{})}
	defer close(fn.gate)
	f.pool.Apply(table(direct("f", fn, NewSlots(1))))
	f.run()
	until(t, "the pool to run", func() bool { return f.pool.running.Load() })
	if _, err := f.pool.Submit(t.Context(), exec("f", `{"wait": true}`)); err != nil {
		t.Fatal(err)
	}
	until(t, "the first call", func() bool { return fn.count() == 1 })
	r := exec("f", `1`)
	r.Key = DeriveKey("x", "y")
	for again := range 2 {
		if got, err := f.pool.Submit(t.Context(), r); err != nil || got.Known != (again == 1) {
			t.Fatalf("%+v, %v", got, err)
		}
		if status, _, ok := f.pool.Submission(r.Key); !ok || status != StatusQueued {
			t.Errorf("it stands as %q, %v", status, ok)
		}
	}
}

// A submitted call survives a restart, and one whose function is gone waits
// for it.
func TestSubmittedCallSurvives(t *testing.T) {
	f := newFixture(t, Options{OrphanTTL: time.Hour})
	fn := &echo{gate: make(chan struct{})}
	f.pool.Apply(table(direct("f", fn, NewSlots(1))))
	f.run()
	until(t, "the pool to run", func() bool { return f.pool.running.Load() })
	for range 3 {
		if _, err := f.pool.Submit(t.Context(), exec("f", `{"wait": true}`)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the first call", func() bool { return fn.count() == 1 })
	f.stop() // within the grace nobody opens the gate
	if n := records(t, f.bus.Jobs()); n != 3 {
		t.Fatalf("%d jobs after the stop, want 3", n)
	}

	f.pool = NewPool(Options{Bus: f.bus, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	f.pool.Apply(nil)
	f.run()
	until(t, "the jobs to be parked", func() bool { return records(t, f.bus.Parked()) == 3 })
	orphans, err := f.pool.Orphans(t.Context())
	if err != nil || orphans[TriggerRef{SensorExec, "f"}] != 3 {
		t.Errorf("orphans %v, %v", orphans, err)
	}
	fn = &echo{gate: make(chan struct{})}
	close(fn.gate)
	f.pool.Apply(table(direct("f", fn, NewSlots(1))))
	until(t, "the calls", func() bool { return fn.count() == 3 })
	until(t, "everything to be worked off", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
}

// A backlog of a trigger that is alone in its partition does not keep a call
// that is submitted there from being made.
func TestSubmittedCallBesideABacklog(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	release := make(chan struct{})
	slow := held(release)
	name, n := "", f.bus.Jobs().Partitions()
	for i := 0; name == ""; i++ {
		if s := fmt.Sprint("f", i); Partition(SensorExec, s, n) == Partition("s", "a", n) {
			name = s
		}
	}
	fn := &echo{}
	ts := trigger("s", "a", slow)
	ts.Timeout = time.Minute
	f.pool.Apply(table(ts, direct(name, fn, NewSlots(1))))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 200 {
		f.enqueue("s", "a", fmt.Sprintf("slow%d", i), nil)
	}
	until(t, "the slow calls", func() bool { return slow.count() == 4 })
	if records(t, f.bus.Parked()) != 0 {
		t.Error("a trigger alone in its partition was parked")
	}
	if _, err := f.pool.Submit(t.Context(), exec(name, `1`)); err != nil {
		t.Fatal(err)
	}
	release <- struct{}{} // whatever ends lets the next ones in, which are parked
	until(t, "the submitted call", func() bool { return fn.count() == 1 })
	close(release)
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent()
	r.limit = 10 << 10
	for i := range 1000 {
		key := fmt.Sprint("k", i)
		r.expect(&Run{Key: key, Status: StatusQueued})
		r.begin(key)
		r.put(&Run{Key: key, Status: StatusSucceeded, Output: bytes.Repeat([]byte("x"), 1000)})
	}
	r.put(&Run{Key: "large", Status: StatusSucceeded, Output: bytes.Repeat([]byte("x"), 20<<10)})
	if len(r.calls) != 1 || r.order.Len() != 1 {
		t.Errorf("%d calls are remembered in %d bytes", len(r.calls), r.bytes)
	}
	r.expect(&Run{Key: "new", Status: StatusQueued})
	r.forget("new")
	r.forget("large") // it ran
	if _, ok := r.calls["large"]; len(r.calls) > 1 || r.bytes < 0 || ok && r.bytes == 0 {
		t.Errorf("%d calls in %d bytes", len(r.calls), r.bytes)
	}
}

// BenchmarkCall is a call at once next to the function alone.
func BenchmarkCall(b *testing.B) {
	f := newFixture(b, Options{})
	fn := triggersFunc(func(c *triggers.Call) (triggers.Result, error) { return triggers.Result{Output: []byte(`{}`)}, nil })
	tr := direct("f", fn, NewSlots(1<<10))
	f.pool.Apply(table(tr))
	f.run()
	until(b, "the pool to run", func() bool { return f.pool.running.Load() })
	r := exec("f", `{"a":1}`)
	b.Run("function", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = fn.Invoke(b.Context(), r.call(tr.Callee, "k", 1))
		}
	})
	b.Run("call", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.pool.Call(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

type triggersFunc func(*triggers.Call) (triggers.Result, error)

func (f triggersFunc) Invoke(_ context.Context, c *triggers.Call) (triggers.Result, error) {
	return f(c)
}
