package fold_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
)

// timed is a bus whose event n was stored n times ten seconds after a start that
// is still to come: so that only events let time pass.
func timed(b bus.Bus, start time.Time) *bustest.Past {
	past := &bustest.Past{Bus: b}
	for n := range time.Duration(1000) {
		past.Times = append(past.Times, start.Add((n+1)*10*time.Second))
	}
	return past
}

// worker takes jobs out of JOBS as soon as they may leave it, and notes them.
type worker struct {
	b    bus.Bus
	mu   sync.Mutex
	jobs []*jobs.Job
}

// covered lets what the checkpoint covers leave.
func (w *worker) covered(position, job uint64) {
	ctx := context.Background()
	for from := uint64(1); ; {
		recs, err := w.b.Jobs().GetBatch(ctx, from, 256, 1<<20)
		if err != nil {
			return // none are left
		}
		for _, r := range recs {
			from = r.Seq + 1
			j, err := jobs.DecodeJob(r.Data)
			if err != nil {
				panic(err)
			}
			if j.Position > position || j.Trailing && r.Seq > job {
				continue
			}
			if err := w.b.Jobs().Delete(ctx, r.Seq); err != nil {
				panic(err)
			}
			w.mu.Lock()
			w.jobs = append(w.jobs, j)
			w.mu.Unlock()
		}
	}
}

// all are the firings, those that have left and those that have not, in order.
func (w *worker) all(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, j := range append(allJobs(t, w.b), w.jobs...) {
		out = append(out, describe(j))
	}
	slices.Sort(out)
	return out
}

func describe(j *jobs.Job) string {
	return fmt.Sprintf("%s.%s %s at %s of %v", j.Sensor, j.Trigger, j.Correlation, j.Time.UTC().Format("15:04:05.000"), j.Events)
}

// story is sensors whose firings depend on order and time in every way.
func story(t testing.TB, hash string, names ...string) *fold.Rules {
	order := specs.Dependency{Name: "order", Source: "shop", Event: "orders"}
	payment := specs.Dependency{Name: "payment", Source: "shop", Event: "payments"}
	absent := payment
	absent.Absent = &specs.Absent{For: specs.Duration(25 * time.Second), After: "order"}
	cool := trigger()
	cool[0].Cooldown = specs.Duration(35 * time.Second)
	all := map[string]*specs.Sensor{
		"each":   {Dependencies: []specs.Dependency{order}, Triggers: trigger()},
		"pair":   {Dependencies: []specs.Dependency{order, payment}, Correlate: expr("data.id"), Triggers: trigger()},
		"window": {Dependencies: []specs.Dependency{order, payment}, Within: specs.Duration(45 * time.Second), Triggers: trigger()},
		"unpaid": {Dependencies: []specs.Dependency{order, absent}, Correlate: expr("data.id"), Triggers: trigger()},
		"cool":   {Dependencies: []specs.Dependency{payment}, Correlate: expr("data.id % 2"), Triggers: cool},
		"few":    {Dependencies: []specs.Dependency{order, payment}, Correlate: expr("data.id"), Limits: &specs.StateLimits{Keys: 2}, Triggers: trigger()},
	}
	maps.DeleteFunc(all, func(name string, _ *specs.Sensor) bool { return len(names) > 0 && !slices.Contains(names, name) })
	return compile(t, hash, all)
}

// publishRandom publishes n events.
func publishRandom(t testing.TB, b bus.Bus, rng *rand.Rand, n int) (last uint64) {
	t.Helper()
	for range n {
		last = publish(t, b, []string{"orders", "payments"}[rng.IntN(2)], rng.IntN(5))
	}
	return last
}

// expected are the firings of sensors that were there all along.
func expected(t testing.TB, start time.Time, rules *fold.Rules, events func(b bus.Bus) uint64) []string {
	t.Helper()
	b := timed(open(t, bustest.Dir(t)), start)
	last := events(b)
	d := dispatcher(b, rules, nil)
	stop := run(d)
	until(t, "the checkpoint", covered(d, last))
	stop()
	w := worker{b: b}
	return w.all(t)
}

// none reports whether no sensor is behind.
func none(d *fold.Dispatcher) func() bool {
	return func() bool { return d.Ready() && len(d.Behind()) == 0 }
}

