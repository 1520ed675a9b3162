package sourcetest

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// Case is a source type under test.
type Case struct {
	Factory sources.Factory
	// Example is the file with an example of the type, which must be valid;
	// default "example.yaml".
	Example string
	// Config returns a valid config for a source to run, which the suite may
	// change nothing in.
	Config func() any
	// Env is where the source stands in the specs; Source and Event are filled
	// in with those of [Host].
	Env sources.Env
	// Secrets are the host's, by "name/key".
	Secrets map[string]string
	// Drive makes the running source h was given to emit at least 20 events
	// and returns the ids of those whose producer was told that they are
	// stored; none for a source without such producers. Emit fails at random
	// meanwhile. Drive reports itself what else the type promises of failures.
	Drive func(t *testing.T, h *Host) (acknowledged []string)
	// Virtual runs the source on virtual time (testing/synctest), which a
	// source without I/O of its own can. Drive may then sleep.
	Virtual bool
}

// Run holds a source type to the contract of package sources: names and texts
// of its config, its example, an end as soon as its context ends, any number
// of runs one after the other, no goroutine left behind, and no event lost
// silently when the bus fails.
func Run(t *testing.T, c Case) {
	if c.Example == "" {
		c.Example = "example.yaml"
	}
	t.Run("type", c.checkType)
	t.Run("example", c.checkExample)
	c.run(t, "cancelled before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		h := c.host(t)
		if err := c.source(t).Run(ctx, h); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run with a cancelled context = %v, want nil or the context's error", err)
		}
		if n := len(h.Events()); n != 0 {
			t.Errorf("%d events emitted with a cancelled context", n)
		}
	})
	c.run(t, "cancelled and run again", func(t *testing.T) {
		h, s := c.host(t), c.source(t)
		for range 2 {
			if err := h.Start(s)(); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v after its context ended, want nil or the context's error", err)
			}
			if r := h.Routes(); len(r) != 0 {
				t.Errorf("routes left after Run: %v", r)
			}
		}
	})
	c.run(t, "without secrets", func(t *testing.T) {
		if len(c.Secrets) == 0 {
			t.SkipNow()
		}
		h := c.host(t)
		h.Secrets = nil
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.source(t).Run(ctx, h); err == nil {
			t.Error("Run = nil without the secrets of the config")
		} else if s := err.Error(); ctx.Err() != nil || len(s) == 0 {
			t.Errorf("Run = %v only when its context ended, want an error at once", err)
		}
	})
	c.run(t, "faults", c.checkFaults)
}

// run runs a part and checks that no goroutine is left of it.
func (c Case) run(t *testing.T, name string, part func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		if c.Virtual {
			synctest.Test(t, part) // fails itself when a goroutine is left
			return
		}
		before := goleak.IgnoreCurrent()
		t.Cleanup(func() { goleak.VerifyNone(t, before) })
		part(t)
	})
}

func (c Case) host(t *testing.T) *Host {
	h := NewHost(t, c.Factory.DefaultType)
	for k, v := range c.Secrets {
		h.SetSecret(k, v)
	}
	return h
}

func (c Case) env() sources.Env {
	env := c.Env
	env.Source, env.Event = eventSource, eventName
	return env
}

func (c Case) source(t *testing.T) sources.Source {
	t.Helper()
	s, err := c.Factory.Make(c.Config(), c.env())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c Case) checkType(t *testing.T) {
	f := c.Factory
	if !regexp.MustCompile(`^[a-z][a-zA-Z0-9]*$`).MatchString(f.Name) {
		t.Errorf("the type's name %q is not in camelCase", f.Name)
	}
	if f.DefaultType == "" {
		t.Error("no DefaultType")
	}
	sentence(t, "the type", f.Doc)
	a, b := reflect.ValueOf(f.New()), reflect.ValueOf(f.New())
	if a.Kind() != reflect.Pointer || a.Elem().Kind() != reflect.Struct || a.Pointer() == b.Pointer() {
		t.Fatalf("New must return a pointer to a new struct each time, returned %v", a.Type())
	}
	lint(t, a.Elem().Type(), a.Elem().Type().Name())
}

func sentence(t *testing.T, what, doc string) {
	t.Helper()
	if doc == "" || !strings.HasSuffix(doc, ".") {
		t.Errorf("the doc text of %s is no sentence: %q", what, doc)
	}
}

