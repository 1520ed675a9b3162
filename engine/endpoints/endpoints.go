// Package endpoints owns the kind Endpoint: what a request is mapped to, which
// requests are refused, and what is answered. Calls are made by the pool of
// package jobs, routes are served by package listen; it must not know concrete
// functions, the bus, or how an engine runs.
package endpoints

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// RunsPath begins the paths at which submitted calls are asked for.
const RunsPath = "/_runs/"

// HeaderRun is the header of an answer with the id of the run of its call, which
// `engine runs show` takes.
const HeaderRun = "Engine-Run"

// Calls makes the calls of endpoints.
type Calls interface {
	// Call makes one at once, as [jobs.Pool.Call] does.
	Call(ctx context.Context, r jobs.Request) (*jobs.Outcome, error)
	// Submit stores one, as [jobs.Pool.Submit] does.
	Submit(ctx context.Context, r jobs.Request) (jobs.Submitted, error)
	// Find tells how a submitted one stands, as [jobs.Pool.Find] does.
	Find(ctx context.Context, ref jobs.TriggerRef, function, key string) (status string, run json.RawMessage, err error)
}

// Compiled holds the compiled templates of an Endpoint. It is safe for
// concurrent use; a template that is not in the spec is nil.
type Compiled struct {
	input        *expression.Template
	status, body *expression.Template
	headers      []header
	// What the templates read: whether the output, the request, what it was
	// mapped to.
	output, request, data bool
}

type header struct {
	name string
	text *expression.Template
}

// Compile compiles the templates of an Endpoint. When there are errors the
// result is nil.
func Compile(e *specs.Endpoint) (*Compiled, specs.Diagnostics) {
	c := &Compiled{}
	var found specs.Diagnostics
	add := func(t *expression.Template, ds specs.Diagnostics) *expression.Template {
		found = append(found, ds...)
		if t != nil {
			c.data = c.data || t.NeedsData()
			c.request = c.request || t.NeedsRequest()
		}
		return t
	}
	if e.Input.Set {
		c.input = add(expression.CompileTemplate(e.Input, expression.RequestScope()))
	}
	if r := e.Response; r != nil {
		scope := expression.RequestScope().WithOutput()
		if r.Status.Set {
			c.status = add(expression.CompileTemplate(r.Status, scope))
		}
		if r.Body.Set {
			c.body = add(expression.CompileTemplate(r.Body, scope))
		}
		for name, text := range r.Headers {
			c.headers = append(c.headers, header{http.CanonicalHeaderKey(name), add(expression.CompileText(text, scope))})
		}
		slices.SortFunc(c.headers, func(a, b header) int { return strings.Compare(a.name, b.name) })
		c.output = true
	}
	if found.HasErrors() {
		return nil, found.Sort()
	}
	return c, found.Sort()
}

// Routes are the routes an endpoint asks for: its own, and with async the one
// at which runs are asked for.
func Routes(name string, e *specs.Endpoint) []sources.Route {
	if !e.On() {
		return nil
	}
	preflight := e.CORS != nil && (e.CORS.All() || len(e.CORS.Origins) > 0)
	routes := []sources.Route{{Methods: methods(e), Path: e.Path, Hosts: e.Hosts, Preflight: preflight}}
	if e.Async {
		routes = append(routes, sources.Route{Methods: []string{http.MethodGet}, Path: RunsPath + name + "/{run}", Hosts: e.Hosts, Preflight: preflight})
	}
	return routes
}

func methods(e *specs.Endpoint) []string {
	if len(e.Methods) == 0 {
		return []string{http.MethodPost}
	}
	return e.Methods
}

// Stats are the counters of one endpoint since the start of the engine.
type Stats struct {
	// InFlight is how many requests are being served.
	InFlight atomic.Int64
	answers  [600]atomic.Uint64
}

// Answers returns how many requests were answered, by HTTP status.
func (s *Stats) Answers() map[int]uint64 {
	out := map[int]uint64{}
	for status := range s.answers {
		if n := s.answers[status].Load(); n > 0 {
			out[status] = n
		}
	}
	return out
}

// Env is where an endpoint stands.
type Env struct {
	// Name is the endpoint's name.
	Name  string
	Calls Calls
	Stats *Stats
	// Keys are the keys of the Secret with its API keys, if it has any.
	Keys []string
}

// New makes the source of an endpoint that passed validation: it serves the
// routes on the host's listener until its context ends, and emits nothing.
func New(e *specs.Endpoint, c *Compiled, env Env) (sources.Source, error) {
	ep := &endpoint{
		spec: e, compiled: c, env: env, ref: jobs.TriggerRef{Sensor: jobs.SensorEndpoint, Trigger: env.Name},
		bodies: ingress.NewBodies(int64(e.MaxBody)), methods: strings.Join(methods(e), ", "),
	}
	segs, err := sources.ParsePath(e.Path)
	if err != nil {
		return nil, err
	}
	for _, seg := range segs {
		if seg.Wild && seg.Text != "" {
			ep.params = append(ep.params, seg.Text)
		}
	}
	return ep, nil
}

type endpoint struct {
	spec     *specs.Endpoint
	compiled *Compiled
	env      Env
	ref      jobs.TriggerRef
	params   []string // names of the path parameters
	methods  string   // for CORS
	bodies   *ingress.Bodies
}

// Run serves the endpoint until ctx ends.
func (ep *endpoint) Run(ctx context.Context, h sources.Host) error {
	auth, err := ingress.NewAuth(ep.spec.Auth, ep.env.Keys, h)
	if err != nil {
		return err
	}
	handler := &handler{endpoint: ep, auth: auth}
	for i, route := range Routes(ep.env.Name, ep.spec) {
		serve := http.Handler(handler)
		if i > 0 {
			serve = http.HandlerFunc(handler.serveRun)
		}
		remove, err := h.Handle(route, serve)
		if err != nil {
			return fmt.Errorf("endpoint at %s: %w", route.Path, err)
		}
		defer remove()
	}
	if ep.spec.On() {
		h.Ready("listening on " + ep.spec.Path)
	} else {
		h.Ready("not enabled")
	}
	<-ctx.Done()
	return nil
}
