package sensors

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// MaxFlows is the most workflows of a sensor that are under way under one
// correlation key. Beyond it the oldest is given up.
const MaxFlows = 1000

// order makes the sequence of the triggers, each after those it follows. The
// spec was checked to have no cycle.
func (c *compilation) order() {
	n := len(c.spec.Triggers)
	c.scopes = make([]expression.Scope, 2*n)
	placed := make([]bool, n)
	var place func(i int)
	place = func(i int) {
		if placed[i] {
			return
		}
		placed[i] = true
		for _, name := range c.spec.Triggers[i].Follows() {
			if at := slices.Index(c.program.names, name); at >= 0 {
				place(at)
			}
		}
		c.sequence = append(c.sequence, i)
	}
	for i := range n {
		place(i)
	}
}

// step compiles what makes a later step of a workflow fire.
func (c *compilation) step(i int, t *trigger, s *specs.Trigger, path string) {
	t.cond, t.failure = nil, len(s.OnFailure) > 0
	for _, name := range s.Follows() {
		if at := slices.Index(c.program.names, name); at >= 0 {
			t.follows = append(t.follows, at)
		}
	}
	first := &c.program.triggers[t.follows[0]]
	t.root, t.batched = first.root, first.batched
	if s.Condition.IsZero() {
		return
	}
	sc := c.templateScope(t)
	if t.cond = c.expr(s.Condition, path+".condition", sc, expression.WantBool); t.cond != nil {
		c.waits(i, t, path+".condition", s.Condition.Pos.At(1, 1), t.cond.Dependencies())
		t.condNeed.add(t.cond)
		t.need = t.condNeed
		t.results = slices.Contains(t.cond.Variables(), "triggers")
	}
}

