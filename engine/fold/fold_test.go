package fold_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

func open(t testing.TB, dir string) *jetstream.Bus {
	t.Helper()
	b, err := jetstream.Open(context.Background(), jetstream.Options{Dir: dir, MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// compile makes rules of sensors given as name → spec.
func compile(t testing.TB, hash string, list map[string]*specs.Sensor) *fold.Rules {
	t.Helper()
	rules := &fold.Rules{Hash: hash}
	for name, s := range list {
		p, found := sensors.Compile(name, s)
		if err := found.Err(); err != nil {
			t.Fatal(err)
		}
		rules.Sensors = append(rules.Sensors, fold.Sensor{Name: name, Hash: hash, Program: p})
	}
	return rules
}

func expr(src string) specs.Expr { return specs.Expr{Source: src} }

func trigger() []specs.Trigger { return []specs.Trigger{{Name: "t", Function: "f"}} }

// twoSensors: every order fires `each`, whose jobs are spread, order and payment of one id fire `pair`.
func twoSensors(t testing.TB, hash string) *fold.Rules {
	return compile(t, hash, map[string]*specs.Sensor{
		"each": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}}, Triggers: []specs.Trigger{{Name: "t", Function: "f", Spread: true}}},
		"pair": {
			Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}, {Name: "payment", Source: "shop", Event: "payments"}},
			Correlate:    expr("data.id"), Triggers: trigger(),
		},
	})
}

func publish(t testing.TB, b bus.Bus, event string, id int) uint64 {
	t.Helper()
	ev := &bus.Event{ID: fmt.Sprint(id), Source: "/t", Type: "t", EventSource: "shop", EventName: event, Data: fmt.Appendf(nil, `{"id":%d}`, id)}
	a, err := b.Events().Append(context.Background(), ev.Record())
	if err != nil {
		t.Fatal(err)
	}
	return a.Seq
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dispatcher(b bus.Bus, rules *fold.Rules, alarm func(code, message string)) *fold.Dispatcher {
	if alarm == nil {
		alarm = func(string, string) {}
	}
	return fold.New(fold.Options{Bus: b, Cache: fold.NewCache(b.Events(), 1<<10, 1<<20), Logger: quiet(), Rules: rules, Alarm: alarm, BatchSize: 7})
}

// run starts a dispatcher and returns what stops it.
func run(d *fold.Dispatcher) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func covered(d *fold.Dispatcher, seq uint64) func() bool {
	return func() bool { _, c := d.Position(); return c >= seq }
}

// allJobs reads JOBS.
func allJobs(t testing.TB, b bus.Bus) []*jobs.Job {
	t.Helper()
	info, err := b.Jobs().Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []*jobs.Job
	if info.Records == 0 {
		return nil
	}
	rd, err := b.Jobs().Read(context.Background(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for uint64(len(out)) < info.Records {
		recs, err := rd.Next(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			j, err := jobs.DecodeJob(r.Data)
			if err != nil {
				t.Fatal(err)
			}
			if want := j.Subject(b.Jobs().Partitions()); r.Subject != want {
				t.Errorf("job of %s is stored as %s, want %s", j.Sensor, r.Subject, want)
			}
			out = append(out, j)
		}
	}
	return out
}

// fault makes the nth write of a bus fail.
type fault struct {
	bus.Bus
	n     atomic.Int64
	at    int64
	mode  string // "before", "after" (stored, but answered with an error), "crash"
	down  atomic.Bool
	fired atomic.Bool
}

var errFault = fmt.Errorf("%w: injected", bus.ErrUnavailable)

// write decides what happens to one write: whether it is done, and its error.
func (f *fault) write() (do bool, err error) {
	if f.down.Load() {
		return false, errFault
	}
	if f.n.Add(1) != f.at {
		return true, nil
	}
	f.fired.Store(true)
	switch f.mode {
	case "before":
		return false, errFault
	case "after":
		return true, errFault
	default:
		f.down.Store(true)
		return rand.IntN(2) == 0, errFault
	}
}

func (f *fault) Jobs() bus.Queue { return &faultQueue{f.Bus.Jobs(), f} }

func (f *fault) State() bus.Store { return &faultStore{f.Bus.State(), f} }

type faultQueue struct {
	bus.Queue
	f *fault
}

func (q *faultQueue) AppendAsync(ctx context.Context, r bus.Record, done func(bus.Ack, error)) error {
	do, err := q.f.write()
	if !do {
		go done(bus.Ack{}, err)
		return nil
	}
	return q.Queue.AppendAsync(ctx, r, func(a bus.Ack, e error) {
		if err != nil {
			a, e = bus.Ack{}, err
		}
		done(a, e)
	})
}

type faultStore struct {
	bus.Store
	f *fault
}

func (s *faultStore) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	do, err := s.f.write()
	if !do {
		return 0, err
	}
	n, e := s.Store.Update(ctx, key, v, rev)
	if err != nil {
		return 0, err
	}
	return n, e
}

func (s *faultStore) PutAsync(ctx context.Context, key string, v []byte, done func(uint64, error)) error {
	do, err := s.f.write()
	if !do {
		go done(0, err)
		return nil
	}
	return s.Store.PutAsync(ctx, key, v, func(n uint64, e error) {
		if err != nil {
			n, e = 0, err
		}
		done(n, e)
	})
}

func (s *faultStore) DeleteAsync(ctx context.Context, key string, done func(uint64, error)) error {
	do, err := s.f.write()
	if !do {
		go done(0, err)
		return nil
	}
	return s.Store.DeleteAsync(ctx, key, func(n uint64, e error) {
		if err != nil {
			n, e = 0, err
		}
		done(n, e)
	})
}

// eachWrite runs test for each write of a run, or every step with -short, in
// each of the ways in which it can fail, until one is not there any more, which
// test tells. Runs wait for most of their time, so several are under way at once.
func eachWrite(t *testing.T, step int64, test func(t *testing.T, mode string, at int64) (there bool)) {
	t.Helper()
	if !testing.Short() {
		step = 1
	}
	for _, mode := range []string{"before", "after", "crash"} {
		var at atomic.Int64
		var over atomic.Bool
		several(func() {
			for !over.Load() {
				at, there := at.Add(step)-step+1, false
				if !t.Run(fmt.Sprintf("%s/%d", mode, at), func(t *testing.T) { there = test(t, mode, at) }) || !there {
					over.Store(true)
				}
			}
		})
	}
}

// each runs a test n times, several at once.
func each(t *testing.T, n int, test func(t *testing.T, i int)) {
	t.Helper()
	var next atomic.Int64
	several(func() {
		for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
			t.Run(fmt.Sprint(i), func(t *testing.T) { test(t, i) })
		}
	})
}

// several runs fn a few times at once.
func several(fn func()) {
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(fn)
	}
	wg.Wait()
}

