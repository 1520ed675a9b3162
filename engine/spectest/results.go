package spectest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
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
	last    *bus.Event // that contributed, nil for none
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
		if (in.Sensor == "" || in.Sensor == name) && hasTrigger(s, in.Trigger) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// hasTrigger reports whether a sensor has a trigger of this name, or one whose
// deadLetter stands for it.
func hasTrigger(s *specs.Sensor, name string) bool {
	for _, t := range s.Calls() {
		if t.Name == name {
			return true
		}
	}
	return false
}

// result makes the event of a result, the i-th of the test, as the engine does
// when the job has ended, and calls what is called for a dead letter. why says
// why it would not; the event is nil when there is no more to it than that call.
func (r *recorder) result(e *specs.TestEvent, i int) (ev *bus.Event, why string, err error) {
	in := e.Result
	res := sensors.Result{Failed: in.Outcome == specs.OutcomeFailed, Error: in.Error, Attempts: 1, Time: r.start.Add(e.At.D())}
	if in.Output.Set {
		if res.Output, err = json.Marshal(in.Output.Root); err != nil {
			return nil, "", fmt.Errorf("output: %w", err)
		}
	}
	var handler *specs.Trigger // of the dead letter it makes
	var answered call
	if in.Function != "" {
		res.Function, res.Sensor, res.Trigger, res.Firing = in.Function, in.Sensor, in.Trigger, "elsewhere-"+strconv.Itoa(i+1)
		if in.Key.Set {
			if res.Correlation, err = sensors.KeyOf(in.Key.Root); err != nil {
				return nil, "", fmt.Errorf("key: %w", err)
			}
		}
	} else {
		if answered, why = r.answer(in, &res); why != "" {
			return nil, why, nil
		}
		if res.Failed {
			handler = answered.trigger.Handler()
		}
	}
	if res.Failed && res.Error == "" {
		res.Error = "failed"
	}
	if handler != nil {
		r.died(&answered, handler, &res)
	}
	switch {
	case handler != nil && res.Flow == "" && !r.runner.asked.Wants(res.Function, res.Sensor, res.Trigger):
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
func (r *recorder) answer(in *specs.TestResult, res *sensors.Result) (c call, why string) {
	name := r.runner.having(in)[0]
	at := slices.IndexFunc(r.open, func(c call) bool {
		return c.sensor == name && c.trigger.Name == in.Trigger && (!in.Key.Set || keyed(&c, in.Key)) && (in.Item == nil || *in.Item == c.firing.Item)
	})
	if at < 0 {
		return c, fmt.Sprintf("no firing of trigger %s of sensor %s waits for a result", in.Trigger, name)
	}
	c = r.open[at]
	if c.fault != "" {
		if !res.Failed {
			return c, fmt.Sprintf("the firing is a dead letter, so its outcome is failed: %s", c.fault)
		}
		res.Attempts = 0
		if res.Error == "" {
			res.Error = c.fault
		}
	}
	r.open = slices.Delete(r.open, at, at+1)
	f := c.firing
	res.Function, res.Sensor, res.Trigger, res.Last = callee(c.sensor, c.trigger), c.sensor, c.trigger.Name, c.last
	res.Firing, res.Correlation, res.Flow, res.Item, res.Items = f.Key, f.Correlation, f.Flow, f.Item, f.Items
	return c, ""
}

// died has what the deadLetter of a trigger calls called for the job of a firing
// that failed.
func (r *recorder) died(c *call, handler *specs.Trigger, res *sensors.Result) {
	at := slices.IndexFunc(r.runner.sensors, func(s evaluate.Sensor) bool { return s.Name == c.sensor })
	program, f, failed := r.runner.sensors[at].Program, c.firing, res.Event(maxResult)
	rendered, err := program.RenderDeadLetter(f.TriggerIndex, sensors.Failure{
		Events: f.Events, Item: f.Item, Result: failed, Kept: func(seq uint64) *bus.Event { return r.events[seq] },
	})
	path := fmt.Sprintf("spec.triggers[%d].deadLetter", f.TriggerIndex)
	if strings.HasPrefix(c.sensor, specs.SubscriptionPrefix) {
		path = "spec.deadLetter"
	}
	r.call(calling{
		sensor: c.sensor, trigger: handler, path: path, inputPath: program.DeadLetterInputPath(f.TriggerIndex), last: failed, rendered: rendered, err: err,
		firing: &sensors.Firing{Key: f.Key + specs.DeadLetterSuffix, Correlation: f.Correlation, Time: res.Time},
	})
}

// keyed reports whether a firing has a key.
func keyed(c *call, key specs.Value) bool {
	want, err := jsonValue(key.Root)
	return err == nil && equal(want, sensors.KeyValue(c.firing.Correlation))
}
