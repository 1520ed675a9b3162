package python

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// make makes a function that is closed with the test.
func makeFunction(t testing.TB, config string, env triggers.Env) triggers.Function {
	t.Helper()
	needPython(t)
	f := Factory()
	fn, err := f.Make(triggertest.Config(t, f, config), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fn.(*function).Close(); err != nil {
			t.Error(err)
		}
	})
	return fn
}

func call(t testing.TB, fn triggers.Function, payload string) (triggers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := triggertest.NewCall("k")
	c.Event.Data = []byte(payload)
	return fn.Invoke(ctx, c)
}

func indent(code string) string {
	return "source: |\n  " + strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n  ")
}

func TestResults(t *testing.T) {
	for _, tc := range []struct {
		what, code, payload string
		want                string
		class               triggers.Class
		message             string
		stack               string
	}{
		{what: "nothing", code: "def handle(c, p): pass", want: `null`},
		{what: "async", code: "import asyncio\nasync def handle(c, p):\n  await asyncio.sleep(0)\n  return p", payload: `[1]`, want: `[1]`},
		{what: "attributes of the context", code: "def handle(ctx, payload): return [ctx.event['id'], ctx.key, ctx.secrets, ctx.get('none'), hasattr(ctx, 'none')]", want: `["event-k","k",{},null,false]`},
		{what: "a callable object", code: "class C:\n  def __call__(self, a, b): return b\nhandle = C()", payload: `1`, want: `1`},
		{what: "more arguments with defaults", code: "def handle(c, p, x=3): return x", want: `3`},
		{what: "keys that are no text", code: "def handle(c, p): return {1: None, False: 2.5}", want: `{"1":null,"false":2.5}`},
		{what: "half a surrogate pair", code: `def handle(c, p): return "a\ud800b"`, want: "\"a\uFFFDb\""},
		{what: "outside of ASCII as it is", code: `def handle(c, p): return "pässwörd"`, want: `"pässwörd"`},
		{what: "NaN", code: "def handle(c, p): return float('nan')", class: triggers.FunctionError, message: "the result cannot be JSON: Out of range float"},
		{what: "a set", code: "def handle(c, p): return {1}", class: triggers.FunctionError, message: "the result cannot be JSON: Object of type set"},
		{what: "bytes", code: "def handle(c, p): return b''", class: triggers.FunctionError, message: "the result cannot be JSON"},
		{what: "a circle", code: "def handle(c, p):\n  a = []\n  a.append(a)\n  return a", class: triggers.FunctionError, message: "the result cannot be JSON: Circular"},
		{what: "too deep", code: "def handle(c, p):\n  a = []\n  for _ in range(100000): a = [a]\n  return a", class: triggers.FunctionError, message: "the result cannot be JSON"},
		{what: "input too deep", code: "def handle(c, p): return 1", payload: strings.Repeat("[", 9000) + strings.Repeat("]", 9000), class: triggers.InputError, message: "Invalid Input"},
		{what: "a number with too many digits", code: "import sys\ndef handle(c, p): return len(str(p))", payload: strings.Repeat("1", 5000), class: triggers.InputError, message: ""},
		{what: "AttributeError", code: "def handle(c, p): return p.get('x')", payload: `42`, class: triggers.FunctionError, message: "'int' object has no attribute 'get'", stack: `File "<function>", line 1, in handle`},
		{what: "TypeError", code: "def handle(c, p): return p + 1", payload: `"a"`, class: triggers.InputError, message: "can only concatenate str"},
		{what: "a subclass of ValueError", code: "class E(ValueError): pass\ndef handle(c, p): raise E('bad')", class: triggers.InputError, message: "bad"},
		{what: "KeyError", code: "def handle(c, p): return {}['x']", class: triggers.FunctionError, message: "KeyError: 'x'"},
		{what: "no text", code: "def handle(c, p): raise RuntimeError()", class: triggers.FunctionError, message: "RuntimeError"},
		{what: "an exception whose text cannot be had", code: "class E(Exception):\n  def __str__(self): raise RuntimeError('x')\ndef handle(c, p): raise E()", class: triggers.FunctionError, message: "E"},
		{what: "exit", code: "import sys\ndef handle(c, p): sys.exit(4)", class: triggers.FunctionError, message: "the function called exit(4)"},
		{what: "interrupt", code: "def handle(c, p): raise KeyboardInterrupt", class: triggers.FunctionError, message: "KeyboardInterrupt"},
		{what: "endless recursion", code: "def handle(c, p): return handle(c, p)", class: triggers.FunctionError, message: "maximum recursion depth"},
		{what: "a cause", code: "def handle(c, p):\n  try: 1/0\n  except Exception as e: raise OSError('outer') from e", class: triggers.FunctionError, message: "outer", stack: "ZeroDivisionError"},
		{what: "emitted data that cannot be JSON", code: "def handle(c, p): c.emit('t', {1})", class: triggers.FunctionError, message: "data of an event cannot be JSON: Object of type set"},
		{what: "stdout closed", code: "import sys\ndef handle(c, p):\n  sys.stdout.close()\n  return 1", want: `1`},
		{what: "stdout replaced", code: "import sys, io\ndef handle(c, p):\n  sys.stdout = io.StringIO()\n  print('x')\n  return 1", want: `1`},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			if tc.payload == "" {
				tc.payload = "null"
			}
			fn := makeFunction(t, indent(tc.code), triggers.Env{Dir: "."})
			for range 2 { // a failure leaves the worker as it was
				res, err := call(t, fn, tc.payload)
				if tc.class == "" {
					if err != nil || string(res.Output) != tc.want {
						t.Fatalf("%s, %v, want %s", res.Output, err, tc.want)
					}
					continue
				}
				e, ok := errors.AsType[*triggers.Error](err)
				if !ok || e.Class != tc.class || !strings.Contains(e.Message, tc.message) {
					t.Fatalf("%s, %v, want %s: %s", res.Output, err, tc.class, tc.message)
				}
				stack := strings.Join(e.Stacktrace, "\n")
				if !strings.Contains(stack, tc.stack) || strings.Contains(stack, "in serve") {
					t.Errorf("stack trace:\n%s", stack)
				}
			}
		})
	}
}

