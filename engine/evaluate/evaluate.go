// Package evaluate owns the order in which sensors decide: log time, the
// deadlines before each event, the sensors that are asked, the step of each
// correlation key. The decisions themselves are package sensors'. It is pure,
// as they are: no I/O, no goroutines, no clock. The fold feeds it the log and
// stores what it says; spec tests feed it the events of a test. It must not
// know where events come from nor what becomes of a firing.
package evaluate

import (
	"cmp"
	"container/heap"
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
	Stored, Dirty bool
	Epoch         uint64

	wake time.Time
}

// Wake is when the key must be stepped by time, zero for never.
func (e *Entry) Wake() time.Time { return e.wake }

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
	// Changed is told of each key whose state was stepped; an empty state may
	// be removed with [Evaluator.Drop].
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

	observer Observer
	sensors  []Sensor
	index    *sensors.Index
	byName   map[string]int
	byRule   map[*sensors.Program]int
	keys     map[Key]*Entry
	wakes    wakeHeap
	now      time.Time
	position uint64

	candidates []*sensors.Program
	deps       []int
	view       sensors.View
}

// New returns an evaluator without sensors that stands behind the event at
// position, with now as the log time.
func New(o Observer, log string, position uint64, now time.Time) *Evaluator {
	return &Evaluator{Log: log, observer: o, keys: map[Key]*Entry{}, position: position, now: now, index: sensors.NewIndex(nil)}
}

// Use puts sensors in force, whose names are unique. Of the events at one time
// the first sensor decides first. The state of keys stays as it is; the caller
// adapts it.
func (e *Evaluator) Use(list []Sensor) {
	e.sensors = list
	e.byName, e.byRule = make(map[string]int, len(list)), make(map[*sensors.Program]int, len(list))
	programs := make([]*sensors.Program, len(list))
	for i, s := range list {
		e.byName[s.Name], e.byRule[s.Program], programs[i] = i, i, s.Program
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

// Keys are the states by key. The caller may change what is in an entry and
// calls [Evaluator.Schedule] then; it removes entries with [Evaluator.Drop].
func (e *Evaluator) Keys() map[Key]*Entry { return e.keys }

// Put sets the state of a key.
func (e *Evaluator) Put(k Key, en *Entry) { e.keys[k] = en }

// Drop forgets a key.
func (e *Evaluator) Drop(k Key) { delete(e.keys, k) }

// Schedule notes when a key, whose sensor is in force, must be stepped by time.
func (e *Evaluator) Schedule(k Key) {
	i, ok := e.byName[k.Sensor]
	if en := e.keys[k]; ok && en != nil {
		e.schedule(k, en, e.sensors[i].Program)
	}
}

func (e *Evaluator) schedule(k Key, en *Entry, p *sensors.Program) {
	at, ok := p.NextWake(en.State)
	if !ok {
		en.wake = time.Time{}
		return
	}
	if !at.Equal(en.wake) {
		en.wake = at
		heap.Push(&e.wakes, wakeItem{at, k})
	}
}

// NextWake is the earliest deadline; ok is false when there is none.
func (e *Evaluator) NextWake() (at time.Time, ok bool) {
	for len(e.wakes) > 0 {
		w := e.wakes[0]
		if en := e.keys[w.k]; en != nil && en.wake.Equal(w.at) {
			return w.at, true
		}
		heap.Pop(&e.wakes)
	}
	return time.Time{}, false
}

// Deadlines steps all deadlines up to until, in the order (deadline, sensor,
// key).
func (e *Evaluator) Deadlines(until time.Time) {
	for {
		at, ok := e.NextWake()
		if !ok || at.After(until) {
			return
		}
		k := e.wakes[0].k
		heap.Pop(&e.wakes)
		e.keys[k].wake = time.Time{}
		if at.After(e.now) {
			e.now = at
		}
		if i, ok := e.byName[k.Sensor]; ok {
			e.step(i, sensors.Input{LogID: e.Log, Key: k.Key, Time: at, Explain: e.Explain})
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
	e.view.Reset(ev)
	var undecided []sensors.GroupVerdict
	e.candidates, undecided = e.index.Lookup(&e.view, e.candidates[:0])
	if len(undecided) > 0 {
		e.observer.Undecided(undecided)
	}
	for _, p := range e.candidates {
		i := e.byRule[p]
		r := p.Route(&e.view)
		e.observer.Routed(i, r)
		if len(r.Matches) > 0 {
			wanted = true
			e.match(i, ev, r.Matches)
		}
	}
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
		e.step(sensor, sensors.Input{LogID: id, Key: m.Key, Event: ev, Deps: e.deps, Time: e.now, Explain: e.Explain})
	}
}

// step steps one key.
func (e *Evaluator) step(sensor int, in sensors.Input) {
	s := &e.sensors[sensor]
	k := Key{s.Name, in.Key}
	en := e.keys[k]
	var state sensors.KeyState
	if en != nil {
		if in.Event != nil && en.Seen >= in.Event.Seq {
			return // stored with this event already, before a crash
		}
		state = en.State
	}
	state, firings, verdicts := s.Program.Step(state, in)
	e.observer.Stepped(sensor, verdicts)
	if en != nil || !state.Empty() {
		if en == nil {
			en = &Entry{}
			e.keys[k] = en
		}
		en.State, en.Seen = state, e.position
		e.schedule(k, en, s.Program)
		e.observer.Changed(k, en)
	}
	for i := range firings {
		e.observer.Fired(sensor, &firings[i])
	}
}

// wakeItem is a deadline of one key; it is void when the key's has changed.
type wakeItem struct {
	at time.Time
	k  Key
}

type wakeHeap []wakeItem

func (h wakeHeap) Len() int { return len(h) }
func (h wakeHeap) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), cmp.Compare(h[i].k.Sensor, h[j].k.Sensor), cmp.Compare(h[i].k.Key, h[j].k.Key)) < 0
}
func (h wakeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push and Pop are for container/heap.
func (h *wakeHeap) Push(x any) { *h = append(*h, x.(wakeItem)) }

// Pop is for container/heap.
func (h *wakeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
