package sensors

import (
	"slices"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/expression"
)

// Index finds the programs that may want an event without asking each, so that
// an event costs what the sensors that match it cost, not those that exist. It
// is not changed after it was made and is safe for concurrent use.
//
// Programs whose every dependency names one EventSource and event, or one
// type, are found by hash. Below that, those whose every dependency also has a
// guard, a comparison of one value with constants that must hold
// ([expression.Guard]), are found by that value: `data.kind == "push"`. Sensors
// with guards on the same path form a group; the value is looked up once for
// all of them. The other programs are asked for every event.
type Index struct {
	programs []*Program
	pairs    map[pair]*bucket
	types    map[string]*bucket
	rest     []int32
	groups   []Group
	// flows are the programs with workflows by name: they want the results of
	// their own triggers, too.
	flows map[string]int32
}

type pair struct{ source, event string }

// bucket holds the programs that may want the events of one pair or type.
type bucket struct {
	plain  []int32 // asked for every event, ascending
	groups []group
	byPath map[string]int
	need   need // what the groups read
}

// group holds the programs of a bucket by the value at one path.
type group struct {
	id     int // in Index.groups
	guard  expression.Guard
	byKey  map[string][]int32
	isData bool
}

// Group is a set of dependencies that the index decides together. When the
// value it looks for cannot be looked up in an event, one verdict stands for
// all of them.
type Group struct{ Members []Member }

// Member is one dependency of a group.
type Member struct {
	Program    *Program
	Dependency string
}

// GroupVerdict says that a group could not be decided for an event: nobody in
// it wants the event. Its Dependency is empty.
type GroupVerdict struct {
	// Group is an index into [Index.Groups].
	Group int
	Verdict
}

// maxFields is the most fields of a payload that are decoded one by one.
const maxFields = 16

// NewIndex returns an index of programs. [Index.Lookup] keeps their order.
func NewIndex(programs []*Program) *Index {
	x := &Index{programs: slices.Clone(programs), pairs: map[pair]*bucket{}, types: map[string]*bucket{}, flows: map[string]int32{}}
	for i, p := range programs {
		n := int32(i)
		if len(p.steps) > 0 {
			x.flows[p.name] = n
		}
		if !p.exact {
			x.rest = append(x.rest, n)
			continue
		}
		for j := range p.deps {
			d := &p.deps[j]
			b := x.bucket(d)
			if !p.guarded {
				b.plain = add(b.plain, n)
				continue
			}
			x.group(b, p, d, n)
			b.need.names = union(b.need.names, d.guards[0].Path[:1])
			// The payload is parsed once, for everything that is read of it later.
			b.need.whole = b.need.whole || d.need.whole || d.need.all || len(b.need.fields) > maxFields
			if !b.need.whole {
				b.need.fields = union(b.need.fields, d.need.fields)
			}
		}
	}
	return x
}

// add appends n to an ascending list once.
func add(list []int32, n int32) []int32 {
	if len(list) > 0 && list[len(list)-1] == n {
		return list
	}
	return append(list, n)
}

// bucket returns the bucket of a dependency.
func (x *Index) bucket(d *dependency) *bucket {
	if d.source.exact() && d.event.exact() {
		k := pair{d.source.text, d.event.text}
		if x.pairs[k] == nil {
			x.pairs[k] = &bucket{byPath: map[string]int{}}
		}
		return x.pairs[k]
	}
	if x.types[d.kind.text] == nil {
		x.types[d.kind.text] = &bucket{byPath: map[string]int{}}
	}
	return x.types[d.kind.text]
}

// group puts a dependency into the group of its first guard.
func (x *Index) group(b *bucket, p *Program, d *dependency, n int32) {
	g := &d.guards[0]
	path := expression.PathText(g.Path)
	at, ok := b.byPath[path]
	if !ok {
		at = len(b.groups)
		b.byPath[path] = at
		b.groups = append(b.groups, group{id: len(x.groups), guard: *g, byKey: map[string][]int32{}, isData: g.Path[0] == "data"})
		x.groups = append(x.groups, Group{})
	}
	gr := &b.groups[at]
	for _, key := range g.Keys {
		gr.byKey[key] = add(gr.byKey[key], n)
	}
	x.groups[gr.id].Members = append(x.groups[gr.id].Members, Member{p, d.name})
}

// Groups are the groups that [GroupVerdict] names. The caller must not change
// them.
func (x *Index) Groups() []Group { return x.groups }

// Lookup appends the programs that may want the event of v to dst, in their
// order. The verdicts are about groups that could not be decided; they belong
// to the view and are valid until its next use.
func (x *Index) Lookup(v *View, dst []*Program) ([]*Program, []GroupVerdict) {
	v.indexed, v.undecided = true, v.undecided[:0]
	found := append(v.found[:0], x.rest...)
	for _, b := range [...]*bucket{x.pairs[pair{v.event.EventSource, v.event.EventName}], x.types[v.event.Type]} {
		if b == nil {
			continue
		}
		found = append(found, b.plain...)
		if len(b.groups) > 0 {
			found = b.decide(v, found)
		}
	}
	if v.event.EventSource == bus.SourceFunction {
		if n, ok := x.flows[v.event.Extensions[bus.ExtSensor]]; ok {
			found = append(found, n)
		}
	}
	if !slices.IsSorted(found) {
		slices.Sort(found)
	}
	last := int32(-1)
	for _, n := range found {
		if n != last {
			dst = append(dst, x.programs[n])
		}
		last = n
	}
	v.found = found
	return dst, v.undecided
}

// decide appends the programs whose guard holds.
func (b *bucket) decide(v *View, found []int32) []int32 {
	env, err := v.environment(&b.need)
	for i := range b.groups {
		g := &b.groups[i]
		if err != nil && g.isData {
			v.undecided = append(v.undecided, GroupVerdict{g.id, verdictOf(err, "", v.event.Seq)})
			continue
		}
		key, missing := g.guard.Key(env)
		if missing != "" {
			v.undecided = append(v.undecided, GroupVerdict{g.id, Verdict{Outcome: Missing, Seq: v.event.Seq, Detail: missing}})
		}
		if key != "" {
			found = append(found, g.byKey[key]...)
		}
	}
	return found
}
