// Package evaluate owns the order in which sensors decide: log time, the
// deadlines before each event, the sensors that are asked, the step of each
// correlation key. The decisions themselves are package sensors'. It is pure,
// as they are: no I/O, no goroutines, no clock. The fold feeds it the log and
// stores what it says; spec tests feed it the events of a test. It must not
// know where events come from nor what becomes of a firing.
package evaluate

import (
	"iter"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
)

// Sensor is one compiled sensor.
type Sensor struct {
	Name string
	// Hash is the hash of its spec, recorded in every job.
	Hash    string
	Program *sensors.Program
}

// Key names the state of one correlation key of one sensor.
type Key struct{ Sensor, Key string }

// Entry is the state of one key.
type Entry struct {
	State sensors.KeyState
	// Seen is the last event this state has seen.
	Seen uint64
	// Stored, Dirty and Epoch belong to who keeps the state elsewhere too.
	Epoch         uint64
	Stored, Dirty bool

	waits    bool // until wake
	queued   bool // in the queue of deadlines, at latest for alarm
	aged     bool // in the queue of its space
	referred bool // in the queue of references
	wake     int64
	alarm    int64
	size     int // what it counts in its space
}

// Wake is when the key must be stepped by time, zero for never.
func (e *Entry) Wake() time.Time {
	if !e.waits {
		return time.Time{}
	}
	return time.Unix(0, e.wake).UTC()
}

// Observer is told what the sensors, given by their index in [Evaluator.Use],
// decide. What it is given belongs to the evaluator and is valid until the
// method returns, firings excepted.
type Observer interface {
	// Undecided is told of filters that the index could not decide for an event.
	Undecided(verdicts []sensors.GroupVerdict)
	// Routed is told what a sensor that was asked says of an event.
	Routed(sensor int, r sensors.Routing)
	// Stepped is told how a step of a key went, before what it fires.
	Stepped(sensor int, verdicts []sensors.Verdict)
	// Evicted is told of each key that is given up because its sensor keeps more
	// than it may. Its state is empty when Changed is told next.
	Evicted(sensor int, ev Eviction)
	// Changed is told of each key whose state was stepped or given up; an empty
	// state may be removed with [Evaluator.Drop].
	Changed(k Key, e *Entry)
	// Fired is told of each firing, in their order.
	Fired(sensor int, f *sensors.Firing)
}

// Evaluator evaluates events and deadlines in the order of the log. It is not
// safe for concurrent use.
type Evaluator struct {
	// Log is the identity of the log, a part of every firing key.
	Log string
	// Explain asks for the verdicts [sensors.Waiting] and [sensors.Fired] too.
	Explain bool
	// Inspect, when not nil, is called before each step and returns what it is
	// to fill in, nil for nothing.
	Inspect func(sensor int, key string) *sensors.Inspection
	// Resident is about how many bytes of events that states refer to stay in
	// memory, the newest; large ones do not. It changes no decision.
	Resident int
	// Meter, when it is not nil, is told when the work of a sensor on an event
	// begins and ends. What sensors share, the reading of the payload, is then
	// done before.
	Meter func(sensor int, begins bool)

	observer Observer
	load     func(seq uint64) (*bus.Event, error)
	sensors  []Sensor
	index    *sensors.Index
	byName   map[string]int
	byRule   map[*sensors.Program]int
	spaces   map[string]*space
	keys     int
	inForce  []*space // by the number of the sensor
	wakes    deadlines
	oldest   references
	now      time.Time
	position uint64
	resident resident
	loaded   map[uint64]*bus.Event // for the step
	kept     func(seq uint64) *bus.Event
	err      error
	current  int // the sensor at work, -1 for none

	candidates []*sensors.Program
	deps       []int
	view       sensors.View
}

// Events are events in memory by their sequence, to be loaded from.
type Events map[uint64]*bus.Event

// Load gives an event, nil when it is not there.
func (e Events) Load(seq uint64) (*bus.Event, error) { return e[seq], nil }

// New returns an evaluator without sensors that stands behind the event at
// position, with now as the log time. load gives an event that states refer to,
// by its sequence, or nil when it is no longer stored. It is asked for what an
// expression reads and is not in memory, and may block. After an error the
// evaluator is of no more use; see [Evaluator.Err].
func New(o Observer, log string, position uint64, now time.Time, load func(seq uint64) (*bus.Event, error)) *Evaluator {
	e := &Evaluator{Log: log, observer: o, load: load, current: -1, spaces: map[string]*space{}, position: position, now: now, index: sensors.NewIndex(nil)}
	e.kept = e.event
	return e
}

// Err is the error of loading an event that ended the evaluation, nil for none.
// What was to be decided then is not, nobody was told of it, and nothing is
// evaluated any more; the states in memory must not be used.
func (e *Evaluator) Err() error { return e.err }

