package engine

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/endpoints"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/engine/secrets"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/specs/jsonschema"
	"github.com/sensor-engine/engine/triggers"
)

// Defaults of a delivery.
const (
	DefaultTimeout     = 30 * time.Second
	DefaultConcurrency = 16
)

// Diagnostic codes of checks that need the whole set or the running engine.
const (
	// CodeRouteConflict marks two events or endpoints that ask for the same HTTP
	// route.
	CodeRouteConflict specs.Code = "route-conflict"
	// CodeUnknownField marks an expression that reads a field which the data of
	// the events it is about never has.
	CodeUnknownField specs.Code = "unknown-field"
	// CodeResultLoop marks a dependency on results of calls that its own sensor
	// causes.
	CodeResultLoop specs.Code = "result-loop"
	// CodeEventTooLarge marks a source that accepts larger events than the bus.
	CodeEventTooLarge specs.Code = "event-too-large"
)

// headerRoom is what a record may hold beside the data, in bytes.
const headerRoom = 64 << 10

// Catalog is what can be used in specs: the source types and function kinds.
type Catalog struct {
	Sources   sources.Registry
	Functions triggers.Registry
}

// Types returns the catalog for package specs.
func (c Catalog) Types() specs.Types {
	return specs.Types{Sources: c.Sources.Types(), Functions: c.Functions.Types()}
}

// Loader returns a loader of specs that use this catalog.
func (c Catalog) Loader() specs.Loader { return specs.Loader{Types: c.Types()} }

// Compiler checks and compiles sets of specs. It remembers what it compiled
// by hash, so that a reload costs what changed. It is not safe for concurrent
// use.
type Compiler struct {
	// MaxEvent is the largest data of one event the bus takes, in bytes; 0
	// when it is not known.
	MaxEvent int

	catalog   Catalog
	stamps    reload.Stamper
	programs  map[specs.Ref]compiledSensor
	functions map[specs.Ref]compiledFunction
	endpoints map[specs.Ref]compiledEndpoint
	// passed has the hashes of resources whose functions were found right.
	passed map[specs.Ref]string
}

type compiledSensor struct {
	name    string
	hash    string
	spec    *specs.Sensor
	program *sensors.Program
	found   specs.Diagnostics
}

type compiledFunction struct {
	// hash covers the spec and stamp the content of the files with its schemas.
	hash, stamp   string
	compiled      *triggers.Compiled
	input, output *jsonschema.Schema
	found         specs.Diagnostics
}

// NewCompiler returns a compiler for a catalog.
func NewCompiler(c Catalog) *Compiler {
	return &Compiler{catalog: c, programs: map[specs.Ref]compiledSensor{}, functions: map[specs.Ref]compiledFunction{}, endpoints: map[specs.Ref]compiledEndpoint{}, passed: map[specs.Ref]string{}}
}

// Check finds what is wrong with a set as a whole: dangling references, what
// does not compile, routes in conflict. Resources in invalid are there with
// errors of their own.
func (c *Compiler) Check(set *specs.Set, invalid ...specs.Ref) specs.Diagnostics {
	found := c.catalog.Loader().Check(set, invalid...)
	for ref, r := range set.Resources {
		switch spec := r.Spec.(type) {
		case *specs.Sensor, *specs.Subscription:
			cs := c.sensor(ref, r)
			found = append(found, cs.found...)
			found = append(found, c.fields(set, ref, cs)...)
		case *specs.Function:
			found = append(found, c.function(ref, r, spec).found...)
		case *specs.Endpoint:
			found = append(found, c.endpoint(ref, r, spec).found...)
		case *specs.EventSource:
			found = append(found, c.sizes(ref, spec)...)
			found = append(found, c.events(set, ref, r, spec)...)
		}
		found = append(found, c.calls(set, ref, r)...)
	}
	found = append(found, c.routes(set)...)
	found = append(found, c.loops(set)...)
	return found.Sort()
}

// sensor compiles the Sensor that a resource is or stands for.
func (c *Compiler) sensor(ref specs.Ref, r *specs.Resource) compiledSensor {
	if was, ok := c.programs[ref]; ok && was.hash == r.Hash && len(was.found) == 0 {
		return was
	}
	name, spec := r.Sensor()
	p, found := sensors.Compile(name, spec)
	for i := range found {
		found[i].Ref = ref
	}
	cs := compiledSensor{name: name, hash: r.Hash, spec: spec, program: p, found: found}
	c.programs[ref] = cs
	return cs
}