// difference is what two sorted lists do not have in common.
func difference(got, want []string) string {
	count := map[string]int{}
	for _, s := range got {
		count[s]++
	}
	for _, s := range want {
		count[s]--
	}
	var out []string
	for s, n := range count {
		if n != 0 {
			out = append(out, fmt.Sprintf("%+d %s", n, s))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if d := difference(got, want); d != "" || len(want) == 0 {
		t.Errorf("%d firings, want %d; more (+) or fewer (-) than if nobody had ever been behind:\n%s", len(got), len(want), d)
	}
}

// TestPausedSensorCatchesUp: it keeps state and position over a restart,
// evaluates nothing meanwhile, and then everything, while others go on.
func TestPausedSensorCatchesUp(t *testing.T) {
	start := time.Now().Add(time.Hour)
	seed := func() *rand.Rand { return rand.New(rand.NewPCG(1, 1)) }
	want := expected(t, start, story(t, "1"), func(b bus.Bus) uint64 { return publishRandom(t, b, seed(), 120) })
	b, rng := timed(open(t, bustest.Dir(t)), start), seed()
	w := &worker{b: b}
	options := func() fold.Options {
		return fold.Options{
			Bus: b, Cache: fold.NewCache(b.Events(), 8, 1<<20), Logger: quiet(), Rules: story(t, "1"), BatchSize: 7, Covered: w.covered,
			Alarm: func(code, message string) {
				if code != "state-evicted" {
					t.Error(code, message)
				}
			},
		}
	}
	d := fold.New(options())
	stop := run(d)
	until(t, "the checkpoint", covered(d, publishRandom(t, b, rng, 30)))
	if err := d.Pause(t.Context(), "nobody", ""); !errors.Is(err, fold.ErrNoSensor) {
		t.Errorf("pausing nobody: %v", err)
	}
	if _, err := d.Resume(t.Context(), "pair", false); !errors.Is(err, fold.ErrNotPaused) {
		t.Errorf("resuming what is not paused: %v", err)
	}
	for _, name := range []string{"pair", "unpaid", "each"} {
		if err := d.Pause(t.Context(), name, "to see "+name); err != nil {
			t.Fatal(err)
		}
		until(t, "the checkpoint", covered(d, publishRandom(t, b, rng, 10)))
	}
	since := d.Behind()
	for name, want := range map[string]fold.Behind{
		"pair":   {Position: 30, Events: 30, Pause: &fold.Pause{By: fold.ByPerson, Reason: "to see pair"}},
		"unpaid": {Position: 40, Events: 20, Pause: &fold.Pause{By: fold.ByPerson, Reason: "to see unpaid"}},
		"each":   {Position: 50, Events: 10, Pause: &fold.Pause{By: fold.ByPerson, Reason: "to see each"}},
	} {
		got := since[name]
		if got.Pause == nil || time.Since(got.Pause.Since) > time.Minute {
			t.Fatalf("%s: %+v", name, got)
		}
		if !got.Time.Equal(b.Times[want.Position-1]) || got.Position != want.Position || got.Events != want.Events || got.Pause.Reason != want.Pause.Reason || got.Pause.By != want.Pause.By {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
	if err := d.Pause(t.Context(), "pair", "again"); err != nil || d.Behind()["pair"].Pause.Reason != "to see pair" {
		t.Errorf("paused twice: %+v, %v", d.Behind()["pair"], err)
	}
	stop()
	d = fold.New(options())
	stop = run(d)
	until(t, "the checkpoint", covered(d, publishRandom(t, b, rng, 20)))
	for name, was := range since {
		is := d.Behind()[name]
		if is.Pause == nil || is.Position != was.Position || !is.Pause.Since.Equal(was.Pause.Since) || is.Events != was.Events+20 || is.Pause.Reason != was.Pause.Reason {
			t.Errorf("%s is %+v after a restart, was %+v", name, is, was)
		}
	}
	for _, name := range []string{"each", "unpaid", "pair"} {
		if skipped, err := d.Resume(t.Context(), name, false); err != nil || skipped != 0 {
			t.Fatal(skipped, err)
		}
	}
	last := publishRandom(t, b, rng, 40)
	until(t, "the checkpoint", covered(d, last))
	until(t, "the end of the catching up", none(d))
	stop()
	same(t, w.all(t), want)
}

// TestSkip: a sensor that is resumed with skip keeps what waits and does not
// see what was stored meanwhile.
func TestSkip(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	for _, name := range []string{"each", "pair"} {
		if err := d.Pause(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, b, "orders", 2)
	publish(t, b, "payments", 2)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 3)))
	for _, name := range []string{"each", "pair"} {
		if skipped, err := d.Resume(t.Context(), name, true); err != nil || skipped != 3 {
			t.Errorf("%s skipped %d, %v", name, skipped, err)
		}
	}
	until(t, "the end of the catching up", none(d))
	publish(t, b, "payments", 3)
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 1)))
	stop()
	var got []string
	for _, j := range allJobs(t, b) {
		got = append(got, fmt.Sprint(j.Sensor, j.Events))
	}
	if fmt.Sprint(got) != "[each[{order 1 0 0}] pair[{order 1 0 0} {payment 6 0 0}]]" {
		t.Errorf("fired %v", got)
	}
}

