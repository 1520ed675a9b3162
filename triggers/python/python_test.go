package python

import (
	"archive/zip"
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
	fn, _ := triggertest.Make(t, Factory(), config, nil, env)
	return fn
}

func TestResults(t *testing.T) {
	made := func(t testing.TB, config string) triggers.Function {
		return makeFunction(t, config, triggers.Env{Dir: "."})
	}
	triggertest.Cases(t, made, "in serve", []triggertest.Case{
		{What: "nothing", Code: "def handle(c, p): pass", Want: `null`},
		{What: "async", Code: "import asyncio\nasync def handle(c, p):\n  await asyncio.sleep(0)\n  return p", Payload: `[1]`, Want: `[1]`},
		{What: "attributes of the context", Code: "def handle(ctx, payload): return [ctx.event['id'], ctx.key, ctx.secrets, ctx.get('none'), hasattr(ctx, 'none')]", Want: `["event-k","k",{},null,false]`},
		{What: "a callable object", Code: "class C:\n  def __call__(self, a, b): return b\nhandle = C()", Payload: `1`, Want: `1`},
		{What: "more arguments with defaults", Code: "def handle(c, p, x=3): return x", Want: `3`},
		{What: "keys that are no text", Code: "def handle(c, p): return {1: None, False: 2.5}", Want: `{"1":null,"false":2.5}`},
		{What: "half a surrogate pair", Code: `def handle(c, p): return "a\ud800b"`, Want: "\"a\uFFFDb\""},
		{What: "outside of ASCII as it is", Code: `def handle(c, p): return "pässwörd"`, Want: `"pässwörd"`},
		{What: "NaN", Code: "def handle(c, p): return float('nan')", Class: triggers.FunctionError, Message: "the result cannot be JSON: Out of range float"},
		{What: "a set", Code: "def handle(c, p): return {1}", Class: triggers.FunctionError, Message: "the result cannot be JSON: Object of type set"},
		{What: "bytes", Code: "def handle(c, p): return b''", Class: triggers.FunctionError, Message: "the result cannot be JSON"},
		{What: "a circle", Code: "def handle(c, p):\n  a = []\n  a.append(a)\n  return a", Class: triggers.FunctionError, Message: "the result cannot be JSON: Circular"},
		{What: "too deep", Code: "def handle(c, p):\n  a = []\n  for _ in range(100000): a = [a]\n  return a", Class: triggers.FunctionError, Message: "the result cannot be JSON"},
		{What: "input too deep", Code: "def handle(c, p): return 1", Payload: strings.Repeat("[", 9000) + strings.Repeat("]", 9000), Class: triggers.InputError, Message: "Invalid Input"},
		{What: "a number with too many digits", Code: "import sys\ndef handle(c, p): return len(str(p))", Payload: strings.Repeat("1", 5000), Class: triggers.InputError, Message: ""},
		{What: "AttributeError", Code: "def handle(c, p): return p.get('x')", Payload: `42`, Class: triggers.FunctionError, Message: "'int' object has no attribute 'get'", Stack: `File "<function>", line 1, in handle`},
		{What: "TypeError", Code: "def handle(c, p): return p + 1", Payload: `"a"`, Class: triggers.InputError, Message: "can only concatenate str"},
		{What: "a subclass of ValueError", Code: "class E(ValueError): pass\ndef handle(c, p): raise E('bad')", Class: triggers.InputError, Message: "bad"},
		{What: "KeyError", Code: "def handle(c, p): return {}['x']", Class: triggers.FunctionError, Message: "KeyError: 'x'"},
		{What: "no text", Code: "def handle(c, p): raise RuntimeError()", Class: triggers.FunctionError, Message: "RuntimeError"},
		{What: "an exception whose text cannot be had", Code: "class E(Exception):\n  def __str__(self): raise RuntimeError('x')\ndef handle(c, p): raise E()", Class: triggers.FunctionError, Message: "E"},
		{What: "exit", Code: "import sys\ndef handle(c, p): sys.exit(4)", Class: triggers.FunctionError, Message: "the function called exit(4)"},
		{What: "interrupt", Code: "def handle(c, p): raise KeyboardInterrupt", Class: triggers.FunctionError, Message: "KeyboardInterrupt"},
		{What: "endless recursion", Code: "def handle(c, p): return handle(c, p)", Class: triggers.FunctionError, Message: "maximum recursion depth"},
		{What: "a cause", Code: "def handle(c, p):\n  try: 1/0\n  except Exception as e: raise OSError('outer') from e", Class: triggers.FunctionError, Message: "outer", Stack: "ZeroDivisionError"},
		{What: "emitted data that cannot be JSON", Code: "def handle(c, p): c.emit('t', {1})", Class: triggers.FunctionError, Message: "data of an event cannot be JSON: Object of type set"},
		{What: "stdout closed", Code: "import sys\ndef handle(c, p):\n  sys.stdout.close()\n  return 1", Want: `1`},
		{What: "stdout replaced", Code: "import sys, io\ndef handle(c, p):\n  sys.stdout = io.StringIO()\n  print('x')\n  return 1", Want: `1`},
	})
}

