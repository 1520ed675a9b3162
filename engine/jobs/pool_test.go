package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

// fixture is a pool on a real embedded bus, with one event stored.
type fixture struct {
	t    testing.TB
	bus  bus.Bus
	pool *Pool
	seq  uint64
	stop func()
	// grace is how long running calls may end when it stops.
	grace time.Duration
	// began is a time before any call.
	began time.Time
}

type directEvents struct{ bus bus.Bus }

func (d directEvents) Event(ctx context.Context, seq uint64) (*bus.Event, error) {
	r, err := d.bus.Events().Get(ctx, seq)
	if err != nil {
		return nil, err
	}
	return bus.DecodeEvent(r)
}

func newFixture(t testing.TB, o Options) *fixture {
	t.Helper()
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: bustest.Dir(t), MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	ev := &bus.Event{ID: "1", Source: "/test", Type: "t", EventSource: "shop", EventName: "orders", Data: []byte(`{"n":1}`)}
	ack, err := b.Events().Append(t.Context(), ev.Record())
	if err != nil {
		t.Fatal(err)
	}
	o.Bus, o.Events, o.Logger = b, directEvents{b}, slog.New(slog.DiscardHandler)
	return &fixture{t: t, bus: b, pool: NewPool(o), seq: ack.Seq, grace: 2 * time.Second, began: time.Now()}
}

func (f *fixture) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.pool.Run(ctx, f.grace) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) { // stopped while it started
			f.t.Error(err)
		}
	})
	f.t.Cleanup(f.stop)
}

func (f *fixture) enqueue(sensor, trigger, key string, edit func(*Job)) {
	f.t.Helper()
	j := &Job{
		Key: key, Sensor: sensor, Trigger: trigger, Position: f.seq, Last: f.seq, Time: time.Now(),
		Events: []sensors.Contribution{{Dependency: "order", Seq: f.seq}},
	}
	if edit != nil {
		edit(j)
	}
	rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
	if _, err := f.bus.Jobs().Append(f.t.Context(), rec); err != nil {
		f.t.Fatal(err)
	}
}

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func records(t testing.TB, l bus.Log) uint64 {
	t.Helper()
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Records
}

// function is a triggers.Function that notes its calls.
type function struct {
	mu     sync.Mutex
	calls  []string
	do     func(ctx context.Context, c *triggers.Call) error
	closed int
}

func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf("%s#%d", c.Key, c.Attempt))
	f.mu.Unlock()
	if f.do != nil {
		if err := f.do(ctx, c); err != nil {
			return triggers.Result{}, err
		}
	}
	return triggers.Result{Output: []byte(`{"ok":true}`), ContentType: "application/json", Status: "ok"}, nil
}

// held is a function whose calls last until release is closed.
func held(release <-chan struct{}) *function {
	return &function{do: func(ctx context.Context, _ *triggers.Call) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

func (f *function) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

func (f *function) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func trigger(sensor, name string, fn triggers.Function) *Trigger {
	return &Trigger{
		Ref: TriggerRef{sensor, name}, Timeout: 5 * time.Second, Concurrency: 4,
		Policy: triggers.Policy{Attempts: 3, Backoff: 10 * time.Millisecond, Factor: 1, Max: time.Second},
		Callee: &Callee{Name: sensor + "." + name, Function: fn, Values: func(_ *triggers.Call, r map[string]any) triggers.Values {
			return triggers.NewValues(r, nil)
		}},
	}
}

func table(ts ...*Trigger) map[TriggerRef]*Trigger {
	m := map[TriggerRef]*Trigger{}
	for _, t := range ts {
		m[t.Ref] = t
	}
	return m
}

func TestJobLeavesOnlyUnderTheCheckpoint(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "the call", func() bool { return fn.count() == 1 })
	until(t, "the call's end", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
	if n := records(t, f.bus.Jobs()); n != 1 {
		t.Fatalf("%d jobs in JOBS before the checkpoint covers them, want 1", n)
	}
	f.pool.Covered(f.seq, f.seq)
	until(t, "JOBS to empty", func() bool { return records(t, f.bus.Jobs()) == 0 })
	if fn.count() != 1 {
		t.Fatalf("calls: %v", fn.calls)
	}
}

func TestRetryThenDeadLetterThenRedrive(t *testing.T) {
	f := newFixture(t, Options{})
	var mu sync.Mutex
	fail := true
	fn := &function{do: func(context.Context, *triggers.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if fail {
			return errors.New("service is down")
		}
		return nil
	}}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	if want := []string{"k1#1", "k1#2", "k1#3"}; !slices.Equal(fn.calls, want) {
		t.Fatalf("calls %v, want %v", fn.calls, want)
	}
	until(t, "PARKED to empty", func() bool { return records(t, f.bus.Parked()) == 0 })
	letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatalf("letters %v, error %v", letters, err)
	}
	if l := letters[0].Job; l.Error != "service is down" || l.Attempt != 3 || l.Event == nil {
		t.Fatalf("letter %+v", l)
	}
	mu.Lock()
	fail = false
	mu.Unlock()
	if err := Redrive(t.Context(), f.bus, letters[0], nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the redriven call", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
	if n := records(t, f.bus.DeadLetters()); n != 0 {
		t.Fatalf("%d dead letters after the redrive", n)
	}
}

func TestPermanentErrorIsNotRetried(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no such order") }}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	if fn.count() != 1 {
		t.Fatalf("calls %v", fn.calls)
	}
}

// TestAnotherEventWithTheNumberIsNotHandedOver: the log was restored or
// exchanged while a job waited, and the event it refers to is gone.
func TestAnotherEventWithTheNumberIsNotHandedOver(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", func(j *Job) { j.Time = time.Now().Add(-time.Hour) })
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatalf("%d letters, %v", len(letters), err)
	}
	if fn.count() != 0 || letters[0].Job.Event != nil {
		t.Errorf("calls %v, event in the dead letter %v", fn.calls, letters[0].Job.Event)
	}
}

