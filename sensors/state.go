package sensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"
)

// MaxKept is the most events that wait for one dependency of one trigger under
// one correlation key, unless the sensor's [Limits] say less. Beyond it the
// oldest is given up.
const MaxKept = 10_000

// KeyState is what a sensor keeps under one correlation key. The zero value is
// the empty state. It is handed over: [Program.Step] and [Program.Adopt] take
// a state's memory over and the result replaces it, so a KeyState that went in
// must not be used again. It refers to events by their sequence. There may be
// millions, so that what few of them have is apart.
type KeyState struct {
	// names are the triggers by index, nil when the state is empty.
	names *[]string
	// first is what waits for the first trigger.
	first triggerView
	seen  uint64
	// more is nil when there is nothing of it.
	more *extra
}

// extra is what few sensors keep.
type extra struct {
	// rest is what waits for the triggers after the first, nil for nothing.
	rest []triggerView
	// fired is when each trigger with a cooldown fired last, 0 when its quiet
	// time is over; nil when that is so of all.
	fired []int64
	// holds are what triggers have gathered, by trigger, and flows the workflows
	// under way, the oldest first.
	holds []hold
	flows []flow
}

// triggerView is what has arrived and was not used, as one trigger sees it, in
// the order of arrival.
type triggerView []kept

// kept is one event that is kept.
type kept struct {
	at  int64 // log time in nanoseconds since 1970
	seq uint64
	// mark is nil when there is nothing to note.
	mark *mark
	dep  uint8
}

// mark is what is noted about few kept events.
type mark struct {
	// value is the distinct value, "" when any may wait.
	value string
	// answered and passed have a bit for each dependency that is declared absent
	// after this one: its event came in time, or the time is over.
	answered, passed uint64
}

// marks are what is noted about k.
func (k *kept) marks() mark {
	if k.mark == nil {
		return mark{}
	}
	return *k.mark
}

// note is where to note something about k.
func (k *kept) note() *mark {
	if k.mark == nil {
		k.mark = &mark{}
	}
	return k.mark
}

// Empty reports whether nothing is kept.
func (s *KeyState) Empty() bool { return len(s.first) == 0 && (s.more == nil || s.more.empty()) }

func (m *extra) empty() bool {
	return m.fired == nil && len(m.holds) == 0 && len(m.flows) == 0 &&
		!slices.ContainsFunc(m.rest, func(v triggerView) bool { return len(v) > 0 })
}

// triggers is the number of triggers the state knows.
func (s *KeyState) triggers() int {
	if s.names == nil {
		return 0
	}
	return len(*s.names)
}

// view is what waits for trigger i.
func (s *KeyState) view(i int) triggerView {
	switch {
	case i == 0:
		return s.first
	case s.more == nil || s.more.rest == nil:
		return nil
	}
	return s.more.rest[i-1]
}

// setView replaces what waits for trigger i. The state knows its triggers.
func (s *KeyState) setView(i int, v triggerView) {
	if i == 0 {
		s.first = v
		return
	}
	if len(v) == 0 && (s.more == nil || s.more.rest == nil) {
		return
	}
	s.extend()
	if s.more.rest == nil {
		s.more.rest = make([]triggerView, s.triggers()-1)
	}
	s.more.rest[i-1] = v
}

// quiet is when a trigger fired whose quiet time is not over, 0 for none.
func (s *KeyState) quiet(i int) int64 {
	if s.more == nil || s.more.fired == nil {
		return 0
	}
	return s.more.fired[i]
}

