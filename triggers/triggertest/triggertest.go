// Package triggertest owns the contract suite every function kind is held to,
// and what their tests need: functions, calls, values, certificates, a host.
package triggertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// patience is how long a call may take that should return at once; it only
// decides when a hanging one is given up on.
const patience = 20 * time.Second

// Suite describes a kind to [Run]. A config is the YAML below the kind's key.
// Those of properties that [Matrix] says cannot apply to the kind are "".
type Suite struct {
	Factory triggers.Factory
	// Mode is the mode of the kind, as in [Matrix]; "" when there is one alone.
	Mode string
	// OK is a config whose calls succeed.
	OK string
	// Slow is one whose calls take longer than any test.
	Slow string
	// Permanent and Retryable are ones whose calls fail; "" when the kind
	// cannot fail in that way. With Host failing, it is Retryable that does.
	Permanent, Retryable string
	// Key is one whose output follows from the key of the call that the callee
	// sees, and from nothing else that differs between calls.
	Key string
	// Length is one whose output is the length of the payload as the callee got
	// it, a number, unless Arrived tells that. Most is the largest payload in
	// bytes that the kind takes, when that is less than [HugeSize].
	Length  string
	Arrived func() int
	Most    int
	// Huge is one whose output would be 64 MiB.
	Huge string
	// Text is one that passes its payload on, and gives it back where it can.
	Text string
	// Crash are ones whose program ends itself, at one of the [Steps] each.
	// Where a network is between, Server is instead one of calls of the server
	// at an address that the suite chooses, which leads to Addr.
	Crash  map[string]string
	Server func(addr string) string
	Addr   string
	// Worker is what [RunWorker] is called with, for kinds that keep processes.
	Worker *Worker
	// Secrets are values by "name/key".
	Secrets map[string]string
	// Env is what functions are made with. Host is filled in when nil.
	Env triggers.Env
}

// has tells whether there are calls of a property.
func (s Suite) has(p Property) bool {
	switch p {
	case Deadline:
		return s.Slow != ""
	case Cancellation:
		return s.OK != ""
	case Permanently:
		return s.Permanent != ""
	case Retryably:
		return s.Retryable != ""
	case SameKey:
		return s.Key != ""
	case HugeInput:
		return s.Length != ""
	case HugeOutput:
		return s.Huge != ""
	case InvalidText:
		return s.Text != ""
	case Crashes:
		return len(s.Crash) > 0 || s.Server != nil
	}
	return false
}

// complete checks that the suite has calls of just the properties that [Matrix]
// names for the kind.
func (s Suite) complete(t *testing.T) {
	t.Helper()
	row, err := rowOf(s.Factory.Name, s.Mode)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Promises() {
		cell, has := row.Cells[p.Property], s.has(p.Property)
		if has != (cell == Yes) || cell == Workers && s.Worker == nil {
			t.Errorf("%s: the suite has calls of it: %v, but the matrix says %q", p.Property, has, cell)
		}
	}
}