// TestFrom: a new sensor begins with the event its spec says, once.
func TestFrom(t *testing.T) {
	start := time.Now().Add(time.Hour)
	b := timed(open(t, bustest.Dir(t)), start)
	w := &worker{b: b}
	at := func(n int, more time.Duration) specs.From {
		return specs.From(b.Times[n-1].Add(more).Format(time.RFC3339Nano))
	}
	rules := func(hash string, from map[string]specs.From) *fold.Rules {
		list := map[string]*specs.Sensor{}
		for name := range from {
			list[name] = &specs.Sensor{Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}}, Triggers: trigger()}
		}
		r := compile(t, hash, list)
		r.From = from
		return r
	}
	dispatch := func(r *fold.Rules) (*fold.Dispatcher, func()) {
		d := fold.New(fold.Options{
			Bus: b, Cache: fold.NewCache(b.Events(), 4, 1<<20), Logger: quiet(), Rules: r, BatchSize: 2, Covered: w.covered,
			Alarm: func(code, message string) { t.Error(code, message) },
		})
		return d, run(d)
	}
	for i := range 10 {
		publish(t, b, "orders", i)
	}
	// Nobody has folded this log: all begin with its first event, if they do not
	// begin at a time.
	first := map[string]specs.From{"a": "", "a-now": specs.FromNow, "a-earliest": specs.FromEarliest, "a-time": at(5, 0)}
	d, stop := dispatch(rules("1", first))
	until(t, "the checkpoint", covered(d, 10))
	until(t, "the end of the catching up", none(d))
	all := maps.Clone(first)
	maps.Copy(all, map[string]specs.From{
		"b": "", "b-earliest": specs.FromEarliest, "b-time": at(4, 0), "b-between": at(4, time.Second), "b-later": at(13, -time.Second), "b-never": at(900, 0),
	})
	if err := d.Swap(t.Context(), rules("2", all)); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the catching up", func() bool { return len(d.Behind()) == 2 })
	for name, b := range d.Behind() {
		if b.From != all[name] || b.Pause != nil || b.Events != 0 {
			t.Errorf("%s is %+v", name, b)
		}
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 11)))
	// One that has not begun may be paused, too, and a restart is no beginning.
	if err := d.Pause(t.Context(), "b-later", ""); err != nil {
		t.Fatal(err)
	}
	stop()
	d, stop = dispatch(rules("2", all))
	for i := range 5 {
		publish(t, b, "orders", 12+i)
	}
	until(t, "the checkpoint", covered(d, 16))
	if b := d.Behind()["b-later"]; b.Pause == nil || b.From == "" {
		t.Errorf("b-later is %+v", b)
	}
	if _, err := d.Resume(t.Context(), "b-later", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the catching up", func() bool { return len(d.Behind()) == 1 })
	// Skipped, it begins with the next.
	if err := d.Pause(t.Context(), "b-never", ""); err != nil {
		t.Fatal(err)
	}
	if skipped, err := d.Resume(t.Context(), "b-never", true); err != nil || skipped != 0 {
		t.Error(skipped, err)
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 17)))
	until(t, "the end of the catching up", none(d))
	stop()
	begin := map[string]uint64{}
	count := map[string]uint64{}
	for _, j := range append(allJobs(t, b), w.jobs...) {
		if count[j.Sensor]++; begin[j.Sensor] == 0 || j.Last < begin[j.Sensor] {
			begin[j.Sensor] = j.Last
		}
	}
	want := map[string]uint64{
		"a": 1, "a-now": 1, "a-earliest": 1, "a-time": 5, "b": 11, "b-earliest": 1, "b-time": 4, "b-between": 5, "b-later": 13, "b-never": 17,
	}
	for name := range all {
		if begin[name] != want[name] || count[name] != 18-want[name] {
			t.Errorf("%s begins with %d and fires %d times, want %d", name, begin[name], count[name], want[name])
		}
	}
}

