package engine_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	sourcesall "github.com/sensor-engine/engine/sources/all"
	"github.com/sensor-engine/engine/specs"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(asWorker); mode != "" {
		lines(mode)
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

func catalog() engine.Catalog {
	return engine.Catalog{Sources: sourcesall.All(), Functions: triggersall.All()}
}

// running is an engine on a real embedded bus, with real files and sockets.
type running struct {
	t    testing.TB
	dir  string // specs
	data string
	bus  *jetstream.Bus
	e    *engine.Engine
	stop func()
}

func start(t testing.TB, dir, data string) *running {
	t.Helper()
	r := launch(t, catalog(), dir, data)
	r.until("the engine to be ready", func() bool {
		ok, _ := r.e.Ready(t.Context())
		return ok
	})
	return r
}

// launch starts an engine and does not wait for it.
func launch(t testing.TB, c engine.Catalog, dir, data string, edit ...func(*engine.Options)) *running {
	t.Helper()
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: data, MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, dir: dir, data: data, bus: b}
	o := engine.Options{
		Bus: b, Catalog: c, Paths: []string{dir}, Listen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)), LookupEnv: os.LookupEnv, RemovalGrace: 0,
	}
	for _, f := range edit {
		f(&o)
	}
	r.e = engine.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.e.Run(ctx) }()
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

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if os.Getenv("ENGINE_TEST_LOG") != "" {
		fmt.Fprintf(os.Stderr, "%s", b)
	}
	return len(b), nil
}

func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			_, why := r.e.Ready(r.t.Context())
			r.t.Fatalf("waited too long for %s; not ready: %v", what, why)
		}
		<-time.After(3 * time.Millisecond)
	}
}

