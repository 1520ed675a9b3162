package sensors

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// conjunct draws a part of a filter: guards of every kind, what looks like
// one, and what fails.
func conjunct(t *rapid.T) string {
	path := rapid.SampledFrom([]string{"data.kind", "data.n", "data.a.b", `data["x-y"].z`, "type", "subject", "extensions.region", "d0.data.kind"}).Draw(t, "path")
	value := rapid.SampledFrom([]string{`"push"`, `"tag"`, "1", "1.0", "-2.5", "true", `"1"`, "9007199254740993", "nil"}).Draw(t, "value")
	return rapid.SampledFrom([]string{
		path + " == " + value,
		value + " == " + path,
		path + ` in ["push", 1, true]`,
		path + " != " + value,
		"data.n > 0",
		"data.a.b.c == 1",
		"(" + path + " == " + value + " || data.n == 1)",
		"data?.a?.b == " + value,
	}).Draw(t, "conjunct")
}

func indexEvent(t *rapid.T) *bus.Event {
	value := rapid.SampledFrom([]any{"push", "tag", 1, 1.0, -2.5, true, "1", nil, map[string]any{"b": "push"}, []any{1}, json.Number("9007199254740993"), json.Number("9007199254740992.0")})
	data := map[string]any{}
	for _, k := range []string{"kind", "n", "a", "x-y"} {
		if rapid.Bool().Draw(t, "has "+k) {
			data[k] = value.Draw(t, k)
		}
	}
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	ev := &bus.Event{
		ID: "1", Source: "/s", Seq: 7, StoredAt: t0, DataContentType: "application/json", Data: b,
		EventSource: rapid.SampledFrom([]string{"s", "o"}).Draw(t, "source"), EventName: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "event"),
		Type: rapid.SampledFrom([]string{"push", "tag"}).Draw(t, "type"), Subject: rapid.SampledFrom([]string{"", "push"}).Draw(t, "subject"),
		Extensions: map[string]string{"region": "push"},
	}
	switch rapid.IntRange(0, 9).Draw(t, "payload") {
	case 0:
		ev.Data = nil
	case 1:
		ev.Data, ev.DataContentType = []byte("text"), "text/plain"
	case 2:
		ev.Data = []byte(`{"broken":`)
	case 3:
		ev.Data = []byte(`[1]`)
	}
	return ev
}

// indexDependency is the dependency number i of a sensor.
func indexDependency(t *rapid.T, i int) specs.Dependency {
	d := specs.Dependency{Name: fmt.Sprintf("d%d", i)}
	rapid.SampledFrom([]func(){
		func() { d.Source, d.Event = "s", "a" },
		func() { d.Source, d.Event = "s", "b" },
		func() { d.Source, d.Event, d.Type = "s", "a", "push" },
		func() { d.Source, d.Event, d.Subject = "s", "a", "p*" },
		func() { d.Type = "push" },
		func() { d.Type, d.Source = "push", "o" },
		func() { d.Type, d.Subject = "tag", "push" },
		func() { d.Source = "*" },
	}).Draw(t, "selector")()
	for n := range rapid.IntRange(0, 3).Draw(t, "conjuncts") {
		if n > 0 {
			d.When.Source += " && "
		}
		part := conjunct(t)
		if i != 0 && len(part) > 3 && part[:3] == "d0." {
			part = "data.n == 1"
		}
		d.When = expr(d.When.Source + part)
	}
	return d
}

