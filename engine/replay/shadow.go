// Package replay owns evaluating a part of the log again, beside the fold: what
// the sensors said of an event and why, and what would fire if events or specs
// were others. It decides with the evaluator that the fold has, reads with
// requests of its own and writes nothing; what shall be called is handed back.
// It must not know where specs come from, nor functions, nor the fold.
package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
)

// Sensor is a sensor with what is known of when it began.
type Sensor struct {
	evaluate.Sensor
	// Since is the last event before it began with nothing: it has not seen
	// that event, nor those before. Known is false when that was never noted.
	Since uint64
	Known bool
	// Changed is the last event before its spec was as it is now, at least
	// Since. What another version of it did with what waited is not known.
	Changed uint64
}

// Limits of one evaluation.
const (
	// maxKept is how many bytes the sensors may keep together, as their limits
	// count them, and maxResident how many of the events they refer to stay in
	// memory.
	maxKept     = 256 << 20
	maxResident = 16 << 20
	// checkEvery is how many events lie between two looks at what waits.
	checkEvery = 1024
)

// ErrTooMuch says that sensors keep more than an evaluation may hold.
var ErrTooMuch = errors.New("the sensors keep more events than can be held beside the running ones; begin later")

// shadow evaluates the log again. It belongs to one goroutine.
type shadow struct {
	eval  *evaluate.Evaluator
	list  []Sensor // by Since
	ready int      // how many of them are in force

	ctx    context.Context //nolint:containedctx // of the one call it lives for
	log    bus.Log
	edited evaluate.Events // seen instead of those in the log
	events int             // read so far
}

// newShadow returns a shadow of sensors that begins with the event after
// position. The number of a sensor is its place in the order of Since, then of
// names.
func newShadow(ctx context.Context, o evaluate.Observer, log bus.Log, id string, list []Sensor, position uint64) *shadow {
	s := &shadow{ctx: ctx, log: log, list: slices.Clone(list), edited: evaluate.Events{}}
	s.eval = evaluate.New(o, id, position, time.Time{}, s.load)
	s.eval.Resident = maxResident
	slices.SortFunc(s.list, func(a, b Sensor) int { return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.Name, b.Name)) })
	return s
}

// advance goes to the place of an event, past all deadlines before it, and puts
// the sensors in force that see it first.
func (s *shadow) advance(seq uint64, at time.Time) {
	n := s.ready
	for n < len(s.list) && s.list[n].Since < seq {
		n++
	}
	if n > s.ready {
		s.ready = n
		all := make([]evaluate.Sensor, n)
		for i := range all {
			all[i] = s.list[i].Sensor
		}
		s.eval.Use(all)
	}
	s.eval.Advance(seq, at)
}

// load gives an event that a state refers to, nil when it is not stored any
// more.
func (s *shadow) load(seq uint64) (*bus.Event, error) {
	if ev := s.edited[seq]; ev != nil {
		return ev, nil
	}
	r, err := s.log.Get(s.ctx, seq)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading event %d: %w", seq, err)
	}
	return bus.DecodeEvent(r)
}

// note counts an event that was read, and looks now and then at how much is
// kept.
func (s *shadow) note() error {
	if err := s.eval.Err(); err != nil {
		return err
	}
	if s.events++; s.events%checkEvery != 0 {
		return nil
	}
	kept := 0
	for i := range s.eval.Sensors() {
		_, bytes := s.eval.Usage(i)
		kept += bytes
	}
	if kept > maxKept {
		return ErrTooMuch
	}
	return nil
}
