package evaluate_test

import (
	"testing"
	"time"

	"github.com/sensor-engine/engine/sensors"
)

// TestInspect: each step is told of what it is to fill in, deadlines too.
func TestInspect(t *testing.T) {
	l := newLog(program(t, "x", 10*time.Minute, ""))
	var all []*sensors.Inspection
	l.e.Inspect = func(_ int, key string) *sensors.Inspection {
		all = append(all, &sensors.Inspection{})
		if key == "l" {
			return nil
		}
		return all[len(all)-1]
	}
	l.event(1, 0, "a", `{"key": "k"}`)
	l.event(2, 0, "a", `{"key": "l"}`)
	l.event(3, 11*time.Minute, "b", `{"key": "k"}`)
	if len(all) != 5 { // two deadlines before the last event
		t.Fatalf("%d steps", len(all))
	}
	if got := all[0]; got.Key != "k" || len(got.Decisions) != 1 || got.Decisions[0].Held || len(got.After.Triggers) != 1 {
		t.Errorf("%+v", got)
	}
	if all[1].Key != "" || len(all[2].Before.Triggers) != 0 || all[4].Decisions[0].Missing[0] != "a" {
		t.Errorf("%+v, %+v, %+v", all[1], all[2], all[4])
	}
}
