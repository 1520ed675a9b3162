package sensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// MaxKept is the most events that wait for one dependency of one trigger under
// one correlation key, unless the sensor's [Limits] say less. Beyond it the
// oldest is given up.
const MaxKept = 10_000

// KeyState is what a sensor keeps under one correlation key. The zero value is
// the empty state. It is handed over: [Program.Step] and [Program.Adopt] take
// a state's memory over and the result replaces it, so a KeyState that went in
// must not be used again. It holds events by reference; they are not changed.
type KeyState struct {
	// names are the triggers the views belong to, by index.
	names []string
	views []triggerView
	// fired is when each trigger with a cooldown fired last, 0 when its quiet
	// time is over; nil when that is so of all.
	fired []int64
	seen  uint64
	// more is what few sensors keep, nil when there is nothing of it.
	more *extra
}

// extra is what triggers have gathered, by trigger, and the workflows under
// way, the oldest first.
type extra struct {
	holds []hold
	flows []flow
}

// triggerView is what has arrived and was not used, as one trigger sees it, in
// the order of arrival.
type triggerView []kept

type kept struct {
	dep int
	seq uint64
	at  int64 // log time in nanoseconds since 1970
	ev  *bus.Event
	// value is the distinct value, "" when any may wait.
	value string
	// answered and passed have a bit for each dependency that is declared absent
	// after this one: its event came in time, or the time is over.
	answered, passed uint64
}

// Empty reports whether nothing is kept.
func (s *KeyState) Empty() bool {
	return s.fired == nil && s.more == nil && !slices.ContainsFunc(s.views, func(v triggerView) bool { return len(v) > 0 })
}

func (s *KeyState) holds() []hold {
	if s.more == nil {
		return nil
	}
	return s.more.holds
}

func (s *KeyState) flows() []flow {
	if s.more == nil {
		return nil
	}
	return s.more.flows
}

// hold is what trigger i has gathered, to be changed.
func (s *KeyState) hold(i int, p *Program) *hold {
	s.extend(p)
	at, ok := slices.BinarySearchFunc(s.more.holds, i, func(h hold, i int) int { return h.trigger - i })
	if !ok {
		s.more.holds = slices.Insert(s.more.holds, at, hold{trigger: i})
	}
	return &s.more.holds[at]
}

// release takes out what trigger i has gathered.
func (s *KeyState) release(i int) taken {
	at := slices.IndexFunc(s.more.holds, func(h hold) bool { return h.trigger == i })
	used := s.more.holds[at].taken
	s.more.holds = slices.Delete(s.more.holds, at, at+1)
	s.tidy()
	return used
}

// findFlow is the place of a workflow, -1 when it is not under way.
func (s *KeyState) findFlow(id string) int {
	return slices.IndexFunc(s.flows(), func(f flow) bool { return f.id == id })
}

func (s *KeyState) addFlow(f flow, p *Program) int {
	s.extend(p)
	s.more.flows = append(s.more.flows, f)
	return len(s.more.flows) - 1
}

func (s *KeyState) dropFlow(at int) {
	s.more.flows = slices.Delete(s.more.flows, at, at+1)
	s.tidy()
}

// allocate makes room for what the triggers of p keep.
func (s *KeyState) allocate(p *Program) {
	if len(s.views) == 0 {
		s.names, s.views = p.names, make([]triggerView, len(p.triggers))
	}
}

func (s *KeyState) extend(p *Program) {
	s.allocate(p)
	if s.more == nil {
		s.more = &extra{}
	}
}

func (s *KeyState) tidy() {
	if len(s.more.holds) == 0 && len(s.more.flows) == 0 {
		s.more = nil
	}
}

// all calls fn with the sequence of each event the state refers to.
func (s *KeyState) all(fn func(seq uint64)) {
	list := func(list []kept) {
		for i := range list {
			fn(list[i].seq)
		}
	}
	for _, v := range s.views {
		list(v)
	}
	for _, h := range s.holds() {
		list(h.kept)
	}
	for _, f := range s.flows() {
		list(f.kept)
		for _, st := range f.steps {
			for _, a := range st.answers {
				fn(a.seq)
			}
		}
	}
}