// What is wrong with a function is told before its first call, in one sentence.
func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old"), "#!/bin/sh\necho '{\"executable\": \"/x\", \"version\": [3, 7, 1], \"tag\": \"\"}'\n", 0o700)
	write(t, filepath.Join(dir, "other"), "#!/bin/sh\necho hello\n", 0o700)
	write(t, filepath.Join(dir, "bad.py"), "def handle(ctx, payload:\n", 0o600)
	write(t, filepath.Join(dir, "uses.py"), "import json\nimport deep\n", 0o600)
	write(t, filepath.Join(dir, "deep.py"), "import os\nos.environ['x']\n", 0o600)
	for config, want := range map[string]string{
		indent("x = 1"):                          "module function has no function handle",
		indent("handle = 3"):                     "function.handle is no function, it is of type int",
		indent("def handle(payload): pass"):      "function.handle does not take two arguments, context and payload",
		indent("def handle(a, b, c): pass"):      "does not take two arguments",
		indent("def handle(a, b, *, c): pass"):   "does not take two arguments",
		indent("import nothing_of_this_name"):    "cannot import function: ModuleNotFoundError: No module named 'nothing_of_this_name'",
		indent("raise SystemExit(3)"):            "cannot import function: SystemExit: 3",
		indent("import os\nos._exit(3)"):         "it exited with code 3 before it was ready",
		indent("import os\nos.abort()"):          "it was killed by SIGABRT before it was ready",
		"file: bad.py":                           "cannot import bad: SyntaxError: ",
		"file: uses.py":                          "cannot import uses: KeyError: 'x' (deep.py:2)",
		"file: bad.py\npython: ./old":            "./old is Python 3.7; 3.8 or later is needed",
		"file: bad.py\npython: ./other":          "./other does not answer as Python does",
		"file: bad.py\npython: ./none":           "program not found",
		"file: bad.py\npython: no-such-python":   "program no-such-python not found in the engine's PATH",
		"file: bad.py\nrequirements: [requests]": "there is no directory to keep them in",
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir})
		_, err := call(t, fn, "null")
		later, _ := errors.AsType[*triggers.RetryAfterError](err)
		if err == nil || later == nil || triggers.ClassOf(err) != triggers.SystemError || triggers.Permanent(err) ||
			!strings.Contains(err.Error(), "the function is not ready: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", config, err, want)
		}
		if ready := fn.(*function).Ready(); ready == nil || strings.Contains(ready.Error(), "\n") {
			t.Errorf("%s: %v", config, ready)
		}
	}
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestSources(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "hello-world.py"), "import near\ndef handle(c, p): return near.word\ndef other(c, p): return __file__\n", 0o600)
	write(t, filepath.Join(dir, "near.py"), "word = 'near'\n", 0o600)
	write(t, filepath.Join(dir, "sub/pkg/__init__.py"), "", 0o600)
	write(t, filepath.Join(dir, "sub/pkg/mod.py"), "from . import far\nimport os\ndef run(c, p): return [far.word, os.getcwd(), os.environ.get('GREETING'), os.environ.get('TOKEN'), 'SECRET' in os.environ]\n", 0o600)
	write(t, filepath.Join(dir, "sub/pkg/far.py"), "word = 'far'\n", 0o600)
	t.Setenv("SECRET", "the engine's")
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		"file: hello-world.py":                              `"near"`,
		"file: hello-world.py\nhandler: other":              fmt.Sprintf("%q", filepath.Join(dir, "hello-world.py")),
		"file: hello-world.py\nhandler: hello-world.handle": `"near"`,
		"dir: sub\nhandler: pkg.mod.run\nenv: {GREETING: hi, TOKEN: {secret: {name: a, key: b}, prefix: 'Bearer '}}": fmt.Sprintf(`["far",%q,"hi","Bearer t",false]`, filepath.Join(real, "sub")),
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data, Secret: func(ref specs.SecretRef) (string, error) { return "t", nil }})
		if res, err := call(t, fn, "null"); string(res.Output) != want || err != nil {
			t.Errorf("%s\n got %s, %v\nwant %s", config, res.Output, err, want)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "*", "__pycache__")); len(found) > 0 {
		t.Errorf("%v was made beside the specs", found)
	}
}

