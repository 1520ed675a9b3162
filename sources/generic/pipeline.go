package generic

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// maxWaiting and maxWaitingBytes bound what was received and is not known to
	// be stored. One event is let in whatever its size.
	maxWaiting      = 256
	maxWaitingBytes = 8 << 20
	// firstRetry and lastRetry bound the wait between two tries to store an event.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// saveAfter is how long nothing must have come before the cursor is written
	// alone.
	saveAfter = 250 * time.Millisecond
	// lastWords is how long the end may take for answers of the bus that are on
	// their way and for a last cursor.
	lastWords = 2 * time.Second
)

// pipeline hands events to the bus one after the other without waiting for
// each, and keeps them until they are stored: what the bus did not take is
// offered again, in order, before anything new.
//
// The cursor that travels with an event must not be ahead of an event that is
// not stored, or a crash would lose that one for good. So an event carries its
// own cursor when all before it are stored, which is the usual case of a stream
// that is not a flood, and else the newest for which that is true. After a
// flood the last cursor is written alone.
//
// add, flush and close are called by one goroutine; another one, the keeper,
// stores what failed and writes cursors.
type pipeline struct {
	host sources.Host
	// changed has a value when something happened that add or flush wait for,
	// dirty when the keeper has something to do.
	changed, dirty chan struct{}
	keeper         sync.WaitGroup
	end            context.CancelFunc

	mu      sync.Mutex
	waiting []*item // in order of arrival; the first one is not stored
	bytes   int64
	flying  int // how many of them the bus has not answered
	// failed is why the bus did not take one of them; nothing is added before
	// the keeper stored it.
	failed error
	// position is the cursor up to which everything is stored, durable the one
	// that a restart would find.
	position, durable string
	// resting is what the status says when all is well.
	resting string
}

// item is one event that waits.
type item struct {
	ev     *bus.Event
	cursor string // its own
	size   int64
	dated  bool // the server told when it happened
	stored bool
}

