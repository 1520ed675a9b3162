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

// unit is one supervised source, or an endpoint.
type unit struct {
	key     unitKey
	what    string // what it is called in the log
	typ     string
	hash    string
	dir     string
	log     *slog.Logger
	host    *host
	make    func() (sources.Source, error)
	details func(now time.Time) []sources.Detail
	routed  bool // it has routes on the shared listener
	cancel  context.CancelFunc
	done    chan struct{}
	ready   chan struct{} // closed when it reported itself ready first
	settled chan struct{} // closed when it was ready or failed first
	backoff time.Duration // last wait after a failure; its runner's
	once    sync.Once
	first   sync.Once

	mu       sync.Mutex
	state    UnitState
	detail   string
	since    time.Time
	restarts int
}

func newUnit(k unitKey, what, hash, dir string, log *slog.Logger) *unit {
	return &unit{
		key: k, what: what, typ: what, hash: hash, dir: dir, log: log, ready: make(chan struct{}), settled: make(chan struct{}),
		details: func(time.Time) []sources.Detail { return nil },
	}
}

// say logs what the unit does.
func (u *unit) say(level slog.Level, what string, args ...any) {
	u.log.Log(context.Background(), level, u.what+" "+what, args...) //nolint:sloglint // one of two words, then a constant
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
		u.say(slog.LevelInfo, "recovered", "detail", detail)
	default:
		u.say(slog.LevelInfo, "started", "detail", detail)
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
// with jittered backoff and visible in its status. A timed source sleeps in w.
func (u *unit) start(ctx context.Context, w *wakes) {
	ctx, u.cancel = context.WithCancel(ctx)
	u.done = make(chan struct{})
	u.set(UnitStarting, "")
	src, err := u.makeSafely()
	if timed, ok := src.(sources.Timed); ok && err == nil {
		s := w.add(ctx, u, timed)
		context.AfterFunc(ctx, func() { w.end(s) })
		return
	}
	go func() {
		defer close(u.done)
		u.supervise(ctx, src, err)
	}()
}

func (u *unit) supervise(ctx context.Context, src sources.Source, err error) {
	for {
		begin := time.Now()
		if err == nil {
			err = u.run(ctx, src)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		pause, permanent := u.failed(err, time.Since(begin))
		if permanent {
			<-ctx.Done()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		src, err = u.makeSafely()
	}
}

// failed notes why the source ended or did not wake, after it ran for a time,
// and tells how long to wait before it is tried again, or that it is not.
func (u *unit) failed(err error, ran time.Duration) (pause time.Duration, permanent bool) {
	defer u.settle()
	if _, permanent := errors.AsType[*sources.Permanent](err); permanent {
		u.set(UnitFailed, err.Error())
		u.say(slog.LevelError, "failed; it waits for a change of its spec", "error", err)
		return 0, true
	}
	if ran > healthyAfter {
		u.backoff = 0
	}
	u.backoff = min(max(2*u.backoff, firstBackoff), maxBackoff)
	pause = u.backoff/2 + rand.N(u.backoff/2)
	u.mu.Lock()
	u.restarts++
	u.mu.Unlock()
	u.set(UnitRetrying, err.Error())
	u.say(slog.LevelWarn, "failed; it is started again", "error", err, "in", pause.Round(time.Millisecond))
	return pause, false
}

// makeSafely makes the source; one that cannot be made waits for another spec.
func (u *unit) makeSafely() (src sources.Source, err error) {
	defer u.recovered(&err)
	if src, err = u.make(); err != nil {
		err = &sources.Permanent{Err: err}
	}
	return src, err
}

// run runs the source once.
func (u *unit) run(ctx context.Context, src sources.Source) (err error) {
	defer u.recovered(&err)
	return src.Run(ctx, u.host)
}

// recovered makes an error of a panic.
func (u *unit) recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
		u.say(slog.LevelError, "panicked", "panic", r, "stack", string(debug.Stack()))
	}
}

// stop ends the unit and waits for it. A unit that does not end within the
// limit is named and left behind.
func (u *unit) stop(limit time.Duration) {
	u.cancel()
	select {
	case <-u.done:
		u.host.position.close()
		u.set(UnitStopped, "")
		u.say(slog.LevelInfo, "stopped")
	case <-time.After(limit):
		u.say(slog.LevelError, "does not stop; it is left behind", "after", limit)
	}
}
