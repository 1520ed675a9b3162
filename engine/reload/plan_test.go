package reload

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/specs"
)

func set(lines ...string) *specs.Set {
	s := &specs.Set{Resources: map[specs.Ref]*specs.Resource{}}
	for i, line := range lines {
		res := resource(line, specs.Pos{File: "a.yaml", Line: i + 1, Col: 1})
		s.Resources[res.Ref()] = res
	}
	return s
}

func TestDiff(t *testing.T) {
	running := set(
		"EventSource/shop@1 uses Secret/key",
		"Function/old@1",
		"Function/same@1",
		"Function/ship@1 uses Secret/token",
		"Secret/key@1",
		"Secret/token@1",
		"Sensor/edited@1 uses Function/same",
		"Sensor/orders@1 uses EventSource/shop, Function/ship",
		"Sensor/quiet@1 uses Function/same",
	)
	desired := set(
		"Sensor/quiet@1 uses Function/same",
		"Sensor/orders@1 uses EventSource/shop, Function/ship",
		"Sensor/new@1 uses Function/same",
		"Sensor/edited@2 uses Function/same",
		"Secret/token@2",
		"Secret/key@1",
		"Function/ship@1 uses Secret/token",
		"Function/same@1",
		"EventSource/shop@1 uses Secret/key",
	)
	const want = `- Function/old
~ Function/ship (uses Secret/token)
~ Secret/token
~ Sensor/edited
+ Sensor/new
~ Sensor/orders (uses Secret/token)
1 to add, 4 to change, 1 to remove, 4 unchanged`
	p := Diff(running, desired)
	if got := p.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := fmt.Sprint(p.Of(Unchanged)); got != "[EventSource/shop Function/same Secret/key Sensor/quiet]" {
		t.Errorf("unchanged: %s", got)
	}
	if p.Empty() {
		t.Error("the plan is empty")
	}
	for _, s := range []*specs.Set{nil, {}, running, desired} {
		if p := Diff(s, s); !p.Empty() {
			t.Errorf("a set differs from itself: %v", p)
		}
	}
	if p := Diff(nil, running); len(p.Of(Added)) != len(running.Resources) {
		t.Errorf("from nothing: %v", p)
	}
	if p := Diff(running, nil); len(p.Of(Removed)) != len(running.Resources) {
		t.Errorf("to nothing: %v", p)
	}
}

// lines draws resources that use each other, in circles as well.
func lines(t *rapid.T, versions ...string) []string {
	var out []string
	names := []string{"EventSource/a", "Function/f", "Function/g", "Secret/s", "Sensor/x", "Sensor/y"}
	for _, name := range names {
		if rapid.IntRange(0, 3).Draw(t, "present") == 0 {
			continue
		}
		line := name + "@" + rapid.SampledFrom(versions).Draw(t, "version")
		if used := rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 2, rapid.ID).Draw(t, "uses"); len(used) > 0 {
			sep := " uses "
			for _, u := range used {
				line += sep + u
				sep = ", "
			}
		}
		out = append(out, line)
	}
	return out
}

// Applying the difference of two sets to the first gives the second, and what
// is unchanged has the same hash in both.
func TestDiffProperty(t *testing.T) { rapid.Check(t, diffProperty) }

func FuzzDiff(f *testing.F) { f.Fuzz(rapid.MakeFuzz(diffProperty)) }

func diffProperty(t *rapid.T) {
	a, b := set(lines(t, "1", "2")...), set(lines(t, "1", "2")...)
	p := Diff(a, b)
	if got := applied(a, p); !maps.Equal(got, b.Resources) {
		t.Fatalf("%v applied to %v gives %v, not %v", p, a.Resources, got, b.Resources)
	}
	for _, c := range p.Changes {
		same := a.HashOf(c.Ref) == b.HashOf(c.Ref)
		if same != (c.Action == Unchanged) {
			t.Fatalf("%v is %s, but its hash tells otherwise", c.Ref, c.Action)
		}
		if own := c.Action == Changed && a.Resources[c.Ref].Hash == b.Resources[c.Ref].Hash; own != (len(c.Because) > 0) {
			t.Fatalf("%v changed because of %v", c.Ref, c.Because)
		}
	}
	if !Diff(a, a).Empty() {
		t.Fatal("a set differs from itself")
	}
}

// applied is what a plan makes of a set.
func applied(s *specs.Set, p Plan) map[specs.Ref]*specs.Resource {
	out := maps.Clone(s.Resources)
	for _, c := range p.Changes {
		if c.Action == Removed {
			delete(out, c.Ref)
		} else {
			out[c.Ref] = c.Resource
		}
	}
	return out
}
