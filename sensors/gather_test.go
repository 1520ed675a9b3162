package sensors

import (
	"fmt"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

func debounce(s *specs.Sensor, quiet, longest time.Duration) *specs.Sensor {
	s.Triggers[0].Debounce = &specs.Debounce{Quiet: specs.Duration(quiet), Max: specs.Duration(longest)}
	return s
}

func batch(s *specs.Sensor, size int, wait time.Duration) *specs.Sensor {
	s.Triggers[0].Batch = &specs.Batch{Size: size, Wait: specs.Duration(wait)}
	return s
}

func cooldown(s *specs.Sensor, quiet time.Duration) *specs.Sensor {
	s.Triggers[0].Cooldown = specs.Duration(quiet)
	return s
}

func TestDebounce(t *testing.T) {
	const m = time.Minute
	correlated := debounce(sensor("a", "t=a"), 5*m, 0)
	correlated.Correlate = expr("data.k")
	playAll(t, []play{
		{"fires when it is quiet", "a +4m a +4m a +5m", debounce(sensor("a", "t=a"), 5*m, 0), "t(a3)", "debounced t 1; debounced t 2"},
		{"not before", "a +4m59s", debounce(sensor("a", "t=a"), 5*m, 0), "", ""},
		{"an event at the end is a new beginning", "a +5m a +5m", debounce(sensor("a", "t=a"), 5*m, 0), "t(a1) t(a2)", ""},
		{"waits at most", "a +4m a +4m a +2m", debounce(sensor("a", "t=a"), 5*m, 10*m), "t(a3)", "debounced t 1; debounced t 2"},
		{"after the longest wait it begins anew", "a +4m a +4m a +4m a +5m", debounce(sensor("a", "t=a"), 5*m, 10*m), "t(a3) t(a4)", "debounced t 1; debounced t 2"},
		{"of pairs", "a b +1m a b +5m", debounce(sensor("a b", "t=a && b"), 5*m, 0), "t(a3 b4)", "debounced t 2"},
		{"events are used when the condition holds", "a b +1m b +5m", debounce(sensor("a b", "t=a && b"), 5*m, 0), "t(a1 b2)", ""},
		{"the window is over for what was used", "a +11m", with(debounce(sensor("a", "t=a"), 11*m, 0), func(s *specs.Sensor) { s.Within = specs.Duration(5 * m) }), "t(a1)", ""},
		{"per key", `a{"k":1} +1m a{"k":2} +4m a{"k":2} +5m`, correlated, "t(a1)@#1 t(a3)@#2", "debounced t 2"},
		{"then cooldown", "a +5m a +5m a +6m", cooldown(debounce(sensor("a", "t=a"), 5*m, 0), 8*m), "t(a1) t(a3)", "suppressed t 2"},
		{"others fire at once", "a +5m", with(debounce(sensor("a", "t=a; u=a"), 5*m, 0), func(*specs.Sensor) {}), "u(a1) t(a1)", ""},
	})
}

func TestBatch(t *testing.T) {
	const m = time.Minute
	correlated := batch(sensor("a", "t=a"), 2, 0)
	correlated.Correlate = expr("data.k")
	playAll(t, []play{
		{"of a size", "a a a a a", batch(sensor("a", "t=a"), 2, 0), "t(a1|a2) t(a3|a4)", ""},
		{"of a time", "a +1m a +9m", batch(sensor("a", "t=a"), 0, 10*m), "t(a1|a2)", ""},
		{"the time begins with the first", "a +9m a +1m a +10m", batch(sensor("a", "t=a"), 0, 10*m), "t(a1|a2) t(a3)", ""},
		{"whichever comes first", "a +1m a a +10m", batch(sensor("a", "t=a"), 2, 10*m), "t(a1|a2) t(a3)", ""},
		{"of pairs", "a b a b", batch(sensor("a b", "t=a && b"), 2, 0), "t(a1 b2|a3 b4)", ""},
		{"of lists", "a a a a", with(batch(sensor("a", "t=a"), 2, 0), func(s *specs.Sensor) { s.Dependencies[0].Count = 2 }), "t(a1 a2|a3 a4)", ""},
		{"per key", `a{"k":1} a{"k":2} a{"k":1}`, correlated, "t(a1|a3)@#1", ""},
		{"then cooldown", "a a a a +1m a a", cooldown(batch(sensor("a", "t=a"), 2, 0), m), "t(a1|a2) t(a5|a6)", "suppressed t 4"},
	})
}

// TestBatchInput: what a batch gives its function, also when it is rendered
// later by the worker.
func TestBatchInput(t *testing.T) {
	two := batch(sensor("a b", "t=a && b"), 2, 0)
	two.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: text("in", "${ map(batch, .a.data.n + .b.data.n) }")}
	for _, tt := range []struct {
		name, script, path, want string
		spec                     *specs.Sensor
	}{
		{"by default the data", `a{"n":1} a{"n":2}`, "spec.triggers[0].input", "[map[n:1] map[n:2]]", batch(sensor("a", "t=a"), 2, 0)},
		{"by default of the last event", `a{"n":1} b{"n":2} b{"n":3} a{"n":4}`, "spec.triggers[0].input", "[map[n:2] map[n:4]]", batch(sensor("a b", "t=a && b"), 2, 0)},
		{"as the template says", `a{"n":1} b{"n":2} a{"n":3} b{"n":4}`, "in", "[3 7]", two},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := compileOK(t, tt.spec)
			r := newRun(t, p)
			r.play(tt.script)
			f := r.fired[0]
			if got := fmt.Sprint(f.Rendered[tt.path]); got != tt.want || p.InputPath(0) != tt.path {
				t.Errorf("the input is %s at %s, want %s at %s", got, p.InputPath(0), tt.want, tt.path)
			}
			again, err := p.RenderTrigger(0, r.contributing(f), 0)
			if got := fmt.Sprint(again[tt.path]); err != nil || got != tt.want {
				t.Errorf("rendered again it is %s, %v", got, err)
			}
		})
	}
}

// TestGatheredOverAChange: what was gathered fires when the trigger does not
// gather any more.
func TestGatheredOverAChange(t *testing.T) {
	r := newRun(t, compileOK(t, batch(sensor("a", "t=a"), 3, 0)))
	r.play("a a")
	r.p = compileOK(t, sensor("a", "t=a"))
	r.states[""] = r.p.Adopt(r.states[""])
	r.wake(t0.Add(time.Second))
	if got := r.firings(); got != "t(a1) t(a2)" || len(r.states) != 0 {
		t.Errorf("fires %q, %d states are left", got, len(r.states))
	}
}