// TestEveryFiringIsEnqueuedExactlyOnce fails each write of a run in turn, in
// three ways, and lets a fold recover behind it.
func TestEveryFiringIsEnqueuedExactlyOnce(t *testing.T) {
	const ids = 12
	eachWrite(t, 5, func(t *testing.T, mode string, at int64) bool {
		b := open(t, bustest.Dir(t))
		f := &fault{Bus: b, at: at, mode: mode}
		d := dispatcher(f, twoSensors(t, "1"), nil)
		stop := run(d)
		var last uint64
		for i := range ids {
			publish(t, b, "orders", i)
			if i%3 == 2 {
				for k := i - 2; k <= i; k++ {
					last = publish(t, b, "payments", k)
				}
				if mode != "crash" {
					until(t, "the checkpoint", covered(d, last))
				} else {
					until(t, "the checkpoint or the crash", func() bool { return f.down.Load() || covered(d, last)() })
				}
			}
		}
		if mode == "crash" {
			f.down.Store(true)
			stop()
			d = dispatcher(b, twoSensors(t, "1"), nil)
			stop = run(d)
		}
		until(t, "the last checkpoint", covered(d, last))
		if p, err := d.Pending(t.Context(), "", 10); err != nil || len(p) > 0 {
			t.Errorf("every pair fired, yet keys wait: %+v (error %v)", p, err)
		}
		stop()
		counts := map[string]int{}
		keys := map[string]bool{}
		for _, j := range allJobs(t, b) {
			counts[j.Sensor]++
			if j.Spread != (j.Sensor == "each") {
				t.Errorf("job of %s: spread %v", j.Sensor, j.Spread)
			}
			if keys[j.Key] {
				t.Errorf("firing %s of %s is enqueued twice", j.Key, j.Sensor)
			}
			keys[j.Key] = true
			if j.Sensor == "pair" && len(j.Events) != 2 {
				t.Errorf("pair fired with %v", j.Events)
			}
		}
		if counts["each"] != ids || counts["pair"] != ids {
			t.Errorf("jobs %v, want %d of each", counts, ids)
		}
		return f.fired.Load()
	})
}

