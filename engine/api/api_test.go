package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/sensors"
	sourcetypes "github.com/sensor-engine/engine/sources/all"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	functionkinds "github.com/sensor-engine/engine/triggers/all"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

const shop = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec: {webhook: {orders: {path: /orders}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: large}
spec:
  dependencies: [{name: order, type: order, when: data.total > 100}]
  triggers: [{name: say, function: note}]
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: pair}
spec:
  dependencies: [{name: a, type: a}, {name: b, type: b}]
  correlate: data.id
  triggers: [{name: say, function: note}]
---
apiVersion: engine/v1
kind: Function
metadata: {name: note}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Function
metadata: {name: echo}
spec:
  exec: {command: [sh, -c, 'echo "with $TOKEN" >&2; cat']}
  input: {schema: {not: {type: boolean}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: bad}
spec:
  dependencies: [{name: it, type: boom}]
  triggers:
    - name: fail
      exec: {command: [sh, -c, "echo $TOKEN is refused >&2; exit 3"], env: {TOKEN: {secret: {name: keys, key: token}}}}
      retry: {attempts: 1}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: keys}
spec: {env: {token: TEST_TOKEN}}
`

// canary is the secret value that must not be seen.
const canary = "canary-5f1c-secret"

// running is a running engine and its API.
type running struct {
	t     *testing.T
	e     *engine.Engine
	h     http.Handler
	specs string
	done  chan struct{}
}

// start runs an engine on an embedded bus until the test ends.
func start(t *testing.T, o Options) *running {
	t.Helper()
	ctx := context.Background() // the engine ends in Cleanup, after t.Context
	cat := engine.Catalog{Sources: sourcetypes.All(), Functions: functionkinds.All()}
	b, err := jetstream.Open(ctx, jetstream.Options{Dir: t.TempDir(), MaxPayload: 2 << 20, MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(shop), 0o600); err != nil {
		t.Fatal(err)
	}
	e := engine.New(engine.Options{
		Bus: b, Catalog: cat, Paths: []string{dir}, Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Version: "v1",
		LookupEnv: func(name string) (string, bool) { return canary, name == "TEST_TOKEN" },
	})
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(run) }()
	r := &running{t: t, e: e, specs: dir, done: make(chan struct{})}
	if o.Addr == "" {
		o.Addr = "127.0.0.1:8180"
	}
	o.Types, o.Logger, o.Done = cat.Types(), slog.New(slog.DiscardHandler), r.done
	r.h = New(e, o)
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("engine: %v", err)
		}
		if err := b.Close(ctx); err != nil {
			t.Errorf("bus: %v", err)
		}
	})
	eventually(t, func() error {
		if ok, why := e.Ready(ctx); !ok {
			return fmt.Errorf("not ready: %v", why)
		}
		return nil
	})
	return r
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// do sends a request; header are names and values in turn.
func (r *running) do(method, path, body string, header ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	req := httptest.NewRequestWithContext(r.t.Context(), method, "http://127.0.0.1:8180"+path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, req)
	return w
}

// get decodes the answer to a GET, which must be 200.
func (r *running) get(path string, v any) {
	r.t.Helper()
	w := r.do("GET", path, "")
	if w.Code != http.StatusOK {
		r.t.Fatalf("GET %s: %d %s", path, w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
		r.t.Fatalf("GET %s: %v: %s", path, err, w.Body)
	}
}

// emit stores an event in structured mode.
func (r *running) emit(typ, id, data string) {
	r.t.Helper()
	body := fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/test","type":%q,"data":%s}`, id, typ, data)
	if w := r.do("POST", "/api/v1/events", body, "Content-Type", "application/cloudevents+json"); w.Code != http.StatusAccepted {
		r.t.Fatalf("emit: %d %s", w.Code, w.Body)
	}
}

// TestRoutesAreDocumented compares the table of routes with openapi.yaml.
func TestRoutesAreDocumented(t *testing.T) {
	var have, documented []string
	for _, r := range (&server{}).table() {
		have = append(have, r.method+" "+r.path)
	}
	path := ""
	_, doc, _ := strings.Cut(string(Document), "\npaths:\n")
	doc, _, _ = strings.Cut(doc, "\ncomponents:\n")
	for line := range strings.Lines(doc) {
		if m := regexp.MustCompile(`^  (/\S*):\n`).FindStringSubmatch(line); m != nil {
			path = m[1]
		}
		if m := regexp.MustCompile(`^    (get|post|put|delete|patch):\n`).FindStringSubmatch(line); m != nil {
			documented = append(documented, strings.ToUpper(m[1])+" "+path)
		}
	}
	slices.Sort(have)
	slices.Sort(documented)
	if !slices.Equal(have, documented) {
		t.Errorf("routes\n%s\nopenapi.yaml\n%s", strings.Join(have, "\n"), strings.Join(documented, "\n"))
	}
}

