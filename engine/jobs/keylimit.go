package jobs

import (
	"context"
	"math"
	"sync"
	"time"
)

// KeyLimit bounds the calls of each correlation key in a time: every key has a
// token bucket of its own, which is full when the key is new. By the generic
// cell rate algorithm a bucket is one time, and one that is full again is
// forgotten as calls of other keys go on, so that what is kept is about the keys
// whose buckets are not full. Make it with [NewKeyLimit]; it is safe for
// concurrent use.
//
// A call is held before it is made, and used when it is made. So it does not
// matter how long it waits in between, as for a free slot: calls never come
// closer together than the limit says.
type KeyLimit struct {
	every     time.Duration // fills one call in
	tolerance time.Duration // fills a bucket but for one call
	base      time.Time

	mu    sync.Mutex
	cells map[string]cell
	names []string // of the cells, in no order
	next  int      // among names, the one to look at for whether it is full
}

// cell is the bucket of one key.
type cell struct {
	full time.Duration // after base, when it is full again
	held int           // calls that will be made
}

// NewKeyLimit returns a limit of calls in a time, per key, of which as many as
// burst are made at once. All are at least 1.
func NewKeyLimit(calls int, per time.Duration, burst int) *KeyLimit {
	every := (min(per, math.MaxInt64/8)-1)/time.Duration(calls) + 1
	tolerance := time.Duration(math.MaxInt64 / 4)
	if n := time.Duration(burst - 1); n <= tolerance/every {
		tolerance = n * every
	}
	return &KeyLimit{every: every, tolerance: tolerance, base: time.Now(), cells: map[string]cell{}}
}

// free is how long after base the next call of a bucket is free, when it is now
// after base.
func (l *KeyLimit) free(c cell, now time.Duration) time.Duration {
	return max(c.full, now) + time.Duration(c.held)*l.every - l.tolerance
}

// hold takes hold of a call of the key, if one is free. It must be used or
// dropped.
func (l *KeyLimit) hold(key string, at time.Time) bool {
	now := at.Sub(l.base)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	c, there := l.cells[key]
	if l.free(c, now) > now {
		return false
	}
	c.held++
	l.cells[key] = c
	if !there {
		l.names = append(l.names, key)
	}
	return true
}

// use makes a call that is held.
func (l *KeyLimit) use(key string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cells[key]
	c.held--
	c.full = max(c.full, at.Sub(l.base)) + l.every
	l.cells[key] = c
}

// drop lets go of a call that is held and will not be made.
func (l *KeyLimit) drop(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cells[key]
	c.held--
	l.cells[key] = c
}

// heldPoll is the longest time after which is asked again for what is held.
const heldPoll = 100 * time.Millisecond

// when returns when to ask for a call of the key; not after at when one is free.
func (l *KeyLimit) when(key string, at time.Time) time.Time {
	now := at.Sub(l.base)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.cells[key]
	free := l.free(c, now)
	if free > now && c.held > 0 { // it may be dropped
		free = min(free, max(c.full-l.tolerance, now+heldPoll))
	}
	return l.base.Add(free)
}

// forget looks at two of the cells, so that those that are full are gone before
// as many others have come. mu is held.
func (l *KeyLimit) forget(now time.Duration) {
	for range min(2, len(l.names)) {
		if l.next >= len(l.names) {
			l.next = 0
		}
		name := l.names[l.next]
		if c := l.cells[name]; c.held > 0 || c.full > now {
			l.next++
			continue
		}
		delete(l.cells, name)
		last := len(l.names) - 1
		l.names[l.next], l.names[last] = l.names[last], ""
		l.names = l.names[:last]
	}
	if len(l.names) == 0 && cap(l.names) > 1024 { // a map keeps its size
		l.cells, l.names = map[string]cell{}, nil
	}
}

// take waits until it holds a call of the key. It fails when ctx ends, and at
// once when it would end before.
func (l *KeyLimit) take(ctx context.Context, key string) error {
	for {
		now := time.Now()
		if l.hold(key, now) {
			return nil
		}
		at := l.when(key, now)
		if end, ok := ctx.Deadline(); ok && at.After(end) {
			return context.DeadlineExceeded
		}
		timer := time.NewTimer(at.Sub(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// keyLimits are several limits that hold at the same time.
type keyLimits []*KeyLimit

func (ls keyLimits) hold(key string, at time.Time) bool {
	for i, l := range ls {
		if !l.hold(key, at) {
			ls[:i].drop(key)
			return false
		}
	}
	return true
}

func (ls keyLimits) use(key string, at time.Time) {
	for _, l := range ls {
		l.use(key, at)
	}
}

func (ls keyLimits) drop(key string) {
	for _, l := range ls {
		l.drop(key)
	}
}

// take is that of each limit.
func (ls keyLimits) take(ctx context.Context, key string) error {
	for i, l := range ls {
		if err := l.take(ctx, key); err != nil {
			ls[:i].drop(key)
			return err
		}
	}
	return nil
}

// when returns when to ask for a call of the key, not after at when one is free.
func (ls keyLimits) when(key string, at time.Time) time.Time {
	when := at
	for _, l := range ls {
		if w := l.when(key, at); w.After(when) {
			when = w
		}
	}
	return when
}

// every is the longest time a call takes to come back.
func (ls keyLimits) every() (d time.Duration) {
	for _, l := range ls {
		d = max(d, l.every)
	}
	return d
}