// env is where an event stands in a set.
func env(set *specs.Set, source, dir string, ev specs.SourceEvent) sources.Env {
	return sources.Env{
		Source: source, Event: ev.Name, Dir: dir,
		Resource: func(ref specs.Ref) *specs.Resource { return set.Resources[ref] },
	}
}

// events finds what is wrong with the intake of events, and what their types
// can only say with the referenced resources at hand.
func (c *Compiler) events(set *specs.Set, ref specs.Ref, r *specs.Resource, es *specs.EventSource) specs.Diagnostics {
	var found specs.Diagnostics
	for _, ev := range es.Events {
		path := fmt.Sprintf("spec.%s.%s", ev.Type, ev.Name)
		intake, ds := sources.CompileIntake(&ev.Intake, path)
		for i := range ds {
			ds[i].Ref = ref
		}
		found = append(found, ds...)
		f := c.catalog.Sources.Lookup(ev.Type)
		if f != nil && f.Payload != nil {
			for _, r := range intake.FieldReads() {
				if !slices.Contains(f.Payload, r.Field) {
					found = append(found, unknownField(ref, r, payload{f.Name, f.Payload}))
				}
			}
		}
		if f == nil || f.Check == nil || !exist(set, ev.Uses) {
			continue
		}
		ck := specs.NewChecker(ref, path, ev.Places)
		f.Check(ev.Config, env(set, ref.Name, filepath.Dir(r.Pos.File), ev), ck)
		found = append(found, ck.Found()...)
	}
	return found
}

// fields finds expressions of a sensor that read what its events never have.
// It looks at dependencies that name one event of an EventSource whose type
// declares its data.
func (c *Compiler) fields(set *specs.Set, ref specs.Ref, cs compiledSensor) specs.Diagnostics {
	if cs.program == nil {
		return nil
	}
	declared := make([]payload, len(cs.spec.Dependencies))
	for i := range cs.spec.Dependencies {
		declared[i] = c.declared(set, &cs.spec.Dependencies[i])
	}
	var found specs.Diagnostics
	cs.program.FieldReads(func(dep int, r expression.FieldRead) {
		p := declared[dep]
		if p.fields == nil || slices.Contains(p.fields, r.Field) {
			return
		}
		d := unknownField(ref, r, p)
		if !slices.ContainsFunc(found, func(o specs.Diagnostic) bool { return o.Pos == d.Pos && o.Path == d.Path }) {
			found = append(found, d)
		}
	})
	return found
}

// payload is what is known of the data of certain events: of what, and the
// fields it may have, nil when they are not known.
type payload struct {
	of     string
	fields []string
}

// declared is what is known of the data of the events a dependency wants.
func (c *Compiler) declared(set *specs.Set, d *specs.Dependency) payload {
	if d.Function != "" {
		return payload{"function's result", sensors.ResultFields()}
	}
	r := set.Resources[specs.Ref{Kind: specs.KindEventSource, Name: d.Source}]
	if r == nil {
		return payload{}
	}
	es, ok := r.Spec.(*specs.EventSource)
	if !ok {
		return payload{}
	}
	i := slices.IndexFunc(es.Events, func(ev specs.SourceEvent) bool { return ev.Name == d.Event })
	if i < 0 || es.Events[i].Intake.Data.Set { // the intake makes other data
		return payload{}
	}
	f := c.catalog.Sources.Lookup(es.Events[i].Type)
	if f == nil {
		return payload{}
	}
	return payload{f.Name, f.Payload}
}

func unknownField(ref specs.Ref, r expression.FieldRead, p payload) specs.Diagnostic {
	d := specs.Diagnostic{
		Pos: r.Pos, Severity: specs.Error, Code: CodeUnknownField, Ref: ref, Path: r.Path,
		Message: fmt.Sprintf("the data of a %s has no field %q", p.of, r.Field),
		Hint:    "it has " + strings.Join(p.fields, ", "),
	}
	if near := expression.Nearest(r.Field, p.fields); near != "" {
		d.Hint = "did you mean " + near + "?"
	}
	return d
}

