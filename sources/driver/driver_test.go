package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

// run runs a source in the background; wait returns what Run returned.
func run(t *testing.T, s sources.Source, h sources.Host) (cancel func(), wait func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- s.Run(ctx, h) }()
	wait = func() error {
		t.Helper()
		select {
		case err := <-result:
			result <- err
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("Run did not return within 20 s")
			return nil
		}
	}
	t.Cleanup(func() {
		cancel()
		_ = wait()
	})
	return cancel, wait
}

// dumped is what the program "dump" was started with.
type dumped struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
}

func dump(t *testing.T, c *Config, env sources.Env, h *host) dumped {
	t.Helper()
	out := filepath.Join(t.TempDir(), "dump")
	if c.Set == nil {
		c.Set = specs.Settings{}
	}
	c.Set["out"] = out
	s, err := Factory().Make(c, env)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s, h)
	var d dumped
	if err := json.Unmarshal([]byte(content(t, out)), &d); err != nil {
		t.Fatal(err)
	}
	d.Args = slices.DeleteFunc(d.Args, func(a string) bool { return a == "--out="+out })
	return d
}

func (d dumped) env(name string) (value string) {
	for _, e := range d.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

// TestArguments: settings become flags; those of the type are below (rows 3, 4
// and 45).
func TestArguments(t *testing.T) {
	typ := probe("dump", func(t *specs.DriverType) { t.Set = specs.Settings{"seconds": "60", "from-type": "x"} })
	d := dump(t, config(specs.Settings{"seconds": "5", "debug": "", "k": "a=b", "text": "two words"}), environment(typ, nil), newHost(t))
	want := []string{"--debug", "--from-type=x", "--k=a=b", "--seconds=5", "--text=two words"}
	if !slices.Equal(d.Args, want) {
		t.Errorf("arguments %q, want %q", d.Args, want)
	}
	for _, name := range []string{"AUTH_TOKEN", "DISPATCH_LISTENER_HTTP_PORT", "ENGINE_EVENTS_URL", "K_SINK", "PATH"} {
		if d.env(name) == "" {
			t.Errorf("no %s in the environment", name)
		}
	}
	if d.env("PORT") != "" || d.env("ENGINE_SOURCE") != "test" || d.env("ENGINE_EVENT") != "event" || d.env("DISPATCH_DRIVER_TYPE") != "probe" {
		t.Errorf("environment %q", d.Env)
	}
}

// TestEnvironment: only what is named is inherited.
func TestEnvironment(t *testing.T) {
	t.Setenv("DRIVER_TEST_A", "1")
	t.Setenv("DRIVER_TEST_B", "2")
	d := dump(t, config(nil, func(c *Config) { c.InheritEnv = []string{"DRIVER_TEST_A"} }), environment(probe("dump"), nil), newHost(t))
	if d.env("DRIVER_TEST_A") != "1" || d.env("DRIVER_TEST_B") != "" {
		t.Errorf("environment %q", d.Env)
	}
}

// TestSecrets: all keys of all Secrets are variables, and flags where the type
// says so; what the engine injects wins (rows 5, 6 and 7).
func TestSecrets(t *testing.T) {
	secrets := map[string]*specs.Secret{
		"one": {Env: map[string]string{"pass-word": "X", "shared": "X", "auth-token": "X"}, Files: map[string]string{"file": "X"}},
		"two": {Env: map[string]string{"shared": "X", endpointSetting: "X"}},
	}
	for _, asFlags := range []bool{false, true} {
		h := newHost(t)
		for k, v := range map[string]string{
			"one/pass-word": "p1", "one/shared": "from-one", "one/auth-token": "mine", "one/file": "f",
			"two/shared": "from-two", "two/" + endpointSetting: "evil:1",
		} {
			h.SetSecret(k, v)
		}
		typ := probe("dump", func(t *specs.DriverType) { t.SecretFlags = asFlags })
		c := config(specs.Settings{endpointSetting: "evil:2", "shared": "plain"}, func(c *Config) { c.Secrets = []string{"one", "two"} })
		d := dump(t, c, environment(typ, secrets), h)
		if d.env("PASS_WORD") != "p1" || d.env("SHARED") != "from-two" || d.env("FILE") != "f" {
			t.Errorf("environment %q", d.Env)
		}
		if tok := d.env("AUTH_TOKEN"); tok == "mine" || len(tok) < 32 {
			t.Errorf("AUTH_TOKEN is %q", tok)
		}
		address := strings.TrimSuffix(strings.TrimPrefix(d.env("ENGINE_EVENTS_URL"), "http://"), "/")
		want := []string{"--" + endpointSetting + "=" + address, "--shared=plain"}
		if asFlags {
			want = []string{"--auth-token=mine", "--" + endpointSetting + "=" + address, "--file=f", "--pass-word=p1", "--shared=from-two"}
		}
		if !slices.Equal(d.Args, want) {
			t.Errorf("arguments %q, want %q", d.Args, want)
		}
	}
	// A Secret or value that is not there is an error with its name.
	for _, with := range []map[string]*specs.Secret{nil, secrets} {
		s, err := Factory().Make(config(nil, func(c *Config) { c.Secrets = []string{"one"} }), environment(probe("wait"), with))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), newHost(t)); err == nil || !strings.Contains(err.Error(), "one") {
			t.Errorf("Run = %v without the secret", err)
		}
	}
}

