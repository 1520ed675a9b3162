package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/specs"
)

func alive(w http.ResponseWriter) { reply(w, http.StatusOK, map[string]string{"status": "ok"}) }

// lost is how long the bus may be away before the process counts as not alive:
// a restart would help a bus that never comes back by itself, and nothing else.
const lost = 10 * time.Minute

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) error {
	if h := s.e.Bus().Health(); !h.OK && time.Since(h.Since) > lost {
		reply(w, http.StatusServiceUnavailable, map[string]string{"status": "failed", "error": "bus: " + h.Reason})
		return nil
	}
	alive(w)
	return nil
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func (s *server) readyz(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	ok, why := s.e.Ready(ctx)
	for i := range why {
		why[i] = string(s.e.Mask([]byte(why[i])))
	}
	if !ok {
		reply(w, http.StatusServiceUnavailable, readiness{Reasons: why, Error: "not ready: " + strings.Join(why, "; ")})
		return nil
	}
	reply(w, http.StatusOK, readiness{Ready: true})
	return nil
}

func (s *server) status(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	return s.reply(w, s.e.Status(ctx))
}

func (s *server) resources(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	all := s.e.Status(ctx).Resources
	if k := r.URL.Query().Get("kind"); k != "" {
		kind, err := kindOf(k)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(rs engine.ResourceStatus) bool { return rs.Kind != kind })
	}
	if all == nil {
		all = []engine.ResourceStatus{}
	}
	return s.reply(w, map[string]any{"resources": all})
}

// kindOf finds a kind, whatever its case and number.
func kindOf(name string) (specs.Kind, error) {
	for _, k := range specs.Kinds() {
		if strings.EqualFold(name, string(k)) || strings.EqualFold(name, string(k)+"s") {
			return k, nil
		}
	}
	names := make([]string, 0, len(specs.Kinds()))
	for _, k := range specs.Kinds() {
		names = append(names, string(k))
	}
	return "", badRequest("unknown kind %q; there are %s", name, strings.Join(names, ", "))
}

// Resource is everything about one resource.
type Resource struct {
	engine.ResourceStatus
	// Source is its document as it runs, "" when it does not run.
	Source string `json:"source,omitempty"`
	// Uses are the resources it references.
	Uses []string `json:"uses,omitempty"`
	// Dependencies are those of a Sensor.
	Dependencies []Dependency `json:"dependencies,omitempty"`
	// Pending are the first correlation keys of a Sensor that wait for more.
	Pending []Pending `json:"pending,omitempty"`
	// Problems are its diagnostics.
	Problems specs.Diagnostics `json:"problems,omitempty"`
}

