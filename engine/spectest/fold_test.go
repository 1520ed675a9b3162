package spectest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
`

// TestSpecTestsAgreeWithTheFold: what a spec test says fires is what the fold
// puts into JOBS for the same events at the same times.
func TestSpecTestsAgreeWithTheFold(t *testing.T) {
	runner, list := compile(t, agreeing)
	for round := range 5 {
		rng := rand.New(rand.NewPCG(1, uint64(round)))
		test := &specs.Test{Start: "2020-01-01T00:00:00Z", Strict: new(bool)}
		b, err := jetstream.Open(context.Background(), jetstream.Options{Dir: t.TempDir(), MinFree: -1, Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		past := &bustest.Past{Bus: b}
		at, stored := specs.Duration(0), uint64(0)
		for range 150 {
			at += specs.Duration(time.Duration(rng.IntN(5)) * 30 * time.Second)
			when, name, n := at, string(rune('a'+rng.IntN(3))), rng.Int64N(6)
			data := map[string]any{"key": rng.Int64N(3), "n": n}
			if rng.IntN(2) == 0 {
				data["kind"] = "x"
			}
			test.Events = append(test.Events, specs.TestEvent{At: &when, Source: "shop", Event: name, Data: specs.Value{Root: data, Set: true}})
			if name == "c" && n == 3 {
				continue // filtered
			}
			stored++
			payload, err := json.Marshal(data)
			if err != nil {
				t.Fatal(err)
			}
			ev := &bus.Event{ID: fmt.Sprint(stored), Source: "/s", Type: "t", EventSource: "shop", EventName: name, Data: payload, DataContentType: "application/json"}
			if err := past.Append(t.Context(), ev, test.StartTime().Add(when.D())); err != nil {
				t.Fatal(err)
			}
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
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(want) < 20 {
			t.Errorf("round %d: the fold fires\n%s\nthe test\n%s", round, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
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
