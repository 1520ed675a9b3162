package sensors

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// MaxRendered is about how many bytes of JSON a firing carries; see
// [Firing.Late].
const MaxRendered = 64 << 10

// Step takes the state of one correlation key and an input to the next state,
// what fires, in the order of triggers, and what there is to say about it. It
// takes st over. The result depends on its arguments alone.
//
// Of the verdicts, Waiting and Fired are only given when the input asks for
// them.
func (p *Program) Step(st KeyState, in Input) (KeyState, []Firing, []Verdict) {
	st = p.Adopt(st)
	if in.Event != nil && st.seen > 0 && in.Event.Seq <= st.seen {
		return st, nil, nil
	}
	st.names = &p.names
	s := step{p: p, in: &in, st: st, now: in.Time.UnixNano()}
	s.expire()
	s.calm()
	s.release()
	if p.absents != 0 {
		s.pass()
	}
	if in.Inspect != nil {
		in.Inspect.Key, in.Inspect.Time, in.Inspect.Before = in.Key, in.Time, p.Describe(&s.st, s.look)
	}
	if in.Event != nil {
		var deps uint64
		result := -1
		for _, d := range in.Deps {
			if d < len(p.deps) {
				deps |= 1 << d
			} else {
				result = d - len(p.deps)
			}
		}
		if distinct := deps & p.distinct; distinct != 0 {
			deps = s.evaluate(deps, distinct)
		}
		if answers := deps & p.absents; answers != 0 {
			s.answer(answers)
			deps &^= answers
		}
		for i := range p.triggers {
			if arrived := deps & p.triggers[i].refs; arrived != 0 {
				s.trigger(i, arrived)
			}
		}
		if result >= 0 {
			s.answered(result)
		}
		s.st.seen = in.Event.Seq
	}
	s.settle()
	if in.Inspect != nil {
		in.Inspect.After = p.Describe(&s.st, s.look)
	}
	s.st.tidy()
	return s.st, s.firings, s.verdicts
}

// step is one Step under way.
type step struct {
	p        *Program
	in       *Input
	st       KeyState
	now      int64
	firings  []Firing
	verdicts []Verdict
	scratch  [4]kept
	// values are the distinct values of the event by dependency, nil when none
	// has one.
	values []string
	// begun are the workflows that this step began; flow is the one of which a
	// later step fires.
	begun []string
	flow  *flow
	// gone is an event that a condition reads and the log has not, 0 for none.
	gone uint64
}

// event is an event the state refers to.
func (s *step) event(seq uint64) (*bus.Event, error) {
	if ev := s.look(seq); ev != nil {
		return ev, nil
	}
	s.verdicts = append(s.verdicts, Verdict{Outcome: Lost, Seq: seq, Detail: "it is no longer stored"})
	return nil, &lostError{seq}
}

// look is event without a word about what is gone, which is nil.
func (s *step) look(seq uint64) *bus.Event {
	switch {
	case s.in.Event != nil && s.in.Event.Seq == seq:
		return s.in.Event
	case s.in.Kept != nil:
		return s.in.Kept(seq)
	}
	return nil
}

// lostError says that an event is no longer stored.
type lostError struct{ seq uint64 }

// Error names the event.
func (e *lostError) Error() string { return fmt.Sprintf("event %d is no longer stored", e.seq) }

// evaluate notes the distinct values of the event, and returns the
// dependencies that can take it.
func (s *step) evaluate(deps, distinct uint64) uint64 {
	s.values = make([]string, len(s.p.deps))
	for ; distinct != 0; distinct &= distinct - 1 {
		i := bits.TrailingZeros64(distinct)
		d := &s.p.deps[i]
		value, err := d.value(s.in.Event)
		if err != nil {
			s.verdicts = append(s.verdicts, verdictOf(err, d.name, s.in.Event.Seq))
			deps &^= 1 << i
		}
		s.values[i] = value
	}
	return deps
}

// value is the distinct value of an event, in the form of a correlation key.
func (d *dependency) value(ev *bus.Event) (string, error) {
	env, err := d.object(ev, &d.distinctNeed)
	if err != nil {
		return "", err
	}
	return keyOf(d.distinct, env)
}