// setQuiet begins the quiet time of a trigger, or ends it with 0.
func (s *KeyState) setQuiet(i int, at int64) {
	if s.quiet(i) == at {
		return
	}
	s.extend()
	if s.more.fired == nil {
		s.more.fired = make([]int64, s.triggers())
	}
	s.more.fired[i] = at
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
func (s *KeyState) hold(i int) *hold {
	s.extend()
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
	return used
}

// findFlow is the place of a workflow, -1 when it is not under way.
func (s *KeyState) findFlow(id string) int {
	return slices.IndexFunc(s.flows(), func(f flow) bool { return f.id == id })
}

func (s *KeyState) addFlow(f flow) int {
	s.extend()
	s.more.flows = append(s.more.flows, f)
	return len(s.more.flows) - 1
}

func (s *KeyState) dropFlow(at int) { s.more.flows = slices.Delete(s.more.flows, at, at+1) }

func (s *KeyState) extend() {
	if s.more == nil {
		s.more = &extra{}
	}
}

// tidy lets go what is empty.
func (s *KeyState) tidy() {
	if s.more != nil {
		if !slices.ContainsFunc(s.more.fired, func(at int64) bool { return at != 0 }) {
			s.more.fired = nil
		}
		if s.more.empty() {
			s.more = nil
		}
	}
	if s.Empty() {
		*s = KeyState{}
	}
}

// all calls fn with the sequence of each event the state refers to.
func (s *KeyState) all(fn func(seq uint64)) {
	each := func(list []kept) {
		for i := range list {
			fn(list[i].seq)
		}
	}
	each(s.first)
	if s.more == nil {
		return
	}
	for _, v := range s.more.rest {
		each(v)
	}
	for i := range s.more.holds {
		each(s.more.holds[i].kept)
	}
	for i := range s.more.flows {
		f := &s.more.flows[i]
		each(f.kept)
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

// Newest is the largest sequence of the events that wait or were gathered, 0 for
// none.
func (s *KeyState) Newest() uint64 {
	newest := uint64(0)
	latest := func(list []kept) {
		if len(list) > 0 {
			newest = max(newest, list[len(list)-1].seq)
		}
	}
	latest(s.first)
	if s.more != nil {
		for _, v := range s.more.rest {
			latest(v)
		}
		for i := range s.more.holds {
			latest(s.more.holds[i].kept)
		}
		for i := range s.more.flows {
			latest(s.more.flows[i].kept)
		}
	}
	return newest
}

// Refers reports whether seq is one of [KeyState.Refs].
func (s *KeyState) Refers(seq uint64) (refers bool) {
	s.all(func(other uint64) { refers = refers || other == seq })
	return refers
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
	for i := range s.triggers() {
		for _, k := range s.view(i) {
			out = append(out, Kept{(*s.names)[i], int(k.dep), k.seq, time.Unix(0, k.at).UTC()})
		}
	}
	return out
}

// Forget gives up the events that wait and are before first, because the log
// begins there, and returns how many, each for every trigger. What was gathered
// and workflows stay:
// they are decided, and say what they miss when it is read.
func (s *KeyState) Forget(first uint64) (lost int) {
	for i := range s.triggers() {
		v := s.view(i)
		n := len(v)
		v = slices.DeleteFunc(v, func(k kept) bool { return k.seq < first })
		if lost += n - len(v); len(v) < n {
			s.setView(i, v)
		}
	}
	s.tidy()
	return lost
}

// Adopt returns the state as p sees it, after the sensor was replaced by one
// with the same [Program.StateFingerprint]: the views of triggers that are
// gone, and events a trigger no longer refers to, are not kept. A trigger that
// is new begins with nothing. It should be called for a state that was just
// decoded, which shares what it can with p then.
func (p *Program) Adopt(s KeyState) KeyState {
	if s.names == nil || s.names == &p.names {
		return s
	}
	out := KeyState{names: &p.names, seen: s.seen}
	for i, name := range *s.names {
		t := slices.Index(p.names, name)
		if t < 0 {
			continue
		}
		out.setView(t, slices.DeleteFunc(s.view(i), func(k kept) bool {
			return int(k.dep) >= len(p.deps) || p.triggers[t].refs&(1<<k.dep) == 0 || k.marks().answered&p.triggers[t].vital != 0
		}))
		if p.triggers[t].cooldown > 0 {
			out.setQuiet(t, s.quiet(i))
		}
	}
	if s.more != nil {
		p.adoptExtra(&out, &s)
	}
	out.tidy()
	return out
}

// adoptExtra takes over what triggers that are still there have gathered, and
// the workflows of which a step is still followed.
func (p *Program) adoptExtra(out, s *KeyState) {
	var holds []hold
	for _, h := range s.more.holds {
		t := slices.Index(p.names, (*s.names)[h.trigger])
		if t < 0 || p.triggers[t].follows != nil || !p.knows(h.kept) {
			continue
		}
		if h.trigger = t; p.triggers[t].gathers == nil {
			h.due = h.first // it does not gather any more
		}
		holds = append(holds, h)
	}
	slices.SortFunc(holds, func(a, b hold) int { return a.trigger - b.trigger })
	var flows []flow
	for _, f := range s.more.flows {
		steps := f.steps[:0]
		for _, st := range f.steps {
			if t := slices.Index(p.names, (*s.names)[st.trigger]); t >= 0 {
				st.trigger = t
				steps = append(steps, st)
			}
		}
		f.steps = steps
		if p.knows(f.kept) && slices.ContainsFunc(f.steps, func(st flowStep) bool { return st.state == stepCalled && p.triggers[st.trigger].followed }) {
			flows = append(flows, f)
		}
	}
	out.extend()
	out.more.holds, out.more.flows = holds, flows
}

// knows reports whether the dependencies of kept events exist.
func (p *Program) knows(list []kept) bool {
	return !slices.ContainsFunc(list, func(k kept) bool { return int(k.dep) >= len(p.deps) })
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
		for i := range s.triggers() {
			// The first to arrive is the first to expire.
			if v := s.view(i); len(v) > 0 {
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
	for i := range s.triggers() {
		t := i
		if s.names != &p.names {
			t = slices.Index(p.names, (*s.names)[i])
		}
		if fired := s.quiet(i); fired != 0 {
			if t >= 0 {
				fired += p.triggers[t].cooldown
			}
			due(fired)
		}
		if p.absents == 0 || t < 0 {
			continue
		}
		v := s.view(i)
		for j := range v {
			for a := v[j].pending(p, p.triggers[t].absent); a != 0; a &= a - 1 {
				due(v[j].at + p.deps[bits.TrailingZeros64(a)].wait)
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
	if k.mark != nil {
		absent &^= k.mark.answered | k.mark.passed
	}
	for a := absent; a != 0; a &= a - 1 {
		if p.deps[bits.TrailingZeros64(a)].after != int(k.dep) {
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

// version is the one that can hold the state.
func (s *KeyState) version() byte {
	if len(s.holds())+len(s.flows()) > 0 {
		return extraState
	}
	for i := range s.triggers() {
		if s.quiet(i) != 0 || slices.ContainsFunc(s.view(i), func(k kept) bool { return k.marks() != mark{} }) {
			return fullState
		}
	}
	return plainState
}

// Append appends the stored form of the state: references only. [DecodeKeyState]
// reads it; it is valid for programs with the same [Program.StateFingerprint].
func (s *KeyState) Append(b []byte) []byte {
	version := s.version()
	there := func(i int) bool { return len(s.view(i)) > 0 || s.quiet(i) != 0 || version == extraState }
	views := 0
	for i := range s.triggers() {
		if there(i) {
			views++
		}
	}
	b = append(b, version)
	b = binary.AppendUvarint(b, s.seen)
	b = binary.AppendUvarint(b, uint64(views))
	for i := range s.triggers() {
		if !there(i) {
			continue
		}
		b = appendText(b, (*s.names)[i])
		b = appendKept(b, s.view(i), version)
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
		m := k.marks()
		b = appendText(b, m.value)
		b = binary.AppendUvarint(b, m.answered)
		b = binary.AppendUvarint(b, m.passed)
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
				failed := uint64(0)
				if a.failed {
					failed = 1
				}
				b = binary.AppendUvarint(b, uint64(a.item)<<1|failed)
				b = binary.AppendUvarint(b, a.seq)
			}
		}
	}
	return b
}

// DecodeKeyState reads what [KeyState.Append] wrote. Give it to [Program.Adopt].
func DecodeKeyState(b []byte) (KeyState, error) {
	d := decoder{b: b}
	version := d.byte()
	if d.err == nil && (version < plainState || version > extraState) {
		return KeyState{}, fmt.Errorf("sensor state has version %d, this engine reads up to version %d", version, extraState)
	}
	s := KeyState{seen: d.uvarint()}
	var names []string
	var views []triggerView
	var quiets []int64
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
		if slices.Contains(names, name) || len(view) == 0 && quiet == 0 && version != extraState {
			d.err = errOrder
		}
		names, views, quiets = append(names, name), append(views, view), append(quiets, quiet)
	}
	if version == extraState {
		s.more = d.extra(len(names))
	}
	if d.err == nil && len(d.b) > 0 {
		d.err = errors.New("sensor state has more bytes than it should")
	}
	if d.err != nil {
		return KeyState{}, d.err
	}
	s.names = &names
	for i := range names {
		s.setView(i, views[i])
		s.setQuiet(i, quiets[i])
	}
	s.tidy()
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
		k := kept{dep: uint8(d.uvarint() & (MaxDependencies - 1)), seq: d.uvarint(), at: d.varint()}
		if version != plainState {
			m := mark{value: string(d.bytes(d.count(1))), answered: d.uvarint(), passed: d.uvarint()}
			if m != (mark{}) {
				k.mark = &m
			}
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
				item := d.uvarint()
				a := answer{item: int(item >> 1), seq: d.uvarint(), failed: item&1 != 0}
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