func TestStateIsKeptAndEmptied(t *testing.T) {
	dir := bustest.Dir(t)
	b := open(t, dir)
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	last := publish(t, b, "orders", 1)
	until(t, "the checkpoint", covered(d, last))
	stop()
	d = dispatcher(b, twoSensors(t, "1"), nil)
	stop = run(d)
	p, err := d.Pending(t.Context(), "pair", 10)
	if err != nil || len(p) != 1 || len(p[0].Refs) != 1 {
		t.Fatalf("pending %+v, error %v", p, err)
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 1)))
	until(t, "the checkpoint after it", covered(d, publish(t, b, "orders", 2)))
	stop()
	keys := 0
	if err := b.State().Scan(t.Context(), "sensor.", func(bus.Entry) error { keys++; return nil }); err != nil {
		t.Fatal(err)
	}
	if keys > 2 { // the waiting order 2, and at most the tombstone of key 1
		t.Errorf("%d keys in STATE", keys)
	}
	if n := len(allJobs(t, b)); n != 3 {
		t.Errorf("%d jobs, want 3", n)
	}
}

func TestOldRulesDecideUpToTheLastFiringFound(t *testing.T) {
	b := open(t, bustest.Dir(t))
	f := &fault{Bus: b, at: 2, mode: "crash"} // the checkpoint after the firings fails
	one := compile(t, "old", map[string]*specs.Sensor{
		"each": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop"}}, Triggers: trigger()},
	})
	d := dispatcher(f, one, nil)
	stop := run(d)
	publish(t, b, "orders", 1)
	until(t, "the crash", f.down.Load)
	stop()
	publish(t, b, "orders", 2)
	d = dispatcher(b, one, nil)
	stop = run(d)
	defer func() { stop() }()
	if err := d.Swap(t.Context(), &fold.Rules{Hash: "new"}); err != nil {
		t.Fatal(err)
	}
	last := publish(t, b, "orders", 3)
	until(t, "the checkpoint", covered(d, last))
	for _, j := range allJobs(t, b) {
		if j.Last == last {
			t.Errorf("event %d was decided by the old rules", last)
		}
	}
	if hash, _, err := fold.ReadCheckpoint(t.Context(), b.State()); err != nil || hash != "new" {
		t.Errorf("rules %q in force, error %v", hash, err)
	}
}

func TestWindowExpiresByLogTime(t *testing.T) {
	b := open(t, bustest.Dir(t))
	rules := compile(t, "1", map[string]*specs.Sensor{"pair": {
		Dependencies: []specs.Dependency{{Name: "a", Source: "shop", Event: "orders"}, {Name: "b", Source: "shop", Event: "payments"}},
		Within:       specs.Duration(150 * time.Millisecond), Triggers: trigger(),
	}})
	d := dispatcher(b, rules, nil)
	stop := run(d)
	defer func() { stop() }()
	publish(t, b, "orders", 1)
	until(t, "the wait", func() bool { p, err := d.Pending(t.Context(), "", 9); return err == nil && len(p) == 1 })
	until(t, "the expiry without any event", func() bool { p, err := d.Pending(t.Context(), "", 9); return err == nil && len(p) == 0 })
	if n := d.SensorStats()["pair"].Expired; n != 1 {
		t.Errorf("%d expiries counted", n)
	}
	last := publish(t, b, "payments", 1)
	until(t, "the checkpoint", covered(d, last))
	if n := len(allJobs(t, b)); n != 0 {
		t.Errorf("%d jobs", n)
	}
	// An engine that was away finds both in the log, in time.
	stop()
	publish(t, b, "orders", 2)
	publish(t, b, "payments", 2)
	<-time.After(200 * time.Millisecond)
	d = dispatcher(b, rules, nil)
	stop = run(d)
	until(t, "the firing", func() bool { return len(allJobs(t, b)) == 1 })
}

