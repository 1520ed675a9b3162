// Package sourcetest owns the contract suite that every source type passes,
// and the [Host] that tests give to a source. It knows no concrete type.
package sourcetest

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// Fault is what happens to one event that a source emits.
type Fault struct {
	// Err is returned to the source, nil for no fault.
	Err error
	// Stored is true when the event is stored all the same: only the
	// acknowledgement got lost.
	Stored bool
}

// Host is a [sources.Host] in memory. Its log behaves like the bus: a retry
// with a producer's id is the same event. It is safe for concurrent use.
type Host struct {
	// EventSource and Event are the names the source runs under. DefaultType
	// is filled in where an event has no type. Set before use.
	EventSource, Event, DefaultType string
	// Secrets holds values by "name/key".
	Secrets map[string]string
	// Fault, when set, decides about each event before it is stored; n counts
	// the emitted events from 0. It is called with no lock held.
	Fault func(n int, ev *bus.Event) Fault
	// Requests is the answer of RequestWanted.
	Requests bool

	t        testing.TB
	mu       sync.Mutex
	n        int
	events   []*bus.Event
	ids      map[string]bool
	routes   []*route
	ready    chan struct{}
	detail   string
	cursor   string
	progress sources.Progress
	known    int // events the source knows of, -1 before it loaded its cursor
	inFlight sync.WaitGroup
}

// The names a source runs under.
const (
	eventSource = "test"
	eventName   = "event"
)

type route struct {
	sources.Route
	segs    []sources.Segment
	handler http.Handler
}

var _ sources.Host = (*Host)(nil)

// NewHost makes a host whose source runs as the event "event" of the
// EventSource "test". Misuse of the contract fails t.
func NewHost(t testing.TB, defaultType string) *Host {
	h := &Host{
		EventSource: eventSource, Event: eventName, DefaultType: defaultType,
		t: t, ids: map[string]bool{}, ready: make(chan struct{}, 64), known: -1,
	}
	t.Cleanup(h.inFlight.Wait)
	return h
}

// Emit stores events in memory, in order, as far as Fault lets it.
func (h *Host) Emit(ctx context.Context, evs ...*bus.Event) error {
	for i, ev := range evs {
		if err := h.store(ctx, ev, ev.Cursor != ""); err != nil {
			return &sources.EmitError{Stored: i, Err: err}
		}
	}
	return nil
}

// EmitAsync stores the event as Emit does and calls done on another goroutine.
func (h *Host) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := h.store(ctx, ev, false)
	h.inFlight.Go(func() { done(err) })
	return nil
}

// Other stores an event of this source as another engine on the same bus would.
func (h *Host) Other(ev *bus.Event) error {
	h.mu.Lock()
	known := h.known
	h.mu.Unlock()
	err := h.store(context.Background(), ev, false)
	h.mu.Lock()
	h.known = known
	h.mu.Unlock()
	return err
}

func (h *Host) store(ctx context.Context, ev *bus.Event, fenced bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	n := h.n
	h.n++
	h.mu.Unlock()
	var f Fault
	if h.Fault != nil {
		f = h.Fault(n, ev)
	}
	if f.Err != nil && !f.Stored {
		return f.Err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if ev.ProducerID && ev.ID == "" {
		h.t.Errorf("event emitted with ProducerID and no id: %+v", ev)
	}
	if ev.ID == "" {
		ev.ID = sources.NewID()
	}
	if ev.Type == "" {
		ev.Type = h.DefaultType
	}
	if ev.Source == "" {
		ev.Source = "/" + h.EventSource + "/" + h.Event
	}
	if ev.EventSource == "" {
		ev.EventSource, ev.EventName = h.EventSource, h.Event
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now().UTC()
	}
	// The wire tells whether it is an event: what cannot be read back is none.
	rec := ev.Record()
	rec.Seq, rec.Time = uint64(len(h.events)+1), time.Now()
	rec.Data = slices.Clone(rec.Data)
	if rec.MsgID != "" && h.ids[rec.MsgID] {
		return f.Err
	}
	stored, err := bus.DecodeEvent(rec)
	if err != nil {
		h.t.Errorf("event emitted that cannot be read back: %v", err)
		return f.Err
	}
	if fenced && h.known >= 0 && h.known != len(h.events) {
		return fmt.Errorf("%w: another engine stored an event of this source", bus.ErrConflict)
	}
	if rec.MsgID != "" {
		h.ids[rec.MsgID] = true
	}
	h.events = append(h.events, stored)
	if h.known >= 0 && f.Err == nil {
		h.known = len(h.events)
	}
	if stored.Cursor != "" {
		h.cursor = stored.Cursor
	}
	return f.Err
}

// Events returns what is stored, in order, as read back from the wire.
func (h *Host) Events() []*bus.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// Handle adds a route. Routes are matched by [sources.ParsePath]'s rules, the
// first that fits wins.
func (h *Host) Handle(r sources.Route, handler http.Handler) (func(), error) {
	segs, err := sources.ParsePath(r.Path)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.routes {
		if sources.Conflict(o.Route, r) {
			return nil, fmt.Errorf("route %s conflicts with %s", r.Path, o.Path)
		}
	}
	added := &route{r, segs, handler}
	h.routes = append(h.routes, added)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.routes = slices.DeleteFunc(h.routes, func(o *route) bool { return o == added })
	}, nil
}