// TestEveryExitIsAnError: the supervisor starts it again, whatever the code
// (row 8); the error says how it ended and the last it said, without the token.
func TestEveryExitIsAnError(t *testing.T) {
	out := filepath.Join(t.TempDir(), "starts")
	for code, want := range map[string]string{
		"0": "driver probe exited with code 0: the disk is gone, token ***",
		"3": "driver probe exited with code 3: the disk is gone, token ***",
	} {
		h := newHost(t)
		s := source(t, config(specs.Settings{"out": out, "code": code}), probe("exit"))
		for range 2 {
			if err := s.Run(t.Context(), h); err == nil || err.Error() != want {
				t.Errorf("Run = %v, want %s", err, want)
			}
		}
		if !strings.Contains(h.logged(), `stderr="first line"`) {
			t.Errorf("stderr is not in the log: %s", h.logged())
		}
	}
	if p := pids(t, out); len(p) != 4 {
		t.Errorf("%d starts, want 4", len(p))
	}
	if err := source(t, config(nil), probe("crash")).Run(t.Context(), newHost(t)); err == nil || !strings.Contains(err.Error(), "killed by SIGKILL") {
		t.Errorf("Run = %v, want the signal", err)
	}
}

// TestNoProgram: the reason says what to do (row 9).
func TestNoProgram(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("text"), 0o700); err != nil {
		t.Fatal(err)
	}
	for want, typ := range map[string]*specs.DriverType{
		"not found in the engine's PATH": {Command: []string{"no-such-program"}},
		"program not found":              {Path: "bin/none"},
		"chmod +x":                       {Path: file},
		"not a program of this machine":  {Path: program},
	} {
		for range 2 {
			if err := source(t, config(nil), typ).Run(t.Context(), newHost(t)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Run = %v, want %s", err, want)
			}
		}
	}
	if _, err := newDriver(config(nil), environment(nil, nil), nil); err == nil || !strings.Contains(err.Error(), "no DriverType probe") {
		t.Errorf("newDriver = %v", err)
	}
}

