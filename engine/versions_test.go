package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// byHand calls a Function by hand and returns what it gave.
func (r *running) byHand(function, input string) (string, error) {
	out, err := r.e.Call(context.Background(), function, jobs.Request{Input: json.RawMessage(input)})
	if err != nil {
		return "", err
	}
	return string(out.Result.Output), out.Err
}

// resource is the state of one resource.
func (r *running) resource(name string) engine.ResourceStatus {
	for _, s := range r.e.Status(r.t.Context()).Resources {
		if s.Name == name {
			return s
		}
	}
	return engine.ResourceStatus{}
}

// refused waits until a resource runs in an older version for a reason.
func (r *running) refused(name, reason string) {
	r.t.Helper()
	r.until(name+" to be refused because of "+reason, func() bool {
		s := r.resource(name)
		return s.State == "stale" && strings.HasPrefix(s.Reason, "not ready: ") && strings.HasSuffix(s.Reason, "; the version before goes on") && strings.Contains(s.Reason, reason)
	})
	if r.resource(name).NotReady != "" {
		r.t.Errorf("%s cannot be called: %+v", name, r.resource(name))
	}
}

// settled waits until the newest version of a resource is in force.
func (r *running) settled(name string) {
	r.t.Helper()
	r.until(name+" to be what the files say", func() bool {
		s := r.resource(name)
		return s.State == "ok" && s.Trial == nil && s.NotReady == ""
	})
}

// children are the processes that this one has started and that are there.
func children(t *testing.T) (pids []string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			pids = append(pids, strings.Fields(string(b))...)
		}
	}
	return pids
}

func needNode(t testing.TB) {
	t.Helper()
	triggertest.Need(t, exec.Command("node", "-e", "0"), "node")
}

// An edit that breaks the code of a function while it is called costs no call,
// is told with its place, and ends with the next edit.
func TestBrokenCodeUnderLoad(t *testing.T) {
	for _, tt := range []struct {
		kind, file, code, broken, reason string
		need                             func(testing.TB)
	}{
		{
			kind: "python", file: "f.py", need: needPython,
			code: "def handle(context, payload):\n    return %q\n", broken: "import os\ndef handle(context, payload) return 1\n",
			reason: "(f.py:2)",
		},
		{
			kind: "node", file: "f.js", need: needNode,
			code: "module.exports = () => %q;\n", broken: "\nmodule.exports = () => };\n",
			reason: "cannot load f.js: SyntaxError: Unexpected token '}' (f.js:2)",
		},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			tt.need(t)
			before := children(t)
			w := &running{t: t, dir: t.TempDir()}
			w.write(tt.file, fmt.Sprintf(tt.code, "one"))
			w.write("f.yaml", head+`kind: Function
metadata: {name: f}
spec:
  `+tt.kind+`: {file: `+tt.file+`, workers: 2}
  retry: {attempts: 1}
---
`+head+`kind: Subscription
metadata: {name: sub}
spec: {eventType: t, function: f}
`)
			r := start(t, w.dir, t.TempDir())
			r.settled("f")
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var load sync.WaitGroup
			for i := range 3 {
				load.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						if got, err := r.byHand("f", "1"); err != nil || !slices.Contains([]string{`"one"`, `"two"`}, got) {
							t.Errorf("%s, %v", got, err)
							return
						}
						ev := &bus.Event{Type: "t", ID: fmt.Sprint(i, "-", n), Source: "/tests", DataContentType: "application/json", Data: []byte("1")}
						if _, err := r.e.Emit(context.Background(), ev); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			calls := func() uint64 { return r.succeeded("_exec", "f") }
			more := func() {
				was := calls()
				r.until("more calls", func() bool { return calls() > was+20 })
			}
			more()
			w.write(tt.file, tt.broken)
			r.refused("f", tt.reason)
			st := r.e.Status(t.Context())
			if !slices.ContainsFunc(st.Problems, func(d specs.Diagnostic) bool {
				return d.Code == engine.CodeNotReady && d.Severity == specs.Error && d.Path == "spec."+tt.kind && d.Pos.Line == 5 && strings.Contains(d.Message, tt.reason)
			}) || st.Reload.Refused.IsZero() {
				t.Errorf("%v, %v", st.Problems, st.Reload)
			}
			if ok, why := r.e.Ready(t.Context()); !ok {
				t.Error(why)
			}
			more()
			w.write(tt.file, fmt.Sprintf(tt.code, "two"))
			r.settled("f")
			if got, err := r.byHand("f", "1"); got != `"two"` || err != nil {
				t.Errorf("%s, %v", got, err)
			}
			if st := r.e.Status(t.Context()); len(st.Problems) > 0 {
				t.Errorf("%v", st.Problems)
			}
			more()
			stop()
			load.Wait()
			for _, s := range r.e.Jobs().Status() {
				if s.Stats.Failed.Load() > 0 || s.Stats.Dead.Load() > 0 {
					t.Errorf("%v: %d calls failed, %d were given up", s.Ref, s.Stats.Failed.Load(), s.Stats.Dead.Load())
				}
			}
			// Deleted while a version is on trial.
			w.write(tt.file, tt.broken)
			r.refused("f", tt.reason)
			if err := os.Remove(filepath.Join(w.dir, "f.yaml")); err != nil {
				t.Fatal(err)
			}
			r.until("the function to be gone", func() bool { return r.resource("f").Name == "" })
			r.until("its processes to be gone", func() bool { return len(children(t)) <= len(before) })
		})
	}
}

