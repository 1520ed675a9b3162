package sensors

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// TestExplainAgreesWithRoute: what is told of the dependencies is what the
// program decides.
func TestExplainAgreesWithRoute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &specs.Sensor{Triggers: []specs.Trigger{{Name: "t"}}}
		for i := range rapid.IntRange(1, 4).Draw(t, "dependencies") {
			d := indexDependency(t, i)
			switch rapid.IntRange(0, 5).Draw(t, "transform") {
			case 0:
				d.Transform = specs.Transform{Expr: expr("{kind: data.kind, n: data.a.b}")}
			case 1:
				d.Transform = specs.Transform{JQ: expr(".data | select(.n) | {kind, n: .a.b}")}
			}
			s.Dependencies = append(s.Dependencies, d)
		}
		if rapid.Bool().Draw(t, "correlate") {
			s.Correlate = expr(rapid.SampledFrom([]string{"data.kind", "data.a.b", "data.n ?? type", "1 / 0 > data.n"}).Draw(t, "key"))
		}
		p, ds := Compile("s", s)
		if ds.HasErrors() {
			return
		}
		for range 5 {
			ev := indexEvent(t)
			routing := p.Route(NewView(ev))
			answers := p.Explain(ev)
			if b, err := json.Marshal(answers); err != nil {
				t.Fatalf("%v: %s", err, b)
			}
			told := map[string]Answer{}
			yes := 0
			for _, a := range answers {
				told[a.Dependency] = a
				if a.Outcome == Yes {
					yes++
				}
				fits := !slices.ContainsFunc(a.Selectors, func(s Selector) bool { return !s.Fits })
				if !fits && (a.Outcome != No || a.When != nil || a.Transform != nil || a.Correlate != nil) {
					t.Fatalf("%+v: asked although it does not fit", a)
				}
				checkTraces(t, &a)
			}
			if yes != len(routing.Matches) {
				t.Fatalf("%d dependencies want it, told are %+v", len(routing.Matches), answers)
			}
			for _, m := range routing.Matches {
				if a := answers[m.Dep]; a.Outcome != Yes || a.Key != m.Key {
					t.Fatalf("told %+v, the key is %q", a, m.Key)
				}
			}
			for _, v := range routing.Verdicts {
				if a := told[v.Dependency]; a.Outcome != v.Outcome || a.Detail != v.Detail {
					t.Fatalf("told %+v, the verdict is %+v", a, v)
				}
			}
			if wanted := p.Selects(ev); !wanted && yes > 0 {
				t.Fatal("a dependency wants it that does not select it")
			}
		}
	})
}

// checkTraces holds the traces of an answer against its outcome.
func checkTraces(t *rapid.T, a *Answer) {
	last := a.Transform
	if a.When != nil {
		last = a.When
	}
	if a.Correlate != nil {
		last = a.Correlate
	}
	if last == nil {
		return
	}
	switch a.Outcome {
	case Missing:
		// A correlation that gives nil is missing, too.
		if last.Outcome != expression.Missing && (last != a.Correlate || last.Value != nil) || last.Outcome == expression.Missing && last.Detail != a.Detail {
			t.Fatalf("%+v, its trace says %+v", a, last)
		}
	case Failed:
		if last.Outcome != expression.Failed {
			t.Fatalf("%+v, its trace says %+v", a, last)
		}
	case No:
		if last == a.When && last.Held() || last == a.Transform && last.Outcome != expression.Failed {
			t.Fatalf("%+v, its trace says %+v", a, last)
		}
	case Yes:
		if a.When != nil && !a.When.Held() {
			t.Fatalf("%+v, its filter says %+v", a, a.When)
		}
	default:
		t.Fatalf("outcome %s", a.Outcome)
	}
}

