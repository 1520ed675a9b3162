package sensors

import (
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// play is a run of a script and what is to be seen.
type play struct {
	name, script string
	spec         *specs.Sensor
	fires, says  string
}

// playAll plays each with the state stored after every step, and without.
func playAll(t *testing.T, plays []play) {
	for _, tt := range plays {
		t.Run(tt.name, func(t *testing.T) {
			for _, code := range []bool{false, true} {
				r := newRun(t, compileOK(t, tt.spec))
				r.code = code
				if got := r.play(tt.script); got != tt.fires {
					t.Errorf("fires %q, want %q (state stored: %v)", got, tt.fires, code)
				}
				if got := strings.Join(r.said, "; "); got != tt.says {
					t.Errorf("says %q, want %q", got, tt.says)
				}
			}
		})
	}
}

// with changes a sensor.
func with(s *specs.Sensor, change func(*specs.Sensor)) *specs.Sensor {
	change(s)
	return s
}

// TestTransform has a case for each rule of docs/sensors.md about transform.
func TestTransform(t *testing.T) {
	transform := func(s *specs.Sensor, src string) *specs.Sensor {
		s.Dependencies[0].Transform = specs.Transform{Expr: expr(src)}
		return s
	}
	program := func(s *specs.Sensor, src string) *specs.Sensor {
		s.Dependencies[0].Transform = specs.Transform{JQ: expr(src)}
		return s
	}
	playAll(t, []play{
		{"before when", `a{"o":{"n":1}} a{"o":{"n":9}}`, with(transform(sensor("a", "t=a"), "data.o"), func(s *specs.Sensor) {
			s.Dependencies[0].When = expr("data.n == 9 && a.data.n == 9")
		}), "t(a2)", "no a 1"},
		{"before correlate", `a{"o":{"id":"x"}} b{"id":"x"}`, with(transform(sensor("a b", "t=a && b"), "data.o"), func(s *specs.Sensor) {
			s.Correlate = expr("data.id")
		}), "t(a1 b2)@x", ""},
		{"seen by conditions", `a{"o":{"n":1}} b{"n":1}`, transform(sensor("a b", "t=a && b && a.data.n == b.data.n"), "data.o"), "t(a1 b2)", ""},
		{"any value, of any attribute", `a{"n":1} b`, transform(sensor("a b", "t=a.data == 't.a 1' && b"), `type + " " + string(a.data.n)`), "t(a1 b2)", ""},
		{"nil is a value", "a", transform(sensor("a", "t=a && a.data == nil"), "nil"), "t(a1)", ""},
		{"missing", `a{"n":1}`, transform(sensor("a", "t=a"), "data.o.n"), "", "missing a 1 data.o"},
		{"failed", `a{"n":0}`, transform(sensor("a", "t=a"), "1 % data.n"), "", "failed a 1 runtime error: integer divide by zero"},
		{"of one dependency only", `a{"n":1} b{"n":1}`, transform(sensor("a b", "t=a && b && a.data == b.data.n"), "data.n"), "t(a1 b2)", ""},
		{"lists", `a{"n":1} a{"n":2}`, transform(sensor("a:all", "t=sum(a, .data) == 3"), "data.n"), "t(a1 a2)", ""},
		{"jq", `a{"o":{"id":"x"}} b{"id":"x"}`, with(program(sensor("a b", "t=a && b && a.data.t == 't.a'"), ".data.o + {t: .type}"), func(s *specs.Sensor) {
			s.Correlate = expr("data.id")
		}), "t(a1 b2)@x", ""},
		{"jq, exact integers", `a{"n":9007199254740993}`, program(sensor("a", "t=a.data == 9007199254740993"), ".data.n"), "t(a1)", ""},
		{"jq, no value", `a{"n":1} a{"n":5}`, program(sensor("a", "t=a"), ".data | select(.n > 1)"), "t(a2)", "no a 1"},
		{"jq, two values", `a{"n":[1,2]}`, program(sensor("a", "t=a"), ".data.n[]"), "", "failed a 1 the jq program gave more than one value; put them into a list: […]"},
		{"jq, failed", `a{"n":0}`, program(sensor("a", "t=a"), "1 / .data.n"), "", "failed a 1 cannot divide number (1) by: number (0)"},
		{"jq, the budget", `a{"n":0}`, program(sensor("a", "t=a"), "def f: f; f"), "", "failed a 1 " + expression.ErrBudget.Error()},
		{"jq, lists", `a{"n":1} a{"n":2}`, program(sensor("a:all", "t=sum(a, .data) == 3"), ".data.n"), "t(a1 a2)", ""},
	})

	s := transform(sensor("a", "t=a"), "{v: data.n, subject: request}")
	s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: text("in", "${ a.data.v + 1 }")}
	p := compileOK(t, s)
	r := newRun(t, p)
	r.play(`a{"n":1}`)
	if got := r.fired[0].Rendered["in"]; got != int64(2) && got != 2 {
		t.Errorf("renders %v", r.fired[0].Rendered)
	}
	if again, err := p.RenderTrigger(0, r.contributing(r.fired[0]), 0); err != nil || again["in"] != r.fired[0].Rendered["in"] {
		t.Errorf("renders again %v, %v", again, err)
	}
	if !p.NeedsRequest() {
		t.Error("the request the transform reads is not noticed")
	}
}