// newPipeline starts a pipeline behind a position. The caller must close it.
func newPipeline(ctx context.Context, h sources.Host, position string) *pipeline {
	p := &pipeline{
		host: h, changed: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		position: position, durable: position, waiting: make([]*item, 0, maxWaiting),
	}
	ctx, p.end = context.WithCancel(ctx)
	p.keeper.Go(func() { p.keep(ctx) })
	return p
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// add hands over an event with the server's cursor after it. It blocks while
// too much waits, or something is not stored that the bus did not take. The
// only error is that of ctx; then the event is not handed over.
func (p *pipeline) add(ctx context.Context, ev *bus.Event, cursor string) error {
	it := &item{ev: ev, cursor: cursor, size: size(ev), dated: !ev.Time.IsZero()}
	p.mu.Lock()
	for p.failed != nil || len(p.waiting) > 0 && (len(p.waiting) >= maxWaiting || p.bytes+it.size > maxWaitingBytes) {
		p.mu.Unlock()
		if err := p.await(ctx); err != nil {
			return err
		}
		p.mu.Lock()
	}
	p.stamp(it)
	p.waiting = append(p.waiting, it)
	p.bytes += it.size
	p.flying++
	p.mu.Unlock()
	p.emit(ctx, it, nil)
	return nil
}

// emit offers an event to the bus. What became of it goes to answered first and
// then to done, unless that is nil.
func (p *pipeline) emit(ctx context.Context, it *item, done chan<- error) {
	answer := func(err error) {
		p.answered(it, err)
		if done != nil {
			done <- err
		}
	}
	if err := p.host.EmitAsync(ctx, it.ev, answer); err != nil {
		answer(err)
	}
}

// stamp gives the event the cursor that may travel with it. The lock is held,
// and the event not yet among those that wait, or the first of them.
func (p *pipeline) stamp(it *item) {
	if it.ev.Cursor = p.position; it.cursor != "" && (len(p.waiting) == 0 || p.waiting[0] == it) {
		it.ev.Cursor = it.cursor
	}
}

// answered is told what became of an event.
func (p *pipeline) answered(it *item, err error) {
	p.mu.Lock()
	p.flying--
	if err != nil {
		if p.failed == nil {
			p.failed = err
		}
	} else {
		it.stored = true
	}
	moved := p.advance()
	position := p.position
	if p.failed != nil && p.flying == 0 || len(p.waiting) == 0 && p.durable != p.position {
		signal(p.dirty)
	}
	p.mu.Unlock()
	if moved != nil {
		progress := sources.Progress{Position: position}
		if moved.dated {
			progress.Lag = max(time.Since(moved.ev.Time), 0)
		}
		p.host.Report(progress)
	}
	signal(p.changed)
}

// advance forgets what is stored up to the first that is not, and returns the
// last one forgotten. The lock is held.
func (p *pipeline) advance() (last *item) {
	n := 0
	for n < len(p.waiting) && p.waiting[n].stored {
		last = p.waiting[n]
		p.bytes -= last.size
		if last.cursor != "" {
			p.position = last.cursor
		}
		p.durable = last.ev.Cursor
		n++
	}
	if n == 0 {
		return nil
	}
	left := copy(p.waiting, p.waiting[n:])
	clear(p.waiting[left:])
	p.waiting = p.waiting[:left]
	return last
}

// await waits until something changed.
func (p *pipeline) await(ctx context.Context) error {
	select {
	case <-p.changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush waits until everything is stored. The only error is that of ctx.
func (p *pipeline) flush(ctx context.Context) error {
	for {
		p.mu.Lock()
		done := len(p.waiting) == 0 && p.failed == nil
		p.mu.Unlock()
		if done {
			return ctx.Err()
		}
		if err := p.await(ctx); err != nil {
			return err
		}
	}
}

// keep does what the end of a stream of events leaves to do, until ctx ends: it
// stores what the bus did not take, and the cursor alone when the event that
// has it could not carry it and nothing comes any more.
func (p *pipeline) keep(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-p.dirty:
			if p.recover(ctx) != nil {
				return
			}
			timer.Reset(saveAfter)
		case <-timer.C:
			if err := p.store(ctx); err != nil && ctx.Err() == nil {
				p.host.Logger().Warn("cursor not stored; after a restart the server may send some events again", "error", err)
				timer.Reset(lastRetry)
			}
		case <-ctx.Done():
			return
		}
	}
}

// recover stores, in order, what the bus did not take, and tries until it does,
// once the bus answered for everything that is on its way. The only error is
// that of ctx.
func (p *pipeline) recover(ctx context.Context) error {
	p.mu.Lock()
	reason, n := p.failed, len(p.waiting)
	due := reason != nil && p.flying == 0
	p.mu.Unlock()
	if !due {
		return nil
	}
	p.host.Logger().Warn("events not stored, trying again before more are read", "error", reason, "events", n)
	for wait := firstRetry; ; {
		p.host.Ready(fmt.Sprintf("holding back: %d received events are not stored yet: %v", n, reason))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		left, err := p.retry(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if wait = min(2*wait, lastRetry); left < n {
			wait = firstRetry
		}
		n, reason = left, err
	}
	p.host.Logger().Info("events stored after all")
	p.mu.Lock()
	resting := p.resting
	p.mu.Unlock()
	p.host.Ready(resting)
	p.mu.Lock()
	p.failed = nil
	p.mu.Unlock()
	signal(p.changed)
	return nil
}

// retry offers each event that is not stored once more, until one fails, and
// returns how many are left.
func (p *pipeline) retry(ctx context.Context) (left int, err error) {
	done := make(chan error, 1)
	for {
		p.mu.Lock()
		left = len(p.waiting)
		if left == 0 {
			p.mu.Unlock()
			return 0, nil
		}
		it := p.waiting[0] // not stored: advance stops there
		p.stamp(it)
		p.flying++
		p.mu.Unlock()
		// Not Emit: what the bus stored without our knowledge is no conflict.
		p.emit(ctx, it, done)
		select {
		case err = <-done:
		case <-ctx.Done():
			return left, ctx.Err()
		}
		if err != nil {
			return left, err
		}
	}
}

// store writes the cursor unless an event carried it, or will.
func (p *pipeline) store(ctx context.Context) error {
	p.mu.Lock()
	position := p.position
	idle := len(p.waiting) == 0 && position != p.durable
	p.mu.Unlock()
	if !idle {
		return nil
	}
	err := p.host.Cursor().Store(ctx, position)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.position == position {
		p.durable = position
	}
	return err
}

// close waits for a moment for what is on its way, writes the cursor and says
// what is lost. The pipeline must not be used any more.
func (p *pipeline) close() {
	p.end()
	p.keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	left, err := p.landed(ctx)
	if left > 0 {
		p.host.Logger().Error("stopped before the bus stored what was received; a server that resumes sends it again", "events", left)
		return
	}
	if err = errors.Join(err, p.store(ctx)); err != nil {
		p.host.Logger().Warn("cursor not stored; the server may send some events again", "error", err)
	}
}

// landed waits until the bus answered for everything that is on its way, and
// returns how many are not stored.
func (p *pipeline) landed(ctx context.Context) (left int, err error) {
	for {
		p.mu.Lock()
		flying := p.flying
		left = len(p.waiting)
		p.mu.Unlock()
		if flying == 0 || err != nil {
			return left, err
		}
		err = p.await(ctx)
	}
}

// rest says what the status is when all is well.
func (p *pipeline) rest(detail string) {
	p.mu.Lock()
	p.resting = detail
	p.mu.Unlock()
}

// stands returns the cursor up to which everything is stored.
func (p *pipeline) stands() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.position
}