// Run checks the contract of [triggers.Function] and of [triggers.Factory],
// and that of workers where the kind has some. It reads example.yaml in the
// folder of the test.
func Run(t *testing.T, s Suite) {
	t.Helper()
	if s.Env.Host == nil {
		s.Env.Host = &Host{}
	}
	if s.Env.Concurrency == 0 {
		s.Env.Concurrency = 8
	}
	t.Run("complete", s.complete)
	t.Run("factory", func(t *testing.T) { factory(t, s.Factory) })
	t.Run("example", func(t *testing.T) { example(t, s) })
	t.Run("success", func(t *testing.T) {
		f, v := s.function(t, s.OK)
		for range 2 {
			if _, err := s.invoke(t, t.Context(), f, v, NewCall("same")); err != nil {
				t.Errorf("call: %v", err)
			}
		}
	})
	t.Run("concurrent calls", func(t *testing.T) {
		f, v := s.function(t, s.OK)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 5 {
					if _, err := s.invoke(t, t.Context(), f, v, NewCall(fmt.Sprintf("%d-%d", i, j))); err != nil {
						t.Errorf("call: %v", err)
					}
				}
			})
		}
		wg.Wait()
	})
	t.Run("cancelled before", func(t *testing.T) {
		f, v := s.function(t, s.OK)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.invoke(t, ctx, f, v, NewCall("k")); !errors.Is(err, context.Canceled) || permanent(err) {
			t.Errorf("error %v, want one that wraps context.Canceled and may be retried", err)
		}
	})
	if s.Slow != "" {
		t.Run("deadline", func(t *testing.T) {
			f, v := s.function(t, s.Slow)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := s.invoke(t, ctx, f, v, NewCall("k")); !errors.Is(err, context.DeadlineExceeded) || permanent(err) {
				t.Errorf("error %v, want one that wraps context.DeadlineExceeded and may be retried", err)
			}
		})
		t.Run("cancelled while it runs", func(t *testing.T) {
			f, v := s.function(t, s.Slow)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(50*time.Millisecond, cancel)
			if _, err := s.invoke(t, ctx, f, v, NewCall("k")); !errors.Is(err, context.Canceled) || permanent(err) {
				t.Errorf("error %v, want one that wraps context.Canceled and may be retried", err)
			}
		})
	}
	for name, config := range map[string]string{"permanent": s.Permanent, "retryable": s.Retryable} {
		if config == "" {
			continue
		}
		t.Run(name+" failure", func(t *testing.T) {
			f, v := s.function(t, config)
			if _, err := s.invoke(t, t.Context(), f, v, NewCall("k")); err == nil || permanent(err) != (name == "permanent") {
				t.Errorf("error %v, want a %s one", err, name)
			}
		})
	}
	for _, p := range []struct {
		Property
		test func(*testing.T)
	}{{SameKey, s.sameKey}, {HugeInput, s.hugeInput}, {HugeOutput, s.hugeOutput}, {InvalidText, s.invalidText}, {Crashes, s.crashes}} {
		if s.has(p.Property) {
			t.Run(string(p.Property), p.test)
		}
	}
	if s.Worker != nil {
		t.Run("worker", func(t *testing.T) { RunWorker(t, *s.Worker) })
	}
}

func permanent(err error) bool { return triggers.Permanent(err) }

// function makes a function that is closed when the test ends, and checks that
// nothing of it remains.
func (s Suite) function(t *testing.T, config string) (triggers.Function, *Values) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) }) // after it is closed
	f, v := Make(t, s.Factory, config, s.Secrets, s.Env)
	if p, ok := f.(triggers.Preparer); ok {
		if err := p.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return f, v
}

// invoke makes one call and looks for secrets in its error.
func (s Suite) invoke(t *testing.T, ctx context.Context, f triggers.Function, v *Values, c *triggers.Call) (triggers.Result, error) {
	t.Helper()
	c.Values = v.Of(c)
	hung := time.AfterFunc(patience, func() { panic("triggertest: " + t.Name() + ": the call does not return") })
	defer hung.Stop()
	res, err := f.Invoke(ctx, c)
	if len(res.Output) > triggers.MaxOutput || len(res.Logs.Stdout) > triggers.MaxLogs || len(res.Logs.Stderr) > triggers.MaxLogs {
		t.Errorf("output of %d bytes and logs of %d and %d are not capped", len(res.Output), len(res.Logs.Stdout), len(res.Logs.Stderr))
	}
	for ref, value := range s.Secrets {
		if err != nil && strings.Contains(err.Error(), value) || strings.Contains(res.Status, value) {
			t.Errorf("the error or status shows the secret %s", ref)
		}
	}
	return res, err
}

// Config decodes the YAML below a kind's key as a spec would be.
func Config(t testing.TB, f triggers.Factory, config string) any {
	t.Helper()
	loaded := load(f, config)
	if len(loaded.Diagnostics) > 0 {
		t.Fatalf("%s\n%v", config, loaded.Diagnostics)
	}
	return loaded.Resources[0].Spec.(*specs.Function).Call.Config
}

// Diagnostics returns what is wrong with a config, one a line.
func Diagnostics(f triggers.Factory, config string) []string {
	loaded := load(f, config)
	var out []string
	for _, d := range loaded.Diagnostics {
		out = append(out, d.String())
	}
	return out
}

// Validate checks what is wrong with configs: each has a part of its diagnostics
// as value, or "" when there are none.
func Validate(t *testing.T, f triggers.Factory, configs map[string]string) {
	t.Helper()
	for config, want := range configs {
		got := strings.Join(Diagnostics(f, config), "\n")
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
	}
}

func load(f triggers.Factory, config string) *specs.Loaded {
	var doc strings.Builder
	doc.WriteString("apiVersion: engine/v1\nkind: Function\nmetadata: {name: f}\nspec:\n  " + f.Name + ":\n")
	for line := range strings.Lines(config) {
		doc.WriteString("    " + line)
	}
	return specs.Loader{Types: specs.Types{Functions: []specs.Type{f.Type}}}.LoadBytes("test.yaml", []byte(doc.String()))
}