// TestFieldsAreDocumented looks for every field of an answer in its schema.
func TestFieldsAreDocumented(t *testing.T) {
	_, schemas, _ := strings.Cut(string(Document), "\n  schemas:\n")
	section := func(name string) string {
		_, rest, ok := strings.Cut(schemas, "\n    "+name+":\n")
		if !ok {
			t.Errorf("there is no schema %s", name)
		}
		if end := regexp.MustCompile(`(?m)^    \w`).FindStringIndex(rest); end != nil {
			rest = rest[:end[0]]
		}
		return rest
	}
	for _, c := range []struct {
		v      any
		schema string
	}{
		{readiness{}, "Readiness"},
		{engine.Status{}, "Status"},
		{engine.BusStatus{}, "Status"},
		{engine.FoldStatus{}, "Status"},
		{engine.ReloadStatus{}, "Status"},
		{engine.Alarm{}, "Status"},
		{engine.ResourceStatus{}, "ResourceStatus"},
		{engine.EventStatus{}, "ResourceStatus"},
		{engine.SensorStatus{}, "ResourceStatus"},
		{engine.TriggerStatus{}, "ResourceStatus"},
		{engine.EndpointStatus{}, "ResourceStatus"},
		{Resource{}, "Resource"},
		{Dependency{}, "Resource"},
		{Pending{}, "Pending"},
		{Paused{}, "Paused"},
		{engine.BehindStatus{}, "Behind"},
		{fold.Pause{}, "Behind"},
		{specs.Diagnostic{}, "Diagnostic"},
		{specs.Pos{}, "Pos"},
		{Emitted{}, "Emitted"},
		{Letter{}, "Letter"},
		{Many{}, "Many"},
		{Exec{}, "Exec"},
		{Executed{}, "Executed"},
		{Answer{}, "Executed"},
		{AnswerContext{}, "Executed"},
		{AnswerLogs{}, "Executed"},
		{jobs.ErrorObject{}, "Executed"},
		{engine.Explained{}, "Explained"},
		{replay.Explanation{}, "Explained"},
		{replay.Event{}, "EventPlace"},
		{replay.SensorExplanation{}, "SensorExplanation"},
		{sensors.Answer{}, "SensorExplanation"},
		{sensors.Selector{}, "SensorExplanation"},
		{replay.Step{}, "SensorExplanation"},
		{sensors.Inspection{}, "SensorExplanation"},
		{sensors.Decision{}, "SensorExplanation"},
		{replay.Later{}, "SensorExplanation"},
		{expression.Trace{}, "Trace"},
		{sensors.State{}, "SensorState"},
		{sensors.TriggerState{}, "SensorState"},
		{sensors.WaitingOn{}, "SensorState"},
		{sensors.AbsenceState{}, "SensorState"},
		{sensors.WorkflowState{}, "SensorState"},
		{sensors.StepState{}, "SensorState"},
		{replay.Verdict{}, "Verdict"},
		{sensors.Contribution{}, "Contribution"},
		{replay.Firing{}, "Firing"},
		{engine.ReplayQuery{}, "Replay"},
		{engine.SpecFile{}, "Replay"},
		{engine.ReplayPatch{}, "Replay"},
		{engine.Replayed{}, "Replayed"},
		{engine.ReplayedSensor{}, "Replayed"},
		{replay.Summary{}, "Replayed"},
		{replay.Played{}, "Played"},
		{Refused{}, "Refused"},
		{Reload{}, "Reload"},
		{reload.Change{}, "Reload"},
		{reload.Status{}, "Reload"},
	} {
		text := section(c.schema)
		for f := range reflect.TypeOf(c.v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || name == "-" {
				continue
			}
			if name == "" || !regexp.MustCompile(`[\s{]`+name+`: `).MatchString(text+" ") && !strings.Contains(text, " "+name+":\n") {
				t.Errorf("%T: the schema %s has no %q", c.v, c.schema, name)
			}
		}
	}
}