// exist reports whether all resources are in the set.
func exist(set *specs.Set, refs []specs.Ref) bool {
	return !slices.ContainsFunc(refs, func(ref specs.Ref) bool { return set.Resources[ref] == nil })
}

// sizes finds events that may be larger than the bus takes.
func (c *Compiler) sizes(ref specs.Ref, es *specs.EventSource) specs.Diagnostics {
	var found specs.Diagnostics
	for _, ev := range es.Events {
		f := c.catalog.Sources.Lookup(ev.Type)
		if c.MaxEvent <= 0 || f == nil || f.MaxEvent == nil || f.MaxEvent(ev.Config) <= int64(c.MaxEvent) {
			continue
		}
		found = append(found, specs.Diagnostic{
			Pos: ev.Pos, Severity: specs.Warning, Code: CodeEventTooLarge, Ref: ref, Path: fmt.Sprintf("spec.%s.%s", ev.Type, ev.Name),
			Message: fmt.Sprintf("it accepts events of %s, the bus takes %s: what is larger is refused", specs.Size(f.MaxEvent(ev.Config)), specs.Size(c.MaxEvent)),
			Hint:    "a restart raises the limit of the engine's own bus; on another one raise its max_payload, or set a smaller limit here",
		})
	}
	return found
}

// routes finds events and endpoints whose HTTP routes overlap.
func (c *Compiler) routes(set *specs.Set) specs.Diagnostics {
	type claim struct {
		route sources.Route
		ref   specs.Ref
		who   string // for messages
		path  string // of the diagnostic
		pos   specs.Pos
	}
	var claims []claim
	for ref, r := range set.Resources {
		switch spec := r.Spec.(type) {
		case *specs.Endpoint:
			for _, rt := range endpoints.Routes(ref.Name, spec) {
				claims = append(claims, claim{rt, ref, ref.String(), "spec.path", spec.Places["path"]})
			}
		case *specs.EventSource:
			for _, ev := range spec.Events {
				f := c.catalog.Sources.Lookup(ev.Type)
				if f == nil || f.Routes == nil {
					continue
				}
				for _, rt := range f.Routes(ev.Config, env(set, ref.Name, filepath.Dir(r.Pos.File), ev)) {
					claims = append(claims, claim{rt, ref, ref.String() + ", event " + ev.Name, fmt.Sprintf("spec.%s.%s", ev.Type, ev.Name), ev.Pos})
				}
			}
		}
	}
	// The later one in the files is told of the earlier one.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.pos.File, b.pos.File), cmp.Compare(a.pos.Line, b.pos.Line), cmp.Compare(a.pos.Col, b.pos.Col))
	})
	var found specs.Diagnostics
	meet := func(a, b claim) {
		if !sources.Conflict(a.route, b.route) {
			return
		}
		found = append(found, specs.Diagnostic{
			Pos: b.pos, Severity: specs.Error, Code: CodeRouteConflict, Ref: b.ref, Path: b.path,
			Message: fmt.Sprintf("its route %s meets the route %s of %s, at %s", b.route.Path, a.route.Path, a.who, a.pos),
			Hint:    "give one of them another path or other methods",
			Related: []specs.Pos{a.pos},
		})
	}
	// Plain paths meet only themselves and patterns, which are few.
	plain := map[string][]claim{}
	var patterns []claim
	for _, cl := range claims {
		others := patterns
		if strings.Contains(cl.route.Path, "{") || strings.HasSuffix(cl.route.Path, "/") {
			for _, same := range plain {
				others = append(slices.Clip(others), same...)
			}
			patterns = append(patterns, cl)
		} else {
			others = append(slices.Clip(others), plain[cl.route.Path]...)
			plain[cl.route.Path] = append(plain[cl.route.Path], cl)
		}
		for _, o := range others {
			meet(o, cl)
		}
	}
	return found
}

// isSensor reports whether a resource is a Sensor or stands for one.
func isSensor(r *specs.Resource) bool {
	return r.Kind == specs.KindSensor || r.Kind == specs.KindSubscription
}

// Sensors returns the compiled sensors of a checked set, in the order in which
// the engine has them.
func (c *Compiler) Sensors(set *specs.Set) []evaluate.Sensor { return c.rules(set).Sensors }

