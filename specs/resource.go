package specs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// document is what became of one document.
type document struct {
	resource *Resource // nil when it has errors
	// ref is empty unless both kind and name could be read.
	ref Ref
	pos Pos
}

var kinds = kindNames()

func kindNames() []string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, string(k))
	}
	return names
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// resource decodes one document.
func (d *decoder) resource(n *node, text string) document {
	before := d.errors
	doc := document{pos: d.place(n)}
	if n.kind != mapNode {
		d.errorf(n, "", CodeNotResource, "begin with apiVersion: "+APIVersion, "expected a resource, found %s", n.describe())
		return doc
	}
	r := &Resource{Pos: d.place(n), NamePos: d.place(n)}
	if m := n.get("metadata"); m != nil {
		if name := m.get("name"); name != nil && name.kind == scalarNode && !name.null() {
			r.NamePos, r.Metadata.Name = d.place(name), name.value
		}
	}
	known := false
	if k := n.get("kind"); k != nil && k.kind == scalarNode {
		r.Kind = Kind(k.value)
		known = slices.Contains(kinds, k.value)
	}
	if known {
		d.ref = r.Ref()
	}
	d.envelope(n, r, known)
	if known {
		d.spec(n, r)
	}
	if known && dnsLabel.MatchString(r.Metadata.Name) {
		doc.ref, doc.pos = r.Ref(), r.NamePos
	}
	if d.errors > before {
		return doc
	}
	r.Hash = hash(n.canonical(nil))
	r.Source = text
	r.uses = d.uses
	r.Uses = slices.DeleteFunc(refs(d.uses), func(u Ref) bool { return u == r.Ref() })
	doc.resource = r
	return doc
}

// refs are the distinct references, sorted.
func refs(uses []use) []Ref {
	if len(uses) == 0 {
		return nil
	}
	out := make([]Ref, len(uses))
	for i, u := range uses {
		out[i] = u.ref
	}
	slices.SortFunc(out, compareRefs)
	return slices.Compact(out)
}