// TestEditsOfThoseBehind: state is kept or dropped as ever, the place stays, and
// one that is removed leaves nothing.
func TestEditsOfThoseBehind(t *testing.T) {
	b := open(t, bustest.Dir(t))
	rules := func(hash, when string, names ...string) *fold.Rules {
		list := map[string]*specs.Sensor{"each": {Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}}, Triggers: trigger()}}
		for _, name := range names {
			list[name] = &specs.Sensor{
				Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr(when)}, {Name: "payment", Source: "shop", Event: "payments"}},
				Correlate:    expr("data.id"), Triggers: trigger(),
			}
		}
		return compile(t, hash, list)
	}
	d := dispatcher(b, rules("1", "data.id > 0", "kept", "changed", "removed"), nil)
	stop := run(d)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	for _, name := range []string{"kept", "changed", "removed"} {
		if err := d.Pause(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 1)))
	both := rules("2", "data.id > 0", "kept")
	both.Sensors = append(both.Sensors, rules("3", "data.id >= 1", "changed").Sensors...)
	both.Sensors = slices.DeleteFunc(both.Sensors, func(s fold.Sensor) bool { return s.Name == "each" && s.Hash == "3" })
	if err := d.Swap(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if at := d.Behind(); len(at) != 2 || at["kept"].Position != 1 || at["changed"].Position != 1 {
		t.Errorf("behind: %+v", at)
	}
	stop()
	d = dispatcher(b, both, nil)
	stop = run(d)
	waiting := func(name string) int {
		p, err := d.Pending(t.Context(), name, 9)
		if err != nil {
			t.Fatal(err)
		}
		return len(p)
	}
	if kept, changed, removed := waiting("kept"), waiting("changed"), waiting("removed"); kept != 1 || changed != 0 || removed != 0 {
		t.Errorf("%d keys wait in kept, %d in changed, %d in removed", kept, changed, removed)
	}
	for _, name := range []string{"kept", "changed"} {
		if _, err := d.Resume(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the end of the catching up", none(d))
	stop()
	got := map[string]int{}
	for _, j := range allJobs(t, b) {
		got[j.Sensor+" "+j.SpecHash]++
	}
	if len(got) != 2 || got["each 1"] != 1 || got["kept 2"] != 1 {
		t.Errorf("fired %v", got)
	}
}

// TestPurgeAndThoseBehind: who is paused does not hold the log, which is an
// alarm; who catches up does. What is gone is an alarm with its size, and the
// sensor goes on with the first event that is left.
func TestPurgeAndThoseBehind(t *testing.T) {
	b := open(t, bustest.Dir(t))
	gate := &gatedBus{b, make(chan struct{})}
	var told alarms
	d := fold.New(fold.Options{Bus: gate, Cache: fold.NewCache(b.Events(), 1, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1"), Alarm: told.raise})
	stop := run(d)
	defer func() { stop() }()
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	for _, name := range []string{"each", "pair"} {
		if err := d.Pause(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	var last uint64
	for i := range 9 {
		last = publish(t, b, "orders", 2+i)
	}
	until(t, "the checkpoint", covered(d, last))
	ctx, cancel := context.WithCancel(t.Context())
	var purging sync.WaitGroup
	purging.Go(func() { _ = d.Purge(ctx, fold.Retention{MaxAge: time.Nanosecond, Every: 5 * time.Millisecond}) })
	defer func() { cancel(); purging.Wait() }()
	first := func() uint64 {
		info, err := b.Events().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.First
	}
	// pair waits with event 1, and each has fired it.
	<-time.After(50 * time.Millisecond)
	if n := first(); n != 1 {
		t.Fatalf("the first event is %d although a sensor that is paused waits with 1", n)
	}
	if err := b.Jobs().PurgeTo(t.Context(), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := d.Swap(t.Context(), story(t, "2", "each")); err != nil { // without pair
		t.Fatal(err)
	}
	until(t, "the purge", func() bool { return first() == last+1 })
	until(t, "the alarm", func() bool { return len(told.of("sensor-missed-events")) > 0 })
	if m := told.of("sensor-missed-events"); len(m) != 1 || !strings.Contains(m[0], "sensor each is paused behind event 1, and 9 events after it were purged") {
		t.Errorf("alarms %q", m)
	}
	last = publish(t, b, "orders", 20)
	until(t, "the checkpoint", covered(d, last))
	until(t, "what is removed", func() bool { return d.Behind()["each"].Removed >= 9 })
	if _, err := d.Resume(t.Context(), "each", false); err != nil {
		t.Fatal(err)
	}
	// It cannot read yet: what it is about to read stays.
	for i := range 5 {
		last = publish(t, b, "orders", 30+i)
	}
	until(t, "the checkpoint", covered(d, last))
	held := first()
	<-time.After(50 * time.Millisecond)
	if n := first(); n != held || n > 12 {
		t.Errorf("the first event was %d, and is %d, although a sensor that catches up has not read it", held, n)
	}
	close(gate.open)
	until(t, "the end of the catching up", none(d))
	if m := told.of("sensor-missed-events"); len(m) != 2 || !strings.HasPrefix(m[1], fmt.Sprintf("%d events (2 to %d) were removed", held-2, held-1)) {
		t.Errorf("alarms %q, the first event was %d", m, held)
	}
	until(t, "the firings", func() bool {
		info, err := b.Jobs().Info(t.Context())
		return err == nil && info.Records == last-held+1
	})
}

// fullBus is a bus whose JOBS says that it is nearly full, as long as it is told
// so.
type fullBus struct {
	bus.Bus
	full *atomic.Bool
}

func (b *fullBus) Jobs() bus.Queue { return &fullQueue{b.Bus.Jobs(), b.full} }

type fullQueue struct {
	bus.Queue
	full *atomic.Bool
}

func (q *fullQueue) Info(ctx context.Context) (bus.LogInfo, error) {
	info, err := q.Queue.Info(ctx)
	if info.MaxBytes = 1000; q.full.Load() {
		info.Bytes = 501
	}
	return info, err
}

// TestFullJobsAndThoseBehind: who catches up waits while JOBS is more than half
// full, others do not.
func TestFullJobsAndThoseBehind(t *testing.T) {
	b := &fullBus{open(t, bustest.Dir(t)), new(atomic.Bool)}
	b.full.Store(true)
	d := fold.New(fold.Options{Bus: b, Cache: fold.NewCache(b.Events(), 1, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1")})
	stop := run(d)
	defer func() { stop() }()
	until(t, "the fold", d.Ready)
	if err := d.Pause(t.Context(), "each", ""); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "orders", 1)
	last := publish(t, b, "orders", 2)
	until(t, "the checkpoint", covered(d, last))
	if _, err := d.Resume(t.Context(), "each", false); err != nil {
		t.Fatal(err)
	}
	publish(t, b, "payments", 1)
	publish(t, b, "payments", 2)
	until(t, "those in time", func() bool { return len(allJobs(t, b)) == 2 })
	<-time.After(50 * time.Millisecond)
	if at := d.Behind()["each"]; at.Position > 0 || len(allJobs(t, b)) != 2 {
		t.Errorf("it is at %d of %d", at.Position, last)
	}
	b.full.Store(false)
	until(t, "the end of the catching up", none(d))
	until(t, "its firings", func() bool { return len(allJobs(t, b)) == 4 })
}

// TestLogsAndThoseBehind: a log that is another one, or ends earlier, is folded
// by those behind from its beginning or its end.
func TestLogsAndThoseBehind(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := dispatcher(b, twoSensors(t, "1"), nil)
	stop := run(d)
	publish(t, b, "orders", 1)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 2)))
	if err := d.Pause(t.Context(), "each", "why"); err != nil {
		t.Fatal(err)
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 3)))
	stop()
	other := &exchanged{b}
	d = dispatcher(other, twoSensors(t, "1"), nil)
	stop = run(d)
	until(t, "the fold", covered(d, 3))
	if at := d.Behind()["each"]; at.Position != 0 || at.Pause == nil || at.Pause.Reason != "why" || at.Events != 3 {
		t.Errorf("each is %+v", at)
	}
	if _, err := d.Resume(t.Context(), "each", false); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the catching up", none(d))
	stop()
	if n := len(allJobs(t, b)); n != 5 { // 1 and 2 of the log before, 1 to 3 of this one
		t.Errorf("%d jobs, want 5", n)
	}
}

// TestRoomInTheCheckpoint: so many sensors cannot be paused that the checkpoint
// becomes too large.
func TestRoomInTheCheckpoint(t *testing.T) {
	b := &smallBus{open(t, bustest.Dir(t))}
	var told alarms
	rules := twoSensors(t, "1")
	d := dispatcher(b, rules, told.raise)
	defer run(d)()
	if err := d.Pause(t.Context(), "each", "short"); err != nil {
		t.Fatal(err)
	}
	if err := d.Pause(t.Context(), "pair", strings.Repeat("x", 200)); !errors.Is(err, fold.ErrTooManyBehind) {
		t.Errorf("paused: %v", err)
	}
	more := story(t, "2")
	more.From = map[string]specs.From{"cool": specs.FromEarliest, "window": specs.FromEarliest}
	if err := d.Swap(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	if got := told.of("from-ignored"); len(got) != 1 {
		t.Errorf("alarms %v", got)
	}
}

// smallBus takes only small records.
type smallBus struct{ bus.Bus }

func (*smallBus) MaxPayload() int { return 1000 }

// script runs a fold through pauses, resumptions, sensors that begin earlier
// and rules that change, whatever the bus does, and returns what it fired.
type script struct {
	t     *testing.T
	b     bus.Bus
	w     *worker
	d     *fold.Dispatcher
	stop  func()
	rules map[string]*fold.Rules // by hash
	f     *fault
	again []int64 // further crashes, by their write
}

// start runs a fold with the rules that are in force, or the first ones.
func (s *script) start(b bus.Bus) {
	hash, _, err := fold.ReadCheckpoint(s.t.Context(), s.b.State())
	if err != nil {
		s.t.Fatal(err)
	}
	if hash == "" {
		hash = "1"
	}
	s.d = fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 8, 1<<20), Logger: quiet(), Rules: s.rules[hash], BatchSize: 7, Covered: s.w.covered,
		Alarm: func(code, message string) {
			if code != "sensor-quarantined" && code != "state-evicted" {
				s.t.Error(code, message)
			}
		},
	})
	s.stop = run(s.d)
}

// crashed begins again behind a crash.
func (s *script) crashed() {
	if s.f == nil || !s.f.down.Load() {
		return
	}
	s.stop()
	if s.f = nil; len(s.again) == 0 {
		s.start(s.b)
		return
	}
	s.f = &fault{Bus: s.b, at: s.again[0], mode: "crash"}
	s.again = s.again[1:]
	s.start(s.f)
}

// insist calls until it works.
func (s *script) insist(what string, fn func(ctx context.Context) error) {
	s.t.Helper()
	until(s.t, what, func() bool {
		s.crashed()
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		if f := s.f; f != nil && f.mode == "crash" {
			stop := make(chan struct{})
			defer close(stop)
			go func() { // nobody answers behind a crash
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						if f.down.Load() {
							cancel()
							return
						}
					}
				}
			}()
		}
		defer cancel()
		err := fn(ctx)
		return err == nil || errors.Is(err, fold.ErrNotPaused)
	})
}

func (s *script) pause(name string) {
	s.t.Helper()
	s.insist("the pause of "+name, func(ctx context.Context) error { return s.d.Pause(ctx, name, "script") })
}

func (s *script) resume(name string) {
	s.t.Helper()
	s.insist("the resumption of "+name, func(ctx context.Context) error { _, err := s.d.Resume(ctx, name, false); return err })
}

// sabotage lets a sensor panic the next time it fires.
func (s *script) sabotage(name string) {
	s.t.Helper()
	s.insist("the sabotage of "+name, func(ctx context.Context) error {
		if err := s.d.Sabotage(ctx, name, false); !errors.Is(err, fold.ErrNoSensor) {
			return err
		}
		return nil
	})
}

func (s *script) swap(hash string) {
	s.t.Helper()
	s.insist("the rules "+hash, func(ctx context.Context) error { return s.d.Swap(ctx, s.rules[hash]) })
}

func (s *script) await(what string, ok func(d *fold.Dispatcher) bool) {
	s.t.Helper()
	until(s.t, what, func() bool { s.crashed(); return ok(s.d) })
}

func (s *script) covered(last uint64) {
	s.t.Helper()
	s.await("the checkpoint", func(d *fold.Dispatcher) bool { return covered(d, last)() })
}

// end lets everybody catch up and stops. Then nobody waits for a deadline that
// has passed.
func (s *script) end() {
	s.t.Helper()
	s.await("the end of the catching up", func(d *fold.Dispatcher) bool { return none(d)() })
	s.stop() // perhaps at a write that fails
	s.start(s.b)
	until(s.t, "the end of the catching up", none(s.d))
	until(s.t, "the deadlines", func() bool {
		p, err := s.d.Pending(s.t.Context(), "", 1000)
		return err == nil && !slices.ContainsFunc(p, func(p fold.Pending) bool { return !p.Wake.IsZero() && p.Wake.Before(time.Now()) })
	})
	s.stop()
}

// TestEveryFiringOfThoseBehindIsEnqueuedExactlyOnce fails each write in turn,
// in three ways, crashes of which are followed by others, while sensors are paused, resumed, come newly into force from
// the first event on, and catch up, several at once and while events come. What
// may leave JOBS leaves it at once.
func TestEveryFiringOfThoseBehindIsEnqueuedExactlyOnce(t *testing.T) {
	t.Parallel()
	start := time.Now().Add(time.Hour)
	seed := func() *rand.Rand { return rand.New(rand.NewPCG(2, 7)) }
	counts := []int{6, 8, 8, 3, 6, 10, 5}
	want := expected(t, start, story(t, "1"), func(b bus.Bus) (last uint64) {
		rng := seed()
		for _, n := range counts {
			last = publishRandom(t, b, rng, n)
		}
		return last
	})
	eachWrite(t, 7, func(t *testing.T, mode string, at int64) bool {
		b, rng := timed(open(t, bustest.Dir(t)), start), seed()
		f := &fault{Bus: b, at: at, mode: mode}
		two := story(t, "2")
		two.From = map[string]specs.From{"window": specs.FromEarliest, "unpaid": specs.FromEarliest}
		s := &script{t: t, b: b, w: &worker{b: b}, f: f, again: []int64{1 + at%7, 1 + at%5, 1 + at%3}, rules: map[string]*fold.Rules{"1": story(t, "1", "each", "pair", "cool", "few"), "2": two}}
		s.start(f)
		s.covered(publishRandom(t, b, rng, counts[0]))
		s.pause("pair")
		s.pause("few")
		s.covered(publishRandom(t, b, rng, counts[1]))
		s.pause("each")
		s.swap("2")
		publishRandom(t, b, rng, counts[2])
		s.resume("pair")
		publishRandom(t, b, rng, counts[3])
		s.pause("unpaid") // perhaps while it catches up
		s.resume("each")
		s.resume("few")
		s.sabotage("cool")
		s.covered(publishRandom(t, b, rng, counts[4]))
		s.resume("unpaid")
		s.sabotage("pair") // perhaps while it catches up
		s.covered(publishRandom(t, b, rng, counts[5]))
		s.covered(publishRandom(t, b, rng, counts[6]))
		s.resume("cool")
		s.resume("pair")
		s.end()
		same(t, s.w.all(t), want)
		return f.fired.Load()
	})
}

// TestBehindLikeAllAlong pauses, resumes, restarts and breaks a fold at random.
func TestBehindLikeAllAlong(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 4
	}
	start := time.Now().Add(time.Hour)
	each(t, rounds, func(t *testing.T, round int) {
		names := []string{"each", "pair", "window", "unpaid", "cool", "few"}
		rng := rand.New(rand.NewPCG(3, uint64(round)))
		b := timed(open(t, bustest.Dir(t)), start)
		s := &script{t: t, b: b, w: &worker{b: b}, rules: map[string]*fold.Rules{}}
		// One sensor after the other comes into force, from the first event on.
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for i := range names {
			r := story(t, fmt.Sprint(i+1), names[:i+1]...)
			r.From = map[string]specs.From{}
			for _, name := range names {
				r.From[name] = specs.FromEarliest
			}
			s.rules[r.Hash] = r
		}
		in := 1
		s.start(b)
		var last uint64
		total := 0
		for range 25 {
			switch rng.IntN(9) {
			case 0, 1:
				n := rng.IntN(12)
				if total += n; n > 0 {
					last = publishRandom(t, b, rng, n)
				}
			case 2:
				s.pause(names[rng.IntN(in)])
			case 3:
				s.resume(names[rng.IntN(in)])
			case 4:
				if in < len(names) {
					in++
					s.swap(fmt.Sprint(in))
				}
			case 5:
				s.covered(last)
			case 6: // stopped, or killed at one of the next writes
				s.stop()
				s.f = nil
				if rng.IntN(3) == 0 {
					s.start(b)
					break
				}
				s.f = &fault{Bus: b, at: 1 + rng.Int64N(20), mode: []string{"before", "after", "crash", "crash"}[rng.IntN(4)]}
				s.start(s.f)
			case 7:
				s.sabotage(names[rng.IntN(in)])
			case 8:
				<-time.After(time.Duration(rng.IntN(5)) * time.Millisecond)
			}
		}
		for in < len(names) {
			in++
			s.swap(fmt.Sprint(in))
		}
		last = publish(t, b, "orders", 99)
		s.covered(last)
		s.await("the end of the catching up", func(d *fold.Dispatcher) bool {
			for _, name := range names { // it may panic meanwhile
				s.resume(name)
			}
			return none(d)()
		})
		s.end()
		want := expected(t, start, s.rules[fmt.Sprint(len(names))], func(copied bus.Bus) uint64 {
			for seq := uint64(1); seq <= last; seq++ {
				r, err := b.Events().Get(t.Context(), seq)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := copied.Events().Append(t.Context(), bus.Record{Subject: r.Subject, Header: r.Header, Data: r.Data}); err != nil {
					t.Fatal(err)
				}
			}
			return last
		})
		same(t, s.w.all(t), want)
		var cp struct{ Behind json.RawMessage }
		e, err := b.State().Get(t.Context(), "fold.checkpoint")
		if err != nil || json.Unmarshal(e.Value, &cp) != nil || cp.Behind != nil {
			t.Errorf("the checkpoint is %s, %v", e.Value, err)
		}
	})
}

