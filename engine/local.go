package engine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/secrets"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Local calls functions without an engine.
type Local struct {
	Catalog Catalog
	Logger  *slog.Logger
	// LookupEnv and Masker are those of [Options], Data too.
	LookupEnv func(string) (string, bool)
	Masker    *secrets.Masker
	Data      string
}

// Call makes one Function of what was loaded, and nothing else of it, calls it,
// and closes it. What the call emitted is returned and stored nowhere. The
// diagnostics are those of the function and of what it uses, and when it is not
// there those of what could not be read as a resource; an error says why there was
// no call. Of r, Ref is set.
func (l Local) Call(ctx context.Context, loaded *specs.Loaded, function string, r jobs.Request) (*jobs.Outcome, []*bus.Event, specs.Diagnostics, error) {
	ref := specs.Ref{Kind: specs.KindFunction, Name: function}
	set := only(loaded, ref, r.Grants)
	compiler := NewCompiler(l.Catalog)
	found := compiler.Check(set, loaded.Invalid...)
	wrong := found.HasErrors()
	missing := set.Resources[ref] == nil && !slices.Contains(loaded.Invalid, ref)
	for _, d := range loaded.Diagnostics {
		if d.Ref == ref || missing && d.Ref == (specs.Ref{}) || set.Resources[d.Ref] != nil {
			found = append(found, d)
			wrong = wrong || d.Ref == ref && d.Severity == specs.Error
		}
	}
	found = found.Sort()
	switch {
	case missing:
		return nil, nil, found, fmt.Errorf("there is no Function %q in the specs%s", function, others(loaded))
	case wrong || set.Resources[ref] == nil:
		return nil, nil, found, fmt.Errorf("the Function %q has errors", function)
	}
	if len(r.Grants) > 0 {
		if err := l.Catalog.canGrant(set.Resources[ref].Spec.(*specs.Function)); err != nil {
			return nil, nil, found, err
		}
	}

	resolver := secrets.NewResolver(l.LookupEnv, l.Masker)
	resolver.Apply(set)
	host := &localHost{}
	made := &callees{
		compiler: compiler, host: host, log: l.Logger, data: l.Data,
		secrets: resolver, mask: l.Masker.Mask,
	}
	table, err := made.table(set)
	if err != nil {
		return nil, nil, found, err
	}
	r.Ref = jobs.TriggerRef{Sensor: jobs.SensorExec, Trigger: function}
	t := table[r.Ref]
	if r.Timeout == 0 {
		r.Timeout = t.Timeout
	}
	out := jobs.Invoke(ctx, l.Logger, t.Callee, r)
	if c, ok := t.Callee.Function.(io.Closer); ok {
		if err := c.Close(); err != nil {
			l.Logger.Warn("function did not close cleanly", "function", function, "error", err)
		}
	}
	return &out, host.emitted, found, nil
}

// only is the part of what was loaded that a resource and some Secrets need.
func only(loaded *specs.Loaded, ref specs.Ref, secrets []string) *specs.Set {
	all := loaded.Set().Resources
	set := &specs.Set{Resources: map[specs.Ref]*specs.Resource{}}
	var take func(specs.Ref)
	take = func(ref specs.Ref) {
		r := all[ref]
		if r == nil || set.Resources[ref] != nil {
			return
		}
		set.Resources[ref] = r
		for _, used := range r.Uses {
			take(used)
		}
	}
	take(ref)
	for _, name := range secrets {
		take(specs.Ref{Kind: specs.KindSecret, Name: name})
	}
	return set
}

// others names the Functions that there are.
func others(loaded *specs.Loaded) string {
	var names []string
	for _, r := range loaded.Resources {
		if r.Kind == specs.KindFunction {
			names = append(names, r.Metadata.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; there are " + strings.Join(names, ", ")
}

// localHost keeps what functions emit.
type localHost struct {
	mu      sync.Mutex
	emitted []*bus.Event
}

var _ triggers.Host = (*localHost)(nil)

// Publish keeps an event.
func (h *localHost) Publish(_ context.Context, ev *bus.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.emitted = append(h.emitted, ev)
	return nil
}
