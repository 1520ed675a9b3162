package generic

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/generic/eventing"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

// process is one of the example servers.
type process struct {
	t    *testing.T
	args []string
	env  []string
	addr string
	cmd  *exec.Cmd
	done chan struct{}
}

// start starts the server, again at the same address.
func (p *process) start() {
	p.t.Helper()
	addr := p.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	p.cmd = exec.Command(p.args[0], append(p.args[1:], "--listen", addr)...)
	p.cmd.Env = append(os.Environ(), p.env...)
	out, err := p.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done, listening := make(chan struct{}), make(chan string, 1)
	p.done = done
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, addr, ok := strings.Cut(lines.Text(), "listening on "); ok {
				listening <- addr
			} else {
				p.t.Log(lines.Text())
			}
		}
		_ = p.cmd.Wait()
	}()
	select {
	case p.addr = <-listening:
	case <-done:
		p.t.Fatal("the server did not start")
	case <-time.After(60 * time.Second):
		p.t.Fatal("the server does not listen after 60 s")
	}
}

// end ends the server with a signal.
func (p *process) end(s os.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.t.Errorf("the server did not end within 10 s of %v", s)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// launch starts an example server in a language.
func launch(t *testing.T, language, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, env: env}
	switch language {
	case "go":
		program := filepath.Join(t.TempDir(), "server")
		if _, err := command(t.Context(), "", nil, "go", "build", "-o", program, "../../examples/generic/go"); err != nil {
			t.Fatal(err)
		}
		p.args = []string{program}
	case "python":
		program, env := python(t)
		p.args, p.env = []string{program, filepath.Join(pythonExample, "server.py")}, append(p.env, env...)
	}
	p.args = append(append(p.args, "--dir", dir), args...)
	p.start()
	t.Cleanup(func() { p.end(os.Kill) })
	return p
}

// running is an engine with this source type, on an embedded bus.
type running struct {
	t    testing.TB
	e    *engine.Engine
	bus  *jetstream.Bus
	stop func()
}

func startEngine(t testing.TB, specs, data string) *running {
	t.Helper()
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: data, MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	e := engine.New(engine.Options{
		Bus: b, Catalog: engine.Catalog{Sources: sources.Registry{Factory()}}, Paths: []string{specs},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})), LookupEnv: os.LookupEnv,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	r := &running{t: t, e: e, bus: b}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// last is the sequence of the last event.
func (r *running) last() int {
	info, err := r.bus.Events().Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return int(info.Last)
}

// status is that of the only event.
func (r *running) status() engine.EventStatus {
	for _, res := range r.e.Status(r.t.Context()).Resources {
		if len(res.Events) > 0 {
			return res.Events[0]
		}
	}
	return engine.EventStatus{}
}

// lines checks that the log has the lines 1…n, each once, in order.
func (r *running) lines(n int) {
	r.t.Helper()
	reader, err := r.bus.Events().Read(r.t.Context(), 0, "")
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	for i := 1; i <= n; {
		recs, err := reader.Next(r.t.Context(), 100)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, rec := range recs {
			ev, err := bus.DecodeEvent(rec)
			if err != nil {
				r.t.Fatal(err)
			}
			if want := fmt.Sprintf(`{"n": %d}`, i); string(ev.Data) != want || ev.Type != "line" || ev.Subject != "orders.ndjson" {
				r.t.Fatalf("event %d is %s (type %s, subject %s), want %s", rec.Seq, ev.Data, ev.Type, ev.Subject, want)
			}
			i++
		}
	}
	if last := r.last(); last != n {
		r.t.Errorf("%d events are stored, want %d", last, n)
	}
}

// feed appends lines to the file that the servers stream.
type feed struct {
	t    *testing.T
	file *os.File
	n    int
}

func newFeed(t *testing.T, dir string) *feed {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "orders.ndjson"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &feed{t: t, file: f}
}

