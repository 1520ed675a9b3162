package fold_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// everyForm are sensors whose states take every form: events that wait, in
// queues and lists, absences, quiet times, what is held back and gathered,
// fan-outs and workflows. f is the function whose results are told.
const everyForm = `
apiVersion: engine/v1
kind: Sensor
metadata: {name: queue}
spec:
  dependencies: [{name: a, type: a, pick: first}, {name: b, type: b, pick: all}]
  correlate: data.k
  within: 4m
  triggers:
    - {name: both, function: f, input: "${ a.data.n } ${ map(b, .data.n) }"}
    - {name: few, condition: b, cooldown: 3m, function: f}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: counted}
spec:
  dependencies: [{name: a, type: a, count: 3, distinct: data.n}]
  reset: {cron: "*/7 * * * *"}
  triggers: [{name: t, function: f}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: silent}
spec:
  dependencies: [{name: a, type: a}, {name: b, type: b}, {name: c, type: c, absent: {for: 2m, after: a}}]
  correlate: data.k
  condition: a && (absent(c) || b && b.data.n == 4)
  triggers: [{name: t, function: f}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: held}
spec:
  dependencies: [{name: a, type: a}, {name: b, type: b}]
  correlate: data.k
  condition: a || b
  triggers:
    - {name: calm, debounce: {quiet: 100s, max: 4m}, function: f, input: "${ a?.data.n ?? b?.data.n }"}
    - {name: tell, after: [calm], function: g}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: gathered}
spec:
  dependencies: [{name: a, type: a}, {name: c, type: c}]
  triggers:
    - {name: several, batch: {size: 4, wait: 5m}, function: f, input: "${ map(batch, .a.data.n) }"}
    - {name: after-them, after: [several], condition: triggers.several.output > 2, function: g, input: "${ len(batch) }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: steps}
spec:
  dependencies: [{name: b, type: b}, {name: c, type: c}]
  correlate: data.k
  within: 6m
  triggers:
    - {name: build, function: f}
    - {name: check, function: f}
    - {name: deploy, after: [build, check], function: f, input: "${ triggers.build.output } ${ b.data.n }"}
    - {name: tell, onFailure: [build, check, deploy], function: g}
    - {name: end, after: [deploy], condition: triggers.deploy.output > 3, function: g}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: lines}
spec:
  dependencies: [{name: a, type: a}]
  correlate: data.k
  triggers:
    - {name: each, foreach: {in: a.data.list, key: item}, function: f, input: "${ item }"}
    - {name: all, after: [each], function: g, input: "${ triggers.each.output }"}
    - {name: bad, onFailure: [each], function: g}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: broken}
spec:
  dependencies: [{name: r, function: f, outcome: failed, count: 2}]
  within: 10m
  triggers: [{name: t, function: g, input: "${ map(r, .data.trigger) }"}]
`

func everyFormRules(t testing.TB) *fold.Rules {
	t.Helper()
	l := (&specs.Loader{}).LoadBytes("specs.yaml", []byte(everyForm))
	if err := l.Diagnostics.Err(); err != nil {
		t.Fatal(err)
	}
	list := map[string]*specs.Sensor{}
	for _, r := range l.Set().Resources {
		list[r.Metadata.Name] = r.Spec.(*specs.Sensor)
	}
	rules := compile(t, "h", list)
	slices.SortFunc(rules.Sensors, func(a, b fold.Sensor) int { return strings.Compare(a.Name, b.Name) })
	return rules
}

// history is a log in the making: random events, and among them the results of
// the functions that they let be called, each some time after its firing.
type history struct {
	rng       *rand.Rand
	rules     *fold.Rules
	evaluator *evaluate.Evaluator
	events    evaluate.Events
	calls     []sensors.Result // that have not ended
	fires     []string
}