func TestExchangedLogIsAnAlarm(t *testing.T) {
	data := bustest.Dir(t)
	b := open(t, data)
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	stop()
	var mu sync.Mutex
	alarms := map[string]bool{}
	other := &exchanged{b}
	d = dispatcher(other, twoSensors(t, "1"), func(code, _ string) {
		mu.Lock()
		defer mu.Unlock()
		alarms[code] = true
	})
	stop = run(d)
	until(t, "the fold of the new log from its beginning", func() bool { return d.Ready() && covered(d, 1)() })
	stop()
	mu.Lock()
	defer mu.Unlock()
	if !alarms["log-exchanged"] {
		t.Errorf("alarms %v", alarms)
	}
}

// exchanged is a bus whose EVENTS claims another identity.
type exchanged struct{ bus.Bus }

func (e *exchanged) Events() bus.Log { return &exchangedLog{e.Bus.Events()} }

type exchangedLog struct{ bus.Log }

func (l *exchangedLog) Info(ctx context.Context) (bus.LogInfo, error) {
	i, err := l.Log.Info(ctx)
	i.ID = "another"
	return i, err
}

// TestRestoredLogIsFoldedFromItsEnd: EVENTS comes back from an older backup, so
// numbers are given again. The new events are folded, none of them is taken for
// an old one, and state that came of missing events is gone.
func TestRestoredLogIsFoldedFromItsEnd(t *testing.T) {
	data, backup := bustest.Dir(t), filepath.Join(t.TempDir(), "EVENTS")
	stream := filepath.Join(data, "jetstream", "$G", "streams", "EVENTS")
	work := func(alarm func(code, message string), events func(b bus.Bus) uint64) {
		b := open(t, data)
		d := dispatcher(b, twoSensors(t, "1"), alarm)
		stop := run(d)
		until(t, "the fold", d.Ready)
		until(t, "the checkpoint", covered(d, events(b)))
		stop()
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	work(nil, func(b bus.Bus) uint64 {
		publish(t, b, "orders", 1) // waits for its payment
		return publish(t, b, "orders", 2)
	})
	if err := os.CopyFS(backup, os.DirFS(stream)); err != nil {
		t.Fatal(err)
	}
	work(nil, func(b bus.Bus) uint64 {
		publish(t, b, "orders", 3) // waits, and will be missing
		return publish(t, b, "orders", 4)
	})
	if err := errors.Join(os.RemoveAll(stream), os.CopyFS(stream, os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	alarms := make(chan string, 10)
	work(func(code, _ string) { alarms <- code }, func(b bus.Bus) uint64 {
		publish(t, b, "orders", 5) // has the number that 3 had
		publish(t, b, "payments", 3)
		publish(t, b, "payments", 4)
		return publish(t, b, "payments", 1)
	})
	close(alarms)
	if code := <-alarms; code != "log-shortened" {
		t.Errorf("alarm %q, want log-shortened", code)
	}
	fired := map[string]int{}
	keys := map[string]bool{}
	for _, j := range allJobs(t, open(t, data)) {
		fired[j.Sensor]++
		if keys[j.Key] {
			t.Errorf("key %s was given twice", j.Key)
		}
		keys[j.Key] = true
	}
	if fired["each"] != 5 || fired["pair"] != 1 {
		t.Errorf("fired %v, want each: 5 and pair: 1", fired)
	}
}

// TestOutageIsLoggedOnce: while the bus is away the fold tries again and again,
// and does not fill the log with it.
func TestOutageIsLoggedOnce(t *testing.T) {
	b := open(t, bustest.Dir(t))
	var out lines
	d := fold.New(fold.Options{
		Bus: &broken{b, &out.tries}, Cache: fold.NewCache(b.Events(), 1<<10, 1<<20), Rules: twoSensors(t, "1"),
		Logger: slog.New(slog.NewTextHandler(&out, nil)),
	})
	stop := run(d)
	until(t, "some tries", func() bool { return out.tries.Load() >= 5 })
	stop()
	if n := out.n.Load(); n != 1 {
		t.Errorf("%d lines of log for %d tries, want 1", n, out.tries.Load())
	}
}

// lines counts lines of a log.
type lines struct{ n, tries atomic.Int32 }

func (l *lines) Write(p []byte) (int, error) {
	l.n.Add(1)
	return len(p), nil
}

// broken is a bus whose STATE cannot be read.
type broken struct {
	bus.Bus
	tries *atomic.Int32
}

func (b *broken) State() bus.Store { return &brokenStore{b.Bus.State(), b.tries} }

type brokenStore struct {
	bus.Store
	tries *atomic.Int32
}

func (s *brokenStore) Get(context.Context, string) (bus.Entry, error) {
	s.tries.Add(1)
	return bus.Entry{}, bus.ErrUnavailable
}

func TestGapIsAnAlarmWithItsSize(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	stop()
	for i := range 5 {
		publish(t, b, "orders", 10+i)
	}
	if err := b.Events().PurgeTo(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	var message atomic.Pointer[string]
	d = dispatcher(b, twoSensors(t, "1"), func(code, m string) {
		if code == "log-gap" {
			message.Store(&m)
		}
	})
	stop = run(d)
	until(t, "the checkpoint", covered(d, 6))
	stop()
	if m := message.Load(); m == nil || (*m)[:8] != "3 events" {
		t.Errorf("alarm %v", m)
	}
}

func TestPurgeStopsAtWhatIsStillNeeded(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	defer stop()
	for i := range 4 {
		publish(t, b, "payments", 100+i) // wait for their orders: state refers to them
	}
	first := uint64(1)
	until(t, "the checkpoint", covered(d, 4))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.Purge(ctx, fold.Retention{MaxAge: time.Nanosecond, Every: 5 * time.Millisecond})
	}()
	defer func() { cancel(); <-done }()
	publish(t, b, "orders", 100) // pairs with event 1: the job refers to it now
	until(t, "the checkpoint", covered(d, 5))
	<-time.After(50 * time.Millisecond)
	if info, err := b.Events().Info(t.Context()); err != nil || info.First != first {
		t.Fatalf("first event %d, error %v: purged although a job needs it", info.First, err)
	}
	info, err := b.Jobs().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Jobs().PurgeTo(t.Context(), info.Last+1); err != nil {
		t.Fatal(err)
	}
	until(t, "the purge up to the state's first event", func() bool {
		info, err := b.Events().Info(t.Context())
		return err == nil && info.First == 2
	})
}

func TestTwoFoldsOfOneLogAreFenced(t *testing.T) {
	b := open(t, bustest.Dir(t))
	a := dispatcher(b, twoSensors(t, "1"), nil)
	stopA := run(a)
	until(t, "the first fold", covered(a, publish(t, b, "orders", 1)))
	c := dispatcher(b, twoSensors(t, "1"), nil)
	stopC := run(c)
	var last uint64
	for i := range 20 {
		last = publish(t, b, "orders", 10+i)
	}
	until(t, "both to see the end", func() bool { return covered(a, last)() && covered(c, last)() })
	stopA()
	stopC()
	seen := map[string]int{}
	for _, j := range allJobs(t, b) {
		seen[j.Key]++
	}
	if len(seen) != 21 {
		t.Errorf("%d firings, want 21", len(seen))
	}
}

func BenchmarkFold(b *testing.B) {
	bs := open(b, bustest.Dir(b))
	d := dispatcher(bs, compile(b, "1", map[string]*specs.Sensor{
		"each": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", When: expr("data.id >= 0")}}, Triggers: trigger()},
	}), nil)
	var wg sync.WaitGroup
	for i := range b.N {
		wg.Add(1)
		ev := &bus.Event{ID: fmt.Sprint(i), Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: fmt.Appendf(nil, `{"id":%d}`, i)}
		if err := bs.Events().AppendAsync(context.Background(), ev.Record(), func(bus.Ack, error) { wg.Done() }); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	b.ResetTimer()
	stop := run(d)
	until(b, "the checkpoint", covered(d, uint64(b.N)))
	stop()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
