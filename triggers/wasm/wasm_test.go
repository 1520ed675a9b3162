package wasm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// built is the guest, once a test has built it.
var built struct {
	once sync.Once
	dir  string
	// kept keeps it compiled from test to test.
	kept *function
	err  error
}

// sharedLibrary is that of all tests that need none of their own.
var sharedLibrary = newLibrary()

func TestMain(m *testing.M) {
	var err error
	if built.dir, err = os.MkdirTemp("", "wasm-guest-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if built.kept != nil {
		_ = built.kept.Close()
	}
	_ = os.RemoveAll(built.dir)
	os.Exit(code)
}

// guest returns the path of testdata/guest, compiled to WebAssembly.
func guest(t testing.TB) string {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no Go toolchain to build the guest with")
	}
	built.once.Do(func() {
		cmd := exec.Command(tool, "build", "-o", filepath.Join(built.dir, "guest.wasm"), "./testdata/guest")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w\n%s", err, out)
			return
		}
		built.kept = newFunction(sharedLibrary, &Config{File: filepath.Join(built.dir, "guest.wasm")}, triggers.Env{Data: built.dir})
		built.err = built.kept.module.wait(t.Context())
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "guest.wasm")
}

// write puts a small module into a file.
func write(t testing.TB, code []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small.wasm")
	if err := os.WriteFile(path, code, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// values returns every text as it is.
type values struct{ triggers.Values }

func (values) TextOrSecret(t specs.TextOrSecret) (string, error) { return t.Text.Value, nil }

func call(input any) *triggers.Call {
	return &triggers.Call{
		Key: "k", Attempt: 1, Function: "f", Values: values{}, Input: input, HasInput: input != nil,
		Event: &bus.Event{ID: "1", Source: "/s", Type: "t", Data: []byte(`{"id":1234567890123456789}`)},
	}
}

// invoke makes a function and one call of at most timeout.
func invoke(t testing.TB, cfg *Config, timeout time.Duration) (triggers.Result, error) {
	t.Helper()
	f := newFunction(sharedLibrary, cfg, triggers.Env{Dir: t.TempDir()})
	defer f.Close()
	if f.module != nil {
		if err := f.module.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return f.Invoke(ctx, call(nil))
}

const long = time.Minute

func TestContract(t *testing.T) {
	loop := write(t, small(nil, opLoop, none, opBr, 0, opEnd))
	path, data := guest(t), built.dir // which has it compiled
	run := func(mode string, args ...string) string {
		config := fmt.Sprintf("file: %s\nmemory: 512MiB\nargs: [%s]", path, strings.Join(args, ", "))
		if mode != "" {
			config += "\nmode: " + mode
		}
		return config
	}
	crashes := func(mode string) map[string]string {
		steps := map[string]string{}
		for _, s := range triggertest.Steps() {
			if s.Name != triggertest.BetweenCalls {
				steps[s.Name] = run(mode, "crash", s.Name)
			}
		}
		return steps
	}
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "file: testdata/echo.wasm\nenv: {ID: '${ data.id }', TOKEN: {secret: {name: a, key: b}}}",
		Slow:      "file: " + loop,
		Permanent: "file: absent.wasm",
		Retryable: "file: " + write(t, small(nil, opUnreachable)),
		Key:       run("", "key"),
		Length:    run("", "length"),
		Huge:      run("", "flood"),
		Text:      "file: testdata/echo.wasm",
		Crash:     crashes(""),
		Secrets:   map[string]string{"a/b": "canary-token"},
		Env:       triggers.Env{Dir: ".", Data: data},
	})
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(), Mode: modeWorker,
		OK:        run(modeWorker, "line", "echo"),
		Slow:      run(modeWorker, "loop"),
		Permanent: run(modeWorker, "refuse"),
		Retryable: run(modeWorker, "exit"),
		Key:       run(modeWorker, "line", "key"),
		Length:    run(modeWorker, "line", "length"),
		Huge:      run(modeWorker, "line", "huge"),
		Text:      run(modeWorker, "line", "echo"),
		Crash:     crashes(modeWorker),
		Env:       triggers.Env{Dir: ".", Data: data},
	})
}

