package generic

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// maxWaiting and maxWaitingBytes bound what was received and is not known to
	// be stored. One event is let in whatever its size.
	maxWaiting      = 1024
	maxWaitingBytes = 8 << 20
	// firstRetry and lastRetry bound the wait between two tries to store an event.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// lastWords is how long the end waits for answers of the bus that are on
	// their way.
	lastWords = 2 * time.Second
)

// pipeline hands events to the bus one after the other without waiting for
// each, and keeps them until they are stored: what the bus did not take is
// offered again, in order, before anything new.
//
// add, flush and close are called by one goroutine; another one, the keeper,
// stores what failed.
type pipeline struct {
	host sources.Host
	// changed has a value when something happened that add or flush wait for,
	// broken when the keeper has something to do.
	changed, broken chan struct{}
	keeper          sync.WaitGroup
	end             context.CancelFunc

	mu      sync.Mutex
	waiting []*item // in order of arrival; the first one is not stored
	bytes   int64
	flying  int // how many of them the bus has not answered
	// failed is why the bus did not take one of them; nothing is added before
	// the keeper stored it.
	failed error
	// position is the cursor up to which everything is stored.
	position string
	// resting is what the status says when all is well.
	resting string
}

// item is one event that waits.
type item struct {
	ev     *bus.Event
	size   int64
	dated  bool // the server told when it happened
	stored bool
}

// newPipeline starts a pipeline behind a position. The caller must close it.
func newPipeline(ctx context.Context, h sources.Host, position string) *pipeline {
	p := &pipeline{
		host: h, changed: make(chan struct{}, 1), broken: make(chan struct{}, 1),
		position: position,
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

// add hands over an event. It blocks while too much waits, or something is not
// stored that the bus did not take. The only error is that of ctx; then the
// event is not handed over.
func (p *pipeline) add(ctx context.Context, ev *bus.Event) error {
	it := &item{ev: ev, size: size(ev), dated: !ev.Time.IsZero()}
	p.mu.Lock()
	for p.failed != nil || len(p.waiting) > 0 && (len(p.waiting) >= maxWaiting || p.bytes+it.size > maxWaitingBytes) {
		p.mu.Unlock()
		if err := p.await(ctx); err != nil {
			return err
		}
		p.mu.Lock()
	}
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
	if last := p.advance(); last != nil {
		progress := sources.Progress{Position: p.position}
		if last.dated {
			progress.Lag = max(time.Since(last.ev.Time), 0)
		}
		p.host.Report(progress) // with the lock: positions come in order
	}
	if p.failed != nil && p.flying == 0 {
		signal(p.broken)
	}
	p.mu.Unlock()
	signal(p.changed)
}

// advance forgets what is stored up to the first that is not, and returns the
// last one forgotten. The lock is held.
func (p *pipeline) advance() (last *item) {
	n := 0
	for n < len(p.waiting) && p.waiting[n].stored {
		last = p.waiting[n]
		p.bytes -= last.size
		if last.ev.Cursor != "" {
			p.position = last.ev.Cursor
		}
		n++
	}
	if n == 0 {
		return nil
	}
	clear(p.waiting[:n])
	p.waiting = p.waiting[n:]
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

// keep stores what the bus did not take, until ctx ends.
func (p *pipeline) keep(ctx context.Context) {
	for {
		select {
		case <-p.broken:
			p.recover(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// recover stores, in order, what the bus did not take, and tries until it does,
// once the bus answered for everything that is on its way. It returns early only
// when ctx ends.
func (p *pipeline) recover(ctx context.Context) {
	p.mu.Lock()
	reason, n := p.failed, len(p.waiting)
	due := reason != nil && p.flying == 0
	p.mu.Unlock()
	if !due {
		return
	}
	p.host.Logger().Warn("events not stored, trying again before more are read", "error", reason, "events", n)
	for wait := firstRetry; ; {
		p.host.Ready(fmt.Sprintf("holding back: %d received events are not stored yet: %v", n, reason))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		left, err := p.retry(ctx)
		if left == 0 && err == nil {
			err = p.confirm(ctx)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
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
}

// confirm moves the durable cursor behind what is stored now: after a failure
// the host leaves it where it was until it is loaded again.
func (p *pipeline) confirm(ctx context.Context) error {
	c := p.host.Cursor()
	durable, err := c.Load(ctx)
	if position := p.stands(); err == nil && position != durable {
		err = c.Store(ctx, position)
	}
	return err
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

// close waits for a moment, which ctx must outlast, for what is on its way and
// says what is lost. The pipeline must not be used any more.
func (p *pipeline) close(ctx context.Context) {
	p.end()
	p.keeper.Wait()
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	if left := p.landed(ctx); left > 0 {
		p.host.Logger().Error("stopped before the bus stored what was received; a server that resumes sends it again", "events", left)
	}
}

// landed waits until the bus answered for everything that is on its way, or ctx
// ends, and returns how many are not stored.
func (p *pipeline) landed(ctx context.Context) (left int) {
	for ended := false; ; {
		p.mu.Lock()
		flying := p.flying
		left = len(p.waiting)
		p.mu.Unlock()
		if flying == 0 || ended {
			return left
		}
		ended = p.await(ctx) != nil
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