// TestIndexAgainstScan: through the index an event reaches the same
// dependencies with the same keys as without, and they are those whose filter
// as a whole is true; what could not be decided is told as often.
func TestIndexAgainstScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ps []*Program
		var sensors []*specs.Sensor
		for range rapid.IntRange(1, 6).Draw(t, "sensors") {
			s := &specs.Sensor{Triggers: []specs.Trigger{{Name: "t"}}}
			for i := range rapid.IntRange(1, 3).Draw(t, "dependencies") {
				d := indexDependency(t, i)
				s.Dependencies = append(s.Dependencies, d)
			}
			p, ds := Compile("s", s)
			if ds.HasErrors() { // d0 is not a name of the others, type is text
				continue
			}
			ps, sensors = append(ps, p), append(sensors, s)
		}
		x := NewIndex(ps)
		indexed := NewView(nil)
		for range 5 {
			ev := indexEvent(t)
			type told struct{ missing, failed int }
			want, got := make([]told, len(ps)), make([]told, len(ps))
			note := func(to *told, o Outcome) {
				switch o {
				case Missing:
					to.missing++
				case Failed:
					to.failed++
				}
			}
			var direct, found [][]Match
			for i, p := range ps {
				r := p.Route(NewView(ev))
				direct = append(direct, slices.Clone(r.Matches))
				for _, v := range r.Verdicts {
					note(&want[i], v.Outcome)
				}
				// A dependency matches when its filter as a whole is true.
				env, envErr := ev.Attributes(true, true)
				for j, d := range sensors[i].Dependencies {
					holds := p.deps[j].selects(ev)
					if holds && !d.When.IsZero() {
						w, ds := expression.Compile(d.When, "when", expression.EventScope(d.Name), expression.WantBool)
						if ds.HasErrors() {
							t.Fatal(ds)
						}
						ok, err := w.Bool(env)
						holds = ok && err == nil && envErr == nil
						if envErr != nil && !w.NeedsData() {
							holds, _ = w.Bool(env)
						}
					}
					matched := slices.ContainsFunc(r.Matches, func(m Match) bool { return m.Dep == j })
					if holds != matched {
						t.Fatalf("%s on %s: matched %v, the filter says %v", d.When.Source, ev.Data, matched, holds)
					}
				}
			}
			indexed.Reset(ev)
			ask, undecided := x.Lookup(indexed, nil)
			for _, u := range slices.Clone(undecided) {
				for _, m := range x.Groups()[u.Group].Members {
					note(&got[slices.Index(ps, m.Program)], u.Outcome)
				}
			}
			for i, p := range ps {
				if !slices.Contains(ask, p) {
					found = append(found, nil)
					continue
				}
				r := p.Route(indexed)
				found = append(found, slices.Clone(r.Matches))
				for _, v := range r.Verdicts {
					note(&got[i], v.Outcome)
				}
			}
			for i := range ps {
				if !slices.Equal(direct[i], found[i]) {
					t.Fatalf("%+v on %+v: by the index %v, without %v", sensors[i], ev, found[i], direct[i])
				}
				if want[i] != got[i] {
					t.Fatalf("%+v on %s: by the index %+v, without %+v", sensors[i].Dependencies, ev.Data, got[i], want[i])
				}
			}
		}
	})
}

// TestGuards: what is taken for a guard, and that the index finds by it.
func TestGuards(t *testing.T) {
	for when, want := range map[string]bool{
		`data.kind == "push"`:                       true,
		`"push" == data.kind`:                       true,
		`data.kind in ["push", "tag"]`:              true,
		`data.n > 1 && data.kind == "push"`:         true,
		`extensions.region == "eu"`:                 true,
		`type == "push"`:                            true,
		`data.a.b == -1.5`:                          true,
		`x.data.kind == "push"`:                     true,
		`data.kind == "push" || data.n == 1`:        false,
		`data.kind == data.other`:                   false,
		`data.kind == nil`:                          false,
		`data?.kind == "push"`:                      false,
		`data.n == 9007199254740993`:                false,
		`data.kind in []`:                           false,
		`data.list[0] == 1`:                         false,
		`data.kind startsWith "push"`:               false,
		`not (data.kind == "push")`:                 false,
		`let k = data.kind; k == "push" && true`:    false,
		`any(data.list, # == 1) && data.kind == ""`: true,
	} {
		s := &specs.Sensor{Dependencies: []specs.Dependency{{Name: "x", Source: "s", Event: "e", When: expr(when)}}, Triggers: []specs.Trigger{{Name: "t"}}}
		p := compileOK(t, s)
		if p.guarded != want {
			t.Errorf("%s: guarded is %v", when, p.guarded)
		}
	}
}