// A process that starts after the code was changed, or removed, has the code that
// the function was made of.
func TestCodeStaysWhatItWas(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.py"), "# -*- coding: latin-1 -*-\nimport pkg.mod, json\ndef handle(c, p):\n    import later\n    if p: raise RuntimeError('no')\n    return ['\xe4', pkg.mod.word, later.word, __file__]\n", 0o600)
	write(t, filepath.Join(dir, "later.py"), "word = 'late'\n", 0o600)
	write(t, filepath.Join(dir, "pkg/__init__.py"), "", 0o600)
	write(t, filepath.Join(dir, "pkg/mod.py"), "from .far import word\n", 0o600)
	write(t, filepath.Join(dir, "pkg/far.py"), "word = 'far'\n", 0o600)
	fn := makeFunction(t, "dir: .\nhandler: main.handle\nidle: 1s", triggers.Env{Dir: dir})
	want := fmt.Sprintf(`["ä","far","late",%q]`, filepath.Join(dir, "main.py"))
	for round := range 2 {
		if res, err := call(t, fn, "null"); string(res.Output) != want || err != nil {
			t.Errorf("round %d: %s, %v, want %s", round, res.Output, err, want)
		}
		_, err := call(t, fn, "1")
		e, _ := errors.AsType[*triggers.Error](err)
		if e == nil || !strings.Contains(strings.Join(e.Stacktrace, "\n"), "    if p: raise RuntimeError('no')") {
			t.Errorf("round %d: %v", round, err)
		}
		if round > 0 {
			break
		}
		write(t, filepath.Join(dir, "main.py"), "def handle(c, p):\n", 0o600)
		for _, name := range []string{"pkg", "later.py"} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(20 * time.Second); fn.(*function).pool.Workers() > 0; <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("an idle worker is not stopped")
			}
		}
	}
}

func TestStartsOutputAndIdle(t *testing.T) {
	fn := makeFunction(t, indent("import os\nprint('loaded')\ndef handle(c, p):\n  print('called')\n  return os.getpid()")+"\nidle: 1s", triggers.Env{Dir: "."})
	res, err := call(t, fn, "null")
	if err != nil || string(res.Logs.Stdout) != "loaded\ncalled\n" {
		t.Errorf("%q, %v", res.Logs.Stdout, err)
	}
	first := string(res.Output)
	for end := time.Now().Add(20 * time.Second); fn.(*function).pool.Workers() > 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an idle worker is not stopped")
		}
	}
	if res, err = call(t, fn, "null"); err != nil || string(res.Output) == first {
		t.Errorf("%s after %s: %v", res.Output, first, err)
	}
}