func TestPanicIsTheCallsFailure(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		if c.Attempt == 1 {
			panic("boom")
		}
		return nil
	}}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "the second call", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
}

func TestSlowTriggerDoesNotHoldItsPartitionBack(t *testing.T) {
	f := newFixture(t, Options{MaxOutstanding: 32})
	release := make(chan struct{})
	slow := held(release)
	fast := &function{}
	// Two triggers in one partition.
	a := "a"
	b := ""
	n := f.bus.Jobs().Partitions()
	for i := 0; b == ""; i++ {
		if name := fmt.Sprintf("b%d", i); Partition("s", name, n) == Partition("s", a, n) {
			b = name
		}
	}
	ts := trigger("s", a, slow)
	ts.Timeout = time.Minute
	f.pool.Apply(table(ts, trigger("s", b, fast)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 200 {
		f.enqueue("s", a, fmt.Sprintf("slow%d", i), nil)
	}
	for i := range 50 {
		f.enqueue("s", b, fmt.Sprintf("fast%d", i), nil)
	}
	until(t, "the fast trigger to finish beside the slow one", func() bool { return fast.count() == 50 })
	if records(t, f.bus.Parked()) == 0 {
		t.Fatal("nothing of the slow trigger was parked")
	}
	close(release)
	until(t, "the slow trigger to finish", func() bool { return slow.count() == 200 })
	until(t, "JOBS and PARKED to empty", func() bool { return records(t, f.bus.Jobs())+records(t, f.bus.Parked()) == 0 })
	seen := map[string]bool{}
	for _, c := range slow.calls {
		if seen[c] {
			t.Fatalf("%s was called twice", c)
		}
		seen[c] = true
	}
}

func TestOrphansWaitForTheirTrigger(t *testing.T) {
	f := newFixture(t, Options{})
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "the orphan to be parked", func() bool { return records(t, f.bus.Parked()) == 1 })
	orphans, err := f.pool.Orphans(t.Context())
	if err != nil || orphans[TriggerRef{"s", "a"}] != 1 {
		t.Fatalf("orphans %v, error %v", orphans, err)
	}
	fn := &function{}
	f.pool.Apply(table(trigger("s", "a", fn)))
	until(t, "the call after its return", func() bool { return fn.count() == 1 })
}

func TestOrphansDieAfterTheirTime(t *testing.T) {
	f := newFixture(t, Options{OrphanTTL: time.Nanosecond})
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "gone", "k1", nil)
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	until(t, "PARKED to empty", func() bool { return records(t, f.bus.Parked()) == 0 })
}