func (r *running) post(path, body string) (int, string) {
	r.t.Helper()
	resp, err := http.Post("http://"+r.e.Addr()+path, "application/json", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// written makes a directory of specs: names of files, each followed by its text.
func written(t testing.TB, files ...string) (dir string) {
	t.Helper()
	r := &running{t: t, dir: t.TempDir()}
	for i := 0; i < len(files); i += 2 {
		r.write(files[i], files[i+1])
	}
	return r.dir
}

// emit stores an event as one that is sent by hand.
func (r *running) emit(typ, id, data string) bus.Ack {
	r.t.Helper()
	ack, err := r.e.Emit(r.t.Context(), &bus.Event{Type: typ, ID: id, Source: "/tests", DataContentType: "application/json", Data: []byte(data)})
	if err != nil {
		r.t.Fatal(err)
	}
	return ack
}

func (r *running) write(name, text string) {
	r.t.Helper()
	tmp := filepath.Join(r.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// sink is an HTTP function that remembers what it was sent.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	keys   []string
	fail   bool
}

func newSink(t *testing.T) *sink {
	s := &sink{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fail {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		s.bodies = append(s.bodies, string(b))
		s.keys = append(s.keys, r.Header.Get("Idempotency-Key"))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *sink) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.bodies...)
}

const head = "apiVersion: engine/v1\n"

func shop(events ...string) string {
	var b strings.Builder
	b.WriteString(head + "kind: EventSource\nmetadata: {name: shop}\nspec:\n  webhook:\n")
	for _, e := range events {
		fmt.Fprintf(&b, "    %s: {path: /%s}\n", e, e)
	}
	return b.String()
}

func TestWebhookToFunction(t *testing.T) {
	s := newSink(t)
	r := start(t, written(t, "a.yaml", shop("orders")+"---\n"+head+`kind: Sensor
metadata: {name: big}
spec:
  dependencies:
    - {name: order, source: shop, event: orders, when: data.total > 100}
  triggers:
    - name: tell
      http: {url: `+s.URL+`}
`), t.TempDir())
	if code, body := r.post("/orders", `{"total":120}`); code != 202 || !strings.Contains(body, `"id"`) {
		t.Fatalf("%d %s", code, body)
	}
	r.post("/orders", `{"total":20}`)
	r.post("/orders", `{"total":200}`)
	r.until("two calls", func() bool { return len(s.got()) == 2 })
	if got := s.got(); !slices.Contains(got, `{"total":120}`) || !slices.Contains(got, `{"total":200}`) {
		t.Fatalf("calls %v", got)
	}
	r.until("JOBS to empty", func() bool {
		info, err := r.bus.Jobs().Info(t.Context())
		return err == nil && info.Records == 0
	})
}

func TestTwoDependenciesAcrossARestart(t *testing.T) {
	s := newSink(t)
	data := t.TempDir()
	r := start(t, written(t, "a.yaml", shop("orders", "payments")+"---\n"+head+`kind: Sensor
metadata: {name: paid}
spec:
  dependencies:
    - {name: order, source: shop, event: orders}
    - {name: payment, source: shop, event: payments}
  correlate: data.id
  within: 10m
  triggers:
    - name: ship
      http: {url: `+s.URL+`}
      input: {order: "${ order.data }", amount: "${ payment.data.amount }"}
`), data)
	r.post("/orders", `{"id":1,"what":"tea"}`)
	r.post("/orders", `{"id":2,"what":"milk"}`)
	r.until("two keys to wait", func() bool {
		p, err := r.e.Pending(t.Context(), "paid", 10)
		return err == nil && len(p) == 2
	})
	r.stop()
	r = start(t, r.dir, data)
	if code, body := r.post("/payments", `{"id":2,"amount":7}`); code != 202 {
		t.Fatal(code, body)
	}
	r.until("the call", func() bool { return len(s.got()) == 1 })
	if got, want := s.got()[0], `{"amount":7,"order":{"id":2,"what":"milk"}}`; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

func TestReloadKeepsWhatDidNotChange(t *testing.T) {
	s := newSink(t)
	sensor := func(dep, path string) string {
		return head + `kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: a, source: shop, event: orders}, {name: b, source: shop, event: ` + dep + `}]
  triggers: [{name: t, http: {url: ` + s.URL + path + `}, input: "${ a.data.n }-${ b.data.n }"}]
`
	}
	r := start(t, written(t, "shop.yaml", shop("orders", "payments", "returns"), "sensor.yaml", sensor("payments", "/1")), t.TempDir())
	r.post("/orders", `{"n":1}`)
	r.until("the order to wait", func() bool {
		p, err := r.e.Pending(t.Context(), "s", 1)
		return err == nil && len(p) == 1
	})
	generation := func() int { return r.e.Status(t.Context()).Reload.Generation }
	g := generation()
	r.write("sensor.yaml", sensor("payments", "/2")) // same dependencies: state is kept
	r.until("the reload", func() bool { return generation() > g })
	r.write("sensor.yaml", "kind: [broken")
	r.until("the refusal", func() bool { return r.e.Decision().Diagnostics.HasErrors() })
	r.post("/payments", `{"n":2}`)
	r.until("the call", func() bool { return len(s.got()) == 1 })
	if got := s.got()[0]; got != `"1-2"` {
		t.Fatalf("got %s", got)
	}
	r.write("sensor.yaml", sensor("returns", "/3"))
	r.until("the repair", func() bool { return !r.e.Decision().Diagnostics.HasErrors() })
	if code, _ := r.post("/orders", `{"n":3}`); code != 202 {
		t.Fatal(code)
	}
	r.post("/returns", `{"n":4}`)
	r.until("the second call", func() bool { return len(s.got()) == 2 })
}

func TestEmitReachesASensorByType(t *testing.T) {
	s := newSink(t)
	r := start(t, written(t, "a.yaml", head+`kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: a, type: "com.example.*"}]
  triggers: [{name: t, http: {url: `+s.URL+`}}]
`), t.TempDir())
	if _, err := r.e.Emit(t.Context(), &bus.Event{Type: "com.example.made", Source: "/cli", Data: []byte(`{"x":1}`)}); err != nil {
		t.Fatal(err)
	}
	r.until("the call", func() bool { return len(s.got()) == 1 })
}

func TestMovedSpecsFindTheirFiles(t *testing.T) {
	s := newSink(t)
	root := t.TempDir()
	old := filepath.Join(root, "a")
	if err := os.MkdirAll(old, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "key.txt"), []byte("s3cret-value\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, dir: old}
	r.write("a.yaml", shop("orders")+"---\n"+head+"kind: Secret\nmetadata: {name: k}\nspec: {files: {key: key.txt}}\n---\n"+head+`kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: a, source: shop, event: orders}]
  triggers: [{name: t, retry: {attempts: 1}, http: {url: `+s.URL+`, headers: {X-Key: {secret: {name: k, key: key}}}}}]
`)
	r = start(t, root, t.TempDir())
	r.post("/orders", "{}")
	r.until("the call", func() bool { return len(s.got()) == 1 })
	if err := os.Rename(old, filepath.Join(root, "b")); err != nil {
		t.Fatal(err)
	}
	r.until("the move to be noticed", func() bool {
		return strings.Contains(r.e.Status(t.Context()).Resources[0].Place, filepath.Join(root, "b"))
	})
	r.post("/orders", "{}")
	r.until("the call after the move", func() bool { return len(s.got()) == 2 })
}

func TestLimitBeyondTheBusIsAWarning(t *testing.T) {
	r := start(t, written(t, "shop.yaml", shop("orders")), t.TempDir())
	r.write("shop.yaml", head+"kind: EventSource\nmetadata: {name: shop}\nspec: {webhook: {orders: {path: /orders, maxBody: 900MiB}}}\n")
	r.until("the warning", func() bool {
		return slices.ContainsFunc(r.e.Decision().Diagnostics, func(d specs.Diagnostic) bool { return d.Code == engine.CodeEventTooLarge })
	})
	if code, _ := r.post("/orders", "{}"); code != http.StatusAccepted {
		t.Fatalf("a small body is answered %d", code)
	}
	if code, _ := r.post("/orders", `"`+strings.Repeat("x", r.bus.MaxPayload())+`"`); code != http.StatusRequestEntityTooLarge {
		t.Fatalf("a body larger than the bus takes is answered %d", code)
	}
}

// scanned is a bus whose sensor state is read only when it may be.
type scanned struct {
	bus.Bus
	gate chan struct{}
}

func (b *scanned) State() bus.Store { return &scannedStore{b.Bus.State(), b.gate} }

type scannedStore struct {
	bus.Store
	gate chan struct{}
}

func (s *scannedStore) Scan(ctx context.Context, prefix string, fn func(bus.Entry) error) error {
	if prefix == "sensor." {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Store.Scan(ctx, prefix, fn)
}

// TestWebhooksDoNotWaitForTheFold: while it recovers, events are stored; they
// are evaluated then.
func TestWebhooksDoNotWaitForTheFold(t *testing.T) {
	dir := written(t, "specs.yaml", `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec: {webhook: {orders: {path: /orders}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: note}
spec:
  dependencies: [{name: order, source: shop, event: orders}]
  triggers: [{name: t, log: {}}]
`)
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: t.TempDir(), MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	r := &running{t: t, bus: b, e: engine.New(engine.Options{
		Bus: &scanned{b, gate}, Catalog: catalog(), Paths: []string{dir}, Listen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)), LookupEnv: os.LookupEnv,
	})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.e.Run(ctx) }()
	r.until("the listener", func() bool { return r.e.Addr() != "" })
	r.until("the webhook", func() bool {
		code, _ := r.post("/orders", `{"id": 1}`)
		return code == http.StatusAccepted
	})
	if ok, _ := r.e.Ready(t.Context()); ok {
		t.Error("the engine is ready before its fold is")
	}
	close(gate)
	r.until("the firing", func() bool {
		st := r.e.Status(t.Context())
		for _, rs := range st.Resources {
			if rs.Sensor != nil && rs.Sensor.Fired > 0 {
				return st.Ready
			}
		}
		return false
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := b.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
