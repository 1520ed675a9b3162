package sensors

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/expression"
)

// outcomeNames are the outcomes as they are written.
var outcomeNames = [...]string{
	Yes: "yes", No: "no", Missing: "missing", Failed: "failed", Superseded: "superseded", Expired: "expired", Waiting: "waiting", Fired: "fired",
	Answered: "answered", Suppressed: "suppressed", Debounced: "debounced", Skipped: "skipped", Evicted: "evicted", Lost: "lost",
}

// String is the name of the outcome.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return "outcome " + strconv.Itoa(int(o))
}

// MarshalText writes the name.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads a name.
func (o *Outcome) UnmarshalText(b []byte) error {
	i := slices.Index(outcomeNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("unknown outcome %q", b)
	}
	*o = Outcome(i)
	return nil
}

// Answer is what one dependency says of an event, part by part.
type Answer struct {
	Dependency string `json:"dependency"`
	// Outcome is Yes, No, Missing or Failed, and Detail says why.
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
	// Selectors are those the dependency has. Nothing else is asked unless all
	// fit.
	Selectors []Selector `json:"selectors"`
	// Transform, When and Correlate are how their evaluation went, nil when
	// there is none or it was not asked.
	Transform *expression.Trace `json:"transform,omitempty"`
	When      *expression.Trace `json:"when,omitempty"`
	Correlate *expression.Trace `json:"correlate,omitempty"`
	// Key is the correlation key when the outcome is Yes.
	Key string `json:"key,omitempty"`
}

// Selector is one of a dependency's selectors held against an event.
type Selector struct {
	Name    string `json:"name"`
	Pattern string `json:"pattern"`
	Value   string `json:"value"`
	Fits    bool   `json:"fits"`
}

// Selects reports whether an event fits the selectors of a dependency, or is
// the result of a step of one of the sensor's workflows.
func (p *Program) Selects(ev *bus.Event) bool {
	if len(p.steps) > 0 {
		if _, ok := p.result(ev); ok {
			return true
		}
	}
	return slices.ContainsFunc(p.deps, func(d dependency) bool { return d.selects(ev) })
}

// Follows reports whether a trigger, given by its index, is a later step of a
// workflow.
func (p *Program) Follows(trigger int) bool { return p.triggers[trigger].follows != nil }

// Explain tells what each dependency says of an event, as [Program.Route]
// decides it. It takes much longer than that.
func (p *Program) Explain(ev *bus.Event) []Answer {
	v := NewView(ev)
	out := make([]Answer, len(p.deps))
	for i := range p.deps {
		d := &p.deps[i]
		a := &out[i]
		a.Dependency, a.Outcome = d.name, No
		a.Selectors = d.selectors(ev)
		if at := slices.IndexFunc(a.Selectors, func(s Selector) bool { return !s.Fits }); at >= 0 {
			a.Detail = "the " + a.Selectors[at].Name + " does not fit"
			continue
		}
		verdict, _ := d.wants(v, false)
		d.trace(v, a, verdict.Outcome == Failed)
		if a.Outcome, a.Detail = verdict.Outcome, verdict.Detail; verdict.Outcome != Yes || p.correlate == nil {
			continue
		}
		key, err := p.correlation(d, v)
		env, envErr := v.transformed, error(nil)
		if d.transform == nil {
			env, envErr = v.environment(&p.routeNeed)
		}
		t := expression.TraceOf(p.correlate.Source(), nil, envErr)
		if envErr == nil {
			t = p.correlate.Trace(env)
		}
		a.Correlate = &t
		if err != nil {
			verdict = verdictOf(err, d.name, ev.Seq)
			a.Outcome, a.Detail = verdict.Outcome, verdict.Detail
			continue
		}
		a.Key = key
	}
	return out
}

// selectors holds the selectors of a dependency against an event.
func (d *dependency) selectors(ev *bus.Event) []Selector {
	out := []Selector{}
	for _, s := range [...]struct {
		name  string
		p     pattern
		value string
	}{{"source", d.source, ev.EventSource}, {"event", d.event, ev.EventName}, {"type", d.kind, ev.Type}, {"subject", d.subject, ev.Subject}} {
		if s.p.text != "" {
			out = append(out, Selector{s.name, s.p.text, s.value, s.p.match(s.value)})
		}
	}
	return out
}

// trace fills in how transform and when went. failed tells whether that failed:
// what cannot be read of the event matters only when it was asked for.
func (d *dependency) trace(v *View, a *Answer, failed bool) {
	env, err := v.environment(&d.need)
	if err != nil && failed {
		switch {
		case d.transform != nil:
			t := expression.TraceOf(d.transform.Source(), nil, err)
			a.Transform = &t
		case d.when != nil:
			t := expression.TraceOf(d.when.Source(), nil, err)
			a.When = &t
		}
		return
	}
	if d.transform != nil {
		t := traceOf(d.transform, env)
		a.Transform = &t
		if t.Outcome != expression.Evaluated {
			return
		}
		if env, err = d.transformed(env); err != nil {
			return
		}
	}
	if d.when == nil {
		return
	}
	t := d.when.TraceFilter
	if d.transform != nil { // behind it nothing is decided first
		t = d.when.Trace
	}
	when := t(env)
	a.When = &when
}

