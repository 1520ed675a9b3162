package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// placedSensor is a compiled sensor with its resource.
type placedSensor struct {
	compiledSensor
	ref specs.Ref
}

// placed returns the sensors of a set that compile, in the order of their
// resources.
func (c *Compiler) placed(set *specs.Set) []placedSensor {
	var out []placedSensor
	for ref, r := range set.Resources {
		if !isSensor(r) {
			continue
		}
		if cs := c.sensor(ref, r); cs.program != nil {
			out = append(out, placedSensor{cs, ref})
		}
	}
	slices.SortFunc(out, func(a, b placedSensor) int {
		return cmp.Or(cmp.Compare(a.ref.Kind, b.ref.Kind), cmp.Compare(a.ref.Name, b.ref.Name))
	})
	return out
}

// asked tells of which calls the sensors of a set ask for the results.
func (c *Compiler) asked(set *specs.Set) *sensors.Asked {
	var programs []*sensors.Program
	for _, s := range c.placed(set) {
		programs = append(programs, s.program)
	}
	return sensors.NewAsked(programs)
}

// calleeName is the name of the function a trigger of a sensor calls.
func calleeName(ref specs.Ref, t *specs.Trigger) string {
	if t.Function != "" {
		return t.Function
	}
	if ref.Kind == specs.KindSubscription { // its name may be a Sensor's, too
		return specs.SubscriptionPrefix + ref.Name + "." + t.Name
	}
	return ref.Name + "." + t.Name
}

// cause is how one sensor makes another one decide: a trigger whose results a
// dependency takes.
type cause struct {
	from, to   int // of the sensors
	trigger    string
	function   string
	dependency string
}

// loops finds dependencies on results of calls that their own sensor causes,
// directly or by way of others.
func (c *Compiler) loops(set *specs.Set) specs.Diagnostics {
	list := c.placed(set)
	causes := causesOf(list)
	next := map[int][]cause{} // by the sensor they are from
	for _, e := range causes {
		next[e.from] = append(next[e.from], e)
	}
	var found specs.Diagnostics
	for _, e := range causes {
		way := wayBack(next, e)
		if way == nil {
			continue
		}
		to := &list[e.to]
		i := slices.IndexFunc(to.spec.Dependencies, func(d specs.Dependency) bool { return d.Name == e.dependency })
		path := fmt.Sprintf("spec.dependencies[%d]", i)
		if to.ref.Kind == specs.KindSubscription {
			path = "spec.eventType"
		}
		if slices.ContainsFunc(found, func(d specs.Diagnostic) bool { return d.Ref == to.ref && d.Path == path }) {
			continue
		}
		var steps []string
		for _, w := range way {
			steps = append(steps, fmt.Sprintf("trigger %s of sensor %s calls %s", w.trigger, list[w.from].name, w.function))
		}
		found = append(found, specs.Diagnostic{
			Pos: to.spec.Dependencies[i].Pos, Severity: specs.Warning, Code: CodeResultLoop, Ref: to.ref, Path: path,
			Message: fmt.Sprintf("it takes results of calls that this sensor causes itself (%s): a loop, which ends after %d functions with a dead letter", strings.Join(steps, "; "), bus.MaxHops),
			Hint:    `narrow it, for example with when: data.function != "` + e.function + `"`,
		})
	}
	return found
}

// causesOf are the causes among sensors. It asks their filters about a result
// of each trigger; what they cannot say without an output counts as yes.
func causesOf(list []placedSensor) (out []cause) {
	var programs []*sensors.Program // that take results: few, or none
	number := map[*sensors.Program]int{}
	for i := range list {
		if p := list[i].program; p.TakesResults() {
			programs, number[p] = append(programs, p), i
		}
	}
	if len(programs) == 0 {
		return nil
	}
	asked, index := sensors.NewAsked(programs), sensors.NewIndex(programs)
	var candidates []*sensors.Program
	for from := range list {
		s := &list[from]
		for _, t := range s.spec.Calls() {
			function := calleeName(s.ref, t)
			if !asked.Wants(function, s.name, t.Name) && !s.program.Followed(t.Name) {
				continue
			}
			seen := map[sensors.Member]bool{}
			take := func(p *sensors.Program, dependency string) {
				if m := (sensors.Member{Program: p, Dependency: dependency}); dependency != "" && !seen[m] {
					seen[m] = true
					out = append(out, cause{from, number[p], t.Name, function, dependency})
				}
			}
			for _, failed := range []bool{false, true} {
				r := sensors.Result{Function: function, Sensor: s.name, Trigger: t.Name, Failed: failed, Error: "error", Attempts: 1}
				view := sensors.NewView(r.Event(1 << 20))
				var undecided []sensors.GroupVerdict
				candidates, undecided = index.Lookup(view, candidates[:0])
				for _, v := range undecided {
					for _, m := range index.Groups()[v.Group].Members {
						take(m.Program, m.Dependency)
					}
				}
				for _, p := range candidates {
					names, routing := p.Dependencies(), p.Route(view)
					for _, m := range routing.Matches {
						if m.Dep < len(names) { // no step of a workflow, which ends
							take(p, names[m.Dep])
						}
					}
					for _, v := range routing.Verdicts {
						if v.Outcome != sensors.No {
							take(p, v.Dependency)
						}
					}
				}
			}
		}
	}
	return out
}

// wayBack is the shortest chain of causes from the sensor that e makes decide
// back to it, e the last, or nil.
func wayBack(next map[int][]cause, e cause) []cause {
	by := map[int]cause{} // the cause by which a sensor was reached
	for queue := []int{e.to}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == e.from {
			way := []cause{e}
			for at := e.from; at != e.to; at = way[0].from {
				way = slices.Insert(way, 0, by[at])
			}
			return way
		}
		for _, n := range next[queue[0]] {
			if _, reached := by[n.to]; n.to != e.to && !reached {
				by[n.to] = n
				queue = append(queue, n.to)
			}
		}
	}
	return nil
}
