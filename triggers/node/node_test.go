package node

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

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
	fn, _ := triggertest.Make(t, Factory(), config, nil, env)
	return fn
}

func TestResults(t *testing.T) {
	made := func(t testing.TB, config string) triggers.Function {
		return makeFunction(t, config, triggers.Env{Dir: "."})
	}
	triggertest.Cases(t, made, "worker.js", []triggertest.Case{
		{What: "nothing", Code: "module.exports = () => {}", Want: `null`},
		{What: "a promise", Code: "module.exports = async (c, p) => p", Payload: `[1]`, Want: `[1]`},
		{What: "something like a promise", Code: "module.exports = () => ({then(ok) { ok(7); }})", Want: `7`},
		{What: "twice", Code: "module.exports = () => ({then(ok) { ok(1); ok(2); }})", Want: `1`},
		{What: "a default export", Code: "module.exports = {default: () => 1}", Want: `1`},
		{What: "the context", Code: "module.exports = (c) => [c.event.id, c.key, c.secrets, Object.keys(c).includes('event'), 'emit' in JSON.parse(JSON.stringify(c)), JSON.parse(JSON.stringify(c)).event.eventID]", Want: `["event-k","k",{},true,false,"event-k"]`},
		{What: "NaN as JavaScript writes it", Code: "module.exports = () => [NaN]", Want: `[null]`},
		{What: "half a surrogate pair", Code: `module.exports = () => "a\ud800b"`, Want: `"a\ud800b"`},
		{What: "a BigInt", Code: "module.exports = () => 1n", Class: triggers.FunctionError, Message: "the result cannot be JSON: Do not know how to serialize a BigInt"},
		{What: "a circle", Code: "module.exports = () => { const a = []; a.push(a); return a; }", Class: triggers.FunctionError, Message: "the result cannot be JSON: Converting circular"},
		{What: "a function", Code: "module.exports = () => () => {}", Want: `null`},
		{What: "TypeError", Code: "module.exports = (c, p) => p.name", Class: triggers.InputError, Message: "Cannot read properties of null", Stack: "at module.exports"},
		{What: "a TypeError of another kind", Code: "module.exports = (c, p) => { throw Object.assign(new Error('x'), {name: 'TypeError'}); }", Class: triggers.InputError, Message: "x"},
		{What: "Error", Code: "module.exports = () => { throw new RangeError('far') }", Class: triggers.FunctionError, Message: "far", Stack: "RangeError: far"},
		{What: "a text", Code: "module.exports = async () => { throw 'text' }", Class: triggers.FunctionError, Message: "text"},
		{What: "an object", Code: "module.exports = () => { throw {code: 7} }", Class: triggers.FunctionError, Message: "{ code: 7 }"},
		{What: "undefined", Code: "module.exports = () => Promise.reject()", Class: triggers.FunctionError, Message: "undefined"},
		{What: "endless recursion", Code: "module.exports = function f() { return f() + 1 }", Class: triggers.FunctionError, Message: "Maximum call stack"},
		{What: "thrown in a timer", Code: "module.exports = () => new Promise(() => setTimeout(() => { throw new Error('late') }, 1))", Class: triggers.FunctionError, Message: "late"},
		{What: "a rejection nobody handles", Code: "module.exports = () => { Promise.reject(new Error('lost')); return new Promise(() => setTimeout(() => {}, 1e6)) }", Class: triggers.FunctionError, Message: "lost"},
		{What: "emitted data that cannot be JSON", Code: "module.exports = (c) => c.emit('t', 1n)", Class: triggers.FunctionError, Message: "the data of an event cannot be JSON"},
		{What: "stdout replaced", Code: "module.exports = () => { process.stdout.end(); console.log('x'); return 1 }", Want: `1`},
	})
}