// TestPaths: a program is relative to the file of its type, and runs there.
func TestPaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho \"pwd is $(pwd) $1\" >&2\n"
	if err := os.WriteFile(filepath.Join(dir, "run.sh"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, typ := range []*specs.DriverType{{Path: "run.sh"}, {Command: []string{"./run.sh"}}} {
		env := environment(typ, nil)
		resource := env.Resource
		env.Resource = func(ref specs.Ref) *specs.Resource {
			r := resource(ref)
			r.Pos.File = filepath.Join(dir, "types.yaml")
			return r
		}
		s, err := Factory().Make(config(specs.Settings{"a": "b"}), env)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), newHost(t)); err == nil || !strings.Contains(err.Error(), "pwd is "+dir+" --a=b") {
			t.Errorf("Run = %v", err)
		}
	}
}

// TestReady: a driver that says nothing is ready after a moment, one that
// makes contact at once.
func TestReady(t *testing.T) {
	h := newHost(t)
	begin := time.Now()
	stop := h.Start(&readyVia{source(t, config(nil), probe("wait")), h})
	if time.Since(begin) < moment {
		t.Error("ready before a moment passed")
	}
	if !strings.HasPrefix(h.detail(), "process ") {
		t.Errorf("detail %q", h.detail())
	}
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// readyVia runs a source with another host.
type readyVia struct {
	sources.Source
	h sources.Host
}

func (r *readyVia) Run(ctx context.Context, _ sources.Host) error { return r.Source.Run(ctx, r.h) }

// TestStop: SIGTERM, the last events are stored, SIGKILL for those that do not
// listen, also when they are frozen (row 10).
func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name, program string
		freeze        bool
		events        []string
	}{
		{"graceful", "graceful", false, []string{"last", "last-post"}},
		{"frozen", "graceful", true, []string{"last", "last-post"}},
		{"stubborn", "stubborn", false, nil},
		{"stubborn and frozen", "stubborn", true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			out := filepath.Join(t.TempDir(), "pid")
			grace := specs.Duration(5 * time.Second)
			if tt.program == "stubborn" {
				grace = specs.Duration(50 * time.Millisecond)
			}
			cancel, wait := run(t, source(t, config(specs.Settings{"out": out}, func(c *Config) { c.Grace = grace }), probe(tt.program)), h)
			pid := pids(t, out)[0]
			if tt.freeze {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			cancel()
			if err := wait(); err != nil {
				t.Errorf("Run = %v", err)
			}
			if alive(pid) {
				t.Error("it is still alive")
			}
			if got := slices.Sorted(slices.Values(h.ids())); !slices.Equal(got, tt.events) {
				t.Errorf("stored %v, want %v", got, tt.events)
			}
		})
	}
}

// TestForks: what a driver forked ends with it, whether it ended by itself or
// had to, and whether the child left the process group.
func TestForks(t *testing.T) {
	for _, then := range []string{"end", "wait"} {
		h := newHost(t)
		out := filepath.Join(t.TempDir(), "pids")
		cancel, wait := run(t, source(t, config(specs.Settings{"out": out, "then": then}), probe("fork")), h)
		children := pids(t, out)
		if len(children) != 2 {
			t.Fatalf("children %v", children)
		}
		if then == "wait" {
			cancel()
		}
		_ = wait()
		for i, pid := range children {
			if i == 1 && !exists("/proc/self/environ") {
				continue // found on Linux only
			}
			eventually(t, fmt.Sprintf("then %s: child %d is gone", then, i), func() bool { return !alive(pid) })
		}
	}
}

// TestOneAtATime: the next run of a driver begins when the last has ended,
// also when the supervisor does not wait for it (row 10).
func TestOneAtATime(t *testing.T) {
	f := Factory()
	dir := t.TempDir()
	var sources [2]sources.Source
	for i := range sources {
		var err error
		c := config(specs.Settings{"out": filepath.Join(dir, strconv.Itoa(i))}, func(c *Config) { c.Grace = specs.Duration(100 * time.Millisecond) })
		if sources[i], err = f.Make(c, environment(probe("stubborn"), nil)); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t)
	cancel, _ := run(t, sources[0], h)
	first := pids(t, filepath.Join(dir, "0"))[0]
	run(t, sources[1], h)
	cancel()
	content(t, filepath.Join(dir, "1"))
	if alive(first) {
		t.Error("both run")
	}
}