// expire gives up what has waited for the whole window, and what waited when
// the sensor was reset.
func (s *step) expire() {
	if s.p.within <= 0 && s.p.reset == nil {
		return
	}
	for i := range s.st.triggers() {
		v, n := s.st.view(i), 0
		for n < len(v) {
			due, reset := s.p.expiry(v[n].at)
			if due > s.now {
				break
			}
			why := "the sensor was reset"
			if !reset {
				why = "waited for " + s.p.within.String()
			}
			s.verdicts = append(s.verdicts, Verdict{
				Outcome: Expired, Dependency: s.p.deps[v[n].dep].name, Trigger: s.p.names[i], Seq: v[n].seq, Detail: why,
			})
			n++
		}
		if n > 0 {
			s.st.setView(i, slices.Delete(v, 0, n))
		}
	}
}

// calm ends the quiet times that are over.
func (s *step) calm() {
	if s.st.more == nil || s.st.more.fired == nil {
		return
	}
	for i, fired := range s.st.more.fired {
		if fired != 0 && s.now >= fired+s.p.triggers[i].cooldown {
			s.st.setQuiet(i, 0)
		}
	}
}

// suppress reports whether a trigger is quiet, so that what it used does not
// fire. Otherwise its quiet time begins.
func (s *step) suppress(i int, t *trigger, used []kept) bool {
	if s.st.quiet(i) != 0 {
		v := Verdict{Outcome: Suppressed, Trigger: t.name, Detail: "fired less than " + time.Duration(t.cooldown).String() + " ago"}
		v.Seq = last(used).seq
		s.verdicts = append(s.verdicts, v)
		return true
	}
	s.st.setQuiet(i, s.now)
	return false
}

// pass notes the absences whose time is over, and fires what waited for them.
func (s *step) pass() {
	for i := range s.st.triggers() {
		v, t, over := s.st.view(i), &s.p.triggers[i], false
		for j := range v {
			for a := v[j].pending(s.p, t.absent); a != 0; a &= a - 1 {
				if v[j].at+s.p.deps[bits.TrailingZeros64(a)].wait <= s.now {
					v[j].note().passed |= a & -a
					over = true
				}
			}
		}
		if over {
			s.st.setView(i, s.work(i, v))
		}
	}
}

// answer notes that events arrived that were to stay away, with all kept events
// that began their time, whether or not a trigger asks for it now. What cannot
// be used any more is not kept.
func (s *step) answer(answers uint64) {
	for i := range s.st.triggers() {
		v, t := s.st.view(i), &s.p.triggers[i]
		n := 0
		for _, k := range v {
			for a := k.pending(s.p, answers); a != 0; a &= a - 1 {
				d := &s.p.deps[bits.TrailingZeros64(a)]
				if s.now >= k.at+d.wait {
					continue // nobody asked when the time was over
				}
				k.note().answered |= a & -a
				if t.absent&a&-a != 0 {
					s.verdicts = append(s.verdicts, Verdict{
						Outcome: Answered, Dependency: d.name, Trigger: t.name, Seq: k.seq,
						Detail: "arrived within " + time.Duration(d.wait).String(),
					})
				}
			}
			if k.marks().answered&t.vital == 0 {
				v[n] = k
				n++
			}
		}
		clear(v[n:])
		s.st.setView(i, v[:n])
	}
}

// trigger shows the event to one trigger, for the dependencies in arrived.
func (s *step) trigger(i int, arrived uint64) {
	t := &s.p.triggers[i]
	view := s.st.view(i)
	if len(view) == 0 && arrived&s.p.several == 0 {
		// What fires at once is never kept.
		used := s.scratch[:0]
		for d := arrived; d != 0; d &= d - 1 {
			used = append(used, s.keep(bits.TrailingZeros64(d)))
		}
		if s.decide(t, arrived, used) {
			s.fire(i, t, used)
			return
		}
		view = append(triggerView(nil), used...)
	} else {
		for d := arrived; d != 0; d &= d - 1 {
			var taken bool
			if view, taken = s.add(t, view, bits.TrailingZeros64(d)); !taken {
				arrived &^= d & -d
			}
		}
		if arrived != 0 {
			view = s.work(i, view)
		}
	}
	s.st.setView(i, view)
}

