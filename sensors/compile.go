package sensors

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/specs/schedule"
)

// MaxDependencies is the most dependencies of one sensor.
const MaxDependencies = 64

// allDeps is the set of all dependencies there can be.
const allDeps = 1<<MaxDependencies - 1

// tableDeps is the most dependencies of a condition that is decided by a
// table, when only their arrival counts.
const tableDeps = 8

// Program is a compiled sensor. It is not changed after it was made and is
// safe for concurrent use.
type Program struct {
	name        string
	deps        []dependency
	correlate   *expression.Program
	routeNeed   need // what correlate reads
	within      time.Duration
	reset       schedule.Rule // nil for never
	limits      Limits
	triggers    []trigger
	names       []string // of the triggers
	fingerprint string
	// exact is true when every dependency names one EventSource and event, or
	// one type; guarded when each also has a guard, by which an index finds it.
	exact, guarded bool
	// several has a bit for each dependency one event does not make arrive.
	several uint64
	// distinct has a bit for each dependency that has one.
	distinct uint64
	// absents has a bit for each dependency that is declared absent.
	absents uint64
	// steps are the triggers that follow others, each after those it follows.
	steps []int
}

// dependency is one compiled dependency.
type dependency struct {
	name, ident                  string
	source, event, kind, subject pattern
	// transform gives the data that when, correlate and all after them see, nil
	// for the event's own; raw is what it reads. It is deterministic, so what it
	// gave is not kept but made again.
	transform transformer
	raw       need
	when      *expression.Program
	need      need // what transform, when and guards read
	pick      specs.Pick
	// count is how many must wait; list is true when expressions see a list.
	count int
	list  bool
	// distinct gives the value of which one event waits, nil for any.
	distinct     *expression.Program
	distinctNeed need
	// For one that is declared absent: how long, in nanoseconds, after the event
	// of which other.
	wait  int64
	after int
	// guards must all hold, in this order, before when is asked, which is not
	// needed when decided is true. Those of type and subject come first.
	guards  []expression.Guard
	first   need // what the first guard reads
	decided bool
}

// trigger is one compiled trigger.
type trigger struct {
	name string
	// refs has a bit for each dependency the condition refers to.
	refs uint64
	cond *expression.Program
	// absent are those of refs that are declared absent; the condition does not
	// hold without the absence of those in vital.
	absent, vital uint64
	cooldown      int64 // in nanoseconds
	// table decides by arrival alone: bit i is the result when the set i of
	// the dependencies in refs, in ascending order, has arrived. nil when the
	// condition reads events.
	table    []bool
	condNeed need
	// templates to render, in the order of the spec; need is what they and the
	// condition read of the events.
	templates []template
	need      need
	// reads has a bit for each dependency whose events the templates may read.
	reads uint64
	// queued is true when a referenced dependency keeps more than one event, so
	// that one step may fire more than once.
	queued bool
	// gathers is set when the trigger waits for quiet or gathers a batch; in its
	// templates, and in those of the steps after it, batched is true then.
	gathers *gathering
	batched bool
	// fan is set when it fires once for each item of a list.
	fan *fan
	// follows are the triggers this one is a later step of, after their failure
	// when failure is true; nil for one that its condition fires. Followed is true
	// when others follow it, so that its result matters. root is the first of
	// those its workflow begins with.
	follows           []int
	failure, followed bool
	root              int
	// results is true when the condition or a template reads the results of
	// earlier steps, itemized when a template reads the item of a fan-out.
	results, itemized bool
	// inputPath is that of its input among the rendered values, "" for none.
	inputPath string
	spread    bool // what it fires need not stay together
	// deadLetter has the templates of what is called for its dead letters, nil
	// when nothing is. It fires with none of the program's triggers.
	deadLetter *trigger
}

// template is one to render, or, without one, the list of the data of the
// events of a batch.
type template struct {
	path string
	text bool
	tmpl *expression.Template
}

