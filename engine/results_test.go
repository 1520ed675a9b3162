package engine_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
)

// builder is an HTTP function that answers what it is told to.
func builder(t *testing.T) (url string, status *atomic.Int64) {
	status = &atomic.Int64{}
	status.Store(200)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(status.Load()))
		fmt.Fprintf(w, `{"image": "app:%s", "size": 12345678901234567}`, r.URL.Query().Get("n"))
	}))
	t.Cleanup(s.Close)
	return s.URL, status
}

func (r *running) letters() uint64 {
	info, err := r.bus.DeadLetters().Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return info.Records
}

// results counts the results in EVENTS.
func (r *running) results() (n uint64) {
	counts, err := r.bus.Events().Counts(r.t.Context(), bus.EventsPrefix+bus.SourceFunction+".>")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range counts {
		n += c
	}
	return n
}

func (r *running) reload() {
	r.t.Helper()
	if _, err := r.e.Reload(r.t.Context(), false); err != nil {
		r.t.Fatal(err)
	}
}

// TestResultFiresAnotherSensor: sensor ci calls a Function, others wait for its
// results; a reload turns that on and off.
func TestResultFiresAnotherSensor(t *testing.T) {
	url, status := builder(t)
	shipped, failed := newSink(t), newSink(t)
	ci := shop("pushes") + "---\n" + head + `kind: Function
metadata: {name: build}
spec: {http: {url: "` + url + `?n=${ data.n }"}, retry: {attempts: 1}}
---
` + head + `kind: Sensor
metadata: {name: ci}
spec:
  dependencies: [{name: push, source: shop, event: pushes}]
  correlate: data.commit
  triggers: [{name: b, function: build}]
`
	after := head + `kind: Sensor
metadata: {name: cd}
spec:
  dependencies:
    - {name: build, function: build, outcome: succeeded}
    - {name: push, source: shop, event: pushes, transform: "{key: data.commit, by: data.by}"}
  correlate: data.key
  triggers:
    - name: ship
      http: {url: ` + shipped.URL + `}
      input: {image: "${ build.data.output.image }", size: "${ build.data.output.size }", by: "${ push.data.by }"}
---
` + head + `kind: Function
metadata: {name: tell}
spec: {http: {url: ` + failed.URL + `}}
---
` + head + `kind: Subscription
metadata: {name: failures}
spec: {eventType: engine.function.failed, function: tell, when: data.function != "tell", input: "${ event.data.error } of ${ event.subject }"}
`
	r := start(t, written(t, "ci.yaml", ci, "cd.yaml", after), t.TempDir())
	r.post("/pushes", `{"commit": 7, "n": 1, "by": "ann"}`)
	r.until("the second sensor's call", func() bool { return len(shipped.got()) == 1 })
	if got := shipped.got()[0]; got != `{"by":"ann","image":"app:1","size":12345678901234567}` {
		t.Errorf("got %s", got)
	}
	status.Store(500)
	r.post("/pushes", `{"commit": 8, "n": 2, "by": "bob"}`)
	r.until("the failure to be told", func() bool { return len(failed.got()) == 1 })
	if got := failed.got()[0]; !strings.Contains(got, "500") || !strings.HasSuffix(got, ` of ci/b`) && !strings.HasSuffix(got, ` of ci/b"`) {
		t.Errorf("got %s", got)
	}
	// The failure of a call, and the successes of the tell function and the inline
	// one nobody asks for: failures are asked for of all.
	status.Store(200)
	r.until("JOBS to empty", func() bool {
		info, err := r.bus.Jobs().Info(t.Context())
		return err == nil && info.Records == 0
	})

	r.write("cd.yaml", "")
	r.reload()
	before := r.results()
	r.post("/pushes", `{"commit": 9, "n": 3}`)
	r.until("the call to end", func() bool {
		info, err := r.bus.Jobs().Info(t.Context())
		return err == nil && info.Records == 0 && r.e.Status(t.Context()).Fold.Folded > 0 && r.succeeded("ci", "b") == 2
	})
	if n := r.results(); n != before {
		t.Errorf("%d results are told that nobody asks for", n-before)
	}
	r.write("cd.yaml", after)
	r.reload()
	r.post("/pushes", `{"commit": 10, "n": 4, "by": "eve"}`)
	r.until("the second sensor's call", func() bool { return len(shipped.got()) == 2 })
}

func (r *running) succeeded(sensor, trigger string) uint64 {
	for _, s := range r.e.Jobs().Status() {
		if s.Ref.Sensor == sensor && s.Ref.Trigger == trigger {
			return s.Stats.Succeeded.Load()
		}
	}
	return 0
}

// TestLoopOfResults: a sensor that waits for what it calls goes round 16 times,
// and ends with a dead letter.
func TestLoopOfResults(t *testing.T) {
	url, _ := builder(t)
	r := start(t, written(t, "a.yaml", head+`kind: Function
metadata: {name: f}
spec: {http: {url: `+url+`}}
---
`+head+`kind: Sensor
metadata: {name: begin}
spec:
  dependencies: [{name: go, type: go}]
  triggers: [{name: t, function: f}]
---
`+head+`kind: Sensor
metadata: {name: again}
spec:
  dependencies: [{name: f, function: f}]
  triggers: [{name: t, function: f}]
`), t.TempDir())
	r.emit("go", "1", "{}")
	r.until("the dead letter", func() bool { return r.letters() == 1 })
	if n := r.results(); n != bus.MaxHops {
		t.Errorf("%d results, want %d", n, bus.MaxHops)
	}
	letters, err := jobs.Letters(t.Context(), r.bus, jobs.TriggerRef{}, 0, 10)
	if err != nil || len(letters) != 1 || !strings.Contains(letters[0].Job.Error, "hop limit 16 reached: trigger t of sensor again would call f") {
		t.Errorf("letters %v, %v", letters, err)
	}
}
