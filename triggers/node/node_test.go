package node

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// makeFunction makes a function that is closed with the test.
func makeFunction(t testing.TB, config string, env triggers.Env) triggers.Function {
	t.Helper()
	if !strings.Contains(config, "node: /") {
		needNode(t)
	}
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

func call(t testing.TB, fn triggers.Function, payload string, secrets map[string]string) (triggers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := triggertest.NewCall("k")
	c.Event.Data, c.Secrets = []byte(payload), secrets
	return fn.Invoke(ctx, c)
}

func code(js string) string {
	return "source: |\n  " + strings.ReplaceAll(strings.TrimSpace(js), "\n", "\n  ")
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResults(t *testing.T) {
	for _, tc := range []struct {
		what, code, payload string
		want                string
		class               triggers.Class
		message, stack      string
		once                bool // the worker does not survive it
	}{
		{what: "nothing", code: "module.exports = () => {}", want: `null`},
		{what: "a promise", code: "module.exports = async (c, p) => p", payload: `[1]`, want: `[1]`},
		{what: "something like a promise", code: "module.exports = () => ({then(ok) { ok(7); }})", want: `7`},
		{what: "twice", code: "module.exports = () => ({then(ok) { ok(1); ok(2); }})", want: `1`},
		{what: "a default export", code: "module.exports = {default: () => 1}", want: `1`},
		{what: "the context", code: "module.exports = (c) => [c.event.id, c.key, c.secrets, Object.keys(c).includes('event'), 'emit' in JSON.parse(JSON.stringify(c)), JSON.parse(JSON.stringify(c)).event.eventID]", want: `["event-k","k",{},true,false,"event-k"]`},
		{what: "NaN as JavaScript writes it", code: "module.exports = () => [NaN]", want: `[null]`},
		{what: "half a surrogate pair", code: `module.exports = () => "a\ud800b"`, want: `"a\ud800b"`},
		{what: "a BigInt", code: "module.exports = () => 1n", class: triggers.FunctionError, message: "the result cannot be JSON: Do not know how to serialize a BigInt"},
		{what: "a circle", code: "module.exports = () => { const a = []; a.push(a); return a; }", class: triggers.FunctionError, message: "the result cannot be JSON: Converting circular"},
		{what: "a function", code: "module.exports = () => () => {}", want: `null`},
		{what: "TypeError", code: "module.exports = (c, p) => p.name", class: triggers.InputError, message: "Cannot read properties of null", stack: "at module.exports"},
		{what: "a TypeError of another kind", code: "module.exports = (c, p) => { throw Object.assign(new Error('x'), {name: 'TypeError'}); }", class: triggers.InputError, message: "x"},
		{what: "Error", code: "module.exports = () => { throw new RangeError('far') }", class: triggers.FunctionError, message: "far", stack: "RangeError: far"},
		{what: "a text", code: "module.exports = async () => { throw 'text' }", class: triggers.FunctionError, message: "text"},
		{what: "an object", code: "module.exports = () => { throw {code: 7} }", class: triggers.FunctionError, message: "{ code: 7 }"},
		{what: "undefined", code: "module.exports = () => Promise.reject()", class: triggers.FunctionError, message: "undefined"},
		{what: "endless recursion", code: "module.exports = function f() { return f() + 1 }", class: triggers.FunctionError, message: "Maximum call stack"},
		{what: "thrown in a timer", code: "module.exports = () => new Promise(() => setTimeout(() => { throw new Error('late') }, 1))", class: triggers.FunctionError, message: "late", once: true},
		{what: "a rejection nobody handles", code: "module.exports = () => { Promise.reject(new Error('lost')); return new Promise(() => setTimeout(() => {}, 1e6)) }", class: triggers.FunctionError, message: "lost", once: true},
		{what: "emitted data that cannot be JSON", code: "module.exports = (c) => c.emit('t', 1n)", class: triggers.FunctionError, message: "the data of an event cannot be JSON"},
		{what: "stdout replaced", code: "module.exports = () => { process.stdout.end(); console.log('x'); return 1 }", want: `1`},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			if tc.payload == "" {
				tc.payload = "null"
			}
			fn := makeFunction(t, code(tc.code), triggers.Env{Dir: "."})
			for range 2 { // a failure leaves the next call as it was
				res, err := call(t, fn, tc.payload, nil)
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
				if !strings.Contains(stack, tc.stack) || strings.Contains(stack, "worker.js") {
					t.Errorf("stack trace:\n%s", stack)
				}
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bad.js"), "module.exports = (\n")
	write(t, filepath.Join(dir, "text.js"), "module.exports = 'text'\n")
	for config, want := range map[string]string{
		code("const x = 1"):                         "the code exports no function, it exports an object; write module.exports = function (context, payload)",
		code("const a = 1\nthrow new Error('why')"): "cannot load the code: Error: why (<function>:2)",
		"file: text.js":                             "text.js exports no function, it exports a string",
		"file: bad.js":                              "cannot load bad.js: SyntaxError: ",
		code("require('nothing-of-this-name')"):     "cannot load the code: Error: Cannot find module 'nothing-of-this-name'",
		code("process.exit(3)"):                     "it exited with code 3 before it was ready",
		"file: text.js\nnode: ./none":               "program not found",
		"file: text.js\nnode: no-such-node":         "program no-such-node not found in the engine's PATH",
		"file: text.js\ndependencies: {left: 1.0}":  "there is no directory to keep them in",
	} {
		notReady(t, config, dir, want)
	}
}

// notReady asserts that a function is not ready and why, in one sentence.
func notReady(t *testing.T, config, dir, want string) {
	t.Helper()
	fn := makeFunction(t, config, triggers.Env{Dir: dir})
	_, err := call(t, fn, "null", nil)
	later, _ := errors.AsType[*triggers.RetryAfterError](err)
	if err == nil || later == nil || triggers.ClassOf(err) != triggers.SystemError || triggers.Permanent(err) ||
		!strings.Contains(err.Error(), "the function is not ready: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("%s\n got %v\nwant %s", config, err, want)
	}
	if ready := fn.(*function).Ready(); ready == nil || strings.Contains(ready.Error(), "\n") {
		t.Errorf("%s: %v", config, ready)
	}
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "hello.js"), "const near = require('./near');\nmodule.exports = () => near;\n")
	write(t, filepath.Join(dir, "near.js"), "module.exports = 'near';\n")
	write(t, filepath.Join(dir, "sub/module.mjs"), "import {readFileSync} from 'fs';\nexport default () => [typeof readFileSync, process.env.TOKEN, process.env.SECRET === undefined];\n")
	write(t, filepath.Join(dir, "sub/esm/package.json"), `{"type": "module"}`)
	write(t, filepath.Join(dir, "sub/esm/f.js"), "export function handle(context, payload) { return import.meta.url.endsWith('f.js'); }\n")
	t.Setenv("SECRET", "the engine's")
	for config, want := range map[string]string{
		"file: hello.js":                      `"near"`,
		"file: hello.js\nhandler: ./hello.js": `"near"`,
		"dir: .\nhandler: ./hello.js":         `"near"`,
		"dir: sub\nhandler: module.mjs\nenv: {TOKEN: {secret: {name: a, key: b}}}": `["function","t",true]`,
		"dir: sub/esm\nhandler: f.js":                    `true`,
		code("module.exports = () => require('./near')"): `"near"`,
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Secret: func(specs.SecretRef) (string, error) { return "t", nil }})
		if res, err := call(t, fn, "null", nil); string(res.Output) != want || err != nil {
			t.Errorf("%s\n got %s, %v\nwant %s", config, res.Output, err, want)
		}
	}
}

// ES modules, wherever the code is.
func TestModules(t *testing.T) {
	needHooks(t)
	triggertest.Need(t, exec.Command("npm", "--version"), "npm")
	dir, data := t.TempDir(), t.TempDir()
	t.Setenv("NPM_CONFIG_OFFLINE", "true")
	t.Setenv("HOME", t.TempDir())
	write(t, filepath.Join(dir, "lib/package.json"), `{"name": "enginetestesm", "version": "1.0.0", "exports": {".": {"import": "./main.mjs"}, "./more": "./more.cjs"}}`)
	write(t, filepath.Join(dir, "lib/main.mjs"), "export const word = 'installed';\n")
	write(t, filepath.Join(dir, "lib/more.cjs"), "exports.word = 'more';\n")
	write(t, filepath.Join(dir, "lib2/package.json"), `{"name": "enginetestcjs", "version": "1.0.0"}`)
	write(t, filepath.Join(dir, "lib2/index.js"), "module.exports = {word: 'common'};\n")
	write(t, filepath.Join(dir, "near.mjs"), "export const near = await Promise.resolve('near');\n")
	write(t, filepath.Join(dir, "near.cjs"), "module.exports = 'near.cjs';\n")
	write(t, filepath.Join(dir, "f.mjs"), "import {near} from './near.mjs';\nexport default () => near;\n")
	write(t, filepath.Join(dir, "untyped.js"), "import other from './near.cjs';\nexport async function handle(context, payload) { return [payload, other, import.meta.url.endsWith('/untyped.js')]; }\n")
	write(t, filepath.Join(dir, "node_modules/own/index.js"), "module.exports = 'own';\n")
	write(t, filepath.Join(dir, "installed.mjs"), "import {word} from 'enginetestesm';\nimport more from 'enginetestesm/more';\nimport common from 'enginetestcjs';\nimport own from 'own';\nexport default () => [word, more.word, common.word, own];\n")
	const packages = "\ndependencies: {enginetestesm: ./lib, enginetestcjs: ./lib2}"
	for config, want := range map[string]string{
		"file: f.mjs":      `"near"`,
		"file: untyped.js": `[1,"near.cjs",true]`,
		code("export default (context, payload) => payload"): `1`,
		code("import {near} from './near.mjs'; const word = await Promise.resolve('top'); export function handle() { return word + near + import.meta.url.slice(-4); }"): `"topnear.mjs"`,
		code("module.exports = async () => (await import('./near.mjs')).near"):                                                                                           `"near"`,
		"file: installed.mjs" + packages: `["installed","more","common","own"]`,
		code("import {word} from 'enginetestesm'; export default () => word") + packages:                                      `"installed"`,
		code("module.exports = async () => [(await import('enginetestesm')).word, require('enginetestcjs').word]") + packages: `["installed","common"]`,
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
		res, err := call(t, fn, "1", nil)
		if string(res.Output) != want || err != nil {
			t.Errorf("%s\n got %s, %v\nwant %s", config, res.Output, err, want)
		}
		if len(res.Logs.Stdout)+len(res.Logs.Stderr) > 0 {
			t.Errorf("%s: %s%s", config, res.Logs.Stdout, res.Logs.Stderr)
		}
	}
}

func TestModulesNotReady(t *testing.T) {
	needHooks(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bad.mjs"), "\nexport default (=> 1)\n")
	write(t, filepath.Join(dir, "throws.mjs"), "import './near.mjs';\n")
	write(t, filepath.Join(dir, "near.mjs"), "throw new Error('not today');\n")
	for config, want := range map[string]string{
		code("export const handel = () => 1"):      "the code exports no function, it exports an object with handel; write export default function (context, payload)",
		"file: bad.mjs":                            "cannot load bad.mjs: SyntaxError: Unexpected token '=>' (bad.mjs:2)",
		code("import './bad.mjs'"):                 "cannot load the code: SyntaxError: Unexpected token '=>' (bad.mjs:2)",
		code("export const a = 1\nexport b"):       "(<function>.mjs:2)",
		"file: throws.mjs":                         "cannot load throws.mjs: Error: not today (near.mjs:1)",
		code("import none from 'no-such-package'"): "cannot load the code: Error: Cannot find package 'no-such-package'",
	} {
		notReady(t, config, dir, want)
	}
}

// needHooks skips a test where Node has no hooks of its module loader.
func needHooks(t *testing.T) {
	t.Helper()
	triggertest.Need(t, exec.Command("node", "-e", "process.exit(require('module').register ? 0 : 1)"), "Node 18.19 or later")
}

// A process that starts after the code was changed, or removed, has the code that
// the function was made of.
func TestCodeStaysWhatItWas(t *testing.T) {
	needHooks(t)
	const common = "const {word} = require('./pkg');\nconst data = require('./data');\nmodule.exports = (c, p) => p ? process.exit(1) : [word, data.n, require('./later').word];\n"
	const module = "import {word} from './pkg/index.js';\nimport data from './data.cjs';\nexport default async (c, p) => p ? process.exit(1) : [word, data.n, (await import('./later.js')).word];\n"
	for name, files := range map[string]map[string]string{
		"main.js":  {"main.js": common, "pkg/index.js": "exports.word = require('../far.js');\n", "far.js": "module.exports = 'far';\n", "later.js": "exports.word = 'late';\n", "data.json": `{"n": 1}`},
		"main.mjs": {"main.mjs": module, "package.json": `{"type": "module"}`, "pkg/index.js": "export {word} from '../far.js';\n", "far.js": "export const word = 'far';\n", "later.js": "export const word = 'late';\n", "data.cjs": "module.exports = {n: 1};\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range files {
				write(t, filepath.Join(dir, file), text)
			}
			fn := makeFunction(t, "dir: .\nhandler: "+name, triggers.Env{Dir: dir})
			for round := range 3 {
				if res, err := call(t, fn, "null", nil); string(res.Output) != `["far",1,"late"]` || err != nil {
					t.Errorf("round %d: %s, %v", round, res.Output, err)
				}
				switch round {
				case 0:
					write(t, filepath.Join(dir, name), "nonsense (\n")
				case 1:
					for file := range files {
						if err := os.Remove(filepath.Join(dir, file)); err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := call(t, fn, "1", nil); err == nil {
					t.Error("the process lives")
				}
			}
		})
	}
}

func TestPackages(t *testing.T) {
	triggertest.Need(t, exec.Command("npm", "--version"), "npm")
	dir, data := t.TempDir(), t.TempDir()
	t.Setenv("NPM_CONFIG_OFFLINE", "true")
	t.Setenv("HOME", t.TempDir())
	write(t, filepath.Join(dir, "lib/package.json"), `{"name": "enginetestpkg", "version": "1.0.0", "main": "main.js"}`)
	write(t, filepath.Join(dir, "lib/main.js"), "module.exports = 'one';\n")
	write(t, filepath.Join(dir, "package.json"), `{"name": "mine", "dependencies": {"enginetestpkg": "file:lib"}, "scripts": {"preinstall": "exit 1"}}`)
	write(t, filepath.Join(dir, "f.js"), "module.exports = () => require('enginetestpkg');\n")
	made := func() []string {
		found, _ := filepath.Glob(filepath.Join(data, "node", "packages", "*", ".complete"))
		return found
	}
	var wg sync.WaitGroup
	for _, config := range []string{"file: f.js\npackage: package.json", "file: f.js\npackage: package.json", "file: f.js\ndependencies: {enginetestpkg: ./lib}"} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
		wg.Go(func() {
			if res, err := call(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
				t.Errorf("%s: %s, %v", config, res.Output, err)
			}
		})
	}
	wg.Wait()
	if got := made(); len(got) != 2 {
		t.Fatalf("%v", got)
	}
	// When it is there, npm is not asked.
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nowhere")
	fn := makeFunction(t, "file: f.js\npackage: package.json\nnode: "+node, triggers.Env{Dir: dir, Data: data})
	if res, err := call(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
		t.Errorf("%s, %v", res.Output, err)
	}
	fn = makeFunction(t, "file: f.js\ndependencies: {enginetestnone: 1.0.0}\nnode: "+node, triggers.Env{Dir: dir, Data: data})
	if _, err := call(t, fn, "null", nil); err == nil || !strings.Contains(err.Error(), "program npm not found") || len(made()) != 2 {
		t.Errorf("%v", err)
	}
}

func TestPackagesThatCannotBeHad(t *testing.T) {
	triggertest.Need(t, exec.Command("npm", "--version"), "npm")
	t.Setenv("NPM_CONFIG_OFFLINE", "true")
	t.Setenv("HOME", t.TempDir())
	fn := makeFunction(t, code("module.exports = () => 1")+"\ndependencies: {enginetestnone: 1.0.0}", triggers.Env{Dir: t.TempDir(), Data: t.TempDir()})
	_, err := call(t, fn, "null", nil)
	later, _ := errors.AsType[*triggers.RetryAfterError](err)
	if later == nil || !strings.Contains(err.Error(), "its packages cannot be installed: npm install: it exited with code 1") {
		t.Errorf("%v", err)
	}
}

func TestValidate(t *testing.T) {
	for config, want := range map[string]string{
		"{}":                                "the code must be given in one way",
		"file: a.js\nsource: x":             "the code must be given in one way",
		"file: a.js":                        "",
		"file: a.js\nhandler: ./a.js":       "",
		"file: a.js\nhandler: ./b.js":       "the function is what the file exports",
		"dir: a":                            "handler is required, source path a is a directory",
		"dir: a\nhandler: ../b.js":          "../b.js is not below a",
		"dir: a\nhandler: ./b.js":           "",
		"file: a.js\nenv: {A: '${ data }'}": "variables are set when a worker starts",
		"file: a.js\npackage: p.json\ndependencies: {a: '1'}": "package is given, and dependencies too",
		"file: a.js\ndependencies: {a: ''}":                   "it is no package with a version",
		"file: a.js\ndependencies: {'@a/b': ^1.0.0}":          "",
		"file: a.js\ninheritEnv: ['']":                        "is no name of a variable",
	} {
		got := strings.Join(triggertest.Diagnostics(Factory(), config), "\n")
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sub", "a.js"), "")
	write(t, filepath.Join(dir, "f.js"), "")
	write(t, filepath.Join(dir, "bad.json"), "{")
	for config, want := range map[string]string{
		"file: f.js":                     "",
		"file: none.js":                  "none.js: no such file",
		"file: sub":                      "handler is required, source path sub is a directory",
		"dir: sub\nhandler: a.js":        "",
		"dir: sub\nhandler: b.js":        "there is no file b.js in sub",
		"dir: f.js\nhandler: b.js":       "f.js is no directory",
		"file: f.js\npackage: none.json": "none.json: no such file",
		"file: f.js\npackage: bad.json":  "bad.json is no JSON",
		"source: module.exports = 1":     "",
	} {
		ck := specs.NewChecker(specs.Ref{}, "spec.node", nil)
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

// What the examples of Dispatch for Node do.
func TestDispatchExamples(t *testing.T) {
	const greet = "module.exports = function (context, params) { const name = params.name || 'Noone'; console.log(`name=${name}`); return {myField: 'Hello, ' + name}; }"
	const know = "module.exports = (context) => context.secrets.password === undefined ? 'nothing' : 'The password is ' + context.secrets.password"
	for _, tc := range []struct {
		code, payload string
		secrets       map[string]string
		want, log     string
		class         triggers.Class
	}{
		{code: greet, payload: `{"name":"Jon"}`, want: `{"myField":"Hello, Jon"}`, log: "name=Jon\n"},
		{code: greet, payload: `{}`, want: `{"myField":"Hello, Noone"}`, log: "name=Noone\n"},
		{code: greet, payload: `null`, class: triggers.InputError},
		{code: "module.exports = (context, params) => { params.context = context.event.eventType; return params; }", payload: `{"in-1":"baz"}`, want: `{"in-1":"baz","context":"test"}`},
		{code: know, payload: `{}`, want: `"nothing"`},
		{code: know, payload: `{}`, secrets: map[string]string{"password": "OpenSesame"}, want: `"The password is OpenSesame"`},
	} {
		fn := makeFunction(t, code(tc.code), triggers.Env{Dir: "."})
		res, err := call(t, fn, tc.payload, tc.secrets)
		if tc.class != "" {
			if triggers.ClassOf(err) != tc.class {
				t.Errorf("%s: %v", tc.payload, err)
			}
			continue
		}
		if err != nil || string(res.Output) != tc.want || string(res.Logs.Stdout) != tc.log {
			t.Errorf("%s: %s, %q, %v, want %s", tc.payload, res.Output, res.Logs.Stdout, err, tc.want)
		}
	}
}

// What a call began and did not wait for is done before its process ends, if
// that does not take long.
func TestWhatACallBeganIsDone(t *testing.T) {
	needNode(t)
	f := Factory()
	for name, more := range map[string]string{"ends": "", "never ends": "setInterval(() => {}, 1000);"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "done")
			fn, err := f.Make(triggertest.Config(t, f, code(`
module.exports = (context, file) => {
  setTimeout(() => require('fs').writeFileSync(file, 'yes'), 200);
  `+more+`
  return 'begun';
};`)), triggers.Env{Dir: "."})
			if err != nil {
				t.Fatal(err)
			}
			_, err = call(t, fn, strconv.Quote(file), nil)
			if closed := fn.(*function).Close(); err != nil || closed != nil {
				t.Fatal(err, closed)
			}
			if b, err := os.ReadFile(file); string(b) != "yes" {
				t.Errorf("it was not done: %v", err)
			}
		})
	}
}