// Compile compiles a sensor that is valid in itself. Diagnostics carry no
// resource; the program is nil when there are errors.
func Compile(name string, s *specs.Sensor) (*Program, specs.Diagnostics) {
	c := &compilation{spec: s, program: &Program{name: name, within: s.Within.D(), limits: limits(s.Limits)}}
	c.compile()
	if c.found.HasErrors() {
		return nil, c.found.Sort()
	}
	return c.program, c.found.Sort()
}

type compilation struct {
	spec    *specs.Sensor
	program *Program
	// known are the dependencies, scope the names of conditions.
	known  []expression.Dep
	scope  expression.Scope
	byName map[string]int
	// sequence are the triggers, each after those it follows; scopes are the
	// names their templates know, then those of their dead letters.
	sequence []int
	scopes   []expression.Scope
	found    specs.Diagnostics
}

func (c *compilation) report(sev specs.Severity, pos specs.Pos, code specs.Code, path, hint, format string, args ...any) {
	c.found = append(c.found, specs.Diagnostic{
		Pos: pos, Severity: sev, Code: code, Path: path, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (c *compilation) expr(e specs.Expr, path string, sc expression.Scope, want expression.Want) *expression.Program {
	p, ds := expression.Compile(e, path, sc, want)
	c.found = append(c.found, ds...)
	return p
}

func (c *compilation) compile() {
	s, p := c.spec, c.program
	if len(s.Dependencies) > MaxDependencies {
		c.report(specs.Error, s.Dependencies[MaxDependencies].Pos, CodeTooMany, "spec.dependencies",
			"split the sensor", "%d dependencies, the limit is %d", len(s.Dependencies), MaxDependencies)
		return
	}
	c.byName = make(map[string]int, len(s.Dependencies))
	for i := range s.Dependencies {
		d := &s.Dependencies[i]
		c.dependency(i, d)
		c.byName[d.Name] = i
		c.known = append(c.known, expression.Dep{Name: d.Name, List: c.program.deps[i].list, Absent: d.Absent != nil})
	}
	c.absences()
	p.reset = c.reset()
	c.scope = expression.FiringScope(c.known...)
	if !s.Correlate.IsZero() {
		if p.correlate = c.expr(s.Correlate, "spec.correlate", expression.EventScope(), expression.WantAny); p.correlate != nil {
			p.routeNeed.add(p.correlate)
			for i := range p.deps {
				if p.deps[i].transform != nil {
					p.deps[i].need.add(p.correlate)
				}
			}
		}
	}
	var shared *expression.Program
	if !s.Condition.IsZero() {
		shared = c.condition(s.Condition, "spec.condition")
	}
	for i := range s.Triggers {
		p.names = append(p.names, s.Triggers[i].Name)
	}
	p.triggers = make([]trigger, len(s.Triggers))
	c.order()
	var used uint64
	for _, i := range c.sequence {
		t := c.trigger(i, &s.Triggers[i], shared)
		used |= t.refs
		p.triggers[i] = t
		if h := s.Triggers[i].Handler(); h != nil {
			p.triggers[i].deadLetter = c.deadLetter(i, h)
		}
	}
	c.workflow()
	if !c.found.HasErrors() {
		for i := range s.Dependencies {
			if used&(1<<i) == 0 {
				c.report(specs.Warning, s.Dependencies[i].Pos, CodeUnusedDependency, fmt.Sprintf("spec.dependencies[%d]", i),
					"name it in a condition or remove it", "no condition refers to %s", s.Dependencies[i].Name)
			}
		}
	}
	p.shareFields()
	p.exact = !slices.ContainsFunc(p.deps, func(d dependency) bool {
		return !(d.source.exact() && d.event.exact()) && !d.kind.exact()
	})
	p.guarded = p.exact && !slices.ContainsFunc(p.deps, func(d dependency) bool { return !d.indexable() })
	p.fingerprint = fingerprint(s)
}

// absences resolves what begins the time of the dependencies declared absent.
func (c *compilation) absences() {
	for i := range c.spec.Dependencies {
		a := c.spec.Dependencies[i].Absent
		if a == nil {
			continue
		}
		d := &c.program.deps[i]
		after, ok := c.byName[a.After]
		if first := c.spec.Dependencies[after]; !ok || first.Absent != nil || first.Count > 0 || first.Pick != "" && first.Pick != specs.PickLatest {
			c.report(specs.Error, c.spec.Dependencies[i].Pos, CodeAbsentAfter, fmt.Sprintf("spec.dependencies[%d].absent.after", i),
				"name one with pick: latest, without count and absent", "dependency %q cannot begin the time of %s", a.After, d.name)
			continue
		}
		d.wait, d.after = int64(a.For), after
		c.program.absents |= 1 << i
	}
}

// refer completes what the condition of a trigger refers to: an absence also
// to the event that begins its time.
func (p *Program) refer(t *trigger) {
	t.absent = t.refs & p.absents
	for a := t.absent; a != 0; a &= a - 1 {
		t.refs |= 1 << p.deps[bits.TrailingZeros64(a)].after
	}
}

// vitalAbsences are those without which the condition does not hold.
func (c *compilation) vitalAbsences(t *trigger) uint64 {
	if t.table == nil {
		var vital uint64
		if t.cond != nil {
			for _, name := range t.cond.Absences() {
				vital |= 1 << c.byName[name]
			}
		}
		return vital
	}
	vital := t.absent
	for i, holds := range t.table {
		if holds {
			vital &= t.set(i)
		}
	}
	return vital
}

// set is the set of dependencies an index into the table stands for.
func (t *trigger) set(i int) (set uint64) {
	for refs := t.refs; refs != 0; refs, i = refs&(refs-1), i>>1 {
		if i&1 != 0 {
			set |= refs & -refs
		}
	}
	return set
}

// shareFields lets the first expression that reads the payload of an event
// have all fields decoded that this program's others will.
func (p *Program) shareFields() {
	var union need
	if p.correlate != nil {
		union.addFields(p.correlate)
	}
	for i := range p.deps {
		// What comes after a transform reads what it gives.
		if t := p.deps[i].transform; t != nil {
			union.addFields(t)
		} else if w := p.deps[i].when; w != nil {
			union.addFields(w)
		}
	}
	p.routeNeed.fields, p.routeNeed.whole = union.fields, union.whole
	for i := range p.deps {
		d := &p.deps[i]
		d.need.fields, d.need.whole = union.fields, union.whole
		if len(d.guards) > 0 {
			d.first = need{names: d.guards[0].Path[:1], fields: union.fields, whole: union.whole}
		}
	}
}

func (c *compilation) dependency(i int, d *specs.Dependency) {
	path := fmt.Sprintf("spec.dependencies[%d]", i)
	if expression.Reserved(expression.Ident(d.Name)) {
		c.report(specs.Error, d.Pos, CodeReservedName, path+".name", "choose another name",
			"%s has another meaning in expressions", d.Name)
	}
	if d.Name != "" && '0' <= d.Name[0] && d.Name[0] <= '9' {
		c.report(specs.Error, d.Pos, CodeReservedName, path+".name", "let it begin with a letter",
			"%s begins with a digit, so expressions cannot refer to it", d.Name)
	}
	out := dependency{
		name: d.Name, ident: expression.Ident(d.Name), pick: d.Pick,
		source: newPattern(d.Source), event: newPattern(d.Event), kind: newPattern(d.Type), subject: newPattern(d.Subject),
	}
	if d.Function != "" {
		out.source, out.event = newPattern(bus.SourceFunction), newPattern(d.Function)
		switch d.Outcome {
		case specs.OutcomeSucceeded:
			out.kind = newPattern(bus.TypeFunctionSucceeded)
		case specs.OutcomeFailed:
			out.kind = newPattern(bus.TypeFunctionFailed)
		}
	}
	if out.pick == "" {
		out.pick = specs.PickLatest
	}
	out.count, out.list = max(d.Count, 1), d.Count > 0 || out.pick == specs.PickAll
	if out.count > 1 {
		c.program.several |= 1 << i
	}
	if out.transform = c.transform(d, path+".transform"); out.transform != nil {
		out.raw.add(out.transform)
		out.need.add(out.transform)
	}
	if !d.When.IsZero() {
		if out.when = c.expr(d.When, path+".when", expression.EventScope(d.Name), expression.WantBool); out.when != nil {
			out.need.add(out.when)
		}
	}
	if !d.Distinct.IsZero() {
		if out.distinct = c.expr(d.Distinct, path+".distinct", expression.EventScope(d.Name), expression.WantAny); out.distinct != nil {
			out.distinctNeed.add(out.distinct)
			c.program.distinct |= 1 << i
		}
	}
	out.guard()
	c.program.deps = append(c.program.deps, out)
}

// guard collects the guards of a dependency: its exact type and subject, when
// they do not select the bucket of the index anyway, and those of its filter,
// unless it filters what a transform gives.
func (d *dependency) guard() {
	selector := func(p pattern, attribute string) {
		if !p.exact() {
			return
		}
		key, _ := expression.ScalarKey(p.text)
		d.guards = append(d.guards, expression.Guard{Path: []string{attribute}, Keys: []string{key}})
		d.need.names = union(d.need.names, []string{attribute})
	}
	if d.source.exact() && d.event.exact() {
		selector(d.kind, "type")
	}
	selector(d.subject, "subject")
	if d.when != nil && d.transform == nil {
		guards, only := d.when.Guards()
		d.guards, d.decided = append(d.guards, guards...), only
	}
}

// indexable reports whether the first guard decides before anything that could
// say otherwise: patterns of type and subject are looked at by selects only.
func (d *dependency) indexable() bool {
	if len(d.guards) == 0 || d.subject.glob {
		return false
	}
	if d.source.exact() && d.event.exact() {
		return !d.kind.glob
	}
	return d.source.text == "" && d.event.text == ""
}

func (c *compilation) condition(e specs.Expr, path string) *expression.Program {
	p := c.expr(e, path, c.scope, expression.WantBool)
	if p != nil && len(p.Dependencies()) == 0 {
		c.report(specs.Error, e.Pos.At(1, 1), CodeNoDependency, path, "name the dependencies it waits for",
			"the condition refers to no dependency, so no event would make it fire")
		return nil
	}
	return p
}

func (c *compilation) trigger(i int, s *specs.Trigger, shared *expression.Program) trigger {
	path := fmt.Sprintf("spec.triggers[%d]", i)
	t := trigger{name: s.Name, cond: shared, cooldown: int64(s.Cooldown), gathers: newGathering(s), root: i, spread: s.Spread}
	t.batched = t.gathers != nil && t.gathers.size > 0
	if s.Follows() != nil {
		c.step(i, &t, s, path)
	} else {
		c.root(&t, s, path)
	}
	c.scopes[i] = c.templateScope(&t)
	if s.Foreach != nil {
		c.fan(i, &t, s.Foreach, path)
	}
	if !s.Input.Set && t.gathers != nil && t.batched {
		t.inputPath = path + ".input"
		t.need.all, t.reads = true, allDeps
		t.templates = append(t.templates, template{path: t.inputPath})
	}
	c.templates(i, &t, s)
	for d := range c.program.deps {
		if t.refs&(1<<d) != 0 && c.program.deps[d].pick == specs.PickFirst {
			t.queued = true
		}
	}
	return t
}

// templates compiles the input and the config of what a trigger calls.
func (c *compilation) templates(i int, t *trigger, s *specs.Trigger) {
	if s.Input.Set {
		tmpl, ds := expression.CompileTemplate(s.Input, c.scopes[i])
		t.inputPath = s.Input.Path
		c.template(i, t, s.Input.Path, s.Input.Pos, false, tmpl, ds)
	}
	if s.Inline != nil {
		c.config(i, t, reflect.ValueOf(s.Inline.Config))
	}
}

// root compiles what makes a trigger fire that follows no other.
func (c *compilation) root(t *trigger, s *specs.Trigger, path string) {
	switch {
	case !s.Condition.IsZero():
		t.cond = c.condition(s.Condition, path+".condition")
	case c.spec.Condition.IsZero():
		t.refs = 1<<len(c.spec.Dependencies) - 1
		if len(c.spec.Dependencies) > tableDeps {
			t.cond = c.expr(all(c.spec.Dependencies), path+".condition", c.scope, expression.WantBool)
		} else {
			t.table = make([]bool, 1<<len(c.spec.Dependencies))
			t.table[len(t.table)-1] = true
		}
		c.program.refer(t)
	}
	if t.cond != nil && t.table == nil {
		for _, name := range t.cond.Dependencies() {
			t.refs |= 1 << c.byName[name]
		}
		c.program.refer(t)
		t.condNeed.add(t.cond)
		if t.condNeed.none() && bits.OnesCount64(t.refs) <= tableDeps {
			t.table = c.program.tabulate(t)
		}
	}
	t.vital = c.vitalAbsences(t)
	t.need = t.condNeed
}

// all is the default condition.
func all(deps []specs.Dependency) specs.Expr {
	names := make([]string, len(deps))
	for i := range deps {
		names[i] = expression.Ident(deps[i].Name)
		if deps[i].Absent != nil {
			names[i] = "absent(" + names[i] + ")"
		}
	}
	return specs.Expr{Source: strings.Join(names, " && ")}
}

// tabulate evaluates a condition that only asks what has arrived for every
// case there is.
func (p *Program) tabulate(t *trigger) []bool {
	table := make([]bool, 1<<bits.OnesCount64(t.refs))
	for i := range table {
		env := make(map[string]any, 8)
		bit := 0
		for d := range p.deps {
			if t.refs&(1<<d) == 0 {
				continue
			}
			if i&(1<<bit) != 0 {
				env[p.deps[d].ident] = p.deps[d].mark()
			}
			bit++
		}
		ok, err := t.cond.Bool(env)
		if err != nil { // not about arrival alone after all
			return nil
		}
		table[i] = ok
	}
	return table
}

// mark stands for an arrived event of which nothing is read.
func (d *dependency) mark() any {
	switch {
	case d.wait > 0:
		return true
	case d.list:
		return []any{nil}
	}
	return map[string]any{}
}

// config compiles all templates below v, in the order of fields and keys.
func (c *compilation) config(i int, t *trigger, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			c.config(i, t, v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for at := range v.Len() {
			c.config(i, t, v.Index(at))
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			c.config(i, t, v.MapIndex(k))
		}
	case reflect.Struct:
		switch f := v.Interface().(type) {
		case specs.Text:
			tmpl, ds := expression.CompileText(f, c.scopes[i])
			if tmpl == nil || !tmpl.Constant() {
				c.template(i, t, f.Path, f.Pos.Pos, true, tmpl, ds)
			}
		case specs.Template:
			if !f.Set {
				return
			}
			tmpl, ds := expression.CompileTemplate(f, c.scopes[i])
			if tmpl == nil || !tmpl.Constant() {
				c.template(i, t, f.Path, f.Pos, false, tmpl, ds)
			}
		default:
			for at := range v.NumField() {
				if v.Type().Field(at).IsExported() {
					c.config(i, t, v.Field(at))
				}
			}
		}
	}
}

func (c *compilation) template(i int, t *trigger, path string, pos specs.Pos, text bool, tmpl *expression.Template, ds specs.Diagnostics) {
	c.found = append(c.found, ds...)
	if tmpl == nil {
		return
	}
	c.waits(i, t, path, pos, tmpl.Dependencies())
	t.need.add(tmpl)
	vars := tmpl.Variables()
	t.results = t.results || slices.Contains(vars, "triggers")
	t.itemized = t.itemized || slices.Contains(vars, "item") || slices.Contains(vars, "index")
	t.templates = append(t.templates, template{path: path, text: text, tmpl: tmpl})
}

// waits reports dependencies that are read but not waited for.
func (c *compilation) waits(i int, t *trigger, path string, pos specs.Pos, names []string) {
	refs, name := t.refs, t.name
	if t.root != i {
		refs, name = c.program.triggers[t.root].refs, c.program.names[t.root]
	}
	if refs == 0 {
		return // its condition has errors
	}
	for _, dep := range names {
		switch d := c.byName[dep]; {
		case c.program.absents&(1<<d) != 0:
			c.report(specs.Error, pos, CodeNeverArrives, path, "give each case its own trigger",
				"the template asks whether %s is absent, which only a condition can", dep)
		case refs&(1<<d) == 0:
			c.report(specs.Error, pos, CodeNeverArrives, path, "name it in the condition, or read a dependency the condition names",
				"the template reads %s, but the condition of trigger %s does not wait for it", dep, name)
		default:
			t.reads |= 1 << d
		}
	}
	if t.batched {
		t.reads = allDeps // by way of the list
	}
}

// templateScope are the names the templates of a trigger know.
func (c *compilation) templateScope(t *trigger) expression.Scope {
	sc := c.scope
	if t.batched {
		var known []expression.Dep
		for d := range c.known {
			if refs := c.program.rootOf(t).refs; refs == 0 || refs&(1<<d) != 0 && !c.known[d].Absent {
				known = append(known, c.known[d])
			}
		}
		sc = expression.BatchScope(known...)
	}
	if t.follows != nil {
		sc = sc.WithResults(c.earlier(t)...)
	}
	return sc
}

// fingerprint covers what kept events depend on: the dependencies, their order
// and the correlation. Triggers and the window may change around kept state.
func fingerprint(s *specs.Sensor) string {
	h := sha256.New()
	put := func(s string) {
		h.Write(strconv.AppendInt(nil, int64(len(s)), 10))
		h.Write([]byte{':'})
		h.Write([]byte(s))
	}
	put(s.Correlate.Source)
	for i := range s.Dependencies {
		d := &s.Dependencies[i]
		pick := d.Pick
		if pick == "" {
			pick = specs.PickLatest
		}
		for _, v := range []string{d.Name, d.Source, d.Event, d.Type, d.Subject, d.When.Source, string(pick)} {
			put(v)
		}
		// Only what is given counts, so that a sensor without it keeps its state
		// when the engine is replaced by one that knows it.
		if d.Function != "" {
			put("\x00function")
			put(d.Function)
			put(string(d.Outcome))
		}
		if !d.Transform.JQ.IsZero() {
			put("\x00jq")
			put(d.Transform.JQ.Source)
		}
		if !d.Transform.Expr.IsZero() {
			put("\x00transform")
			put(d.Transform.Expr.Source)
		}
		if d.Count > 0 {
			put("\x00count")
			put(strconv.Itoa(d.Count))
		}
		if !d.Distinct.IsZero() {
			put("\x00distinct")
			put(d.Distinct.Source)
		}
		if d.Absent != nil {
			put("\x00absent")
			put(d.Absent.For.String())
			put(d.Absent.After)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// Name is the sensor's name.
func (p *Program) Name() string { return p.name }

// Triggers returns the names of the triggers by index. The caller must not
// change the slice.
func (p *Program) Triggers() []string { return p.names }

// Dependencies returns the names of the dependencies by index.
func (p *Program) Dependencies() []string {
	out := make([]string, len(p.deps))
	for i := range p.deps {
		out[i] = p.deps[i].name
	}
	return out
}

// StateFingerprint identifies what kept state depends on. State of a program
// with the same fingerprint can be kept when a sensor is replaced; it must be
// dropped otherwise.
func (p *Program) StateFingerprint() string { return p.fingerprint }

// need is the set of event attributes that expressions read.
type need struct {
	names []string
	all   bool
	// fields are the fields of data that are read, unless whole is set.
	fields []string
	whole  bool
}

type reader interface {
	Attributes() (names []string, all bool)
}

func (n *need) add(r reader) {
	names, all := r.Attributes()
	n.all = n.all || all
	n.names = union(n.names, names)
}

// addFields adds the fields of data that p reads.
func (n *need) addFields(p interface{ DataFields() ([]string, bool) }) {
	fields, whole := p.DataFields()
	n.whole = n.whole || whole
	n.fields = union(n.fields, fields)
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

func (n *need) none() bool { return !n.all && len(n.names) == 0 }