func TestReplacedFunctionServesWaitingJobsAndTheOldIsClosed(t *testing.T) {
	f := newFixture(t, Options{})
	old := &function{do: func(context.Context, *triggers.Call) error { return errors.New("old and broken") }}
	fixed := &function{}
	first := trigger("s", "a", old)
	first.Policy.Backoff, first.Policy.Attempts = 50*time.Millisecond, 100
	f.pool.Apply(table(first))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	until(t, "a failure", func() bool { return old.count() > 0 })
	f.pool.Apply(table(trigger("s", "a", fixed)))
	until(t, "the fixed function", func() bool { return fixed.count() == 1 })
	until(t, "the old one's end", func() bool {
		old.mu.Lock()
		defer old.mu.Unlock()
		return old.closed == 1
	})
	f.stop()
	if fixed.closed != 1 {
		t.Fatalf("closed %d times at the end", fixed.closed)
	}
}

func TestRunningJobComesBackAfterAStop(t *testing.T) {
	f := newFixture(t, Options{})
	started := make(chan struct{}, 1)
	fn := &function{do: func(ctx context.Context, _ *triggers.Call) error {
		started <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}}
	ctx, cancel := context.WithCancel(t.Context())
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	done := make(chan error, 1)
	go func() { done <- f.pool.Run(ctx, 10*time.Millisecond) }()
	f.enqueue("s", "a", "k1", nil)
	<-started
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again := &function{}
	f.pool = NewPool(Options{Bus: f.bus, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	f.pool.Apply(table(trigger("s", "a", again)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	until(t, "the call to be made again", func() bool { return again.count() == 1 })
	if again.calls[0] != "k1#1" {
		t.Fatalf("call %s: a call cut off by a stop is not an attempt", again.calls[0])
	}
}

// prepared is a function that cannot be called before ready is closed.
type prepared struct {
	function
	ready chan struct{}
}

func (p *prepared) Prepare(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestPreparationIsNoAttempt: a function that takes longer to get ready than a
// call may take is called once, and others do not wait for it.
func TestPreparationIsNoAttempt(t *testing.T) {
	f := newFixture(t, Options{})
	fn, other := &prepared{ready: make(chan struct{})}, &function{}
	slow := trigger("s", "a", &triggers.Contract{Function: fn})
	slow.Timeout = 10 * time.Millisecond
	ready := fn.ready
	fn.do = func(ctx context.Context, _ *triggers.Call) error {
		select {
		case <-ready:
			return ctx.Err()
		default:
			return errors.New("called before it was ready")
		}
	}
	f.pool.Apply(table(slow, trigger("s", "b", other)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	f.enqueue("s", "b", "k2", nil)
	until(t, "the call of the other", func() bool { return other.count() == 1 })
	time.AfterFunc(5*slow.Timeout, func() { close(ready) })
	until(t, "the call", func() bool { return fn.count() == 1 && records(t, f.bus.Jobs()) == 0 })
	if fn.calls[0] != "k1#1" || records(t, f.bus.DeadLetters()) != 0 {
		t.Fatalf("calls %v", fn.calls)
	}
	// A stop does not wait for one that never is.
	fn.ready = make(chan struct{})
	f.enqueue("s", "a", "k3", nil)
	f.stop()
}

func TestRunsAreWrittenInBlocks(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 20 {
		f.enqueue("s", "a", fmt.Sprintf("k%d", i), nil)
	}
	until(t, "the history", func() bool {
		runs, err := ReadRuns(t.Context(), f.bus, RunFilter{Function: "s.a", Status: StatusSucceeded})
		return err == nil && len(runs) == 20
	})
	if n := records(t, f.bus.Runs()); n >= 20 {
		t.Errorf("%d history records for 20 runs: they are not in blocks", n)
	}
}

// offer stores a job and hands it over as the fold does.
func (f *fixture) offer(j *Job) {
	f.t.Helper()
	rec := bus.Record{Subject: j.Subject(f.bus.Jobs().Partitions()), Data: j.Encode(nil)}
	if err := f.bus.Jobs().AppendAsync(f.t.Context(), rec, func(a bus.Ack, err error) {
		if err == nil {
			f.pool.Offer(j, a.Seq)
		}
	}); err != nil {
		f.t.Fatal(err)
	}
}

func TestOfferedJobIsCalledOnce(t *testing.T) {
	f := newFixture(t, Options{})
	block := make(chan struct{})
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		if c.Key == "slow" {
			<-block
		}
		return nil
	}}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "first", nil) // the consumers are there when it was called
	until(t, "the first call", func() bool { return fn.count() == 1 })
	for i := range 200 {
		j := &Job{Key: fmt.Sprintf("k%d", i), Sensor: "s", Trigger: "a", Position: f.seq, Last: f.seq, Time: time.Now()}
		if i == 100 {
			j.Key = "slow"
		}
		f.offer(j)
	}
	until(t, "all calls", func() bool { return fn.count() == 201 })
	close(block)
	until(t, "JOBS to empty", func() bool { return records(t, f.bus.Jobs()) == 0 })
	seen := map[string]bool{}
	for _, c := range fn.calls {
		if seen[c] {
			t.Errorf("%s was called twice", c)
		}
		seen[c] = true
	}
}

func TestJobsInMemoryOfARemovedTriggerComeBackWithIt(t *testing.T) {
	f := newFixture(t, Options{})
	started, release := make(chan struct{}, 100), make(chan struct{})
	slow := &function{do: func(context.Context, *triggers.Call) error {
		started <- struct{}{}
		<-release
		return nil
	}}
	one := trigger("s", "a", slow)
	one.Concurrency = 1
	f.pool.Apply(table(one))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 10 {
		f.enqueue("s", "a", fmt.Sprintf("k%d", i), nil)
	}
	<-started
	until(t, "the others to wait in memory", func() bool { return f.pool.Status()[0].Waiting == 9 })
	f.pool.Apply(nil)
	close(release)
	until(t, "the others to be parked", func() bool { return records(t, f.bus.Jobs()) == 0 && records(t, f.bus.Parked()) == 9 })
	again := &function{}
	f.pool.Apply(table(trigger("s", "a", again)))
	until(t, "their calls after its return", func() bool { return again.count() == 9 })
	until(t, "PARKED to empty", func() bool { return records(t, f.bus.Parked()) == 0 })
}

func TestLateDeadLetterKeepsWhatItRenders(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{do: func(context.Context, *triggers.Call) error { return triggers.Permanentf("no") }}
	tr := trigger("s", "a", fn)
	tr.Render = func(events []sensors.Contributing, _ int) (map[string]any, error) {
		return map[string]any{"spec.input": string(events[0].Event.Data)}, nil
	}
	f.pool.Apply(table(tr))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k", func(j *Job) { j.Late = true })
	until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
	letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 1)
	if err != nil || letters[0].Job.Late || string(letters[0].Job.Rendered) != `{"spec.input":"{\"n\":1}"}` {
		t.Fatalf("letter %+v, error %v", letters, err)
	}
}

// lossyBus loses the answer to each first delivery, as when the consumer died
// with its server, and delivers the job again.
type lossyBus struct{ bus.Bus }

func (b lossyBus) Jobs() bus.Queue { return lossyQueue{b.Bus.Jobs()} }

type lossyQueue struct{ bus.Queue }

func (q lossyQueue) Consume(ctx context.Context, partition, outstanding int, deliver func(bus.Delivery)) error {
	var again sync.WaitGroup
	defer again.Wait()
	return q.Queue.Consume(ctx, partition, outstanding, func(d bus.Delivery) {
		deliver(&lossyDelivery{d, func() { again.Go(func() { deliver(d) }) }})
	})
}

type lossyDelivery struct {
	bus.Delivery
	again func()
}

func (d *lossyDelivery) Done() error {
	d.again()
	return bus.ErrUnavailable
}

func TestLostAnswerIsGivenAtTheNextDelivery(t *testing.T) {
	f := newFixture(t, Options{})
	fn := &function{}
	f.pool = NewPool(Options{Bus: lossyBus{f.bus}, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	for i := range 20 {
		f.enqueue("s", "a", fmt.Sprintf("k%d", i), nil)
	}
	until(t, "JOBS to empty", func() bool { return records(t, f.bus.Jobs()) == 0 })
	if fn.count() != 20 {
		t.Errorf("%d calls for 20 jobs", fn.count())
	}
}

// An edited input is what the function gets from then on, also in retries and
// when the job dies and is redriven as it is.
func TestRedriveWithEditedInput(t *testing.T) {
	f := newFixture(t, Options{})
	var broken atomic.Bool
	broken.Store(true)
	fn := &function{do: func(_ context.Context, c *triggers.Call) error {
		in, err := c.Payload()
		switch {
		case err != nil:
			return err
		case string(in) != `{"n":2}`:
			return triggers.Permanentf("input is %s", in)
		case broken.Load():
			return errors.New("down")
		}
		return nil
	}}
	f.pool.Apply(table(trigger("s", "a", fn)))
	f.pool.Covered(f.seq, f.seq)
	f.run()
	f.enqueue("s", "a", "k1", nil)
	for _, step := range []struct {
		dead  string
		input string
	}{{`input is {"n":1}`, `{"n":2}`}, {"down", ""}} {
		until(t, "the dead letter", func() bool { return records(t, f.bus.DeadLetters()) == 1 })
		letters, err := Letters(t.Context(), f.bus, TriggerRef{}, 0, 10)
		if err != nil || letters[0].Job.Error != step.dead {
			t.Fatalf("%+v, %v", letters[0].Job, err)
		}
		if step.input == "" {
			broken.Store(false)
		}
		if err := Redrive(t.Context(), f.bus, letters[0], []byte(step.input)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "success", func() bool { return f.pool.Status()[0].Stats.Succeeded.Load() == 1 })
	if n := fn.count(); n != 5 {
		t.Errorf("%d calls: %v", n, fn.calls)
	}
}

// TestNothingBeginsWhenClosing: when the pool has waited for what runs, nothing
// does, and nothing can begin.
func TestNothingBeginsWhenClosing(t *testing.T) {
	for range 10 {
		p := newFixture(t, Options{}).pool
		var running atomic.Int64
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for p.begin() {
					running.Add(1)
					running.Add(-1)
					p.work.Done()
				}
			})
		}
		p.shut()
		p.work.Wait()
		if n := running.Load(); n != 0 || p.begin() {
			t.Fatalf("%d still run", n)
		}
		p.spawn(func() { t.Error("this began") })
		callers.Wait()
	}
}

// slowLog takes its first record only when it is told to.
type slowLog struct {
	*memoryLog
	first chan struct{}
	once  sync.Once
}

func (l *slowLog) AppendAsync(ctx context.Context, r bus.Record, done func(bus.Ack, error)) error {
	slow := false
	l.once.Do(func() { slow = true })
	if !slow {
		return l.memoryLog.AppendAsync(ctx, r, done)
	}
	go func() {
		<-l.first
		_ = l.memoryLog.AppendAsync(ctx, r, done)
	}()
	return nil
}

// A job that is on its way to PARKED while all others were fetched is fetched,
// too.
func TestLastJobOnItsWayToParkedIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &slowLog{memoryLog: &memoryLog{}, first: make(chan struct{})}
		p := NewPool(Options{Bus: memoryBus{log: log}, Logger: slog.New(slog.DiscardHandler)})
		fn := &function{}
		tr := trigger("s", "a", fn)
		p.Apply(table(tr))
		q := p.queues[tr.Ref]
		for i := range 3 {
			p.park(&task{part: q.part, seq: uint64(i + 1), job: &Job{Key: fmt.Sprint(i), Sensor: "s", Trigger: "a"}}, q, WhyOverflow)
			synctest.Wait()
		}
		if n := fn.count(); n != 2 {
			t.Errorf("%d calls before the first one is parked", n)
		}
		close(log.first)
		<-time.After(time.Minute)
		p.shut()
		p.stop()
		p.cancel()
		p.work.Wait()
		if n := fn.count(); n != 3 || len(log.records) > 0 {
			t.Errorf("%d calls, %d jobs are parked", n, len(log.records))
		}
	})
}