// Routes returns the routes that are served now.
func (h *Host) Routes() []sources.Route {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]sources.Route, len(h.routes))
	for i, r := range h.routes {
		out[i] = r.Route
	}
	return out
}

// ServeHTTP serves the routes, as the engine's listener does.
func (h *Host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	routes := slices.Clone(h.routes)
	h.mu.Unlock()
	status := http.StatusNotFound
	for _, o := range routes {
		values, ok := match(o.segs, strings.Split(r.URL.Path[1:], "/"))
		if !ok {
			continue
		}
		m := r.Method
		if m == http.MethodHead && !slices.Contains(o.Methods, m) {
			m = http.MethodGet
		}
		if len(o.Methods) > 0 && !slices.Contains(o.Methods, m) {
			status = http.StatusMethodNotAllowed
			continue
		}
		for name, v := range values {
			r.SetPathValue(name, v)
		}
		o.handler.ServeHTTP(w, r)
		return
	}
	w.WriteHeader(status)
}

func match(segs []sources.Segment, parts []string) (map[string]string, bool) {
	values := map[string]string{}
	for i, s := range segs {
		switch {
		case i >= len(parts):
			return nil, false
		case s.Rest:
			values[s.Text] = strings.Join(parts[i:], "/")
			return values, true
		case s.Wild && parts[i] != "":
			values[s.Text] = parts[i]
		case s.Wild || s.Text != parts[i]:
			return nil, false
		}
	}
	return values, len(segs) == len(parts)
}

// RequestWanted returns Requests.
func (h *Host) RequestWanted() bool { return h.Requests }

// Cursor is a cursor in memory, moved by stored events that have one.
func (h *Host) Cursor() sources.Cursor { return (*cursor)(h) }

type cursor Host

func (c *cursor) Load(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = len(c.events)
	return c.cursor, ctx.Err()
}

func (c *cursor) Store(ctx context.Context, value string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cursor = value
	return ctx.Err()
}

// Report notes where the source says it stands.
func (h *Host) Report(p sources.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress = p
}

// Progress returns what the source reported last.
func (h *Host) Progress() sources.Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.progress
}

// Secret looks up Secrets.
func (h *Host) Secret(ref specs.SecretRef) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.Secrets[ref.Name+"/"+ref.Key]
	if !ok {
		return "", fmt.Errorf("no secret %s with key %s", ref.Name, ref.Key)
	}
	return v, nil
}

// SetSecret changes a value while the source runs.
func (h *Host) SetSecret(nameAndKey, value string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Secrets == nil {
		h.Secrets = map[string]string{}
	}
	h.Secrets[nameAndKey] = value
}

// Ready notes that the source said so.
func (h *Host) Ready(detail string) {
	h.mu.Lock()
	h.detail = detail
	h.mu.Unlock()
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// Logger writes to the test's output.
func (h *Host) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(h.t.Output(), nil))
}

// Start runs s until stop is called and waits until it is ready. stop cancels
// it, waits for its end and returns what Run returned. The test fails when
// either takes longer than ten seconds.
func (h *Host) Start(s sources.Source) (stop func() error) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- s.Run(ctx, h) }()
	end := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(10 * time.Second):
			h.t.Errorf("Run did not return within 10 s after its context ended")
			return nil
		}
	})
	h.t.Cleanup(func() { _ = end() })
	select {
	case <-h.ready:
	case err := <-result:
		result <- err
		h.t.Fatalf("Run returned before it was ready: %v", err)
	case <-time.After(10 * time.Second):
		h.t.Fatal("not ready within 10 s")
	}
	return end
}