func (h *history) Undecided([]sensors.GroupVerdict)      {}
func (h *history) Routed(int, sensors.Routing)           {}
func (h *history) Stepped(int, []sensors.Verdict)        {}
func (h *history) Evicted(int, evaluate.Eviction)        {}
func (h *history) Changed(evaluate.Key, *evaluate.Entry) {}

func (h *history) Fired(sensor int, f *sensors.Firing) {
	s := h.rules.Sensors[sensor].Name
	h.fires = append(h.fires, fires(s, f.Trigger, f.Correlation, f.Events, f.Item, f.Time))
	function := "g"
	if slices.Contains([]string{"both", "few", "t", "calm", "several", "build", "check", "deploy", "each"}, f.Trigger) && s != "broken" {
		function = "f"
	}
	if function == "f" || f.Flow != "" {
		h.calls = append(h.calls, sensors.Result{
			Function: function, Sensor: s, Trigger: f.Trigger, Firing: f.Key, Correlation: f.Correlation, Flow: f.Flow, Item: f.Item, Items: f.Items,
			Output: fmt.Append(nil, h.rng.IntN(8)), ContentType: "application/json", Attempts: 1, Failed: h.rng.IntN(4) == 0, Error: "broken",
		})
	}
}

func fires(sensor, trigger, key string, events []sensors.Contribution, item int, at time.Time) string {
	return fmt.Sprintf("%s %s.%s fires for %q: %v, item %d", at.Format("15:04:05"), sensor, trigger, key, events, item)
}

// fill writes a history into a bus, always the same for the same seed.
func fill(t testing.TB, b *bustest.Past, rules *fold.Rules, seed uint64) *history {
	t.Helper()
	info, err := b.Events().Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	h := &history{rng: rand.New(rand.NewPCG(3, seed)), rules: rules, events: evaluate.Events{}}
	h.evaluator = evaluate.New(h, info.ID, 0, at, h.events.Load)
	h.evaluator.Use(rules.Sensors)
	for seq, n := uint64(1), 0; n < 60 || len(h.calls) > 0; seq++ {
		at = at.Add(time.Duration(h.rng.IntN(40)) * time.Second)
		ev := &bus.Event{ID: fmt.Sprint(seq), Source: "/s", EventSource: "_emit", DataContentType: "application/json"}
		if n < 60 && (len(h.calls) == 0 || h.rng.IntN(2) == 0) {
			n++
			ev.Type = string(rune('a' + h.rng.IntN(3)))
			ev.EventName = ev.Type
			ev.Data = fmt.Appendf(nil, `{"k": %d, "n": %d, "list": %s}`, h.rng.IntN(2), h.rng.IntN(5), []string{"[]", "[1]", "[1, 2, 3]"}[h.rng.IntN(3)])
		} else {
			i := h.rng.IntN(len(h.calls))
			r := &h.calls[i]
			r.Time = at
			ev = r.Event(1 << 10)
			h.calls = slices.Delete(h.calls, i, i+1)
		}
		if err := b.Append(t.Context(), ev, at); err != nil {
			t.Fatal(err)
		}
		rec := ev.Record()
		rec.Seq, rec.Time = seq, at
		stored, err := bus.DecodeEvent(rec)
		if err != nil {
			t.Fatal(err)
		}
		h.events[seq] = stored
		h.evaluator.Advance(seq, at)
		h.evaluator.Event(stored)
	}
	// The clock is past all deadlines; results of what they fire have not come.
	h.evaluator.Deadlines(time.Now())
	return h
}

