package drivers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bin is the engine.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		for _, program := range []string{"go", "python3"} {
			if _, err := exec.LookPath(program); err != nil {
				fmt.Fprintln(os.Stderr, err, "- the example is not run")
				return 0
			}
		}
		dir, err := os.MkdirTemp("", "engine-drivers-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		bin = filepath.Join(dir, "engine")
		if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/engine").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// engine is a running engine.
type engine struct {
	t           *testing.T
	cmd         *exec.Cmd
	log         *os.File
	args        []string
	api, listen string
}

// launch starts an engine that ends with the test.
func launch(t *testing.T, specs string) *engine {
	e := &engine{t: t, api: freeAddress(t), listen: freeAddress(t)}
	e.args = []string{"run", specs, "--data", filepath.Join(t.TempDir(), "data"), "--listen", e.listen, "--api", e.api}
	var err error
	if e.log, err = os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		t.Fatal(err)
	}
	e.start()
	t.Cleanup(func() {
		defer e.log.Close()
		_ = e.cmd.Process.Signal(syscall.SIGTERM)
		if err := e.cmd.Wait(); err != nil {
			t.Errorf("the engine: %v", err)
		}
		if t.Failed() {
			t.Log(e.logged())
		}
	})
	return e
}

func (e *engine) start() {
	e.cmd = exec.Command(bin, e.args...)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	e.cmd.Env = append(os.Environ(), "EXAMPLE_PASSWORD=OpenSesame")
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *engine) logged() string {
	b, err := os.ReadFile(e.log.Name())
	if err != nil {
		e.t.Error(err)
	}
	return string(b)
}

func (e *engine) ask(args ...string) string {
	ctx, cancel := context.WithTimeout(e.t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "ENGINE_API="+e.api)
	out, _ := cmd.Output() // an error while it is not there yet
	return string(out)
}

func (e *engine) until(what string, ok func(out string) bool, args ...string) {
	e.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		out := e.ask(args...)
		if ok(out) {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("engine %s does not tell %s:\n%s", strings.Join(args, " "), what, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (e *engine) tells(what string, args ...string) {
	e.t.Helper()
	e.until(what, func(out string) bool { return strings.Contains(out, what) }, args...)
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestExample runs the example as it is: both drivers tick, and the function
// that is subscribed to one of them runs.
func TestExample(t *testing.T) {
	t.Parallel()
	e := launch(t, ".")
	e.tells("ticker.tick.py", "events", "--type", "ticker.tick.py")
	e.tells("ticker.tick", "events", "--type", "ticker.tick")
	e.tells("Hello, Noone from Nowhere", "runs", "hello", "--last")
	e.tells("go run ticker/main.go --seconds=5", "describe", "eventsource", "clocks")
	e.tells("subscription.ticker-sub", "describe", "subscription", "ticker-sub")
}

const neighbours = `
apiVersion: engine/v1
kind: DriverType
metadata: {name: crash}
spec: {command: [sh, -c, "echo the disk is gone, $PASS_WORD >&2; exit 3"]}
---
apiVersion: engine/v1
kind: DriverType
metadata: {name: garbage}
spec: {command: [sh, -c, "echo '<html>'; exec sleep 1000"]}
---
apiVersion: engine/v1
kind: DriverType
metadata: {name: absent}
spec: {path: no/such/program}
---
apiVersion: engine/v1
kind: DriverType
metadata: {name: ticker}
spec: {command: [python3, %s]}
---
apiVersion: engine/v1
kind: DriverType
metadata: {name: web}
spec: {command: [sh, -c, 'exec python3 -m http.server --bind 127.0.0.1 "$PORT"'], expose: true}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: shop}
spec: {env: {pass-word: EXAMPLE_PASSWORD}}
---
apiVersion: engine/v1
kind: EventSource
metadata: {name: e}
spec:
  driver:
    crash: {type: crash, secrets: [shop]}
    web: {type: web}
    garbage: {type: garbage}
    absent: {type: absent}
    ticker: {type: ticker, set: {seconds: %s}}
`

// event is the status of one event.
type event struct {
	Name, State, Detail string
	Restarts            int
	Stored              uint64
}

func (e *engine) event(name string) (ev event) {
	var res struct{ Events []event }
	var list []struct{ Events []event }
	out := []byte(e.ask("get", "eventsource", "e", "-o", "json"))
	if json.Unmarshal(out, &res) != nil && json.Unmarshal(out, &list) == nil && len(list) > 0 {
		res.Events = list[0].Events
	}
	for _, ev := range res.Events {
		if ev.Name == name {
			return ev
		}
	}
	return event{}
}

func (e *engine) become(name string, ok func(event) bool) event {
	e.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		ev := e.event(name)
		if ok(ev) {
			return ev
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("the event %s is %+v", name, ev)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// pid is the process of a driver that runs.
func pid(t *testing.T, ev event) int {
	words := strings.FieldsFunc(ev.Detail, func(r rune) bool { return r == ' ' || r == ',' || r == ';' })
	if len(words) < 2 {
		t.Fatalf("no process in %q", ev.Detail)
	}
	n, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNeighbours: drivers that do not work leave the others alone and tell why;
// a changed one is another process; all come back after a crash of the engine.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	ticker, err := filepath.Abs("ticker.py")
	if err != nil {
		t.Fatal(err)
	}
	specs := t.TempDir()
	write := func(seconds string) {
		if err := os.WriteFile(filepath.Join(specs, "e.yaml"), fmt.Appendf(nil, neighbours, ticker, seconds), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("0.2")
	e := launch(t, specs)
	running := func(n uint64) func(event) bool {
		return func(ev event) bool { return ev.State == "Running" && ev.Stored > n }
	}
	first := e.become("ticker", running(3))
	e.become("crash", func(ev event) bool {
		return ev.State == "Retrying" && ev.Restarts >= 2 && ev.Detail == "driver crash exited with code 3: the disk is gone, ***"
	})
	e.become("garbage", func(ev event) bool {
		return ev.State == "Running" && strings.Contains(ev.Detail, "messages refused: 1")
	})
	e.become("absent", func(ev event) bool {
		return ev.State == "Retrying" && strings.Contains(ev.Detail, "program not found")
	})

	e.become("web", func(event) bool {
		res, err := http.Get("http://" + e.listen + "/drivers/e/web/ticker.py")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusNotFound && strings.HasPrefix(res.Header.Get("Server"), "SimpleHTTP")
	})

	write("0.1")
	second := e.become("ticker", func(ev event) bool { return ev.State == "Running" && pid(t, ev) != pid(t, first) })
	gone := func(pid int) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for syscall.Kill(pid, 0) == nil {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is still there", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	gone(pid(t, first))

	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.cmd.Wait()
	if _, err := os.Stat("/proc/self/stat"); err == nil {
		gone(pid(t, second)) // Linux ends it with the engine
	}
	e.start()
	e.become("ticker", running(3))
	if strings.Contains(e.logged(), "OpenSesame") {
		t.Error("the secret is in the log")
	}
}
