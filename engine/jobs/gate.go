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

// nextLocked takes the task that may start now; when there is none it is nil,
// and is asked for again when there may be one. mu is held.
//
// A job that would exceed a limit does not start, and takes no slot. One for
// which no call of its key is free stands aside, for those of other keys. For a
// limit on all calls the queue books the next free one, one at a time, so that
// the queues that share a limit take turns. It passes these limits one after
// the other, so that none loses a call to a queue that waits for another.
func (q *queue) nextLocked(spec *Trigger) *task {
	if q.lines == nil && q.head == len(q.ready) {
		return nil
	}
	if spec.Breaker.Failures > 0 && q.breaker.open {
		if q.breaker.probing {
			return nil
		}
		if wait := time.Until(q.breaker.until); wait > 0 {
			q.laterLocked(wait)
			return nil
		}
	}
	now := time.Now()
	for {
		if q.callLocked(now); q.head == len(q.ready) {
			break
		}
		t := q.ready[q.head]
		if q.lines != nil && !q.holdLocked(t, now) {
			q.popLocked()
			q.waitLocked(t, now)
			continue
		}
		if !q.payLocked(spec, now) {
			t.holds.drop(t.job.Correlation)
			t.holds = nil
			return nil
		}
		q.popLocked()
		q.paid = 0
		if q.lines != nil && t.called {
			q.lines.leave(q.lines.of(t.job.Correlation), now)
		}
		t.called = false
		if q.breaker.open && spec.Breaker.Failures > 0 {
			q.breaker.probing, t.probe = true, true
		}
		return t
	}
	if at, ok := q.lines.next(); ok {
		q.laterLocked(at.Sub(now))
	}
	return nil
}

// callLocked calls those whose key has a call free. mu is held.
func (q *queue) callLocked(now time.Time) {
	if q.lines == nil {
		return
	}
	fetchable := q.lines.fetchable()
	q.ready = append(q.ready, q.lines.call(now)...)
	if !fetchable && q.lines.fetchable() {
		q.signal()
	}
}

// holdLocked reports whether a task may be called as far as the limits of its key
// are concerned, and holds that call then. mu is held.
func (q *queue) holdLocked(t *task, now time.Time) bool {
	key := t.job.Correlation
	if !t.called && q.lines.keys[key] != nil || !q.lines.limits.hold(key, now) {
		return false
	}
	t.holds = q.lines.limits
	return true
}

// payLocked passes the limits on all calls, or says when to ask again. mu is held.
func (q *queue) payLocked(spec *Trigger, now time.Time) bool {
	for ; q.paid < len(spec.Limits); q.paid++ {
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
