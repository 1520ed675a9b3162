package jobs

import (
	"fmt"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

// Breaker says when a trigger is paused because its function fails.
type Breaker struct {
	// Failures is how many calls in a row must fail in a way that may pass; 0
	// never pauses.
	Failures int
	// Wait is the first pause and Max the longest: each probe that fails doubles it.
	Wait, Max time.Duration
}

// The states of a breaker.
const (
	BreakerClosed  = "closed"
	BreakerOpen    = "open"
	BreakerProbing = "probing"
)

// AlarmBreaker is the code of the alarm about a trigger that was paused.
const AlarmBreaker = "breaker-open"

// breaker is the state of the breaker of one queue, whose mu guards it.
type breaker struct {
	failures int // in a row
	open     bool
	probing  bool
	until    time.Time // no call before, while open
	wait     time.Duration
}

func (b *breaker) state() string {
	switch {
	case b.probing:
		return BreakerProbing
	case b.open:
		return BreakerOpen
	}
	return BreakerClosed
}

// letLocked lets a task start, or says when to ask again. mu is held.
//
// A job that would exceed a limit does not start, and takes no slot: its queue
// books the next free call, one at a time, so that the queues that share a
// limit take turns. It passes the limits one after the other, so that none
// loses a call to a queue that waits for another.
func (q *queue) letLocked(spec *Trigger, t *task) bool {
	if spec.Breaker.Failures > 0 && q.breaker.open {
		if q.breaker.probing {
			return false
		}
		if wait := time.Until(q.breaker.until); wait > 0 {
			q.laterLocked(wait)
			return false
		}
	}
	for now := time.Now(); q.paid < len(spec.Limits); q.paid++ {
		if q.booking == nil {
			q.booking = spec.Limits[q.paid].ReserveN(now, 1)
			q.booked = now.Add(q.booking.DelayFrom(now))
		}
		if wait := q.booked.Sub(now); wait > 0 {
			q.laterLocked(wait)
			return false
		}
		q.booking = nil
	}
	q.paid = 0
	if q.breaker.open && spec.Breaker.Failures > 0 {
		q.breaker.probing, t.probe = true, true
	}
	return true
}

// laterLocked asks again in a while. mu is held.
func (q *queue) laterLocked(wait time.Duration) {
	if q.timer != nil {
		q.timer.Reset(wait)
		return
	}
	q.timer = time.AfterFunc(wait, func() {
		q.mu.Lock()
		q.startLocked()
		q.mu.Unlock()
	})
}

// unbookLocked gives a booked call back. mu is held.
func (q *queue) unbookLocked() {
	if q.booking != nil {
		q.booking.Cancel()
	}
	q.booking, q.paid = nil, 0
}

// judge tells the breaker how a call ended. It reports whether the call counts
// as an attempt: a probe that fails does not. A failure that is permanent is an
// answer all the same.
func (q *queue) judge(spec *Trigger, t *task, err error) bool {
	if spec.Breaker.Failures == 0 {
		return true
	}
	answered := err == nil || triggers.Permanent(err)
	q.mu.Lock()
	b, probe := &q.breaker, t.probe
	t.probe = false
	opened := false
	switch {
	case probe && answered:
		*b = breaker{}
		q.startLocked()
	case probe:
		b.probing = false
		b.pauseLocked(q, min(2*b.wait, spec.Breaker.Max))
	case b.open: // a call that began before
	case answered:
		b.failures = 0
	default:
		b.failures++
		if opened = b.failures >= spec.Breaker.Failures; opened {
			b.open = true
			b.pauseLocked(q, spec.Breaker.Wait)
		}
	}
	q.mu.Unlock()
	switch {
	case opened:
		q.p.o.Alarm(AlarmBreaker, fmt.Sprintf("trigger %s is paused: %d calls of %s in a row have failed; its jobs wait, and it is probed from time to time", q.ref, spec.Breaker.Failures, spec.Callee.Name))
	case probe && answered:
		q.p.log.Info("function answers again, its trigger goes on", "sensor", q.ref.Sensor, "trigger", q.ref.Trigger)
		q.signal()
	}
	return answered || !probe
}

// pauseLocked makes no call for a while. The queue's mu is held.
func (b *breaker) pauseLocked(q *queue, wait time.Duration) {
	b.wait, b.until = wait, time.Now().Add(wait)
	q.laterLocked(wait)
}
