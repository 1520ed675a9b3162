package spectest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/spectest"
	"github.com/sensor-engine/engine/sensors"
	sourcetypes "github.com/sensor-engine/engine/sources/all"
	"github.com/sensor-engine/engine/specs"
	functionkinds "github.com/sensor-engine/engine/triggers/all"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

var catalog = engine.Catalog{Sources: sourcetypes.All(), Functions: functionkinds.All()}

// compile makes a runner of specs without errors.
func compile(t testing.TB, text string) (*spectest.Runner, []evaluate.Sensor) {
	t.Helper()
	l := catalog.Loader().LoadBytes("specs.yaml", []byte(text))
	c := engine.NewCompiler(catalog)
	if found := append(l.Diagnostics, c.Check(l.Set(), l.Invalid...)...); found.HasErrors() {
		t.Fatal(found.Err())
	}
	list := c.Sensors(l.Set())
	return spectest.New(l.Set(), list, catalog.Sources), list
}

const agreeing = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec: {webhook: {a: {path: /a}, b: {path: /b}, c: {path: /c, filter: data.n != 3}}}
---
apiVersion: engine/v1
kind: Function
metadata: {name: f}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: latest}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b}]
  correlate: data.key
  within: 4m
  triggers: [{name: t, function: f, input: {a: "${ a.data.n }", b: "${ b.data.n }"}}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: queue}
spec:
  dependencies: [{name: a, source: shop, event: a, pick: first}, {name: c, source: shop, event: c, when: data.n > 1}]
  within: 7m
  triggers:
    - {name: both, function: f, input: "${ a.data.n }-${ c.data.n }"}
    - {name: one, condition: c, function: f, input: "${ c.data.n }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: gathered}
spec:
  dependencies: [{name: b, source: shop, event: "*", when: data.kind == "x", pick: all}, {name: c, source: shop, event: c}]
  correlate: data.key
  within: 2m
  triggers: [{name: t, function: f, input: "${ map(b, .data.n) }"}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: unanswered}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b, absent: {for: 3m, after: a}}]
  correlate: data.key
  condition: a && absent(b)
  triggers: [{name: t, function: f, input: "${ a.data.n }"}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: limited}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b}]
  correlate: data.n
  limits: {keys: 2}
  triggers: [{name: t, function: f, input: "${ a.data.key } ${ b.data.key }"}]
