package reload

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
)

// Action is what a plan does with a resource.
type Action string

// The actions.
const (
	Added     Action = "added"
	Changed   Action = "changed"
	Removed   Action = "removed"
	Unchanged Action = "unchanged"
)

// Change is what a plan does with one resource.
type Change struct {
	Ref    specs.Ref `json:"ref"`
	Action Action    `json:"action"`
	// Because are the resources it uses, directly or not, that differ. It is
	// set when the resource is Changed although its own document is not.
	Because []specs.Ref `json:"because,omitempty"`
	// Resource is the version that runs afterwards, nil when Removed.
	Resource *specs.Resource `json:"-"`
}

// Plan is the difference between two sets, one change per resource of either,
// sorted by kind and name.
type Plan struct {
	Changes []Change `json:"changes"`
}

// Diff plans the way from running to desired; a nil set is an empty one. A
// resource is changed when its own document or that of a resource it uses
// differs; its file, line and formatting do not count.
func Diff(running, desired *specs.Set) Plan {
	was, will := resources(running), resources(desired)
	refs := make([]specs.Ref, 0, len(will))
	for ref := range was {
		if will[ref] == nil {
			refs = append(refs, ref)
		}
	}
	refs = slices.AppendSeq(refs, maps.Keys(will))
	slices.SortFunc(refs, compareRefs)

	p := Plan{Changes: make([]Change, 0, len(refs))}
	for _, ref := range refs {
		c := Change{Ref: ref, Action: Unchanged, Resource: will[ref]}
		switch {
		case was[ref] == nil:
			c.Action = Added
		case will[ref] == nil:
			c.Action = Removed
		case was[ref].Hash != will[ref].Hash:
			c.Action = Changed
		case running.HashOf(ref) != desired.HashOf(ref):
			c.Action = Changed
			c.Because = differing(ref, was, will)
		}
		p.Changes = append(p.Changes, c)
	}
	return p
}

// differing lists what ref uses, directly or not, and is not the same in both.
func differing(ref specs.Ref, was, will map[specs.Ref]*specs.Resource) []specs.Ref {
	var found []specs.Ref
	for used := range uses(ref, was, will) {
		a, b := was[used], will[used]
		if a == nil && b == nil || a != nil && b != nil && a.Hash == b.Hash {
			continue
		}
		found = append(found, used)
	}
	slices.SortFunc(found, compareRefs)
	return found
}

// uses returns everything ref uses in any of the sets, directly or not,
// without ref itself.
func uses(ref specs.Ref, sets ...map[specs.Ref]*specs.Resource) map[specs.Ref]bool {
	seen := map[specs.Ref]bool{ref: true}
	for queue := []specs.Ref{ref}; len(queue) > 0; queue = queue[1:] {
		for _, set := range sets {
			res := set[queue[0]]
			if res == nil {
				continue
			}
			for _, used := range res.Uses {
				if !seen[used] {
					seen[used] = true
					queue = append(queue, used)
				}
			}
		}
	}
	delete(seen, ref)
	return seen
}

// Empty reports whether the plan changes nothing.
func (p Plan) Empty() bool {
	return !slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action != Unchanged })
}

// Of returns the resources with the given action, in the order of the plan.
func (p Plan) Of(a Action) []specs.Ref {
	var refs []specs.Ref
	for _, c := range p.Changes {
		if c.Action == a {
			refs = append(refs, c.Ref)
		}
	}
	return refs
}

// String prints a line per resource that changes, and the totals:
//
//   - Function/ship
//     ~ Sensor/orders (uses Function/ship)
//   - EventSource/shop
//     1 to add, 1 to change, 1 to remove, 7 unchanged
func (p Plan) String() string {
	var b strings.Builder
	count := map[Action]int{}
	for _, c := range p.Changes {
		count[c.Action]++
		switch c.Action {
		case Added:
			b.WriteString("+ ")
		case Changed:
			b.WriteString("~ ")
		case Removed:
			b.WriteString("- ")
		case Unchanged:
			continue
		}
		b.WriteString(c.Ref.String())
		if len(c.Because) > 0 {
			fmt.Fprintf(&b, " (uses %s)", joinRefs(c.Because))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d to add, %d to change, %d to remove, %d unchanged",
		count[Added], count[Changed], count[Removed], count[Unchanged])
	return b.String()
}

func resources(s *specs.Set) map[specs.Ref]*specs.Resource {
	if s == nil {
		return nil
	}
	return s.Resources
}

func compareRefs(a, b specs.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// joinRefs lists a few references for people.
func joinRefs(refs []specs.Ref) string {
	const most = 5
	var names []string
	for _, r := range refs[:min(len(refs), most)] {
		names = append(names, r.String())
	}
	if len(refs) > most {
		names = append(names, fmt.Sprintf("%d more", len(refs)-most))
	}
	return strings.Join(names, ", ")
}
