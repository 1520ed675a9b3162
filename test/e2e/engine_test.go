package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// binary is the engine under test: built once, or the one that E2E_ENGINE
// names, for example a release.
var binary = os.Getenv("E2E_ENGINE")

func TestMain(m *testing.M) {
	if binary != "" {
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "engine-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		// A test lets another user run it.
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		binary = filepath.Join(dir, "engine")
		build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/engine")
		build.Dir = filepath.Join("..", "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the engine: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// Bounds, generous because the machine may be small and busy: they end a test
// that hangs, they measure nothing.
const (
	readyTimeout  = 30 * time.Second
	stopTimeout   = 30 * time.Second
	arriveTimeout = 90 * time.Second
)

// engine is one engine: its files, its addresses and, while it runs, its
// process. It may be killed and started again.
type engine struct {
	t           *testing.T
	specs, data string
	in, api     string // host and port of events and of the API
	logFile     string
	env         []string
	args        []string // further arguments of `engine run`
	proc        *exec.Cmd
	ended       chan struct{} // closed when proc has ended
}

// newEngine makes an engine with the given spec files. When the test ends it is
// killed, and its log must be free of panics.
func newEngine(t *testing.T, files map[string]string) *engine {
	t.Helper()
	dir := t.TempDir()
	addrs := freeAddrs(t, 2)
	e := &engine{
		t: t, specs: filepath.Join(dir, "specs"), data: filepath.Join(dir, "data"),
		in: addrs[0], api: addrs[1], logFile: filepath.Join(dir, "log"),
	}
	if err := os.Mkdir(e.specs, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		e.write(name, text)
	}
	t.Cleanup(func() {
		e.kill()
		log := e.log()
		if m := panicked.FindString(log); m != "" {
			t.Errorf("the engine's log has %q", m)
		}
		if t.Failed() {
			t.Logf("the engine's log ends with:\n%s", tail(log, 40))
		}
	})
	return e
}

// panicked finds what a log must not contain.
var panicked = regexp.MustCompile(`panic|fatal error:|goroutine \d+ \[|SIGSEGV|runtime error`)

// write replaces a spec file the way most editors do, with a rename.
func (e *engine) write(name, text string) {
	e.t.Helper()
	tmp := filepath.Join(e.specs, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		e.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(e.specs, name)); err != nil {
		e.t.Fatal(err)
	}
}

// launch starts the process and does not wait for anything.
func (e *engine) launch() {
	e.t.Helper()
	log, err := os.OpenFile(e.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{
		"run", e.specs, "--data", e.data, "--listen", e.in, "--api", e.api, "--log-format", "json",
	}, e.args...)
	proc := exec.Command(binary, args...)
	proc.Env = append(cleanEnv(), e.env...)
	proc.Stdout, proc.Stderr = log, log
	if err := proc.Start(); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = proc.Wait() // callers look at ProcessState
		close(ended)
	}()
	e.proc, e.ended = proc, ended
}

// start starts the process and waits until it is ready.
func (e *engine) start() {
	e.t.Helper()
	e.launch()
	eventually(e.t, readyTimeout, "the engine is ready", func() error {
		select {
		case <-e.ended:
			e.t.Fatalf("the engine ended before it was ready: %v", e.proc.ProcessState)
		default:
		}
		status, body, err := get("http://" + e.api + "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	})
}

// kill ends the process with SIGKILL, if it runs.
func (e *engine) kill() {
	if e.proc != nil {
		_ = e.proc.Process.Kill()
		<-e.ended
		e.proc = nil
	}
}

// stop ends the process with SIGTERM, which must give exit code 0 in time.
func (e *engine) stop() {
	e.t.Helper()
	if err := e.proc.Process.Signal(syscall.SIGTERM); err != nil {
		e.t.Fatal(err)
	}
	select {
	case <-e.ended:
	case <-time.After(stopTimeout):
		e.t.Fatalf("still runs %s after SIGTERM", stopTimeout)
	}
	if code := e.proc.ProcessState.ExitCode(); code != 0 {
		e.t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	e.proc = nil
}

// log returns what all processes so far wrote.
func (e *engine) log() string {
	b, err := os.ReadFile(e.logFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		e.t.Error(err)
	}
	return string(b)
}

// url is the address of a webhook.
func (e *engine) url(path string) string { return "http://" + e.in + path }

// post sends one event with net/http and returns the status.
func (e *engine) post(path, body string, header ...string) int {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, e.url(path), strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// verb runs a client verb against this engine.
func (e *engine) verb(args ...string) (stdout, stderr string, code int) {
	e.t.Helper()
	return execute(e.t, append(e.env, "ENGINE_API=http://"+e.api), args...)
}

// execute runs the binary to its end, at most 20 seconds.
func execute(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(cleanEnv(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("engine %s: still runs after 20 s\n%s%s", strings.Join(args, " "), &out, &errOut)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	if m := panicked.FindString(out.String() + errOut.String()); m != "" {
		t.Errorf("engine %s: output has %q:\n%s%s", strings.Join(args, " "), m, &out, &errOut)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// cleanEnv is the environment without the engine's own variables.
func cleanEnv() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ENGINE_") {
			env = append(env, v)
		}
	}
	return env
}

// client keeps no connections, so that a test leaves none behind.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(url string) (status int, body string, err error) {
	resp, err := client.Get(url) //nolint:noctx // the client has a time-out
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// eventually polls until check gives nil; after timeout the test fails with
// its last error.
func eventually(t *testing.T, timeout time.Duration, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s, %s long: %v", what, timeout, err)
		}
		<-tick.C
	}
}

// freeAddrs returns n loopback addresses on which nothing listens at the moment.
func freeAddrs(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // only at the end, or the same port comes again
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// tail returns the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// scaled is n, or less with -short.
func scaled(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}
