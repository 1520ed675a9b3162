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
	"time"

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
	// What the spec's filter drops counts as stored. An event with a Cursor is
	// fenced once [Cursor.Load] was called: when the log has a newer event of
	// this source than the host knows of, because another engine on the same
	// bus was faster, the error wraps [bus.ErrConflict]; load the cursor again
	// and go on from there.
	Emit(ctx context.Context, evs ...*bus.Event) error
	// EmitAsync hands one event over and calls done exactly once when it was
	// stored or failed. It blocks while too many are on their way or, unless
	// the type is Push, while the spec's rate limit says so. When it returns
	// an error, done is never called; for a Push type beyond the limit it is a
	// *[LimitError]. Nothing is fenced. The durable cursor is never ahead of an
	// event that is not stored: of events on their way together it moves when
	// all of them are, and after a failure when the source loaded it again.
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
	// Report tells where the source stands, for status and metrics. It is
	// cheap and may be called for each event.
	Report(p Progress)
	// Secret resolves a reference. The value must not be logged.
	Secret(ref specs.SecretRef) (string, error)
	// Ready reports that the source does its work now; detail is for people,
	// for example "listening on /orders".
	Ready(detail string)
	// Logger logs with the names of the source attached.
	Logger() *slog.Logger
}

// Cursor is the durable position of a source: text of at most 4 KiB that only
// the source understands. It lives on the bus, so that it is there on another
// machine too. The usual way to move it is [bus.Event.Cursor], by which an
// event and the position after it are one write.
type Cursor interface {
	// Load returns the newest of: the cursor of the last stored event that had
	// one, and the last value stored; "" when there is none.
	Load(ctx context.Context) (string, error)
	// Store moves the cursor without an event.
	Store(ctx context.Context, value string) error
}

// Progress is where a source stands.
type Progress struct {
	// Position is for people: a sequence, a time, a cursor; "" when there is none.
	Position string
	// Lag is how far behind its producer or schedule the source is; 0 when it
	// is not, or when that is not known.
	Lag time.Duration
}

// Timed is a source that only has something to do at certain times. It has no
// goroutine of its own: the engine keeps all of them in one heap of wake-ups.
type Timed interface {
	// Wake does what is due at now and returns when it is to be called again;
	// the zero time means never. It is not called concurrently. After an error
	// it is called again with backoff, after one wrapped in [Permanent] when
	// the spec changed. The first call comes at once.
	Wake(ctx context.Context, h Host, now time.Time) (next time.Time, err error)
}

// WakeAtLeast is the longest sleep before a next time is compared with the
// clock again, which may have been set, or the machine suspended.
const WakeAtLeast = time.Second

// RunTimed runs a [Timed] source as [Source.Run] does, for those who have no
// heap.
func RunTimed(ctx context.Context, h Host, s Timed) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if now := time.Now(); !now.Before(next) {
			var err error
			if next, err = s.Wake(ctx, h, now); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			if next.IsZero() {
				<-ctx.Done()
				return nil
			}
		}
		timer.Reset(min(time.Until(next), WakeAtLeast))
	}
}

// Env is where a source stands in the specs.
type Env struct {
	// Source and Event are the names of the EventSource and the event.
	Source, Event string
	// Dir is the directory of the spec file: paths in it are relative to that.
	Dir string
	// Base is the URL of the engine's shared listener without a final slash,
	// "" where there is none (yet).
	Base string
	// Resource returns a resource that the config references, nil when it is
	// not there.
	Resource func(specs.Ref) *specs.Resource
}

// Detail is something to know about a source that its config tells.
type Detail struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Route is a place on the shared HTTP listener.
type Route struct {
	// Methods are the HTTP methods; empty means all.
	Methods []string
	// Path is the pattern of the path as in net/http: `{name}` matches one
	// segment, a final `{name...}` the rest.
	Path string
	// Hosts are the names under which it is served, in small letters and
	// without a port; empty means all.
	Hosts []string
	// Preflight is true when the handler also answers OPTIONS, by which
	// browsers ask before they send one of Methods to another origin. Routes
	// of one path with other methods share that.
	Preflight bool
}

// Factory makes sources of one type.
type Factory struct {
	specs.Type
	// DefaultType is the CloudEvents type of events that have none.
	DefaultType string
	// Attributes returns what gives an event type, source, subject and id as the
	// config says it of events whose producer named none; nil when the type has
	// nothing of the kind. Data and request of the event are set. Its error says
	// why the source refuses the event.
	Attributes func(config any) func(ev *bus.Event) error
	// Payload names the fields that the data of an event can have, when the
	// type alone decides them, so that a field that does not exist is found at
	// validation; nil when anything may come.
	Payload []string
	// Routes tells the HTTP routes a config asks for, so that conflicts are
	// found at validation; nil when the type has none.
	Routes func(config any, env Env) []Route
	// Check finds what only the referenced resources tell to be wrong; nil
	// when there is nothing of the kind. It is called for configs that passed
	// validation and whose references exist.
	Check func(config any, env Env, c *specs.Checker)
	// Describe tells what follows from the config, for example the next times
	// of a schedule; nil when nothing does. It does no I/O.
	Describe func(config any, env Env, now time.Time) []Detail
	// MaxEvent tells how many bytes of data one event of a config can have, so
	// that the bus is made to take it; nil when events are small.
	MaxEvent func(config any) int64
	// Make makes the source of a config that passed validation. It does no I/O.
	Make func(config any, env Env) (Source, error)
	// Push is true when the producers wait for an answer, so that over the
	// rate limit they are refused with a *[LimitError] and not made to wait.
	Push bool
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

// LimitError says that the rate limit of the spec refuses an event for now.
type LimitError struct {
	// RetryAfter is when the next one would be taken.
	RetryAfter time.Duration
}

// Error says when to try again.
func (e *LimitError) Error() string {
	return fmt.Sprintf("the rate limit is reached: the next event is taken in %v", e.RetryAfter.Round(time.Millisecond))
}

// Permanent wraps an error after which a restart makes no sense before the
// spec changes.
type Permanent struct{ Err error }

// Error is the wrapped error's text.
func (e *Permanent) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Permanent) Unwrap() error { return e.Err }