func compareRefs(a, b Ref) int {
	if c := strings.Compare(string(a.Kind), string(b.Kind)); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func (d *decoder) envelope(n *node, r *Resource, known bool) {
	keys := []string{"apiVersion", "kind", "metadata", "spec"}
	for _, p := range n.pairs {
		if slices.Contains(keys, p.key.value) {
			continue
		}
		if k := p.key.value; r.Kind == KindSecret && (k == "data" || k == "stringData") {
			d.errorf(p.key, k, CodeUnknownKey, "name environment variables or files under spec.env or spec.files",
				"a Secret never holds a value")
			continue
		}
		d.unknownKey(p.key, "", keys)
	}
	if v := n.get("apiVersion"); v == nil {
		d.errorf(n, "apiVersion", CodeAPIVersion, "write apiVersion: "+APIVersion, "apiVersion is missing")
	} else if v.kind != scalarNode || v.value != APIVersion {
		d.errorf(v, "apiVersion", CodeAPIVersion, "write apiVersion: "+APIVersion, "unknown apiVersion %s", v.describe())
	}
	if k := n.get("kind"); k == nil {
		d.errorf(n, "kind", CodeUnknownKind, d.hint("", kinds), "kind is missing")
	} else if !known {
		d.errorf(k, "kind", CodeUnknownKind, d.hint(k.value, kinds), "unknown kind %s", k.describe())
	}
	m := n.get("metadata")
	if m == nil {
		d.errorf(n, "metadata.name", CodeMissingKey, "write metadata: {name: …}", "the resource has no name")
		return
	}
	before := d.errors
	d.structure(m, reflect.ValueOf(&r.Metadata).Elem(), "metadata", nil, nil)
	name := m.get("name")
	switch {
	case name == nil && m.kind == mapNode:
		d.errorf(m, "metadata.name", CodeMissingKey, "write name: …", "the resource has no name")
	case d.errors == before:
		d.name(name, "metadata.name")
	}
}

// name checks that a value is a DNS label.
func (d *decoder) name(n *node, path string) bool {
	if n == nil || n.kind != scalarNode {
		return false
	}
	if dnsLabel.MatchString(n.value) {
		return true
	}
	hint := "use lower-case letters, digits and -, at most 63"
	if s := label(n.value); s != "" {
		hint += "; for example " + s
	}
	d.errorf(n, path, CodeInvalidName, hint, "%s is not a valid name", n.describe())
	return false
}

var notLabel = regexp.MustCompile(`[^a-z0-9]+`)

// label makes a DNS label of a text, "" when nothing is left.
func label(s string) string {
	s = strings.Trim(notLabel.ReplaceAllString(strings.ToLower(s), "-"), "-")
	return strings.TrimRight(s[:min(len(s), 63)], "-")
}

func (d *decoder) spec(n *node, r *Resource) {
	s := n.get("spec")
	if s == nil {
		d.errorf(n, "spec", CodeMissingKey, "", "spec is missing")
		return
	}
	if s.null() {
		d.errorf(s, "spec", CodeMissingKey, "", "spec is empty")
		return
	}
	switch r.Kind {
	case KindEventSource:
		r.Spec = d.eventSource(s)
	case KindSensor:
		sensor := &Sensor{}
		d.structure(s, reflect.ValueOf(sensor).Elem(), "spec", nil, nil)
		d.sensor(s, sensor)
		r.Spec = sensor
	case KindFunction:
		fn := &Function{}
		fn.Call = d.call(s, reflect.ValueOf(fn).Elem(), "spec")
		if s.kind == mapNode && fn.Call.Kind == "" {
			d.errorf(s, "spec", CodeFunctionChoice, "give one of: "+strings.Join(typeNames(d.types.Functions), ", "), "no function kind is given")
		}
		d.delivery(s, &fn.Delivery, "spec")
		fn.Places = map[string]Pos{}
		for _, key := range []string{"input", "output", "secrets"} {
			if v := s.get(key); v != nil {
				d.places(v, key, fn.Places)
			}
		}
		r.Spec = fn
	case KindSubscription:
		sub := &Subscription{}
		d.structure(s, reflect.ValueOf(sub).Elem(), "spec", nil, nil)
		d.subscription(s, sub)
		r.Spec = sub
	case KindEndpoint:
		ep := &Endpoint{MaxBody: DefaultMaxBody, MaxInFlight: DefaultMaxInFlight, Places: map[string]Pos{}}
		before := d.errors
		d.structure(s, reflect.ValueOf(ep).Elem(), "spec", nil, nil)
		d.places(s, "", ep.Places)
		if d.errors == before { // what is half decoded would mislead
			c := NewChecker(d.ref, "spec", ep.Places)
			ep.Validate(c)
			for _, f := range c.Found() {
				d.add(f)
			}
		}
		r.Spec = ep
	case KindDriverType:
		typ := &DriverType{}
		d.structure(s, reflect.ValueOf(typ).Elem(), "spec", nil, nil)
		d.driverType(s, typ)
		r.Spec = typ
	case KindSecret:
		secret := &Secret{}
		before := d.errors
		if d.structure(s, reflect.ValueOf(secret).Elem(), "spec", nil, nil); d.errors == before {
			d.secret(s)
		}
		r.Spec = secret
	}
}

func typeNames(types []Type) []string {
	names := make([]string, len(types))
	for i := range types {
		names[i] = types[i].Name
	}
	return names
}

func (d *decoder) eventSource(n *node) *EventSource {
	src := &EventSource{}
	before := d.errors
	types := typeNames(d.types.Sources)
	if !d.mapping(n, "spec", "source types: "+strings.Join(types, ", ")) {
		return src
	}
	seen := map[string]*node{}
	for _, p := range n.pairs {
		path := join("spec", p.key.value)
		t := d.types.Source(p.key.value)
		if t == nil {
			d.errorf(p.key, path, CodeUnknownSourceType, d.hint(p.key.value, types), "unknown source type %q", p.key.value)
			continue
		}
		if !d.mapping(p.val, path, "write the events by name: "+t.Name+": {my-event: {…}}") {
			continue
		}
		for _, e := range p.val.pairs {
			at := join(path, e.key.value)
			d.name(e.key, at)
			if first := seen[e.key.value]; first != nil {
				d.duplicate(e.key, first, at, "event")
				continue
			}
			seen[e.key.value] = e.key
			from := len(d.uses)
			ev := SourceEvent{Type: t.Name, Name: e.key.value, Pos: d.place(e.key)}
			ev.Config = d.config(e.val, t, at, d.table.info(intakeType).names, func(p pair) bool {
				f := d.table.info(intakeType).field(p.key.value)
				if f != nil {
					d.value(p.val, reflect.ValueOf(&ev.Intake).Elem().FieldByIndex(f.index), join(at, f.name), f)
				}
				return f != nil
			})
			d.intake(e.val, &ev.Intake, at)
			ev.Places = map[string]Pos{}
			d.places(e.val, "", ev.Places)
			b := appendToken(nil, 't', t.Name)
			b = appendToken(b, 'n', ev.Name)
			ev.Hash = hash(e.val.canonical(b))
			ev.Uses = refs(d.uses[from:])
			src.Events = append(src.Events, ev)
		}
	}
	if len(seen) == 0 && d.errors == before {
		d.errorf(n, "spec", CodeMissingKey, "source types: "+strings.Join(types, ", "), "no event is declared")
	}
	slices.SortFunc(src.Events, func(a, b SourceEvent) int { return strings.Compare(a.Name, b.Name) })
	return src
}

// places notes where a value and everything in it is.
func (d *decoder) places(n *node, path string, into map[string]Pos) {
	into[path] = d.place(n)
	for i, item := range n.items {
		d.places(item, path+"["+strconv.Itoa(i)+"]", into)
	}
	for _, p := range n.pairs {
		d.places(p.val, join(path, p.key.value), into)
	}
}

// duplicate reports a name that is there twice, naming both places.
func (d *decoder) duplicate(n, first *node, path, what string) {
	d.add(Diagnostic{
		Pos: d.place(n), Severity: Error, Code: CodeDuplicateName, Ref: d.ref, Path: path,
		Message: fmt.Sprintf("%s %q is already defined at line %d", what, n.value, d.place(first).Line),
		Hint:    "rename one of them", Related: []Pos{d.place(first)},
	})
}

// hasKind reports whether a mapping has the key of a function kind.
func (d *decoder) hasKind(n *node) bool {
	return slices.ContainsFunc(n.pairs, func(p pair) bool { return d.types.Function(p.key.value) != nil })
}

// call decodes a struct that may have one function kind among its keys.
func (d *decoder) call(n *node, v reflect.Value, path string) Call {
	var call Call
	given := d.hasKind(n) || n.get("function") != nil
	d.structure(n, v, path, typeNames(d.types.Functions), func(p pair) bool {
		t := d.types.Function(p.key.value)
		if t == nil {
			// Where a mapping stands and no kind does, one was meant.
			if p.val.kind != mapNode || given || nearest(p.key.value, d.table.info(v.Type()).names) != "" {
				return false
			}
			d.errorf(p.key, join(path, p.key.value), CodeUnknownKey, d.hint(p.key.value, typeNames(d.types.Functions)),
				"unknown function kind %q", p.key.value)
			call.Kind = p.key.value
			return true
		}
		if call.Kind != "" {
			d.errorf(p.key, join(path, p.key.value), CodeFunctionChoice, "keep one of them",
				"%s is given, and %s too", call.Kind, t.Name)
			return true
		}
		call = Call{Kind: t.Name, Config: d.config(p.val, t, join(path, t.Name), nil, nil), Pos: d.place(p.key), Places: map[string]Pos{}}
		d.places(p.val, "", call.Places)
		return true
	})
	return call
}

func (d *decoder) trigger(n *node, t *Trigger, path string) {
	call := d.call(n, reflect.ValueOf(t).Elem(), path)
	if n.kind == mapNode {
		t.FunctionPos, t.Inline = d.callee(n, call, t.Function, path, "the trigger calls nothing")
		d.delivery(n, &t.Delivery, path)
		d.spread(n, t.Spread, t.Order, t.Function, path)
	}
}

// deadLetter decodes what is called for the dead letters of a trigger. What
// says when a trigger fires has no place there.
func (d *decoder) deadLetter(n *node, t *DeadLetter, path string) {
	rest := *n
	rest.pairs = slices.DeleteFunc(slices.Clone(n.pairs), func(p pair) bool {
		key := p.key.value
		misplaced := d.table.info(triggerType).field(key) != nil && d.table.info(deadLetterType).field(key) == nil
		if misplaced {
			d.errorf(p.key, join(path, key), CodeUnknownKey, "remove it; it is called for each dead letter of its trigger",
				"a deadLetter has no %s", key)
		}
		return misplaced
	})
	call := d.call(&rest, reflect.ValueOf(t).Elem(), path)
	if n.kind == mapNode {
		t.FunctionPos, t.Inline = d.callee(n, call, t.Function, path, "the deadLetter calls nothing")
		d.delivery(n, &t.Delivery, path)
		d.spread(n, t.Spread, t.Order, t.Function, path)
	}
}

// callee finds out whether a function is named or given inline, of which it
// needs one.
func (d *decoder) callee(n *node, call Call, function, path, nothing string) (pos Pos, inline *Call) {
	fn := n.get("function")
	if fn != nil && fn.kind == scalarNode && !fn.null() {
		pos = d.place(fn)
		d.uses = append(d.uses, use{Ref{KindFunction, function}, "", pos, join(path, "function")})
	}
	switch {
	case call.Kind != "" && fn != nil:
		d.errorf(fn, join(path, "function"), CodeFunctionChoice, "keep one of them", "a function is named, and %s is given inline", call.Kind)
	case call.Config != nil:
		inline = &call
	case call.Kind == "" && (fn == nil || function == "" && fn.kind == scalarNode):
		d.errorf(n, path, CodeFunctionChoice,
			"name a Function with function: or give one of: "+strings.Join(typeNames(d.types.Functions), ", "), "%s", nothing)
	}
	return pos, inline
}

// spread checks a trigger whose jobs may be spread: then nothing keeps an order,
// its own or that of the function it names.
func (d *decoder) spread(n *node, spread bool, order, function, path string) {
	at := n.get("spread")
	switch {
	case !spread || at == nil:
	case order == orderKey:
		d.errorf(at, join(path, "spread"), CodeSpreadOrder, "keep one of them", "jobs that are spread have no order, and order: key is given")
	case order == "" && function != "":
		d.uses = append(d.uses, use{Ref{KindFunction, function}, unordered, d.place(at), join(path, "spread")})
	}
}

func (d *decoder) delivery(n *node, v *Delivery, path string) {
	if b := v.Breaker; b != nil && b.Max != 0 && b.Wait > b.Max {
		at := n.find("breaker.wait")
		d.errorf(at, path+".breaker.wait", CodeOutOfRange, "at most max, "+b.Max.short(), "%s is too large", at.describe())
	}
	if v.Retry == nil || v.Retry.Max == 0 || v.Retry.Backoff <= v.Retry.Max {
		return
	}
	at := n.find("retry.backoff")
	d.errorf(at, path+".retry.backoff", CodeOutOfRange, "at most max, "+v.Retry.Max.short(),
		"%s is too large", at.describe())
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (d *decoder) secret(n *node) {
	env, files := n.get("env"), n.get("files")
	if (env == nil || len(env.pairs) == 0) && (files == nil || len(files.pairs) == 0) {
		d.errorf(n, "spec", CodeMissingKey, "write env: {key: VARIABLE} or files: {key: path}", "the Secret has no keys")
		return
	}
	seen := map[string]*node{}
	for _, m := range []struct {
		n    *node
		path string
	}{{env, "spec.env"}, {files, "spec.files"}} {
		if m.n == nil {
			continue
		}
		for _, p := range m.n.pairs {
			at := join(m.path, p.key.value)
			switch {
			case p.val.value == "":
				d.errorf(p.val, at, CodeMissingKey, "", "%q is empty", p.key.value)
			case m.n == env && !envName.MatchString(p.val.value):
				d.errorf(p.val, at, CodeInvalidValue, "a Secret names where a value is, it does not hold it",
					"this is not the name of an environment variable")
			}
			if first := seen[p.key.value]; first != nil {
				d.duplicate(p.key, first, at, "key")
				continue
			}
			seen[p.key.value] = p.key
		}
	}
}

// reserved are the names of event attributes in expressions, and expr's words.
// That "-" is written "_" in expressions makes no two names equal, because a
// DNS label has no "_".
var reserved = []string{
	"id", "type", "source", "subject", "time", "datacontenttype", "dataschema", "extensions", "data", "request",
	"and", "or", "not", "in", "let", "if", "else", "true", "false", "nil", "matches", "contains",
	"absent", "triggers", "batch",
}

// sensor checks what the types of the fields cannot say.
func (d *decoder) sensor(n *node, s *Sensor) {
	d.from(n.get("from"), s.From)
	deps, triggers := n.get("dependencies"), n.get("triggers")
	if deps != nil {
		d.dependencies(deps.items, s)
	}
	if s.Reset != nil {
		s.Reset.CronPos = d.place(n.find("reset.cron"))
		s.Reset.TimezonePos = d.place(n.find("reset.timezone"))
	}
	if triggers == nil {
		return
	}
	seen := map[string]*node{}
	for i, t := range triggers.items {
		path := "spec.triggers[" + strconv.Itoa(i) + "].name"
		name := t.get("name")
		if name == nil || name.null() || !d.name(name, path) {
			continue
		}
		if first := seen[name.value]; first != nil {
			d.duplicate(name, first, path, "trigger")
			continue
		}
		seen[name.value] = name
	}
	d.workflow(triggers.items, s)
}

func (d *decoder) dependencies(items []*node, s *Sensor) {
	seen := map[string]*node{}
	for i, n := range items {
		if n.kind != mapNode || i >= len(s.Dependencies) {
			continue
		}
		path := "spec.dependencies[" + strconv.Itoa(i) + "]"
		dep := &s.Dependencies[i]
		d.dependencyName(n.get("name"), join(path, "name"), seen)
		if n.get("source") == nil && n.get("event") == nil && n.get("type") == nil && n.get("subject") == nil && n.get("function") == nil {
			d.errorf(n, path, CodeEmptyDependency, `give source, event, type, subject or function; source: "*" for every event`,
				"the dependency does not say which events")
		}
		for _, key := range []string{"source", "event", "type", "subject", "function"} {
			d.glob(n.get(key), join(path, key), key)
		}
		d.result(n, path, dep)
		if dep.Absent != nil {
			d.absent(n, path, dep, s)
		}
		if s.Limits != nil && s.Limits.Events > 0 && dep.Count > s.Limits.Events {
			count := n.get("count")
			d.errorf(count, join(path, "count"), CodeOutOfRange, "at most limits.events, "+strconv.Itoa(s.Limits.Events),
				"%s is too large", count.describe())
		}
		if t := n.get("transform"); t != nil && t.kind == mapNode && (t.get("expr") == nil) == (t.get("jq") == nil) {
			d.errorf(t, join(path, "transform"), CodeInvalidValue, "for example transform: {jq: '.data | {id: .order.id}'}",
				"needs exactly one of expr and jq")
		}
		if n.get("distinct") != nil && n.get("count") == nil && (dep.Pick == "" || dep.Pick == PickLatest) {
			d.errorf(n.get("distinct"), join(path, "distinct"), CodeInvalidValue, "add count, pick: first or pick: all, or remove it",
				"distinct changes nothing where only the latest event waits")
		}
		if src := n.get("source"); src != nil && src.kind == scalarNode && dep.Source != "" && !IsGlob(dep.Source) && !strings.HasPrefix(dep.Source, "_") {
			d.uses = append(d.uses, use{Ref{KindEventSource, dep.Source}, "", d.place(src), join(path, "source")})
			if ev := n.get("event"); ev != nil && ev.kind == scalarNode && dep.Event != "" && !IsGlob(dep.Event) {
				d.uses = append(d.uses, use{Ref{KindEventSource, dep.Source}, dep.Event, d.place(ev), join(path, "event")})
			}
		}
	}
}

// result checks a dependency on results of a function.
func (d *decoder) result(n *node, path string, dep *Dependency) {
	fn := n.get("function")
	if fn == nil {
		if o := n.get("outcome"); o != nil {
			d.errorf(o, join(path, "outcome"), CodeInvalidValue, "name the function, or ask for type: engine.function."+string(OutcomeSucceeded),
				"only the result of a function has an outcome")
		}
		return
	}
	for _, key := range []string{"source", "event", "type"} {
		if k := n.get(key); k != nil {
			d.errorf(k, join(path, key), CodeInvalidValue, "keep one of them", "function is given, and %s too", key)
		}
	}
	if fn.kind != scalarNode || dep.Function == "" || IsGlob(dep.Function) {
		return
	}
	u := use{Ref{KindFunction, dep.Function}, "", d.place(fn), join(path, "function")}
	const handler = "." + SubscriptionTrigger + DeadLetterSuffix
	if sensor, trigger, inline := strings.Cut(dep.Function, "."); inline {
		u.ref, u.part = Ref{KindSensor, sensor}, trigger
		if name, ok := strings.CutSuffix(strings.TrimPrefix(dep.Function, SubscriptionPrefix), handler); ok && sensor+"." == SubscriptionPrefix {
			u.ref, u.part = Ref{KindSubscription, name}, SubscriptionTrigger+DeadLetterSuffix
		}
	}
	d.uses = append(d.uses, u)
}

// absent checks a dependency that is declared absent.
func (d *decoder) absent(n *node, path string, dep *Dependency, s *Sensor) {
	for _, key := range []string{"pick", "count", "distinct"} {
		if k := n.get(key); k != nil {
			d.errorf(k, join(path, key), CodeInvalidValue, "remove it", "%s changes nothing: the events of a dependency that is declared absent do not wait", key)
		}
	}
	at, path := n.get("absent"), join(path, "absent")
	if s.Within > 0 && dep.Absent.For >= s.Within {
		d.errorf(at.get("for"), join(path, "for"), CodeInvalidValue, "give a shorter time, or a longer within",
			"the event that begins the time waits for %s only", s.Within)
	}
	after := at.get("after")
	if dep.Absent.After == "" || after == nil {
		return // said already
	}
	path = join(path, "after")
	names := make([]string, 0, len(s.Dependencies))
	for i := range s.Dependencies {
		o := &s.Dependencies[i]
		if o.Name != dep.Absent.After {
			names = append(names, o.Name)
			continue
		}
		switch {
		case o.Absent != nil:
			d.errorf(after, path, CodeInvalidValue, "declare a dependency without absent for the event that begins the time",
				"%s is declared absent, so it begins nothing", o.Name)
		case o.Count > 0 || o.Pick != "" && o.Pick != PickLatest:
			d.errorf(after, path, CodeInvalidValue, "name one with pick: latest and without count", "it is not clear which event of %s begins the time", o.Name)
		}
		return
	}
	d.errorf(after, path, CodeUnknownReference, didYouMean(dep.Absent.After, names), "there is no dependency %q", dep.Absent.After)
}

func (d *decoder) dependencyName(name *node, path string, seen map[string]*node) {
	if name == nil || name.null() || !d.name(name, path) {
		return
	}
	if first := seen[name.value]; first != nil {
		d.duplicate(name, first, path, "dependency")
		return
	}
	seen[name.value] = name
	switch {
	case slices.Contains(reserved, name.value):
		d.errorf(name, path, CodeReservedName, "choose another name", "%q means something else in expressions", name.value)
	case name.value[0] >= '0' && name.value[0] <= '9':
		d.errorf(name, path, CodeInvalidName, "begin it with a letter", "%s cannot be used in expressions", name.describe())
	}
}

// from checks where a sensor begins.
func (d *decoder) from(n *node, from From) {
	if n == nil || n.kind != scalarNode || from == "" || from == FromNow || from == FromEarliest {
		return
	}
	if _, ok := from.Time(); !ok {
		d.errorf(n, "spec.from", CodeInvalidValue, "write now, earliest, or a time as 2026-03-01T00:00:00Z", "%s is no beginning", n.describe())
	}
}

// subscription checks what the types of the fields cannot say.
func (d *decoder) subscription(n *node, s *Subscription) {
	s.pos = d.place(n)
	if n.kind != mapNode {
		return
	}
	d.from(n.get("from"), s.From)
	if s.EventType != "" { // said already
		d.glob(n.get("eventType"), "spec.eventType", "type")
	}
	d.glob(n.get("source"), "spec.source", "source")
	if fn := n.get("function"); fn != nil && s.Function != "" {
		s.functionPos = d.place(fn)
		d.uses = append(d.uses, use{Ref{KindFunction, s.Function}, "", s.functionPos, "spec.function"})
	}
	if src := n.get("source"); src != nil && s.Source != "" && !IsGlob(s.Source) && !strings.HasPrefix(s.Source, "_") {
		d.uses = append(d.uses, use{Ref{KindEventSource, s.Source}, "", d.place(src), "spec.source"})
	}
	d.delivery(n, &s.Delivery, "spec")
	d.spread(n, s.Spread, s.Order, s.Function, "spec")
}

// driverType checks what the types of the fields cannot say.
func (d *decoder) driverType(n *node, t *DriverType) {
	if n.kind != mapNode {
		return
	}
	switch {
	case len(t.Command) == 0 && t.Path == "":
		d.errorf(n, "spec.command", CodeMissingKey, "write command: [program, argument] or path: program", "the DriverType runs nothing")
	case len(t.Command) > 0 && t.Path != "":
		d.errorf(n.get("path"), "spec.path", CodeInvalidValue, "keep one of them", "command is given, and path too")
	case len(t.Command) > 0 && t.Command[0] == "":
		d.errorf(n.get("command"), "spec.command[0]", CodeMissingKey, "write command: [program, argument]", "the program is empty")
	}
}

// settings decodes the settings of a driver: plain values under names that
// flags can have.
func (d *decoder) settings(n *node, path string) Settings {
	if !d.mapping(n, path, "write {key: value}") {
		return nil
	}
	s := make(Settings, len(n.pairs))
	for _, p := range n.pairs {
		at := join(path, p.key.value)
		if !flagName.MatchString(p.key.value) {
			d.errorf(p.key, at, CodeInvalidName, "letters, digits, - _ and . make a flag's name", "%s cannot be the name of a setting", p.key.describe())
		}
		switch {
		case p.val.kind != scalarNode:
			d.wrongType(p.val, at, "a plain value", "a driver gets it as --"+p.key.value+"=…")
		case p.val.null():
			s[p.key.value] = ""
		default:
			s[p.key.value] = p.val.value
		}
	}
	return s
}

var flagName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// glob checks the pattern of a dependency.
func (d *decoder) glob(n *node, path, key string) {
	if n == nil || n.kind != scalarNode || n.null() {
		return
	}
	bad := " \t\n"
	if key == "source" || key == "event" || key == "function" {
		bad = " \t\n[]{}\\"
	}
	switch i := strings.IndexAny(n.value, bad); {
	case n.value == "":
		d.errorf(n, path, CodeInvalidGlob, "remove the key to accept any", "the pattern is empty")
	case i >= 0:
		d.errorf(n, path, CodeInvalidGlob, "patterns have * for any text and ? for one character",
			"%q cannot be part of this pattern", n.value[i:i+1])
	}
}

// canonical appends a form of the value in which key order, comments, style
// and anchors do not show.
func (n *node) canonical(b []byte) []byte {
	switch n.kind {
	case listNode:
		b = append(b, '[')
		for _, item := range n.items {
			b = item.canonical(b)
		}
		return append(b, ']')
	case mapNode:
		pairs := n.pairs
		if !slices.IsSortedFunc(pairs, comparePairs) {
			pairs = slices.SortedFunc(slices.Values(pairs), comparePairs)
		}
		b = append(b, '{')
		for _, p := range pairs {
			b = appendToken(b, 'k', p.key.value)
			b = p.val.canonical(b)
		}
		return append(b, '}')
	case scalarNode:
	}
	switch n.tag {
	case "!!null":
		return append(b, '~')
	case "!!int", "!!float", "!!bool":
		// The text counts as well: a string field keeps it.
		return appendToken(b, n.tag[2], n.value)
	}
	return appendToken(b, 's', n.value)
}

func comparePairs(a, b pair) int { return strings.Compare(a.key.value, b.key.value) }

// appendToken appends text so that no two sequences of tokens look the same.
func appendToken(b []byte, kind byte, text string) []byte {
	b = append(b, kind)
	b = strconv.AppendInt(b, int64(min(len(text), math.MaxInt32)), 10)
	b = append(b, ':')
	return append(b, text...)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
