package spectest_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

const watched = `apiVersion: engine/v1
kind: Function
metadata: {name: build}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: ci}
spec:
  dependencies: [{name: push, type: push}]
  correlate: data.commit
  triggers:
    - {name: build, function: build, foreach: {in: push.data.parts}, input: "${ item }", retry: {attempts: 1}}
    - {name: broken, function: build, input: "${ push.data.none.x }"}
    - {name: after, after: [build], log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: watch}
spec:
  dependencies: [{name: r, function: build}]
  triggers:
    - name: t
      log: {}
      input:
        {id: "${ r.id }", type: "${ r.type }", source: "${ r.source }", subject: "${ r.subject }", extensions: "${ r.extensions }", datacontenttype: "${ r.datacontenttype }", data: "${ r.data }"}
`

// fired keeps firings, each with the place of its sensor.
type fired struct {
	e      *evaluate.Evaluator
	events evaluate.Events
	list   []*sensors.Firing
	of     []int
}

func (f *fired) Undecided([]sensors.GroupVerdict)      {}
func (f *fired) Routed(int, sensors.Routing)           {}
func (f *fired) Stepped(int, []sensors.Verdict)        {}
func (f *fired) Changed(evaluate.Key, *evaluate.Entry) {}
func (f *fired) Evicted(int, evaluate.Eviction)        {}
func (f *fired) Fired(sensor int, fi *sensors.Firing) {
	f.list, f.of = append(f.list, fi), append(f.of, sensor)
}

// one has the event of all jobs.
type one struct{ ev *bus.Event }

func (o one) Event(context.Context, uint64) (*bus.Event, error) { return o.ev, nil }

// answers is a function that gives what its input says.
type answers struct{}

func (answers) Invoke(_ context.Context, c *triggers.Call) (triggers.Result, error) {
	if c.Input == "fail" {
		return triggers.Result{Output: []byte("log of it"), ContentType: "text/plain"}, errors.New("no disk")
	}
	b, err := json.Marshal(map[string]any{"built": c.Input})
	return triggers.Result{Output: b, ContentType: "application/json"}, err
}

// TestResultsAreThoseOfTheEngine: a result in a spec test is the event that the
// pool of the engine stores for the same firing.
func TestResultsAreThoseOfTheEngine(t *testing.T) {
	runner, list := compile(t, watched)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(`
tests:
  - name: n
    strict: false
    expect: []
    events:
      - {type: push, id: p, data: {commit: 7, parts: [one, fail]}, extensions: {traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01}}
      - {result: {trigger: build, output: {built: one}}}
      - {result: {trigger: build, error: no disk, output: log of it}}
      - {result: {trigger: broken, outcome: failed}}
`))
	if len(found) > 0 {
		t.Fatal(found)
	}
	test := &files[0].Tests[0]
	res, err := runner.Run(test)
	if err != nil || len(res.Failures) > 0 {
		t.Fatal(err, res.Failures)
	}
	want := map[string]any{}
	for _, f := range res.Firings {
		if f.Sensor == "watch" {
			want[f.Input.(map[string]any)["id"].(string)] = f.Input
		}
	}

	push := &bus.Event{
		ID: "p", Source: "/_emit", Type: "push", EventSource: bus.SourceEmit, EventName: "push", ProducerID: true, Seq: 1, StoredAt: test.StartTime(),
		DataContentType: "application/json", Data: []byte(`{"commit":7,"parts":["one","fail"]}`), Extensions: test.Events[0].Extensions,
	}
	f := &fired{events: evaluate.Events{1: push}}
	f.e = evaluate.New(f, "test", 0, test.StartTime(), f.events.Load)
	f.e.Use(list)
	f.e.Advance(1, push.StoredAt)
	f.e.Event(push)
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: bustest.Dir(t), MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	pool := jobs.NewPool(jobs.Options{Bus: b, Events: one{push}, Logger: slog.New(slog.DiscardHandler)})
	callee := &jobs.Callee{Name: "build", Function: answers{}, Values: func(_ *triggers.Call, r map[string]any) triggers.Values { return triggers.NewValues(r, nil) }}
	table := map[jobs.TriggerRef]*jobs.Trigger{}
	for i := range list {
		if list[i].Name != "ci" {
			continue
		}
		for n, name := range list[i].Program.Triggers() {
			ref := jobs.TriggerRef{Sensor: "ci", Trigger: name}
			table[ref] = &jobs.Trigger{
				Ref: ref, Callee: callee, Timeout: time.Second, Concurrency: 1, Policy: triggers.Policy{Attempts: 1}, Tell: true,
				InputPath: list[i].Program.InputPath(n),
			}
		}
	}
	pool.Apply(table)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- pool.Run(ctx, time.Second) }()
	for _, fi := range f.list {
		j := jobs.NewJob("ci", "hash", 1, fi)
		if _, err := b.Jobs().Append(t.Context(), bus.Record{Subject: j.Subject(b.Jobs().Partitions()), Data: j.Encode(nil)}); err != nil {
			t.Fatal(err)
		}
	}
	pool.Covered(1, 100)
	deadline := time.Now().Add(20 * time.Second)
	for {
		info, err := b.Events().Info(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d results, %v", info.Records, err)
		}
		if int(info.Records) == len(f.list) {
			break
		}
		<-time.After(2 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	recs, err := b.Events().GetBatch(t.Context(), 1, 10, 1<<20)
	if err != nil || len(recs) != 3 || len(want) != 3 {
		t.Fatalf("%d results, %d in the test, %v", len(recs), len(want), err)
	}
	for _, rec := range recs {
		ev, err := bus.DecodeEvent(rec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ev.Attributes(true, false)
		if err != nil {
			t.Fatal(err)
		}
		delete(got, "time")
		delete(got, "dataschema")
		if !reflect.DeepEqual(want[ev.ID], any(got)) {
			t.Errorf("the engine stores\n%v\nthe test has\n%v", got, want[ev.ID])
		}
		if ev.Cause+"/result" != ev.ID || ev.Hops != 1 {
			t.Errorf("%+v", ev)
		}
	}
}