// Seen is the sequence of the last event this state took in, 0 when the state
// is empty. A step with an event up to it changes nothing.
func (s *KeyState) Seen() uint64 { return s.seen }

// Refs returns the sequences of the events the state refers to, ascending, each
// once: those that wait, those a trigger has gathered, and those of workflows
// under way.
func (s *KeyState) Refs() []uint64 {
	var out []uint64
	s.all(func(seq uint64) { out = append(out, seq) })
	slices.Sort(out)
	return slices.Compact(out)
}

// MinRef is the smallest of [KeyState.Refs], 0 for none: the log must keep what
// follows.
func (s *KeyState) MinRef() uint64 {
	least := uint64(0)
	s.all(func(seq uint64) {
		if least == 0 || seq < least {
			least = seq
		}
	})
	return least
}

// Kept is one kept event, for people.
type Kept struct {
	Trigger    string
	Dependency int
	Seq        uint64
	Since      time.Time
}

// Kept lists what is kept, by trigger, in the order of arrival.
func (s *KeyState) Kept() []Kept {
	var out []Kept
	for i, v := range s.views {
		for _, k := range v {
			out = append(out, Kept{s.names[i], k.dep, k.seq, time.Unix(0, k.at).UTC()})
		}
	}
	return out
}

// Hydrate attaches the events of a decoded state. event returns the event with
// a sequence, or nil when it is no longer stored: then it does not wait any
// more, and what was gathered with it and the workflow it belongs to are given
// up.
func (s *KeyState) Hydrate(event func(seq uint64) *bus.Event) {
	for i, v := range s.views {
		n := 0
		for _, k := range v {
			if attach(&k.ev, k.seq, event) {
				v[n] = k
				n++
			}
		}
		s.views[i] = v[:n]
	}
	if s.more != nil {
		for i := range s.more.holds {
			h := &s.more.holds[i]
			var there taken
			for j := range h.times() {
				if used := h.at(j); attachAll(used, event) {
					there.add(used)
				}
			}
			h.taken = there
		}
		s.more.holds = slices.DeleteFunc(s.more.holds, func(h hold) bool { return len(h.kept) == 0 })
		s.more.flows = slices.DeleteFunc(s.more.flows, func(f flow) bool { return !f.attach(event) })
		s.tidy()
	}
	if s.Empty() {
		*s = KeyState{}
	}
}

// attach reports whether the event is there.
func attach(ev **bus.Event, seq uint64, event func(seq uint64) *bus.Event) bool {
	if *ev == nil {
		*ev = event(seq)
	}
	return *ev != nil
}

func attachAll(list []kept, event func(seq uint64) *bus.Event) bool {
	there := true
	for i := range list {
		there = attach(&list[i].ev, list[i].seq, event) && there
	}
	return there
}

func (f *flow) attach(event func(seq uint64) *bus.Event) bool {
	there := attachAll(f.kept, event)
	for i := range f.steps {
		for j := range f.steps[i].answers {
			a := &f.steps[i].answers[j]
			there = attach(&a.ev, a.seq, event) && there
		}
	}
	return there
}

// Adopt returns the state as p sees it, after the sensor was replaced by one
// with the same [Program.StateFingerprint]: the views of triggers that are
// gone, and events a trigger no longer refers to, are not kept. A trigger that
// is new begins with nothing.
func (p *Program) Adopt(s KeyState) KeyState {
	if len(s.views) == 0 {
		return KeyState{}
	}
	if len(p.names) == len(s.names) && &p.names[0] == &s.names[0] {
		return s
	}
	out := KeyState{names: p.names, views: make([]triggerView, len(p.triggers)), seen: s.seen}
	for i, v := range s.views {
		t := slices.Index(p.names, s.names[i])
		if t < 0 {
			continue
		}
		out.views[t] = slices.DeleteFunc(v, func(k kept) bool {
			return k.dep >= len(p.deps) || p.triggers[t].refs&(1<<k.dep) == 0 || k.answered&p.triggers[t].vital != 0
		})
		if s.fired != nil && s.fired[i] != 0 && p.triggers[t].cooldown > 0 {
			if out.fired == nil {
				out.fired = make([]int64, len(p.triggers))
			}
			out.fired[t] = s.fired[i]
		}
	}
	if s.more != nil {
		p.adoptExtra(&out, &s)
	}
	if out.Empty() {
		return KeyState{}
	}
	return out
}