func (f *feed) add(n int) {
	f.t.Helper()
	var b strings.Builder
	for range n {
		f.n++
		fmt.Fprintf(&b, "{\"n\": %d}\n", f.n)
	}
	if _, err := f.file.WriteString(b.String()); err != nil {
		f.t.Fatal(err)
	}
}

// spec writes an EventSource with one event.
func spec(t testing.TB, addr, more string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	text := fmt.Sprintf(`
apiVersion: engine/v1
kind: EventSource
metadata: {name: files}
spec:
  generic:
    orders:
      url: %s
      config: {file: orders.ndjson}
%s`, addr, more)
	if err := os.WriteFile(filepath.Join(dir, "spec.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (r *running) until(what string, n int) {
	r.t.Helper()
	eventually(r.t, what, func() bool { return r.last() >= n })
}

// TestExamples: the servers of the examples, each a process, and the engine are
// killed and restarted, mid-stream too: each line is stored once, in order.
func TestExamples(t *testing.T) {
	t.Parallel()
	for _, language := range []string{"go", "python"} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			files, data := t.TempDir(), t.TempDir()
			lines := newFeed(t, files)
			lines.add(100)
			server := launch(t, language, files, nil)
			specs := spec(t, server.addr, "      insecure: true\n      reconnect: 10ms\n")
			e := startEngine(t, specs, data)
			e.until("the first lines", 100)

			server.end(os.Kill)
			lines.add(100)
			server.start()
			e.until("the lines of the time without a server", 200)

			e.stop()
			lines.add(100)
			e = startEngine(t, specs, data)
			e.until("the lines of the time without an engine", 300)
			lines.add(1)
			e.until("one more", 301)

			const flood = 6000
			var feeding sync.WaitGroup
			feeding.Go(func() {
				pace := time.NewTicker(2 * time.Millisecond)
				defer pace.Stop()
				for range flood / 20 {
					lines.add(20)
					<-pace.C
				}
			})
			for i := range 5 {
				n := e.last()
				eventually(t, "some more", func() bool { return e.last() > n+rand.IntN(800) || e.last() == 301+flood })
				if i%2 == 0 {
					server.end(os.Kill)
					server.start()
				} else {
					e.stop()
					e = startEngine(t, specs, data)
				}
			}
			feeding.Wait()
			e.until("all", 301+flood)
			e.lines(301 + flood)
			server.end(syscall.SIGTERM)
			eventually(t, "the status tells that the server is away", func() bool {
				s := e.status()
				return s.State == engine.UnitRetrying && strings.Contains(s.Detail, "nothing listens there")
			})
			if s := e.status(); s.Position == "" {
				t.Errorf("the status %+v has no position", s)
			}
		})
	}
}