// event gives a step an event that its state refers to.
func (e *Evaluator) event(seq uint64) *bus.Event {
	if ev := e.resident.get(seq); ev != nil {
		return ev
	}
	if ev := e.loaded[seq]; ev != nil || e.err != nil {
		return ev
	}
	ev, err := e.load(seq)
	if err != nil {
		e.err = err
		return nil
	}
	if ev != nil {
		if e.loaded == nil {
			e.loaded = map[uint64]*bus.Event{}
		}
		e.loaded[seq] = ev
	}
	return ev
}

// Use puts sensors in force, whose names are unique. Of the events at one time
// the first sensor decides first. The state of keys stays as it is; the caller
// adapts it, and calls [Evaluator.Limit] then.
func (e *Evaluator) Use(list []Sensor) {
	e.sensors = list
	e.byName, e.byRule = make(map[string]int, len(list)), make(map[*sensors.Program]int, len(list))
	e.inForce = make([]*space, len(list))
	programs := make([]*sensors.Program, len(list))
	for i, s := range list {
		e.byName[s.Name], e.byRule[s.Program], programs[i] = i, i, s.Program
		e.inForce[i] = e.space(s.Name)
	}
	e.index = sensors.NewIndex(programs)
}

// Sensors are those in force. The caller must not change them.
func (e *Evaluator) Sensors() []Sensor { return e.sensors }

// Sensor finds a sensor in force by its name, or nil.
func (e *Evaluator) Sensor(name string) *Sensor {
	if i, ok := e.byName[name]; ok {
		return &e.sensors[i]
	}
	return nil
}

// Groups are the groups that [Observer.Undecided] is told of, until [Evaluator.Use].
func (e *Evaluator) Groups() []sensors.Group { return e.index.Groups() }

// Now is the log time.
func (e *Evaluator) Now() time.Time { return e.now }

// Keys are the states by key, in no order. The caller may change what is in an
// entry and calls [Evaluator.Schedule] then; it removes entries with
// [Evaluator.Drop], also while it ranges over them.
func (e *Evaluator) Keys() iter.Seq2[Key, *Entry] {
	return func(yield func(Key, *Entry) bool) {
		for _, sp := range e.spaces {
			for key, en := range sp.keys {
				if !yield(Key{sp.sensor, key}, en) {
					return
				}
			}
		}
	}
}

// Len is the number of [Evaluator.Keys].
func (e *Evaluator) Len() int { return e.keys }

// Entry is the state of a key, nil for none.
func (e *Evaluator) Entry(k Key) *Entry {
	if sp := e.spaces[k.Sensor]; sp != nil {
		return sp.keys[k.Key]
	}
	return nil
}

// Put sets the state of a key that has none. [Evaluator.Schedule] must follow.
func (e *Evaluator) Put(k Key, en *Entry) { e.put(e.space(k.Sensor), k.Key, en) }

// Move hands what the sensors that are in force in to keep over to it. They must
// not be in force here any more, and to must have nothing of them.
func (e *Evaluator) Move(to *Evaluator) {
	for i := range to.sensors {
		name := to.sensors[i].Name
		from := e.spaces[name]
		if from == nil {
			continue
		}
		delete(e.spaces, name)
		sp := to.inForce[i]
		sp.through, sp.again = from.through, from.again
		for key, en := range from.keys {
			e.keys--
			e.wakes.none(en)
			now := &Entry{State: en.State, Seen: en.Seen, Epoch: en.Epoch, Stored: en.Stored, Dirty: en.Dirty}
			*en = Entry{} // its places in queues are void
			to.put(sp, key, now)
			to.take(sp, key, now, to.sensors[i].Program)
		}
	}
}

// Current is the sensor at work, by its index; ok is false when none is. It
// says whose fault a panic is.
func (e *Evaluator) Current() (sensor int, ok bool) { return e.current, e.current >= 0 }

// Drop forgets a key.
func (e *Evaluator) Drop(k Key) {
	en := e.Entry(k)
	if en == nil {
		return
	}
	sp := e.spaces[k.Sensor]
	sp.count(en, 0)
	e.wakes.none(en)
	e.keys--
	delete(sp.keys, k.Key)
	if len(sp.keys) > 0 {
		return
	}
	if sp.most > 1024 { // a map does not shrink
		sp.keys, sp.most = map[string]*Entry{}, 0
	}
	if _, inForce := e.byName[k.Sensor]; !inForce {
		delete(e.spaces, k.Sensor)
	}
}

// Schedule takes notice of a state that the caller has changed, if its sensor
// is in force: how much it counts and when it must be stepped by time.
func (e *Evaluator) Schedule(k Key) {
	i, ok := e.byName[k.Sensor]
	if en := e.Entry(k); ok && en != nil {
		e.take(e.inForce[i], k.Key, en, e.sensors[i].Program)
	}
}

// take takes notice of the state of a key.
func (e *Evaluator) take(sp *space, key string, en *Entry, p *sensors.Program) {
	sp.count(en, p.Size(key, &en.State))
	sp.age(key, en)
	e.oldest.add(en, e.keys)
	if at, ok := p.NextWake(en.State); ok {
		e.wakes.at(at.UnixNano(), sp, key, en)
	} else {
		e.wakes.none(en)
	}
	if e.wakes.crowded() {
		e.wakes.rebuild(e.spaces)
	}
}