// adoptExtra takes over what triggers that are still there have gathered, and
// the workflows of which a step is still followed.
func (p *Program) adoptExtra(out, s *KeyState) {
	more := &extra{}
	for _, h := range s.more.holds {
		t := slices.Index(p.names, s.names[h.trigger])
		if t < 0 || p.triggers[t].follows != nil || !p.knows(h.kept) {
			continue
		}
		if h.trigger = t; p.triggers[t].gathers == nil {
			h.due = h.first // it does not gather any more
		}
		more.holds = append(more.holds, h)
	}
	slices.SortFunc(more.holds, func(a, b hold) int { return a.trigger - b.trigger })
	for _, f := range s.more.flows {
		steps := f.steps[:0]
		for _, st := range f.steps {
			if t := slices.Index(p.names, s.names[st.trigger]); t >= 0 {
				st.trigger = t
				steps = append(steps, st)
			}
		}
		f.steps = steps
		if p.knows(f.kept) && slices.ContainsFunc(f.steps, func(st flowStep) bool { return st.state == stepCalled && p.triggers[st.trigger].followed }) {
			more.flows = append(more.flows, f)
		}
	}
	if out.more = more; len(more.holds)+len(more.flows) == 0 {
		out.more = nil
	}
}

// knows reports whether the dependencies of kept events exist.
func (p *Program) knows(list []kept) bool {
	return !slices.ContainsFunc(list, func(k kept) bool { return k.dep >= len(p.deps) })
}

// NextWake is the earliest time at which a kept event has waited for the whole
// window or the sensor is reset, something has been absent for its time, what a
// trigger has gathered must fire, or a cooldown is over; ok is false when none
// is due ever. A [Program.Step] without an event at that time gives the event
// up, and fires what waited for it.
func (p *Program) NextWake(s KeyState) (at time.Time, ok bool) {
	var first int64
	due := func(t int64) {
		if !ok || t < first {
			first, ok = t, true
		}
	}
	if p.within > 0 || p.reset != nil {
		for _, v := range s.views {
			// The first to arrive is the first to expire.
			if len(v) > 0 {
				at, _ := p.expiry(v[0].at)
				due(at)
			}
		}
	}
	for _, h := range s.holds() {
		if h.due != 0 {
			due(h.due)
		}
	}
	for i, fired := range s.fired {
		if fired == 0 {
			continue
		}
		if t := slices.Index(p.names, s.names[i]); t >= 0 {
			fired += p.triggers[t].cooldown
		}
		due(fired)
	}
	if p.absents != 0 {
		for i, v := range s.views {
			t := slices.Index(p.names, s.names[i])
			if t < 0 {
				continue
			}
			for j := range v {
				for a := v[j].pending(p, p.triggers[t].absent); a != 0; a &= a - 1 {
					due(v[j].at + p.deps[bits.TrailingZeros64(a)].wait)
				}
			}
		}
	}
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(0, first).UTC(), true
}

// expiry is when an event that was kept at this time is given up, in
// nanoseconds, and whether that is a reset. The window or a reset is set.
func (p *Program) expiry(at int64) (due int64, reset bool) {
	if p.within > 0 {
		due = at + int64(p.within)
	}
	if p.reset != nil {
		// The first whole second after the event.
		if t, ok := p.reset.Next(time.Unix(0, at).Unix()); ok && (due == 0 || t*int64(time.Second) < due) {
			return t * int64(time.Second), true
		}
	}
	return due, false
}

// pending are those of absent that k has begun the time of and that are still
// to be seen.
func (k *kept) pending(p *Program, absent uint64) uint64 {
	absent &^= k.answered | k.passed
	for a := absent; a != 0; a &= a - 1 {
		if p.deps[bits.TrailingZeros64(a)].after != k.dep {
			absent &^= a & -a
		}
	}
	return absent
}

// Versions of the stored form. An older one is still written where it suffices;
// the second also has distinct values, what became of absences, and cooldowns,
// the third what was gathered and workflows.
const (
	plainState = 1
	fullState  = 2
	extraState = 3
)