// TestEngineKilled: a driver ends with an engine that was killed.
func TestEngineKilled(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("only Linux ends a process with its parent")
	}
	out := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command(os.Args[0], "driver-program", "engine", "--out="+out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := pids(t, out)[0]
	if !alive(pid) {
		t.Fatal("the driver does not run")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the driver has ended", func() bool { return !alive(pid) })
}

// cat runs a driver that writes content to its stdout.
func cat(t *testing.T, h *host, content, then string, with ...func(*Config)) (cancel func(), wait func() error) {
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, source(t, config(specs.Settings{"in": in, "then": then}, with...), probe("cat")), h)
}

// TestStdout: each line is an event, garbage is refused and visible, and the
// next line works (row 14).
func TestStdout(t *testing.T) {
	const mib = 1 << 20
	big := func(n int) string {
		return `{"specversion":"1.0","id":"big","type":"t","source":"s","data":"` + strings.Repeat("x", n) + `"}` + "\n"
	}
	for _, tt := range []struct {
		name, out string
		with      func(*Config)
		ids       []string
		refused   string
	}{
		{name: "lines", out: line("a") + line("b") + line("c"), ids: []string{"a", "b", "c"}},
		{name: "every version", out: strings.ReplaceAll(event01, "\n", " ") + "\r\n" + event02 + "\n" + event03 + "\n" + event10 + "\n", ids: []string{"a", "b", "c", "d"}},
		{name: "array", out: "[" + event02 + "," + event03 + "]\n", ids: []string{"b", "c"}},
		{name: "empty lines", out: "\n\n" + line("a") + "\n \n" + line("b"), ids: []string{"a", "b"}},
		{name: "no end of line", out: line("a") + strings.TrimSpace(line("b")), ids: []string{"a", "b"}},
		{name: "half a line", out: line("a") + line("b")[:30], ids: []string{"a"}, refused: "messages refused: 1"},
		{name: "garbage", out: "Starting up…\n" + line("a") + "\x00\xff\n{}\n" + line("b"), ids: []string{"a", "b"}, refused: "messages refused: 3"},
		{name: "invalid in an array", out: "[" + event02 + ",{}]\n" + line("a"), ids: []string{"a"}, refused: "messages refused: 1"},
		{name: "10 MB", out: line("a") + big(10*mib) + line("b"), ids: []string{"a", "big", "b"}, with: func(c *Config) { c.MaxMessage = 11 * mib }},
		{name: "too long", out: line("a") + big(10*mib) + line("b"), ids: []string{"a", "b"}, refused: "longer than 1048576 bytes; raise maxMessage"},
		{name: "too long at the end", out: line("a") + strings.TrimSpace(big(mib)), ids: []string{"a"}, refused: "messages refused: 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			with := tt.with
			if with == nil {
				with = func(*Config) {}
			}
			if strings.HasSuffix(tt.out, "\n") {
				h := newHost(t)
				cat(t, h, tt.out, "wait", with)
				eventually(t, "the events are stored", func() bool { return slices.Equal(h.ids(), tt.ids) })
				eventually(t, "the status tells of "+tt.refused, func() bool {
					return h.detail() != "" && strings.Contains(h.detail(), tt.refused)
				})
				if tt.refused == "" && strings.Contains(h.detail(), "refused") {
					t.Errorf("status %s", h.detail())
				}
			}
			// The same, and the program ends behind it.
			h := newHost(t)
			_, wait := cat(t, h, tt.out, "end", with)
			if err := wait(); err == nil || !strings.Contains(err.Error(), "exited with code 0") {
				t.Errorf("Run = %v", err)
			}
			if !slices.Equal(h.ids(), tt.ids) {
				t.Errorf("stored %v, want %v", h.ids(), tt.ids)
			}
			if tt.refused != "" && !strings.Contains(h.logged(), "message of the driver refused") {
				t.Errorf("nothing in the log: %s", h.logged())
			}
		})
	}
}

