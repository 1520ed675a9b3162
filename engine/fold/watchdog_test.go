package fold_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// alarms counts alarms by their code.
type alarms struct {
	mu   sync.Mutex
	text map[string][]string
}

func (a *alarms) raise(code, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.text == nil {
		a.text = map[string][]string{}
	}
	a.text[code] = append(a.text[code], message)
}

func (a *alarms) of(code string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.text[code]
}

// burning is a filter that uses its whole budget up; on a machine that needs
// very long for that, as one that looks for data races may, a part of it.
func burning(t *testing.T) (when string) {
	t.Helper()
	for _, n := range []int{1100, 300, 100, 30} {
		when = fmt.Sprintf("all(1..%[1]d, all(1..%[1]d, # > 0 && data.id >= 0)) && data.id < 0", n)
		rules := compile(t, "1", map[string]*specs.Sensor{"hog": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", When: expr(when)}}, Triggers: trigger()}})
		ev := &bus.Event{ID: "1", Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: []byte(`{"id":1}`), Seq: 1}
		begin := time.Now()
		rules.Sensors[0].Program.Route(sensors.NewView(ev))
		if time.Since(begin) < 100*time.Millisecond {
			break
		}
	}
	return when
}

// publishMany publishes n orders and returns the sequence of the last one.
func publishMany(t testing.TB, b bus.Bus, n int) uint64 {
	t.Helper()
	var acked sync.WaitGroup
	for i := range n {
		acked.Add(1)
		ev := &bus.Event{ID: fmt.Sprint(i), Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: fmt.Appendf(nil, `{"id":%d}`, i)}
		if err := b.Events().AppendAsync(context.Background(), ev.Record(), func(bus.Ack, error) { acked.Done() }); err != nil {
			t.Fatal(err)
		}
	}
	acked.Wait()
	info, err := b.Events().Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return info.Last
}

// TestHogIsQuarantined: a sensor whose expression burns its whole budget on
// each event is paused; others are done soon, and nothing is lost for it.
func TestHogIsQuarantined(t *testing.T) {
	rules := func(hash, when string) *fold.Rules {
		return compile(t, hash, map[string]*specs.Sensor{
			"good": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr("data.id >= 0")}}, Triggers: trigger()},
			"hog":  {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr(when)}}, Triggers: trigger()},
		})
	}
	b := open(t, bustest.Dir(t))
	var told alarms
	w := &worker{b: b}
	d := fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 16, 1<<20), Logger: quiet(), Rules: rules("1", burning(t)), Alarm: told.raise,
	})
	stop := run(d)
	defer func() { stop() }()
	const n = 3000
	last := publishMany(t, b, n)
	until(t, "the quarantine", func() bool { return d.Behind()["hog"].Pause != nil })
	until(t, "the good sensor", covered(d, last))
	p := d.Behind()["hog"]
	if p.Pause.By != fold.ByWatchdog || !strings.Contains(p.Pause.Reason, "its evaluation took") || p.Position == 0 || p.Position >= n {
		t.Errorf("%+v, %+v", p, p.Pause)
	}
	if got := told.of("sensor-quarantined"); len(got) != 1 || !strings.Contains(got[0], "sensor hog ") {
		t.Errorf("alarms %v", got)
	}
	if st := d.SensorStats(); st["hog"].Quarantines != 1 || st["good"].Quarantines != 0 || st["good"].Fired != n {
		t.Errorf("%+v", st)
	}
	// It stays paused over an edit, and its new version sees what it has not.
	if err := d.Swap(t.Context(), rules("2", "data.id % 2 == 0")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Resume(t.Context(), "hog", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the catching up", none(d))
	stop()
	stop = func() {}
	got := map[string]int{}
	for _, f := range w.all(t) {
		got[f[:strings.IndexByte(f, '.')]]++
	}
	if want := int(n-p.Position) / 2; got["good"] != n || got["hog"] < want-1 || got["hog"] > want+1 {
		t.Errorf("fired %v, want %d of good and %d of hog", got, n, want)
	}
}

// TestBusySensorIsNoHog: one that is asked for many events and is quick with
// each is not paused, nor one that is asked first for large payloads.
func TestBusySensorIsNoHog(t *testing.T) {
	b := open(t, bustest.Dir(t))
	var told alarms
	d := fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 16, 1<<20), Logger: quiet(), Alarm: told.raise,
		Rules: compile(t, "1", map[string]*specs.Sensor{
			"large": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr("data.id >= 0")}}, Triggers: trigger()},
		}),
	})
	defer run(d)()
	data := []byte(`{"id":1,"list":[` + strings.Repeat(`{"a":[1,2,3],"b":"text"},`, 20_000) + `1]}`)
	var last uint64
	for begin := time.Now(); time.Since(begin) < 3*time.Second; {
		ev := &bus.Event{ID: "1", Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: data}
		a, err := b.Events().Append(t.Context(), ev.Record())
		if err != nil {
			t.Fatal(err)
		}
		last = a.Seq
	}
	until(t, "the checkpoint", covered(d, last))
	if p := d.Behind(); len(p) > 0 || len(told.of("sensor-quarantined")) > 0 {
		t.Errorf("%+v, %v", p, told.of("sensor-quarantined"))
	}
}