// TestTransformIsBeforeIndex checks that what a transform gives is not looked
// for in the event itself.
func TestTransformIsBeforeIndex(t *testing.T) {
	s := sensor("a", "t=a")
	s.Dependencies[0].Transform = specs.Transform{Expr: expr("{kind: data.was}")}
	s.Dependencies[0].Type = "t.a"
	s.Dependencies[0].When = expr("data.kind == 'push'")
	r := newRun(t, compileOK(t, s))
	x := NewIndex([]*Program{r.p})
	for data, want := range map[string]int{`{"was":"push","kind":"tag"}`: 1, `{"was":"tag","kind":"push"}`: 0} {
		v := NewView(r.event("a", data, 0))
		found, undecided := x.Lookup(v, nil)
		if len(found) != 1 || len(undecided) != 0 {
			t.Fatalf("%s: found %v, undecided %v", data, found, undecided)
		}
		if got := len(found[0].Route(v).Matches); got != want {
			t.Errorf("%s: %d matches, want %d", data, got, want)
		}
	}
}

// TestCount has a case for each row of docs/sensors.md about count.
func TestCount(t *testing.T) {
	count := func(s *specs.Sensor, n int) *specs.Sensor {
		s.Dependencies[0].Count = n
		return s
	}
	within := func(s *specs.Sensor) { s.Within = specs.Duration(10 * time.Minute) }
	playAll(t, []play{
		{"alone", "a a a a a a a", count(sensor("a", "t=a"), 3), "t(a1 a2 a3) t(a4 a5 a6)", ""},
		{"latest", "a a a b", count(sensor("a b", "t=a && b"), 2), "t(a2 a3 b4)", "superseded at 1"},
		{"first", "a a a a b b", count(sensor("a:first b:first", "t=a && b"), 2), "t(a1 a2 b5) t(a3 a4 b6)", ""},
		{"first catches up", "b b a a a a", count(sensor("a:first b:first", "t=a && b"), 2), "t(a3 a4 b1) t(a5 a6 b2)", ""},
		{"all", "a a a b a b", count(sensor("a:all b", "t=a && b"), 2), "t(a1 a2 a3 b4)", ""},
		{"not enough", "a b", count(sensor("a b", "t=a && b"), 2), "", ""},
		{"or", "b a b a", count(sensor("a b", "t=a || b"), 2), "t(b1) t(b3) t(a2 a4)", ""},
		{"sliding", "a +6m a +6m a", with(count(sensor("a", "t=a"), 3), within), "", "expired at 1"},
		{"inside the window", "a +6m a +6m a", with(count(sensor("a", "t=a"), 2), within), "t(a1 a2)", ""},
		{"list", `a{"n":1} a{"n":4} a{"n":2}`, count(sensor("a", "t=sum(a, .data.n) > 5"), 2), "t(a2 a3)", "superseded at 1"},
		{"list of one", `a{"n":1}`, count(sensor("a", "t=len(a) == 1 && a[0].data.n == 1"), 1), "t(a1)", ""},
		{"two triggers", "a a b", count(sensor("a b", "t=a; u=a && b"), 2), "t(a1 a2) u(a1 a2 b3)", ""},
	})
}

