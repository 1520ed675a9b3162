package sensors

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// after makes triggers "name<a,b=condition" follow others, "name!a" their
// failure.
func after(s *specs.Sensor, steps string) *specs.Sensor {
	for step := range strings.SplitSeq(steps, ";") {
		head, cond, _ := strings.Cut(strings.TrimSpace(step), "=")
		at := strings.IndexAny(head, "<!")
		t := specs.Trigger{Name: head[:at], Function: "f"}
		if cond != "" {
			t.Condition = expr(cond)
		}
		names := strings.Split(head[at+1:], ",")
		if head[at] == '!' {
			t.OnFailure = names
		} else {
			t.After = names
		}
		s.Triggers = append(s.Triggers, t)
	}
	return s
}

func TestWorkflow(t *testing.T) {
	one := func(steps string) *specs.Sensor { return after(sensor("a", "b=a"), steps) }
	correlated := one("d<b")
	correlated.Correlate = expr("data.k")
	playAll(t, []play{
		{"a step follows a success", "a b!1", one("d<b"), "b(a1) d(a1 triggers.b2)", ""},
		{"not before", "a", one("d<b"), "b(a1)", ""},
		{"a failure skips what follows", "a b!fail", one("d<b; e<d"), "b(a1)", "skipped d 2 b failed; skipped e 2 d was skipped"},
		{"a failure is followed", "a b!fail", one("d<b; n!b"), "b(a1) n(a1 triggers.b2)", "skipped d 2 b failed"},
		{"no failure", "a b!1", one("d<b; n!b; m<n"), "b(a1) d(a1 triggers.b2)", ""},
		{"a failure of any", "a b!1 c!fail", after(sensor("a", "b=a; c=a"), "d<b,c; n!b,c"), "b(a1) c(a1) n(a1 triggers.b2 triggers.c3)", "skipped d 3 c failed"},
		{"the first failure is enough", "a b!fail", after(sensor("a", "b=a; c=a"), "n!b,c"), "b(a1) c(a1) n(a1 triggers.b2)", ""},
		{"all must succeed", "a c!1 b!1", after(sensor("a", "b=a; c=a"), "d<b,c"), "b(a1) c(a1) d(a1 triggers.b3 triggers.c2)", ""},
		{"a chain", "a b!1 c!1", one("c<b; d<c"), "b(a1) c(a1 triggers.b2) d(a1 triggers.b2 triggers.c3)", ""},
		{"declared in any order", "a x!1 c!1", after(sensor("a", "x=a"), "d<c; c<x"), "x(a1) c(a1 triggers.x2) d(a1 triggers.x2 triggers.c3)", ""},
		{"two under way", "a a b!1 b!1", one("d<b"), "b(a1) b(a2) d(a1 triggers.b3) d(a2 triggers.b4)", ""},
		{"with keys", `a{"k":1} a{"k":2} b!1`, correlated, "b(a1)@#1 b(a2)@#2 d(a1 triggers.b3)@#1", ""},
		{"a condition on the output", `a b!{"ok":true}`, one("d<b=triggers.b.output.ok"), "b(a1) d(a1 triggers.b2)", ""},
		{"that does not hold", `a b!{"ok":false}`, one("d<b=triggers.b.output.ok; e<d"), "b(a1)", "skipped d 2 its condition does not hold; skipped e 2 d was skipped"},
		{"that is missing", `a b!{}`, one("d<b=triggers.b.output.ok"), "b(a1)", "missing d 2 triggers.b.output.ok; skipped d 2 its condition does not hold"},
		{"a condition on the event", `a{"n":1} b!1`, one("d<b=a.data.n == 1 && triggers.b.attempts == 2"), "b(a1) d(a1 triggers.b2)", ""},
		{"of pairs", "a b t!1", after(sensor("a b", "t=a && b"), "d<t"), "t(a1 b2) d(a1 b2 triggers.t3)", ""},
		{"a fan-out is followed when all have ended", `a{"l":[1,2]} b!1 b!2`, after(foreach(sensor("a", "b=a"), "a.data.l", "", 0), "d<b"), "b(a1)#0/2 b(a1)#1/2 d(a1 triggers.b2 triggers.b3)", ""},
		{"one item fails", `a{"l":[1,2]} b!fail b!2`, after(foreach(sensor("a", "b=a"), "a.data.l", "", 0), "d<b; n!b"), "b(a1)#0/2 b(a1)#1/2 n(a1 triggers.b2 triggers.b3)", "skipped d 3 b failed"},
		{"nothing to fan out", `a{"l":[]}`, after(foreach(sensor("a", "b=a"), "a.data.l", "", 0), "d<b"), "d(a1)", "skipped b 1 its list is empty"},
		{"after a batch", "a a b!1", after(batch(sensor("a", "b=a"), 2, 0), "d<b"), "b(a1|a2) d(a1|a2|triggers.b3)", ""},
		{"after quiet", "a +1m b!1", after(debounce(sensor("a", "b=a"), time.Minute, 0), "d<b"), "b(a1) d(a1 triggers.b2)", ""},
	})
}