// plain reports whether the first version can hold the state.
func (s *KeyState) plain() bool {
	return s.fired == nil && !slices.ContainsFunc(s.views, func(v triggerView) bool {
		return slices.ContainsFunc(v, func(k kept) bool { return k.value != "" || k.answered|k.passed != 0 })
	})
}

// quiet is when a trigger fired whose quiet time is not over, 0 for none.
func (s *KeyState) quiet(i int) int64 {
	if s.fired == nil {
		return 0
	}
	return s.fired[i]
}

// Append appends the stored form of the state: references only. [DecodeKeyState]
// reads it; it is valid for programs with the same [Program.StateFingerprint].
func (s *KeyState) Append(b []byte) []byte {
	version := byte(fullState)
	switch {
	case s.more != nil:
		version = extraState
	case s.plain():
		version = plainState
	}
	views := 0
	for i, v := range s.views {
		if len(v) > 0 || s.quiet(i) != 0 || version == extraState {
			views++
		}
	}
	b = append(b, version)
	b = binary.AppendUvarint(b, s.seen)
	b = binary.AppendUvarint(b, uint64(views))
	for i, v := range s.views {
		if len(v) == 0 && s.quiet(i) == 0 && version != extraState {
			continue
		}
		b = appendText(b, s.names[i])
		b = appendKept(b, v, version)
		if version != plainState {
			b = binary.AppendVarint(b, s.quiet(i))
		}
	}
	if version == extraState {
		b = s.more.append(b)
	}
	return b
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

func appendKept(b []byte, list []kept, version byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for i := range list {
		k := &list[i]
		b = binary.AppendUvarint(b, uint64(k.dep))
		b = binary.AppendUvarint(b, k.seq)
		b = binary.AppendVarint(b, k.at)
		if version == plainState {
			continue
		}
		b = appendText(b, k.value)
		b = binary.AppendUvarint(b, k.answered)
		b = binary.AppendUvarint(b, k.passed)
	}
	return b
}

func appendTaken(b []byte, t *taken) []byte {
	b = appendKept(b, t.kept, extraState)
	b = binary.AppendUvarint(b, uint64(len(t.ends)))
	for _, end := range t.ends {
		b = binary.AppendUvarint(b, uint64(end))
	}
	return b
}

// append appends the stored form; triggers are by their place in the state.
func (m *extra) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(m.holds)))
	for i := range m.holds {
		h := &m.holds[i]
		b = binary.AppendUvarint(b, uint64(h.trigger))
		b = binary.AppendVarint(b, h.first)
		b = binary.AppendVarint(b, h.due)
		b = appendTaken(b, &h.taken)
	}
	b = binary.AppendUvarint(b, uint64(len(m.flows)))
	for i := range m.flows {
		f := &m.flows[i]
		b = appendText(b, f.id)
		b = binary.AppendVarint(b, f.at)
		b = appendTaken(b, &f.taken)
		b = binary.AppendUvarint(b, uint64(len(f.steps)))
		for _, st := range f.steps {
			b = binary.AppendUvarint(b, uint64(st.trigger))
			b = append(b, byte(st.state))
			b = binary.AppendUvarint(b, uint64(st.items))
			b = binary.AppendUvarint(b, uint64(len(st.answers)))
			for _, a := range st.answers {
				b = binary.AppendUvarint(b, uint64(a.item))
				b = binary.AppendUvarint(b, a.seq)
			}
		}
	}
	return b
}