// TestBusAway: the output is not read on while the bus takes nothing, and
// nothing of it is lost or changes its place.
func TestBusAway(t *testing.T) {
	h := newHost(t)
	open := make(chan struct{})
	h.Fault = func(int, *bus.Event) sourcetest.Fault {
		select {
		case <-open:
			return sourcetest.Fault{}
		default:
			return sourcetest.Fault{Err: bus.ErrUnavailable}
		}
	}
	var out strings.Builder
	var want []string
	for i := range 3000 {
		out.WriteString(line(strconv.Itoa(i)))
		want = append(want, strconv.Itoa(i))
	}
	_, wait := cat(t, h, out.String(), "end")
	eventually(t, "the status tells", func() bool { return strings.Contains(h.detail(), "it waits: event not stored") })
	if n := len(h.Events()); n != 0 {
		t.Errorf("%d events stored", n)
	}
	close(open)
	if err := wait(); err == nil || !strings.Contains(err.Error(), "exited") {
		t.Errorf("Run = %v", err)
	}
	if got := h.ids(); !slices.Equal(got, want) {
		t.Errorf("%d events stored, or in another order; want %d", len(got), len(want))
	}
	if !strings.Contains(h.logged(), "stored again") {
		t.Error("the end of it is not in the log")
	}
}

// TestBusAwayAtStop: Run ends although the bus does not come back.
func TestBusAwayAtStop(t *testing.T) {
	h := newHost(t)
	h.Fault = func(int, *bus.Event) sourcetest.Fault { return sourcetest.Fault{Err: bus.ErrUnavailable} }
	cancel, wait := run(t, source(t, config(specs.Settings{"prefix": "x"}), probe("stream")), h)
	eventually(t, "the status tells", func() bool { return strings.Contains(h.detail(), "it waits") })
	cancel()
	if err := wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if !strings.Contains(h.logged(), "were not stored before it had to end") {
		t.Error("what is lost is not in the log")
	}
}

