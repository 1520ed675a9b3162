package evaluate

import (
	"container/heap"
	"fmt"

	"github.com/sensor-engine/engine/sensors"
)

// space is what one sensor keeps.
type space struct {
	sensor string
	keys   map[string]*Entry
	most   int // keys there were since the map was made
	live   int // keys whose state is not empty
	bytes  int // what they count

	// queue has the live keys, the one touched longest ago first, and is nil
	// until the sensor has more than it may. A key is in it once, for when it was
	// touched at some time: the place is corrected when it comes up, so that a
	// step costs nothing.
	queue ageHeap

	// The evictions up to the event at through were decided before a crash; those
	// in again are to be repeated.
	through uint64
	again   []Eviction
}

func (e *Evaluator) space(sensor string) *space {
	sp := e.spaces[sensor]
	if sp == nil {
		sp = &space{sensor: sensor, keys: map[string]*Entry{}}
		e.spaces[sensor] = sp
	}
	return sp
}

// put sets the state of a key that has none.
func (e *Evaluator) put(sp *space, key string, en *Entry) {
	e.keys++
	sp.keys[key] = en
	sp.most = max(sp.most, len(sp.keys))
}

// count takes notice that a key counts size bytes now, 0 when it is empty.
func (sp *space) count(en *Entry, size int) {
	if (en.size == 0) != (size == 0) {
		if size > 0 {
			sp.live++
		} else {
			sp.live--
		}
	}
	sp.bytes += size - en.size
	en.size = size
}

// aged is a place in the queue of a space.
type aged struct {
	seen  uint64
	key   string
	entry *Entry
}

// age puts a key into the queue, if there is one and it has to be there.
func (sp *space) age(key string, en *Entry) {
	if sp.queue == nil || en.aged || en.size == 0 {
		return
	}
	if len(sp.queue) > 2*sp.live+64 { // most came and went
		sp.queue = nil
		return
	}
	en.aged = true
	heap.Push(&sp.queue, aged{en.Seen, key, en})
}

// oldest is the live key that was touched longest ago, of such that were at the
// same event the first. There must be one.
func (sp *space) oldest() (key string, en *Entry) {
	if sp.queue == nil {
		sp.queue = make(ageHeap, 0, sp.live+sp.live/4)
		for key, en := range sp.keys {
			if en.aged = en.size > 0; en.aged {
				sp.queue = append(sp.queue, aged{en.Seen, key, en})
			}
		}
		heap.Init(&sp.queue)
	}
	for {
		top := &sp.queue[0]
		switch en := top.entry; {
		case en.size == 0:
			en.aged = false
			heap.Pop(&sp.queue)
		case en.Seen != top.seen:
			top.seen = en.Seen
			heap.Fix(&sp.queue, 0)
		default:
			return top.key, en
		}
	}
}

type ageHeap []aged

func (h ageHeap) Len() int { return len(h) }
func (h ageHeap) Less(i, j int) bool {
	if h[i].seen != h[j].seen {
		return h[i].seen < h[j].seen
	}
	return h[i].key < h[j].key
}
func (h ageHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *ageHeap) Push(x any) { *h = append(*h, x.(aged)) }

// Pop is for container/heap.
func (h *ageHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = aged{}
	*h = old[:len(old)-1]
	return x
}

// Eviction is a correlation key that was given up at an event because its
// sensor kept more than it may.
type Eviction struct {
	Position uint64
	Key      string
	// Seen is the event by which it was touched last, Events how many waited.
	Seen   uint64
	Events int
}

// Verdict says it for people.
func (ev *Eviction) Verdict() sensors.Verdict {
	return sensors.Verdict{
		Outcome: sensors.Evicted, Seq: ev.Seen,
		Detail: fmt.Sprintf("key %s with %d waiting events, last touched by event %d", ev.Key, ev.Events, ev.Seen),
	}
}

// Decided tells of a sensor that evictions up to the event at through were
// decided when these events were evaluated before, and which. They are
// repeated, in this order, and no others are decided up to there: states that
// have seen later events do not tell how much there was before.
func (e *Evaluator) Decided(sensor string, through uint64, list []Eviction) {
	sp := e.space(sensor)
	sp.through, sp.again = through, list
}

// Usage is how many keys have state in a sensor, and how many bytes they count.
func (e *Evaluator) Usage(sensor int) (keys, bytes int) {
	sp := e.inForce[sensor]
	return sp.live, sp.bytes
}

// Limit gives up what sensors keep beyond their limits, at the event evaluated
// last.
func (e *Evaluator) Limit() {
	for i := range e.sensors {
		e.enforce(i)
	}
}

// limit sees to the limits of a sensor, as it does after each event the sensor
// wants. Deadlines make room, and take none to speak of.
func (e *Evaluator) limit(sensor int) {
	if e.position <= e.inForce[sensor].through {
		e.repeat(sensor)
	} else {
		e.enforce(sensor)
	}
}

// enforce gives up keys of a sensor while it keeps more than it may: those that
// were touched longest ago.
func (e *Evaluator) enforce(sensor int) {
	sp, most := e.inForce[sensor], e.sensors[sensor].Program.Limits()
	for sp.live > most.Keys || sp.bytes > most.Bytes {
		key, en := sp.oldest()
		e.evict(sensor, key, en)
	}
}

// repeat gives up what was given up at this event before.
func (e *Evaluator) repeat(sensor int) {
	sp := e.inForce[sensor]
	for len(sp.again) > 0 && sp.again[0].Position <= e.position {
		again := sp.again[0]
		sp.again = sp.again[1:]
		// A state that has seen more is one of after it.
		if en := sp.keys[again.Key]; again.Position == e.position && en != nil && en.size > 0 && en.Seen <= e.position {
			e.evict(sensor, again.Key, en)
		}
	}
}

// evict gives up a key.
func (e *Evaluator) evict(sensor int, key string, en *Entry) {
	sp := e.inForce[sensor]
	ev := Eviction{Position: e.position, Key: key, Seen: en.Seen, Events: len(en.State.Refs())}
	en.State, en.Seen = sensors.KeyState{}, e.position
	sp.count(en, 0)
	e.wakes.none(en)
	e.observer.Evicted(sensor, ev)
	e.observer.Changed(Key{sp.sensor, key}, en)
}
