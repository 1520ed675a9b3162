package generic

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/generic/eventing"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

// TestCall: what the server gets, and what becomes of what it sends, over every
// kind of connection.
func TestCall(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	cert := ca.leaf("server", nil)
	ca.leaf("engine", nil)
	at := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	var got atomic.Pointer[metadata.MD]
	var asked atomic.Pointer[eventing.EventSource]
	serve := func(req *eventing.EventSource, s stream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		got.Store(&md)
		asked.Store(req)
		for _, ev := range []*eventing.Event{
			{Name: "old", Payload: []byte(`{"n": 1}`)},
			{
				Payload: []byte("%PDF"), Id: "7", Type: "com.example.doc", Source: "/scanner", Subject: "doc 7", Time: timestamppb.New(at),
				ContentType: "application/pdf", Attributes: map[string]string{"traceparent": "00-1", "dataschema": "urn:x", "Not-Allowed": "x"}, Cursor: "pos ü",
			},
			{},
		} {
			if err := s.Send(ev); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}
	plain := newServer(t, "", serve)
	secure := newServer(t, "", serve, tlsServer(cert, nil))
	mutual := newServer(t, "", serve, tlsServer(cert, ca))
	token := &Auth{Bearer: specs.SecretRef{Name: "shop", Key: "token"}}
	for name, tt := range map[string]struct {
		server *server
		change func(*Config)
		auth   string
		config string
	}{
		"plain text":   {plain, func(c *Config) { c.Config = specs.Value{Root: "a: 1\n# as it is\n", Set: true} }, "", "a: 1\n# as it is\n"},
		"plain bearer": {plain, func(c *Config) { c.Auth = token }, "Bearer s3cret", ""},
		"tls": {secure, func(c *Config) {
			c.Insecure, c.TLS = false, &TLS{CA: "ca.pem"}
			c.Config = specs.Value{Root: map[string]any{"b": int64(2), "a": []any{"x"}}, Set: true}
		}, "", `{"a":["x"],"b":2}`},
		"tls by name, bearer": {secure, func(c *Config) {
			c.Insecure, c.TLS, c.Auth = false, &TLS{CA: "ca.pem", ServerName: "localhost"}, token
		}, "Bearer s3cret", ""},
		"tls unverified": {secure, func(c *Config) { c.Insecure, c.TLS = false, &TLS{InsecureSkipVerify: true} }, "", ""},
		"mutual tls": {mutual, func(c *Config) {
			c.Insecure, c.TLS = false, &TLS{CA: "ca.pem", Cert: "engine.pem", Key: "engine-key.pem"}
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := sourcetest.NewHost(t, DefaultType)
			h.SetSecret("shop/token", "s3cret")
			stop := h.Start(make1(t, config(tt.server.addr, tt.change), sources.Env{Source: "shop", Event: "orders", Dir: dir}))
			eventually(t, "three events", func() bool { return len(h.Events()) == 3 })
			if err := stop(); err != nil {
				t.Errorf("Run = %v", err)
			}
			md := *got.Load()
			if v := strings.Join(md.Get("authorization"), ","); v != tt.auth {
				t.Errorf("authorization is %q, want %q", v, tt.auth)
			}
			if v := strings.Join(md.Get("engine-eventsource"), ","); v != "shop" {
				t.Errorf("engine-eventsource is %q", v)
			}
			if v := md.Get("engine-cursor-bin"); v != nil {
				t.Errorf("a cursor %q comes with the first call", v)
			}
			if req := asked.Load(); req.GetName() != "orders" || string(req.GetConfig()) != tt.config {
				t.Errorf("the request is %v, want the name orders and the config %q", req, tt.config)
			}
			evs := h.Events()
			a, b, c := evs[0], evs[1], evs[2]
			if a.Type != DefaultType || a.ProducerID || a.DataContentType != "application/json" || string(a.Data) != `{"n": 1}` {
				t.Errorf("the event of an old server is %+v", a)
			}
			if b.ID != "7" || !b.ProducerID || b.Type != "com.example.doc" || b.Source != "/scanner" || b.Subject != "doc 7" || !b.Time.Equal(at) ||
				b.DataContentType != "application/pdf" || b.DataSchema != "urn:x" || fmt.Sprint(b.Extensions) != "map[traceparent:00-1]" || string(b.Data) != "%PDF" {
				t.Errorf("the event with everything is %+v", b)
			}
			if c.Data != nil || c.DataContentType != "" {
				t.Errorf("the empty event is %+v", c)
			}
			if v, _ := h.Cursor().Load(t.Context()); v != "pos ü" {
				t.Errorf("the cursor is %q", v)
			}
		})
	}
}

// TestResumes: the next run and the next stream begin after the last event that
// is stored; the server's cursor travels with an event, or alone after a flood.
func TestResumes(t *testing.T) {
	var calls, from atomic.Int64
	h := sourcetest.NewHost(t, DefaultType)
	s := newServer(t, "", func(req *eventing.EventSource, s stream) error {
		n := calls.Add(1)
		from.Store(int64(cursorOf(s)))
		if n == 2 {
			return status.Error(codes.Unavailable, "restarting") // a stream that broke before it worked
		}
		return count(int(n)*1000)(req, s)
	})
	stop := h.Start(make1(t, config(s.addr), sources.Env{}))
	eventually(t, "the first thousand", func() bool { return len(h.Events()) == 1000 })
	eventually(t, "the cursor is there without an end", func() bool {
		v, _ := h.Cursor().Load(t.Context())
		return v == "1000"
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := run(t, config(s.addr), sources.Env{}, h); err == nil || !strings.Contains(err.Error(), "restarting") {
		t.Errorf("Run = %v, want the server's words", err)
	}
	if from.Load() != 1000 {
		t.Errorf("the second call began after %d, want 1000", from.Load())
	}
	stop = h.Start(make1(t, config(s.addr), sources.Env{}))
	eventually(t, "the third thousand", func() bool { return len(h.Events()) == 3000 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	numbers(t, h, 3000)
	if p := h.Progress(); p.Position != "3000" {
		t.Errorf("progress is %+v, want position 3000", p)
	}
	if v, _ := h.Cursor().Load(t.Context()); v != "3000" {
		t.Errorf("the cursor after the end is %q, want 3000", v)
	}
}

// TestEnd: what follows a stream that the server ends.
func TestEnd(t *testing.T) {
	var calls atomic.Int64
	s := newServer(t, "", func(_ *eventing.EventSource, s stream) error {
		for i := cursorOf(s) + 1; i%10 != 1 || i == cursorOf(s)+1; i++ {
			text := strconv.Itoa(i)
			if err := s.Send(&eventing.Event{Payload: []byte(text), Id: text, Cursor: text}); err != nil {
				return err
			}
		}
		calls.Add(1)
		return nil
	})
	t.Run("reconnect", func(t *testing.T) {
		h := sourcetest.NewHost(t, DefaultType)
		stop := h.Start(make1(t, config(s.addr), sources.Env{}))
		eventually(t, "five streams", func() bool { return len(h.Events()) >= 50 })
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		evs := h.Events()
		for i, ev := range evs {
			if string(ev.Data) != strconv.Itoa(i+1) {
				t.Fatalf("event %d is %s", i+1, ev.Data)
			}
		}
	})
	t.Run("done", func(t *testing.T) {
		calls.Store(0)
		h := &details{Host: sourcetest.NewHost(t, DefaultType)}
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() {
			end <- make1(t, config(s.addr, func(c *Config) { c.OnEnd = "done" }), sources.Env{}).Run(ctx, h)
		}()
		eventually(t, "it says done", func() bool { return strings.HasPrefix(h.last(), "done: ") })
		cancel()
		if err := <-end; err != nil || calls.Load() != 1 || len(h.Events()) != 10 {
			t.Errorf("Run = %v after %d calls and %d events, want one call", err, calls.Load(), len(h.Events()))
		}
	})
	t.Run("nothing", func(t *testing.T) {
		empty := newServer(t, "", func(*eventing.EventSource, stream) error { return nil })
		h := &details{Host: sourcetest.NewHost(t, DefaultType)}
		stop := h.Start(make1(t, config(empty.addr), sources.Env{}))
		eventually(t, "a later call is announced", func() bool { return strings.Contains(h.last(), "calling it again in ") })
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestBusAway: what was received while the bus takes nothing is kept, also when
// the stream ends meanwhile and cannot be resumed, and comes in order after it.
func TestBusAway(t *testing.T) {
	var away atomic.Bool
	h := &details{Host: sourcetest.NewHost(t, DefaultType)}
	h.Fault = func(int, *bus.Event) sourcetest.Fault {
		if away.Load() {
			return sourcetest.Fault{Err: bus.ErrUnavailable}
		}
		return sourcetest.Fault{}
	}
	var calls atomic.Int64
	s := newServer(t, "", func(_ *eventing.EventSource, s stream) error {
		if calls.Add(1) > 1 {
			<-s.Context().Done()
			return nil
		}
		for i := range 100 { // an old server: neither ids nor cursors
			if i == 50 {
				eventually(t, "the first half is stored", func() bool { return len(h.Events()) == 50 })
				away.Store(true)
			}
			if err := s.Send(&eventing.Event{Payload: []byte(strconv.Itoa(i + 1))}); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "gone")
	})
	stop := h.Start(make1(t, config(s.addr), sources.Env{}))
	eventually(t, "the status tells", func() bool { return strings.Contains(h.last(), "holding back: ") })
	if !strings.Contains(h.last(), bus.ErrUnavailable.Error()) {
		t.Errorf("the status is %q", h.last())
	}
	away.Store(false)
	eventually(t, "all are stored", func() bool { return len(h.Events()) == 100 })
	eventually(t, "the next stream", func() bool { return calls.Load() == 2 && strings.HasPrefix(h.last(), "connected to ") })
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	seen := map[string]int{}
	for i, ev := range h.Events() {
		if seen[string(ev.Data)]++; seen[string(ev.Data)] > 1 {
			t.Errorf("event %d is a second %s", i, ev.Data)
		}
	}
}

// details keeps what the source said of itself.
type details struct {
	*sourcetest.Host
	text atomic.Pointer[string]
}

func (d *details) Ready(detail string) {
	d.text.Store(&detail)
	d.Host.Ready(detail)
}

func (d *details) last() string {
	if p := d.text.Load(); p != nil {
		return *p
	}
	return ""
}

// Start is that of the host, with the details.
func (d *details) Start(s sources.Source) func() error {
	return d.Host.Start(told{s, d})
}

type told struct {
	sources.Source
	d *details
}

func (s told) Run(ctx context.Context, _ sources.Host) error { return s.Source.Run(ctx, s.d) }

// slow is a bus that answers when it is allowed to.
type slow struct {
	*sourcetest.Host
	gate chan struct{}
}

func (s *slow) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	return s.Host.EmitAsync(ctx, ev, func(err error) {
		<-s.gate
		done(err)
	})
}

// TestFlowControl: a server cannot send more than the windows hold while the
// bus does not answer; the end does not wait for it.
func TestFlowControl(t *testing.T) {
	const n, kib = 4000, 1 << 10
	payload := []byte(strings.Repeat("x", 4*kib))
	var sent atomic.Int64
	s := newServer(t, "", func(_ *eventing.EventSource, s stream) error {
		for range n {
			if err := s.Send(&eventing.Event{Payload: payload}); err != nil {
				return err
			}
			sent.Add(1)
		}
		<-s.Context().Done()
		return nil
	})
	h := &slow{Host: sourcetest.NewHost(t, DefaultType), gate: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- make1(t, config(s.addr), sources.Env{}).Run(ctx, h) }()
	// It is blocked when its counter stands still.
	last, since := int64(-1), time.Now()
	eventually(t, "the server is blocked", func() bool {
		if v := sent.Load(); v != last {
			last, since = v, time.Now()
		}
		return last > 0 && time.Since(since) > 300*time.Millisecond
	})
	// What waits here, the window, and what Send of grpc-go itself buffers.
	if most := int64(maxWaiting + (window+128*kib)/len(payload)); last > most {
		t.Errorf("%d messages are sent while the bus does not answer, want at most %d", last, most)
	}
	close(h.gate)
	eventually(t, "all are stored", func() bool { return len(h.Events()) == n })
	cancel()
	if err := <-end; err != nil {
		t.Errorf("Run = %v", err)
	}

	// Once more with a bus that never answers: the end comes all the same.
	stuck := &slow{Host: sourcetest.NewHost(t, DefaultType), gate: make(chan struct{})}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { end <- make1(t, config(s.addr), sources.Env{}).Run(ctx, stuck) }()
	eventually(t, "events wait", func() bool { return len(stuck.Events()) > 100 })
	cancel()
	select {
	case err := <-end:
		if err != nil {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(2 * lastWords):
		t.Error("Run did not return while the bus does not answer")
	}
	close(stuck.gate)
}

// TestHugeMessage: messages up to maxMessage pass, larger ones are refused with
// a reason, and what came before them is stored.
func TestHugeMessage(t *testing.T) {
	huge := make([]byte, 32<<20)
	s := newServer(t, "", func(_ *eventing.EventSource, s stream) error {
		for i := cursorOf(s); i < 3; i++ {
			p := []byte("small")
			if i == 1 {
				p = huge
			}
			if err := s.Send(&eventing.Event{Payload: p, Cursor: strconv.Itoa(i + 1)}); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	})
	h := sourcetest.NewHost(t, DefaultType)
	for range 2 {
		err := run(t, config(s.addr), sources.Env{}, h)
		if want := "larger than maxMessage, 4194304 bytes: raise that"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run = %v, want %q", err, want)
		}
	}
	if n := len(h.Events()); n != 1 {
		t.Errorf("%d events are stored, want the first alone", n)
	}
	stop := h.Start(make1(t, config(s.addr, func(c *Config) { c.MaxMessage = 33 << 20 }), sources.Env{}))
	eventually(t, "all are stored", func() bool { return len(h.Events()) == 3 })
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if n := len(h.Events()[1].Data); n != len(huge) {
		t.Errorf("the second event has %d bytes", n)
	}
}

// TestTokenIsReadAgain: a new token is in force with the next connection.
func TestTokenIsReadAgain(t *testing.T) {
	var good atomic.Pointer[string]
	first, second := "Bearer one", "Bearer two"
	good.Store(&first)
	s := newServer(t, "", func(_ *eventing.EventSource, s stream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		if v := strings.Join(md.Get("authorization"), ","); v != *good.Load() {
			return status.Error(codes.Unauthenticated, "wrong token")
		}
		return s.Send(&eventing.Event{Payload: []byte("x")})
	})
	h := sourcetest.NewHost(t, DefaultType)
	h.SetSecret("shop/token", "one")
	c := config(s.addr, func(c *Config) { c.Auth = &Auth{Bearer: specs.SecretRef{Name: "shop", Key: "token"}} })
	stop := h.Start(make1(t, c, sources.Env{}))
	eventually(t, "the first token works", func() bool { return len(h.Events()) > 0 })
	h.SetSecret("shop/token", "two")
	good.Store(&second)
	n := len(h.Events())
	eventually(t, "the second token works", func() bool { return len(h.Events()) > n+1 })
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// TestCursorFails: without its cursor a source does not begin.
func TestCursorFails(t *testing.T) {
	h := noCursor{sourcetest.NewHost(t, DefaultType)}
	if err := run(t, config("127.0.0.1:1"), sources.Env{}, h); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Run = %v, want that the cursor cannot be loaded", err)
	}
}

type noCursor struct{ *sourcetest.Host }

func (noCursor) Cursor() sources.Cursor { return noCursor{} }

func (noCursor) Load(context.Context) (string, error) { return "", bus.ErrUnavailable }

func (noCursor) Store(context.Context, string) error { return bus.ErrUnavailable }