func TestOutcome(t *testing.T) {
	path := guest(t)
	for name, tc := range map[string]struct {
		args                      []string
		out, logs, status, failed string
	}{
		"echo":   {args: []string{"echo"}, out: `{"id":1234567890123456789}`, status: "exit 0"},
		"args":   {args: []string{"args", "a b", ""}, out: "guest.wasm args a b \n", status: "exit 0"},
		"clock":  {args: []string{"clock"}, out: "true true\n", status: "exit 0"},
		"exit 3": {args: []string{"exit"}, logs: "that was it\n", status: "exit 3", failed: "guest.wasm: exit 3: that was it"},
		"panic":  {args: []string{"panic"}, status: "exit 2", failed: "guest.wasm: exit 2"},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := invoke(t, &Config{File: path, Args: tc.args}, long)
			if (err == nil) != (tc.failed == "") || err != nil && (!strings.Contains(err.Error(), tc.failed) || triggers.Permanent(err) || triggers.ClassOf(err) != triggers.FunctionError) {
				t.Errorf("error %v, want %q", err, tc.failed)
			}
			if string(res.Output) != tc.out || res.Status != tc.status || tc.logs != "" && string(res.Logs.Stderr) != tc.logs {
				t.Errorf("%q %q %s", res.Output, res.Logs.Stderr, res.Status)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LEAK", "secret of the engine")
	f := newFunction(sharedLibrary, &Config{
		File: guest(t), Args: []string{"environ"}, Env: map[string]specs.TextOrSecret{"OWN": {Text: specs.Text{Value: "a=b"}}},
	}, triggers.Env{})
	defer f.Close()
	c := call(nil)
	c.Secrets = map[string]string{"api-token": "x"}
	res, err := f.Invoke(t.Context(), c)
	got := strings.Split(strings.TrimSpace(string(res.Output)), "\n")
	slices.Sort(got)
	want := []string{
		"API_TOKEN=x", "CE_ID=1", "CE_SOURCE=/s", "CE_SPECVERSION=1.0", "CE_TYPE=t",
		"ENGINE_ATTEMPT=1", "ENGINE_FUNCTION=f", "ENGINE_KEY=k", "OWN=a=b",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestHostile: programs that mean no good end with their own call.
func TestHostile(t *testing.T) {
	path := guest(t)
	drop := []byte{opDrop}
	wasiCall := func(name string, mem []byte, instructions ...byte) []byte {
		sections := [][]byte{types, imported(name), single}
		if mem != nil {
			sections = append(sections, mem)
		}
		return assemble(append(sections, cat(7, 1, "_start", 0, 1), code(instructions...))...)
	}
	for name, tc := range map[string]struct {
		args   []string
		code   []byte
		failed string // what the error has
		within time.Duration
	}{
		"endless loop": {args: []string{"loop"}, failed: "did not end in time: context deadline exceeded", within: 300 * time.Millisecond},
		"sleeps":       {args: []string{"sleep"}, failed: "did not end in time: context deadline exceeded", within: 300 * time.Millisecond},
		"memory":       {args: []string{"grow"}, failed: "(it was refused more memory than 64 MiB)"},
		"/etc/passwd":  {args: []string{"read", "/etc/passwd"}, failed: "exit 1: "},
		"../..":        {args: []string{"read", "../../../../../../etc/passwd"}, failed: "exit 1: "},
		"writes":       {args: []string{"write", "/tmp/x", "y"}, failed: "exit 1: "},
		// WASI knows sockets that are there already, and nothing else.
		"socket": {
			code: assemble(
				cat(1, 2, []byte{0x60, 0, 0}, []byte{0x60, 3, 0x7f, 0x7f, 0x7f, 1, 0x7f}), imported("sock_accept"), single, one, cat(7, 2, "_start", 0, 1, "memory", 2, 0),
				code(cat(i32(3), i32(0), i32(8), []byte{opCall, 0}, []byte{opIf, none, opUnreachable, opEnd})...)),
			failed: "trap: unreachable",
		},
		"makes a socket": {code: wasiCall("sock_open", one), failed: "sock_open"},
		"loop at start": {
			code: assemble(types, cat(3, 2, 0, 0), start, cat(8, 0), cat(10, 2, 7, 0, []byte{opLoop, none, opBr, 0, opEnd, opEnd}, 2, 0, opEnd)),
			// The section that names a function to run while the instance is made.
			failed: "did not end in time", within: 300 * time.Millisecond,
		},
		"recursion":    {code: small(nil, opCall, 0), failed: "trap: stack overflow"},
		"out of bound": {code: assemble(types, single, one, start, code(cat(i32(-1), load32, drop)...)), failed: "trap: out of bounds memory access"},
		"unreachable":  {code: small(nil, opUnreachable), failed: "trap: unreachable"},
		"table": { // table.grow by two thousand million, then unreachable if that worked
			code: small(cat(4, 1, 0x70, 0, 1), cat([]byte{0xd0, 0x70}, i32(1<<31-1), []byte{0xfc, 15, 0}, i32(-1), []byte{0x47, opIf, none, opUnreachable, opEnd})...),
		},
		"renumber": {
			code: assemble(
				cat(1, 2, []byte{0x60, 0, 0}, []byte{0x60, 2, 0x7f, 0x7f, 1, 0x7f}), imported("fd_renumber"), single, cat(7, 1, "_start", 0, 1),
				code(cat(i32(0), i32(1<<31-1), []byte{opCall, 0}, i32(errnoNotSupported), []byte{0x47, opIf, none, opUnreachable, opEnd})...)),
		},
		"poll": { // more subscriptions than fit
			code: wasiCall("poll_oneoff", one, cat(i32(0), i32(0), i32(89478486), i32(8), []byte{opCall, 0}, drop)...),
		},
		"memory at start": {code: small(cat(5, 1, 0, 2000), opEnd), failed: "needs 125 MiB of memory to begin with"},
		"not a module":    {code: []byte("#!/bin/sh\n"), failed: "this is no WebAssembly module"},
		"invalid code":    {code: small(nil, 0xff), failed: "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &Config{File: path, Args: tc.args}
			if tc.code != nil {
				cfg.File = write(t, tc.code)
			}
			if tc.within == 0 {
				tc.within = long
			}
			begin := time.Now()
			res, err := invokeAny(t, cfg, tc.within)
			if (err == nil) != (tc.failed == "") || err != nil && !strings.Contains(err.Error(), tc.failed) {
				t.Errorf("error %v, want %q (%s %q)", err, tc.failed, res.Status, res.Logs.Stderr)
			}
			if tc.within < long {
				if !errors.Is(err, context.DeadlineExceeded) || triggers.Permanent(err) {
					t.Errorf("error %v, want one of the deadline that may be retried", err)
				}
				if took := time.Since(begin); took > 20*time.Second {
					t.Errorf("took %v", took)
				}
			}
		})
	}
	// The next one works.
	if res, err := invoke(t, &Config{File: path, Args: []string{"echo"}}, long); err != nil || len(res.Output) == 0 {
		t.Error(res, err)
	}
}

// invokeAny is invoke for modules that may be broken.
func invokeAny(t *testing.T, cfg *Config, timeout time.Duration) (triggers.Result, error) {
	t.Helper()
	f := newFunction(sharedLibrary, cfg, triggers.Env{})
	defer f.Close()
	if f.module != nil {
		<-f.module.ready
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return f.Invoke(ctx, call(nil))
}

func TestFlood(t *testing.T) {
	path := guest(t)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	res, err := invoke(t, &Config{File: path, Args: []string{"flood"}}, long)
	if err != nil || len(res.Output) != triggers.MaxOutput || len(res.Logs.Stderr) != triggers.MaxLogs || !res.Truncated || !res.Logs.Truncated {
		t.Errorf("%d %d %v %v", len(res.Output), len(res.Logs.Stderr), res.Truncated, err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 {
		t.Errorf("allocated %d bytes for 64 MiB of output", n)
	}
}

func TestTrace(t *testing.T) {
	_, err := invoke(t, &Config{File: write(t, small(nil, opUnreachable))}, long)
	e, ok := errors.AsType[*triggers.Error](err)
	if !ok || e.Class != triggers.FunctionError || len(e.Stacktrace) == 0 || !strings.Contains(e.Stacktrace[0], "$0") || strings.Contains(e.Message, "\n") {
		t.Errorf("%#v", err)
	}
}

func TestStdin(t *testing.T) {
	for stdin, want := range map[string]string{
		"": `{"a":"b"}`, "input": `{"a":"b"}`, "data": `{"id":1234567890123456789}`, "none": "",
		"event": `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"id":1234567890123456789}}`,
	} {
		f := newFunction(sharedLibrary, &Config{File: "testdata/echo.wasm", Stdin: stdin}, triggers.Env{Dir: "."})
		res, err := f.Invoke(t.Context(), call(map[string]any{"a": "b"}))
		if err != nil || string(res.Output) != want {
			t.Errorf("%q: %s, want %s (%v)", stdin, res.Output, want, err)
		}
		_ = f.Close()
	}
	// More than any buffer, and what is no text.
	big := make([]byte, 700<<10)
	_, _ = rand.Read(big)
	f := newFunction(sharedLibrary, &Config{File: "testdata/echo.wasm"}, triggers.Env{Dir: "."})
	defer f.Close()
	c := call(nil)
	c.Event.Data = big
	if res, err := f.Invoke(t.Context(), c); err != nil || string(res.Output) != string(big) || res.ContentType != "application/octet-stream" {
		t.Errorf("%d bytes, %s, %v", len(res.Output), res.ContentType, err)
	}
}

// TestWorker: the protocol of exec's workers, one call an instance.
func TestWorker(t *testing.T) {
	path := guest(t)
	for what, want := range map[string]string{
		"answer": `{"id":1234567890123456789} k 1 t`, "refuse": "InputError: no name", "exit": "FunctionError: guest.wasm: exit 3: that was it",
		"args": "FunctionError: not an answer: ", "flood": "FunctionError: guest.wasm: the answer is longer than",
	} {
		f := newFunction(sharedLibrary, &Config{File: path, Args: []string{what}, Mode: modeWorker}, triggers.Env{})
		res, err := f.Invoke(t.Context(), call(nil))
		_ = f.Close()
		if got := string(res.Output); err != nil {
			if !strings.HasPrefix(err.Error(), want) || got != "" {
				t.Errorf("%s: %v, %s, want %s", what, err, got, want)
			}
		} else if want, _ := json.Marshal(want); got != string(want) || len(res.Events) != 1 || res.Events[0].Subject != "s" || len(res.Logs.Stderr) == 0 || res.ContentType != "application/json" {
			t.Errorf("%s: %+v, want %s", what, res, want)
		}
	}
}

func TestMounts(t *testing.T) {
	path := guest(t)
	base := t.TempDir()
	inside, outside := filepath.Join(base, "inside"), filepath.Join(base, "outside")
	for _, dir := range []string{inside, outside} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{filepath.Join(inside, "a"): "in", filepath.Join(outside, "secret"): "out"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"file": "../outside/secret", "dir": "../outside", "abs": filepath.Join(outside, "secret"), "ok": "a"} {
		if err := os.Symlink(target, filepath.Join(inside, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(inside, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	no := false
	readOnly, writable := []Mount{{Host: inside, Guest: "/data"}}, []Mount{{Host: inside, Guest: "/data", ReadOnly: &no}}
	for name, tc := range map[string]struct {
		mounts []Mount
		args   string
		out    string // "" for a refusal
	}{
		"reads":             {readOnly, "read /data/a", "in"},
		"follows a link":    {readOnly, "read /data/ok", "in"},
		"lists":             {readOnly, "list /data", "a false\nabs false\ndir false\nfile false\nok false\npipe false\n"},
		"other paths":       {readOnly, "read /etc/passwd", ""},
		"dots":              {readOnly, "read /data/../outside/secret", ""},
		"more dots":         {readOnly, "read /data/./x/../../../outside/secret", ""},
		"link to a file":    {readOnly, "read /data/file", ""},
		"link to a dir":     {readOnly, "read /data/dir/secret", ""},
		"absolute link":     {readOnly, "read /data/abs", ""},
		"pipe":              {readOnly, "read /data/pipe", ""},
		"pipe to write":     {writable, "write /data/pipe x", ""},
		"writes":            {readOnly, "write /data/new x", ""},
		"overwrites":        {readOnly, "write /data/a x", ""},
		"everything":        {readOnly, "files /data", ""},
		"writes by a link":  {writable, "write /data/file x", ""},
		"writable":          {writable, "files /data/w", "hello\n5 2\nJello! <nil>\ntrue\ntrue\ntrue\n"},
		"too many files":    {readOnly, "open /data/a", "127 open /data/a: Try again\n"},
		"missing directory": {[]Mount{{Host: filepath.Join(base, "absent"), Guest: "/data"}}, "list /data", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(filepath.Join(inside, "w")); err != nil {
				t.Fatal(err)
			}
			if name == "writable" {
				if err := os.Mkdir(filepath.Join(inside, "w"), 0o700); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(filepath.Join(inside, "w"))
			}
			res, err := invoke(t, &Config{File: path, Args: strings.Fields(tc.args), Mounts: tc.mounts}, long)
			if (err == nil) != (tc.out != "") || string(res.Output) != tc.out {
				t.Errorf("%q, want %q (%v, %s)", res.Output, tc.out, err, res.Logs.Stderr)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); string(b) != "out" {
		t.Error(string(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(inside, "a")); string(b) != "in" {
		t.Error(string(b), err)
	}
}

// TestReadOnlyFlags: flags that create or cut a file need no right to write.
func TestReadOnlyFlags(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	// path_open(3, 0, "a", oflags, fd_read, 0, 0, 8)
	for oflags, name := range map[int32]string{8: "a", 1: "new"} {
		nine := []byte{0x60, 9, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7e, 0x7e, 0x7f, 0x7f, 1, 0x7f}
		module := assemble(
			cat(1, 2, []byte{0x60, 0, 0}, nine), imported("path_open"), single, one, cat(7, 2, "_start", 0, 1, "memory", 2, 0),
			code(cat(i32(3), i32(0), i32(100), i32(int32(len(name))), i32(oflags), []byte{0x42, 2, 0x42, 0}, i32(0), i32(8), []byte{opCall, 0},
				i32(0), []byte{0x46, opIf, none, opUnreachable, opEnd})...),
			cat(11, 1, 0, i32(100), opEnd, name),
		)
		if _, err := invoke(t, &Config{File: write(t, module), Mounts: []Mount{{Host: dir, Guest: "/"}}}, long); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); string(b) != "text" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file was created")
	}
}

func TestConcurrent(t *testing.T) {
	f := newFunction(sharedLibrary, &Config{File: guest(t), Args: []string{"echo"}}, triggers.Env{})
	defer f.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 4 {
				c := call(fmt.Sprint(i, j))
				if res, err := f.Invoke(t.Context(), c); err != nil || string(res.Output) != fmt.Sprintf("%q", fmt.Sprint(i, j)) {
					t.Errorf("%s, %v", res.Output, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestShared: what several functions run is compiled once, freed with the last
// of them, and found on disk by the next engine.
func TestShared(t *testing.T) {
	data := t.TempDir()
	env := triggers.Env{Dir: ".", Data: data}
	l := newLibrary()
	cfg := &Config{File: "testdata/echo.wasm"}
	a, b := newFunction(l, cfg, env), newFunction(l, cfg, env)
	if a.module != b.module || len(l.modules) != 1 {
		t.Error("two modules of one file")
	}
	if _, err := a.Invoke(t.Context(), call(nil)); err != nil {
		t.Error(err)
	}
	_ = a.Close()
	if _, err := b.Invoke(t.Context(), call(nil)); err != nil {
		t.Error(err)
	}
	_ = b.Close()
	if len(l.modules) != 0 || b.module.runtime != nil {
		t.Error("the module stays")
	}
	kept, err := filepath.Glob(filepath.Join(data, "wasm", "*", "*", "*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("on disk: %q, %v", kept, err)
	}
	stat := func() time.Time {
		info, err := os.Stat(kept[0])
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	run := func() {
		f := newFunction(newLibrary(), cfg, env)
		if _, err := f.Invoke(t.Context(), call(nil)); err != nil {
			t.Error(err)
		}
		_ = f.Close()
	}
	before := stat()
	run()
	if !stat().Equal(before) {
		t.Error("it was compiled again")
	}
	// What is broken on disk is made again.
	if err := os.WriteFile(kept[0], []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	run()
	run()
	stat()
}

// TestCloseWhileCompiling: nobody waits for what nobody needs any more.
func TestCloseWhileCompiling(t *testing.T) {
	l := newLibrary()
	l.compiling <- struct{}{} // somebody else's turn
	f := newFunction(l, &Config{File: "testdata/echo.wasm"}, triggers.Env{Dir: "."})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := f.Invoke(ctx, call(nil)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "still being compiled") || triggers.Permanent(err) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"{}":                                                                       "missing-key",
		"file: a.wasm\nmemory: 1KiB":                                               "memory is from 64KiB to 4GiB",
		"file: a.wasm\nmemory: 8GiB":                                               "memory is from 64KiB to 4GiB",
		"file: a.wasm\nargs: ['${ data.id }']":                                     "args have no templates",
		"file: a.wasm\nenv: {'A=B': c}":                                            "is no name of a variable",
		"file: a.wasm\nenv: {PYTHONPATH: '${ data.id }'}":                          "",
		"file: a.wasm\nmode: worker\nstdin: data":                                  "with mode worker, stdin has the call",
		"file: a.wasm\nmode: worker":                                               "",
		"file: a.wasm\nstdin: body":                                                "unknown-value",
		"file: a.wasm\nmounts: [{host: a}]":                                        "missing-key",
		"file: a.wasm\nmounts: [{host: a, guest: data}]":                           "is no absolute path",
		"file: a.wasm\nmounts: [{host: a, guest: /../x}]":                          "is no absolute path",
		"file: a.wasm\nmounts: [{host: a, guest: /x}, {host: b, guest: /x}]":       "/x is mounted twice",
		"file: a.wasm\nmounts: [{host: a, guest: /}, {host: b, guest: /x/y}]":      "",
		"file: a.wasm\nmounts: [{host: a, guest: /x, readOnly: false}]\nargs: [a]": "",
	})
}

func TestCheck(t *testing.T) {
	for file, want := range map[string]string{
		"testdata/echo.wasm": "",
		"absent.wasm":        "error[unreadable] spec.wasm.file: absent.wasm: no such file or directory (a path is relative to this file)",
		"testdata":           "error[unreadable] spec.wasm.file: testdata: this is no file",
		"testdata/echo.wat":  "error[invalid-value] spec.wasm.file: testdata/echo.wat: this is no WebAssembly module",
	} {
		ck := specs.NewChecker(specs.Ref{}, "spec.wasm", map[string]specs.Pos{"": {File: "a.yaml", Line: 1, Col: 1}})
		Factory().Check(&Config{File: file}, ".", ck)
		got := ""
		for _, d := range ck.Found() {
			got += d.String()
		}
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}