// NextWake is the earliest deadline; ok is false when there is none.
func (e *Evaluator) NextWake() (at time.Time, ok bool) {
	d := e.wakes.first()
	if d == nil {
		return time.Time{}, false
	}
	return time.Unix(0, d.at).UTC(), true
}

// Deadlines steps all deadlines up to until, in the order (deadline, sensor,
// key).
func (e *Evaluator) Deadlines(until time.Time) {
	for e.err == nil {
		d := e.wakes.first()
		if d == nil || d.at > until.UnixNano() {
			return
		}
		at, k := time.Unix(0, d.at).UTC(), Key{d.space.sensor, d.key}
		e.wakes.none(d.entry)
		if at.After(e.now) {
			e.now = at
		}
		if i, ok := e.byName[k.Sensor]; ok {
			e.current = i
			e.step(i, sensors.Input{LogID: e.Log, Key: k.Key, Time: at, Explain: e.Explain, Kept: e.kept})
			e.current = -1
		}
	}
}

// Advance goes to the place of an event in the log, past all deadlines before
// it. Log time does not go back.
func (e *Evaluator) Advance(position uint64, at time.Time) {
	if at.After(e.now) {
		e.Deadlines(at)
		e.now = at
	}
	e.position = position
}

// Event evaluates the event to whose place the evaluator has advanced, and
// reports whether a sensor wants it. The event must not be changed any more.
func (e *Evaluator) Event(ev *bus.Event) (wanted bool) {
	if e.err != nil {
		return false
	}
	e.view.Reset(ev)
	if e.Meter != nil {
		e.view.Fill()
	}
	var undecided []sensors.GroupVerdict
	e.candidates, undecided = e.index.Lookup(&e.view, e.candidates[:0])
	if len(undecided) > 0 {
		e.observer.Undecided(undecided)
	}
	for _, p := range e.candidates {
		if e.err != nil {
			break
		}
		i := e.byRule[p]
		e.current = i
		if e.Meter != nil {
			e.Meter(i, true)
		}
		r := p.Route(&e.view)
		e.observer.Routed(i, r)
		if len(r.Matches) > 0 {
			wanted = true
			e.match(i, ev, r.Matches)
		}
		if e.Meter != nil {
			e.Meter(i, false)
		}
	}
	e.current = -1
	return wanted
}

// match steps each correlation key an event belongs to, with all
// dependencies that want it for that key.
func (e *Evaluator) match(sensor int, ev *bus.Event, matches []sensors.Match) {
	// A number may be given again after a restore; then the time differs, and
	// with it the firing key.
	id := e.Log + "@" + strconv.FormatInt(ev.StoredAt.UnixNano(), 36)
	for i, m := range matches {
		first := true
		for _, o := range matches[:i] {
			if o.Key == m.Key {
				first = false
			}
		}
		if !first {
			continue
		}
		e.deps = e.deps[:0]
		for _, o := range matches[i:] {
			if o.Key == m.Key {
				e.deps = append(e.deps, o.Dep)
			}
		}
		en := e.step(sensor, sensors.Input{LogID: id, Key: m.Key, Event: ev, Deps: e.deps, Time: e.now, Explain: e.Explain, Kept: e.kept})
		// A key that alone is more than the sensor may keep does not drive out the
		// others.
		if e.err != nil {
			return
		}
		if most := e.sensors[sensor].Program.Limits(); en != nil && en.size > most.Bytes && e.position > e.inForce[sensor].through {
			e.evict(sensor, m.Key, en)
		}
	}
	e.limit(sensor)
}

// step steps one key, unless its state has seen the event before, and returns
// the state, nil when there is none.
func (e *Evaluator) step(sensor int, in sensors.Input) *Entry {
	s, sp := &e.sensors[sensor], e.inForce[sensor]
	en := sp.keys[in.Key]
	var state sensors.KeyState
	if en != nil {
		if in.Event != nil && en.Seen >= in.Event.Seq {
			return nil // stored with this event already, before a crash
		}
		state = en.State
	}
	if e.Inspect != nil {
		in.Inspect = e.Inspect(sensor, in.Key)
	}
	state, firings, verdicts := s.Program.Step(state, in)
	if e.err != nil {
		return nil
	}
	e.retain(&state, in.Event, firings, verdicts)
	if en == nil && !state.Empty() {
		en = &Entry{}
		e.put(sp, in.Key, en)
	}
	if en != nil {
		en.State, en.Seen = state, e.position
		e.take(sp, in.Key, en, s.Program)
	}
	e.observer.Stepped(sensor, verdicts)
	if en != nil {
		e.observer.Changed(Key{s.Name, in.Key}, en)
	}
	for i := range firings {
		e.observer.Fired(sensor, &firings[i])
	}
	return en
}