// settled is what was put into JOBS and what waits, when everything was folded
// and a number of jobs is there.
func settled(t *testing.T, b bus.Bus, d *fold.Dispatcher, last uint64, n int) string {
	t.Helper()
	until(t, "the last checkpoint", covered(d, last))
	until(t, "the last job", func() bool {
		info, err := b.Jobs().Info(t.Context())
		return err == nil && info.Records >= uint64(n)
	})
	// Deadlines that fire nothing leave no job.
	var p []fold.Pending
	until(t, "the last deadline", func() bool {
		var err error
		if p, err = d.Pending(t.Context(), "", 1000); err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(p, func(k fold.Pending) bool { return !k.Wake.IsZero() && k.Wake.Before(time.Now()) })
	})
	var lines []string
	keys := map[string]bool{}
	for _, j := range allJobs(t, b) {
		lines = append(lines, fires(j.Sensor, j.Trigger, j.Correlation, j.Events, j.Item, j.Time))
		if keys[j.Key] {
			t.Errorf("firing %s of %s.%s is enqueued twice", j.Key, j.Sensor, j.Trigger)
		}
		keys[j.Key] = true
	}
	for _, k := range p {
		if len(k.Refs) > 0 || !k.Wake.IsZero() {
			lines = append(lines, fmt.Sprintf("%s %q waits: %v until %s", k.Sensor, k.Key, k.Refs, k.Wake))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestEveryFormOfStateSurvivesACrash folds histories in which states take every
// form, and fails a write of the dispatcher: the firings are those of an
// evaluator that never stores anything, each enqueued once, and the same waits.
func TestEveryFormOfStateSurvivesACrash(t *testing.T) {
	points := 10 // for each mode
	if testing.Short() {
		points = 4
	}
	rules := everyFormRules(t)
	for seed := range uint64(2) {
		// Without a fault, to know how many writes there are and what waits.
		past := &bustest.Past{Bus: open(t, bustest.Dir(t))}
		h := fill(t, past, rules, seed)
		last := uint64(len(past.Times))
		f := &fault{Bus: past, at: -1}
		d := dispatcher(f, rules, nil)
		stop := run(d)
		want := settled(t, past, d, last, len(h.fires))
		stop()
		slices.Sort(h.fires)
		var fired []string
		for line := range strings.SplitSeq(want, "\n") {
			if strings.Contains(line, " fires for ") {
				fired = append(fired, line)
			}
		}
		if !slices.Equal(fired, h.fires) {
			t.Fatalf("the fold fires\n%s\nthe evaluator\n%s", strings.Join(fired, "\n"), strings.Join(h.fires, "\n"))
		}
		for _, name := range []string{"queue.both", "queue.few", "counted.t", "silent.t", "held.calm", "held.tell", "gathered.several", "gathered.after-them", "steps.deploy", "steps.tell", "steps.end", "lines.each", "lines.all", "lines.bad", "broken.t"} {
			if !strings.Contains(want, " "+name+" fires") {
				t.Errorf("seed %d: %s never fires", seed, name)
			}
		}
		writes := f.n.Load()
		t.Logf("seed %d: %d events, %d firings, %d writes", seed, last, len(fired), writes)
		for _, mode := range []string{"before", "after", "crash"} {
			t.Run(fmt.Sprint(seed, "/", mode), func(t *testing.T) {
				each(t, points, func(t *testing.T, _ int) {
					at, again := 1+rand.Int64N(writes), 1+rand.Int64N(12)
					t.Logf("write %d fails, then %d", at, again)
					past := &bustest.Past{Bus: open(t, bustest.Dir(t))}
					fill(t, past, rules, seed)
					f := &fault{Bus: past, at: at, mode: mode}
					d := dispatcher(f, rules, nil)
					stop := run(d)
					if mode == "crash" {
						until(t, "the crash, or the end", func() bool { return f.down.Load() || covered(d, last)() })
						f.down.Store(true)
						stop()
						// And once more, while it recovers or soon after.
						f = &fault{Bus: past, at: again, mode: mode}
						d = dispatcher(f, rules, nil)
						stop = run(d)
						until(t, "the crash, or the end", func() bool { return f.down.Load() || covered(d, last)() })
						f.down.Store(true)
						stop()
						d = dispatcher(past, rules, nil)
						stop = run(d)
					}
					got := settled(t, past, d, last, len(fired))
					stop()
					if got != want {
						t.Errorf("got\n%s\nwant\n%s", got, want)
					}
				})
			})
		}
	}
}