// traceOf is the trace of a transform. Of a jq program only the whole is told.
func traceOf(t transformer, env map[string]any) expression.Trace {
	if e, ok := t.(*expression.Program); ok {
		return e.Trace(env)
	}
	v, err := t.Eval(env)
	return expression.TraceOf(t.Source(), v, err)
}

// Inspection is what a step tells of itself; see [Input.Inspect].
type Inspection struct {
	// Key is the correlation key and Time the log time of the step.
	Key  string    `json:"key"`
	Time time.Time `json:"time"`
	// Before is what waited when the event came, after what was due had been
	// given up; After is what waits now.
	Before State `json:"before"`
	After  State `json:"after"`
	// Decisions are those about the conditions of triggers, in their order. A
	// trigger to which the event means nothing has none.
	Decisions []Decision `json:"decisions"`
}

// Decision is one evaluation of a trigger's condition.
type Decision struct {
	Trigger string `json:"trigger"`
	// Uses are the events that a firing would use, and Missing the dependencies
	// that have not arrived.
	Uses    []Contribution `json:"uses,omitempty"`
	Missing []string       `json:"missing,omitempty"`
	// Held is what was decided, and Condition how that went.
	Held      bool             `json:"held"`
	Condition expression.Trace `json:"condition"`
}

// State is what a sensor keeps under one correlation key, for people.
type State struct {
	Triggers []TriggerState `json:"triggers,omitempty"`
	// Workflows are those under way.
	Workflows []WorkflowState `json:"workflows,omitempty"`
}

// TriggerState is what waits for one trigger. A trigger for which nothing does
// is not told of.
type TriggerState struct {
	Trigger string `json:"trigger"`
	// Events are those that wait, the oldest first; More is how many others do.
	Events []WaitingOn `json:"events,omitempty"`
	More   int         `json:"more,omitempty"`
	// Missing are the dependencies that have not arrived, with how many of a
	// count have, and the absences whose time is not over.
	Missing []string `json:"missing,omitempty"`
	// QuietUntil is when the trigger's cooldown ends, zero when it is not quiet.
	QuietUntil time.Time `json:"quietUntil,omitzero"`
	// Gathered is how often the condition held and did not fire yet, because
	// the trigger debounces or gathers a batch; Due is when that fires by time.
	Gathered int       `json:"gathered,omitempty"`
	Due      time.Time `json:"due,omitzero"`
}

// WaitingOn is one event that waits.
type WaitingOn struct {
	Dependency string    `json:"dependency"`
	Seq        uint64    `json:"seq"`
	ID         string    `json:"id,omitempty"`
	Since      time.Time `json:"since"`
	// Until is when it is given up, zero for never.
	Until time.Time `json:"until,omitzero"`
	// Absences are the dependencies that are to stay away after it.
	Absences []AbsenceState `json:"absences,omitempty"`
}

// AbsenceState is one dependency that is to stay away after an event.
type AbsenceState struct {
	Dependency string    `json:"dependency"`
	Until      time.Time `json:"until"`
	// State is "pending", "absent" when the time is over, or "answered".
	State string `json:"state"`
}

// WorkflowState is one workflow under way.
type WorkflowState struct {
	ID    string      `json:"id"`
	Since time.Time   `json:"since"`
	Steps []StepState `json:"steps"`
}

// StepState is what became of one trigger in a workflow.
type StepState struct {
	Trigger string `json:"trigger"`
	// State is "called" while results are awaited, "succeeded", "failed",
	// "skipped", "unneeded" for a step for failures when nothing failed, or
	// "fired" when nobody waits for its result.
	State string `json:"state"`
	// Answers is how many of the Calls have ended.
	Answers int `json:"answers"`
	Calls   int `json:"calls"`
}

var stepNames = [...]string{
	stepCalled: "called", stepSucceeded: "succeeded", stepFailed: "failed", stepSkipped: "skipped", stepUnneeded: "unneeded", stepFired: "fired",
}

// maxDescribed is the most waiting events of one trigger that are told of.
const maxDescribed = 100

func moment(at int64) time.Time { return time.Unix(0, at).UTC() }