// TestDeadlinesOfThoseBehind fails each write in turn while a deadline passes
// behind the last event for a sensor that is paused then: it fires as if it had
// been there, once.
func TestDeadlinesOfThoseBehind(t *testing.T) {
	watch := func(name string) *specs.Sensor {
		return &specs.Sensor{
			Dependencies: []specs.Dependency{
				{Name: "order", Source: "shop", Event: "orders"},
				{Name: "payment", Source: "shop", Event: "payments", Absent: &specs.Absent{For: specs.Duration(40 * time.Millisecond), After: "order"}},
			},
			Correlate: expr("data.id"), Triggers: []specs.Trigger{{Name: name, Function: "f"}},
		}
	}
	rules := compile(t, "1", map[string]*specs.Sensor{"in-time": watch("a"), "behind": watch("b"), "later": watch("c")})
	eachWrite(t, 5, func(t *testing.T, mode string, at int64) bool {
		b := open(t, bustest.Dir(t))
		f := &fault{Bus: b, at: at, mode: mode}
		s := &script{t: t, b: b, w: &worker{b: b}, f: f, again: []int64{1 + at%7, 1 + at%5, 1 + at%3}, rules: map[string]*fold.Rules{"1": rules}}
		s.start(f)
		passed := func(sensor string) {
			t.Helper()
			s.await("the deadlines of "+sensor, func(d *fold.Dispatcher) bool {
				p, err := d.Pending(t.Context(), sensor, 9)
				return err == nil && len(p) == 0
			})
		}
		publish(t, b, "orders", 1)
		s.covered(publish(t, b, "orders", 2))
		s.pause("behind")
		s.covered(publish(t, b, "payments", 2))
		passed("in-time")
		s.pause("later")
		s.resume("behind")
		passed("behind")
		s.covered(publish(t, b, "orders", 3))
		passed("in-time")
		s.resume("later")
		passed("later")
		s.end()
		var want []string
		var times []time.Time
		for seq := uint64(1); seq <= 4; seq++ {
			r, err := b.Events().Get(t.Context(), seq)
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, r.Time)
		}
		for _, sensor := range []string{"behind.b", "in-time.a", "later.c"} {
			for _, seq := range []uint64{1, 2, 4} {
				due := times[seq-1].Add(40 * time.Millisecond)
				if seq == 2 && times[2].Before(due) {
					continue // paid
				}
				id := map[uint64]int{1: 1, 2: 2, 4: 3}[seq]
				want = append(want, fmt.Sprintf("%s #%d at %s of [{order %d 0 0}]", sensor, id, due.UTC().Format("15:04:05.000"), seq))
			}
		}
		same(t, s.w.all(t), want)
		return f.fired.Load()
	})
}