---
apiVersion: engine/v1
kind: Function
metadata: {name: g}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: held}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b, count: 2, distinct: data.n}]
  correlate: data.key
  reset: {cron: "*/20 * * * *"}
  condition: a || b
  triggers:
    - {name: calm, debounce: {quiet: 150s, max: 6m}, cooldown: 7m, function: g, input: ["${ a?.data.n }", "${ b == nil ? [] : map(b, .data.n) }"]}
    - {name: then, after: [calm], function: g, input: ["${ triggers.calm.output }"]}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: together}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b}]
  triggers:
    - {name: some, batch: {size: 3, wait: 8m}, function: g, input: "${ map(batch, .a.data.n + .b.data.n) }"}
    - {name: more, after: [some], condition: triggers.some.output > 2, function: g, input: "${ len(batch) }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: lines}
spec:
  dependencies: [{name: c, source: shop, event: c}]
  correlate: data.key
  triggers:
    - {name: each, foreach: {in: "1..c.data.n", key: item}, function: g, input: "${ item } of ${ c.data.n }"}
    - {name: all, after: [each], function: g, input: "${ triggers.each.output }"}
    - {name: bad, onFailure: [each], function: g, input: "${ triggers.each.error }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: steps}
spec:
  dependencies: [{name: a, source: shop, event: a}, {name: b, source: shop, event: b}]
  correlate: data.key
  within: 9m
  triggers:
    - {name: build, function: g, input: "${ a.data.n }"}
    - {name: check, function: f, input: "${ b.data.n }"}
    - {name: deploy, after: [build, check], function: g, input: "${ triggers.build.output } ${ triggers.check.output }"}
    - {name: tell, onFailure: [build, check, deploy], function: g, input: "${ toJSON(triggers) }"}
    - {name: end, after: [deploy], condition: triggers.deploy.output > 3, function: g, input: "${ a.data.n }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: broken}
spec:
  dependencies: [{name: r, function: f, outcome: failed, pick: all, count: 2}]
  within: 10m
  triggers: [{name: t, function: g, input: "${ map(r, .data.trigger) }"}]
`

// TestSpecTestsAgreeWithTheFold: what a spec test says fires is what the fold
// puts into JOBS for the same events at the same times.
func TestSpecTestsAgreeWithTheFold(t *testing.T) {
	runner, list := compile(t, agreeing)
	often := map[string]int{}
	for round := range 5 {
		rng := rand.New(rand.NewPCG(1, uint64(round)))
		test := &specs.Test{Start: "2020-01-01T00:00:00Z", Strict: new(bool)}
		b, err := jetstream.Open(context.Background(), jetstream.Options{Dir: bustest.Dir(t), MinFree: -1, Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		past := &bustest.Past{Bus: b}
		info, err := b.Events().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := &fired{events: evaluate.Events{}}
		f.e = evaluate.New(f, info.ID, 0, test.StartTime(), f.events.Load)
		f.e.Use(list)
		at, stored := specs.Duration(0), uint64(0)
		for range 300 {
			at += specs.Duration(time.Duration(rng.IntN(5)) * 30 * time.Second)
			when := at
			var ev *bus.Event
			if i := f.oldest(rng); i >= 0 && rng.IntN(3) > 0 {
				ev = f.answer(test, i, &when, rng)
			} else {
				ev = arrives(t, test, &when, rng)
			}
			if ev == nil {
				continue
			}
			stored++
			now := test.StartTime().Add(when.D())
			if err := past.Append(t.Context(), ev, now); err != nil {
				t.Fatal(err)
			}
			r := ev.Record()
			r.Seq, r.Time = stored, now
			if ev, err = bus.DecodeEvent(r); err != nil {
				t.Fatal(err)
			}
			f.events[stored] = ev
			f.e.Advance(stored, now)
			f.e.Event(ev)
		}
		until := at + specs.Duration(time.Hour)
		test.Until = &until
		res, err := runner.Run(test)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, f := range res.Firings {
			input, err := json.Marshal(f.Input)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%s %s %s %s", f.At, f.Sensor, f.Trigger, input))
		}
		got := folded(t, past, list, stored, len(want), test.StartTime())
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(res.Failures) > 0 {
			t.Errorf("round %d: %v\nthe fold fires\n%s\nthe test\n%s", round, res.Failures, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, firing := range res.Firings {
			often[firing.Sensor+"."+firing.Trigger]++
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	for i := range list {
		for _, trigger := range list[i].Program.Triggers() {
			if name := list[i].Name + "." + trigger; often[name] == 0 {
				t.Errorf("%s never fires", name)
			}
		}
	}
}

// arrives makes a random event, in the test and as its source stores it: nil
// when it does not.
func arrives(t *testing.T, test *specs.Test, at *specs.Duration, rng *rand.Rand) *bus.Event {
	t.Helper()
	name, n := string(rune('a'+rng.IntN(3))), rng.Int64N(6)
	data := map[string]any{"key": rng.Int64N(3), "n": n}
	if rng.IntN(2) == 0 {
		data["kind"] = "x"
	}
	test.Events = append(test.Events, specs.TestEvent{At: at, Source: "shop", Event: name, Data: specs.Value{Root: data, Set: true}})
	if name == "c" && n == 3 {
		return nil // filtered
	}
	payload, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &bus.Event{ID: fmt.Sprint(len(test.Events)), Source: "/s", Type: "t", EventSource: "shop", EventName: name, Data: payload, DataContentType: "application/json"}
}

// oldest picks a firing whose result is told, the oldest of its trigger that
// has none yet; -1 when there is none.
func (f *fired) oldest(rng *rand.Rand) int {
	var open []int // the first of each trigger
	seen := map[string]bool{}
	for i, fi := range f.list {
		name := f.name(i)
		if tells := fi.Flow != "" || f.function(i) == "f"; tells && !seen[name] {
			seen[name] = true
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return -1
	}
	return open[rng.IntN(len(open))]
}

func (f *fired) name(i int) string { return f.e.Sensors()[f.of[i]].Name + "." + f.list[i].Trigger }

// function is the function of agreeing that a firing calls.
func (f *fired) function(i int) string {
	switch f.e.Sensors()[f.of[i]].Name {
	case "held", "together", "lines", "broken":
		return "g"
	case "steps":
		if f.list[i].Trigger != "check" {
			return "g"
		}
	}
	return "f"
}

// answer makes the result of a firing, in the test and as the engine stores it.
func (f *fired) answer(test *specs.Test, i int, at *specs.Duration, rng *rand.Rand) *bus.Event {
	sensor, fi, output := f.e.Sensors()[f.of[i]].Name, f.list[i], rng.Int64N(8)
	in := &specs.TestResult{Sensor: sensor, Trigger: fi.Trigger, Outcome: specs.OutcomeSucceeded, Output: specs.Value{Root: output, Set: true}}
	r := sensors.Result{
		Function: f.function(i), Sensor: sensor, Trigger: fi.Trigger, Firing: fi.Key, Correlation: fi.Correlation, Flow: fi.Flow, Item: fi.Item, Items: fi.Items,
		Output: fmt.Append(nil, output), ContentType: "application/json", Attempts: 1, Last: f.events[fi.Last], Time: test.StartTime().Add(at.D()),
	}
	if rng.IntN(4) == 0 {
		in.Outcome, in.Error, r.Failed, r.Error = specs.OutcomeFailed, "broken", true, "broken"
	}
	test.Events = append(test.Events, specs.TestEvent{At: at, Result: in})
	f.list, f.of = slices.Delete(f.list, i, i+1), slices.Delete(f.of, i, i+1)
	return r.Event(1 << 10)
}

// folded runs the fold over a bus, until it has put n jobs into JOBS, and
// reads them.
func folded(t *testing.T, b bus.Bus, list []evaluate.Sensor, events uint64, n int, start time.Time) (out []string) {
	t.Helper()
	d := fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 1<<10, 1<<20), Logger: slog.New(slog.DiscardHandler),
		Rules: &fold.Rules{Hash: "h", Sensors: list}, BatchSize: 7,
		Alarm: func(code, message string) {
			if code != "state-evicted" {
				t.Error(code, message)
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.Run(ctx)
	}()
	deadline := time.Now().Add(30 * time.Second)
	// What deadlines after the last event fire comes later.
	for time.Now().Before(deadline) {
		info, err := b.Jobs().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, covered := d.Position(); covered >= events && info.Records >= uint64(n) {
			break
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	<-done
	info, err := b.Jobs().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rd, err := b.Jobs().Read(t.Context(), 0, "")
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
			var rendered map[string]json.RawMessage
			if err := json.Unmarshal(j.Rendered, &rendered); err != nil || len(rendered) != 1 {
				t.Fatalf("%s: %v", j.Rendered, err)
			}
			for _, input := range rendered {
				out = append(out, fmt.Sprintf("%s %s %s %s", j.Time.Sub(start), j.Sensor, j.Trigger, input))
			}
		}
	}
	return out
}
