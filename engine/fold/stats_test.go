package fold_test

import (
	"strings"
	"testing"

	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/specs"
)

// What a group of filters cannot decide counts for each of its sensors, also
// when the groups change.
func TestGroupedVerdictsCountForEachSensor(t *testing.T) {
	b := open(t, bustest.Dir(t))
	one := func(when string) *specs.Sensor {
		return &specs.Sensor{
			Dependencies: []specs.Dependency{{Name: "a", Source: "shop", Event: "orders", When: expr(when)}}, Triggers: trigger(),
		}
	}
	list := map[string]*specs.Sensor{
		"x": one(`data.order.state == "x"`), "y": one(`data.order.state == "y" && data.id > 0`), "z": one(`data.id == 2`),
	}
	d := dispatcher(b, compile(t, "1", list), nil)
	defer run(d)()
	check := func(when string, missing, matched uint64) {
		t.Helper()
		stats := d.SensorStats()
		for _, name := range []string{"x", "y"} {
			c := stats[name]
			if c.Missing != missing || !strings.Contains(c.Problem, "dependency a: missing data.order") {
				t.Errorf("%s, %s: %+v, want %d missing", when, name, c, missing)
			}
		}
		if z := stats["z"]; z.Missing != 0 || z.Matched != matched {
			t.Errorf("%s, z: %+v", when, z)
		}
	}
	publish(t, b, "orders", 1)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 2)))
	check("first", 2, 1)

	list["new"] = one(`data.order.state == "new"`)
	if err := d.Swap(t.Context(), compile(t, "2", list)); err != nil {
		t.Fatal(err)
	}
	check("swapped", 2, 1)
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 2)))
	check("after it", 3, 2)
	if c := d.SensorStats()["new"]; c.Missing != 1 {
		t.Errorf("new: %+v", c)
	}
}
