package driver

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// maxWaiting and maxWaitingBytes bound what of the stdout of a driver is
	// on its way to the bus.
	maxWaiting      = 1024
	maxWaitingBytes = 8 << 20
	// firstRetry and lastRetry bound the wait between two tries to store an event.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// queue hands events to the bus in order, many at a time, and does not take
// more while the bus does not: what it took is stored, or refused for good.
// One goroutine uses it, until ctx ends.
type queue struct {
	ctx    context.Context //nolint:containedctx // events outlive the call that brings them
	host   sources.Host
	status *status

	mu      sync.Mutex
	changed sync.Cond // something was stored or failed, and somebody waits
	waits   bool
	seq     int
	n       int // on their way
	bytes   int
	failed  []failure
	// repairing is true while those that failed are stored; nothing else is
	// meanwhile.
	repairing bool
}

// failure is an event that was not stored.
type failure struct {
	seq int
	ev  *bus.Event
	err error
}

func newQueue(ctx context.Context, h sources.Host, s *status) *queue {
	q := &queue{ctx: ctx, host: h, status: s}
	q.changed.L = &q.mu
	return q
}

// put takes an event. It blocks while too many are on their way, and while the
// bus takes none.
func (q *queue) put(ev *bus.Event) {
	size := len(ev.Data)
	q.mu.Lock()
	for q.repairing || q.n >= maxWaiting || q.n > 0 && q.bytes+size > maxWaitingBytes {
		q.wait()
	}
	q.n++
	q.bytes += size
	q.seq++
	seq := q.seq
	q.mu.Unlock()
	done := func(err error) { q.done(seq, ev, size, err) }
	if err := q.host.EmitAsync(q.ctx, ev, done); err != nil {
		done(err)
	}
}

// wait waits for a change. The lock is held.
func (q *queue) wait() {
	q.waits = true
	q.changed.Wait()
	q.waits = false
}

// change wakes who waits when it is worth it. The lock is held.
func (q *queue) change() {
	if q.waits && (q.n == 0 || q.n <= maxWaiting/2 && q.bytes <= maxWaitingBytes/2) {
		q.changed.Broadcast()
	}
}

func (q *queue) done(seq int, ev *bus.Event, size int, err error) {
	if err == nil {
		q.status.stored(ev)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n--
	q.bytes -= size
	if err != nil {
		q.failed = append(q.failed, failure{seq, ev, err})
		q.repairing = true
	}
	if q.repairing && q.n == 0 {
		failed := q.failed
		q.failed = nil
		go q.repair(failed)
	}
	q.change()
}

// repair stores what failed, when nothing else is on its way.
func (q *queue) repair(failed []failure) {
	slices.SortFunc(failed, func(a, b failure) int { return cmp.Compare(a.seq, b.seq) })
	for i, f := range failed {
		if i > 0 { // the bus is there again
			f.err = q.host.Emit(q.ctx, f.ev)
		}
		q.insist(f.ev, f.err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.repairing = false
	q.change()
}

// flush returns when everything taken is stored, or refused for good, or ctx
// ended; then it is ctx's error.
func (q *queue) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n > 0 || q.repairing {
		q.wait() // each is told in the end, at the latest when ctx ends
	}
	return q.ctx.Err()
}

// insist stores an event that failed with err, until ctx ends.
func (q *queue) insist(ev *bus.Event, err error) {
	for wait := firstRetry; err != nil; wait = min(2*wait, lastRetry) {
		if errors.Is(err, bus.ErrTooLarge) {
			q.status.refuse("an event is larger than the bus takes", []byte(ev.ID))
			return
		}
		if q.ctx.Err() != nil {
			return
		}
		pause := wait/2 + rand.N(wait/2)
		if limit, ok := errors.AsType[*sources.LimitError](err); ok {
			pause, wait = max(limit.RetryAfter, time.Millisecond), firstRetry
		} else {
			q.status.stuck(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-q.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		err = q.host.Emit(q.ctx, ev)
	}
	q.status.stuck(nil)
	q.status.stored(ev)
}
