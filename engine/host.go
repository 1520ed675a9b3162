package engine

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/listen"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// SourceStats are the counters of one source since the start of the engine.
type SourceStats struct {
	// Stored counts events the bus acknowledged, Duplicates those it knew
	// already, Refused those it did not take.
	Stored, Duplicates, Refused atomic.Uint64
	// Filtered counts events the filter did not want, FilterMissing and
	// FilterFailed those for which it lacked something or failed, Unshaped
	// those that were stored as they came because the rest of their intake
	// failed, Limited those the rate limit refused or held back.
	Filtered, FilterMissing, FilterFailed, Unshaped, Limited atomic.Uint64
	// LastStored is the time of the last stored event in Unix nanoseconds.
	LastStored atomic.Int64
	// Problem is what the filter or the shaping of an event failed with last,
	// nil for nothing.
	Problem atomic.Pointer[string]
	// Progress is what the source reported last, nil for nothing.
	Progress atomic.Pointer[sources.Progress]
}

// host is what one source is given.
type host struct {
	key         unitKey
	defaultType string
	ceSource    string
	push        bool
	bus         bus.Bus
	routes      *listen.Table
	secret      func(specs.SecretRef) (string, error)
	wanted      *atomic.Bool
	log         *slog.Logger
	ready       func(detail string)
	stats       *SourceStats
	intake      *sources.Intake // nil when the spec says nothing of it
	limit       *rate.Limiter   // nil without a rate limit
	position    position
	complained  atomic.Int64 // when a problem of the intake was logged last, Unix nanoseconds
}

var _ sources.Host = (*host)(nil)

// waiter is where one Emit waits for its acknowledgement.
type waiter struct{ ch chan error }

var waiters = sync.Pool{New: func() any { return &waiter{make(chan error, 1)} }}

// Emit stores events in order and waits for each.
func (h *host) Emit(ctx context.Context, evs ...*bus.Event) error {
	for i, ev := range evs {
		w := waiters.Get().(*waiter)
		t, err := h.emit(ctx, ev, true, func(err error) { w.ch <- err })
		if err == nil {
			select {
			case err = <-w.ch:
				waiters.Put(w)
			case <-ctx.Done(): // the waiter may still be told: it is not used again
				err = fmt.Errorf("%w: %w before the bus answered", bus.ErrUnavailable, ctx.Err())
			}
		} else {
			waiters.Put(w)
		}
		if err != nil {
			h.position.forgive(t)
			return &sources.EmitError{Stored: i, Err: err}
		}
	}
	return nil
}

// EmitAsync hands one event to the bus.
func (h *host) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	_, err := h.emit(ctx, ev, false, done)
	return err
}

// emit applies the intake to an event and hands it to the bus. A fenced one
// with a cursor is the only one on its way.
func (h *host) emit(ctx context.Context, ev *bus.Event, fenced bool, done func(error)) (ticket, error) {
	h.complete(ev)
	out, verdict, err := h.intake.Apply(ev)
	if verdict != sources.Accepted {
		h.note(verdict, err)
	}
	if out == nil {
		h.position.skip(ev.Cursor)
		done(nil)
		return ticket{}, nil
	}
	if h.limit != nil {
		if err := h.admit(ctx); err != nil {
			h.stats.Refused.Add(1)
			return ticket{}, err
		}
	}
	if len(ev.Cursor) > maxCursor {
		return ticket{}, fmt.Errorf("%w: a cursor of %d bytes, at most %d are allowed", bus.ErrTooLarge, len(ev.Cursor), maxCursor)
	}
	t, cursor, fence := h.position.begin(out.Cursor, fenced)
	if cursor != out.Cursor {
		out = out.Derive()
		out.Cursor = cursor
	}
	r := out.Record()
	r.Fence = fence
	err = h.bus.Events().AppendAsync(ctx, r, func(a bus.Ack, err error) {
		switch {
		case err != nil:
			h.stats.Refused.Add(1)
		case a.Duplicate:
			h.stats.Duplicates.Add(1)
		default:
			h.stats.Stored.Add(1)
			h.stats.LastStored.Store(time.Now().UnixNano())
		}
		h.position.end(t, cursor, a, err)
		done(err)
	})
	if err != nil {
		h.stats.Refused.Add(1)
		h.position.end(t, cursor, bus.Ack{}, err)
	}
	return t, err
}

// admit waits for the rate limit, or refuses the events of producers that wait
// for an answer themselves.
func (h *host) admit(ctx context.Context) error {
	if h.limit.Allow() {
		return nil
	}
	h.stats.Limited.Add(1)
	if !h.push {
		if err := h.limit.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for the rate limit: %w", context.Cause(ctx))
		}
		return nil
	}
	r := h.limit.Reserve()
	defer r.Cancel()
	return &sources.LimitError{RetryAfter: r.Delay()}
}

// complainEvery is how often problems of an intake are logged, at most.
const complainEvery = time.Minute

// note counts what the intake did and tells of what failed.
func (h *host) note(verdict sources.Verdict, err error) {
	switch verdict {
	case sources.Filtered:
		h.stats.Filtered.Add(1)
	case sources.FilterMissing:
		h.stats.FilterMissing.Add(1)
	case sources.FilterFailed:
		h.stats.FilterFailed.Add(1)
	case sources.Unshaped:
		h.stats.Unshaped.Add(1)
	case sources.Accepted:
	}
	if err == nil {
		return
	}
	text := err.Error()
	h.stats.Problem.Store(&text)
	if now, last := time.Now().UnixNano(), h.complained.Load(); verdict != sources.FilterMissing &&
		now-last > int64(complainEvery) && h.complained.CompareAndSwap(last, now) {
		h.log.Warn("the intake of an event failed; further failures are counted", "problem", text)
	}
}

// complete fills in what the source left empty.
func (h *host) complete(ev *bus.Event) {
	ev.EventSource, ev.EventName = h.key.source, h.key.event
	if ev.ID == "" {
		ev.ID, ev.ProducerID = sources.NewID(), false
	}
	if ev.Source == "" {
		ev.Source = h.ceSource
	}
	if ev.Type == "" {
		ev.Type = h.defaultType
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
}

// Handle adds a route to the shared listener.
func (h *host) Handle(r sources.Route, handler http.Handler) (func(), error) {
	return h.routes.Handle(h.key.String(), r, handler)
}

// RequestWanted reports whether a spec in force reads `request`.
func (h *host) RequestWanted() bool { return h.wanted.Load() || h.intake.NeedsRequest() }

// Secret resolves a reference.
func (h *host) Secret(ref specs.SecretRef) (string, error) { return h.secret(ref) }

// Ready reports that the source works.
func (h *host) Ready(detail string) { h.ready(detail) }

// Report tells where the source stands.
func (h *host) Report(p sources.Progress) { h.stats.Progress.Store(&p) }

// Logger logs with the source's names.
func (h *host) Logger() *slog.Logger { return h.log }

// Cursor is the durable position of the source.
func (h *host) Cursor() sources.Cursor { return &h.position }