// tell writes an inspection down: before / decisions / after.
func tell(in *Inspection) string {
	state := func(s State) string {
		var out []string
		for _, t := range s.Triggers {
			w := t.Trigger + ":"
			for _, e := range t.Events {
				w += fmt.Sprintf(" %s%d", e.Dependency, e.Seq)
				if !e.Until.IsZero() {
					w += "<" + e.Until.Sub(t0).String()
				}
				for _, a := range e.Absences {
					w += "[" + a.Dependency + " " + a.State + " " + a.Until.Sub(t0).String() + "]"
				}
			}
			if len(t.Missing) > 0 {
				w += " needs " + strings.Join(t.Missing, ", ")
			}
			if !t.QuietUntil.IsZero() {
				w += " quiet<" + t.QuietUntil.Sub(t0).String()
			}
			if t.Gathered > 0 {
				w += fmt.Sprintf(" gathered %d", t.Gathered)
				if !t.Due.IsZero() {
					w += "<" + t.Due.Sub(t0).String()
				}
			}
			out = append(out, w)
		}
		for _, w := range s.Workflows {
			flow := "flow"
			for _, st := range w.Steps {
				flow += fmt.Sprintf(" %s=%s %d/%d", st.Trigger, st.State, st.Answers, st.Calls)
			}
			out = append(out, flow)
		}
		return strings.Join(out, "; ")
	}
	var decisions []string
	for _, d := range in.Decisions {
		s := d.Trigger + " " + d.Condition.Source + fmt.Sprint("=", d.Held)
		for _, u := range d.Uses {
			s += fmt.Sprintf(" %s%d", u.Dependency, u.Seq)
		}
		if len(d.Missing) > 0 {
			s += " without " + strings.Join(d.Missing, ", ")
		}
		for _, p := range d.Condition.Parts {
			s += fmt.Sprintf(" (%s: %s %v%s)", p.Source, p.Outcome, p.Value, p.Detail)
		}
		decisions = append(decisions, s)
	}
	return state(in.Before) + " / " + strings.Join(decisions, "; ") + " / " + state(in.After)
}

// TestInspect: what a step tells of the last event of a script.
func TestInspect(t *testing.T) {
	within := func(s *specs.Sensor) { s.Within = specs.Duration(10 * time.Minute) }
	for _, tt := range []struct {
		name, script string
		spec         *specs.Sensor
		want         string
	}{
		{"waits", `a`, sensor("a b", "t=a && b"), " / t a && b=false a1 without b (a: value true) (b: value false) / t: a1 needs b"},
		{"fires", `a +1m b`, with(sensor("a b", "t=a && b"), within), "t: a1<10m0s needs b / t a && b=true a1 b2 (a: value true) (b: value true) / "},
		{"default condition", `a`, with(sensor("a b", "t="), func(s *specs.Sensor) { s.Triggers[0].Condition = specs.Expr{} }), " / t a && b=false a1 without b (a: value true) (b: value false) / t: a1 needs b"},
		{"near miss", `a{"n":1} b{"n":2}`, sensor("a b", "t=a && b && b.data.n > 5"), "t: a1 needs b / t a && b && b.data.n > 5=false a1 b2 (a: value true) (b: value true) (b.data.n > 5: value false) / t: a1 b2"},
		{"missing", `a{"n":1}`, sensor("a", "t=a.data.x.y == 1"), " / t a.data.x.y == 1=false a1 (a.data.x.y: missing <nil>a.data.x) / t: a1"},
		{"two triggers", `a`, sensor("a b", "t=a; u=a && b"), " / t a=true a1; u a && b=false a1 without b (a: value true) (b: value false) / u: a1 needs b"},
		{"counts", `a a`, with(sensor("a b", "t=a && b"), func(s *specs.Sensor) { s.Dependencies[0].Count = 3 }), "t: a1 needs a (1 of 3), b / t a && b=false without a, b (a: value false) (b: skipped <nil>) / t: a1 a2 needs a (2 of 3), b"},
		{"expired before", `a +11m b`, with(sensor("a b", "t=a && b"), within), " / t a && b=false b2 without a (a: value false) (b: skipped <nil>) / t: b2<21m0s needs a"},
		{"absence", `d +1m x`, with(sensor("d h x", "t=d && absent(h) && x"), func(s *specs.Sensor) {
			s.Dependencies[1].Absent = &specs.Absent{For: specs.Duration(5 * time.Minute), After: "d"}
		}), "t: d1[h pending 5m0s] needs absent(h), x / t d && absent(h) && x=false d1 x2 without absent(h) (d: value true) (absent(h): value false) (x: skipped <nil>) / t: d1[h pending 5m0s] x2 needs absent(h)"},
		{"quiet", `a +1m a`, with(sensor("a", "t=a"), func(s *specs.Sensor) { s.Triggers[0].Cooldown = specs.Duration(5 * time.Minute) }), "t: quiet<5m0s / t a=true a2 / t: quiet<5m0s"},
		{"batch", `a +1m a`, with(sensor("a", "t=a"), func(s *specs.Sensor) {
			s.Triggers[0].Batch = &specs.Batch{Size: 3, Wait: specs.Duration(5 * time.Minute)}
		}), "t: gathered 1<5m0s / t a=true a2 / t: gathered 2<5m0s"},
		{"nothing for this event", `a c`, sensor("a b c", "t=a && b"), "t: a1 needs b /  / t: a1 needs b"},
		{"workflow", `a`, with(sensor("a", "t=a; u=triggers.t.output.ok"), func(s *specs.Sensor) { s.Triggers[1].After = []string{"t"} }), " / t a=true a1 / flow t=called 0/1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, ds := Compile("sen", tt.spec)
			if ds.HasErrors() {
				t.Fatal(ds)
			}
			r := newRun(t, p)
			in := &Inspection{}
			r.inspect = func() *Inspection { in = &Inspection{}; return in }
			r.play(tt.script)
			if got := tell(in); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
			if b, err := json.Marshal(in); err != nil {
				t.Errorf("%v: %s", err, b)
			}
			// It decides the same when nobody looks.
			plain := newRun(t, p)
			plain.play(tt.script)
			if a, b := r.firings(), plain.firings(); a != b {
				t.Errorf("fires %s when inspected, %s otherwise", a, b)
			}
		})
	}
}

