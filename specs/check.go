package specs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Check finds what is wrong between the resources of a set: references to
// Functions, EventSources, their events, Secrets and their keys, and triggers
// of Sensors that are not in it. Each diagnostic's Ref is the resource that references. Resources in
// invalid are known to exist with errors of their own, which is said then.
func (l Loader) Check(set *Set, invalid ...Ref) Diagnostics {
	c := checker{set: set, invalid: invalid}
	for _, r := range set.Resources {
		for _, u := range r.uses {
			c.use(r, u)
		}
	}
	return c.found.Sort()
}

// unordered is the part of a Function that is used by who cannot keep its order.
const unordered = "order"

// orderKey is the order of the calls of one key.
const orderKey = "key"

type checker struct {
	set     *Set
	invalid []Ref
	found   Diagnostics
}

func (c *checker) report(r *Resource, u use, code Code, hint, format string, args ...any) {
	c.found = append(c.found, Diagnostic{
		Pos: u.pos, Severity: Error, Code: code, Ref: r.Ref(), Path: u.path,
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (c *checker) use(r *Resource, u use) {
	target := c.set.Resources[u.ref]
	if target == nil {
		if u.part != "" && (u.ref.Kind == KindEventSource || u.ref.Kind == KindFunction) {
			return // said for the resource already
		}
		if slices.Contains(c.invalid, u.ref) {
			c.report(r, u, CodeInvalidReference, "", "%s %q has errors of its own", u.ref.Kind, u.ref.Name)
			return
		}
		c.report(r, u, CodeUnknownReference, didYouMean(u.ref.Name, c.names(u.ref.Kind)),
			"%s %q does not exist", u.ref.Kind, u.ref.Name)
		return
	}
	if u.part == "" {
		return
	}
	switch spec := target.Spec.(type) {
	case *EventSource:
		names := make([]string, len(spec.Events))
		for i, e := range spec.Events {
			names[i] = e.Name
		}
		if !slices.Contains(names, u.part) {
			c.report(r, u, CodeUnknownEvent, didYouMean(u.part, names), "EventSource %q has no event %q", u.ref.Name, u.part)
		}
	case *Function:
		if u.part == unordered && spec.Order == orderKey {
			c.report(r, u, CodeSpreadOrder, "remove one of them, or write order: none", "jobs that are spread have no order, and Function %q has order: key", u.ref.Name)
		}
	case *Sensor, *Subscription:
		var names []string
		_, sensor := target.Sensor()
		for _, t := range sensor.Calls() {
			if t.Name == u.part && t.Function != "" {
				c.report(r, u, CodeUnknownReference, "write "+t.Function, "trigger %s of %s %q calls Function %q, whose name its results have",
					t.Name, u.ref.Kind, u.ref.Name, t.Function)
				return
			}
			if t.Inline != nil {
				names = append(names, t.Name)
			}
		}
		if !slices.Contains(names, u.part) {
			c.report(r, u, CodeUnknownReference, didYouMean(u.part, names), "%s %q has no trigger %q", u.ref.Kind, u.ref.Name, u.part)
		}
	case *Secret:
		var keys []string
		for k := range spec.Env {
			keys = append(keys, k)
		}
		for k := range spec.Files {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if !slices.Contains(keys, u.part) {
			c.report(r, u, CodeUnknownSecretKey, didYouMean(u.part, keys), "Secret %q has no key %q", u.ref.Name, u.part)
		}
	}
}

// names are the names of all resources of a kind, valid or not, sorted.
func (c *checker) names(kind Kind) []string {
	var names []string
	for ref := range c.set.Resources {
		if ref.Kind == kind {
			names = append(names, ref.Name)
		}
	}
	for _, ref := range c.invalid {
		if ref.Kind == kind {
			names = append(names, ref.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// HashOf is a hash of a resource and everything it references, directly or
// not; it changes when any of them does, or appears or disappears. It is "" for
// a resource that is not in the set. The hash of the document alone is
// Resource.Hash.
func (s *Set) HashOf(ref Ref) string {
	r := s.Resources[ref]
	if r == nil {
		return ""
	}
	return s.hash(r.Hash, r.Uses)
}

// HashOfEvent is like HashOf for one event of an EventSource: it covers the
// event and what its config references, not its siblings.
func (s *Set) HashOfEvent(e SourceEvent) string { return s.hash(e.Hash, e.Uses) }

func (s *Set) hash(own string, uses []Ref) string {
	if len(uses) == 0 {
		return own
	}
	seen := map[Ref]bool{}
	var add func(refs []Ref)
	add = func(refs []Ref) {
		for _, ref := range refs {
			if seen[ref] {
				continue
			}
			seen[ref] = true
			if r := s.Resources[ref]; r != nil {
				add(r.Uses)
			}
		}
	}
	add(uses)
	all := slices.SortedFunc(maps.Keys(seen), compareRefs)
	var b strings.Builder
	b.WriteString(own)
	for _, ref := range all {
		b.WriteString("\n" + ref.String() + " ")
		if r := s.Resources[ref]; r != nil {
			b.WriteString(r.Hash)
		}
	}
	return hash([]byte(b.String()))
}