// TestLateResults: a result comes twice, for a workflow that has ended, or for
// another sensor.
func TestLateResults(t *testing.T) {
	r := newRun(t, compileOK(t, after(sensor("a", "b=a; c=a"), "d<b,c")))
	r.play("a")
	first := r.result("b", "1", 0)
	r.send(first)
	again := *r.event("b", "", 0)
	again.EventSource, again.Type, again.Extensions, again.Data = first.EventSource, bus.TypeFunctionFailed, first.Extensions, first.Data
	r.send(&again)
	r.play("c!1")
	if got := r.firings(); got != "b(a1) c(a1) d(a1 triggers.b2 triggers.c4)" || len(r.states) != 0 {
		t.Errorf("fires %q, %d states are left", got, len(r.states))
	}
	late := *r.event("b", "", 0)
	late.EventSource, late.Type, late.Extensions, late.Data = first.EventSource, first.Type, first.Extensions, first.Data
	r.send(&late)
	if len(r.fired) != 3 || len(r.states) != 0 {
		t.Errorf("a result that comes late fires %q, %d states are left", r.firings(), len(r.states))
	}
}

// TestWorkflowInput: what the steps of a workflow read.
func TestWorkflowInput(t *testing.T) {
	s := after(foreach(sensor("a", "b=a"), "a.data.l", "", 0), "d<b")
	s.Triggers[1].Input = specs.Template{Set: true, Path: "in", Root: map[string]any{
		"all": text("in.all", "${ triggers.b.output }"), "n": text("in.n", "${ a.data.n }"), "ok": text("in.ok", "${ triggers.b.outcome }"),
	}}
	p := compileOK(t, s)
	r := newRun(t, p)
	r.code = true
	r.play(`a{"l":[1,2],"n":7}`)
	results := []*bus.Event{r.result("b", `"x"`, 0), r.result("b", `"y"`, 0)}
	results[0].Seq, results[1].Seq = results[1].Seq, results[0].Seq // the second ends first
	r.events[results[0].Seq], r.events[results[1].Seq] = results[0], results[1]
	r.send(results[1])
	r.send(results[0])
	f := r.fired[2]
	const want = "map[all:[x y] n:7 ok:succeeded]"
	if got := fmt.Sprint(f.Rendered["in"]); got != want {
		t.Errorf("the input is %s, want %s", got, want)
	}
	again, err := p.RenderTrigger(1, r.contributing(f), 0)
	if got := fmt.Sprint(again["in"]); err != nil || got != want {
		t.Errorf("rendered again it is %s, %v", got, err)
	}
	if len(r.states) != 0 {
		t.Error("state is left")
	}
}

// TestWorkflowOverAChange: a workflow under way goes on when triggers around
// it change.
func TestWorkflowOverAChange(t *testing.T) {
	r := newRun(t, compileOK(t, after(sensor("a", "b=a"), "d<b; e<b")))
	r.play("a")
	r.p = compileOK(t, after(sensor("a", "z=a; b=a"), "e<b; f<b"))
	r.states[""] = r.p.Adopt(r.states[""])
	r.play("b!1")
	if got := r.firings(); got != "b(a1) e(a1 triggers.b2) f(a1 triggers.b2)" || len(r.states) != 0 {
		t.Errorf("fires %q, %d states are left", got, len(r.states))
	}
}

