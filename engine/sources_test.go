package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

// scripted is a source whose host is handed to the test.
type scripted struct {
	hosts chan sources.Host
}

func (s scripted) Run(ctx context.Context, h sources.Host) error {
	h.Ready("in the hands of a test")
	select {
	case s.hosts <- h:
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// handed starts an engine with one event, whose intake is written in YAML's
// flow style, and returns the host of its source.
func handed(t *testing.T, data, intake string, push bool) (*running, sources.Host) {
	t.Helper()
	hosts := make(chan sources.Host, 1)
	c := engine.Catalog{
		Sources: sources.Registry{{
			Type:        specs.Type{Name: "scripted", Doc: "A source for tests.", New: func() any { return &struct{}{} }},
			DefaultType: "scripted.event", Push: push,
			Make: func(any, sources.Env) (sources.Source, error) { return scripted{hosts}, nil },
			Describe: func(_ any, env sources.Env, _ time.Time) []sources.Detail {
				return []sources.Detail{{Name: "Knows", Values: []string{env.Source + "/" + env.Event}}}
			},
		}},
		Functions: triggersall.All(),
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte(head+"kind: EventSource\nmetadata: {name: s}\nspec: {scripted: {e: "+intake+"}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := launch(t, c, dir, data)
	select {
	case h := <-hosts:
		r.until("the engine to be ready", func() bool {
			ok, _ := r.e.Ready(t.Context())
			return ok
		})
		return r, h
	case <-time.After(20 * time.Second):
		t.Fatal("the source does not run")
		return nil, nil
	}
}

func (r *running) event(name string) (out engine.EventStatus) {
	r.t.Helper()
	for _, res := range r.e.Status(r.t.Context()).Resources {
		for _, ev := range res.Events {
			if ev.Name == name {
				out = ev
			}
		}
	}
	return out
}

// at is an event of a source whose cursor is its number.
func at(n int) *bus.Event {
	return &bus.Event{ID: fmt.Sprint(n), ProducerID: true, Cursor: fmt.Sprint(n), Data: []byte(fmt.Sprintf(`{"n":%d}`, n)), DataContentType: "application/json"}
}

func load(t *testing.T, h sources.Host, want string) {
	t.Helper()
	if got, err := h.Cursor().Load(t.Context()); err != nil || got != want {
		t.Fatalf("the cursor is %q, %v; want %q", got, err, want)
	}
}

func emit(t *testing.T, h sources.Host, evs ...*bus.Event) {
	t.Helper()
	if err := h.Emit(t.Context(), evs...); err != nil {
		t.Fatal(err)
	}
}

func TestCursorIsStoredWithItsEvent(t *testing.T) {
	data := t.TempDir()
	r, h := handed(t, data, "{}", false)
	load(t, h, "")
	emit(t, h, at(1), at(2))
	emit(t, h, &bus.Event{Data: []byte("without a cursor")})
	load(t, h, "2")
	r.stop()

	r, h = handed(t, data, "{}", false)
	load(t, h, "2")
	emit(t, h, at(3))
	// The fold keeps the cursor of an event that is purged.
	info, err := r.bus.Events().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.until("the checkpoint", func() bool {
		_, covered, err := fold.ReadCheckpoint(t.Context(), r.bus.State())
		return err == nil && covered == info.Last
	})
	if err := r.bus.Events().PurgeTo(t.Context(), info.Last+1); err != nil {
		t.Fatal(err)
	}
	load(t, h, "3")
	if err := h.Cursor().Store(t.Context(), "3+"); err != nil {
		t.Fatal(err)
	}
	load(t, h, "3+")
	emit(t, h, at(4))
	load(t, h, "4")
	if err := h.Cursor().Store(t.Context(), strings.Repeat("x", 5<<10)); err == nil {
		t.Error("a cursor of 5 KiB is stored")
	}
	r.stop()

	_, h = handed(t, data, "{}", false)
	load(t, h, "4")
}

// Two engines run one source on one bus: what one stored, the other does not
// store again, however long it slept.
func TestCursorFence(t *testing.T) {
	r, slow := handed(t, t.TempDir(), "{}", false)
	load(t, slow, "")
	emit(t, slow, at(1))
	// Another engine on the same bus is another host of the same source.
	fast := func(n int) {
		ev := at(n)
		ev.EventSource, ev.EventName, ev.Source, ev.Type = "s", "e", "/s/e", "scripted.event"
		rec := ev.Record()
		rec.MsgID = "" // forgotten by the window of ids
		if _, err := r.bus.Events().Append(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	fast(2)
	if err := slow.Emit(t.Context(), at(2)); !errors.Is(err, bus.ErrConflict) {
		t.Fatalf("the second of two engines: %v, want ErrConflict", err)
	}
	load(t, slow, "2")
	emit(t, slow, at(3))
	if n := events(t, r.bus.Events()); n != 3 {
		t.Errorf("%d events stored, want 3", n)
	}
}

func events(t *testing.T, l bus.Log) uint64 {
	t.Helper()
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.Records
}

// The cursors of events on their way together are stored when all before them
// are, and never that of an event behind one that failed.
func TestCursorOfPipelinedEvents(t *testing.T) {
	data := t.TempDir()
	r, h := handed(t, data, "{filter: data.n % 10 != 0}", false)
	load(t, h, "")
	async := func(from, to, failing int) {
		t.Helper()
		var wg sync.WaitGroup
		for n := from; n <= to; n++ {
			ev := at(n)
			if n == failing {
				ev.Data = append(append([]byte(`{"n":1,"fill":"`), strings.Repeat("x", r.bus.MaxPayload())...), `"}`...)
			}
			wg.Add(1)
			if err := h.EmitAsync(t.Context(), ev, func(err error) {
				if (err != nil) != (n == failing) {
					t.Errorf("event %d: %v", n, err)
				}
				wg.Done()
			}); err != nil {
				if wg.Done(); n != failing {
					t.Errorf("event %d: %v", n, err)
				}
			}
		}
		wg.Wait()
	}
	async(1, 500, 0) // the filter drops the last
	r.stop()
	if n := r.event("e").Intake.Filtered; n != 50 {
		t.Errorf("%d filtered, want 50", n)
	}

	r, h = handed(t, data, "{filter: data.n % 10 != 0}", false)
	load(t, h, "500")
	async(501, 599, 550)
	r.stop()

	_, h = handed(t, data, "{}", false)
	got, err := h.Cursor().Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(got, &n); err != nil || n < 500 || n >= 550 {
		t.Errorf("the cursor is %q beyond event 550, which is not stored", got)
	}
}

func TestRateLimit(t *testing.T) {
	t.Run("pull", func(t *testing.T) {
		r, h := handed(t, t.TempDir(), "{rateLimit: {events: 2, per: 100ms, burst: 1}}", false)
		begin := time.Now()
		emit(t, h, at(1), at(2), at(3))
		if took := time.Since(begin); took < 100*time.Millisecond {
			t.Errorf("3 events took %v, want at least 100ms", took)
		}
		if ev := r.event("e"); ev.Stored != 3 || ev.Intake.Limited != 2 {
			t.Errorf("%+v", ev)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Emit(ctx, at(4), at(5)); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting for the limit until the end: %v", err)
		}
	})
	t.Run("push", func(t *testing.T) {
		r, h := handed(t, t.TempDir(), "{rateLimit: {events: 1, per: 1h}}", true)
		emit(t, h, at(1))
		err := h.Emit(t.Context(), at(2))
		limit, ok := errors.AsType[*sources.LimitError](err)
		if !ok || limit.RetryAfter < 59*time.Minute || limit.RetryAfter > time.Hour {
			t.Fatalf("beyond the limit: %v", err)
		}
		if ev := r.event("e"); ev.Stored != 1 || ev.Refused != 1 || ev.Intake.Limited != 1 {
			t.Errorf("%+v", ev)
		}
	})
}

func TestIntakeIsVisible(t *testing.T) {
	r, h := handed(t, t.TempDir(), `{filter: data.n > 1, type: "n.${ int(data.kind) }"}`, false)
	bad := at(2)
	bad.Data = []byte(`{"n":2,"kind":"x"}`)
	emit(t, h, at(1), bad, &bus.Event{ID: "3", Data: []byte(`{}`), DataContentType: "application/json"})
	h.Report(sources.Progress{Position: "at 3", Lag: 1500 * time.Millisecond})
	ev := r.event("e")
	if ev.Stored != 1 || ev.Intake.Filtered != 1 || ev.Intake.FilterMissing != 1 || ev.Intake.Unshaped != 1 || ev.Intake.Problem == "" {
		t.Errorf("%+v", ev)
	}
	if ev.Position != "at 3" || ev.Lag != 1.5 {
		t.Errorf("position %q, lag %v", ev.Position, ev.Lag)
	}
	if d := r.e.Details("s")["e"]; len(d) != 1 || d[0].Values[0] != "s/e" {
		t.Errorf("details %v", d)
	}
	rec, err := r.bus.Events().Last(t.Context(), bus.EventSubject("s", "e"))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := bus.DecodeEvent(rec)
	if err != nil || stored.Type != "scripted.event" || !strings.HasPrefix(stored.Extensions[sources.ProblemExtension], "type: ") {
		t.Errorf("%+v, %v", stored, err)
	}
}

func TestWebhookIntake(t *testing.T) {
	dir := t.TempDir()
	spec := head + `kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    orders:
      path: /orders
      filter: data.total > 10
      dedup: data.order
      rateLimit: {events: 2, per: 1h}
      data: {total: "${ data.total }", from: "${ request.query.from }"}
      labels: {team: payments}
`
	if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, t.TempDir())
	for i, tt := range []struct {
		body string
		want int
	}{
		{`{"total":1,"order":1}`, http.StatusAccepted}, // filtered
		{`{"total":20,"order":2}`, http.StatusAccepted},
		{`{"total":20,"order":2}`, http.StatusAccepted}, // the same order
		{`{"total":20,"order":3}`, http.StatusTooManyRequests},
	} {
		if code, text := r.post("/orders?from=ams", tt.body); code != tt.want {
			t.Errorf("request %d: %d %s, want %d", i, code, text, tt.want)
		}
	}
	ev := r.event("orders")
	if ev.Stored != 1 || ev.Duplicates != 1 || ev.Intake.Filtered != 1 || ev.Intake.Limited != 1 {
		t.Errorf("%+v", ev)
	}
	rec, err := r.bus.Events().Last(t.Context(), bus.EventSubject("shop", "orders"))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := bus.DecodeEvent(rec)
	if err != nil || string(stored.Data) != `{"from":"ams","total":20}` || stored.ID != "2" || stored.Extensions["team"] != "payments" {
		t.Errorf("%+v, %v", stored, err)
	}
}

// clockwork is a timed source that counts.
type clockwork struct {
	every time.Duration
	do    string
	wakes *atomic.Int64
}

func (c *clockwork) Run(ctx context.Context, h sources.Host) error {
	return sources.RunTimed(ctx, h, c)
}

func (c *clockwork) Wake(_ context.Context, h sources.Host, now time.Time) (time.Time, error) {
	n := c.wakes.Add(1)
	h.Ready("counting")
	switch {
	case c.do == "fail" && n%3 == 0:
		return time.Time{}, errors.New("not this time")
	case c.do == "panic" && n%3 == 0:
		panic("not this time")
	case c.do == "permanent" && n == 3:
		return time.Time{}, &sources.Permanent{Err: errors.New("never again")}
	case c.do == "never" && n == 2:
		return time.Time{}, nil
	}
	return now.Add(c.every), nil
}

func TestTimedSources(t *testing.T) {
	for _, tt := range []struct {
		do    string
		least int64
		exact bool
		state engine.UnitState
	}{
		{"work", 20, false, engine.UnitRunning},
		{"fail", 5, false, engine.UnitRunning},
		{"panic", 5, false, engine.UnitRunning},
		{"permanent", 3, true, engine.UnitFailed},
		{"never", 2, true, engine.UnitRunning},
	} {
		t.Run(tt.do, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			c := engine.Catalog{
				Sources: sources.Registry{{
					Type:        specs.Type{Name: "clockwork", Doc: "A source for tests.", New: func() any { return &struct{}{} }},
					DefaultType: "clockwork.tick",
					Make: func(any, sources.Env) (sources.Source, error) {
						return &clockwork{every: 5 * time.Millisecond, do: tt.do, wakes: &n}, nil
					},
				}},
				Functions: triggersall.All(),
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte(head+"kind: EventSource\nmetadata: {name: s}\nspec: {clockwork: {e: {}}}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r := launch(t, c, dir, t.TempDir())
			r.until("the wakes", func() bool { return n.Load() >= tt.least && r.event("e").State == tt.state })
			if tt.exact {
				<-time.After(50 * time.Millisecond)
				if n.Load() != tt.least {
					t.Errorf("%d wakes, want %d", n.Load(), tt.least)
				}
			}
			r.stop()
			was := n.Load()
			<-time.After(20 * time.Millisecond)
			if n.Load() != was {
				t.Error("it is called after its end")
			}
		})
	}
}

func TestSubscription(t *testing.T) {
	dir := t.TempDir()
	calls := make(chan string, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- string(body)
	}))
	t.Cleanup(srv.Close)
	spec := head + `kind: EventSource
metadata: {name: shop}
spec: {webhook: {orders: {path: /orders, type: order.created}}}
---
apiVersion: engine/v1
kind: Function
metadata: {name: note}
spec: {http: {url: "` + srv.URL + `"}}
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: large}
spec: {eventType: order.*, when: data.total > 10, function: note, input: {large: "${ event.data.total }"}}
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: all}
spec: {eventType: order.created, source: shop, function: note}
`
	if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir, t.TempDir())
	for _, body := range []string{`{"total":1}`, `{"total":20}`} {
		if code, text := r.post("/orders", body); code != http.StatusAccepted {
			t.Fatal(code, text)
		}
	}
	got := map[string]int{}
	for range 3 {
		select {
		case c := <-calls:
			got[c]++
		case <-time.After(20 * time.Second):
			t.Fatalf("calls: %v", got)
		}
	}
	if got[`{"total":1}`] != 1 || got[`{"total":20}`] != 1 || got[`{"large":20}`] != 1 {
		t.Errorf("calls: %v", got)
	}
	for _, res := range r.e.Status(t.Context()).Resources {
		if res.Kind == specs.KindSubscription && (res.RunsAs != "subscription."+res.Name || res.Sensor == nil || len(res.Triggers) != 1) {
			t.Errorf("%+v", res)
		}
	}
	// A change takes effect, and what is gone is not called.
	r.write("s.yaml", strings.Replace(spec, "eventType: order.created, source: shop", "eventType: order.paid", 1))
	r.until("the change", func() bool { return r.e.Status(t.Context()).Reload.Generation == 2 })
	r.post("/orders", `{"total":30}`)
	select {
	case c := <-calls:
		if c != `{"large":30}` {
			t.Errorf("called with %s", c)
		}
	case <-time.After(20 * time.Second):
		t.Error("not called after the change")
	}
}