// rules compiles the sensors of a checked set.
func (c *Compiler) rules(set *specs.Set) *fold.Rules {
	rules := &fold.Rules{From: map[string]specs.From{}}
	var hashes []string
	for _, s := range c.placed(set) {
		if s.spec.From != "" {
			rules.From[s.name] = s.spec.From
		}
		rules.Sensors = append(rules.Sensors, fold.Sensor{Name: s.name, Hash: s.hash, Program: s.program})
		hashes = append(hashes, s.name+"="+s.hash)
	}
	sum := sha256.Sum256([]byte(strings.Join(hashes, "\n")))
	rules.Hash = hex.EncodeToString(sum[:8])
	return rules
}

// forget drops what the compiler remembers of resources not in set.
func (c *Compiler) forget(set *specs.Set) {
	keep(c.programs, set)
	keep(c.functions, set)
	keep(c.endpoints, set)
	keep(c.passed, set)
}

// keep removes from known what is of resources not in set.
func keep[V any](known map[specs.Ref]V, set *specs.Set) {
	maps.DeleteFunc(known, func(ref specs.Ref, _ V) bool { return set.Resources[ref] == nil })
}

// callees makes and keeps the functions that triggers call. The goroutine of the
// engine uses it; what trials say anybody may ask.
type callees struct {
	compiler *Compiler
	host     triggers.Host
	log      *slog.Logger
	data     string
	secrets  *secrets.Resolver
	mask     func([]byte) []byte
	made     map[string]version     // in force, by name of the function or trigger
	slots    map[string]*jobs.Slots // by name of the function
	limiters map[string]callLimit   // of functions and triggers, by kind and name

	// tried has room for one: there is news of a trial.
	tried  chan struct{}
	ending sync.WaitGroup // trials that end

	mu     sync.Mutex
	trials map[string]*trial // by name, as made
}

// callLimit is a rate limit in force.
type callLimit struct {
	spec   specs.CallRate
	bucket *rate.Limiter
	keyed  *jobs.KeyLimit // instead of bucket
}