// TestWorkflowAgainstModel: whatever the order in which calls end, and however
// often, the steps that fire are those that follow from how they ended.
func TestWorkflowAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "triggers")
		s := sensor("a", "t0=a")
		s.Triggers = nil
		follows := make([][]int, n)
		for i := range n {
			tr := specs.Trigger{Name: fmt.Sprint("t", i), Function: "f"}
			if i > 0 {
				follows[i] = rapid.SliceOfNDistinct(rapid.IntRange(0, i-1), 0, min(i, 3), rapid.ID[int]).Draw(t, "follows")
			}
			var names []string
			for _, j := range follows[i] {
				names = append(names, fmt.Sprint("t", j))
			}
			switch {
			case names == nil:
				tr.Condition = expr("a")
			case rapid.Bool().Draw(t, "on failure"):
				tr.OnFailure = names
			default:
				tr.After = names
			}
			s.Triggers = append(s.Triggers, tr)
		}
		p, ds := Compile("sen", s)
		if ds.HasErrors() {
			t.Fatal(ds)
		}
		flows := rapid.IntRange(1, 3).Draw(t, "workflows")
		fails := rapid.SliceOfN(rapid.Bool(), flows*n, flows*n).Draw(t, "fails")

		// What fires is the least set that agrees with how the calls end.
		want := map[string]bool{}
		for f := range flows {
			fires := make([]bool, n)
			for i := range n {
				tr := &s.Triggers[i]
				fires[i] = tr.OnFailure == nil
				for _, j := range follows[i] {
					if tr.OnFailure != nil {
						fires[i] = fires[i] || fires[j] && fails[f*n+j]
					} else {
						fires[i] = fires[i] && fires[j] && !fails[f*n+j]
					}
				}
				if fires[i] {
					want[fmt.Sprintf("%s of %d", tr.Name, f+1)] = true
				}
			}
		}

		got := map[string]bool{}
		var calls []Firing // under way
		var st KeyState
		events := map[uint64]*bus.Event{}
		seq := uint64(0)
		send := func(ev *bus.Event) {
			seq++
			ev.Seq, ev.StoredAt = seq, t0
			events[seq] = ev
			m := p.Route(NewView(ev)).Matches
			if len(m) == 0 {
				return
			}
			var fired []Firing
			st, fired, _ = p.Step(st, Input{LogID: "l", Event: ev, Deps: []int{m[0].Dep}, Time: t0})
			for _, f := range fired {
				name := fmt.Sprintf("%s of %d", f.Trigger, f.Events[0].Seq)
				if got[name] {
					t.Fatalf("%s fires twice", name)
				}
				got[name] = true
				if f.Flow != "" {
					calls = append(calls, f)
				}
			}
			if rapid.Bool().Draw(t, "stored") {
				st = restored(t, st)
			}
		}
		for range flows {
			send(&bus.Event{ID: "i", Source: "s", Type: "t", EventSource: "src", EventName: "a"})
		}
		for len(calls) > 0 {
			i := rapid.IntRange(0, len(calls)-1).Draw(t, "ends")
			f := calls[i]
			ev := &bus.Event{ID: "i", Source: "s", Type: bus.TypeFunctionSucceeded, EventSource: bus.SourceFunction, EventName: "f"}
			if fails[(int(f.Events[0].Seq)-1)*n+f.TriggerIndex] {
				ev.Type = bus.TypeFunctionFailed
			}
			ev.Extensions = map[string]string{bus.ExtSensor: "sen", bus.ExtTrigger: f.Trigger, bus.ExtFlow: f.Flow}
			send(ev)
			if rapid.IntRange(0, 3).Draw(t, "again") > 0 {
				calls = slices.Delete(calls, i, i+1)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("fired %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		if !st.Empty() {
			t.Fatalf("state is left: %+v", st.more)
		}
	})
}