func TestWhoMayAsk(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      Options
		host   string
		origin string
		token  string
		want   int // of the check and the token: 200, 401, 403
	}{
		{name: "loopback address", host: "127.0.0.1:8180", want: 200},
		{name: "loopback name", host: "LocalHost:8180", want: 200},
		{name: "loopback IPv6", host: "[::1]:8180", want: 200},
		{name: "forwarded port", host: "localhost:9000", want: 200},
		{name: "no port", host: "localhost", want: 200},
		{name: "trailing dot", host: "localhost.:8180", want: 200},
		{name: "rebound name", host: "evil.example:8180", want: 403},
		{name: "name that begins like ours", host: "localhost.evil.example:8180", want: 403},
		{name: "other address", host: "192.0.2.1:8180", want: 403},
		{name: "empty host", host: "", want: 403},
		{name: "configured name", o: Options{Hosts: []string{"Engine.Internal"}}, host: "engine.internal:8180", want: 200},
		{name: "same origin", host: "127.0.0.1:8180", origin: "http://127.0.0.1:8180", want: 200},
		{name: "other origin", host: "127.0.0.1:8180", origin: "http://evil.example", want: 403},
		{name: "other port is another origin", host: "127.0.0.1:8180", origin: "http://127.0.0.1:3000", want: 403},
		{name: "null origin", host: "127.0.0.1:8180", origin: "null", want: 403},
		{name: "token missing", o: Options{Token: "sesame"}, host: "127.0.0.1:8180", want: 401},
		{name: "token wrong", o: Options{Token: "sesame"}, host: "127.0.0.1:8180", token: "Bearer sesam", want: 401},
		{name: "token of another scheme", o: Options{Token: "sesame"}, host: "127.0.0.1:8180", token: "Basic sesame", want: 401},
		{name: "token", o: Options{Token: "sesame"}, host: "127.0.0.1:8180", token: "Bearer sesame", want: 200},
		{name: "scheme in lower case", o: Options{Token: "sesame"}, host: "127.0.0.1:8180", token: "bearer sesame", want: 200},
		{name: "any name with the token", o: Options{Token: "sesame"}, host: "engine.monitoring:8180", token: "Bearer sesame", want: 200},
		{name: "bound everywhere, by address", o: Options{Addr: "0.0.0.0:8180", Token: "sesame"}, host: "192.0.2.1:8180", want: 401},
		{name: "bound everywhere, by name", o: Options{Addr: "[::]:8180", Token: "sesame"}, host: "evil.example", want: 403},
		{name: "bound to an address", o: Options{Addr: "192.0.2.1:8180", Token: "sesame"}, host: "192.0.2.1:8180", want: 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.o.Addr == "" {
				c.o.Addr = "127.0.0.1:8180"
			}
			s := &server{o: c.o, guard: newGuard(c.o), log: slog.New(slog.DiscardHandler)}
			r := httptest.NewRequestWithContext(t.Context(), "GET", "http://x/api/v1/openapi.yaml", nil)
			r.Host = c.host
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if c.token != "" {
				r.Header.Set("Authorization", c.token)
			}
			w := httptest.NewRecorder()
			s.wrap(s.routes()).ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("status %d, want %d: %s", w.Code, c.want, w.Body)
			}
			if c.want != 200 && !json.Valid(w.Body.Bytes()) {
				t.Errorf("no JSON: %s", w.Body)
			}
		})
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "192.0.2.1:1": false, "example.com:1": false, "nonsense": false,
	} {
		if got := Loopback(addr); got != want {
			t.Errorf("Loopback(%q) = %v", addr, got)
		}
	}
}

func TestEngine(t *testing.T) {
	r := start(t, Options{})
	t.Run("health", r.testHealth)
	t.Run("errors", r.testErrors)
	t.Run("emit", r.testEmit)
	t.Run("events", r.testEvents)
	t.Run("runs", r.testRuns)
	t.Run("letters", r.testLetters)
	t.Run("resources", r.testResources)
	t.Run("follow", r.testFollow)
	t.Run("metrics", r.testMetrics)
	t.Run("exec", r.testExec)
	t.Run("pause", r.testPause)
	t.Run("reload", r.testReload)
}