// lint checks the tags of a config struct and those in it.
func lint(t *testing.T, typ reflect.Type, path string) {
	for f := range typ.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		at := path + "." + f.Name
		switch {
		case !f.IsExported() || name == "-":
			continue
		case options == "inline":
			lint(t, f.Type, path)
			continue
		case !regexp.MustCompile(`^[a-z][a-zA-Z0-9]*$`).MatchString(name):
			t.Errorf("%s has the yaml name %q, which is not in camelCase", at, name)
		}
		sentence(t, at, f.Tag.Get("doc"))
		inner := f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		// The types of specs are described there.
		if inner.Kind() == reflect.Struct && inner.PkgPath() != reflect.TypeFor[specs.SecretRef]().PkgPath() {
			lint(t, inner, at)
		}
	}
}

func (c Case) checkExample(t *testing.T) {
	loader := specs.Loader{Types: specs.Types{Sources: []specs.Type{c.Factory.Type}}}
	loaded, err := loader.Load(t.Context(), filepath.Clean(c.Example))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(loaded.Diagnostics, loader.Check(loaded.Set(), loaded.Invalid...)...) {
		t.Error(d)
	}
	var routes []sources.Route
	n := 0
	resource := func(ref specs.Ref) *specs.Resource { return loaded.Set().Resources[ref] }
	for _, r := range loaded.Resources {
		spec, ok := r.Spec.(*specs.EventSource)
		if !ok {
			continue
		}
		for _, e := range spec.Events {
			n++
			env := sources.Env{Source: r.Metadata.Name, Event: e.Name, Dir: filepath.Dir(r.Pos.File), Resource: resource}
			if _, err := c.Factory.Make(e.Config, env); err != nil {
				t.Errorf("making %s: %v", e.Name, err)
			}
			if c.Factory.Routes == nil {
				continue
			}
			for _, added := range c.Factory.Routes(e.Config, env) {
				if _, err := sources.ParsePath(added.Path); err != nil {
					t.Errorf("route of %s: %v", e.Name, err)
				}
				for _, o := range routes {
					if sources.Conflict(o, added) {
						t.Errorf("the routes %v and %v of the example conflict", o, added)
					}
				}
				routes = append(routes, added)
			}
		}
	}
	if n == 0 {
		t.Errorf("%s has no event of the type %s", c.Example, c.Factory.Name)
	}
}

// checkFaults lets three of ten events fail, some of them after they were
// stored, and looks for what the producer was promised.
func (c Case) checkFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	h := c.host(t)
	h.Fault = func(int, *bus.Event) Fault {
		mu.Lock()
		defer mu.Unlock()
		switch random.IntN(10) {
		case 0:
			return Fault{Err: bus.ErrFull}
		case 1:
			return Fault{Err: bus.ErrUnavailable}
		case 2:
			return Fault{Err: bus.ErrUnavailable, Stored: true}
		}
		return Fault{}
	}
	stop := h.Start(c.source(t))
	acknowledged := c.Drive(t, h)
	if err := stop(); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	evs := h.Events()
	if len(evs) < 20 {
		t.Errorf("%d events stored, Drive must bring about at least 20", len(evs))
	}
	stored := make(map[string]bool, len(evs))
	for _, ev := range evs {
		if ev.ProducerID && stored[ev.ID] {
			t.Errorf("event %s stored twice", ev.ID)
		}
		stored[ev.ID] = true
	}
	if c.Factory.Payload != nil {
		c.checkPayload(t, evs)
	}
	for _, id := range acknowledged {
		if !stored[id] {
			t.Errorf("event %s was acknowledged to its producer, but is not stored", id)
		}
	}
}

// checkPayload holds the data of events against the fields the type declares.
func (c Case) checkPayload(t *testing.T, evs []*bus.Event) {
	for _, ev := range evs {
		var data map[string]any
		if err := json.Unmarshal(ev.Data, &data); err != nil {
			t.Errorf("the type declares its payload, but the data of event %s is no object: %v", ev.ID, err)
		}
		for name := range data {
			if !slices.Contains(c.Factory.Payload, name) {
				t.Errorf("the data of event %s has the field %q, which the type does not declare", ev.ID, name)
			}
		}
	}
}

// Diagnostics loads each testdata/*.yaml with the type and compares what is
// wrong with it, places included, with the file of the same name that ends in
// .golden, or writes that file when update is true.
func Diagnostics(t *testing.T, f sources.Factory, update bool) {
	paths, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no testdata/*.yaml (%v)", err)
	}
	for _, path := range paths {
		loaded, err := specs.Loader{Types: specs.Types{Sources: []specs.Type{f.Type}}}.Load(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, d := range loaded.Diagnostics {
			b.WriteString(d.String() + "\n")
		}
		golden := strings.TrimSuffix(path, ".yaml") + ".golden"
		if update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatalf("%v (run with -update)", err)
		}
		if b.String() != string(want) {
			t.Errorf("%s:\n got\n%s\nwant\n%s", path, b.String(), want)
		}
	}
}
