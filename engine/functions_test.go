package engine_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// call emits an event and returns the history of the first call it led to.
func (r *running) call(typ, id, data string) (got struct {
	Status, Error, Class string
	Output               json.RawMessage
	Logs                 struct{ Stdout, Stderr []string }
},
) {
	r.t.Helper()
	ack := r.emit(typ, id, data)
	r.until("the call of event "+id, func() bool {
		runs, err := jobs.ReadRuns(r.t.Context(), r.bus, jobs.RunFilter{})
		if err != nil {
			r.t.Fatal(err)
		}
		return slices.ContainsFunc(runs, func(run jobs.StoredRun) bool {
			var of struct{ Event struct{ Seq uint64 } }
			return json.Unmarshal(run.JSON, &of) == nil && of.Event.Seq == ack.Seq && json.Unmarshal(run.JSON, &got) == nil
		})
	})
	return got
}

func TestFilesBesideSpecs(t *testing.T) {
	t.Setenv("GRANTED", "granted-value")
	t.Setenv("ADDED", "added-value")
	r := start(t, written(t, "in.json", `{"required": ["name"]}`, "f.yaml", head+`kind: Function
metadata: {name: f}
spec:
  exec: {command: [sh, -c, 'echo "$A_KEY $B_KEY" >&2; cat']}
  input: {schema: in.json}
  output: {schema: {type: object}}
  secrets: [a]
---
`+head+`kind: Subscription
metadata: {name: sub}
spec: {eventType: t, function: f, secrets: [b], retry: {attempts: 1}}
---
`+head+`kind: Secret
metadata: {name: a}
spec: {env: {a-key: GRANTED, b-key: GRANTED}}
---
`+head+`kind: Secret
metadata: {name: b}
spec: {env: {b-key: ADDED}}
`), t.TempDir())
	problem := func(code specs.Code) bool {
		return slices.ContainsFunc(r.e.Decision().Diagnostics, func(d specs.Diagnostic) bool { return d.Code == code && d.Severity == specs.Warning })
	}

	got := r.call("t", "1", `{"name":"Jon"}`)
	if got.Status != jobs.StatusSucceeded || string(got.Output) != `{"name":"Jon"}` || !slices.Equal(got.Logs.Stderr, []string{"*** ***"}) {
		t.Errorf("%+v", got)
	}
	if got = r.call("t", "2", `{}`); got.Status != jobs.StatusDead || got.Class != "InputError" || got.Logs.Stderr != nil {
		t.Errorf("%+v", got)
	}
	if got = r.call("t", "3", `[1]`); got.Status != jobs.StatusDead || got.Class != "FunctionError" || !strings.Contains(got.Error, "Output invalid against schema") {
		t.Errorf("%+v", got)
	}

	// Another schema is in force when it is written, a broken one never.
	generation := r.e.Status(t.Context()).Reload.Generation
	r.write("in.json", `{"required": ["id"]}`)
	r.until("the new schema", func() bool { return r.e.Status(t.Context()).Reload.Generation > generation })
	if got = r.call("t", "4", `{"name":"Jon"}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	r.write("in.json", `{"required": "id"}`)
	r.until("the warning", func() bool { return problem(engine.CodeInvalidSchema) })
	if got = r.call("t", "5", `{"id":1}`); got.Status != jobs.StatusSucceeded {
		t.Errorf("%+v", got)
	}
	if got = r.call("t", "6", `{}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	if err := os.Remove(filepath.Join(r.dir, "in.json")); err != nil {
		t.Fatal(err)
	}
	r.until("the warning", func() bool { return problem(specs.CodeUnreadable) })
	if got = r.call("t", "7", `{}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	r.write("in.json", `true`)
	r.until("the warning to go", func() bool { return !problem(specs.CodeUnreadable) })
	if got = r.call("t", "8", `{}`); got.Status != jobs.StatusSucceeded {
		t.Errorf("%+v", got)
	}
	if ok, why := r.e.Ready(t.Context()); !ok {
		t.Error(why)
	}
}

// The rate limit of a Function holds for its triggers together, and each
// trigger's own too; a reload that does not change them fills no bucket.
func TestRateLimitsOfFunctionsAndTriggers(t *testing.T) {
	spec := func(limit int, message string) string {
		return head + `kind: Function
metadata: {name: f}
spec:
  log: {message: ` + message + `}
  rateLimit: {calls: ` + strconv.Itoa(limit) + `, per: 1000h}
---
` + head + `kind: Subscription
metadata: {name: one}
spec: {eventType: t, function: f, rateLimit: {calls: 1, per: 1000h}}
---
` + head + `kind: Subscription
metadata: {name: two}
spec: {eventType: t, function: f}
`
	}
	r := start(t, written(t, "f.yaml", spec(4, "hello")), t.TempDir())
	for i := range 10 {
		r.emit("t", strconv.Itoa(i), "{}")
	}
	calls := func() (all, one uint64) {
		for _, s := range r.e.Jobs().Status() {
			n := s.Stats.Succeeded.Load()
			all += n
			if strings.Contains(s.Ref.Sensor, "one") {
				one += n
			}
		}
		return all, one
	}
	reached := func(want uint64) {
		t.Helper()
		r.until("the calls", func() bool { all, _ := calls(); return all == want })
		if _, one := calls(); one > 1 {
			t.Fatalf("%d calls of a trigger that may make one", one)
		}
	}
	reached(4)
	generation := r.e.Status(t.Context()).Reload.Generation
	r.write("f.yaml", spec(4, "hi"))
	r.until("the reload", func() bool { return r.e.Status(t.Context()).Reload.Generation > generation })
	reached(4)
	r.write("f.yaml", spec(7, "hi"))
	reached(11)
}

// A rate limit by key, of a Function and of a trigger, holds for each key.
func TestRateLimitsByKey(t *testing.T) {
	r := start(t, written(t, "f.yaml", head+`kind: Function
metadata: {name: f}
spec:
  log: {message: hello}
  rateLimit: {calls: 2, per: 1000h, by: key}
---
`+head+`kind: Sensor
metadata: {name: one}
spec:
  dependencies: [{name: e, type: t}]
  correlate: data.k
  triggers:
    - {name: some, function: f}
    - {name: few, function: f, rateLimit: {calls: 1, per: 1000h, by: key}}
    - {name: inline, log: {message: hi}, rateLimit: {calls: 3, per: 1000h, by: key}}
`), t.TempDir())
	for i := range 20 {
		r.emit("t", strconv.Itoa(i), `{"k":`+strconv.Itoa(i%2)+`}`)
	}
	of := func(name string) (done uint64, limited int) {
		for _, s := range r.e.Jobs().Status() {
			if s.Ref == (jobs.TriggerRef{Sensor: "one", Trigger: name}) {
				return s.Stats.Succeeded.Load(), s.Limited
			}
		}
		return 0, 0
	}
	r.until("the calls", func() bool {
		some, w1 := of("some")
		few, w2 := of("few")
		inline, w3 := of("inline")
		return some+few == 4 && w1+w2 == 36 && inline == 6 && w3 == 14
	})
	if few, _ := of("few"); few > 2 {
		t.Errorf("%d calls of two keys that may have one each", few)
	}
	if _, err := r.e.Call(t.Context(), "f", jobs.Request{Input: []byte("1")}); err != nil {
		t.Errorf("a call without a key: %v", err)
	}
}

// The code of a function is replaced when its file changes and works; what is
// wrong with it is told before it is called.
func TestCodeBesideSpecs(t *testing.T) {
	needPython(t)
	code := func(text string) string { return "def handle(context, payload):\n    " + text + "\n" }
	r := start(t, written(t, "f.py", code(`return "one"`), "f.yaml", head+`kind: Function
metadata: {name: f}
spec:
  python: {file: f.py}
  retry: {attempts: 100, backoff: 20ms, factor: 1}
---
`+head+`kind: Subscription
metadata: {name: sub}
spec: {eventType: t, function: f}
`), t.TempDir())
	if got := r.call("t", "1", `1`); string(got.Output) != `"one"` {
		t.Errorf("%+v", got)
	}
	generation := func() int { return r.e.Status(t.Context()).Reload.Generation }
	was := generation()
	r.write("f.py", code(`return "two"`))
	r.until("the new code", func() bool { return generation() > was })
	if got := r.call("t", "2", `1`); string(got.Output) != `"two"` {
		t.Errorf("%+v", got)
	}
	r.write("f.py", "def handle(context): return 1\n")
	r.refused("f", "f.handle does not take two arguments")
	if got := r.call("t", "3", `1`); string(got.Output) != `"two"` {
		t.Errorf("%+v", got)
	}
	was = generation()
	r.write("f.py", code(`return "three"`))
	r.until("the new code", func() bool { return generation() > was })
	if got := r.call("t", "4", `1`); string(got.Output) != `"three"` {
		t.Errorf("%+v", got)
	}
	// A file that disappears replaces nothing.
	if err := os.Remove(filepath.Join(r.dir, "f.py")); err != nil {
		t.Fatal(err)
	}
	r.until("the warning", func() bool {
		return slices.ContainsFunc(r.e.Decision().Diagnostics, func(d specs.Diagnostic) bool { return d.Code == specs.CodeUnreadable })
	})
	if got := r.call("t", "5", `1`); string(got.Output) != `"three"` {
		t.Errorf("%+v", got)
	}
}

// What a function emits is an event like any other, once, and its cause is told.
func TestEmittedEventsGoOn(t *testing.T) {
	needPython(t)
	r := start(t, written(t, "f.yaml", head+`kind: Function
metadata: {name: first}
spec:
  python:
    source: |
      seen = 0
      def handle(context, payload):
          global seen
          seen += 1
          context.emit("second", {"n": payload["n"] + 1, "attempt": context.attempt}, subject="s")
          context.emit("second", {"n": payload["n"] + 2, "attempt": context.attempt})
          if seen < 3:
              raise RuntimeError("not yet")
  retry: {attempts: 5, backoff: 1ms}
---
`+head+`kind: Subscription
metadata: {name: one}
spec: {eventType: first, function: first}
---
`+head+`kind: Sensor
metadata: {name: two}
spec:
  dependencies: [{name: it, type: second}]
  triggers: [{name: note, exec: {command: [cat]}}]
`), t.TempDir())
	r.call("first", "1", `{"n": 1}`)
	var got []string
	r.until("what the emitted events led to", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{Function: "two.note"})
		if err != nil {
			t.Fatal(err)
		}
		got = got[:0]
		for _, run := range runs {
			var of struct{ Output json.RawMessage }
			if err := json.Unmarshal(run.JSON, &of); err != nil {
				t.Fatal(err)
			}
			got = append(got, string(of.Output))
		}
		return len(got) >= 2
	})
	slices.Sort(got)
	if want := []string{`{"n":2,"attempt":3}`, `{"n":3,"attempt":3}`}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// needPython skips a test where there is no Python.
func needPython(t testing.TB) {
	t.Helper()
	triggertest.Need(t, exec.Command("python3", "-c", "0"), "python3")
}

// Processes that die in the middle of calls lose nothing, and a function that
// hangs hurts nobody beside it.
func TestWorkersDieUnderLoad(t *testing.T) {
	needPython(t)
	r := start(t, written(t, "f.yaml", head+`kind: Function
metadata: {name: dies}
spec:
  python:
    source: |
      import os, random, signal
      def handle(context, payload):
          chance = random.random()
          if chance < 0.1:
              os.kill(os.getpid(), signal.SIGKILL)
          if chance < 0.2:
              os._exit(1)
          return payload
    workers: 2
  retry: {attempts: 1000, backoff: 1ms, max: 10ms}
---
`+head+`kind: Subscription
metadata: {name: dies}
spec: {eventType: t, function: dies}
---
`+head+`kind: Function
metadata: {name: hangs}
spec:
  python: {source: "def handle(context, payload):\n  while True: pass"}
  timeout: 200ms
  retry: {attempts: 2, backoff: 1ms}
---
`+head+`kind: Subscription
metadata: {name: hangs}
spec: {eventType: t, function: hangs, concurrency: 1}
`), t.TempDir())
	const n = 100
	for i := range n {
		r.emit("t", strconv.Itoa(i), strconv.Itoa(i))
	}
	stats := func(function string) (s jobs.TriggerStatus) {
		for _, s := range r.e.Jobs().Status() {
			if s.Function == function && s.Ref.Sensor != jobs.SensorExec {
				return s
			}
		}
		return s
	}
	r.until("all calls to succeed", func() bool { return stats("dies").Stats.Succeeded.Load() >= n })
	if s := stats("dies"); s.Stats.Failed.Load() == 0 || s.Stats.Dead.Load() > 0 {
		t.Errorf("%d attempts failed, %d calls were given up", s.Stats.Failed.Load(), s.Stats.Dead.Load())
	}
	if s := stats("hangs"); s.Stats.Succeeded.Load() > 0 || s.Stats.Dead.Load() == n {
		t.Errorf("the function that hangs has succeeded %d times, or was not awaited: %d dead", s.Stats.Succeeded.Load(), s.Stats.Dead.Load())
	}
	seen := map[string]bool{}
	r.until("all calls in the history", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{Function: "dies", Status: jobs.StatusSucceeded, Limit: 10 * n})
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range runs {
			var of struct{ Output json.RawMessage }
			if err := json.Unmarshal(run.JSON, &of); err != nil {
				t.Fatal(err)
			}
			seen[string(of.Output)] = true
		}
		return len(seen) == n
	})
}