func (r *running) testPause(t *testing.T) {
	post := func(path string) (p Paused) {
		t.Helper()
		w := r.do("POST", "/api/v1/sensors/large/"+path, "")
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusOK || p.Sensor != "large" {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		return p
	}
	p := post("pause?reason=closed+" + canary)
	if b := p.Behind; b == nil || b.Paused == nil || b.Paused.By != fold.ByPerson || b.Paused.Reason != "closed ***" || b.Events != 0 || b.Position == 0 {
		t.Fatalf("paused: %+v", p.Behind)
	}
	r.emit("order", "p1", `{"total":1000}`)
	var res Resource
	eventually(t, func() error {
		if r.get("/api/v1/resources/sensor/large", &res); res.Behind == nil || res.Behind.Events == 0 || res.State != "ok" {
			return fmt.Errorf("behind %+v", res.Behind)
		}
		return nil
	})
	if metrics := r.do("GET", "/metrics", "").Body.String(); !strings.Contains(metrics, `engine_sensor_paused{by="person",sensor="large"} 1`) {
		t.Error("no metric says that it is paused")
	}
	fired := res.Sensor.Fired
	post("resume")
	eventually(t, func() error {
		var now Resource
		if r.get("/api/v1/resources/sensor/large", &now); now.Behind != nil || now.Sensor.Fired != fired+1 {
			return fmt.Errorf("behind %+v, fired %d", now.Behind, now.Sensor.Fired)
		}
		return nil
	})
	post("pause")
	r.emit("order", "p2", `{"total":1000}`)
	eventually(t, func() error {
		res = Resource{}
		if r.get("/api/v1/resources/sensor/large", &res); res.Behind == nil || res.Behind.Events == 0 {
			return fmt.Errorf("behind %+v", res.Behind)
		}
		return nil
	})
	if p := post("resume?skip=true"); p.Skipped == 0 {
		t.Errorf("skipped: %+v", p)
	}
}

func (r *running) testExec(t *testing.T) {
	post := func(body string, header ...string) *httptest.ResponseRecorder {
		return r.do("POST", "/api/v1/runs", body, header...)
	}
	for _, c := range []struct {
		name, body string
		want       int
		text       string // in the answer
	}{
		{"output as it came", `{"function":"echo","input":{"n":12345678901234567890, "s":"<&>"}}`, 200, `"payload":{"n":12345678901234567890,"s":"<&>"}}`},
		{"no input", `{"function":"echo"}`, 200, `"payload":null`},
		{"logs are masked, output is the caller's", `{"function":"echo","input":"` + canary + `","secrets":["keys"]}`, 200, `"stderr":["with ***"]}},"payload":"` + canary + `"}`},
		{"failed", `{"function":"echo","input":true}`, 200, `"status":"failed"`},
		{"error object", `{"function":"echo","input":true}`, 200, `"error":{"type":"InputError","message":"Input invalid against schema: `},
		{"unknown function", `{"function":"nobody"}`, 404, "there is no function nobody"},
		{"no function", `{"input":1}`, 400, "function is missing"},
		{"no body", ``, 400, "the body is empty"},
		{"no JSON", `{`, 400, "the body is not what is asked for"},
		{"two", `{"function":"echo"} {}`, 400, "something follows"},
		{"unknown field", `{"function":"echo","inputs":1}`, 400, "inputs"},
		{"timeout", `{"function":"echo","timeout":"soon"}`, 400, "timeout must be"},
		{"long timeout", `{"function":"echo","timeout":"25h"}`, 400, "timeout must be"},
		{"secrets nobody uses", `{"function":"note","secrets":["keys"]}`, 400, "functions of kind log"},
		{"too large", `{"function":"echo","input":"` + strings.Repeat("x", 3<<20) + `"}`, 413, "larger than"},
	} {
		if w := post(c.body); w.Code != c.want || !strings.Contains(w.Body.String(), c.text) {
			t.Errorf("%s: %d %s, want %d with %s", c.name, w.Code, w.Body, c.want, c.text)
		}
	}

	w := post(`{"function":"echo","input":{"a":"b"},"async":true}`, "Idempotency-Key", "once")
	var sub struct{ ID, Status string }
	if err := json.Unmarshal(w.Body.Bytes(), &sub); err != nil || w.Code != http.StatusAccepted || sub.Status != "queued" || w.Header().Get("Location") != "/api/v1/runs/"+sub.ID {
		t.Fatalf("async: %d %s %v", w.Code, w.Body, w.Header())
	}
	if again := post(`{"function":"echo","input":{"a":"b"},"async":true}`, "Idempotency-Key", "once"); again.Body.String() != w.Body.String() {
		t.Errorf("the same again: %s, first %s", again.Body, w.Body)
	}
	eventually(t, func() error {
		var run struct {
			ID, Key, Status, Sensor string
			Input, Output           json.RawMessage
		}
		r.get(w.Header().Get("Location"), &run)
		if run.Status != "succeeded" {
			return fmt.Errorf("run %+v", run)
		}
		if run.Key != sub.ID || run.ID != sub.ID+"-1" || run.Sensor != "_exec" || string(run.Input) != `{"a":"b"}` || string(run.Output) != `{"a":"b"}` {
			t.Errorf("run %+v", run)
		}
		return nil
	})
	eventually(t, func() error {
		var all struct{ Runs []struct{ Status string } }
		r.get("/api/v1/runs?key="+sub.ID, &all)
		if len(all.Runs) != 2 {
			return fmt.Errorf("runs %+v", all)
		}
		return nil
	})
	if w := r.do("GET", "/api/v1/runs?function=echo", ""); strings.Contains(w.Body.String(), canary) {
		t.Error("the history has a secret")
	}
}

func (r *running) testHealth(t *testing.T) {
	for _, path := range []string{"/healthz", "/readyz"} {
		if w := r.do("GET", path, ""); w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	w := httptest.NewRecorder()
	Starting().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "starting") {
		t.Errorf("starting: %d %s", w.Code, w.Body)
	}
	var st engine.Status
	r.get("/api/v1/status", &st)
	if !st.Ready || st.Version != "v1" || len(st.Resources) != 7 {
		t.Errorf("status %+v", st)
	}
	if w := r.do("GET", "/api/v1/schema", ""); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
		t.Errorf("schema: %d", w.Code)
	}
	if w := r.do("GET", "/api/v1/openapi.yaml", ""); !bytes.Equal(w.Body.Bytes(), Document) {
		t.Error("openapi.yaml is another one")
	}
}