// Dependency is a dependency of a Sensor, as its spec says.
type Dependency struct {
	Name    string `json:"name"`
	Source  string `json:"source,omitempty"`
	Event   string `json:"event,omitempty"`
	Type    string `json:"type,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Function and Outcome are given instead of source, event and type.
	Function string        `json:"function,omitempty"`
	Outcome  specs.Outcome `json:"outcome,omitempty"`
	When     string        `json:"when,omitempty"`
}

// Pending is a correlation key that waits for more events.
type Pending struct {
	Key string `json:"key"`
	// Events are the sequences of the events that wait.
	Events []uint64 `json:"events"`
	// Expires is when the next of them is given up.
	Expires time.Time `json:"expires,omitzero"`
}

func (s *server) resource(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	kind, err := kindOf(r.PathValue("kind"))
	if err != nil {
		return err
	}
	ref := specs.Ref{Kind: kind, Name: r.PathValue("name")}
	st := s.e.Status(ctx)
	i := slices.IndexFunc(st.Resources, func(rs engine.ResourceStatus) bool { return rs.Kind == ref.Kind && rs.Name == ref.Name })
	if i < 0 {
		return notFound("there is no %s", ref)
	}
	out := Resource{ResourceStatus: st.Resources[i]}
	for _, d := range st.Problems {
		if d.Ref == ref {
			out.Problems = append(out.Problems, d)
		}
	}
	res := s.e.Resource(ref)
	if res == nil {
		return s.reply(w, out)
	}
	out.Source = res.Source
	for _, u := range res.Uses {
		out.Uses = append(out.Uses, u.String())
	}
	if out.Events != nil {
		details := s.e.Details(ref.Name)
		out.Events = slices.Clone(out.Events)
		for i := range out.Events {
			out.Events[i].Details = details[out.Events[i].Name]
		}
	}
	if name, spec := res.Sensor(); spec != nil {
		for _, d := range spec.Dependencies {
			out.Dependencies = append(out.Dependencies, Dependency{d.Name, d.Source, d.Event, d.Type, d.Subject, d.Function, d.Outcome, d.When.Source})
		}
		// Not worth waiting for while the fold recovers.
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		out.Pending, _ = s.pendingOf(soon, name, 20)
	}
	return s.reply(w, out)
}

func (s *server) pendingOf(ctx context.Context, sensor string, limit int) ([]Pending, error) {
	keys, err := s.e.Pending(ctx, sensor, limit)
	if err != nil {
		return nil, err
	}
	out := make([]Pending, len(keys))
	for i, k := range keys {
		out[i] = Pending{Key: k.Key, Events: k.Refs, Expires: k.Wake}
	}
	slices.SortFunc(out, func(a, b Pending) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}

// sensor is the sensor in a request's path, by the name it runs as.
func (s *server) sensor(r *http.Request) (string, error) {
	name := r.PathValue("name")
	ref := specs.Ref{Kind: specs.KindSensor, Name: name}
	if sub, ok := strings.CutPrefix(name, specs.SubscriptionPrefix); ok {
		ref = specs.Ref{Kind: specs.KindSubscription, Name: sub}
	}
	if s.e.Resource(ref) == nil {
		return "", notFound("there is no sensor %s that runs", name)
	}
	return name, nil
}

func (s *server) pending(w http.ResponseWriter, r *http.Request) error {
	name, err := s.sensor(r)
	if err != nil {
		return err
	}
	limit, err := number(r, "limit", 100, 1, 10_000)
	if err != nil {
		return err
	}
	ctx, cancel := within(r)
	defer cancel()
	keys, err := s.pendingOf(ctx, name, limit)
	if err != nil {
		return err
	}
	return s.reply(w, map[string]any{"pending": keys})
}

// Reload is what followed from reading the files.
type Reload struct {
	// Changes are what was done, without what stayed as it was; Summary is the
	// same for people.
	Changes []reload.Change `json:"changes"`
	Summary string          `json:"summary"`
	// Refused is true when a part of the files is not in force because of
	// errors.
	Refused     bool              `json:"refused"`
	Diagnostics specs.Diagnostics `json:"diagnostics"`
	// Statuses are the resources that are not as the files say.
	Statuses []reload.Status `json:"statuses"`
}

func (s *server) reload(w http.ResponseWriter, r *http.Request) error {
	prune, err := flag(r, "prune")
	if err != nil {
		return err
	}
	ctx, cancel := within(r)
	defer cancel()
	d, err := s.e.Reload(ctx, prune)
	if err != nil {
		return err
	}
	out := Reload{Changes: []reload.Change{}, Summary: d.Plan.String(), Refused: d.Diagnostics.HasErrors(), Diagnostics: d.Diagnostics, Statuses: []reload.Status{}}
	if out.Diagnostics == nil {
		out.Diagnostics = specs.Diagnostics{}
	}
	for _, c := range d.Plan.Changes {
		if c.Action != reload.Unchanged {
			out.Changes = append(out.Changes, c)
		}
	}
	for _, st := range d.Statuses {
		if st.State != reload.OK {
			out.Statuses = append(out.Statuses, st)
		}
	}
	return s.reply(w, out)
}

func (s *server) schema(w http.ResponseWriter, _ *http.Request) error {
	b, err := specs.Schema(s.o.Types)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, "application/schema+json", b)
	return nil
}

func (s *server) openapi(w http.ResponseWriter, _ *http.Request) error {
	write(w, http.StatusOK, "application/yaml", Document)
	return nil
}