// DecodeKeyState reads what [KeyState.Append] wrote. The events must be
// attached with [KeyState.Hydrate] before the next step.
func DecodeKeyState(b []byte) (KeyState, error) {
	d := decoder{b: b}
	version := d.byte()
	if d.err == nil && (version < plainState || version > extraState) {
		return KeyState{}, fmt.Errorf("sensor state has version %d, this engine reads up to version %d", version, extraState)
	}
	s := KeyState{seen: d.uvarint()}
	for range d.count(1) {
		name := string(d.bytes(d.count(1)))
		view := triggerView(d.kept(version))
		for i := 1; i < len(view); i++ {
			if view[i].at < view[i-1].at {
				d.err = errOrder
			}
		}
		if d.err != nil {
			return KeyState{}, d.err
		}
		quiet := int64(0)
		if version != plainState {
			quiet = d.varint()
		}
		if slices.Contains(s.names, name) || len(view) == 0 && quiet == 0 && version != extraState {
			d.err = errOrder
		}
		if quiet != 0 {
			s.fired = append(s.fired, make([]int64, len(s.names)-len(s.fired))...)
			s.fired = append(s.fired, quiet)
		}
		s.names, s.views = append(s.names, name), append(s.views, view)
	}
	if version == extraState {
		s.more = d.extra(len(s.names))
	}
	if d.err == nil && len(d.b) > 0 {
		d.err = errors.New("sensor state has more bytes than it should")
	}
	if d.err != nil {
		return KeyState{}, d.err
	}
	if len(s.views) == 0 {
		return KeyState{}, nil
	}
	if s.fired != nil {
		s.fired = append(s.fired, make([]int64, len(s.names)-len(s.fired))...)
	}
	return s, nil
}

var (
	errShort = errors.New("sensor state ends too early")
	errOrder = errors.New("sensor state is out of order")
)

// decoder reads the stored form; after the first error everything is zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) kept(version byte) []kept {
	n := d.count(3)
	out := make([]kept, 0, min(n, MaxKept))
	for range n {
		k := kept{dep: int(d.uvarint() & (MaxDependencies - 1)), seq: d.uvarint(), at: d.varint()}
		if version != plainState {
			k.value = string(d.bytes(d.count(1)))
			k.answered, k.passed = d.uvarint(), d.uvarint()
		}
		if d.err != nil {
			return nil
		}
		out = append(out, k)
	}
	return out
}

func (d *decoder) taken() taken {
	t := taken{kept: d.kept(extraState)}
	last := uint64(0)
	for range d.count(1) {
		end := d.uvarint()
		if end <= last || end > uint64(len(t.kept)) {
			d.fail(errOrder)
			return t
		}
		t.ends, last = append(t.ends, int(end)), end
	}
	if t.ends != nil && last != uint64(len(t.kept)) {
		d.fail(errOrder)
	}
	return t
}

// extra reads what [extra.append] wrote, for so many triggers.
func (d *decoder) extra(triggers int) *extra {
	m, trigger := &extra{}, func() int {
		n := d.uvarint()
		if n >= uint64(triggers) {
			d.fail(errOrder)
			return 0
		}
		return int(n)
	}
	for range d.count(4) {
		h := hold{trigger: trigger(), first: d.varint(), due: d.varint(), taken: d.taken()}
		if n := len(m.holds); h.times() == 0 || n > 0 && h.trigger <= m.holds[n-1].trigger {
			d.fail(errOrder)
			return nil
		}
		m.holds = append(m.holds, h)
	}
	for range d.count(4) {
		f := flow{id: string(d.bytes(d.count(1))), at: d.varint(), taken: d.taken()}
		for range d.count(4) {
			st := flowStep{trigger: trigger(), state: stepState(d.byte()), items: int(d.uvarint() & (1<<32 - 1))}
			for range d.count(2) {
				a := answer{item: int(d.uvarint()), seq: d.uvarint()}
				if n := len(st.answers); a.item >= st.items || n > 0 && a.item <= st.answers[n-1].item {
					d.fail(errOrder)
					return nil
				}
				st.answers = append(st.answers, a)
			}
			if f.step(st.trigger) != nil || st.state > stepFired {
				d.fail(errOrder)
				return nil
			}
			f.steps = append(f.steps, st)
		}
		if d.err != nil {
			return nil
		}
		m.flows = append(m.flows, f)
	}
	if d.err == nil && len(m.holds)+len(m.flows) == 0 {
		d.fail(errOrder)
	}
	return m
}

// fail notes an error; what follows is zero.
func (d *decoder) fail(err error) { d.b, d.err = nil, err }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.err = errShort
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errShort
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errShort
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads the number of things that follow, of at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.b, d.err = nil, errShort
		n = 0
	}
	return int(n)
}

func (d *decoder) bytes(n int) []byte {
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}