func (r *running) testErrors(t *testing.T) {
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 404},
		{"GET", "/api/v1/nothing", 404},
		{"PUT", "/api/v1/events", 405},
		{"GET", "/api/v1/reload", 405},
		{"GET", "/api/v1/resources?kind=Banana", 400},
		{"GET", "/api/v1/resources/Sensor/nobody", 404},
		{"GET", "/api/v1/resources/Banana/x", 400},
		{"GET", "/api/v1/sensors/nobody/pending", 404},
		{"POST", "/api/v1/sensors/nobody/pause", 404},
		{"POST", "/api/v1/sensors/nobody/resume", 404},
		{"POST", "/api/v1/sensors/pair/resume", 409},
		{"POST", "/api/v1/sensors/pair/resume?skip=perhaps", 400},
		{"POST", "/api/v1/sensors/pair/pause?reason=" + strings.Repeat("x", 513), 400},
		{"GET", "/api/v1/events?limit=-1", 400},
		{"GET", "/api/v1/events?limit=many", 400},
		{"GET", "/api/v1/events?since=yesterday", 400},
		{"GET", "/api/v1/events?follow=perhaps", 400},
		{"GET", "/api/v1/runs?status=lost", 400},
		{"GET", "/api/v1/runs/nobody", 404},
		{"GET", "/api/v1/dlq?from=x", 400},
		{"GET", "/api/v1/dlq/1000000", 404},
		{"GET", "/api/v1/dlq/x", 400},
		{"DELETE", "/api/v1/dlq", 400},
		{"POST", "/api/v1/dlq/redrive", 400},
		{"POST", "/api/v1/dlq/1000000/redrive", 404},
		{"DELETE", "/api/v1/dlq/1000000", 404},
	} {
		w := r.do(c.method, c.path, "")
		var body struct{ Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error == "" || w.Code != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, w.Code, w.Body, c.want)
		}
		if c.want == 405 && w.Header().Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
	}
	// A page of another site cannot make the browser do something.
	if w := r.do("POST", "/api/v1/reload", "", "Sec-Fetch-Site", "cross-site"); w.Code != http.StatusForbidden {
		t.Errorf("cross-site reload: %d", w.Code)
	}
}