// TestDistinct has a case for each row of docs/sensors.md about distinct.
func TestDistinct(t *testing.T) {
	distinct := func(s *specs.Sensor, count int) *specs.Sensor {
		s.Dependencies[0].Count, s.Dependencies[0].Distinct = count, expr("a.data.v")
		return s
	}
	x, y := `a{"v":"x"} `, `a{"v":"y"} `
	playAll(t, []play{
		{"count", x + x + y, distinct(sensor("a", "t=a"), 2), "t(a2 a3)", "superseded at 1"},
		{"all", x + x + y + "b", distinct(sensor("a:all b", "t=a && b"), 0), "t(a2 a3 b4)", "superseded at 1"},
		{"first", x + x + y + "b b b", distinct(sensor("a:first b", "t=a && b"), 0), "t(a1 b4) t(a3 b5)", "superseded at 2"},
		{"waiting only", x + x, distinct(sensor("a:first", "t=a"), 0), "t(a1) t(a2)", ""},
		{"window", x + "+11m " + x + "b", with(distinct(sensor("a:all b", "t=a && b"), 0), func(s *specs.Sensor) {
			s.Within = specs.Duration(10 * time.Minute)
		}), "t(a2 b3)", "expired at 1"},
		{"waits from now on", x + "+6m " + x + "+6m b", with(distinct(sensor("a:all b", "t=a && b"), 0), func(s *specs.Sensor) {
			s.Within = specs.Duration(10 * time.Minute)
		}), "t(a2 b3)", "superseded at 1"},
		{"equality", `a{"v":1} a{"v":1.0} a{"v":"1"}`, distinct(sensor("a", "t=a"), 2), "t(a2 a3)", "superseded at 1"},
		{"missing", `a{} a{"v":null} a{"v":1}`, distinct(sensor("a", "t=a"), 2), "", "missing a 1 a.data.v; missing a 2 a.data.v"},
		{"failed", `a{"v":0}`, with(distinct(sensor("a", "t=a"), 2), func(s *specs.Sensor) {
			s.Dependencies[0].Distinct = expr("1 % data.v")
		}), "", "failed a 1 runtime error: integer divide by zero"},
		{"after the transform", `a{"w":"x"} a{"w":"y"}`, with(distinct(sensor("a", "t=a"), 2), func(s *specs.Sensor) {
			s.Dependencies[0].Transform = specs.Transform{Expr: expr("{v: data.w}")}
		}), "t(a1 a2)", ""},
		{"the newer is not kept", x + "b +6m " + `a{"v":"z"} +5m ` + x + `a{"v":"z"}`, with(distinct(sensor("a:first b", "t=b && len(a) < 1; u=a && b && len(a) > 5"), 9), func(s *specs.Sensor) {
			s.Within = specs.Duration(10 * time.Minute)
		}), "", "expired at 1; expired bt 2; expired au 1; expired bu 2; superseded at 5; superseded au 5"},
		{"two triggers", x + "b " + x, distinct(sensor("a:all b", "t=a && b; u=a && b && len(a) > 1"), 0), "t(a1 b2)", "superseded au 1"},
	})
}