// uncountedBus does not tell what is in JOBS.
type uncountedBus struct{ bus.Bus }

func (b uncountedBus) Jobs() bus.Queue { return uncountedQueue{b.Bus.Jobs()} }

type uncountedQueue struct{ bus.Queue }

func (uncountedQueue) Counts(context.Context, string) (map[string]uint64, error) {
	return nil, bus.ErrUnavailable
}

// A start that fails leaves nothing behind: what it began has ended, as goleak
// sees, and functions are closed.
func TestStartThatFails(t *testing.T) {
	f := newFixture(t, Options{})
	j := &Job{Key: "later", Sensor: "s", Trigger: "a", NotBefore: time.Now().Add(time.Hour)}
	if _, err := f.bus.Parked().Append(t.Context(), bus.Record{Subject: parkedSubject("s", "a", WhyRetry), Data: j.Encode(nil)}); err != nil {
		t.Fatal(err)
	}
	f.pool = NewPool(Options{Bus: uncountedBus{f.bus}, Events: directEvents{f.bus}, Logger: slog.New(slog.DiscardHandler)})
	fn := &function{}
	f.pool.Apply(table(trigger("s", "a", fn)))
	if err := f.pool.Run(t.Context(), time.Second); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	fn.mu.Lock()
	defer fn.mu.Unlock()
	if fn.closed != 1 {
		t.Errorf("the function was closed %d times", fn.closed)
	}
}