func (r *running) testEmit(t *testing.T) {
	post := func(body string, header ...string) *httptest.ResponseRecorder {
		return r.do("POST", "/api/v1/events", body, header...)
	}
	binary := []string{"Ce-Specversion", "1.0", "Ce-Id", "b1", "Ce-Source", "/test", "Ce-Type", "kind.binary", "Ce-Subject", "n%C3%A4me %25", "Ce-Tenant", "acme", "Content-Type", "text/plain"}
	structured := `{"specversion":"1.0","id":"s1","source":"/test","type":"kind.structured","datacontenttype":"application/json","data":{"n":9007199254740993},"engineseq":"77"}`
	batch := `[{"specversion":"1.0","id":"k1","source":"/test","type":"kind.batch","data":1},{"specversion":"1.0","id":"k2","source":"/test","type":"kind.batch","data_base64":"AP8="}]`
	for _, c := range []struct {
		name, body string
		header     []string
		want       int
	}{
		{"binary", "hello", binary, 202},
		{"structured", structured, []string{"Content-Type", "application/cloudevents+json"}, 202},
		{"batch", batch, []string{"Content-Type", "application/cloudevents-batch+json"}, 202},
		{"nothing", "", nil, 400},
		{"plain JSON", `{"a":1}`, []string{"Content-Type", "application/json"}, 400},
		{"broken JSON", `{"specversion":`, []string{"Content-Type", "application/cloudevents+json"}, 400},
		{"no id", `{"specversion":"1.0","source":"/test","type":"t"}`, []string{"Content-Type", "application/cloudevents+json"}, 400},
		{"wrong data", `{"a":`, []string{"Ce-Specversion", "1.0", "Ce-Id", "x", "Ce-Source", "/test", "Ce-Type", "t", "Content-Type", "application/json"}, 400},
		{"too large", strings.Repeat("x", 2<<20+1), binary, 413},
		{"one of a batch is wrong", `[{"specversion":"1.0","id":"k3","source":"/test","type":"kind.batch"},{"specversion":"1.0","id":"k4"}]`, []string{"Content-Type", "application/cloudevents-batch+json"}, 400},
	} {
		if w := post(c.body, c.header...); w.Code != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, w.Code, w.Body, c.want)
		}
	}
	w := post(structured, "Content-Type", "application/cloudevents+json")
	if !strings.Contains(w.Body.String(), `"duplicate":true`) {
		t.Errorf("repeated: %s", w.Body)
	}

	var all []map[string]any
	r.get("/api/v1/events?type=kind.*", &all)
	var ids []string
	for _, ev := range all {
		ids = append(ids, ev["id"].(string))
	}
	if !slices.Equal(ids, []string{"b1", "s1", "k1", "k2"}) {
		t.Fatalf("stored %v: nothing of a wrong batch, and nothing twice", ids)
	}
	b1, s1, k2 := all[0], all[1], all[3]
	if b1["subject"] != "näme %" || b1["tenant"] != "acme" || b1["data"] != "hello" || b1["enginesource"] != "_emit" || b1["engineevent"] != "kind.binary" {
		t.Errorf("binary: %v", b1)
	}
	if s1["engineseq"] == "77" || k2["data_base64"] != "AP8=" {
		t.Errorf("structured: %v, batch: %v", s1, k2)
	}
	if w := r.do("GET", "/api/v1/events?type=kind.structured", ""); !strings.Contains(w.Body.String(), "9007199254740993") {
		t.Errorf("a large number changed: %s", w.Body)
	}
}

