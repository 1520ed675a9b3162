package triggertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// Worker describes a kind that keeps processes to [RunWorker]. Its Config is one
// whose function does what the payload says: `{"do": what, …}` with
//
//	echo            gives back value
//	context         gives back the context
//	state           gives back the pid of its process and how many calls it has seen
//	sleep           never ends
//	print           writes out to stdout and err to stderr, gives back null
//	flood           writes bytes bytes to stdout, then "end" to stderr
//	big             gives back a text of bytes characters
//	input, function fails with "no" as InputError or FunctionError
//	emit            emits a (data {"n": 1}, subject s) and b (text as text/plain),
//	                then fails when fail is true
//	exit            ends its process with code 3
//	kill            kills its process with SIGKILL
//	half            writes the first half of an answer, then kills its process
//	answer          writes an answer that is whole, then kills its process
//	garbage         writes "garbage" where answers are written, then gives back null
//	close           closes all its descriptors but 0 to 2, then gives back null
//	hang            forks a process that holds everything it inherited and never
//	                ends, writes late to stdout and gives back its pid
//	fork            forks a process that goes on as if it were the worker
type Worker struct {
	Factory triggers.Factory
	Config  string
	Env     triggers.Env
	// Cannot are things its function cannot do, with the reason.
	Cannot map[string]string
}