// gatedBus is a bus that gives those behind no events until it is opened.
type gatedBus struct {
	bus.Bus
	open chan struct{}
}

func (b *gatedBus) Events() bus.Log { return &gatedLog{b.Bus.Events(), b} }

type gatedLog struct {
	bus.Log
	b *gatedBus
}

func (l *gatedLog) GetBatch(ctx context.Context, from uint64, limit, maxBytes int) ([]bus.Record, error) {
	select {
	case <-l.b.open:
		return l.Log.GetBatch(ctx, from, limit, maxBytes)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestSensorThatComesAgain: one that was removed and begins with the earliest
// event has nothing to do with the one before, also over a restart.
func TestSensorThatComesAgain(t *testing.T) {
	b := open(t, bustest.Dir(t))
	gate := &gatedBus{b, make(chan struct{})}
	pair := func(hash string) *fold.Rules {
		r := story(t, hash, "pair")
		r.From = map[string]specs.From{"pair": specs.FromEarliest}
		return r
	}
	w := &worker{b: b}
	options := func(r *fold.Rules) fold.Options {
		return fold.Options{Bus: gate, Cache: fold.NewCache(b.Events(), 1, 1<<20), Logger: quiet(), Rules: r, Covered: w.covered}
	}
	d := fold.New(options(pair("1")))
	stop := run(d)
	// Its waiting is stored, then that it waits no more.
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 1)))
	publish(t, b, "orders", 2)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 3)))
	for _, r := range []*fold.Rules{story(t, "2", "each"), pair("3")} {
		if err := d.Swap(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the beginning", func() bool { return d.Behind()["pair"].From == "" })
	stop()
	d = fold.New(options(pair("3")))
	stop = run(d)
	until(t, "the recovery", d.Ready)
	if s := d.Behind()["pair"]; s.Position != 0 || s.Events != 4 || s.Pause != nil {
		t.Errorf("pair is %+v", s)
	}
	close(gate.open)
	until(t, "the end of the catching up", none(d))
	p, err := d.Pending(t.Context(), "pair", 10)
	if err != nil || len(p) != 2 {
		t.Errorf("%+v wait, %v", p, err)
	}
	stop()
	if got := w.all(t); len(got) != 2 || got[0] != got[1] {
		t.Errorf("fired %v, want the same once for each of the two", got)
	}
}
