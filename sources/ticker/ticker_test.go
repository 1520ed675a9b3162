package ticker

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type tick struct {
	Time   time.Time
	Count  int
	Missed int
}

// run lets a ticker run for d of fake time and returns its events.
func run(t *testing.T, c *Config, d time.Duration, prepare func(*sourcetest.Host)) (start time.Time, evs []*bus.Event) {
	t.Helper()
	s, err := Factory().Make(c, sources.Env{})
	if err != nil {
		t.Fatal(err)
	}
	h := sourcetest.NewHost(t, DefaultType)
	if prepare != nil {
		prepare(h)
	}
	start = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := s.Run(ctx, h); err != nil {
		t.Errorf("Run = %v, want nil at the end of its context", err)
	}
	return start, h.Events()
}

func decode(t *testing.T, ev *bus.Event) (out tick) {
	t.Helper()
	if err := json.Unmarshal(ev.Data, &out); err != nil {
		t.Fatalf("data %s: %v", ev.Data, err)
	}
	if !out.Time.Equal(ev.Time) {
		t.Errorf("data says %v, the event %v", out.Time, ev.Time)
	}
	return out
}

func TestDayWithoutDrift(t *testing.T) {
	for name, c := range map[string]*Config{
		"every":     {Every: specs.Duration(time.Minute)},
		"seconds":   {Seconds: 60},
		"immediate": {Seconds: 60, Immediate: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, evs := run(t, c, 24*time.Hour+time.Second, func(h *sourcetest.Host) {
					h.Fault = func(n int, _ *bus.Event) sourcetest.Fault {
						time.Sleep(time.Duration(n%40) * time.Second) // storing takes its time
						return sourcetest.Fault{}
					}
				})
				want, offset := 1440, time.Minute
				if c.Immediate {
					want, offset = 1441, 0
				}
				if len(evs) != want {
					t.Fatalf("%d ticks in 24 h, want %d", len(evs), want)
				}
				ids := map[string]bool{}
				for i, ev := range evs {
					got, due := decode(t, ev), start.Add(offset+time.Duration(i)*time.Minute)
					if !got.Time.Equal(due) || got.Count != i+1 || got.Missed != 0 || ids[ev.ID] {
						t.Fatalf("tick %d is %+v with id %s, want time %v", i, got, ev.ID, due)
					}
					if ids[ev.ID] = true; ev.Type != DefaultType || !ev.StoredAt.Equal(due.Add(time.Duration(i%40)*time.Second)) {
						t.Fatalf("tick %d of type %s stored at %v, due %v", i, ev.Type, ev.StoredAt, due)
					}
				}
			})
		})
	}
}

func TestNoBurstAfterPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, evs := run(t, &Config{Seconds: 10}, 3*time.Minute+time.Second, func(h *sourcetest.Host) {
			h.Fault = func(n int, _ *bus.Event) sourcetest.Fault {
				if n == 2 { // the third tick, at 30 s, is held for 95 s
					time.Sleep(95 * time.Second)
				}
				return sourcetest.Fault{}
			}
		})
		// Ticks at 40…110 s are left out, the one of 120 s comes 5 s late.
		want := []struct{ due, missed int }{{10, 0}, {20, 0}, {30, 0}, {120, 8}, {130, 0}, {140, 0}, {150, 0}, {160, 0}, {170, 0}, {180, 0}}
		if len(evs) != len(want) {
			t.Fatalf("%d ticks, want %d", len(evs), len(want))
		}
		for i, w := range want {
			got := decode(t, evs[i])
			if !got.Time.Equal(start.Add(time.Duration(w.due)*time.Second)) || got.Missed != w.missed || got.Count != w.due/10 {
				t.Errorf("tick %d is %+v, want %+v", i, got, w)
			}
		}
		if at := evs[3].StoredAt.Sub(start); at != 125*time.Second {
			t.Errorf("the late tick came after %v, want 125s", at)
		}
	})
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, evs := run(t, &Config{Seconds: 10, Jitter: specs.Duration(4 * time.Second)}, time.Hour+5*time.Second, nil)
		if len(evs) != 360 {
			t.Fatalf("%d ticks in an hour, want 360", len(evs))
		}
		var least, most time.Duration = time.Hour, 0
		for i, ev := range evs {
			due := start.Add(time.Duration(i+1) * 10 * time.Second)
			late := ev.StoredAt.Sub(due)
			if least, most = min(least, late), max(most, late); !ev.Time.Equal(due) {
				t.Fatalf("tick %d says %v, want %v", i, ev.Time, due)
			}
		}
		if least < 0 || most > 4*time.Second || most-least < 2*time.Second {
			t.Errorf("ticks came between %v and %v late, want spread over 0 to 4s", least, most)
		}
	})
}

func TestTickIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, evs := run(t, &Config{Seconds: 10}, 61*time.Second, func(h *sourcetest.Host) {
			h.Fault = func(n int, _ *bus.Event) sourcetest.Fault {
				switch {
				case n == 1, n == 2: // the second tick fails twice
					return sourcetest.Fault{Err: bus.ErrFull}
				case n == 5: // an acknowledgement is lost
					return sourcetest.Fault{Err: bus.ErrUnavailable, Stored: true}
				}
				return sourcetest.Fault{}
			}
		})
		if len(evs) != 6 {
			t.Fatalf("%d events, want 6 ticks, each once", len(evs))
		}
		for i, ev := range evs {
			if got := decode(t, ev); got.Count != i+1 || got.Missed != 0 {
				t.Errorf("tick %d is %+v", i, got)
			}
		}
		if at := evs[1].StoredAt.Sub(start); at != 20*time.Second+3*firstRetry {
			t.Errorf("the second tick was stored after %v, want 20s and two waits", at)
		}
	})
}

func TestTooLargeIsPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newTicker(&Config{Seconds: 1})
		if err != nil {
			t.Fatal(err)
		}
		h := sourcetest.NewHost(t, DefaultType)
		h.Fault = func(int, *bus.Event) sourcetest.Fault { return sourcetest.Fault{Err: bus.ErrTooLarge} }
		var permanent *sources.Permanent
		if err := s.Run(t.Context(), h); !errors.As(err, &permanent) {
			t.Errorf("Run = %v, want a permanent error", err)
		}
	})
}

func TestStopsWhileBusIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, evs := run(t, &Config{Seconds: 1}, time.Hour, func(h *sourcetest.Host) {
			h.Fault = func(int, *bus.Event) sourcetest.Fault { return sourcetest.Fault{Err: bus.ErrUnavailable} }
		})
		if len(evs) != 0 {
			t.Errorf("%d events stored", len(evs))
		}
	})
}