// What is wrong with a function is told before its first call, in one sentence.
func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	triggertest.Write(t, filepath.Join(dir, "old"), "#!/bin/sh\necho '{\"executable\": \"/x\", \"version\": [3, 7, 1], \"tag\": \"\"}'\n", 0o700)
	triggertest.Write(t, filepath.Join(dir, "other"), "#!/bin/sh\necho hello\n", 0o700)
	triggertest.Write(t, filepath.Join(dir, "bad.py"), "def handle(ctx, payload:\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "uses.py"), "import json\nimport deep\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "deep.py"), "import os\nos.environ['x']\n", 0o600)
	for config, want := range map[string]string{
		triggertest.Source("x = 1"):                        "module function has no function handle",
		triggertest.Source("handle = 3"):                   "function.handle is no function, it is of type int",
		triggertest.Source("def handle(payload): pass"):    "function.handle does not take two arguments, context and payload",
		triggertest.Source("def handle(a, b, c): pass"):    "does not take two arguments",
		triggertest.Source("def handle(a, b, *, c): pass"): "does not take two arguments",
		triggertest.Source("import nothing_of_this_name"):  "cannot import function: ModuleNotFoundError: No module named 'nothing_of_this_name'",
		triggertest.Source("raise SystemExit(3)"):          "cannot import function: SystemExit: 3",
		triggertest.Source("import os\nos._exit(3)"):       "it exited with code 3 before it was ready",
		triggertest.Source("import os\nos.abort()"):        "it was killed by SIGABRT before it was ready",
		"file: bad.py":                           "cannot import bad: SyntaxError: ",
		"file: uses.py":                          "cannot import uses: KeyError: 'x' (deep.py:2)",
		"file: bad.py\npython: ./old":            "./old is Python 3.7; 3.8 or later is needed",
		"file: bad.py\npython: ./other":          "./other does not answer as Python does",
		"file: bad.py\npython: ./none":           "program not found",
		"file: bad.py\npython: no-such-python":   "program no-such-python not found in the engine's PATH",
		"file: bad.py\nrequirements: [requests]": "there is no directory to keep them in",
	} {
		triggertest.NotReady(t, makeFunction(t, config, triggers.Env{Dir: dir}), config, want)
	}
}

func TestSources(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	triggertest.Write(t, filepath.Join(dir, "hello-world.py"), "import near\ndef handle(c, p): return near.word\ndef other(c, p): return __file__\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "near.py"), "word = 'near'\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/pkg/__init__.py"), "", 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/pkg/mod.py"), "from . import far\nimport os\ndef run(c, p): return [far.word, os.getcwd(), os.environ.get('GREETING'), os.environ.get('TOKEN'), 'SECRET' in os.environ]\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/pkg/far.py"), "word = 'far'\n", 0o600)
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
		if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != want || err != nil {
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
	triggertest.Write(t, filepath.Join(dir, "main.py"), "# -*- coding: latin-1 -*-\nimport pkg.mod, json\ndef handle(c, p):\n    import later\n    if p: raise RuntimeError('no')\n    return ['\xe4', pkg.mod.word, later.word, __file__]\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "later.py"), "word = 'late'\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "pkg/__init__.py"), "", 0o600)
	triggertest.Write(t, filepath.Join(dir, "pkg/mod.py"), "from .far import word\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "pkg/far.py"), "word = 'far'\n", 0o600)
	fn := makeFunction(t, "dir: .\nhandler: main.handle\nidle: 1s", triggers.Env{Dir: dir})
	want := fmt.Sprintf(`["ä","far","late",%q]`, filepath.Join(dir, "main.py"))
	for round := range 2 {
		if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != want || err != nil {
			t.Errorf("round %d: %s, %v, want %s", round, res.Output, err, want)
		}
		_, err := triggertest.Invoke(t, fn, "1", nil)
		e, _ := errors.AsType[*triggers.Error](err)
		if e == nil || !strings.Contains(strings.Join(e.Stacktrace, "\n"), "    if p: raise RuntimeError('no')") {
			t.Errorf("round %d: %v", round, err)
		}
		if round > 0 {
			break
		}
		triggertest.Write(t, filepath.Join(dir, "main.py"), "def handle(c, p):\n", 0o600)
		for _, name := range []string{"pkg", "later.py"} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(20 * time.Second); fn.(*function).Processes() > 0; <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("an idle worker is not stopped")
			}
		}
	}
}