// Need skips a test that needs what a program tells to be there, by succeeding;
// in continuous integration its absence is a failure. what is the name of the
// Debian package that brings it.
func Need(t testing.TB, probe *exec.Cmd, what string) {
	t.Helper()
	if out, err := probe.CombinedOutput(); err != nil {
		text := fmt.Sprintf("%s is missing: %v %s", what, err, out)
		if os.Getenv("CI") == "true" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
}

// asked is one call of a worker's function.
type asked struct {
	t *testing.T
	f triggers.Function
	v *Values
	n int
}

// do makes a call and decodes its output into out, unless that is nil.
func (a *asked) do(ctx context.Context, out any, payload string, grants ...string) (triggers.Result, error) {
	a.t.Helper()
	a.n++
	return a.call(ctx, out, fmt.Sprintf("key-%d", a.n), payload, grants...)
}

func (a *asked) call(ctx context.Context, out any, key, payload string, grants ...string) (triggers.Result, error) {
	a.t.Helper()
	c := NewCall(key)
	c.Event.Data, c.Grants = []byte(payload), grants
	c.Values = a.v.Of(c)
	hung := time.AfterFunc(patience, func() { panic("triggertest: " + a.t.Name() + ": the call does not return") })
	defer hung.Stop()
	res, err := a.f.Invoke(ctx, c)
	if err == nil && out != nil {
		if err := json.Unmarshal(res.Output, out); err != nil {
			a.t.Errorf("output %q: %v", res.Output, err)
		}
	}
	return res, err
}

// fails makes a call that must fail and returns how.
func (a *asked) fails(payload string) *triggers.Error {
	a.t.Helper()
	_, err := a.do(a.t.Context(), nil, payload)
	e, ok := errors.AsType[*triggers.Error](err)
	if !ok {
		a.t.Fatalf("%s: error %v, want one with a class", payload, err)
	}
	return e
}

// state asks the process that takes the next call.
func (a *asked) state() (s struct{ Pid, Calls int }) {
	a.t.Helper()
	if _, err := a.do(a.t.Context(), &s, `{"do":"state"}`); err != nil {
		a.t.Fatalf("the next call does not work: %v", err)
	}
	return s
}

// stands reports whether a process is stopped with all of its threads: they stop
// one after the other, and each could still read.
func stands(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range threads {
		stat, _ := os.ReadFile(file)
		if i := bytes.LastIndexByte(stat, ')'); i < 0 || i+2 >= len(stat) || stat[i+2] != 'T' {
			return false
		}
	}
	return len(threads) > 0
}

// readBytes is how many bytes a process has read so far.
func readBytes(pid int) (n int) {
	io, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	_, _ = fmt.Sscanf(string(io), "rchar: %d", &n)
	return n
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// RunWorker checks what every kind that keeps processes promises: that calls
// are apart from each other, and that whatever a call does to its process
// hurts that call alone.
func RunWorker(t *testing.T, w Worker) {
	t.Helper()
	host := &Host{}
	w.Env.Host = host
	if w.Env.Concurrency == 0 {
		w.Env.Concurrency = 1
	}
	run := func(name string, test func(t *testing.T, a *asked)) {
		t.Run(name, func(t *testing.T) {
			if why := w.Cannot[name]; why != "" {
				t.Skip(why)
			}
			before := goleak.IgnoreCurrent()
			c := Config(t, w.Factory, w.Config)
			v, err := NewValues(c, nil)
			if err != nil {
				t.Fatal(err)
			}
			f, err := w.Factory.Make(c, w.Env)
			if err != nil {
				t.Fatal(err)
			}
			contract := &triggers.Contract{Function: f, Host: host, MaxHops: bus.MaxHops, Secrets: []string{"own"}, Resolve: func(name string) (map[string]string, error) {
				return map[string]string{"password": "from " + name, name: "x"}, nil
			}}
			t.Cleanup(func() {
				if err := f.(io.Closer).Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				goleak.VerifyNone(t, before)
			})
			test(t, &asked{t: t, f: contract, v: v})
		})
	}
	// hurts makes a call that takes its process with it.
	hurts := func(payload, want string) func(*testing.T, *asked) {
		return func(t *testing.T, a *asked) {
			was := a.state()
			if e := a.fails(payload); e.Class != triggers.SystemError || !strings.Contains(e.Message, want) {
				t.Errorf("%v, want a SystemError: %s", e, want)
			}
			if now := a.state(); now.Pid == was.Pid || now.Calls != 1 {
				t.Errorf("%+v takes the next call, it was %+v", now, was)
			}
			eventually(t, "the process still runs", func() bool { return gone(was.Pid) })
		}
	}

	run("echo", func(t *testing.T, a *asked) {
		for _, value := range []string{`null`, `42`, `"s"`, `[]`, `{}`, `1234567890123456789`, `1.5`, `{"a":{"b":[null,true,"ü€😀\u0000\n\""]}}`, `"` + strings.Repeat("x", 300<<10) + `"`} {
			if value == "1234567890123456789" && w.Cannot["long"] != "" {
				continue
			}
			var got, want any
			res, err := a.do(t.Context(), &got, `{"do":"echo","value":`+value+`}`)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(value), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) || !json.Valid(res.Output) || res.ContentType != "application/json" || res.Truncated {
				t.Errorf("%.100s: %.100s, %s", value, res.Output, res.ContentType)
			}
			if n := string(res.Output); value == "1234567890123456789" && n != value {
				t.Errorf("%s became %s", value, n)
			}
		}
	})
	run("invalid UTF-8", func(t *testing.T, a *asked) {
		var got string
		if _, err := a.do(t.Context(), &got, "{\"do\":\"echo\",\"value\":\"a\xffb\"}"); err != nil || got != "a\uFFFDb" {
			t.Errorf("%q, %v", got, err)
		}
	})
	run("context", func(t *testing.T, a *asked) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		deadline, _ := ctx.Deadline()
		var got struct {
			Key, Deadline string
			Attempt       int
			Secrets       map[string]string
			Event         map[string]any
		}
		if _, err := a.do(ctx, &got, `{"do":"context"}`, "added"); err != nil {
			t.Fatal(err)
		}
		if at, err := time.Parse(time.RFC3339, got.Deadline); err != nil || at.Sub(deadline).Abs() > time.Second {
			t.Errorf("deadline %s, want %s", got.Deadline, deadline)
		}
		if want := map[string]string{"password": "from added", "own": "x", "added": "x"}; !reflect.DeepEqual(got.Secrets, want) {
			t.Errorf("secrets %v, want %v", got.Secrets, want)
		}
		if got.Key == "" || got.Attempt != 1 || got.Event["eventType"] != "test" || got.Event["type"] != "test" || got.Event["data"] != nil {
			t.Errorf("%+v", got)
		}
		var without map[string]any
		if _, err := a.do(t.Context(), &without, `{"do":"context"}`); err != nil || without["deadline"] != nil {
			t.Errorf("%v, %v", without["deadline"], err)
		}
	})
	run("state persists", func(t *testing.T, a *asked) {
		first := a.state()
		if second := a.state(); first.Calls != 1 || second.Calls != 2 || second.Pid != first.Pid {
			t.Errorf("%+v, then %+v", first, second)
		}
	})
	run("logs", func(t *testing.T, a *asked) {
		for i := range 3 {
			out, errs := fmt.Sprintf("out %d\n", i), fmt.Sprintf("first %d\nlast", i)
			res, err := a.do(t.Context(), nil, fmt.Sprintf(`{"do":"print","out":%q,"err":%q}`, out, errs))
			want := out
			if w.Cannot["stdout"] != "" {
				want = ""
			}
			if err != nil || string(res.Logs.Stdout) != want || string(res.Logs.Stderr) != errs || res.Logs.Truncated || string(res.Output) != "null" {
				t.Errorf("%q, %q, output %s, %v", res.Logs.Stdout, res.Logs.Stderr, res.Output, err)
			}
			if res, err := a.do(t.Context(), nil, `{"do":"echo"}`); err != nil || len(res.Logs.Stdout)+len(res.Logs.Stderr) > 0 {
				t.Errorf("a silent call wrote %q and %q: %v", res.Logs.Stdout, res.Logs.Stderr, err)
			}
		}
	})
	run("flood", func(t *testing.T, a *asked) {
		was := a.state()
		res, err := a.do(t.Context(), nil, fmt.Sprintf(`{"do":"flood","bytes":%d}`, 100<<20))
		if err != nil || len(res.Logs.Stdout) != triggers.MaxLogs || !res.Logs.Truncated || strings.TrimSpace(string(res.Logs.Stderr)) != "end" {
			t.Errorf("%d bytes, cut %v, %q: %v", len(res.Logs.Stdout), res.Logs.Truncated, res.Logs.Stderr, err)
		}
		if now := a.state(); now.Pid != was.Pid {
			t.Error("the process was replaced")
		}
	})
	run("big", func(t *testing.T, a *asked) {
		var got string
		if _, err := a.do(t.Context(), &got, fmt.Sprintf(`{"do":"big","bytes":%d}`, triggers.MaxOutput-2)); err != nil || len(got) != triggers.MaxOutput-2 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		was := a.state()
		for _, n := range []int{triggers.MaxOutput, 64 << 20} {
			if e := a.fails(fmt.Sprintf(`{"do":"big","bytes":%d}`, n)); e.Class != triggers.FunctionError && e.Class != triggers.SystemError {
				t.Error(e)
			}
		}
		if now := a.state(); now.Pid != was.Pid && w.Cannot["long"] == "" && w.Cannot["stdout"] == "" {
			t.Error("the process was replaced")
		}
	})
	run("huge input", func(t *testing.T, a *asked) {
		var got int
		value := strings.Repeat("x", HugeSize)
		if _, err := a.do(t.Context(), &got, `{"do":"length","value":"`+value+`"}`); err != nil || got != len(value) {
			t.Errorf("%d, %v", got, err)
		}
	})
	run("failures", func(t *testing.T, a *asked) {
		was := a.state()
		for do, class := range map[string]triggers.Class{"input": triggers.InputError, "function": triggers.FunctionError} {
			e := a.fails(`{"do":"` + do + `"}`)
			if e.Class != class || e.Message != "no" || len(e.Stacktrace) == 0 || triggers.Permanent(e) != (class == triggers.InputError) {
				t.Errorf("%s: %v %q", do, e, e.Stacktrace)
			}
		}
		if now := a.state(); now.Pid != was.Pid {
			t.Error("the process was replaced")
		}
	})
	run("emit", func(t *testing.T, a *asked) {
		_, err := a.call(t.Context(), nil, "failed", `{"do":"emit","fail":true}`)
		if err == nil || len(host.Events()) > 0 {
			t.Errorf("%v; events of a failed call: %v", err, host.Events())
		}
		for range 2 { // the same key again stores nothing again
			if _, err := a.call(t.Context(), nil, "emits", `{"do":"emit"}`); err != nil {
				t.Fatal(err)
			}
		}
		evs := host.Events()
		if len(evs) != 2 {
			t.Fatalf("%d events", len(evs))
		}
		if ev := evs[0]; ev.ID != "emits/0" || ev.Type != "a" || ev.Subject != "s" || ev.Cause != "emits" || ev.Hops != 1 || string(ev.Data) != `{"n":1}` || ev.DataContentType != "application/json" {
			t.Errorf("%+v %s", ev, ev.Data)
		}
		if ev := evs[1]; ev.ID != "emits/1" || ev.Type != "b" || string(ev.Data) != "text" || ev.DataContentType != "text/plain" {
			t.Errorf("%+v %s", ev, ev.Data)
		}
		if _, err := a.do(t.Context(), nil, `{"do":"echo"}`); err != nil || len(host.Events()) != 2 {
			t.Error("events of another call were stored again")
		}
	})
	run("timeout", func(t *testing.T, a *asked) {
		was := a.state()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := a.do(ctx, nil, `{"do":"sleep"}`)
		if e, ok := errors.AsType[*triggers.Error](err); !ok || e.Class != triggers.FunctionError || e.Message != "Function execution exceeded the timeout" || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if !gone(was.Pid) {
			t.Error("the process still runs")
		}
		if now := a.state(); now.Pid == was.Pid || now.Calls != 1 {
			t.Errorf("%+v, it was %+v", now, was)
		}
	})
	run("cancelled", func(t *testing.T, a *asked) {
		a.state()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := a.do(ctx, nil, `{"do":"sleep"}`); !errors.Is(err, context.Canceled) || triggers.Permanent(err) {
			t.Error(err)
		}
		a.state()
	})
	run("exit", hurts(`{"do":"exit"}`, "exited with code 3 during the call"))
	// stopped kills a process that was stopped before its call was sent.
	stopped := func(payload string, more func(pid int)) func(*testing.T, *asked) {
		return func(t *testing.T, a *asked) {
			was := a.state()
			_ = syscall.Kill(was.Pid, syscall.SIGSTOP)
			eventually(t, "the process is not stopped", func() bool { return stands(was.Pid) })
			done := make(chan error, 1)
			go func() {
				_, err := a.do(t.Context(), nil, payload)
				done <- err
			}()
			more(was.Pid)
			_ = syscall.Kill(was.Pid, syscall.SIGKILL)
			if err := <-done; err != nil && (triggers.Permanent(err) || triggers.ClassOf(err) != triggers.SystemError) {
				t.Errorf("%v, want a SystemError", err)
			} else if err != nil && len(payload) < 1<<20 {
				t.Errorf("%v, although another worker could take the call", err)
			}
			if now := a.state(); now.Pid == was.Pid {
				t.Errorf("%+v takes the next call, it was %+v", now, was)
			}
		}
	}
	run(BeforeReading, stopped(`{"do":"echo"}`, func(int) {}))
	run(WhileReading, stopped(`{"do":"length","value":"`+strings.Repeat("x", HugeSize)+`"}`, func(pid int) {
		before := readBytes(pid)
		_ = syscall.Kill(pid, syscall.SIGCONT)
		eventually(t, "the process does not read", func() bool { return readBytes(pid) > before+1<<10 })
	}))
	run(AfterReading, hurts(`{"do":"kill"}`, "killed by SIGKILL during the call"))
	run(WhileWriting, hurts(`{"do":"half"}`, "killed by SIGKILL during the call"))
	run(AfterWriting, func(t *testing.T, a *asked) {
		was := a.state()
		var got string
		if _, err := a.do(t.Context(), &got, `{"do":"answer"}`); err != nil || got != "whole" {
			t.Errorf("%q, %v", got, err)
		}
		if now := a.state(); now.Pid == was.Pid {
			t.Error("the next call has a process that has ended")
		}
	})
	run(BetweenCalls, func(t *testing.T, a *asked) {
		for i := range 10 {
			was := a.state()
			_ = syscall.Kill(was.Pid, syscall.SIGKILL)
			if i%2 == 0 {
				eventually(t, "the process still runs", func() bool { return gone(was.Pid) })
			} else if _, err := a.do(t.Context(), nil, `{"do":"echo"}`); err != nil && (triggers.Permanent(err) || triggers.ClassOf(err) != triggers.SystemError) {
				t.Errorf("%v, want a SystemError: it may have read the call while it died", err)
			}
			if now := a.state(); now.Pid == was.Pid {
				t.Error("the next call has a process that was killed")
			}
		}
	})
	run("garbage", hurts(`{"do":"garbage"}`, "no answer"))
	run("close", hurts(`{"do":"close"}`, ""))
	run("hang", func(t *testing.T, a *asked) {
		was := a.state()
		var pid int
		res, err := a.do(t.Context(), &pid, `{"do":"hang"}`)
		if err != nil || pid == 0 {
			t.Fatal(err)
		}
		if s := string(res.Logs.Stdout); strings.Contains(s, "late") {
			t.Errorf("the call has waited: %q", s)
		}
		now := a.state()
		if now.Pid == was.Pid {
			t.Error("the next call has the process of one that left something running")
		}
		eventually(t, "what the call left behind still runs", func() bool { return gone(pid) })
	})
	run("fork", func(t *testing.T, a *asked) {
		for range 3 {
			var got any
			if _, err := a.do(t.Context(), &got, `{"do":"fork"}`); err != nil || got != "parent" {
				t.Errorf("%v, %v", got, err)
			}
			a.state()
		}
	})
	run("apart", func(t *testing.T, a *asked) {
		w := w
		w.Env.Concurrency = 4
		f, err := w.Factory.Make(Config(t, w.Factory, w.Config), w.Env)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		var pids []int
		for i := range 8 {
			wg.Go(func() {
				b := &asked{t: t, f: f, v: a.v}
				for j := range 20 {
					own := fmt.Sprintf("%d/%d", i, j)
					res, err := b.call(t.Context(), nil, own, fmt.Sprintf(`{"do":"print","out":"","err":%q}`, own))
					if err != nil || string(res.Logs.Stderr) != own {
						t.Errorf("%q, want %q: %v", res.Logs.Stderr, own, err)
					}
					var s struct{ Pid int }
					if _, err := b.call(t.Context(), &s, own, `{"do":"state"}`); err != nil {
						t.Error(err)
					}
					mu.Lock()
					pids = append(pids, s.Pid)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		slices.Sort(pids)
		if pids = slices.Compact(pids); len(pids) > 4 {
			t.Errorf("%d processes", len(pids))
		}
		if err := f.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
		for _, pid := range pids {
			if !gone(pid) {
				t.Error("a process outlives its function")
			}
		}
	})
}