// TestExamplesSecured: the same servers with TLS and a token.
func TestExamplesSecured(t *testing.T) {
	t.Parallel()
	for _, language := range []string{"go", "python"} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			files, certs := t.TempDir(), t.TempDir()
			newAuthority(t, certs, "ca").leaf("server", nil)
			lines := newFeed(t, files)
			lines.add(3)
			server := launch(t, language, files, []string{"TOKEN=s3cret"}, "--cert", filepath.Join(certs, "server.pem"), "--key", filepath.Join(certs, "server-key.pem"))
			if err := os.WriteFile(filepath.Join(certs, "token"), []byte("s3cret\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf(`      tls: {ca: %[1]s/ca.pem}
      auth:
        bearer: {name: keys, key: token}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: keys}
spec:
  files: {token: %[1]s/token}
`, certs)
			e := startEngine(t, spec(t, server.addr, text), t.TempDir())
			e.until("the lines", 3)
			e.lines(3)
			e.stop()
			if err := os.WriteFile(filepath.Join(certs, "token"), []byte("guessed"), 0o600); err != nil {
				t.Fatal(err)
			}
			e = startEngine(t, spec(t, server.addr, text), t.TempDir())
			eventually(t, "the status tells that the token is wrong", func() bool {
				s := e.status()
				return s.State == engine.UnitRetrying && strings.Contains(s.Detail, "it refused the token, key token of Secret keys (the token is missing or wrong)")
			})
		})
	}
}

// TestFrozen: a server that hangs is found out, and taken up again when it goes on.
func TestFrozen(t *testing.T) {
	t.Parallel()
	files := t.TempDir()
	lines := newFeed(t, files)
	lines.add(10)
	server := launch(t, "go", files, nil)
	e := startEngine(t, spec(t, server.addr, "      insecure: true\n      keepalive: {time: 10s, timeout: 200ms}\n"), t.TempDir())
	e.until("the first lines", 10)
	if err := server.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	lines.add(10)
	eventually(t, "the status tells", func() bool {
		return strings.Contains(e.status().Detail, "it gave no sign of life in keepalive.timeout")
	})
	if err := server.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	e.until("the lines of the time without a server", 20)
	e.lines(20)
}

// TestKilled: the engine itself is killed, again and again, while it reads.
func TestKilled(t *testing.T) {
	t.Parallel()
	files, data := t.TempDir(), t.TempDir()
	lines := newFeed(t, files)
	server := launch(t, "go", files, nil)
	specs := spec(t, server.addr, "      insecure: true\n      reconnect: 10ms\n")
	program := filepath.Join(t.TempDir(), "engine")
	if _, err := command(t.Context(), "", nil, "go", "build", "-o", program, "../../cmd/engine"); err != nil {
		t.Fatal(err)
	}
	const rounds = 8
	for range rounds {
		cmd := exec.CommandContext(t.Context(), program, "run", specs, "--data", data, "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Nobody may read what the engine stores while it runs: time decides.
		for end := time.After(time.Second + rand.N(time.Second)); ; {
			select {
			case <-time.After(time.Millisecond):
				lines.add(10)
				continue
			case <-end:
			}
			break
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	e := startEngine(t, specs, filepath.Join(data, "bus"))
	n := e.last()
	if n == 0 {
		t.Error("the engine stored nothing before it was killed")
	}
	t.Logf("%d of %d lines were stored before the last start", n, lines.n)
	e.until("all", lines.n)
	e.lines(lines.n)
}

// TestExampleSpec: the spec of the examples is valid as it is.
func TestExampleSpec(t *testing.T) {
	c := engine.Catalog{Sources: sources.Registry{Factory()}, Functions: triggersall.All()}
	l, err := c.Loader().Load(t.Context(), "../../examples/generic/generic.yaml")
	if err != nil || len(l.Resources) != 2 {
		t.Fatalf("%d resources, %v", len(l.Resources), err)
	}
	for _, d := range slices.Concat(l.Diagnostics, engine.NewCompiler(c).Check(l.Set(), l.Invalid...)) {
		t.Error(d)
	}
}

// TestReload: a change of one event's settings restarts its stream alone.
func TestReload(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	calls := map[string][]string{}
	s := newServer(t, "", func(req *eventing.EventSource, s stream) error {
		mu.Lock()
		calls[req.GetName()] = append(calls[req.GetName()], string(req.GetConfig()))
		mu.Unlock()
		<-s.Context().Done()
		return nil
	})
	called := func(name string) string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(calls[name], " ")
	}
	other := fmt.Sprintf("      insecure: true\n    payments: {url: %s, insecure: true, config: one}\n", s.addr)
	dir := spec(t, s.addr, other)
	startEngine(t, dir, t.TempDir())
	eventually(t, "both are called", func() bool { return called("orders") != "" && called("payments") == "one" })
	path := filepath.Join(dir, "spec.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "config: one", "config: two", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the changed one is called again", func() bool { return called("payments") == "one two" })
	if got := called("orders"); got != `{"file":"orders.ndjson"}` {
		t.Errorf("the calls for the other one: %s", got)
	}
}