// earlier are the names of all triggers one follows, directly or not.
func (c *compilation) earlier(t *trigger) []string {
	var out []string
	for _, at := range t.follows {
		name := c.program.names[at]
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
		for _, name := range c.earlier(&c.program.triggers[at]) {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// workflow notes who is followed.
func (c *compilation) workflow() {
	p := c.program
	for _, i := range c.sequence {
		for _, at := range p.triggers[i].follows {
			p.triggers[at].followed = true
		}
		if p.triggers[i].follows != nil {
			p.steps = append(p.steps, i)
		}
	}
}

// rootOf is the trigger a workflow begins with, or t itself.
func (p *Program) rootOf(t *trigger) *trigger {
	if t.follows == nil {
		return t
	}
	return &p.triggers[t.root]
}

// flow is one workflow under way: what a firing began whose trigger others
// follow.
type flow struct {
	// id is the same for all triggers that fired from the same events.
	id string
	at int64
	// taken is what the first firing used.
	taken
	steps []flowStep
}

// flowStep is what became of one trigger in a workflow.
type flowStep struct {
	trigger int
	state   stepState
	// items is the number of calls whose results are awaited, answers are those
	// that have come, in their order.
	items   int
	answers []answer
}

type stepState uint8

const (
	// stepCalled: its results have not all come.
	stepCalled stepState = iota
	stepSucceeded
	stepFailed
	stepSkipped
	// stepUnneeded: it was for a failure that did not happen.
	stepUnneeded
	// stepFired: it was called, and nobody waits for its result.
	stepFired
)

// answer is the event that tells how a call ended.
type answer struct {
	item   int
	seq    uint64
	failed bool
}

func (f *flow) step(trigger int) *flowStep {
	for i := range f.steps {
		if f.steps[i].trigger == trigger {
			return &f.steps[i]
		}
	}
	return nil
}

// result is the match of an event that tells how a step of this sensor's
// workflows ended.
func (p *Program) result(ev *bus.Event) (Match, bool) {
	if ev.EventSource != bus.SourceFunction || ev.Extensions[bus.ExtFlow] == "" || ev.Extensions[bus.ExtSensor] != p.name {
		return Match{}, false
	}
	t := slices.Index(p.names, ev.Extensions[bus.ExtTrigger])
	if t < 0 || !p.triggers[t].followed {
		return Match{}, false
	}
	return Match{Dep: len(p.deps) + t, Key: ev.Extensions[bus.ExtKey]}, true
}

// begin notes that a trigger fired whose result others wait for, and returns
// the identity of the workflow.
func (s *step) begin(i int, t *trigger, used taken, deadline int64, items int) string {
	f := s.flow
	if t.follows == nil {
		id := s.firingKey("", used, nil, deadline, "")
		at := s.st.findFlow(id)
		if at < 0 {
			own := taken{append([]kept(nil), used.kept...), append([]int(nil), used.ends...)}
			at = s.st.addFlow(flow{id: id, at: s.now, taken: own})
			if at == MaxFlows {
				s.st.dropFlow(0)
				at--
				s.verdicts = append(s.verdicts, Verdict{Outcome: Superseded, Trigger: t.name, Seq: s.seq(), Detail: "more than " + strconv.Itoa(MaxFlows) + " workflows are under way"})
			}
		}
		f = &s.st.more.flows[at]
	}
	state := stepCalled
	if items == 0 {
		state = stepSucceeded // there was nothing to do
	}
	f.steps = append(f.steps, flowStep{trigger: i, state: state, items: items})
	if t.follows == nil && !slices.Contains(s.begun, f.id) {
		s.begun = append(s.begun, f.id)
	}
	return f.id
}

// settle lets the steps follow that need not wait, after all triggers that
// fire together have fired.
func (s *step) settle() {
	for _, id := range s.begun {
		if at := s.st.findFlow(id); at >= 0 {
			s.proceed(at)
		}
	}
}

// answered takes in how a call of trigger i ended.
func (s *step) answered(i int) {
	ev := s.in.Event
	id := ev.Extensions[bus.ExtFlow]
	at := s.st.findFlow(id)
	if at < 0 {
		return // given up, or ended by an earlier failure
	}
	f := &s.st.more.flows[at]
	st := f.step(i)
	if st == nil || st.state != stepCalled {
		return
	}
	item, _ := strconv.Atoi(ev.Extensions[bus.ExtItem])
	where, there := slices.BinarySearchFunc(st.answers, item, func(a answer, item int) int { return a.item - item })
	if there || item < 0 || item >= st.items {
		return // it was called again
	}
	st.answers = slices.Insert(st.answers, where, answer{item, ev.Seq, ev.Type != bus.TypeFunctionSucceeded})
	if len(st.answers) < st.items {
		return
	}
	st.state = stepSucceeded
	if slices.ContainsFunc(st.answers, func(a answer) bool { return a.failed }) {
		st.state = stepFailed
	}
	s.proceed(at)
}

// proceed lets the steps follow that can, and forgets a workflow of which
// nothing is left to do.
func (s *step) proceed(at int) {
	f := &s.st.more.flows[at]
	s.flow = f
	open := false
	for i := range f.steps {
		open = open || f.steps[i].state == stepCalled
	}
	for _, i := range s.p.steps {
		if f.step(i) != nil || f.step(s.p.triggers[i].root) == nil {
			continue
		}
		t := &s.p.triggers[i]
		switch ready, skip := s.ready(f, t); {
		case skip == unneeded:
			f.steps = append(f.steps, flowStep{trigger: i, state: stepUnneeded})
		case skip != "":
			f.steps = append(f.steps, flowStep{trigger: i, state: stepSkipped})
			s.skipped(t, skip)
		case ready:
			s.follow(i, t, f)
			open = open || f.step(i).state == stepCalled
		default:
			open = true
		}
	}
	s.flow = nil
	if !open {
		s.st.dropFlow(at)
	}
}

// unneeded is why a step for failures is skipped when there was none.
const unneeded = "nothing failed"

// ready tells whether a step can be decided now, or why it never will fire.
func (s *step) ready(f *flow, t *trigger) (ready bool, skip string) {
	waits, failed := false, false
	for _, i := range t.follows {
		st, name := f.step(i), s.p.names[i]
		switch {
		case st == nil && s.p.triggers[i].follows == nil:
			skip = name + " did not fire"
		case st == nil || st.state == stepCalled:
			waits = true
		case st.state == stepFailed:
			failed = true
			if !t.failure {
				return false, name + " failed"
			}
		case st.state == stepUnneeded && !t.failure:
			return false, unneeded
		case st.state == stepSkipped && !t.failure:
			return false, name + " was skipped"
		}
	}
	switch {
	case t.failure && failed:
		return true, ""
	case skip != "":
		return false, skip
	case waits:
		return false, ""
	case t.failure:
		return false, unneeded
	}
	return true, ""
}

// follow fires a later step of a workflow, if its condition holds.
func (s *step) follow(i int, t *trigger, f *flow) {
	if t.cond != nil {
		env, err := s.firingEnv(t, &t.condNeed, f.taken, f)
		ok := false
		if err == nil {
			ok, err = t.cond.Bool(env)
		}
		if s.in.Inspect != nil {
			s.inspectStep(t, env, err, ok)
		}
		if !ok {
			f.steps = append(f.steps, flowStep{trigger: i, state: stepSkipped})
			if err != nil {
				v := verdictOf(err, "", s.seq())
				v.Trigger = t.name
				s.verdicts = append(s.verdicts, v)
			}
			s.skipped(t, "its condition does not hold")
			return
		}
	}
	s.emit(i, t, f.taken, 0)
	if f.step(i) == nil {
		f.steps = append(f.steps, flowStep{trigger: i, state: stepFired})
	}
}

func (s *step) skipped(t *trigger, why string) {
	s.verdicts = append(s.verdicts, Verdict{Outcome: Skipped, Trigger: t.name, Seq: s.seq(), Detail: why})
}

// resultName is the name of a trigger's result among the contributions to a
// firing; no dependency has a dot in its name.
func resultName(trigger string) string { return "triggers." + trigger }

// precedes reports whether trigger i is an earlier step than t.
func (p *Program) precedes(i int, t *trigger) bool {
	return slices.ContainsFunc(t.follows, func(at int) bool { return at == i || p.precedes(i, &p.triggers[at]) })
}

// results is what expressions see as `triggers`: the results of the steps that
// have ended, of which a fan-out has a list of outputs.
func (s *step) results(f *flow) (map[string]any, error) {
	out := make(map[string]any, len(f.steps))
	for i := range f.steps {
		st := &f.steps[i]
		if st.state != stepSucceeded && st.state != stepFailed {
			continue
		}
		r, err := s.resultOf(st.trigger, st.answers, s.p.triggers[st.trigger].fan != nil)
		if err != nil {
			return nil, err
		}
		out[expression.Ident(s.p.names[st.trigger])] = r
	}
	return out, nil
}

// resultOf is the result of one trigger, of which all is true when its output is
// a list of those of all answers.
func (s *step) resultOf(trigger int, answers []answer, all bool) (map[string]any, error) {
	outputs, r := make([]any, 0, len(answers)), map[string]any{"outcome": "succeeded", "output": nil, "error": nil, "attempts": int64(0)}
	for _, a := range answers {
		ev, err := s.event(a.seq)
		var v any
		if err == nil {
			v, err = ev.Value()
		}
		if err != nil {
			return nil, fmt.Errorf("result of %s: %w", s.p.names[trigger], err)
		}
		data, _ := v.(map[string]any)
		outputs = append(outputs, data["output"])
		if ev.Type != bus.TypeFunctionSucceeded && r["error"] == nil {
			r["outcome"], r["error"] = "failed", data["error"]
		}
		if n, ok := data["attempts"].(int64); ok {
			r["attempts"] = max(n, r["attempts"].(int64))
		}
	}
	if all {
		r["output"] = outputs
	} else if len(outputs) > 0 {
		r["output"] = outputs[0]
	}
	return r, nil
}

// resultTrigger is the trigger whose result a contribution is, -1 for none.
func (p *Program) resultTrigger(dependency string) int {
	name, ok := strings.CutPrefix(dependency, resultName(""))
	if !ok {
		return -1
	}
	return slices.Index(p.names, name)
}
