package engine

import (
	"path/filepath"
	"strings"

	"github.com/sensor-engine/engine/engine/endpoints"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/specs"
)

// compiledEndpoint is an Endpoint with its templates.
type compiledEndpoint struct {
	hash     string
	compiled *endpoints.Compiled
	found    specs.Diagnostics
}

// endpoint compiles an Endpoint and finds what is wrong with it in itself.
func (c *Compiler) endpoint(ref specs.Ref, r *specs.Resource, spec *specs.Endpoint) compiledEndpoint {
	if was, ok := c.endpoints[ref]; ok && was.hash == r.Hash && len(was.found) == 0 {
		return was
	}
	compiled, found := endpoints.Compile(spec)
	for i := range found {
		found[i].Ref = ref
	}
	if _, err := sources.ParsePath(spec.Path); err != nil {
		ck := specs.NewChecker(ref, "spec", spec.Places)
		ck.Errorf("path", specs.CodeInvalidValue, "write it as /hello, /hello/{name} or /files/{path...}", "%v", err)
		found = append(found, ck.Found()...)
	}
	ce := compiledEndpoint{hash: r.Hash, compiled: compiled, found: found}
	c.endpoints[ref] = ce
	return ce
}

// endpointKey is the key of an endpoint's unit. No EventSource has a name that
// begins with "_".
func endpointKey(name string) unitKey { return unitKey{jobs.SensorEndpoint, name} }

// isEndpoint reports whether the unit is that of an endpoint.
func (k unitKey) isEndpoint() bool { return k.source == jobs.SensorEndpoint }

// String names the unit for people.
func (k unitKey) String() string {
	if k.isEndpoint() {
		return string(specs.KindEndpoint) + "/" + k.event
	}
	return k.source + "/" + k.event
}

// endpointHash covers what an endpoint's unit is made of: its document and the
// Secrets it uses. Its function is looked up at every call.
func endpointHash(set *specs.Set, r *specs.Resource) string {
	hash := []string{r.Hash}
	for _, u := range r.Uses {
		if used := set.Resources[u]; used != nil && u.Kind == specs.KindSecret {
			hash = append(hash, used.Hash, filepath.Dir(used.Pos.File))
		}
	}
	return strings.Join(hash, " ")
}

// newEndpoint makes the unit of an Endpoint. mu is held.
func (e *Engine) newEndpoint(k unitKey, hash, dir string, set *specs.Set) *unit {
	ref := specs.Ref{Kind: specs.KindEndpoint, Name: k.event}
	r := set.Resources[ref]
	spec := r.Spec.(*specs.Endpoint)
	st := e.answers[k.event]
	if st == nil {
		st = &endpoints.Stats{}
		e.answers[k.event] = st
	}
	env := endpoints.Env{Name: k.event, Calls: e.pool, Stats: st}
	if a := spec.Auth; a != nil && a.APIKeys != nil {
		env.Keys = ingress.Keys(set.Resources[specs.Ref{Kind: specs.KindSecret, Name: a.APIKeys.Secret}])
	}
	compiled := e.compiler.endpoint(ref, r, spec).compiled // a checked set compiles
	u := newUnit(k, "endpoint", hash, dir, e.log.With("endpoint", k.event))
	u.make = func() (sources.Source, error) { return endpoints.New(spec, compiled, env) }
	u.routed = len(endpoints.Routes(k.event, spec)) > 0
	u.host = &host{
		key: k, bus: e.o.Bus, routes: e.table, secret: e.secrets.Secret, wanted: &e.wanted, log: u.log, stats: &SourceStats{},
		ready: u.isReady, position: position{key: k, bus: e.o.Bus, log: e.logID, out: u.log},
	}
	return u
}

// EndpointStatus is the state of an Endpoint.
type EndpointStatus struct {
	State    UnitState `json:"state"`
	Detail   string    `json:"detail,omitempty"`
	Restarts int       `json:"restarts,omitempty"`
	Methods  []string  `json:"methods"`
	Hosts    []string  `json:"hosts,omitempty"`
	Path     string    `json:"path"`
	Function string    `json:"function"`
	// Auth is the way clients prove who they are, "none" for no proof.
	Auth  string `json:"auth"`
	Async bool   `json:"async,omitempty"`
	// InFlight is how many requests are served at the moment, Answers how many
	// were answered, by HTTP status.
	InFlight int64          `json:"inFlight"`
	Answers  map[int]uint64 `json:"answers"`
}

// endpointStatus is the state of an Endpoint. mu is held.
func (e *Engine) endpointStatus(name string, spec *specs.Endpoint) *EndpointStatus {
	routes := endpoints.Routes(name, spec)
	es := &EndpointStatus{
		State: UnitStopped, Hosts: spec.Hosts, Path: spec.Path, Function: spec.Function, Auth: spec.Auth.Way(), Async: spec.Async, Answers: map[int]uint64{},
	}
	if len(routes) > 0 {
		es.Methods = routes[0].Methods
	}
	if u := e.units[endpointKey(name)]; u != nil {
		es.State, es.Detail, _, es.Restarts = u.status()
	}
	if st := e.answers[name]; st != nil {
		es.InFlight, es.Answers = st.InFlight.Load(), st.Answers()
	}
	return es
}
