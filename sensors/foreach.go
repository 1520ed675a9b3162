package sensors

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// fan is the list a firing is fanned out over.
type fan struct {
	in, key *expression.Program
	most    int
	path    string
}

// fanItem is one item, with the text that tells it apart.
type fanItem struct {
	value any
	key   string
}

// fan compiles a fan-out; the templates of the trigger then know the item.
func (c *compilation) fan(i int, t *trigger, f *specs.Foreach, path string) {
	out := &fan{most: cmp.Or(f.Max, specs.DefaultForeachMax), path: path + ".foreach"}
	for _, name := range []string{"item", "index"} {
		if at, ok := c.byName[name]; ok {
			c.report(specs.Error, c.spec.Dependencies[at].Pos, CodeReservedName, fmt.Sprintf("spec.dependencies[%d].name", at), "choose another name",
				"%s has another meaning in trigger %s, which has foreach", name, t.name)
		}
	}
	if out.in = c.expr(f.In, out.path+".in", c.scopes[i], expression.WantAny); out.in != nil {
		c.waits(i, t, out.path+".in", f.In.Pos.At(1, 1), out.in.Dependencies())
		t.need.add(out.in)
		t.results = t.results || slices.Contains(out.in.Variables(), "triggers")
	}
	c.scopes[i] = c.scopes[i].WithItem()
	if !f.Key.IsZero() {
		if out.key = c.expr(f.Key, out.path+".key", c.scopes[i], expression.WantAny); out.key != nil {
			c.waits(i, t, out.path+".key", f.Key.Pos.At(1, 1), out.key.Dependencies())
			t.need.add(out.key)
			t.results = t.results || slices.Contains(out.key.Variables(), "triggers")
		}
	}
	t.fan = out
}

// items are those of a firing with this environment.
func (f *fan) items(env map[string]any) ([]fanItem, error) {
	v, err := f.in.Value(env)
	if err != nil {
		return nil, &renderError{f.path + ".in", err}
	}
	list, ok := v.([]any)
	switch {
	case v == nil:
		return nil, &renderError{f.path + ".in", &expression.MissingError{Path: f.in.Source()}}
	case !ok:
		return nil, &renderError{f.path + ".in", fmt.Errorf("%s is %s, not a list", f.in.Source(), kindOf(v))}
	case len(list) > f.most:
		return nil, &renderError{f.path + ".in", fmt.Errorf("the list has %d items, the limit is %d", len(list), f.most)}
	}
	out, places := make([]fanItem, len(list)), make(map[string]int, len(list))
	for i, item := range list {
		out[i] = fanItem{item, "#" + strconv.Itoa(i)}
		if f.key == nil {
			continue
		}
		if out[i].key, err = keyOf(f.key, f.environment(env, i, item)); err != nil {
			return nil, &renderError{fmt.Sprintf("%s.key of item %d", f.path, i), err}
		}
		if first, twice := places[out[i].key]; twice {
			return nil, &renderError{f.path + ".key", fmt.Errorf("items %d and %d have the same key", first, i)}
		}
		places[out[i].key] = i
	}
	return out, nil
}

// environment is that of one item.
func (f *fan) environment(env map[string]any, index int, item any) map[string]any {
	env = maps.Clone(env)
	env["item"], env["index"] = item, index
	return env
}

// again is the environment of an item of a list that was one before.
func (f *fan) again(env map[string]any, item int) (map[string]any, error) {
	items, err := f.items(env)
	if err != nil {
		return nil, err
	}
	if item >= len(items) {
		return nil, fmt.Errorf("%s.in: there is no item %d any more", f.path, item)
	}
	return f.environment(env, item, items[item].value), nil
}

// kindOf names the sort of a value for people.
func kindOf(v any) string {
	switch reflect.TypeOf(v).Kind() {
	case reflect.Map:
		return "an object"
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	default:
		return "a number"
	}
}
