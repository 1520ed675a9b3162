package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sensor-engine/engine/sources"
)

// UnitState is where a running source stands.
type UnitState string

// The states of a source.
const (
	UnitStarting UnitState = "Starting"
	UnitRunning  UnitState = "Running"
	UnitRetrying UnitState = "Retrying"
	UnitFailed   UnitState = "Failed"
	UnitStopped  UnitState = "Stopped"
)

// unitKey names one event of an EventSource.
type unitKey struct{ source, event string }

// unit is one supervised source.
type unit struct {
	key     unitKey
	typ     string
	hash    string
	dir     string
	log     *slog.Logger
	host    *host
	make    func() (sources.Source, error)
	cancel  context.CancelFunc
	done    chan struct{}
	ready   chan struct{} // closed when it reported itself ready first
	settled chan struct{} // closed when it was ready or failed first
	once    sync.Once
	first   sync.Once

	mu       sync.Mutex
	state    UnitState
	detail   string
	since    time.Time
	restarts int
}

func (u *unit) set(state UnitState, detail string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state != state {
		u.since = time.Now()
	}
	u.state, u.detail = state, detail
}

func (u *unit) status() (state UnitState, detail string, since time.Time, restarts int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state, u.detail, u.since, u.restarts
}

// isReady is told by the source that it does its work now.
func (u *unit) isReady(detail string) {
	state, _, _, restarts := u.status()
	u.set(UnitRunning, detail)
	u.once.Do(func() { close(u.ready) })
	u.settle()
	switch {
	case state == UnitRunning:
	case restarts > 0:
		u.log.Info("source recovered", "detail", detail)
	default:
		u.log.Info("source started", "detail", detail)
	}
}

func (u *unit) settle() { u.first.Do(func() { close(u.settled) }) }

// awaitReady waits until the unit reported itself ready, or for limit.
func (u *unit) awaitReady(limit time.Duration) {
	select {
	case <-u.ready:
	case <-time.After(limit):
	}
}

const (
	firstBackoff = 250 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// healthyAfter is how long a run must last for the backoff to start over.
	healthyAfter = time.Minute
)

// start runs the unit until stop is called; a failure or panic is retried
// with jittered backoff and visible in its status.
func (u *unit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	u.done = make(chan struct{})
	u.set(UnitStarting, "")
	go func() {
		defer close(u.done)
		defer u.set(UnitStopped, "")
		u.supervise(ctx)
	}()
}

func (u *unit) supervise(ctx context.Context) {
	wait := time.Duration(0)
	for {
		begin := time.Now()
		err := u.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		if _, permanent := errors.AsType[*sources.Permanent](err); permanent {
			u.set(UnitFailed, err.Error())
			u.settle()
			u.log.Error("source failed; it waits for a change of its spec", "error", err)
			<-ctx.Done()
			return
		}
		if time.Since(begin) > healthyAfter {
			wait = 0
		}
		wait = min(max(2*wait, firstBackoff), maxBackoff)
		pause := wait/2 + rand.N(wait/2)
		u.mu.Lock()
		u.restarts++
		u.mu.Unlock()
		u.set(UnitRetrying, err.Error())
		u.settle()
		u.log.Warn("source failed; it is started again", "error", err, "in", pause.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// run makes and runs the source once.
func (u *unit) run(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
			u.log.Error("source panicked", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	src, err := u.make()
	if err != nil {
		return &sources.Permanent{Err: err}
	}
	return src.Run(ctx, u.host)
}

// stop ends the unit and waits for it. A unit that does not end within the
// limit is named and left behind.
func (u *unit) stop(limit time.Duration) {
	u.cancel()
	select {
	case <-u.done:
		u.log.Info("source stopped")
	case <-time.After(limit):
		u.log.Error("source does not stop; it is left behind", "after", limit)
	}
}