func TestOutcomeText(t *testing.T) {
	for o := Yes; o <= Evicted; o++ {
		b, err := o.MarshalText()
		var again Outcome
		if err != nil || again.UnmarshalText(b) != nil || again != o || len(b) == 0 {
			t.Errorf("outcome %d is written %q", o, b)
		}
	}
	if err := new(Outcome).UnmarshalText([]byte("x")); err == nil {
		t.Error("an unknown outcome is read")
	}
}

func BenchmarkExplain(b *testing.B) {
	s := sensor("a b", "t=a && b && b.data.n > 5")
	s.Dependencies[0].When = expr(`data.kind == "x" && data.n > 1`)
	p := compileOK(b, s)
	ev := newRun(b, p).event("a", `{"kind":"x","n":5}`, 0)
	b.Run("route", func(b *testing.B) {
		for b.Loop() {
			p.Route(NewView(ev))
		}
	})
	b.Run("explain", func(b *testing.B) {
		for b.Loop() {
			p.Explain(ev)
		}
	})
}

// TestOutcomeNames: each outcome has a name, which is its own in lower case.
func TestOutcomeNames(t *testing.T) {
	src, err := os.ReadFile("sensors.go")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(src), "Yes Outcome = iota\n")
	block, _, _ = strings.Cut(block, "\n)\n")
	names := append([]string{"Yes"}, regexp.MustCompile(`(?m)^\t([A-Z]\w+)$`).FindAllString(block, -1)...)
	if len(names) < 14 {
		t.Fatalf("only %d outcomes: %q", len(names), names)
	}
	for i, name := range names {
		var back Outcome
		text, _ := Outcome(i).MarshalText()
		if string(text) != strings.ToLower(strings.TrimSpace(name)) || back.UnmarshalText(text) != nil || int(back) != i {
			t.Errorf("%s is %q", name, text)
		}
	}
}
