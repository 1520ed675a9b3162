package engine_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

type probeConfig struct {
	Do string `yaml:"do" doc:"What the probe does."`
}

type probe struct {
	do   string
	runs *atomic.Int64
}

func (p *probe) Run(ctx context.Context, h sources.Host) error {
	n := p.runs.Add(1)
	switch p.do {
	case "fail":
		if n < 3 {
			return errors.New("service is away")
		}
	case "panic":
		if n < 2 {
			panic("boom")
		}
	case "permanent":
		return &sources.Permanent{Err: errors.New("no such queue")}
	case "end":
		if n < 2 {
			return nil
		}
	}
	if v, err := h.Cursor().Load(ctx); err != nil || v != "" {
		return errors.New("a new source has a cursor")
	}
	if err := h.Cursor().Store(ctx, "7"); err != nil {
		return err
	}
	if v, err := h.Cursor().Load(ctx); err != nil || v != "7" {
		return errors.New("the cursor is lost")
	}
	if err := h.Emit(ctx, &bus.Event{Data: []byte("1")}, &bus.Event{Data: []byte("2")}); err != nil {
		return err
	}
	h.Ready("probing")
	<-ctx.Done()
	return nil
}

func probeCatalog(runs *atomic.Int64) engine.Catalog {
	return engine.Catalog{
		Sources: sources.Registry{{
			Type:        specs.Type{Name: "probe", Doc: "A source for tests.", New: func() any { return &probeConfig{} }},
			DefaultType: "probe.seen",
			Make:        func(c any, _ sources.Env) (sources.Source, error) { return &probe{c.(*probeConfig).Do, runs}, nil },
		}},
		Functions: triggersall.All(),
	}
}

func TestSupervision(t *testing.T) {
	for _, tt := range []struct {
		do    string
		state engine.UnitState
		runs  int64
		why   string
	}{
		{"work", engine.UnitRunning, 1, "probing"},
		{"fail", engine.UnitRunning, 3, "probing"},
		{"panic", engine.UnitRunning, 2, "probing"},
		{"end", engine.UnitRunning, 2, "probing"},
		{"permanent", engine.UnitFailed, 1, "no such queue"},
	} {
		t.Run(tt.do, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			dir := t.TempDir()
			spec := head + "kind: EventSource\nmetadata: {name: p}\nspec: {probe: {it: {do: " + tt.do + "}}}\n"
			if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(spec), 0o600); err != nil {
				t.Fatal(err)
			}
			r := launch(t, probeCatalog(&runs), dir, t.TempDir())
			var ev engine.EventStatus
			r.until("the state", func() bool {
				for _, res := range r.e.Status(t.Context()).Resources {
					for _, ev = range res.Events {
						if ev.State == tt.state {
							return true
						}
					}
				}
				return false
			})
			if !strings.Contains(ev.Detail, tt.why) || runs.Load() != tt.runs {
				t.Errorf("after %d runs: %+v", runs.Load(), ev)
			}
			ready, why := r.e.Ready(t.Context())
			if want := tt.state == engine.UnitRunning; ready != want {
				t.Errorf("ready %v: %v", ready, why)
			}
			if tt.state == engine.UnitRunning && ev.Stored != 2 {
				t.Errorf("%d events stored, want 2", ev.Stored)
			}
		})
	}
}

func TestChangedWebhookLeavesNoGap(t *testing.T) {
	spec := func(max string) string {
		return head + "kind: EventSource\nmetadata: {name: shop}\nspec: {webhook: {orders: {path: /orders, maxBody: " + max + "}}}\n"
	}
	r := start(t, written(t, "shop.yaml", spec("1KiB")), t.TempDir())
	stop := make(chan struct{})
	done := make(chan string, 1)
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			resp, err := http.Post("http://"+r.e.Addr()+"/orders", "application/json", strings.NewReader("{}"))
			if err != nil {
				done <- err.Error()
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusAccepted {
				done <- resp.Status
				return
			}
		}
	}()
	for i, max := range []string{"2KiB", "3KiB", "4KiB", "5KiB"} {
		r.write("shop.yaml", spec(max))
		r.until("the reload", func() bool { return r.e.Status(t.Context()).Reload.Generation >= i+2 })
	}
	close(stop)
	if bad := <-done; bad != "" {
		t.Fatalf("a request during the reloads got %s", bad)
	}
}