// work fires a trigger as often as what waits allows, and returns what is left.
func (s *step) work(i int, view triggerView) triggerView {
	t := &s.p.triggers[i]
	for {
		used, have := s.choose(t, view)
		if have == 0 {
			if len(view) > 0 { // a list that is not complete
				s.waiting(t, have)
				if s.in.Inspect != nil {
					s.inspect(t, have, nil, false)
				}
			}
			return view
		}
		if !s.decide(t, have, used) {
			if s.gone == 0 {
				return view
			}
			view = slices.DeleteFunc(view, func(k kept) bool { return k.seq == s.gone })
			s.gone = 0
			continue
		}
		s.fire(i, t, used)
		if view = without(view, used); !t.queued {
			return view
		}
	}
}

// keep is the input's event, kept for dependency d.
func (s *step) keep(d int) kept {
	k := kept{dep: uint8(d), seq: s.in.Event.Seq, at: s.now}
	if s.values != nil && s.values[d] != "" {
		k.note().value = s.values[d]
	}
	return k
}

// add puts the input's event into a view for dependency d, unless it has to be
// distinct and is not.
func (s *step) add(t *trigger, view triggerView, d int) (now triggerView, taken bool) {
	dep := &s.p.deps[d]
	if dep.distinct != nil {
		same := slices.IndexFunc(view, func(k kept) bool { return int(k.dep) == d && k.marks().value == s.values[d] })
		switch {
		case same < 0:
		case dep.pick == specs.PickFirst:
			s.superseded(t, d, s.in.Event.Seq)
			return view, false
		default:
			s.superseded(t, d, view[same].seq)
			view = slices.Delete(view, same, same+1)
		}
	}
	room := max(s.p.limits.Events, dep.count)
	if dep.pick == specs.PickLatest {
		room = dep.count
	}
	n := 0
	for i := range view {
		if int(view[i].dep) == d {
			n++
		}
	}
	for ; n >= room; n-- { // more than one when the limit was higher before
		oldest := slices.IndexFunc(view, func(k kept) bool { return int(k.dep) == d })
		s.superseded(t, d, view[oldest].seq)
		view = slices.Delete(view, oldest, oldest+1)
	}
	k := s.keep(d)
	if len(view) > 0 { // time never goes back
		k.at = max(k.at, view[len(view)-1].at)
	}
	return append(view, k), true
}

func (s *step) superseded(t *trigger, d int, seq uint64) {
	s.verdicts = append(s.verdicts, Verdict{Outcome: Superseded, Dependency: s.p.deps[d].name, Trigger: t.name, Seq: seq})
}

// without removes the events used, which are the first of each dependency.
func without(view triggerView, used []kept) triggerView {
	var n [MaxDependencies]int
	for i := range used {
		n[used[i].dep]++
	}
	return slices.DeleteFunc(view, func(k kept) bool {
		n[k.dep]--
		return n[k.dep] >= 0
	})
}

// choose picks from a view the events a firing would use, in the order of
// dependencies, then of arrival, and tells which dependencies have enough of
// them. Of one dependency they are the first that wait: with pick latest no
// more wait than are used.
func (s *step) choose(t *trigger, view triggerView) (used []kept, have uint64) {
	used = s.scratch[:0]
	for refs := t.refs &^ t.absent; refs != 0; refs &= refs - 1 {
		d := bits.TrailingZeros64(refs)
		dep, first := &s.p.deps[d], len(used)
		for i := range view {
			if int(view[i].dep) != d {
				continue
			}
			used = append(used, view[i])
			if dep.pick != specs.PickAll && len(used)-first == dep.count {
				break
			}
		}
		if len(used)-first < dep.count {
			used = used[:first]
			continue
		}
		have |= 1 << d
	}
	if t.absent != 0 {
		for i := range used {
			have |= used[i].marks().passed & t.absent
		}
	}
	return used, have
}

// decide reports whether the condition holds for the events chosen.
func (s *step) decide(t *trigger, have uint64, used []kept) bool {
	held := s.holds(t, have, used)
	if s.in.Inspect != nil {
		s.inspect(t, have, used, held)
	}
	return held
}

