package sensors

import (
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

// atMost limits the events that wait.
func atMost(n int) func(*specs.Sensor) {
	return func(s *specs.Sensor) { s.Limits = &specs.StateLimits{Events: n} }
}

// TestEventsAreLimited: beyond the limit the oldest of a dependency is given up.
func TestEventsAreLimited(t *testing.T) {
	playAll(t, []play{
		{"all", "a a c a b", with(sensor("a:all b c:all", "t=a && b && c"), atMost(2)), "t(a2 a4 b5 c3)", "superseded at 1"},
		{"first", "a a a b b b", with(sensor("a:first b", "t=a && b"), atMost(2)), "t(a2 b4) t(a3 b5)", "superseded at 1"},
		{"for each trigger", "a a b", with(sensor("a:all b", "t=a && b; u=a && b"), atMost(1)), "t(a2 b3) u(a2 b3)", "superseded at 1; superseded au 1"},
		{"latest waits alone anyway", "a a b", with(sensor("a b", "t=a && b"), atMost(2)), "t(a2 b3)", "superseded at 1"},
		{"count", "a a a", with(sensor("a", "t=a"), func(s *specs.Sensor) {
			s.Dependencies[0].Count, s.Limits = 3, &specs.StateLimits{Events: 3}
		}), "t(a1 a2 a3)", ""},
	})
}

// TestLowerEventLimit holds from the next event of a key on.
func TestLowerEventLimit(t *testing.T) {
	r := newRun(t, compileOK(t, sensor("a:all b", "t=a && b")))
	r.play("a a a a")
	r.p = compileOK(t, with(sensor("a:all b", "t=a && b"), atMost(2)))
	if got := r.play("a b"); got != "t(a4 a5 b6)" {
		t.Errorf("fires %q", got)
	}
	if got := strings.Join(r.said, "; "); got != "superseded at 1; superseded at 2; superseded at 3" {
		t.Errorf("says %q", got)
	}
}

func TestSize(t *testing.T) {
	s := sensor("a:all b", "t=a && b; u=a && b")
	s.Dependencies[0].Distinct = expr("data.d")
	p := compileOK(t, s)
	r := newRun(t, p)
	size := func() int { st := r.states[""]; return p.Size("key", &st) }
	if n := size(); n != 0 {
		t.Errorf("an empty state counts %d", n)
	}
	r.play(`a{"d":"four"} a{"d":"x"}`)
	if n, want := size(), 128+len("key")+2*(32+len("four")+32+len("x")); n != want {
		t.Errorf("it counts %d, want %d", n, want)
	}
	r.play("b")
	if n := size(); n != 0 {
		t.Errorf("an emptied state counts %d", n)
	}
	b := sensor("a", "t=a")
	b.Triggers[0].Batch = &specs.Batch{Size: 3}
	p = compileOK(t, b)
	r = newRun(t, p)
	r.play("a a")
	if n, want := size(), 128+len("key")+2*32; n != want {
		t.Errorf("what was gathered counts %d, want %d", n, want)
	}
	if got, want := p.Limits(), (Limits{Keys: DefaultKeys, Events: MaxKept, Bytes: DefaultBytes}); got != want {
		t.Errorf("limits %+v, want %+v", got, want)
	}
}
