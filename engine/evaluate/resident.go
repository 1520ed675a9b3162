package evaluate

import (
	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
)

// resident are events that states refer to and that are in memory: the newest,
// up to a number of bytes. An event leaves when it was used or given up, as far
// as that is cheap to know; what is not here is loaded.
type resident struct {
	events map[uint64]*bus.Event
	order  []uint64 // by when they came; some have left
	most   int      // events there were since the map was made
	bytes  int
}

// largeEvent is the size from which an event is not held.
const largeEvent = 64 << 10

// weight is about what an event takes, its parsed payload included.
func weight(ev *bus.Event) int { return 1024 + 3*len(ev.Data) + len(ev.Request) }

func (r *resident) get(seq uint64) *bus.Event { return r.events[seq] }

// put holds an event, and lets older ones go beyond most bytes.
func (r *resident) put(ev *bus.Event, most int) {
	size := weight(ev)
	if size > most || len(ev.Data)+len(ev.Request) > largeEvent || r.events[ev.Seq] != nil {
		return
	}
	if r.events == nil {
		r.events = map[uint64]*bus.Event{}
	}
	r.events[ev.Seq] = ev
	r.most = max(r.most, len(r.events))
	r.order = append(r.order, ev.Seq)
	r.bytes += size
	for r.bytes > most { // not down to none: it fits
		oldest := r.order[0]
		r.order = r.order[1:]
		r.remove(oldest)
	}
	if len(r.order) > 2*len(r.events)+1024 {
		rest := make([]uint64, 0, len(r.events))
		for _, seq := range r.order {
			if r.events[seq] != nil {
				rest = append(rest, seq)
			}
		}
		r.order = rest
	}
}

func (r *resident) remove(seq uint64) {
	ev := r.events[seq]
	if ev == nil {
		return
	}
	r.bytes -= weight(ev)
	if delete(r.events, seq); len(r.events) > 0 {
		return
	}
	r.order = r.order[:0]
	if r.most > 1024 { // a map does not shrink
		*r = resident{}
	}
}

// retain lets the events go that left a state with a step, and holds that of
// the step, and what was loaded for it, as far as the state refers to them now.
func (e *Evaluator) retain(st *sensors.KeyState, ev *bus.Event, firings []sensors.Firing, verdicts []sensors.Verdict) {
	if len(e.resident.events) > 0 {
		e.release(st, firings, verdicts)
	}
	if ev != nil && st.Newest() == ev.Seq {
		e.resident.put(ev, e.Resident)
	}
	if len(e.loaded) > 0 {
		for _, seq := range st.Refs() {
			if ev := e.loaded[seq]; ev != nil {
				e.resident.put(ev, e.Resident)
			}
		}
		if len(e.loaded) > 1024 {
			e.loaded = nil // a map does not shrink
		}
		clear(e.loaded)
	}
}

// release lets go what was used or given up. Others may refer to it yet; who
// does loads it.
func (e *Evaluator) release(st *sensors.KeyState, firings []sensors.Firing, verdicts []sensors.Verdict) {
	for i := range firings {
		if len(firings[i].Events) > 8 && !st.Empty() {
			continue // it would be looked for long
		}
		for _, c := range firings[i].Events {
			if !st.Refers(c.Seq) {
				e.resident.remove(c.Seq)
			}
		}
	}
	for i := range verdicts {
		if v := &verdicts[i]; (v.Outcome == sensors.Expired || v.Outcome == sensors.Superseded) && !st.Refers(v.Seq) {
			e.resident.remove(v.Seq)
		}
	}
}