func TestNotReady(t *testing.T) {
	dir := t.TempDir()
	triggertest.Write(t, filepath.Join(dir, "bad.js"), "module.exports = (\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "text.js"), "module.exports = 'text'\n", 0o600)
	for config, want := range map[string]string{
		triggertest.Source("const x = 1"):                         "the code exports no function, it exports an object; write module.exports = function (context, payload)",
		triggertest.Source("const a = 1\nthrow new Error('why')"): "cannot load the code: Error: why (<function>:2)",
		"file: text.js": "text.js exports no function, it exports a string",
		"file: bad.js":  "cannot load bad.js: SyntaxError: ",
		triggertest.Source("require('nothing-of-this-name')"): "cannot load the code: Error: Cannot find module 'nothing-of-this-name'",
		triggertest.Source("process.exit(3)"):                 "it exited with code 3 before it was ready",
		"file: text.js\nnode: ./none":                         "program not found",
		"file: text.js\nnode: no-such-node":                   "program no-such-node not found in the engine's PATH",
		"file: text.js\ndependencies: {left: 1.0}":            "there is no directory to keep them in",
	} {
		triggertest.NotReady(t, makeFunction(t, config, triggers.Env{Dir: dir}), config, want)
	}
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	triggertest.Write(t, filepath.Join(dir, "hello.js"), "const near = require('./near');\nmodule.exports = () => near;\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "near.js"), "module.exports = 'near';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/module.mjs"), "import {readFileSync} from 'fs';\nexport default () => [typeof readFileSync, process.env.TOKEN, process.env.SECRET === undefined];\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/esm/package.json"), `{"type": "module"}`, 0o600)
	triggertest.Write(t, filepath.Join(dir, "sub/esm/f.js"), "export function handle(context, payload) { return import.meta.url.endsWith('f.js'); }\n", 0o600)
	t.Setenv("SECRET", "the engine's")
	for config, want := range map[string]string{
		"file: hello.js":                      `"near"`,
		"file: hello.js\nhandler: ./hello.js": `"near"`,
		"dir: .\nhandler: ./hello.js":         `"near"`,
		"dir: sub\nhandler: module.mjs\nenv: {TOKEN: {secret: {name: a, key: b}}}": `["function","t",true]`,
		"dir: sub/esm\nhandler: f.js":                                  `true`,
		triggertest.Source("module.exports = () => require('./near')"): `"near"`,
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Secret: func(specs.SecretRef) (string, error) { return "t", nil }})
		if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != want || err != nil {
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
	triggertest.Write(t, filepath.Join(dir, "lib/package.json"), `{"name": "enginetestesm", "version": "1.0.0", "exports": {".": {"import": "./main.mjs"}, "./more": "./more.cjs"}}`, 0o600)
	triggertest.Write(t, filepath.Join(dir, "lib/main.mjs"), "export const word = 'installed';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "lib/more.cjs"), "exports.word = 'more';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "lib2/package.json"), `{"name": "enginetestcjs", "version": "1.0.0"}`, 0o600)
	triggertest.Write(t, filepath.Join(dir, "lib2/index.js"), "module.exports = {word: 'common'};\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "near.mjs"), "export const near = await Promise.resolve('near');\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "near.cjs"), "module.exports = 'near.cjs';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "f.mjs"), "import {near} from './near.mjs';\nexport default () => near;\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "untyped.js"), "import other from './near.cjs';\nexport async function handle(context, payload) { return [payload, other, import.meta.url.endsWith('/untyped.js')]; }\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "node_modules/own/index.js"), "module.exports = 'own';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "installed.mjs"), "import {word} from 'enginetestesm';\nimport more from 'enginetestesm/more';\nimport common from 'enginetestcjs';\nimport own from 'own';\nexport default () => [word, more.word, common.word, own];\n", 0o600)
	const packages = "\ndependencies: {enginetestesm: ./lib, enginetestcjs: ./lib2}"
	for config, want := range map[string]string{
		"file: f.mjs":      `"near"`,
		"file: untyped.js": `[1,"near.cjs",true]`,
		triggertest.Source("export default (context, payload) => payload"): `1`,
		triggertest.Source("import {near} from './near.mjs'; const word = await Promise.resolve('top'); export function handle() { return word + near + import.meta.url.slice(-4); }"): `"topnear.mjs"`,
		triggertest.Source("module.exports = async () => (await import('./near.mjs')).near"):                                                                                           `"near"`,
		"file: installed.mjs" + packages: `["installed","more","common","own"]`,
		triggertest.Source("import {word} from 'enginetestesm'; export default () => word") + packages:                                      `"installed"`,
		triggertest.Source("module.exports = async () => [(await import('enginetestesm')).word, require('enginetestcjs').word]") + packages: `["installed","common"]`,
	} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
		res, err := triggertest.Invoke(t, fn, "1", nil)
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
	triggertest.Write(t, filepath.Join(dir, "bad.mjs"), "\nexport default (=> 1)\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "throws.mjs"), "import './near.mjs';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "near.mjs"), "throw new Error('not today');\n", 0o600)
	for config, want := range map[string]string{
		triggertest.Source("export const handel = () => 1"): "the code exports no function, it exports an object with handel; write export default function (context, payload)",
		"file: bad.mjs":                                          "cannot load bad.mjs: SyntaxError: Unexpected token '=>' (bad.mjs:2)",
		triggertest.Source("import './bad.mjs'"):                 "cannot load the code: SyntaxError: Unexpected token '=>' (bad.mjs:2)",
		triggertest.Source("export const a = 1\nexport b"):       "(<function>.mjs:2)",
		"file: throws.mjs":                                       "cannot load throws.mjs: Error: not today (near.mjs:1)",
		triggertest.Source("import none from 'no-such-package'"): "cannot load the code: Error: Cannot find package 'no-such-package'",
	} {
		triggertest.NotReady(t, makeFunction(t, config, triggers.Env{Dir: dir}), config, want)
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
				triggertest.Write(t, filepath.Join(dir, file), text, 0o600)
			}
			fn := makeFunction(t, "dir: .\nhandler: "+name, triggers.Env{Dir: dir})
			for round := range 3 {
				if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `["far",1,"late"]` || err != nil {
					t.Errorf("round %d: %s, %v", round, res.Output, err)
				}
				switch round {
				case 0:
					triggertest.Write(t, filepath.Join(dir, name), "nonsense (\n", 0o600)
				case 1:
					for file := range files {
						if err := os.Remove(filepath.Join(dir, file)); err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := triggertest.Invoke(t, fn, "1", nil); err == nil {
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
	triggertest.Write(t, filepath.Join(dir, "lib/package.json"), `{"name": "enginetestpkg", "version": "1.0.0", "main": "main.js"}`, 0o600)
	triggertest.Write(t, filepath.Join(dir, "lib/main.js"), "module.exports = 'one';\n", 0o600)
	triggertest.Write(t, filepath.Join(dir, "package.json"), `{"name": "mine", "dependencies": {"enginetestpkg": "file:lib"}, "scripts": {"preinstall": "exit 1"}}`, 0o600)
	triggertest.Write(t, filepath.Join(dir, "f.js"), "module.exports = () => require('enginetestpkg');\n", 0o600)
	made := func() []string {
		found, _ := filepath.Glob(filepath.Join(data, "node", "packages", "*", ".complete"))
		return found
	}
	var wg sync.WaitGroup
	for _, config := range []string{"file: f.js\npackage: package.json", "file: f.js\npackage: package.json", "file: f.js\ndependencies: {enginetestpkg: ./lib}"} {
		fn := makeFunction(t, config, triggers.Env{Dir: dir, Data: data})
		wg.Go(func() {
			if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
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
	if res, err := triggertest.Invoke(t, fn, "null", nil); string(res.Output) != `"one"` || err != nil {
		t.Errorf("%s, %v", res.Output, err)
	}
	fn = makeFunction(t, "file: f.js\ndependencies: {enginetestnone: 1.0.0}\nnode: "+node, triggers.Env{Dir: dir, Data: data})
	if _, err := triggertest.Invoke(t, fn, "null", nil); err == nil || !strings.Contains(err.Error(), "program npm not found") || len(made()) != 2 {
		t.Errorf("%v", err)
	}
}

func TestPackagesThatCannotBeHad(t *testing.T) {
	triggertest.Need(t, exec.Command("npm", "--version"), "npm")
	t.Setenv("NPM_CONFIG_OFFLINE", "true")
	t.Setenv("HOME", t.TempDir())
	fn := makeFunction(t, triggertest.Source("module.exports = () => 1")+"\ndependencies: {enginetestnone: 1.0.0}", triggers.Env{Dir: t.TempDir(), Data: t.TempDir()})
	_, err := triggertest.Invoke(t, fn, "null", nil)
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
	triggertest.Write(t, filepath.Join(dir, "sub", "a.js"), "", 0o600)
	triggertest.Write(t, filepath.Join(dir, "f.js"), "", 0o600)
	triggertest.Write(t, filepath.Join(dir, "bad.json"), "{", 0o600)
	triggertest.Files(t, Factory(), dir, map[string]string{
		"file: f.js":                     "",
		"file: none.js":                  "none.js: no such file",
		"file: sub":                      "handler is required, source path sub is a directory",
		"dir: sub\nhandler: a.js":        "",
		"dir: sub\nhandler: b.js":        "there is no file b.js in sub",
		"dir: f.js\nhandler: b.js":       "f.js is no directory",
		"file: f.js\npackage: none.json": "none.json: no such file",
		"file: f.js\npackage: bad.json":  "bad.json is no JSON",
		"source: module.exports = 1":     "",
	})
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
		fn := makeFunction(t, triggertest.Source(tc.code), triggers.Env{Dir: "."})
		res, err := triggertest.Invoke(t, fn, tc.payload, tc.secrets)
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
			fn, err := f.Make(triggertest.Config(t, f, triggertest.Source(`
module.exports = (context, file) => {
  setTimeout(() => require('fs').writeFileSync(file, 'yes'), 200);
  `+more+`
  return 'begun';
};`)), triggers.Env{Dir: "."})
			if err != nil {
				t.Fatal(err)
			}
			_, err = triggertest.Invoke(t, fn, strconv.Quote(file), nil)
			if closed := fn.(*function).Close(); err != nil || closed != nil {
				t.Fatal(err, closed)
			}
			if b, err := os.ReadFile(file); string(b) != "yes" {
				t.Errorf("it was not done: %v", err)
			}
		})
	}
}
