package spectest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// maxResult is the most data of the event of a result, in bytes: more than a
// test can say.
const maxResult = 1 << 30

// call is a firing that has no result yet.
type call struct {
	sensor  string // the name it runs under
	trigger *specs.Trigger
	firing  *sensors.Firing
	// fault is why it cannot be called, "" when it can.
	fault string
}

// callee is the name of the function that a trigger calls.
func callee(sensor string, t *specs.Trigger) string {
	if t.Function != "" {
		return t.Function
	}
	return sensor + "." + t.Name
}

// checkResult finds names of a result that are not in the specs.
func (r *Runner) checkResult(in *specs.TestResult, report func(specs.Pos, specs.Code, string, ...any)) {
	if in.Function != "" {
		if !r.functions[in.Function] {
			report(in.Pos, specs.CodeUnknownReference, "the specs have no function %q", in.Function)
		}
		return
	}
	switch found := r.having(in); {
	case len(found) == 1:
	case len(found) > 1:
		report(in.Pos, specs.CodeMissingKey, "several sensors have a trigger %q, name one: %s and %s", in.Trigger, found[0], found[1])
	case in.Sensor == "":
		report(in.Pos, specs.CodeUnknownReference, "the specs have no Sensor with a trigger %q", in.Trigger)
	case r.specs[in.Sensor] == nil:
		report(in.Pos, specs.CodeUnknownReference, "the specs have no Sensor %q", in.Sensor)
	default:
		report(in.Pos, specs.CodeUnknownReference, "sensor %s has no trigger %q", in.Sensor, in.Trigger)
	}
}

// having are the sensors a result can be about, sorted.
func (r *Runner) having(in *specs.TestResult) (names []string) {
	for name, s := range r.specs {
		if (in.Sensor == "" || in.Sensor == name) && slices.ContainsFunc(s.Triggers, func(t specs.Trigger) bool { return t.Name == in.Trigger }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// result makes the event of a result, the i-th of the test, as the engine does
// when the job has ended. why says why it would not.
func (r *recorder) result(e *specs.TestEvent, i int) (ev *bus.Event, why string, err error) {
	in := e.Result
	res := sensors.Result{Failed: in.Outcome == specs.OutcomeFailed, Error: in.Error, Attempts: 1, Time: r.start.Add(e.At.D())}
	if in.Output.Set {
		if res.Output, err = json.Marshal(in.Output.Root); err != nil {
			return nil, "", fmt.Errorf("output: %w", err)
		}
	}
	if in.Function != "" {
		res.Function, res.Sensor, res.Trigger, res.Firing = in.Function, in.Sensor, in.Trigger, "elsewhere-"+strconv.Itoa(i+1)
		if in.Key.Set {
			if res.Correlation, err = sensors.KeyOf(in.Key.Root); err != nil {
				return nil, "", fmt.Errorf("key: %w", err)
			}
		}
	} else if why := r.answer(in, &res); why != "" {
		return nil, why, nil
	}
	if res.Failed && res.Error == "" {
		res.Error = "failed"
	}
	switch {
	case res.Flow == "" && !r.runner.asked.Wants(res.Function, res.Sensor, res.Trigger):
		why = "the engine does not tell this result: no dependency asks for results of " + res.Function
	case res.Hops() > bus.MaxHops:
		why = fmt.Sprintf("there is no such result: the call would be refused, for %s already passed through %d functions", res.Last.ID, res.Last.Hops)
	default:
		ev = res.Event(maxResult)
	}
	return ev, why, nil
}

// answer makes res the result of the oldest firing that in means, or says why
// it cannot.
func (r *recorder) answer(in *specs.TestResult, res *sensors.Result) (why string) {
	name := r.runner.having(in)[0]
	at := slices.IndexFunc(r.open, func(c call) bool {
		return c.sensor == name && c.trigger.Name == in.Trigger && (!in.Key.Set || keyed(&c, in.Key)) && (in.Item == nil || *in.Item == c.firing.Item)
	})
	if at < 0 {
		return fmt.Sprintf("no firing of trigger %s of sensor %s waits for a result", in.Trigger, name)
	}
	c := r.open[at]
	if c.fault != "" {
		if !res.Failed {
			return fmt.Sprintf("the firing is a dead letter, so its outcome is failed: %s", c.fault)
		}
		res.Attempts = 0
		if res.Error == "" {
			res.Error = c.fault
		}
	}
	r.open = slices.Delete(r.open, at, at+1)
	f := c.firing
	res.Function, res.Sensor, res.Trigger, res.Last = callee(c.sensor, c.trigger), c.sensor, c.trigger.Name, r.events[f.Last]
	res.Firing, res.Correlation, res.Flow, res.Item, res.Items = f.Key, f.Correlation, f.Flow, f.Item, f.Items
	return ""
}

// keyed reports whether a firing has a key.
func keyed(c *call, key specs.Value) bool {
	want, err := jsonValue(key.Root)
	return err == nil && equal(want, sensors.KeyValue(c.firing.Correlation))
}
