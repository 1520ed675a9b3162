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
// one correlation key. Beyond it the oldest is given up.
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
	return s.fired == nil && !slices.ContainsFunc(s.views, func(v triggerView) bool { return len(v) > 0 })
}

// Seen is the sequence of the last event this state took in, 0 when the state
// is empty. A step with an event up to it changes nothing.
func (s *KeyState) Seen() uint64 { return s.seen }

// Refs returns the sequences of the kept events, ascending, each once.
func (s *KeyState) Refs() []uint64 {
	var out []uint64
	for _, v := range s.views {
		for i := range v {
			out = append(out, v[i].seq)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// MinRef is the smallest sequence of the kept events, 0 for none: the log must
// keep what follows.
func (s *KeyState) MinRef() uint64 {
	least := uint64(0)
	for _, v := range s.views {
		for i := range v {
			if least == 0 || v[i].seq < least {
				least = v[i].seq
			}
		}
	}
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
// a sequence, or nil when it is no longer stored: then it is not kept any more.
func (s *KeyState) Hydrate(event func(seq uint64) *bus.Event) {
	for i, v := range s.views {
		n := 0
		for _, k := range v {
			if k.ev == nil {
				k.ev = event(k.seq)
			}
			if k.ev != nil {
				v[n] = k
				n++
			}
		}
		s.views[i] = v[:n]
	}
	if s.Empty() {
		*s = KeyState{}
	}
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
	if out.Empty() {
		return KeyState{}
	}
	return out
}

// NextWake is the earliest time at which a kept event has waited for the whole
// window, something has been absent for its time, or a cooldown is over; ok is
// false when none is due ever. A [Program.Step] without an event at that time
// gives the event up, and fires what waited for the absence.
func (p *Program) NextWake(s KeyState) (at time.Time, ok bool) {
	var first int64
	due := func(t int64) {
		if !ok || t < first {
			first, ok = t, true
		}
	}
	if p.within > 0 {
		for _, v := range s.views {
			// The first to arrive is the first to expire.
			if len(v) > 0 {
				due(v[0].at + int64(p.within))
			}
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

// Versions of the stored form. The first is still written where it suffices;
// the second also has distinct values, what became of absences, and cooldowns.
const (
	plainState = 1
	fullState  = 2
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
	if s.plain() {
		version = plainState
	}
	views := 0
	for i, v := range s.views {
		if len(v) > 0 || s.quiet(i) != 0 {
			views++
		}
	}
	b = append(b, version)
	b = binary.AppendUvarint(b, s.seen)
	b = binary.AppendUvarint(b, uint64(views))
	for i, v := range s.views {
		if len(v) == 0 && s.quiet(i) == 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(s.names[i])))
		b = append(b, s.names[i]...)
		b = binary.AppendUvarint(b, uint64(len(v)))
		for _, k := range v {
			b = binary.AppendUvarint(b, uint64(k.dep))
			b = binary.AppendUvarint(b, k.seq)
			b = binary.AppendVarint(b, k.at)
			if version == plainState {
				continue
			}
			b = binary.AppendUvarint(b, uint64(len(k.value)))
			b = append(b, k.value...)
			b = binary.AppendUvarint(b, k.answered)
			b = binary.AppendUvarint(b, k.passed)
		}
		if version != plainState {
			b = binary.AppendVarint(b, s.quiet(i))
		}
	}
	return b
}

// DecodeKeyState reads what [KeyState.Append] wrote. The events must be
// attached with [KeyState.Hydrate] before the next step.
func DecodeKeyState(b []byte) (KeyState, error) {
	d := decoder{b: b}
	version := d.byte()
	if d.err == nil && version != plainState && version != fullState {
		return KeyState{}, fmt.Errorf("sensor state has version %d, this engine reads up to version %d", version, fullState)
	}
	s := KeyState{seen: d.uvarint()}
	for range d.count(1) {
		name := string(d.bytes(d.count(1)))
		view := make(triggerView, 0, min(d.count(3), MaxKept))
		for range d.last {
			k := kept{dep: int(d.uvarint() & (MaxDependencies - 1)), seq: d.uvarint(), at: d.varint()}
			if version == fullState {
				k.value = string(d.bytes(d.count(1)))
				k.answered, k.passed = d.uvarint(), d.uvarint()
			}
			if len(view) > 0 && k.at < view[len(view)-1].at {
				d.err = errOrder
			}
			if d.err != nil {
				return KeyState{}, d.err
			}
			view = append(view, k)
		}
		quiet := int64(0)
		if version == fullState {
			quiet = d.varint()
		}
		if slices.Contains(s.names, name) || len(view) == 0 && quiet == 0 {
			d.err = errOrder
		}
		if quiet != 0 {
			s.fired = append(s.fired, make([]int64, len(s.names)-len(s.fired))...)
			s.fired = append(s.fired, quiet)
		}
		s.names, s.views = append(s.names, name), append(s.views, view)
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
	b    []byte
	last int
	err  error
}

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
	d.last = int(n)
	return d.last
}

func (d *decoder) bytes(n int) []byte {
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}
