package sensors

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// TestEventsAreAskedForWhenRead: a step asks for the events its state refers to
// only when an expression reads them.
func TestEventsAreAskedForWhenRead(t *testing.T) {
	in := func(src string) func(*specs.Sensor) {
		return func(s *specs.Sensor) {
			s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: text("in", src)}
		}
	}
	within := func(s *specs.Sensor) { s.Within = specs.Duration(time.Minute) }
	for _, tt := range []struct {
		name, script string
		spec         *specs.Sensor
		fires        string
		asks         string
	}{
		{"expiry", "a +1h a +1h a", with(sensor("a b", "t=a && b"), within), "", ""},
		{"superseded", "a a a", sensor("a b", "t=a && b"), "", ""},
		{"a condition on arrival", "a b", sensor("a b c", "t=a && b && c"), "", ""},
		{"a firing without input", "a b", sensor("a b", "t=a && b"), "t(a1 b2)", ""},
		{"a condition that reads", "a b", sensor("a b", "t=a && b && a.data != b.data"), "", "1"},
		{"input", "a b", with(sensor("a b", "t=a && b"), in("${ a.data }")), "t(a1 b2)", "1"},
		{"input, of what fires", "a a a b", with(sensor("a:first b", "t=a && b"), in("${ a.data }")), "t(a1 b4)", "1"},
		{"input of another", "a b", with(sensor("a b", "t=a && b"), in("${ b.data }")), "t(a1 b2)", ""},
		{"a constant input", "a b", with(sensor("a b", "t=a && b"), in("${ 1 + 1 }")), "t(a1 b2)", ""},
		{"the event itself", "a", with(sensor("a", "t=a"), in("${ a.data }")), "t(a1)", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRun(t, compileOK(t, tt.spec))
			var asks []string
			r.get = func(seq uint64) *bus.Event {
				asks = append(asks, fmt.Sprint(seq))
				return r.events[seq]
			}
			if got := r.play(tt.script); got != tt.fires {
				t.Errorf("fires %q, want %q", got, tt.fires)
			}
			if got := strings.Join(asks, " "); got != tt.asks {
				t.Errorf("asks for %q, want %q", got, tt.asks)
			}
		})
	}
}

// TestLostEvents: what a condition finds to be gone does not wait any more; a
// firing that needs it says so.
func TestLostEvents(t *testing.T) {
	r := newRun(t, compileOK(t, sensor("a b", "t=a && b && a.data.n == b.data.n")))
	r.play(`a{"n":1}`)
	delete(r.events, 1)
	if got := r.play(`b{"n":1}`); got != "" || strings.Join(r.said, "; ") != "lost  1" {
		t.Errorf("fires %q, says %q", got, r.said)
	}
	if got := r.play(`a{"n":1}`); got != "t(b2 a3)" && got != "t(a3 b2)" {
		t.Errorf("fires %q", got)
	}
	s := sensor("a b", "t=a && b")
	s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: text("in", "${ a.data }")}
	r = newRun(t, compileOK(t, s))
	r.play("a")
	delete(r.events, 1)
	if got := r.play("b"); got != "t(a1 b2)" || r.fired[0].Err == nil || r.fired[0].Err.Error() != "in: event 1 is no longer stored" || len(r.states) != 0 {
		t.Errorf("fires %q, %v", got, r.fired[0].Err)
	}
}