// outdated returns the names of functions whose files have changed since their
// newest version was made, sorted.
func (c *callees) outdated(set *specs.Set) []string {
	var names []string
	trials := c.onTrial()
	for name, m := range c.made {
		if t := trials[name]; t != nil {
			m = t.version
		}
		if c.compiler.contentOf(m.call, m.dir) != m.content {
			names = append(names, name)
			continue
		}
		ref := specs.Ref{Kind: specs.KindFunction, Name: name}
		if r := set.Resources[ref]; r != nil && c.compiler.function(ref, r, r.Spec.(*specs.Function)).stamp != m.stamp {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// limits returns how many calls of each Function may run at the same time: what
// it says, else the default or the most that one of its triggers says.
func limits(set *specs.Set) map[string]int {
	out := map[string]int{}
	for ref, r := range set.Resources {
		if fn, ok := r.Spec.(*specs.Function); ok {
			out[ref.Name] = fn.Concurrency
			if fn.Concurrency == 0 {
				out[ref.Name] = DefaultConcurrency
			}
		}
	}
	for _, r := range set.Resources {
		_, s := r.Sensor()
		if s == nil {
			continue
		}
		for _, t := range s.Calls() {
			if fr := set.Resources[specs.Ref{Kind: specs.KindFunction, Name: t.Function}]; t.Inline == nil && fr != nil && fr.Spec.(*specs.Function).Concurrency == 0 {
				out[t.Function] = max(out[t.Function], t.Concurrency)
			}
		}
	}
	return out
}

// table builds the table of triggers for a checked set, with those of
// Functions that are called by hand. What did not change keeps its function. A
// changed one that has to start first does so on trial, and the version before
// goes on meanwhile, if it works. A function that cannot be made is an error, and
// nothing of the new table stays behind.
func (c *callees) table(set *specs.Set) (map[jobs.TriggerRef]*jobs.Trigger, error) {
	asked := c.compiler.asked(set)
	next := map[string]version{}
	was, trials := c.onTrial(), map[string]*trial{}
	limit := limits(set)
	slots := make(map[string]*jobs.Slots, len(limit))
	limiters := map[string]callLimit{}
	// bound makes the limit of what has this name hold for a trigger, too; it is
	// kept until the spec says another rate.
	bound := func(t *jobs.Trigger, name string, spec *specs.CallRate) {
		if spec == nil {
			return
		}
		l, ok := limiters[name]
		if !ok {
			if l, ok = c.limiters[name]; !ok || l.spec != *spec {
				l = limitOf(*spec)
			}
			limiters[name] = l
		}
		if l.keyed != nil {
			t.KeyLimits = append(t.KeyLimits, l.keyed)
		} else {
			t.Limits = append(t.Limits, l.bucket)
		}
	}
	var fresh []*version
	table := map[jobs.TriggerRef]*jobs.Trigger{}
	get := func(w wish) (version, error) {
		if v, ok := next[w.name]; ok {
			return v, nil
		}
		call := w.call
		dir := filepath.Dir(w.resource.Pos.File)
		// Paths in its config are relative to the directory.
		content := c.compiler.contentOf(call, dir)
		hash := strings.Join([]string{w.hash, dir, w.compiled.stamp}, " ")
		f := c.compiler.catalog.Functions.Lookup(call.Kind)
		if f == nil {
			return version{}, fmt.Errorf("%s: function kind %q does not exist", call.Pos, call.Kind)
		}
		same := func(v *version) bool {
			if v.hash != hash || v.content == content || f.Check == nil {
				return v.hash == hash && v.content == content
			}
			// Files that are not right replace nothing.
			ck := specs.NewChecker(specs.Ref{}, "", call.Places)
			f.Check(call.Config, dir, ck)
			return ck.Found().HasErrors()
		}
		before, known := c.made[w.name]
		switch t := was[w.name]; {
		case t != nil && same(&t.version):
			if t.over(&before) {
				before = t.version
			} else {
				trials[w.name] = t
			}
			next[w.name] = before
			return before, nil
		case known && same(&before):
			next[w.name] = before
			return before, nil
		}
		pinned := c.secrets.Pin(secretsOf(w.resource))
		made, err := f.Make(call.Config, triggers.Env{
			Host: c.host, Dir: dir, Concurrency: w.limit, Logger: c.log.With("function", w.name), Data: c.data, Secret: pinned.Secret,
		})
		if err != nil {
			return version{}, fmt.Errorf("%s: %s: %w", call.Pos, w.name, err)
		}
		contract := &triggers.Contract{
			Function: made, Input: w.compiled.input, Output: w.compiled.output, Resolve: pinned.Values, Mask: c.mask, Host: c.host, MaxHops: bus.MaxHops,
		}
		callee := &jobs.Callee{Name: w.name, Function: contract, Mask: c.mask, Slots: slots[w.name]}
		v := &version{hash: hash, callee: callee, limit: w.limit, call: call, dir: dir, content: content, stamp: w.compiled.stamp}
		if fn, ok := w.resource.Spec.(*specs.Function); ok {
			contract.Secrets, v.resource = fn.Secrets, w.resource
			v.needsRequest = w.compiled.compiled != nil && w.compiled.compiled.NeedsRequest()
			callee.Values = func(call *triggers.Call, _ map[string]any) triggers.Values {
				return w.compiled.compiled.Values(call, pinned.Secret)
			}
		} else {
			callee.Values = func(_ *triggers.Call, rendered map[string]any) triggers.Values {
				return triggers.NewValues(rendered, pinned.Secret)
			}
		}
		fresh = append(fresh, v)
		if _, starts := made.(triggers.Preparer); starts && known && before.ready() && (v.resource != nil || constant(before.call, call)) {
			at := specs.Diagnostic{Pos: call.Pos, Ref: w.resource.Ref(), Path: w.path + "." + call.Kind}
			t := &trial{version: *v, at: at}
			if before.resource != nil {
				t.before = before.resource.Hash
			}
			trials[w.name] = t
			next[w.name] = before
			return before, nil
		}
		next[w.name] = *v
		return *v, nil
	}
	// named is the version of the Function of a name that is in force.
	named := func(name string) (v version, fn *specs.Function, err error) {
		ref := specs.Ref{Kind: specs.KindFunction, Name: name}
		r := set.Resources[ref]
		if r == nil {
			return v, nil, nil // a checked set has it
		}
		if slots[name] == nil {
			if slots[name] = c.slots[name]; slots[name] == nil {
				slots[name] = jobs.NewSlots(limit[name])
			}
		}
		fn = r.Spec.(*specs.Function)
		v, err = get(wish{
			name: name, hash: set.HashOf(ref) + " " + strconv.Itoa(limit[name]), resource: r, call: &fn.Call, path: "spec",
			limit: limit[name], compiled: c.compiler.function(ref, r, fn),
		})
		if err != nil {
			return v, nil, err
		}
		return v, v.resource.Spec.(*specs.Function), nil
	}
	add := func(t *jobs.Trigger, d specs.Delivery) {
		t.Timeout, t.Concurrency, t.Policy, t.Block = d.Timeout.D(), d.Concurrency, triggers.PolicyOf(d.Retry), d.Overflow == "block"
		t.Ordered, t.Breaker = d.Order == "key" && !t.Direct, breakerOf(d.Breaker)
		if t.Timeout == 0 {
			t.Timeout = DefaultTimeout
		}
		if t.Concurrency == 0 {
			t.Concurrency = DefaultConcurrency
		}
		table[t.Ref] = t
	}
	fill := func() error {
		for ref, r := range set.Resources {
			if _, ok := r.Spec.(*specs.Function); ok {
				v, fn, err := named(ref.Name)
				if err != nil {
					return err
				}
				d := fn.Delivery
				d.Concurrency = v.limit
				t := &jobs.Trigger{
					Ref: jobs.TriggerRef{Sensor: jobs.SensorExec, Trigger: ref.Name}, Callee: v.callee, Direct: true, Hash: v.resource.Hash,
					Tell: asked.Wants(ref.Name, jobs.SensorExec, ref.Name),
				}
				bound(t, "function "+ref.Name, fn.RateLimit)
				add(t, d)
			}
			if ep, ok := r.Spec.(*specs.Endpoint); ok {
				v, fn, err := named(ep.Function)
				if err != nil {
					return err
				}
				if fn == nil {
					continue
				}
				d := inherit(specs.Delivery{Timeout: ep.Timeout}, fn.Delivery)
				d.Concurrency = v.limit
				t := &jobs.Trigger{
					Ref: jobs.TriggerRef{Sensor: jobs.SensorEndpoint, Trigger: ref.Name}, Callee: v.callee, Direct: true, Hash: r.Hash,
					Tell: asked.Wants(ep.Function, jobs.SensorEndpoint, ref.Name),
				}
				bound(t, "function "+ep.Function, fn.RateLimit)
				add(t, d)
			}
			if !isSensor(r) {
				continue
			}
			cs := c.compiler.sensor(ref, r)
			// call makes a trigger of what a sensor calls, nil when it cannot be called.
			call := func(path string, t *specs.Trigger, inputPath string) (*jobs.Trigger, error) {
				d := t.Delivery
				var v version
				var ofFunction *specs.CallRate
				var err error
				if t.Inline != nil {
					concurrency := d.Concurrency
					if concurrency == 0 {
						concurrency = DefaultConcurrency
					}
					v, err = get(wish{name: calleeName(ref, t), hash: set.HashOf(ref), resource: r, call: t.Inline, path: path, limit: concurrency})
				} else {
					var fn *specs.Function
					if v, fn, err = named(t.Function); fn != nil {
						d = inherit(d, fn.Delivery)
						ofFunction = fn.RateLimit
					}
				}
				if err != nil || v.callee == nil {
					return nil, err
				}
				out := &jobs.Trigger{
					Ref: jobs.TriggerRef{Sensor: cs.name, Trigger: t.Name}, Callee: v.callee, InputPath: inputPath, Secrets: t.Secrets, Spread: t.Spread,
					Tell: asked.Wants(v.callee.Name, cs.name, t.Name),
				}
				bound(out, "trigger "+cs.name+"/"+t.Name, t.RateLimit)
				bound(out, "function "+t.Function, ofFunction)
				add(out, d)
				return out, nil
			}
			program := cs.program
			for i := range cs.spec.Triggers {
				t, path := &cs.spec.Triggers[i], "spec"
				if r.Kind == specs.KindSensor {
					path = fmt.Sprintf("spec.triggers[%d]", i)
				}
				out, err := call(path, t, program.InputPath(i))
				if err != nil {
					return err
				}
				if out == nil {
					continue
				}
				out.Render = func(events []sensors.Contributing, item int) (map[string]any, error) {
					return program.RenderTrigger(i, events, item)
				}
				h := t.Handler()
				if h == nil {
					continue
				}
				if handler, err := call(path+".deadLetter", h, program.DeadLetterInputPath(i)); err != nil {
					return err
				} else if handler != nil {
					out.DeadLetter = &jobs.DeadLetter{SpecHash: cs.hash, Spread: h.Spread, Render: func(f sensors.Failure) (map[string]any, error) {
						return program.RenderDeadLetter(i, f)
					}}
				}
			}
		}
		return nil
	}
	if err := fill(); err != nil {
		for _, v := range fresh {
			v.close()
		}
		return nil, err
	}
	for name, s := range slots {
		s.SetLimit(next[name].limit)
	}
	c.made, c.slots, c.limiters = next, slots, limiters
	for name, t := range trials {
		if was[name] != t {
			c.begin(t)
		}
	}
	c.mu.Lock()
	c.trials = trials
	c.mu.Unlock()
	for name, t := range was {
		if trials[name] != t {
			c.end(t, next[name].callee != t.callee)
		}
	}
	return table, nil
}

// wish is a version of a function as a set has it.
type wish struct {
	name, hash string
	// resource is what declares it and path where in that; call is its config.
	resource *specs.Resource
	path     string
	call     *specs.Call
	limit    int
	compiled compiledFunction // of a Function
}

// secretsOf are the names of the Secrets a resource uses.
func secretsOf(r *specs.Resource) []string {
	var names []string
	for _, ref := range r.Uses {
		if ref.Kind == specs.KindSecret {
			names = append(names, ref.Name)
		}
	}
	return names
}

// constant reports whether nothing in two configs depends on what a sensor
// rendered, so that one can be called with what was rendered for the other.
func constant(a, b *specs.Call) bool {
	for _, call := range [...]*specs.Call{a, b} {
		if compiled, _ := triggers.CompileConfig(call.Config); compiled == nil || !compiled.Constant() {
			return false
		}
	}
	return true
}

// needRequest reports whether a Function of a checked set reads `request`, or one
// that goes on before it.
func (c *callees) needRequest(set *specs.Set) bool {
	for ref, r := range set.Resources {
		if spec, ok := r.Spec.(*specs.Function); ok {
			if compiled := c.compiler.function(ref, r, spec).compiled; compiled != nil && compiled.NeedsRequest() {
				return true
			}
		}
	}
	for _, v := range c.made {
		if v.needsRequest {
			return true
		}
	}
	return false
}

// limitOf is the limit of a spec, of which nothing is used up.
func limitOf(s specs.CallRate) callLimit {
	per, burst := cmp.Or(s.Per.D(), time.Second), cmp.Or(s.Burst, s.Calls)
	if s.By == "key" {
		return callLimit{spec: s, keyed: jobs.NewKeyLimit(s.Calls, per, burst)}
	}
	return callLimit{spec: s, bucket: rate.NewLimiter(rate.Limit(float64(s.Calls)/per.Seconds()), burst)}
}

// The defaults of a breaker.
const (
	defaultFailures = 5
	defaultPause    = 30 * time.Second
	defaultMaxPause = 5 * time.Minute
)

func breakerOf(s *specs.Breaker) jobs.Breaker {
	if s == nil {
		return jobs.Breaker{}
	}
	b := jobs.Breaker{Failures: cmp.Or(s.Failures, defaultFailures), Wait: cmp.Or(s.Wait.D(), defaultPause), Max: cmp.Or(s.Max.D(), defaultMaxPause)}
	if s.Wait == 0 {
		b.Wait = min(b.Wait, b.Max)
	}
	b.Max = max(b.Max, b.Wait)
	return b
}

// inherit fills a trigger's delivery in from its function's. A rate limit is not
// inherited: both hold.
func inherit(t, f specs.Delivery) specs.Delivery {
	if t.Timeout == 0 {
		t.Timeout = f.Timeout
	}
	if t.Concurrency == 0 {
		t.Concurrency = f.Concurrency
	}
	if t.Retry == nil {
		t.Retry = f.Retry
	}
	if t.Breaker == nil {
		t.Breaker = f.Breaker
	}
	if t.Order == "" {
		t.Order = f.Order
	}
	if t.Overflow == "" {
		t.Overflow = f.Overflow
	}
	return t
}