// TestPanicIsQuarantined: a sensor whose evaluation panics is paused behind
// what it has decided; nobody loses an event, and it fires everything when it is
// resumed.
func TestPanicIsQuarantined(t *testing.T) {
	b := open(t, bustest.Dir(t))
	var told alarms
	w := &worker{b: b}
	d := fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 16, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1"), Alarm: told.raise, Covered: w.covered,
	})
	stop := run(d)
	publish(t, b, "orders", 1)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 2)))
	for i, again := range []bool{false, true} {
		if err := d.Sabotage(t.Context(), "pair", again); err != nil {
			t.Fatal(err)
		}
		publish(t, b, "payments", i+1)
		until(t, "the checkpoint", covered(d, publish(t, b, "orders", 10+i)))
		p := d.Behind()["pair"]
		if p.Pause == nil || p.Pause.By != fold.ByWatchdog || !strings.HasPrefix(p.Pause.Reason, "it panicked at event ") || p.Position != uint64(2+3*i) {
			t.Fatalf("%+v, %+v", p, p.Pause)
		}
		if n := d.SensorStats()["pair"].Quarantines; n != uint64(i+1) || len(told.of("sensor-quarantined")) != i+1 {
			t.Errorf("%d quarantines, %v", n, told.of("sensor-quarantined"))
		}
		if _, err := d.Resume(t.Context(), "pair", false); err != nil {
			t.Fatal(err)
		}
		until(t, "the end of the catching up", none(d))
		until(t, "the checkpoint", covered(d, publish(t, b, "orders", 20+i))) // which says so
	}
	// And when it is behind.
	if err := d.Pause(t.Context(), "pair", ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Sabotage(t.Context(), "pair", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 20)))
	if _, err := d.Resume(t.Context(), "pair", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the quarantine", func() bool { p := d.Behind()["pair"].Pause; return p != nil && p.By == fold.ByWatchdog })
	if _, err := d.Resume(t.Context(), "pair", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the catching up", none(d))
	stop()
	got := map[string]int{}
	for _, f := range w.all(t) {
		got[f[:strings.IndexByte(f, '.')]]++
	}
	if got["each"] != 6 || got["pair"] != 3 {
		t.Errorf("fired %v, want each: 6 and pair: 3", got)
	}
}

// TestPanicWhileItStops: a fold that is stopped while it evaluates an event does
// not say that it has, when a sensor panics.
func TestPanicWhileItStops(t *testing.T) {
	b := open(t, bustest.Dir(t))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	log := &stopping{Log: b.Events(), stop: stop}
	d := dispatcher(&stoppingBus{b, log}, twoSensors(t, "1"), nil)
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	if err := d.Sabotage(t.Context(), "each", false); err != nil {
		t.Fatal(err)
	}
	log.armed.Store(true)
	last := publish(t, b, "orders", 2)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, c := d.Position(); c >= last {
		t.Errorf("the checkpoint covers event %d, which was not evaluated", c)
	}
	d = dispatcher(b, twoSensors(t, "1"), nil)
	halt := run(d)
	until(t, "the checkpoint", covered(d, last))
	halt()
	if n := len(allJobs(t, b)); n != 2 {
		t.Errorf("%d firings, want 2", n)
	}
}

// stoppingBus has events whose readers stop the fold when they give one.
type stoppingBus struct {
	bus.Bus
	log bus.Log
}

func (b *stoppingBus) Events() bus.Log { return b.log }

type stopping struct {
	bus.Log
	stop  func()
	armed atomic.Bool
}

func (l *stopping) Read(ctx context.Context, from uint64, filter string) (bus.Reader, error) {
	r, err := l.Log.Read(ctx, from, filter)
	return &stoppingReader{r, l}, err
}

type stoppingReader struct {
	bus.Reader
	log *stopping
}

func (r *stoppingReader) Next(ctx context.Context, most int) ([]bus.Record, error) {
	recs, err := r.Reader.Next(ctx, most)
	if err == nil && r.log.armed.Load() {
		r.log.stop()
	}
	return recs, err
}