func (r *running) testEvents(t *testing.T) {
	before := time.Now()
	for i := range 300 {
		r.emit([]string{"odd", "even"}[i%2], fmt.Sprintf("e%03d", i), fmt.Sprint(i))
	}
	ids := func(query string) string {
		var all []map[string]any
		r.get("/api/v1/events?"+query, &all)
		var out []string
		for _, ev := range all {
			out = append(out, ev["id"].(string))
		}
		return strings.Join(out, " ")
	}
	for query, want := range map[string]string{
		"limit=3":                       "e297 e298 e299",
		"limit=3&type=odd":              "e294 e296 e298",
		"limit=2&source=_emit&type=ev*": "e297 e299",
		"limit=2&event=odd":             "e296 e298",
		"limit=0":                       "",
		"source=shop":                   "",
		"type=nobody":                   "",
	} {
		if got := ids(query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	if n := len(strings.Fields(ids("limit=200&type=odd"))); n != 150 {
		t.Errorf("%d odd events, want 150", n)
	}
	if got := strings.Fields(ids("limit=1000&since=" + before.UTC().Format("2006-01-02T15:04:05.999999999Z"))); len(got) != 300 || got[0] != "e000" {
		t.Errorf("%d events since then, from %v", len(got), got[:1])
	}
	// The search has bounds; what it found in them is the newest.
	info, err := r.e.Bus().Events().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		looked   int
		complete bool
	}{{50, false}, {100, false}, {250, false}, {50_000, true}} {
		b := replay.DefaultBounds()
		b.Looked = c.looked
		found, complete, err := replay.Newest(t.Context(), r.e.Bus().Events(), info, eventFilter{typ: "odd", limit: 150}.search(), b)
		if err != nil || complete != c.complete || len(found) > c.looked {
			t.Errorf("bound %d: %d events, complete %v, error %v", c.looked, len(found), complete, err)
		}
		for i, ev := range found {
			if want := fmt.Sprintf("e%03d", 298-2*(len(found)-1-i)); ev.ID != want {
				t.Fatalf("bound %d: event %d is %s, want %s: there is a gap", c.looked, i, ev.ID, want)
			}
		}
	}
}

func (r *running) testRuns(t *testing.T) {
	r.emit("order", "o1", `{"total":180}`)
	r.emit("order", "o2", `{"total":80}`)
	var all struct{ Runs []map[string]any }
	eventually(t, func() error {
		if r.get("/api/v1/runs?function=note", &all); len(all.Runs) != 1 {
			return fmt.Errorf("%d runs", len(all.Runs))
		}
		return nil
	})
	run := all.Runs[0]
	if run["sensor"] != "large" || run["status"] != "succeeded" || run["event"].(map[string]any)["id"] != "o1" {
		t.Errorf("run %v", run)
	}
	var one map[string]any
	if r.get("/api/v1/runs/"+run["id"].(string), &one); one["key"] != run["key"] {
		t.Errorf("one run %v", one)
	}
	if r.get("/api/v1/runs?status=dead", &all); len(all.Runs) != 0 {
		t.Errorf("dead runs %v", all.Runs)
	}
}

func (r *running) testLetters(t *testing.T) {
	var all struct{ Letters []Letter }
	await := func(n int) {
		t.Helper()
		eventually(t, func() error {
			if r.get("/api/v1/dlq?sensor=bad", &all); len(all.Letters) != n {
				return fmt.Errorf("%d letters, want %d", len(all.Letters), n)
			}
			return nil
		})
	}
	for i := range 3 {
		r.emit("boom", fmt.Sprint("x", i), `{"n":1}`)
	}
	await(3)
	first := all.Letters[0]
	if first.Trigger != "fail" || first.Attempts != 1 || !first.Redrivable || !strings.Contains(first.Error, "*** is refused") {
		t.Errorf("letter %+v", first)
	}
	w := r.do("GET", fmt.Sprintf("/api/v1/dlq/%d", first.ID), "")
	if !strings.Contains(w.Body.String(), `"event":{"specversion"`) {
		t.Errorf("letter: %s", w.Body)
	}
	if w := r.do("DELETE", fmt.Sprintf("/api/v1/dlq/%d", first.ID), ""); w.Code != 200 {
		t.Errorf("drop: %d %s", w.Code, w.Body)
	}
	await(2)
	if w := r.do("POST", fmt.Sprintf("/api/v1/dlq/%d/redrive", all.Letters[0].ID), ""); w.Code != 200 {
		t.Errorf("redrive: %d %s", w.Code, w.Body)
	}
	eventually(t, func() error {
		if await(2); all.Letters[1].Redrives != 1 {
			return errors.New("it did not die again")
		}
		return nil
	})
	if w := r.do("POST", "/api/v1/dlq/redrive?sensor=bad&trigger=fail", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"redriven":2`) {
		t.Errorf("redrive all of a trigger: %d %s", w.Code, w.Body)
	}
	eventually(t, func() error {
		if await(2); all.Letters[0].Redrives != 1 && all.Letters[0].Redrives != 2 || all.Letters[1].Redrives < 1 {
			return fmt.Errorf("letters %+v", all.Letters)
		}
		return nil
	})
	if w := r.do("DELETE", "/api/v1/dlq?all=true", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"dropped":2`) {
		t.Errorf("drop all: %d %s", w.Code, w.Body)
	}
	await(0)
	for _, path := range []string{"/api/v1/runs", "/api/v1/events", "/api/v1/status", "/metrics"} {
		if w := r.do("GET", path, ""); strings.Contains(w.Body.String(), canary) {
			t.Errorf("%s tells the secret", path)
		}
	}
}

func (r *running) testResources(t *testing.T) {
	var all struct{ Resources []engine.ResourceStatus }
	if r.get("/api/v1/resources?kind=sensors", &all); len(all.Resources) != 3 || all.Resources[0].Name != "bad" {
		t.Errorf("sensors %+v", all.Resources)
	}
	r.emit("a", "a1", `{"id":"k1"}`)
	var res Resource
	eventually(t, func() error {
		if r.get("/api/v1/resources/sensor/pair", &res); len(res.Pending) != 1 {
			return fmt.Errorf("pending %v", res.Pending)
		}
		return nil
	})
	if res.Pending[0].Key != `"k1"` && res.Pending[0].Key != "k1" || len(res.Pending[0].Events) != 1 {
		t.Errorf("pending %+v", res.Pending)
	}
	if len(res.Dependencies) != 2 || res.Dependencies[0].Type != "a" || !slices.Equal(res.Uses, []string{"Function/note"}) || !strings.Contains(res.Source, "correlate") {
		t.Errorf("resource %+v", res)
	}
	var pending struct{ Pending []Pending }
	if r.get("/api/v1/sensors/pair/pending?limit=1", &pending); len(pending.Pending) != 1 {
		t.Errorf("pending %+v", pending)
	}
}

// testFollow needs a real connection.
func (r *running) testFollow(t *testing.T) {
	srv := httptest.NewServer(r.h)
	defer srv.Close()
	open := func(path string) (*bufio.Scanner, io.Closer) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "application/x-ndjson" {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, ct)
		}
		return bufio.NewScanner(resp.Body), resp.Body
	}
	events, c1 := open("/api/v1/events?follow=true&type=live&limit=0")
	defer c1.Close()
	runs, c2 := open("/api/v1/runs?follow=true&status=succeeded&limit=0")
	defer c2.Close()
	r.emit("dead", "f0", "1")
	r.emit("live", "f1", "1")
	r.emit("order", "f2", `{"total":1000}`)
	if !events.Scan() || !strings.Contains(events.Text(), `"id":"f1"`) {
		t.Errorf("event %q %v", events.Text(), events.Err())
	}
	if !runs.Scan() || !strings.Contains(runs.Text(), `"id":"f2"`) {
		t.Errorf("run %q %v", runs.Text(), runs.Err())
	}
	// The engine ends it.
	close(r.done)
	if events.Scan() || runs.Scan() {
		t.Errorf("goes on with %q %q", events.Text(), runs.Text())
	}
}