func (s *step) holds(t *trigger, have uint64, used []kept) bool {
	if t.table != nil {
		i, bit := 0, 0
		for refs := t.refs; refs != 0; refs &= refs - 1 {
			if have&(refs&-refs) != 0 {
				i |= 1 << bit
			}
			bit++
		}
		if t.table[i] {
			return true
		}
		s.waiting(t, have)
		return false
	}
	env, err := s.environment(t, &t.condNeed, used, allDeps)
	ok := false
	if err == nil {
		ok, err = t.cond.Bool(env)
	}
	var lost *lostError
	switch {
	case ok:
	case errors.As(err, &lost):
		s.gone = lost.seq
	case err == nil, s.p.absent(err, t.refs&^have):
		s.waiting(t, have)
	default:
		v := verdictOf(err, "", s.seq())
		v.Trigger = t.name
		s.verdicts = append(s.verdicts, v)
	}
	return ok
}

// absent reports whether an error only says that one of the dependencies in
// missing has not arrived.
func (p *Program) absent(err error, missing uint64) bool {
	var m *expression.MissingError
	if !errors.As(err, &m) {
		return false
	}
	for d := missing; d != 0; d &= d - 1 {
		if p.deps[bits.TrailingZeros64(d)].ident == m.Path {
			return true
		}
	}
	return false
}

func (s *step) waiting(t *trigger, have uint64) {
	if !s.in.Explain {
		return
	}
	var names []string
	for d := t.refs &^ have; d != 0; d &= d - 1 {
		name := s.p.deps[bits.TrailingZeros64(d)].name
		if t.absent&d&-d != 0 {
			name = "absent(" + name + ")"
		}
		names = append(names, name)
	}
	v := Verdict{Outcome: Waiting, Trigger: t.name, Seq: s.seq(), Detail: "the condition does not hold"}
	if len(names) > 0 {
		v.Detail += "; not arrived: " + strings.Join(names, ", ")
	}
	s.verdicts = append(s.verdicts, v)
}

// seq is the sequence of the input's event, 0 for a deadline.
func (s *step) seq() uint64 {
	if s.in.Event == nil {
		return 0
	}
	return s.in.Event.Seq
}

// environment makes the environment of a condition or template. It asks for
// the events only when something of them is needed, and only for those of the
// dependencies in reads.
func (s *step) environment(t *trigger, n *need, used []kept, reads uint64) (map[string]any, error) {
	env := make(map[string]any, bits.OnesCount64(t.refs))
	for i := range used {
		d := &s.p.deps[used[i].dep]
		o := map[string]any{} // it has arrived
		if reads&(1<<used[i].dep) != 0 && !n.none() {
			ev, err := s.event(used[i].seq)
			if err == nil {
				o, err = d.object(ev, n)
			}
			if err != nil {
				return nil, err
			}
		}
		if d.list {
			list, _ := env[d.ident].([]any)
			env[d.ident] = append(list, o)
		} else {
			env[d.ident] = o
		}
		for a := used[i].marks().passed & t.absent; a != 0; a &= a - 1 {
			env[s.p.deps[bits.TrailingZeros64(a)].ident] = true
		}
	}
	return env, nil
}

// fire takes what a trigger used: it is called, or gathers.
func (s *step) fire(i int, t *trigger, used []kept) {
	if t.gathers != nil {
		s.gather(i, t, used)
		return
	}
	s.emit(i, t, taken{kept: used}, 0)
}

