package drivers_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

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
	for _, program := range []string{"go", "python3"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "engine")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/engine").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	api := freeAddress(t)
	var log bytes.Buffer
	run := exec.Command(bin, "run", ".", "--data", filepath.Join(dir, "data"), "--listen", freeAddress(t), "--api", api)
	run.Stdout, run.Stderr = &log, &log
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	end := time.AfterFunc(90*time.Second, func() { _ = run.Process.Kill() })
	defer func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		if err := run.Wait(); err != nil {
			t.Errorf("the engine: %v", err)
		}
		end.Stop()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	ask := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin, args...)
		cmd.Env = append(os.Environ(), "ENGINE_API="+api)
		out, _ := cmd.CombinedOutput() // not yet there
		return string(out)
	}
	until := func(what string, args ...string) {
		t.Helper()
		deadline := time.Now().Add(60 * time.Second)
		for out := ""; !strings.Contains(out, what); out = ask(args...) {
			if time.Now().After(deadline) {
				t.Fatalf("engine %s does not tell %q:\n%s", strings.Join(args, " "), what, out)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	until("ticker.tick.py", "events", "--type", "ticker.tick.py")
	until("ticker.tick", "events", "--type", "ticker.tick")
	until(`Hello, Noone from Nowhere`, "runs", "hello", "--last")
	until("go run ./ticker --seconds=5", "describe", "eventsource", "clocks")
	until("ticker-sub", "describe", "subscription", "ticker-sub")
}
