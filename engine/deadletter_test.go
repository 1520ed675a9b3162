package engine_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/specs"
)

func (r *running) empty() {
	r.t.Helper()
	r.until("JOBS and PARKED to empty", func() bool {
		j, err := r.bus.Jobs().Info(r.t.Context())
		if err != nil {
			return false
		}
		p, err := r.bus.Parked().Info(r.t.Context())
		return err == nil && j.Records+p.Records == 0
	})
}

// TestDeadLetterIsCalled: what a trigger and a Subscription have called for their
// dead letters, changed by a reload, redriven, explained.
func TestDeadLetterIsCalled(t *testing.T) {
	url, status := builder(t)
	status.Store(422)
	told, other := newSink(t), newSink(t)
	orders := func(deadLetter string) string {
		return shop("orders") + "---\n" + head + `kind: Sensor
metadata: {name: ship}
spec:
  dependencies: [{name: order, source: shop, event: orders}]
  correlate: data.id
  triggers:
    - name: ship
      http: {url: "` + url + `?n=${ order.data.id }"}
` + deadLetter + `---
` + head + `kind: Function
metadata: {name: build}
spec: {http: {url: "` + url + `?n=${ data.id }"}}
---
` + head + `kind: Subscription
metadata: {name: sub}
spec:
  eventType: sub
  function: build
  deadLetter: {http: {url: "` + other.URL + `"}}
`
	}
	r := &running{t: t, dir: t.TempDir()}
	r.write("orders.yaml", orders(`      deadLetter:
        http: {url: "`+told.URL+`", headers: {X-Id: "${ order.data.id }"}}
        input: {id: "${ order.data.id }", why: "${ triggers.ship.error }", image: "${ triggers.ship.output.image }", outcome: "${ triggers.ship.outcome }"}
`))
	r = start(t, r.dir, t.TempDir())
	r.post("/orders", `{"id": 7}`)
	r.until("the call", func() bool { return len(told.got()) == 1 })
	r.empty()
	if got := told.got()[0]; !strings.HasPrefix(got, `{"id":7,"image":"app:7","outcome":"failed","why":"`) || !strings.Contains(got, "422") {
		t.Errorf("told %s", got)
	}
	if n := r.results(); n != 0 {
		t.Errorf("%d results are told that nobody asks for", n)
	}
	letters, err := jobs.Letters(t.Context(), r.bus, jobs.TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 {
		t.Fatalf("letters %v, %v", letters, err)
	}
	key := letters[0].Job.Key
	if k := told.keys[0]; k != key+".deadLetter" {
		t.Errorf("key %s", k)
	}
	// It is one of the triggers that are shown, and its call is known.
	found := false
	for _, res := range r.e.Status(t.Context()).Resources {
		for _, tr := range res.Triggers {
			found = found || res.Kind == specs.KindSensor && tr.Name == "ship.deadLetter" && tr.Function == "ship.ship.deadLetter" && tr.Succeeded == 1
		}
	}
	if !found {
		t.Errorf("status %+v", r.e.Status(t.Context()).Resources)
	}
	explained := func() *replay.Call {
		t.Helper()
		x, err := r.e.Explain(t.Context(), engine.ExplainQuery{Sensor: "ship"})
		if err != nil {
			t.Fatal(err)
		}
		return x.Explanations[0].Sensors[0].Steps[0].Firings[0].Call
	}
	r.until("the runs to be written", func() bool {
		c := explained()
		return c != nil && c.Run != "" && c.DeadLetter != nil && c.DeadLetter.Run != ""
	})
	if c := explained(); c.Status != jobs.StatusDead || c.DeadLetter.Status != jobs.StatusSucceeded || c.DeadLetter.Run != key+".deadLetter-1" {
		t.Errorf("explained %+v, %+v", c, c.DeadLetter)
	}
	// Replaying does not take its calls for those of firings that are gone.
	replayed, err := r.e.Replay(t.Context(), engine.ReplayQuery{Sensor: "ship"})
	if err != nil || fmt.Sprint(replayed.Counts) != "map[same:1]" {
		t.Errorf("replayed %v, %v", replayed, err)
	}

	// Another one, after a reload and for the same dead letter, redriven.
	r.write("orders.yaml", orders("      deadLetter: {http: {url: \""+other.URL+"\"}}\n"))
	r.reload()
	if err := jobs.Redrive(t.Context(), r.bus, letters[0], nil); err != nil {
		t.Fatal(err)
	}
	r.until("the other call", func() bool { return len(other.got()) == 1 })
	r.empty()
	if got := other.got()[0]; !strings.Contains(got, `"outcome":"failed"`) || !strings.Contains(got, `"redrive":1`) || !strings.Contains(got, `"trigger":"ship"`) || len(told.got()) != 1 {
		t.Errorf("told %s", got)
	}
	if k := other.keys[0]; k != key+".1.deadLetter" {
		t.Errorf("key %s", k)
	}
	// The history has what it got, which no log has.
	var runs []jobs.StoredRun
	r.until("its run", func() bool {
		var err error
		runs, err = jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{ID: key + ".1.deadLetter-1"})
		return err == nil && len(runs) == 1
	})
	if got := string(runs[0].JSON); !strings.Contains(got, `"input":{"function":"ship.ship","sensor":"ship"`) {
		t.Errorf("run %s", got)
	}

	// Of a Subscription, whose failure somebody asks for, too.
	if _, err := r.e.Emit(t.Context(), &bus.Event{ID: "1", Source: "/t", Type: "sub", Data: []byte(`{"id":9}`), DataContentType: "application/json"}); err != nil {
		t.Fatal(err)
	}
	r.until("its call", func() bool { return len(other.got()) == 2 })
	r.empty()
	if got := other.got()[1]; !strings.Contains(got, `"sensor":"subscription.sub","trigger":"call"`) {
		t.Errorf("told %s", got)
	}
	if n := r.letters(); n != 2 {
		t.Errorf("%d dead letters", n)
	}
}

// TestDeadLetterOfAStep: a step of a workflow calls it beside the step for
// failures, which the workflow goes on with.
func TestDeadLetterOfAStep(t *testing.T) {
	url, _ := builder(t)
	failing, status := builder(t)
	status.Store(400)
	told, failed := newSink(t), newSink(t)
	r := &running{t: t, dir: t.TempDir()}
	r.write("all.yaml", shop("pushes")+"---\n"+head+`kind: Sensor
metadata: {name: ci}
spec:
  dependencies: [{name: push, source: shop, event: pushes}]
  triggers:
    - {name: build, http: {url: "`+url+`?n=1"}}
    - name: deploy
      after: [build]
      http: {url: "`+failing+`"}
      deadLetter: {http: {url: "`+told.URL+`"}, input: "${ push.data.n } ${ triggers.build.output.image } ${ triggers.deploy.attempts }"}
    - {name: tell, onFailure: [deploy], http: {url: "`+failed.URL+`"}, input: "${ triggers.deploy.outcome }"}
`)
	r = start(t, r.dir, t.TempDir())
	r.post("/pushes", `{"n": 3}`)
	r.until("both calls", func() bool { return len(told.got()) == 1 && len(failed.got()) == 1 })
	r.empty()
	if a, b := told.got()[0], failed.got()[0]; !strings.Contains(a, "3 app:1 1") || !strings.Contains(b, "failed") {
		t.Errorf("told %s and %s", a, b)
	}
	if n := r.results(); n != 2 {
		t.Errorf("%d results, want those of the two steps that are followed", n)
	}
}