// emit makes the firings of a trigger. deadline is the time that made it fire,
// 0 when the input did.
func (s *step) emit(i int, t *trigger, used taken, deadline int64) {
	if t.cooldown > 0 && s.suppress(i, t, used.kept) {
		return
	}
	f := Firing{Trigger: t.name, TriggerIndex: i, Spread: t.spread, Correlation: s.in.Key, Time: s.in.Time}
	switch {
	case deadline != 0:
		f.Time = time.Unix(0, deadline).UTC()
	case s.in.Event == nil:
		deadline = s.now
	}
	f.Events, f.Last = s.p.contributions(t, used, s.flow)
	var env map[string]any
	var items []fanItem
	if len(t.templates) > 0 || t.fan != nil {
		env, f.Err = s.firingEnv(t, &t.need, used, s.flow)
	}
	if t.fan != nil && f.Err == nil {
		items, f.Err = t.fan.items(env)
		f.Items = len(items)
		if f.Err == nil && len(items) == 0 {
			s.skipped(t, "its list is empty")
		}
	}
	if t.followed {
		n := f.Items
		if t.fan == nil || f.Err != nil {
			n = 1
		}
		f.Flow = s.begin(i, t, used, deadline, n)
	}
	if t.fan == nil || f.Err != nil {
		f.Key = s.firingKey(t.name, used, s.flow, deadline, "")
		s.finish(t, f, env, used)
		return
	}
	for n, item := range items {
		f.Item, f.Key = n, s.firingKey(t.name, used, s.flow, deadline, item.key)
		s.finish(t, f, t.fan.environment(env, n, item.value), used)
	}
}

// finish renders a firing.
func (s *step) finish(t *trigger, f Firing, env map[string]any, used taken) {
	if len(t.templates) > 0 && f.Err == nil {
		f.Rendered, f.Err = s.render(t, env, used)
		switch {
		case f.Err != nil:
			f.Rendered = nil
		case exceeds(f.Rendered, MaxRendered):
			f.Rendered, f.Late = nil, true
		}
	}
	if s.in.Explain {
		s.verdicts = append(s.verdicts, Verdict{Outcome: Fired, Trigger: t.name, Seq: s.seq(), Detail: f.Key})
	}
	s.firings = append(s.firings, f)
}

// contributions are the events that contribute to a firing, and the sequence of
// the last of them.
func (p *Program) contributions(t *trigger, used taken, f *flow) (out []Contribution, last uint64) {
	out = make([]Contribution, len(used.kept))
	batch := 0
	for i := range used.kept {
		k := &used.kept[i]
		for used.ends != nil && i >= used.ends[batch] {
			batch++
		}
		out[i] = Contribution{Dependency: p.deps[k.dep].name, Seq: k.seq, Batch: batch}
		last = max(last, k.seq)
	}
	if f == nil {
		return out, last
	}
	for i := range f.steps {
		st := &f.steps[i]
		if !p.precedes(st.trigger, t) {
			continue
		}
		for _, a := range st.answers {
			out = append(out, Contribution{Dependency: resultName(p.names[st.trigger]), Seq: a.seq, Item: a.item})
			last = max(last, a.seq)
		}
	}
	return out, last
}

// firingEnv is what the templates of a firing see, with what is needed of the
// events. An error names the first template.
func (s *step) firingEnv(t *trigger, n *need, used taken, f *flow) (map[string]any, error) {
	env, err := s.takenEnv(t, n, used)
	if err == nil && f != nil && t.results {
		env["triggers"], err = s.results(f)
	}
	if err != nil && len(t.templates) > 0 {
		return nil, &renderError{t.templates[0].path, err}
	}
	return env, err
}

func (s *step) takenEnv(t *trigger, n *need, used taken) (map[string]any, error) {
	if !t.batched {
		return s.environment(t, n, used.kept, t.reads)
	}
	batch := make([]any, used.times())
	for i := range batch {
		env, err := s.environment(t, n, used.at(i), t.reads)
		if err != nil {
			return nil, err
		}
		batch[i] = env
	}
	return map[string]any{"batch": batch}, nil
}

// renderError says which template could not be rendered.
type renderError struct {
	path string
	err  error
}

// Error is the path and the reason.
func (e *renderError) Error() string { return e.path + ": " + e.err.Error() }

// Unwrap returns the reason.
func (e *renderError) Unwrap() error { return e.err }

func (s *step) render(t *trigger, env map[string]any, used taken) (map[string]any, error) {
	out := make(map[string]any, len(t.templates))
	for i := range t.templates {
		tm := &t.templates[i]
		var v any
		var err error
		switch {
		case tm.tmpl == nil:
			v, err = s.batchData(used)
			if err != nil {
				err = &renderError{tm.path, err}
			}
		case tm.text:
			v, err = tm.tmpl.RenderString(env)
		default:
			v, err = tm.tmpl.Render(env)
		}
		if err != nil {
			return nil, err
		}
		out[tm.path] = v
	}
	return out, nil
}