// wheel makes a package that pip installs without asking anybody.
func wheel(t *testing.T, dir, name, version, code string) string {
	t.Helper()
	path := filepath.Join(dir, name+"-"+version+"-py3-none-any.whl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	info := name + "-" + version + ".dist-info/"
	for file, text := range map[string]string{
		name + ".py":      code,
		info + "METADATA": "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\n",
		info + "WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		info + "RECORD":   "",
	} {
		w, err := z.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRequirements(t *testing.T) {
	triggertest.Need(t, exec.Command("python3", "-c", "import venv, ensurepip"), "python3-venv")
	dir, data := t.TempDir(), t.TempDir()
	t.Setenv("PIP_NO_INDEX", "1")
	wheel(t, dir, "enginetestpkg", "1.0", "word = 'one'\n")
	write(t, filepath.Join(dir, "requirements.txt"), "-r more.txt\n", 0o600)
	write(t, filepath.Join(dir, "more.txt"), "./enginetestpkg-1.0-py3-none-any.whl # by path\n", 0o600)
	write(t, filepath.Join(dir, "f.py"), "import os, enginetestpkg\ndef handle(c, p): return os._exit(1) if p else enginetestpkg.word\n", 0o600)
	const config = "file: f.py\nrequirements: requirements.txt"
	made := func() []string {
		found, _ := filepath.Glob(filepath.Join(data, "python", "environments", "*", ".complete"))
		return found
	}

	// Several at once make it once; the second time it is there, and pip is not.
	var wg sync.WaitGroup
	for range 3 {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
		wg.Go(func() {
			if res, err := call(t, fn, "null"); string(res.Output) != `"one"` || err != nil {
				t.Errorf("%s, %v", res.Output, err)
			}
		})
	}
	wg.Wait()
	if got := made(); len(got) != 1 {
		t.Fatalf("%v", got)
	}
	pip, err := filepath.Glob(filepath.Join(filepath.Dir(made()[0]), "lib", "*", "site-packages", "pip"))
	if err != nil || len(pip) != 1 {
		t.Fatal(pip, err)
	}
	if err := os.RemoveAll(pip[0]); err != nil {
		t.Fatal(err)
	}
	fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
	if res, err := call(t, fn, "null"); string(res.Output) != `"one"` || err != nil {
		t.Errorf("%s, %v", res.Output, err)
	}

	// Another content is another environment.
	cfg := triggertest.Config(t, Factory(), config).(*Config)
	before, err := cfg.requirements(dir)
	if err != nil {
		t.Fatal(err)
	}
	wheel(t, dir, "enginetestpkg", "1.0", "word = 'two'\n")
	if after, err := cfg.requirements(dir); err != nil || slices.Equal(after.hash, before.hash) {
		t.Errorf("the same environment for another wheel, %v", err)
	}
	// One that has begun with what was there stays with that.
	if _, err := call(t, fn, "1"); err == nil {
		t.Error("the process lives")
	}
	if res, err := call(t, fn, "null"); string(res.Output) != `"one"` || err != nil || len(made()) != 1 {
		t.Errorf("%s, %v, %v", res.Output, err, made())
	}
	if files := triggertest.Config(t, Factory(), config).(*Config).files(dir); !slices.Contains(files, filepath.Join(dir, "more.txt")) ||
		!slices.Contains(files, filepath.Join(dir, "enginetestpkg-1.0-py3-none-any.whl")) {
		t.Errorf("made from %v", files)
	}

	// What cannot be had is told, leaves nothing behind, and is tried again.
	fn = makeFunction(t, "file: f.py\nrequirements: [enginetestnone==1.0]", triggers.Env{Dir: dir, Data: data})
	_, err = call(t, fn, "null")
	later, _ := errors.AsType[*triggers.RetryAfterError](err)
	if later == nil || later.After < installPause/2 || !strings.Contains(err.Error(), "its requirements cannot be installed: pip install: it exited with code 1") || !strings.Contains(err.Error(), "enginetestnone") {
		t.Errorf("%v", err)
	}
	if got := made(); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestValidate(t *testing.T) {
	for config, want := range map[string]string{
		"{}":                                           "the code must be given in one way",
		"file: a.py\nsource: x":                        "the code must be given in one way",
		"file: a.py":                                   "",
		"file: a.txt":                                  "a.txt cannot be imported",
		"file: a.b.py":                                 "a.b.py cannot be imported",
		"file: a.py\nhandler: b.handle":                "the module is a, not b",
		"file: a.py\nhandler: a.handle":                "",
		"file: a.py\nhandler: run":                     "",
		"file: a.py\nhandler: run()":                   "names no function",
		"dir: a":                                       "handler is required, source path a is a directory",
		"dir: a\nhandler: run":                         "does not say in which module",
		"dir: a\nhandler: b.c.run":                     "",
		"source: x\nhandler: a.b":                      "code in a spec is in no module",
		"file: a.py\nenv: {A: '${ data }'}":            "variables are set when a worker starts",
		"file: a.py\nenv: {'A=B': c}":                  "is no name of a variable",
		"file: a.py\nrequirements: 3":                  "the path of a file or a list",
		"file: a.py\nrequirements: [3]":                "it is no requirement",
		"file: a.py\nrequirements: ''":                 "it names no file",
		"file: a.py\nrequirements: [requests==2.32.3]": "",
		"file: a.py\ninheritEnv: ['']":                 "is no name of a variable",
		"file: a.py\nworkers: 0":                       "out-of-range",
	} {
		got := strings.Join(triggertest.Diagnostics(Factory(), config), "\n")
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sub", "a.py"), "", 0o600)
	write(t, filepath.Join(dir, "f.py"), "", 0o600)
	for config, want := range map[string]string{
		"file: f.py":                           "",
		"file: none.py":                        "none.py: no such file",
		"dir: sub\nhandler: a.run":             "",
		"dir: sub\nhandler: b.run":             "there is no module b in sub",
		"dir: f.py\nhandler: b.run":            "f.py is no directory",
		"dir: none\nhandler: b.run":            "none: no such file",
		"file: f.py\nrequirements: none.txt":   "none.txt: no such file",
		"source: 'def handle(a, b): return 1'": "",
	} {
		ck := specs.NewChecker(specs.Ref{}, "spec.python", nil)
		triggertest.Config(t, Factory(), config).(*Config).check(dir, ck)
		var got []string
		for _, d := range ck.Found() {
			got = append(got, d.Message)
		}
		if text := strings.Join(got, "\n"); !strings.Contains(text, want) || (want == "") != (text == "") {
			t.Errorf("%s\n got %s\nwant %s", config, text, want)
		}
	}
}

// What the example of Dispatch for Python answers to all kinds of input.
func TestDispatchExamples(t *testing.T) {
	for _, tc := range []struct {
		payload, want string
		message       string
	}{
		{payload: `{"name":"Jon","place":"Winterfell"}`, want: `{"myField":"Hello, Jon from Winterfell"}`},
		{payload: `{}`, want: `{"myField":"Hello, Noone from Nowhere"}`},
		{payload: `null`, want: `{"myField":"Hello, Noone from Nowhere"}`},
		{payload: `[]`, want: `{"myField":"Hello, Noone from Nowhere"}`},
		{payload: `0`, want: `{"myField":"Hello, Noone from Nowhere"}`},
		{payload: `{"name":"user"}`, want: `{"myField":"Hello, user from Nowhere"}`},
		{payload: `42`, message: "'int' object has no attribute 'get'"},
	} {
		fn := makeFunction(t, "file: testdata/hello.py\nhandler: hello.handle", triggers.Env{Dir: "."})
		res, err := call(t, fn, tc.payload)
		if tc.message != "" {
			if e, ok := errors.AsType[*triggers.Error](err); !ok || e.Class != triggers.FunctionError || e.Message != tc.message {
				t.Errorf("%s: %v", tc.payload, err)
			}
			continue
		}
		var got, want any
		if err != nil || json.Unmarshal(res.Output, &got) != nil || json.Unmarshal([]byte(tc.want), &want) != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %s, %v, want %s", tc.payload, res.Output, err, tc.want)
		}
	}
}

// What a thread does that a call began is done before its process ends, if that
// does not take long.
func TestWhatACallBeganIsDone(t *testing.T) {
	needPython(t)
	f := Factory()
	file := filepath.Join(t.TempDir(), "done")
	fn, err := f.Make(triggertest.Config(t, f, `source: |
  import threading, time
  def late(file):
      time.sleep(0.2)
      open(file, "w").write("yes")
  def handle(ctx, file):
      threading.Thread(target=late, args=(file,)).start()
`), triggers.Env{Dir: "."})
	if err != nil {
		t.Fatal(err)
	}
	_, err = call(t, fn, `"`+file+`"`)
	if closed := fn.(*function).Close(); err != nil || closed != nil {
		t.Fatal(err, closed)
	}
	if b, err := os.ReadFile(file); string(b) != "yes" {
		t.Errorf("it was not done: %v", err)
	}
}