// What keeps a version from starting, whatever it is, keeps it from replacing
// the one that works; after a fix nothing of it is left.
func TestVersionsThatDoNotStart(t *testing.T) {
	needPython(t)
	function := func(config string) string {
		return head + "kind: Function\nmetadata: {name: f}\nspec:\n  python:\n    " + strings.ReplaceAll(strings.TrimSpace(config), "\n", "\n    ") + "\n"
	}
	good := "source: |\n  def handle(context, payload):\n      return 1"
	w := &running{t: t, dir: t.TempDir()}
	w.write("f.yaml", function(good))
	r := start(t, w.dir, t.TempDir())
	r.settled("f")
	for name, tt := range map[string]struct{ config, reason string }{
		"exception":    {"source: |\n  import os\n  os.environ['nothing']\n  def handle(c, p): pass", "cannot import function: KeyError: 'nothing' (<function>:2)"},
		"no handler":   {"source: |\n  def handel(c, p): pass", "module function has no function handle"},
		"exit":         {"source: |\n  import os\n  os._exit(3)", "it exited with code 3 before it was ready"},
		"requirements": {good + "\nrequirements: [/nothing/here.whl]", "requirements cannot be installed: "},
		"interpreter":  {good + "\npython: /nothing/here", "program not found"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			w.write("f.yaml", function(tt.config))
			r.refused("f", tt.reason)
			if got, err := r.byHand("f", "null"); got != "1" || err != nil {
				t.Errorf("%s, %v", got, err)
			}
			w.write("f.yaml", function(good))
			r.settled("f")
		})
	}
	// The function of a trigger.
	r.t = t
	sensor := func(code string) string {
		return head + `kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: it, type: t}]
  triggers: [{name: note, input: {is: "${ it.data }"}, python: {source: ` + strconv.Quote(code) + `}}]
`
	}
	w.write("s.yaml", sensor("def handle(c, p): return p"))
	r.settled("s")
	w.write("s.yaml", sensor("def handle(c, p) return p"))
	r.refused("s", "note: cannot import function: SyntaxError: ")
	if got := r.call("t", "1", "7"); string(got.Output) != `{"is":7}` {
		t.Errorf("%+v", got)
	}
	w.write("s.yaml", sensor("def handle(c, p): return 'new'"))
	r.settled("s")
	if got := r.call("t", "2", "7"); string(got.Output) != `"new"` {
		t.Errorf("%+v", got)
	}
}