// TestAbsent has a case for each row of docs/sensors.md about absent.
func TestAbsent(t *testing.T) {
	absent := func(triggers string) *specs.Sensor {
		s := sensor("d h x", triggers)
		s.Dependencies[1].Absent = &specs.Absent{For: specs.Duration(5 * time.Minute), After: "d"}
		return s
	}
	within := func(s *specs.Sensor) { s.Within = specs.Duration(10 * time.Minute) }
	beat := absent("t=absent(h)")
	beat.Dependencies[0].Event = "h"
	late := absent("t=d && absent(h)")
	playAll(t, []play{
		{"absent", "d +5m x", absent("t=absent(h)"), "t(d1)", ""},
		{"answered", "d +4m h +2m x", absent("t=absent(h)"), "", "answered ht 1"},
		{"at the deadline it is too late", "d +5m h", absent("t=absent(h)"), "t(d1)", ""},
		{"once", "d +5m x +5m h +1h x", absent("t=absent(h)"), "t(d1)", ""},
		{"before does not count", "h d +5m x", absent("t=absent(h)"), "t(d2)", ""},
		{"nothing began it", "h +1h x", absent("t=absent(h)"), "", ""},
		{"begins again", "d +4m d +4m x +1m x", absent("t=absent(h)"), "t(d2)", "superseded dt 1"},
		{"again after it fired", "d +5m d +5m x", absent("t=absent(h)"), "t(d1) t(d2)", ""},
		{"with another", "d +5m x", absent("t=absent(h) && x"), "t(d1 x2)", ""},
		{"another came before", "x d +5m d", absent("t=absent(h) && x"), "t(d2 x1)", ""},
		{"waits for another", "d +6m h +4m x", with(absent("t=absent(h) && x"), func(s *specs.Sensor) { s.Within = specs.Duration(time.Hour) }), "t(d1 x3)", ""},
		{"gone with its event", "d +10m x", with(absent("t=absent(h) && x"), within), "", "expired dt 1"},
		{"an alternative", "d h x", absent("t=d && (absent(h) || x)"), "t(d1 x3)", "answered ht 1"},
		{"two triggers", "d h +5m x", absent("t=absent(h); u=d && x"), "u(d1 x3)", "answered ht 1"},
		{"all of them", "d x +5m h", absent("t="), "t(d1 x2)", ""},
		{"payloads", `d{"n":1} +5m d{"n":2} +5m x`, absent("t=absent(h) && d.data.n == 2"), "t(d2)", "superseded dt 1"},
		{"payloads, answered", `d{"n":2} h +5m x`, absent("t=absent(h) && d.data.n == 2"), "", "answered ht 1"},
		{"of itself", "h +4m h +4m h +5m x", beat, "t(d3)", "answered ht 1; answered ht 2"},
		{"per key", `d{"k":"p"} d{"k":"q"} h{"k":"p"} +5m x{"k":"z"}`, with(absent("t=absent(h)"), func(s *specs.Sensor) { s.Correlate = expr("data.k") }), "t(d2)@q", "answered ht 1"},
	})

	r := newRun(t, compileOK(t, late))
	r.play("d +1h x")
	if len(r.states) != 0 || len(r.fired) != 1 {
		t.Fatalf("%d states, fires %s", len(r.states), r.firings())
	}
	f := r.fired[0]
	if !f.Time.Equal(t0.Add(5*time.Minute)) || f.Last != 1 {
		t.Errorf("fires at %v for %d, not at the deadline", f.Time, f.Last)
	}
	// The deadline is a part of the key.
	other := absent("t=d && absent(h)")
	other.Dependencies[1].Absent.For = specs.Duration(time.Minute)
	o := newRun(t, compileOK(t, other))
	if o.play("d +1h x"); o.fired[0].Key == f.Key {
		t.Error("the key does not cover the deadline")
	}
	// An answer frees what cannot be used any more.
	r = newRun(t, compileOK(t, late))
	if r.play("d h"); len(r.states) != 0 {
		t.Errorf("%v is kept", r.states)
	}
}

