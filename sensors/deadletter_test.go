package sensors

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// handled gives a trigger a deadLetter with an input.
func handled(s *specs.Sensor, trigger int, fields ...string) *specs.Sensor {
	in := map[string]any{}
	for _, f := range fields {
		name, src, _ := strings.Cut(f, "=")
		in[name] = text("in."+name, "${ "+src+" }")
	}
	s.Triggers[trigger].DeadLetter = &specs.DeadLetter{Function: "tell", Input: specs.Template{Set: true, Path: "in", Root: in}}
	return s
}

// TestDeadLetterInput: what the templates of a deadLetter see.
func TestDeadLetterInput(t *testing.T) {
	const own = "e=triggers.b.error; o=triggers.b.outcome; out=triggers.b.output.code; n=triggers.b.attempts"
	for _, c := range []struct {
		name, script string
		s            *specs.Sensor
		trigger      int
		fields       string
		firing       int
		want         string
	}{
		{"its own result", "a", sensor("a", "b=a"), 0, own, 0, `{"e":"broken","n":3,"o":"failed","out":7}`},
		{"events", `a{"n":1} c{"n":2}`, sensor("a c", "b=a && c"), 0, "x=a.data.n + c.data.n; id=a.id", 0, `{"id":"1","x":3}`},
		{"an event that need not be there", `a{"n":1}`, sensor("a c", "b=a || c"), 0, "x=c.data.n ?? 0", 0, `{"x":0}`},
		{
			"of a step, with the results before it", `a{"n":1} b!{"image":"i"}`, after(sensor("a", "b=a"), "d<b"), 1,
			"n=a.data.n; image=triggers.b.output.image; e=triggers.d.error", 1, `{"e":"broken","image":"i","n":1}`,
		},
		{
			"of an item", `a{"l":["x","y"]}`, foreach(sensor("a", "b=a"), "a.data.l", "", 0), 0,
			"item=item; index=index; out=triggers.b.output.code", 1, `{"index":1,"item":"y","out":7}`,
		},
		{"of a batch", `a{"n":1} a{"n":2}`, batch(sensor("a", "b=a"), 2, 0), 0, "all=map(batch, .a.data.n); e=triggers.b.error", 0, `{"all":[1,2],"e":"broken"}`},
		{"a list of events", `a{"n":1} a{"n":2} c`, sensor("a:all c", "b=a && c"), 0, "all=map(a, .data.n)", 0, `{"all":[1,2]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := compileOK(t, handled(c.s, c.trigger, strings.Split(strings.ReplaceAll(c.fields, "; ", ";"), ";")...))
			r := newRun(t, p)
			r.play(c.script)
			f := r.fired[c.firing]
			got, err := p.RenderDeadLetter(c.trigger, failure(f, r.get))
			b, _ := json.Marshal(got["in"])
			if err != nil || string(b) != c.want || p.DeadLetterInputPath(c.trigger) != "in" {
				t.Errorf("%s, %v, want %s", b, err, c.want)
			}
		})
	}
}

// failure is a firing whose call failed for good.
func failure(f Firing, kept func(uint64) *bus.Event) Failure {
	r := Result{
		Function: "f", Sensor: "sen", Trigger: f.Trigger, Firing: f.Key, Failed: true, Error: "broken", Attempts: 3,
		Output: []byte(`{"code":7}`), ContentType: "application/json", Time: t0.Add(time.Hour),
	}
	return Failure{Events: f.Events, Item: f.Item, Result: r.Event(1000), Kept: kept}
}

// TestDeadLetterLoadsWhatItReads: an event that no template reads may be gone.
func TestDeadLetterLoadsWhatItReads(t *testing.T) {
	for _, c := range []struct{ name, field, err string }{
		{"its own result", "triggers.d.error", ""},
		{"the other event", "c.data.n", ""},
		{"an event that is gone", "a.data.n", "in: event 1 is no longer stored"},
		{"a result that is gone", "triggers.b.output", "in.x: missing `triggers.b`"},
	} {
		p := compileOK(t, handled(after(sensor("a c", "b=a && c"), "d<b"), 1, "x="+c.field))
		r := newRun(t, p)
		r.play(`a{"n":1} c{"n":2} b!1`)
		_, err := p.RenderDeadLetter(1, failure(r.fired[1], func(seq uint64) *bus.Event {
			if seq == 1 || seq == 3 {
				return nil
			}
			return r.events[seq]
		}))
		if err == nil && c.err != "" || err != nil && (c.err == "" || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}

// TestDeadLetterWithoutTemplates gets what the result would tell.
func TestDeadLetterWithoutTemplates(t *testing.T) {
	s := sensor("a", "b=a")
	s.Triggers[0].DeadLetter = &specs.DeadLetter{Function: "tell"}
	p := compileOK(t, s)
	r := newRun(t, p)
	r.play("a")
	if got, err := p.RenderDeadLetter(0, failure(r.fired[0], r.get)); got != nil || err != nil || p.DeadLetterInputPath(0) != "" || !p.HasDeadLetter(0) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestDeadLetterIsNotFired: the program fires the same, with the same keys and
// state, with and without one.
func TestDeadLetterIsNotFired(t *testing.T) {
	play := func(s *specs.Sensor) (*Program, *run) {
		p := compileOK(t, s)
		r := newRun(t, p)
		r.play(`a{"n":1} b!fail a b!1`)
		return p, r
	}
	p, plain := play(sensor("a", "b=a"))
	with, r := play(handled(sensor("a", "b=a"), 0, "e=triggers.b.error"))
	if plain.firings() != r.firings() || plain.fired[0].Key != r.fired[0].Key || r.fired[0].Flow != "" || len(r.states) != 0 || with.Followed("b") ||
		p.StateFingerprint() != with.StateFingerprint() {
		t.Errorf("fires %s, without %s; flow %q", r.firings(), plain.firings(), r.fired[0].Flow)
	}
}

func TestDeadLetterDiagnostics(t *testing.T) {
	for _, c := range []struct{ name, field, want string }{
		{"a dependency that is not waited for", "c.id", "the template reads c, but the condition of trigger b does not wait for it"},
		{"a step that is not before it", "triggers.d.error", "unknown field d"},
		{"no field of a result", "triggers.b.reason", "reason"},
		{"an item without foreach", "item", "item"},
	} {
		_, ds := Compile("sen", handled(after(sensor("a c", "b=a; e=c"), "d<b"), 0, "x="+c.field))
		if err := ds.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