// NewCall returns a first call with an event of its own, for key.
func NewCall(key string) *triggers.Call {
	return &triggers.Call{
		Key: key, Attempt: 1, Sensor: "sensor", Trigger: "trigger", Function: "function",
		Event: &bus.Event{
			ID: "event-" + key, Source: "/tests", Type: "test", Subject: "subject", DataContentType: "application/json",
			Time: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC), Data: []byte(`{"id":1234567890123456789}`),
			Extensions:  map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			EventSource: "tests", EventName: "test",
		},
	}
}

// NewInputCall returns [NewCall] with an input.
func NewInputCall(input any) *triggers.Call {
	c := NewCall("k")
	c.Input, c.HasInput = input, true
	return c
}

// Host keeps what is published, each id once, as the bus does.
type Host struct {
	mu     sync.Mutex
	events []*bus.Event
	// Err, when set, is what Publish returns.
	Err error
}

// Publish implements [triggers.Host].
func (h *Host) Publish(ctx context.Context, ev *bus.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Err != nil {
		return h.Err
	}
	for _, e := range h.events {
		if ev.ProducerID && e.DedupID() == ev.DedupID() {
			return nil
		}
	}
	h.events = append(h.events, ev)
	return nil
}

// Events returns what was published, in order.
func (h *Host) Events() []*bus.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*bus.Event(nil), h.events...)
}

func factory(t *testing.T, f triggers.Factory) {
	if f.Name == "" || f.Name != strings.ToLower(f.Name) {
		t.Errorf("name %q", f.Name)
	}
	sentence(t, f.Name, f.Doc)
	a, b := f.New(), f.New()
	if a == b || reflect.TypeOf(a).Kind() != reflect.Pointer || reflect.TypeOf(a).Elem().Kind() != reflect.Struct {
		t.Fatalf("New returns %T, want a pointer to a new struct each time", a)
	}
	fields(t, reflect.TypeOf(a).Elem(), f.Name)
}

// fields checks the tags of a config struct and those below it.
func fields(t *testing.T, typ reflect.Type, path string) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ.PkgPath() == reflect.TypeFor[specs.Text]().PkgPath() {
		return
	}
	for f := range typ.Fields() {
		tag := f.Tag.Get("yaml")
		if !f.IsExported() || tag == "-" {
			continue
		}
		if tag == ",inline" {
			fields(t, f.Type, path)
			continue
		}
		name, _, _ := strings.Cut(tag, ",")
		if name == "" || strings.ToLower(name[:1]) != name[:1] {
			t.Errorf("%s.%s: yaml tag %q, want a name in camelCase", path, f.Name, tag)
		}
		sentence(t, path+"."+f.Name, f.Tag.Get("doc"))
		fields(t, f.Type, path+"."+name)
	}
}

func sentence(t *testing.T, of, s string) {
	if s == "" || !strings.HasSuffix(s, ".") || strings.ToUpper(s[:1]) != s[:1] {
		t.Errorf("%s: doc text %q, want full sentences", of, s)
	}
}

// example checks that example.yaml loads without a remark and that its
// functions of this kind can be made.
func example(t *testing.T, s Suite) {
	data, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if s.Factory.Example != string(data) {
		t.Error("the Factory has another example than example.yaml")
	}
	loaded := specs.Loader{Types: specs.Types{Functions: []specs.Type{s.Factory.Type}}}.LoadBytes("example.yaml", data)
	for _, d := range loaded.Diagnostics {
		t.Error(d)
	}
	n := 0
	for _, r := range loaded.Resources {
		fn, ok := r.Spec.(*specs.Function)
		if !ok || fn.Call.Kind != s.Factory.Name {
			continue
		}
		n++
		if _, ds := triggers.CompileConfig(fn.Call.Config); len(ds) > 0 {
			t.Error(ds)
		}
		f, err := s.Factory.Make(fn.Call.Config, triggers.Env{Host: s.Env.Host, Concurrency: 1, Dir: "."})
		if err != nil {
			t.Errorf("%s: %v", r.Metadata.Name, err)
			continue
		}
		if c, ok := f.(io.Closer); ok {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if n == 0 {
		t.Errorf("example.yaml shows no function of kind %s", s.Factory.Name)
	}
}