// batchData is the default input of a batch: the data of the last event of each
// of its parts.
func (s *step) batchData(used taken) (any, error) {
	out := make([]any, used.times())
	for i := range out {
		ev, err := s.event(last(used.at(i)).seq)
		if err != nil {
			return nil, err
		}
		v, err := attribute(ev, "data")
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// Contributing is a contribution together with its event.
type Contributing struct {
	Contribution
	Event *bus.Event
}

// RenderTrigger renders the templates of a trigger again, for a firing that is
// [Firing.Late]. events are those of [Firing.Events], in their order, and item
// is [Firing.Item].
func (p *Program) RenderTrigger(trigger int, events []Contributing, item int) (map[string]any, error) {
	t := &p.triggers[trigger]
	stored := make(map[uint64]*bus.Event, len(events))
	from := make([]Contribution, len(events))
	for i, c := range events {
		stored[c.Seq], from[i] = c.Event, c.Contribution
	}
	s := &step{p: p, in: &Input{Kept: func(seq uint64) *bus.Event { return stored[seq] }}}
	used, f, err := p.contributed(from)
	if err != nil {
		return nil, err
	}
	env, err := s.firingEnv(t, &t.need, used, f)
	if err != nil {
		return nil, err
	}
	if t.fan != nil {
		if env, err = t.fan.again(env, item); err != nil {
			return nil, err
		}
	}
	return s.render(t, env, used)
}

// contributed undoes contributions.
func (p *Program) contributed(events []Contribution) (used taken, f *flow, err error) {
	f = &flow{}
	for _, c := range events {
		if i := p.resultTrigger(c.Dependency); i >= 0 {
			st := f.step(i)
			if st == nil {
				f.steps = append(f.steps, flowStep{trigger: i, state: stepSucceeded})
				st = &f.steps[len(f.steps)-1]
			}
			st.answers = append(st.answers, answer{item: c.Item, seq: c.Seq})
			continue
		}
		d := slices.IndexFunc(p.deps, func(d dependency) bool { return d.name == c.Dependency })
		if d < 0 {
			return used, nil, fmt.Errorf("the sensor no longer has the dependency %s", c.Dependency)
		}
		if n := len(used.kept); n > 0 && c.Batch > len(used.ends) {
			used.ends = append(used.ends, n)
		}
		used.kept = append(used.kept, kept{dep: uint8(d), seq: c.Seq})
	}
	used.ends = append(used.ends, len(used.kept))
	return used, f, nil
}

// InputPath is the path of a trigger's input among [Firing.Rendered], "" when it
// has none: then the data of the event [Firing.Last] is its input.
func (p *Program) InputPath(trigger int) string { return p.triggers[trigger].inputPath }

// firingKey is the hash of what makes a firing of the trigger with this name, or
// of all that fire together for "", this one and no other. item tells those of a
// fan-out apart.
func (s *step) firingKey(name string, used taken, f *flow, deadline int64, item string) string {
	var array [256]byte
	b := array[:0]
	for _, text := range [...]string{s.in.LogID, s.p.name, name, s.in.Key} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, uint64(len(used.kept)))
	for i := range used.kept {
		b = binary.AppendUvarint(b, used.kept[i].seq)
	}
	b = binary.AppendVarint(b, deadline)
	if f != nil {
		b = append(b, f.id...)
	}
	if item != "" {
		b = binary.AppendUvarint(b, uint64(len(item)))
		b = append(b, item...)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}

// exceeds reports whether v as JSON has more than about limit bytes.
func exceeds(v any, limit int) bool {
	weigh(v, &limit)
	return limit < 0
}

func weigh(v any, left *int) {
	*left -= 2
	if *left < 0 {
		return
	}
	switch v := v.(type) {
	case string:
		*left -= len(v)
	case int64, float64, bool, time.Time:
		*left -= 6
	case []any:
		for _, e := range v {
			weigh(e, left)
		}
	case map[string]any:
		for k, e := range v {
			*left -= len(k) + 4
			weigh(e, left)
		}
	}
}