func (r *running) testMetrics(t *testing.T) {
	w := r.do("GET", "/metrics", "")
	for _, want := range []string{
		`engine_build_info{goversion="go`,
		`engine_ready 1`, `engine_bus_ok 1`,
		`engine_source_up{event="orders",source="shop",type="webhook"} 1`,
		`engine_sensor_fired_total{sensor="large"} 2`,
		`engine_trigger_calls_total{result="succeeded",sensor="large",trigger="say"} 2`,
		`engine_trigger_calls_total{result="failed",sensor="bad",trigger="fail"} 6`,
		`engine_trigger_duration_seconds_bucket{sensor="large",trigger="say",le="+Inf"} 2`,
		`engine_trigger_duration_seconds_count{sensor="large",trigger="say"} 2`,
		`engine_dead_letters{sensor="bad",trigger="fail"} 0`,
		`engine_resources{kind="Sensor",state="ok"} 3`,
		`engine_reload_generation 1`,
		`engine_stream_records{stream="dlq"} 0`,
		`go_goroutines`, `process_cpu_seconds_total`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, regexp.MustCompile(`(?m)^#.*\n|^(go|process)_.*\n`).ReplaceAllString(w.Body.String(), ""))
			break
		}
	}
	// The descriptions and what is collected agree, and names are well formed.
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(&collector{r.e})
	families, err := reg.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "engine_") || f.GetHelp() == "" || !strings.HasSuffix(f.GetHelp(), ".") && !strings.HasSuffix(f.GetHelp(), "1") {
			t.Errorf("metric %s: %q", f.GetName(), f.GetHelp())
		}
	}
}

func (r *running) testReload(t *testing.T) {
	var done Reload
	read := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.specs, "more.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w := r.do("POST", "/api/v1/reload", "")
		done = Reload{}
		if err := json.Unmarshal(w.Body.Bytes(), &done); err != nil || w.Code != 200 {
			t.Fatalf("reload: %d %s", w.Code, w.Body)
		}
	}
	read("apiVersion: engine/v1\nkind: Sensor\nmetadata: {name: broken}\nspec: {depndencies: []}\n")
	if !done.Refused || len(done.Diagnostics) == 0 || len(done.Statuses) != 1 || len(done.Changes) != 0 {
		t.Errorf("broken: %+v", done)
	}
	read("apiVersion: engine/v1\nkind: Function\nmetadata: {name: other}\nspec: {log: {}}\n")
	if done.Refused || len(done.Statuses) != 0 {
		t.Errorf("repaired: %+v", done)
	}
	var all struct{ Resources []engine.ResourceStatus }
	if r.get("/api/v1/resources?kind=function", &all); len(all.Resources) != 3 {
		t.Errorf("functions %+v", all.Resources)
	}
}
