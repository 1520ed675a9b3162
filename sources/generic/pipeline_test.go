package generic

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
)

func event(i int) *bus.Event {
	n := strconv.Itoa(i)
	return &bus.Event{ID: n, ProducerID: true, Data: []byte(n), Cursor: n}
}

// TestPipeline: whatever fails, events that the bus did not take are stored
// before anything newer is offered, each once, and the cursor is that of the
// last one at the end, although the host leaves it behind after a failure.
func TestPipeline(t *testing.T) {
	for name, fault := range map[string]func(n int) error{
		"none":         func(int) error { return nil },
		"one":          func(n int) error { return failAt(n == 10) },
		"every third":  func(n int) error { return failAt(n%3 == 0) },
		"long outage":  func(n int) error { return failAt(n > 50 && n < 400) },
		"first":        func(n int) error { return failAt(n == 0) },
		"last of many": func(n int) error { return failAt(n == 999) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &careful{Host: sourcetest.NewHost(t, DefaultType)}
				h.Fault = func(n int, _ *bus.Event) sourcetest.Fault {
					if err := fault(n); err != nil {
						h.behind.Store(true)
						return sourcetest.Fault{Err: err, Stored: n%2 == 0}
					}
					return sourcetest.Fault{}
				}
				p := newPipeline(t.Context(), h, "")
				p.rest("resting")
				for i := range 1000 {
					if err := p.add(t.Context(), event(i+1)); err != nil {
						t.Fatal(err)
					}
				}
				if err := p.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				p.close(t.Context())
				numbers(t, h.Host, 1000)
				if at := p.stands(); at != "1000" {
					t.Errorf("the position is %q", at)
				}
				if v, _ := h.Cursor().Load(t.Context()); v != "1000" {
					t.Errorf("the durable cursor is %q", v)
				}
				if got := h.Progress().Position; got != "1000" {
					t.Errorf("the reported position is %q", got)
				}
			})
		})
	}
}

func failAt(yes bool) error {
	if yes {
		return bus.ErrFull
	}
	return nil
}

// careful is a host that, as the engine's, leaves the cursor behind after a
// failure until it is loaded again.
type careful struct {
	*sourcetest.Host
	behind atomic.Bool
}

func (c *careful) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	if c.behind.Load() {
		ev = ev.Derive()
		ev.Cursor = ""
	}
	return c.Host.EmitAsync(ctx, ev, done)
}

func (c *careful) Cursor() sources.Cursor { return carefulCursor{c.Host.Cursor(), c} }

type carefulCursor struct {
	sources.Cursor
	host *careful
}

func (c carefulCursor) Load(ctx context.Context) (string, error) {
	c.host.behind.Store(false)
	return c.Cursor.Load(ctx)
}

// TestPipelineBounds: what waits is bounded in number and in bytes, and one
// event of any size passes.
func TestPipelineBounds(t *testing.T) {
	for _, tt := range []struct{ bytes, most int }{{0, maxWaiting}, {1 << 20, maxWaitingBytes >> 20}, {maxWaitingBytes + 1, 1}} {
		t.Run(fmt.Sprint(tt.bytes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &slow{Host: sourcetest.NewHost(t, DefaultType), gate: make(chan struct{})}
				p := newPipeline(t.Context(), h, "")
				ctx, cancel := context.WithCancel(t.Context())
				var added atomic.Int64
				end := make(chan error)
				data := make([]byte, tt.bytes)
				go func() {
					for {
						if err := p.add(ctx, &bus.Event{Data: data}); err != nil {
							end <- err
							return
						}
						added.Add(1)
					}
				}()
				synctest.Wait()
				if n := int(added.Load()); n > tt.most || n < tt.most-1 {
					t.Errorf("%d events of %d bytes wait, want %d", n, tt.bytes, tt.most)
				}
				cancel()
				if err := <-end; err == nil {
					t.Error("add = nil")
				}
				begin := time.Now()
				p.close(t.Context()) // the bus does not answer
				if took := time.Since(begin); took != lastWords {
					t.Errorf("the end took %v, want %v", took, lastWords)
				}
				close(h.gate)
			})
		})
	}
}

// TestPipelineBacksOff: tries come ever later while nothing is stored, and the
// status says why.
func TestPipelineBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &details{Host: sourcetest.NewHost(t, DefaultType)}
		var tries []time.Duration
		begin := time.Now()
		h.Fault = func(int, *bus.Event) sourcetest.Fault {
			if tries = append(tries, time.Since(begin)); len(tries) < 12 {
				return sourcetest.Fault{Err: bus.ErrFull}
			}
			return sourcetest.Fault{}
		}
		p := newPipeline(t.Context(), h, "")
		p.rest("resting")
		if err := p.add(t.Context(), event(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if want := "holding back: 1 received events are not stored yet: log is full"; !strings.Contains(h.last(), want) {
			t.Errorf("the status is %q, want %q", h.last(), want)
		}
		if err := p.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h.last() != "resting" {
			t.Errorf("the status is %q afterwards", h.last())
		}
		p.close(t.Context())
		for i := 1; i < len(tries); i++ {
			if gap, want := tries[i]-tries[i-1], min(firstRetry<<(i-1), lastRetry); gap != want {
				t.Errorf("try %d came %v after the one before, want %v", i, gap, want)
			}
		}
	})
}