// What was saved twice within a second is what was saved last.
func TestEditsWithinASecond(t *testing.T) {
	dir, data := t.TempDir(), t.TempDir()
	for _, word := range []string{"one", "two", "six"} {
		triggertest.Write(t, filepath.Join(dir, "f.py"), "import near\ndef handle(c, p): return near.word\n", 0o600)
		triggertest.Write(t, filepath.Join(dir, "near.py"), fmt.Sprintf("word = %q\n", word), 0o600)
		fn := makeFunction(t, "file: f.py", triggers.Env{Dir: dir, Data: data})
		if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != fmt.Sprintf("%q", word) || err != nil {
			t.Errorf("%s, %v, want %s", res.Output, err, word)
		}
	}
}

func TestStartsOutputAndIdle(t *testing.T) {
	fn := makeFunction(t, triggertest.Source("import os\nprint('loaded')\ndef handle(c, p):\n  print('called')\n  return os.getpid()")+"\nidle: 1s", triggers.Env{Dir: "."})
	res, err := triggertest.Invoke(t, fn, "null", nil)
	if err != nil || string(res.Logs.Stdout) != "loaded\ncalled\n" {
		t.Errorf("%q, %v", res.Logs.Stdout, err)
	}
	first := string(res.Output)
	for end := time.Now().Add(20 * time.Second); fn.(*function).Processes() > 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an idle worker is not stopped")
		}
	}
	if res, err = triggertest.Invoke(t, fn, "null", nil); err != nil || string(res.Output) == first {
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
	triggertest.Write(t, filepath.Join(dir, "requirements.txt"), "-r more.txt\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "more.txt"), "./enginetestpkg-1.0-py3-none-any.whl # by path\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "f.py"), "import os, enginetestpkg\ndef handle(c, p): return os._exit(1) if p else enginetestpkg.word\n", 0o600)
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
			if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
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
	if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
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
	if _, err := triggertest.Invoke(t, fn, "1", nil); err == nil {
		t.Error("the process lives")
	}
	if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil || len(made()) != 1 {
		t.Errorf("%s, %v, %v", res.Output, err, made())
	}
	if files := triggertest.Config(t, Factory(), config).(*Config).files(dir); !slices.Contains(files, filepath.Join(dir, "more.txt")) ||
		!slices.Contains(files, filepath.Join(dir, "enginetestpkg-1.0-py3-none-any.whl")) {
		t.Errorf("made from %v", files)
	}

	// What cannot be had is told, leaves nothing behind, and is tried again.
	fn = makeFunction(t, "file: f.py\nrequirements: [enginetestnone==1.0]", triggers.Env{Dir: dir, Data: data})
	_, err = triggertest.Invoke(t, fn, "null", nil)
	later, _ := errors.AsType[*triggers.RetryAfterError](err)
	if later == nil || later.After < 5*time.Second || !strings.Contains(err.Error(), "its requirements cannot be installed: pip install: it exited with code 1") || !strings.Contains(err.Error(), "enginetestnone") {
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
	triggertest.Write(t, filepath.Join(dir, "sub", "a.py"), "", 0o600)
	triggertest.Write(t, filepath.Join(dir, "f.py"), "", 0o600)
	triggertest.Files(t, Factory(), dir, map[string]string{
		"file: f.py":                           "",
		"file: none.py":                        "none.py: no such file",
		"dir: sub\nhandler: a.run":             "",
		"dir: sub\nhandler: b.run":             "there is no module b in sub",
		"dir: f.py\nhandler: b.run":            "f.py is no directory",
		"dir: none\nhandler: b.run":            "none: no such file",
		"file: f.py\nrequirements: none.txt":   "none.txt: no such file",
		"source: 'def handle(a, b): return 1'": "",
	})
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
		res, err := triggertest.Invoke(t, fn, tc.payload, nil)
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
	_, err = triggertest.Invoke(t, fn, `"`+file+`"`, nil)
	if closed := fn.(*function).Close(); err != nil || closed != nil {
		t.Fatal(err, closed)
	}
	if b, err := os.ReadFile(file); string(b) != "yes" {
		t.Errorf("it was not done: %v", err)
	}
}