// A program that ends before it is called does not replace one that answers.
func TestProgramsThatEndAtOnce(t *testing.T) {
	w := &running{t: t, dir: t.TempDir()}
	answer := func(text string) string {
		return "n=0; while read line; do n=$((n+1)); echo \"{\\\"id\\\":$n,\\\"payload\\\":\\\"" + text + "\\\"}\"; done\n"
	}
	w.write("w.sh", answer("one"))
	w.write("f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec:\n  exec: {mode: worker, command: [sh, w.sh]}\n")
	r := start(t, w.dir, t.TempDir())
	r.settled("f")
	for _, broken := range []string{"echo out of order >&2; exit 3\n", "while ((\n"} {
		w.write("w.sh", broken)
		r.refused("f", "it exited with code ")
		if got, err := r.byHand("f", "1"); got != `"one"` || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	}
	if got := r.resource("f").Reason; !strings.Contains(got, "before it was ready: ") {
		t.Error(got)
	}
	w.write("w.sh", answer("two"))
	r.settled("f")
	if got, err := r.byHand("f", "1"); got != `"two"` || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// Where neither the version before nor the new one can be called, the new one is
// in force: what it says is what is to be put right.
func TestBothVersionsFail(t *testing.T) {
	w := &running{t: t, dir: t.TempDir()}
	spec := func(command string) {
		w.write("f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec: {exec: {mode: worker, command: ["+command+"]}}\n")
	}
	w.write("old.sh", "#!/bin/sh\nread line\nexit 1\n")
	if err := os.Chmod(filepath.Join(w.dir, "old.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec("./old.sh")
	r := start(t, w.dir, t.TempDir())
	r.settled("f")
	spec("./new.sh")
	r.refused("f", "program not found")
	// The one that goes on cannot start another process.
	if err := os.Chmod(filepath.Join(w.dir, "old.sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.until("the new version to be in force", func() bool {
		_, _ = r.byHand("f", "1")
		s := r.resource("f")
		return s.Trial == nil && s.State == "ok" && strings.Contains(s.NotReady, "program not found")
	})
}

// Who asks for a reload is told whether what was changed starts.
func TestReloadAwaitsVersions(t *testing.T) {
	needPython(t)
	w := &running{t: t, dir: t.TempDir()}
	w.write("f.py", "def handle(c, p): return 1\n")
	w.write("f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec: {python: {file: f.py}}\n")
	r := start(t, w.dir, t.TempDir())
	for i, code := range []string{"def handle(c, p): return 2\n", "def handle(c, p) return 3\n", "def handle(c, p): return 4\n"} {
		w.write("f.py", code)
		d, err := r.e.Reload(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		if bad := i == 1; d.Diagnostics.HasErrors() != bad {
			t.Errorf("%d: %v", i, d.Diagnostics)
		}
		if got, err := r.byHand("f", "1"); got != []string{"2", "2", "4"}[i] || err != nil {
			t.Errorf("%d: %s, %v", i, got, err)
		}
	}
}

// A version is in force with all of it: code, schemas, secrets, limits.
func TestVersionsStayWhole(t *testing.T) {
	needPython(t)
	t.Setenv("TOKEN_ONE", "token-one")
	t.Setenv("TOKEN_TWO", "token-two")
	w := &running{t: t, dir: t.TempDir()}
	spec := func(code, input, key, timeout string) string {
		return head + `kind: Function
metadata: {name: f}
spec:
  python: {file: f.py}
  input: {schema: {required: [` + input + `]}}
  secrets: [s]
  timeout: ` + timeout + `
---
` + head + `kind: Secret
metadata: {name: s}
spec: {env: {` + key + `}}
`
	}
	one := "def handle(c, p):\n    return ['one' if c.secrets['one'] == 'token-' + 'one' else c.secrets, c.deadline]\n"
	w.write("f.py", one)
	w.write("f.yaml", spec(one, "a", "one: TOKEN_ONE", "1h"))
	r := start(t, w.dir, t.TempDir())
	r.settled("f")
	old := func() {
		t.Helper()
		got, err := r.byHand("f", `{"a":1}`)
		if err != nil || !strings.HasPrefix(got, `["one",`) {
			t.Errorf("%s, %v", got, err)
		}
		if got, err := r.byHand("f", `{"b":1}`); err == nil {
			t.Errorf("input of the new version is taken: %s", got)
		}
	}
	old()
	hash := r.resource("f").Hash
	w.write("f.py", "def handle(c, p)\n")
	w.write("f.yaml", spec("", "b", "two: TOKEN_TWO", "2h"))
	r.refused("f", "(f.py:1)")
	r.until("both edits to be read", func() bool {
		res := r.e.Resource(specs.Ref{Kind: specs.KindFunction, Name: "f"})
		return res.Spec.(*specs.Function).Timeout.D().Hours() == 2 && r.resource("f").State == "stale"
	})
	old()
	if got := r.resource("f").Hash; got != hash {
		t.Errorf("hash %s, what runs has %s", got, hash)
	}
	w.write("f.py", "def handle(c, p):\n    return sorted(c.secrets)\n")
	r.settled("f")
	if got, err := r.byHand("f", `{"b":1}`); got != `["two"]` || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := r.byHand("f", `{"a":1}`); err == nil {
		t.Errorf("input of the version before is taken: %s", got)
	}
}

// A version that goes on does so with the code that it was made of, also in
// processes that start later.
func TestOldCodeStartsAgain(t *testing.T) {
	needPython(t)
	w := &running{t: t, dir: t.TempDir()}
	w.write("f.py", "import os, near\ndef handle(c, p):\n    if p == 'die':\n        os._exit(1)\n    return near.word\n")
	w.write("near.py", "word = 'one'\n")
	w.write("f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec:\n  python: {file: f.py, workers: 1}\n")
	r := start(t, w.dir, t.TempDir())
	r.settled("f")
	w.write("f.py", "import near\ndef handle(c, p): return near.word +\n")
	w.write("near.py", "word = 'two'\n")
	r.refused("f", "SyntaxError")
	for range 3 {
		if _, err := r.byHand("f", `"die"`); err == nil {
			t.Error("it lives")
		}
		if got, err := r.byHand("f", `1`); got != `"one"` || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	}
	w.write("f.py", "import near\ndef handle(c, p): return near.word + '!'\n")
	r.settled("f")
	if got, err := r.byHand("f", `1`); got != `"two!"` || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// A function that never worked is replaced at once by whatever comes, and so is
// one after a restart: there is nothing that could go on. Calls that could not be
// made are made again.
func TestNothingGoesOnBeforeTheFirst(t *testing.T) {
	needPython(t)
	w := &running{t: t, dir: t.TempDir()}
	spec := func(code string) {
		w.write("f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec:\n  python: {source: "+strconv.Quote(code)+"}\n"+
			"  retry: {attempts: 100, backoff: 20ms, factor: 1}\n---\n"+
			head+"kind: Subscription\nmetadata: {name: sub}\nspec: {eventType: t, function: f}\n")
	}
	data := t.TempDir()
	spec("def handel(c, p): pass")
	r := start(t, w.dir, data)
	notReady := func(reason string) {
		t.Helper()
		r.until("the reason", func() bool {
			s := r.resource("f")
			return s.State == "ok" && s.Trial == nil && strings.Contains(s.NotReady, reason)
		})
	}
	notReady("no function handle")
	spec("handle = 3")
	notReady("handle is no function")
	if got := r.call("t", "1", `1`); got.Status != jobs.StatusRetrying || got.Class != "SystemError" || !strings.Contains(got.Error, "the function is not ready: function.handle is no function") {
		t.Errorf("%+v", got)
	}
	spec("def handle(c, p): return 1")
	r.until("the call to be made again", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{Status: jobs.StatusSucceeded})
		return err == nil && len(runs) > 0
	})
	r.settled("f")
	if got, err := r.byHand("f", `1`); got != "1" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	spec("handle = 4")
	r.refused("f", "handle is no function")
	r.stop()
	r = start(t, w.dir, data)
	notReady("handle is no function")
}
