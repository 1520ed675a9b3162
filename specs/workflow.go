package specs

import (
	"slices"
	"strconv"
	"strings"
)

// workflow checks how the triggers of a sensor follow each other, and what
// they wait for before they fire.
func (d *decoder) workflow(items []*node, s *Sensor) {
	if len(items) != len(s.Triggers) {
		return
	}
	w := workflow{decoder: d, items: items, sensor: s, byName: map[string]int{}}
	for i := range s.Triggers {
		w.names = append(w.names, s.Triggers[i].Name)
		if _, ok := w.byName[s.Triggers[i].Name]; !ok {
			w.byName[s.Triggers[i].Name] = i
		}
	}
	before := d.errors
	for i := range s.Triggers {
		w.trigger(i)
	}
	if d.errors > before {
		return
	}
	for i := range s.Triggers {
		if cycle := w.cycle(i); cycle != "" {
			t := &s.Triggers[i]
			n, path := w.list(i, t)
			d.errorf(n, path, CodeWorkflowCycle, "remove one of the names", "the triggers wait for each other: %s", cycle)
			return
		}
	}
	for i := range s.Triggers {
		w.together(i)
	}
}

type workflow struct {
	*decoder
	items  []*node
	sensor *Sensor
	names  []string
	byName map[string]int
}

// list is the place of the triggers that trigger i follows.
func (w *workflow) list(i int, t *Trigger) (*node, string) {
	key := "after"
	if len(t.OnFailure) > 0 {
		key = "onFailure"
	}
	return w.items[i].get(key), "spec.triggers[" + strconv.Itoa(i) + "]." + key
}

func (w *workflow) trigger(i int) {
	t, n := &w.sensor.Triggers[i], w.items[i]
	path := "spec.triggers[" + strconv.Itoa(i) + "]"
	refuse := func(key, hint, format string, args ...any) {
		if k := n.get(key); k != nil {
			w.errorf(k, join(path, key), CodeInvalidValue, hint, format, args...)
		}
	}
	for _, key := range []string{"after", "onFailure"} {
		if list := n.get(key); list != nil && list.kind == listNode {
			if len(list.items) == 0 {
				refuse(key, "name a trigger or remove it", "the list is empty")
			}
			w.followed(list, join(path, key), t.Name)
		}
	}
	switch {
	case len(t.After) > 0 && len(t.OnFailure) > 0:
		refuse("onFailure", "keep one of them", "a trigger follows the success of others or their failure, not both")
	case t.Follows() != nil:
		for _, key := range []string{"cooldown", "debounce", "batch"} {
			refuse(key, "give it to the first trigger of the workflow", "a later step of a workflow fires when the earlier ones have ended: %s changes nothing", key)
		}
	}
	if b := t.Batch; b != nil && t.Follows() == nil {
		if b.Size == 0 && b.Wait == 0 {
			refuse("batch", "for example batch: {size: 100, wait: 10s}", "the batch says neither size nor wait")
		}
		refuse("debounce", "keep one of them", "a trigger gathers a batch or waits for quiet, not both")
	}
	if b := t.Debounce; b != nil && b.Max > 0 && b.Max < b.Quiet {
		w.errorf(n.find("debounce.max"), path+".debounce.max", CodeOutOfRange, "at least quiet, "+b.Quiet.short(), "%s is too small", n.find("debounce.max").describe())
	}
}

// followed checks the names of the triggers that one follows.
func (w *workflow) followed(list *node, path, self string) {
	seen := map[string]bool{}
	for i, item := range list.items {
		if item.kind != scalarNode {
			continue // said already
		}
		at := path + "[" + strconv.Itoa(i) + "]"
		switch _, ok := w.byName[item.value]; {
		case item.value == self:
			w.errorf(item, at, CodeWorkflowCycle, "name another trigger", "trigger %s waits for itself", self)
		case !ok:
			others := slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return n == self })
			w.errorf(item, at, CodeUnknownReference, w.hint(item.value, others), "this sensor has no trigger %q", item.value)
		case seen[item.value]:
			w.errorf(item, at, CodeDuplicateName, "remove it", "trigger %s is named twice", item.value)
		}
		seen[item.value] = true
	}
}

// Follows are the names of the triggers this one is a later step of, nil for
// one that its condition fires.
func (t *Trigger) Follows() []string {
	if len(t.OnFailure) > 0 {
		return t.OnFailure
	}
	return t.After
}

// cycle is a way from trigger i back to itself, "" when there is none.
func (w *workflow) cycle(i int) string {
	done := make([]bool, len(w.names))
	var way []string
	var walk func(at int) bool
	walk = func(at int) bool {
		for _, name := range w.sensor.Triggers[at].Follows() {
			next := w.byName[name]
			if next == i {
				way = append(way, name)
				return true
			}
			if !done[next] {
				done[next] = true
				if walk(next) {
					way = append(way, name)
					return true
				}
			}
		}
		return false
	}
	if !walk(i) {
		return ""
	}
	slices.Reverse(way)
	return strings.Join(append([]string{w.names[i]}, way...), " → ")
}

// together reports a trigger whose workflow begins with triggers that do not
// fire together: there would be no telling which of their firings belong to
// each other.
func (w *workflow) together(i int) {
	t := &w.sensor.Triggers[i]
	if t.Follows() == nil {
		return
	}
	first := -1
	for _, r := range w.roots(i) {
		if first < 0 {
			first = r
			continue
		}
		if w.rule(r) != w.rule(first) {
			n, path := w.list(i, t)
			w.errorf(n, path, CodeInvalidValue, "give them the same condition, cooldown, debounce and batch, or let one follow the other",
				"its workflow begins with triggers %s and %s, which do not fire together", w.names[first], w.names[r])
			return
		}
	}
}

// roots are the triggers without earlier ones that trigger i follows in the end.
func (w *workflow) roots(i int) []int {
	seen := map[int]bool{}
	var out []int
	var walk func(at int)
	walk = func(at int) {
		if seen[at] {
			return
		}
		seen[at] = true
		follows := w.sensor.Triggers[at].Follows()
		if follows == nil {
			out = append(out, at)
		}
		for _, name := range follows {
			walk(w.byName[name])
		}
	}
	walk(i)
	slices.Sort(out)
	return out
}

// rule is what decides when a trigger fires.
func (w *workflow) rule(i int) string {
	t := &w.sensor.Triggers[i]
	condition := t.Condition.Source
	if t.Condition.IsZero() {
		condition = w.sensor.Condition.Source
	}
	parts := []string{strings.TrimSpace(condition), t.Cooldown.String()}
	if t.Debounce != nil {
		parts = append(parts, "debounce", t.Debounce.Quiet.String(), t.Debounce.Max.String())
	}
	if t.Batch != nil {
		parts = append(parts, "batch", strconv.Itoa(t.Batch.Size), t.Batch.Wait.String())
	}
	return strings.Join(parts, "\x00")
}
