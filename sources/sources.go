// Package sources owns the contract of event sources: what a source is given
// ([Host]), what it must do ([Source]) and how a type is made known
// ([Factory]). Each type has a folder of its own below this one and imports
// this package, specs and bus, never a sibling. It must not know sensors,
// triggers or the engine.
package sources

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// Source is one running event of an EventSource. Run blocks until ctx ends
// (then it returns nil or ctx's error) or the source fails; the supervisor
// restarts it with backoff after an error or a panic. An error wrapped in
// [Permanent] waits for a change of the spec instead. Run is called at most
// once at a time, and may be called again after it returned.
type Source interface {
	Run(ctx context.Context, h Host) error
}

// Host is what the engine gives a running source. It is safe for concurrent use.
type Host interface {
	// Emit stores events durably, in order, and returns nil after the bus
	// acknowledged all of them. Otherwise the error is an *[EmitError] that
	// says how many were stored; the caller decides whether to try again. It
	// fills in what is empty: ID, Source (/<eventsource>/<event>), Type, EventSource, EventName, Time.
	Emit(ctx context.Context, evs ...*bus.Event) error
	// EmitAsync hands one event over and calls done exactly once when it was
	// stored or failed. It blocks while too many are on their way. When it
	// returns an error, done is never called.
	EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error
	// Handle adds a route to the engine's shared HTTP listener until remove
	// is called. A conflict with another route is an error. Requests on their
	// way when remove is called are still served by h, which may use the Host
	// for them also after Run returned.
	Handle(r Route, h http.Handler) (remove func(), err error)
	// RequestWanted reports whether a spec reads `request` of these events,
	// so that [bus.Event.Request] is worth storing. It is cheap, and the
	// answer may change at any time: ask per event.
	RequestWanted() bool
	// Cursor is the durable position of this source.
	Cursor() Cursor
	// Secret resolves a reference. The value must not be logged.
	Secret(ref specs.SecretRef) (string, error)
	// Ready reports that the source does its work now; detail is for people,
	// for example "listening on /orders".
	Ready(detail string)
	// Logger logs with the names of the source attached.
	Logger() *slog.Logger
}

// Cursor is a small durable value, written by the source when the events
// before it are stored.
type Cursor interface {
	// Load returns the last stored value, nil when there is none.
	Load(ctx context.Context) ([]byte, error)
	// Store replaces it.
	Store(ctx context.Context, value []byte) error
}

// Route is a place on the shared HTTP listener.
type Route struct {
	// Methods are the HTTP methods; empty means all.
	Methods []string
	// Path is the pattern of the path as in net/http: `{name}` matches one
	// segment, a final `{name...}` the rest.
	Path string
}

// Factory makes sources of one type.
type Factory struct {
	specs.Type
	// DefaultType is the CloudEvents type of events that have none.
	DefaultType string
	// Routes tells the HTTP routes a config asks for, so that conflicts are
	// found at validation; nil when the type has none.
	Routes func(config any) []Route
	// MaxEvent tells how many bytes of data one event of a config can have, so
	// that the bus is made to take it; nil when events are small.
	MaxEvent func(config any) int64
	// Make makes the source of a config that passed validation. It does no I/O.
	Make func(config any) (Source, error)
	// Single is true when only one replica may run the source.
	Single bool
}

// Registry is the list of source types.
type Registry []Factory

// Lookup finds a type by name, or nil.
func (r Registry) Lookup(name string) *Factory {
	for i := range r {
		if r[i].Name == name {
			return &r[i]
		}
	}
	return nil
}

// Types returns the types for package specs.
func (r Registry) Types() []specs.Type {
	out := make([]specs.Type, len(r))
	for i := range r {
		out[i] = r[i].Type
	}
	return out
}

// EmitError says how many events of one Emit were stored before it failed.
// Err wraps [bus.ErrFull], [bus.ErrTooLarge] or [bus.ErrUnavailable] where
// that is the reason.
type EmitError struct {
	Stored int
	Err    error
}

// Error says what happened and how much was stored.
func (e *EmitError) Error() string {
	return fmt.Sprintf("event not stored (%d before it were): %v", e.Stored, e.Err)
}

// Unwrap returns the reason.
func (e *EmitError) Unwrap() error { return e.Err }

// Permanent wraps an error after which a restart makes no sense before the
// spec changes.
type Permanent struct{ Err error }

// Error is the wrapped error's text.
func (e *Permanent) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Permanent) Unwrap() error { return e.Err }
