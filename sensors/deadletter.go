package sensors

import (
	"errors"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// deadLetter compiles the templates of what is called for the dead letters of
// trigger i. They see what those of a step see that follows it.
func (c *compilation) deadLetter(i int, s *specs.Trigger) *trigger {
	of := &c.program.triggers[i]
	t := &trigger{name: s.Name, refs: of.refs, batched: of.batched, root: of.root}
	at := len(c.spec.Triggers) + i
	c.scopes[at] = c.scopes[i].WithResults(append(c.earlier(of), of.name)...)
	c.templates(at, t, s)
	if t.itemized = t.itemized && of.fan != nil; t.itemized { // the list is made again
		t.need.all, t.reads, t.results = true, t.reads|of.reads, t.results || of.results
	}
	return t
}

// Failure is the job of a firing that was given up.
type Failure struct {
	// Events and Item are the firing's.
	Events []Contribution
	Item   int
	// Result is the event that would tell it; see [Result.Event]. It is not one of
	// the log.
	Result *bus.Event
	// Kept gives events by their sequence, nil for one that is no longer stored. It
	// is asked only for those that a template reads.
	Kept func(seq uint64) *bus.Event
}

// HasDeadLetter reports whether something is called for the dead letters of a
// trigger.
func (p *Program) HasDeadLetter(trigger int) bool { return p.triggers[trigger].deadLetter != nil }

// DeadLetterInputPath is [Program.InputPath] of what is called for the dead
// letters of a trigger that has such.
func (p *Program) DeadLetterInputPath(trigger int) string {
	return p.triggers[trigger].deadLetter.inputPath
}

// RenderDeadLetter renders the templates of what is called for a dead letter of
// a trigger that has such, nil when there are none.
func (p *Program) RenderDeadLetter(trigger int, f Failure) (map[string]any, error) {
	of := &p.triggers[trigger]
	t := of.deadLetter
	if len(t.templates) == 0 {
		return nil, nil
	}
	s := &step{p: p, in: &Input{Event: f.Result, Kept: f.Kept}} // the result is the event 0
	used, earlier, err := p.contributed(f.Events)
	if err != nil {
		return nil, err
	}
	env, err := s.takenEnv(t, &t.need, used)
	if err == nil && t.results {
		env["triggers"], err = s.known(earlier, trigger)
	}
	if err != nil {
		return nil, &renderError{t.templates[0].path, err}
	}
	if t.itemized {
		if env, err = of.fan.again(env, f.Item); err != nil {
			return nil, err
		}
	}
	return s.render(t, env, used)
}

// known are the results of the earlier steps that are still stored, and that of
// a call of the trigger which the input's event tells.
func (s *step) known(earlier *flow, trigger int) (map[string]any, error) {
	out := make(map[string]any, len(earlier.steps)+1)
	put := func(trigger int, answers []answer, all bool) error {
		r, err := s.resultOf(trigger, answers, all)
		if _, gone := errors.AsType[*lostError](err); gone {
			return nil
		}
		out[expression.Ident(s.p.names[trigger])] = r
		return err
	}
	for _, st := range earlier.steps {
		if err := put(st.trigger, st.answers, s.p.triggers[st.trigger].fan != nil); err != nil {
			return nil, err
		}
	}
	return out, put(trigger, []answer{{}}, false)
}
