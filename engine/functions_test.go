package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
)

// call emits an event and returns the history of the first call it led to.
func (r *running) call(typ, id, data string) (got struct {
	Status, Error, Class string
	Output               json.RawMessage
	Logs                 struct{ Stdout, Stderr []string }
},
) {
	r.t.Helper()
	ev := &bus.Event{Type: typ, ID: id, Source: "/tests", DataContentType: "application/json", Data: []byte(data)}
	ack, err := r.e.Emit(r.t.Context(), ev)
	if err != nil {
		r.t.Fatal(err)
	}
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
	dir := t.TempDir()
	w := &running{t: t, dir: dir}
	w.write("in.json", `{"required": ["name"]}`)
	w.write("f.yaml", head+`kind: Function
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
`)
	r := start(t, dir, t.TempDir())
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
	w.write("in.json", `{"required": ["id"]}`)
	r.until("the new schema", func() bool { return r.e.Status(t.Context()).Reload.Generation > generation })
	if got = r.call("t", "4", `{"name":"Jon"}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	w.write("in.json", `{"required": "id"}`)
	r.until("the warning", func() bool { return problem(engine.CodeInvalidSchema) })
	if got = r.call("t", "5", `{"id":1}`); got.Status != jobs.StatusSucceeded {
		t.Errorf("%+v", got)
	}
	if got = r.call("t", "6", `{}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	if err := os.Remove(filepath.Join(dir, "in.json")); err != nil {
		t.Fatal(err)
	}
	r.until("the warning", func() bool { return problem(specs.CodeUnreadable) })
	if got = r.call("t", "7", `{}`); got.Class != "InputError" {
		t.Errorf("%+v", got)
	}
	w.write("in.json", `true`)
	r.until("the warning to go", func() bool { return !problem(specs.CodeUnreadable) })
	if got = r.call("t", "8", `{}`); got.Status != jobs.StatusSucceeded {
		t.Errorf("%+v", got)
	}
	if ok, why := r.e.Ready(t.Context()); !ok {
		t.Error(why)
	}
}