// TestFrozenAndKilled: a driver that stops in the middle goes on where it was,
// and one that is killed leaves all it wrote, and a clean start.
func TestFrozenAndKilled(t *testing.T) {
	h := newHost(t)
	s := source(t, config(specs.Settings{"prefix": "", "slow": "1"}), probe("stream"))
	_, wait := run(t, s, h)
	eventually(t, "events come", func() bool { return len(h.Events()) > 20 })
	pid, err := strconv.Atoi(strings.Split(h.ids()[0], "-")[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var n int
	eventually(t, "it stands still", func() bool {
		m := len(h.Events())
		same := m == n
		n = m
		time.Sleep(30 * time.Millisecond)
		return same
	})
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on", func() bool { return len(h.Events()) > n+20 })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err == nil || !strings.Contains(err.Error(), "killed by SIGKILL") {
		t.Errorf("Run = %v", err)
	}
	for i, id := range h.ids() {
		if id != fmt.Sprintf("%d-%d", pid, i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
	before := len(h.Events())
	run(t, s, h)
	eventually(t, "the next run brings events", func() bool { return len(h.Events()) > before+20 })
}

// TestKilledWhilePosting: what a driver was told to be stored is, whenever it
// is frozen or killed. It posts as Dispatch's own client does.
func TestKilledWhilePosting(t *testing.T) {
	h := newHost(t)
	out := filepath.Join(t.TempDir(), "acknowledged")
	s := source(t, config(specs.Settings{"out": out, endpointSetting: ""}), probe("dispatch"))
	for range 3 {
		before := len(h.Events())
		_, wait := run(t, s, h)
		eventually(t, "events come", func() bool { return len(h.Events()) > before+10 })
		ids := h.ids()
		pid, err := strconv.Atoi(strings.Split(ids[len(ids)-1], "-")[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT, syscall.SIGKILL} {
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err := wait(); err == nil || !strings.Contains(err.Error(), "killed by SIGKILL") {
			t.Fatalf("Run = %v", err)
		}
	}
	stored := map[string]bool{}
	for _, id := range h.ids() {
		if stored[id] {
			t.Errorf("%s is stored twice", id)
		}
		stored[id] = true
	}
	acknowledged := strings.Fields(content(t, out))
	for _, id := range acknowledged {
		if !stored[id] {
			t.Errorf("%s was acknowledged and is not stored", id)
		}
	}
	if len(acknowledged) < 30 {
		t.Errorf("only %d acknowledged", len(acknowledged))
	}
}

// TestStdoutAtRateLimit: beyond the rate limit, stdout is read more slowly.
func TestStdoutAtRateLimit(t *testing.T) {
	h := newHost(t)
	l := &limited{host: h}
	st := newStatus(h, "t0ken")
	defer st.end()
	var out strings.Builder
	var want []string
	for i := range 100 {
		out.WriteString(line(strconv.Itoa(i)))
		want = append(want, strconv.Itoa(i))
	}
	readEvents(strings.NewReader(out.String()), 1<<20, newQueue(t.Context(), l, st), st)
	if got := h.ids(); !slices.Equal(got, want) {
		t.Errorf("stored %v", got)
	}
	if strings.Contains(h.logged(), "not stored") {
		t.Errorf("a rate limit is no trouble: %s", h.logged())
	}
}

// TestLogIsBounded: a driver that talks much does not fill the log.
func TestLogIsBounded(t *testing.T) {
	h := newHost(t)
	out := filepath.Join(t.TempDir(), "out")
	cancel, wait := run(t, source(t, config(specs.Settings{"out": out}), probe("chatter")), h)
	content(t, out)
	cancel()
	if err := wait(); err != nil {
		t.Error(err)
	}
	log := h.logged()
	if n := strings.Count(log, "stderr="); n < logBurst || n > 2*logBurst {
		t.Errorf("%d lines logged", n)
	}
	if !strings.Contains(log, "left out") {
		t.Error("what was left out is not in the log")
	}
}

// TestExposed: requests reach the driver below its path (row 12).
func TestExposed(t *testing.T) {
	h := newHost(t)
	h.SetSecret("hook/key", "let-me-in")
	expose := func(t *specs.DriverType) { t.Expose = true }
	cancel, wait := run(t, source(t, config(specs.Settings{"after": "300ms"}), probe("serve", expose)), h)
	front := httptest.NewServer(h)
	defer front.Close()
	get := func(path string, headers ...string) (int, string, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+path, strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b), res.Header.Get("Retry-After")
	}
	defer http.DefaultClient.CloseIdleConnections()
	eventually(t, "the route is there", func() bool { return len(h.Routes()) == 1 })
	if status, body, retry := get("/drivers/test/event/"); status != http.StatusServiceUnavailable || retry != "1" {
		t.Errorf("before it listens: %d %s, Retry-After %q", status, body, retry)
	}
	eventually(t, "it listens", func() bool { s, _, _ := get("/drivers/test/event/"); return s == http.StatusOK })
	status, body, _ := get("/drivers/test/event/a%2Fb/c?x=1", "Authorization", "Basic abc")
	if want := `POST /a%2Fb/c?x=1 auth="Basic abc" prefix=/drivers/test/event body=hello`; status != http.StatusOK || body != want {
		t.Errorf("answer %d %s, want %s", status, body, want)
	}
	eventually(t, "the status tells the path", func() bool { return strings.Contains(h.detail(), "requests to /drivers/test/event/") })
	cancel()
	if err := wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if len(h.Routes()) != 0 {
		t.Error("the route is still there")
	}

	shared := func(c *Config) { c.SharedSecret = &specs.SecretRef{Name: "hook", Key: "key"} }
	run(t, source(t, config(nil, shared), probe("serve", expose)), h)
	eventually(t, "it listens", func() bool { s, _, _ := get("/drivers/test/event/?secret=let-me-in"); return s == http.StatusOK })
	for path, want := range map[string]int{"/drivers/test/event/x": 401, "/drivers/test/event/x?secret=no": 401} {
		if status, body, _ := get(path); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	status, body, _ = get("/drivers/test/event/x?b=2&secret=let-me-in")
	if want := `POST /x?b=2 auth="" prefix=/drivers/test/event body=hello`; status != http.StatusOK || body != want {
		t.Errorf("answer %d %s, want %s", status, body, want)
	}
	if status, _, _ = get("/drivers/test/event/x", "Authorization", "Bearer let-me-in"); status != http.StatusOK {
		t.Errorf("answer %d with the secret as a token", status)
	}
}

// TestRouteTaken: another route at its place is the reason that it does not run.
func TestRouteTaken(t *testing.T) {
	h := newHost(t)
	remove, err := h.Handle(sources.Route{Path: "/drivers/test/event/{other...}"}, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	s := source(t, config(nil), probe("serve", func(t *specs.DriverType) { t.Expose = true }))
	if err := s.Run(t.Context(), h); err == nil || !strings.Contains(err.Error(), "conflicts") {
		t.Errorf("Run = %v", err)
	}
}

// TestLegacyPortTaken: the status says who has the address, in both meanings.
func TestLegacyPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	legacy := func(c *Config) { c.LegacyPort = true }
	s := source(t, config(nil, legacy), probe("wait"))
	if s.legacy != "127.0.0.1:8080" {
		t.Errorf("legacyPort is %s", s.legacy)
	}
	s.legacy = l.Addr().String()
	if err := s.Run(t.Context(), newHost(t)); err == nil || !strings.Contains(err.Error(), s.legacy+", is in use by another driver") {
		t.Errorf("Run = %v", err)
	}
	_ = l.Close()
	h := newHost(t)
	cancel, wait := run(t, s, h)
	eventually(t, "events are taken", func() bool {
		res, err := http.Post("http://"+s.legacy+"/v1/event/ingest", "application/json", strings.NewReader(event01))
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusCreated
	})
	http.DefaultClient.CloseIdleConnections()
	if h.ids()[0] != "a" {
		t.Errorf("stored %v", h.ids())
	}
	cancel()
	if err := wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if _, err := net.DialTimeout("tcp", s.legacy, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("somebody listens still: %v", err)
	}
}

// TestProgress: the last event is the position.
func TestProgress(t *testing.T) {
	h := newHost(t)
	if w := send(newSidecar(t, h), http.MethodPost, "/", event02); w.Code != http.StatusCreated {
		t.Fatal(w.Code)
	}
	if p := h.Progress(); p.Position != "b" || p.Lag < 24*time.Hour {
		t.Errorf("progress %+v", p)
	}
}

// TestSlowStart: a driver that takes its time counts as running, is left alone
// and is heard when it speaks.
func TestSlowStart(t *testing.T) {
	h := newHost(t)
	typ := &specs.DriverType{Command: []string{"sh", "-c", `sleep 1; echo '` + strings.TrimSpace(line("late")) + `'; exec sleep 1000`}}
	cancel, wait := run(t, source(t, config(nil), typ), h)
	eventually(t, "it is ready", func() bool { return h.detail() != "" })
	if n := len(h.Events()); n != 0 {
		t.Errorf("%d events before it wrote one", n)
	}
	eventually(t, "its event is stored", func() bool { return slices.Equal(h.ids(), []string{"late"}) })
	cancel()
	if err := wait(); err != nil {
		t.Errorf("Run = %v", err)
	}
}
