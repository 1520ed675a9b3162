package sensors

import (
	"fmt"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

func foreach(s *specs.Sensor, in, key string, most int) *specs.Sensor {
	s.Triggers[0].Foreach = &specs.Foreach{In: expr(in), Max: most}
	if key != "" {
		s.Triggers[0].Foreach.Key = expr(key)
	}
	s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: text("in", "${ item }")}
	return s
}

func TestForeach(t *testing.T) {
	lines := func(key string, most int) *specs.Sensor { return foreach(sensor("a", "t=a"), "a.data.l", key, most) }
	playAll(t, []play{
		{"each item", `a{"l":[7,8]}`, lines("", 0), "t(a1)#0/2 t(a1)#1/2", ""},
		{"none", `a{"l":[]}`, lines("", 0), "", "skipped t 1 its list is empty"},
		{"of a pair", `a{"l":[7]} b`, foreach(sensor("a b", "t=a && b"), "a.data.l", "", 0), "t(a1 b2)#0/1", ""},
		{"of what is computed", "a", foreach(sensor("a", "t=a"), "1..2", "", 0), "t(a1)#0/2 t(a1)#1/2", ""},
	})
	for _, tt := range []struct{ name, data, key, want string }{
		{"not a list", `{"l":{"x":1}}`, "", "spec.triggers[0].foreach.in: a.data.l is an object, not a list"},
		{"missing", `{}`, "", "spec.triggers[0].foreach.in: missing `a.data.l`"},
		{"missing deeper", `{"l":1}`, "item.x", "spec.triggers[0].foreach.in: a.data.l is a number, not a list"},
		{"too long", `{"l":[1,2,3,4]}`, "", "spec.triggers[0].foreach.in: the list has 4 items, the limit is 3"},
		{"no key", `{"l":[{"k":1},{}]}`, "item.k", "spec.triggers[0].foreach.key of item 1: missing `item.k`"},
		{"the same key", `{"l":[{"k":1},{"k":2},{"k":1.0}]}`, "item.k", "spec.triggers[0].foreach.key: items 0 and 2 have the same key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRun(t, compileOK(t, lines(tt.key, 3)))
			r.play("a" + tt.data)
			if len(r.fired) != 1 || r.fired[0].Err == nil || r.fired[0].Err.Error() != tt.want {
				t.Errorf("fires %+v, want one with the error %s", r.fired, tt.want)
			}
		})
	}
}

// TestForeachKeys: a firing of an item is the same one when the list is in
// another order, if the spec says what tells items apart; its input is its own.
func TestForeachKeys(t *testing.T) {
	keys := func(key, data string) map[string]string {
		p := compileOK(t, foreach(sensor("a", "t=a"), "a.data.l", key, 0))
		r := newRun(t, p)
		r.play("a" + data)
		out := map[string]string{}
		for _, f := range r.fired {
			item := fmt.Sprint(f.Rendered["in"])
			again, err := p.RenderTrigger(0, r.contributing(f), f.Item)
			if err != nil || fmt.Sprint(again["in"]) != item {
				t.Errorf("item %s is rendered again as %v, %v", item, again, err)
			}
			out[item] = f.Key
		}
		return out
	}
	a, b := keys("item.k", `{"l":[{"k":1},{"k":2}]}`), keys("item.k", `{"l":[{"k":2},{"k":1}]}`)
	if len(a) != 2 || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("the firing keys are %v and, in another order, %v", a, b)
	}
	if a, b := keys("", `{"l":[1,2]}`), keys("", `{"l":[2,1]}`); a["1"] != b["2"] || a["1"] == a["2"] {
		t.Errorf("by place the firing keys are %v and %v", a, b)
	}
}