// TestAbsentAfterReload checks that an answer counts for a condition that asks
// for it only later.
func TestAbsentAfterReload(t *testing.T) {
	spec := func(cond string) *Program {
		s := sensor("d h x", "t="+cond)
		s.Dependencies[1].Absent = &specs.Absent{For: specs.Duration(5 * time.Minute), After: "d"}
		return compileOK(t, s)
	}
	for script, want := range map[string]string{"d +1m h": "", "d +6m h": "t(d1)", "d": "t(d1)"} {
		r := newRun(t, spec("d && x"))
		r.play(script)
		r.p = spec("d && absent(h)")
		st := r.p.Adopt(r.states[""])
		if r.states[""] = st; st.Empty() {
			delete(r.states, "")
		}
		r.wake(t0.Add(time.Hour))
		if got := r.firings(); got != want || len(r.states) != 0 {
			t.Errorf("%s: fires %q, want %q; %d states", script, got, want, len(r.states))
		}
	}
}

// TestCooldown has a case for each row of docs/sensors.md about cooldown.
func TestCooldown(t *testing.T) {
	cooldown := func(s *specs.Sensor, minutes int) *specs.Sensor {
		s.Triggers[0].Cooldown = specs.Duration(time.Duration(minutes) * time.Minute)
		return s
	}
	playAll(t, []play{
		{"alone", "a +2m a +3m a", cooldown(sensor("a", "t=a"), 5), "t(a1) t(a3)", "suppressed t 2"},
		{"used up", "a b +1m a b +5m a b", cooldown(sensor("a b", "t=a && b"), 5), "t(a1 b2) t(a5 b6)", "suppressed t 4"},
		{"what waits", "a b +1m a +5m b", cooldown(sensor("a b", "t=a && b"), 5), "t(a1 b2) t(a3 b4)", ""},
		{"queue", "a a b b", cooldown(sensor("a:first b", "t=a && b"), 5), "t(a1 b3)", "suppressed t 4"},
		{"per trigger", "a a", cooldown(sensor("a", "t=a; u=a"), 5), "t(a1) u(a1) u(a2)", "suppressed t 2"},
		{"per key", `a{"k":"x"} a{"k":"y"} a{"k":"x"}`, with(cooldown(sensor("a", "t=a"), 5), func(s *specs.Sensor) { s.Correlate = expr("data.k") }), "t(a1)@x t(a2)@y", "suppressed t 3"},
		{"absence", "d +5m d +5m x", with(cooldown(sensor("d h x", "t=absent(h)"), 6), func(s *specs.Sensor) {
			s.Dependencies[1].Absent = &specs.Absent{For: specs.Duration(5 * time.Minute), After: "d"}
		}), "t(d1)", "suppressed t 2"},
	})

	// It is kept over a reload and counts from the same firing.
	r := newRun(t, compileOK(t, cooldown(sensor("a", "t=a"), 5)))
	r.play("a")
	if at, ok := r.p.NextWake(r.states[""]); !ok || !at.Equal(t0.Add(5*time.Minute)) {
		t.Errorf("wakes at %v, %v", at, ok)
	}
	r.p = compileOK(t, cooldown(sensor("a", "u=a; t=a"), 0))
	r.p.triggers[1].cooldown = int64(2 * time.Minute)
	if got := r.play("+1m a +1m a"); got != "t(a1) u(a2) u(a3) t(a3)" {
		t.Errorf("fires %q", got)
	}
	if r.wake(t0.Add(time.Hour)); len(r.states) != 0 {
		t.Errorf("%v is kept", r.states)
	}
	// Without a cooldown any more, nothing is left of it.
	r = newRun(t, compileOK(t, cooldown(sensor("a", "t=a"), 5)))
	r.play("a")
	r.p = compileOK(t, sensor("a", "t=a"))
	if r.wake(t0); len(r.states) != 0 {
		t.Errorf("%v is kept", r.states)
	}
}