// Describe tells what is kept under one correlation key. The state is not
// changed. event gives an event by its sequence, or nil when it is no longer
// stored; see [Input.Kept].
func (p *Program) Describe(st *KeyState, event func(seq uint64) *bus.Event) State {
	var out State
	s := step{p: p, in: &Input{}}
	for i := range st.triggers() {
		v, at := st.view(i), slices.Index(p.names, (*st.names)[i])
		if at < 0 {
			continue
		}
		t := &p.triggers[at]
		ts := TriggerState{Trigger: t.name}
		for j := range v {
			if j == maxDescribed {
				ts.More = len(v) - j
				break
			}
			ts.Events = append(ts.Events, p.waitingOn(t, &v[j], event))
		}
		if len(v) > 0 {
			_, have := s.choose(t, v)
			ts.Missing = p.missing(t, v, have)
		}
		if fired := st.quiet(i); fired != 0 {
			ts.QuietUntil = moment(fired + t.cooldown)
		}
		for j := range st.holds() {
			h := &st.holds()[j]
			if h.trigger != i {
				continue
			}
			if ts.Gathered = h.times(); h.due != 0 {
				ts.Due = moment(h.due)
			}
		}
		if len(ts.Events) > 0 || ts.Gathered > 0 || !ts.QuietUntil.IsZero() {
			out.Triggers = append(out.Triggers, ts)
		}
	}
	for i := range st.flows() {
		f := &st.flows()[i]
		w := WorkflowState{ID: f.id, Since: moment(f.at)}
		for _, fs := range f.steps {
			w.Steps = append(w.Steps, StepState{Trigger: p.names[fs.trigger], State: stepNames[fs.state], Answers: len(fs.answers), Calls: fs.items})
		}
		out.Workflows = append(out.Workflows, w)
	}
	return out
}

func (p *Program) waitingOn(t *trigger, k *kept, event func(seq uint64) *bus.Event) WaitingOn {
	w := WaitingOn{Dependency: p.deps[k.dep].name, Seq: k.seq, Since: moment(k.at)}
	if ev := event(k.seq); ev != nil {
		w.ID = ev.ID
	}
	if p.within > 0 || p.reset != nil {
		if due, _ := p.expiry(k.at); due != 0 {
			w.Until = moment(due)
		}
	}
	for a := t.absent; a != 0; a &= a - 1 {
		d := &p.deps[bits.TrailingZeros64(a)]
		if d.after != int(k.dep) {
			continue
		}
		state := "pending"
		switch bit := a & -a; {
		case k.marks().answered&bit != 0:
			state = "answered"
		case k.marks().passed&bit != 0:
			state = "absent"
		}
		w.Absences = append(w.Absences, AbsenceState{Dependency: d.name, Until: moment(k.at + d.wait), State: state})
	}
	return w
}

// missing names the dependencies of a trigger that have not arrived, of those
// with a count also how many of what waits have, unless view is nil.
func (p *Program) missing(t *trigger, view []kept, have uint64) (out []string) {
	for refs := t.refs &^ have; refs != 0; refs &= refs - 1 {
		i := bits.TrailingZeros64(refs)
		d := &p.deps[i]
		switch {
		case t.absent&(1<<i) != 0:
			out = append(out, "absent("+d.name+")")
		case d.count > 1 && view != nil:
			n := 0
			for j := range view {
				if int(view[j].dep) == i {
					n++
				}
			}
			out = append(out, fmt.Sprintf("%s (%d of %d)", d.name, n, d.count))
		default:
			out = append(out, d.name)
		}
	}
	return out
}

// inspect notes the decision about a trigger's condition, which the step makes
// itself.
func (s *step) inspect(t *trigger, have uint64, used []kept, held bool) {
	d := Decision{Trigger: t.name, Held: held, Missing: s.p.missing(t, nil, have)}
	for i := range used {
		d.Uses = append(d.Uses, Contribution{Dependency: s.p.deps[used[i].dep].name, Seq: used[i].seq})
	}
	if t.cond == nil { // all of them
		d.Condition = s.p.arrivals(t, have)
	} else if env, err := s.environment(t, &t.condNeed, used, allDeps); err != nil {
		d.Condition = expression.TraceOf(t.cond.Source(), nil, err)
	} else {
		d.Condition = t.cond.Trace(env)
	}
	s.in.Inspect.Decisions = append(s.in.Inspect.Decisions, d)
}

// arrivals is the trace of the condition that all dependencies have arrived.
func (p *Program) arrivals(t *trigger, have uint64) expression.Trace {
	out := expression.Trace{Outcome: expression.Evaluated, Value: t.refs&^have == 0}
	for refs := t.refs; refs != 0; refs &= refs - 1 {
		i := bits.TrailingZeros64(refs)
		name := expression.Ident(p.deps[i].name)
		if t.absent&(1<<i) != 0 {
			name = "absent(" + name + ")"
		}
		if out.Source != "" {
			out.Source += " && "
		}
		out.Source += name
		out.Parts = append(out.Parts, expression.Trace{Source: name, Outcome: expression.Evaluated, Value: have&(1<<i) != 0})
	}
	if len(out.Parts) == 1 {
		out.Parts = nil
	}
	return out
}

// inspectStep notes the decision about the condition of a later step of a
// workflow.
func (s *step) inspectStep(t *trigger, env map[string]any, err error, held bool) {
	d := Decision{Trigger: t.name, Held: held}
	if err != nil && env == nil {
		d.Condition = expression.TraceOf(t.cond.Source(), nil, err)
	} else {
		d.Condition = t.cond.Trace(env)
	}
	s.in.Inspect.Decisions = append(s.in.Inspect.Decisions, d)
}
