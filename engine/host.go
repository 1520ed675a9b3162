package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

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
	// LastStored is the time of the last stored event in Unix nanoseconds.
	LastStored atomic.Int64
}

// host is what one source is given.
type host struct {
	key         unitKey
	defaultType string
	ceSource    string
	bus         bus.Bus
	routes      *listen.Table
	secret      func(specs.SecretRef) (string, error)
	wanted      *atomic.Bool
	log         *slog.Logger
	ready       func(detail string)
	stats       *SourceStats
}

var _ sources.Host = (*host)(nil)

// waiter is where one Emit waits for its acknowledgement.
type waiter struct{ ch chan error }

var waiters = sync.Pool{New: func() any { return &waiter{make(chan error, 1)} }}

// Emit stores events in order and waits for each.
func (h *host) Emit(ctx context.Context, evs ...*bus.Event) error {
	for i, ev := range evs {
		w := waiters.Get().(*waiter)
		err := h.EmitAsync(ctx, ev, func(err error) { w.ch <- err })
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
			return &sources.EmitError{Stored: i, Err: err}
		}
	}
	return nil
}

// EmitAsync hands one event to the bus.
func (h *host) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	h.complete(ev)
	err := h.bus.Events().AppendAsync(ctx, ev.Record(), func(a bus.Ack, err error) {
		switch {
		case err != nil:
			h.stats.Refused.Add(1)
		case a.Duplicate:
			h.stats.Duplicates.Add(1)
		default:
			h.stats.Stored.Add(1)
			h.stats.LastStored.Store(time.Now().UnixNano())
		}
		done(err)
	})
	if err != nil {
		h.stats.Refused.Add(1)
	}
	return err
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
	return h.routes.Handle(h.key.source+"/"+h.key.event, r, handler)
}

// RequestWanted reports whether a spec in force reads `request`.
func (h *host) RequestWanted() bool { return h.wanted.Load() }

// Secret resolves a reference.
func (h *host) Secret(ref specs.SecretRef) (string, error) { return h.secret(ref) }

// Ready reports that the source works.
func (h *host) Ready(detail string) { h.ready(detail) }

// Logger logs with the source's names.
func (h *host) Logger() *slog.Logger { return h.log }

// Cursor is the durable position of the source.
func (h *host) Cursor() sources.Cursor {
	return &cursor{h.bus.State(), "cursor." + bus.Token(h.key.source) + "." + bus.Token(h.key.event)}
}

// cursor is a [sources.Cursor] in STATE.
type cursor struct {
	store bus.Store
	key   string
}

// Load returns the stored value, nil when there is none.
func (c *cursor) Load(ctx context.Context) ([]byte, error) {
	e, err := c.store.Get(ctx, c.key)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	return e.Value, err
}

// Store replaces the value.
func (c *cursor) Store(ctx context.Context, value []byte) error {
	_, err := c.store.Put(ctx, c.key, value)
	return err
}
