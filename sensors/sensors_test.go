package sensors

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func expr(src string) specs.Expr {
	return specs.Expr{Source: src, Pos: specs.TextPos{Pos: specs.Pos{File: "s.yaml", Line: 1, Col: 1}}}
}

func text(path, s string) specs.Text {
	return specs.Text{Value: s, Path: path, Pos: specs.TextPos{Pos: specs.Pos{File: "s.yaml", Line: 20, Col: 1}}}
}

// sensor makes a spec from dependencies "name[:pick]" that take the event of
// their name from the source "src", and triggers "name=condition".
func sensor(deps, triggers string) *specs.Sensor {
	s := &specs.Sensor{}
	for d := range strings.FieldsSeq(deps) {
		name, pick, _ := strings.Cut(d, ":")
		s.Dependencies = append(s.Dependencies, specs.Dependency{Name: name, Source: "src", Event: name, Pick: specs.Pick(pick)})
	}
	for t := range strings.SplitSeq(triggers, ";") {
		name, cond, _ := strings.Cut(t, "=")
		s.Triggers = append(s.Triggers, specs.Trigger{Name: strings.TrimSpace(name), Condition: expr(strings.TrimSpace(cond)), Function: "f"})
	}
	return s
}

func compileOK(t testing.TB, s *specs.Sensor) *Program {
	t.Helper()
	p, ds := Compile("sen", s)
	if err := ds.Err(); err != nil {
		t.Fatal(err)
	}
	return p
}

// run plays events through one program as the dispatcher does.
type run struct {
	t      testing.TB
	p      *Program
	states map[string]KeyState
	events map[uint64]*bus.Event
	seq    uint64
	fired  []Firing
	keys   map[string]bool
	said   []string
	get    func(seq uint64) *bus.Event
	ended  map[string]bool // calls by firing key
	code   bool            // encode and decode each state after each step
	// inspect gives what each step is to tell of itself, nil for nothing.
	inspect func() *Inspection
}

func newRun(t testing.TB, p *Program) *run {
	r := &run{t: t, p: p, states: map[string]KeyState{}, events: map[uint64]*bus.Event{}, keys: map[string]bool{}, ended: map[string]bool{}}
	r.get = func(seq uint64) *bus.Event { return r.events[seq] }
	return r
}

func (r *run) event(name, data string, at time.Duration) *bus.Event {
	r.seq++
	ev := &bus.Event{
		ID: fmt.Sprint(r.seq), Source: "/s", Type: "t." + name, EventSource: "src", EventName: name,
		Data: []byte(data), Seq: r.seq, StoredAt: t0.Add(at), Time: t0.Add(at),
	}
	r.events[r.seq] = ev
	return ev
}

// send routes and steps one event, after the deadlines before it.
func (r *run) send(ev *bus.Event) {
	r.t.Helper()
	r.wake(ev.StoredAt)
	routing := r.p.Route(NewView(ev))
	for _, v := range routing.Verdicts {
		r.say(v)
	}
	by := map[string][]int{}
	var order []string
	for _, m := range routing.Matches {
		if by[m.Key] == nil {
			order = append(order, m.Key)
		}
		by[m.Key] = append(by[m.Key], m.Dep)
	}
	for _, k := range order {
		r.step(Input{LogID: "log", Key: k, Event: ev, Deps: by[k], Time: ev.StoredAt})
	}
}

// contributing are the events of a firing.
func (r *run) contributing(f Firing) []Contributing {
	out := make([]Contributing, len(f.Events))
	for i, c := range f.Events {
		out[i] = Contributing{c, r.events[c.Seq]}
	}
	return out
}

// wake steps the deadlines up to until.
func (r *run) wake(until time.Time) {
	for {
		key, first, found := "", time.Time{}, false
		for k, st := range r.states {
			at, ok := r.p.NextWake(st)
			if ok && !at.After(until) && (!found || at.Before(first) || at.Equal(first) && k < key) {
				key, first, found = k, at, true
			}
		}
		if !found {
			return
		}
		r.step(Input{LogID: "log", Key: key, Time: first})
	}
}

func (r *run) step(in Input) {
	r.t.Helper()
	if r.inspect != nil {
		in.Inspect = r.inspect()
	}
	in.Kept = r.get
	st, fs, vs := r.p.Step(r.states[in.Key], in)
	for _, f := range fs {
		if r.keys[f.Key] {
			r.t.Errorf("firing key %s twice", f.Key)
		}
		r.keys[f.Key] = true
	}
	r.fired = append(r.fired, fs...)
	for _, v := range vs {
		r.say(v)
	}
	if r.code {
		got, err := DecodeKeyState(st.Append(nil))
		if err != nil {
			r.t.Fatal(err)
		}
		st = got
	}
	if st.Empty() {
		delete(r.states, in.Key)
	} else {
		r.states[in.Key] = st
	}
}

func (r *run) say(v Verdict) {
	names := []string{"yes", "no", "missing", "failed", "superseded", "expired", "waiting", "fired", "answered", "suppressed", "debounced", "skipped", "evicted", "lost"}
	s := fmt.Sprintf("%s %s%s %d", names[v.Outcome], v.Dependency, v.Trigger, v.Seq)
	if v.Outcome == Missing || v.Outcome == Failed || v.Outcome == Skipped {
		s += " " + v.Detail
	}
	r.said = append(r.said, s)
}

// result is the event that tells how the oldest call of a trigger ended that
// has not yet: its output, or "fail".
func (r *run) result(trigger, output string, at time.Duration) *bus.Event {
	r.t.Helper()
	for i := range r.fired {
		f := &r.fired[i]
		if f.Trigger != trigger || r.ended[f.Key] {
			continue
		}
		r.ended[f.Key] = true
		outcome, typ, problem := "succeeded", bus.TypeFunctionSucceeded, "null"
		if output == "fail" {
			outcome, typ, output, problem = "failed", bus.TypeFunctionFailed, "null", `"broken"`
		}
		ev := r.event(trigger, fmt.Sprintf(`{"outcome": %q, "output": %s, "error": %s, "attempts": 2}`, outcome, cmp.Or(output, "null"), problem), at)
		ev.EventSource, ev.Type = bus.SourceFunction, typ
		ev.Extensions = map[string]string{bus.ExtSensor: "sen", bus.ExtTrigger: trigger}
		for k, v := range map[string]string{bus.ExtKey: f.Correlation, bus.ExtFlow: f.Flow} {
			if v != "" {
				ev.Extensions[k] = v
			}
		}
		if f.Items > 0 {
			ev.Extensions[bus.ExtItem], ev.Extensions[bus.ExtItems] = strconv.Itoa(f.Item), strconv.Itoa(f.Items)
		}
		return ev
	}
	r.t.Fatalf("no call of %s waits for a result", trigger)
	return nil
}

// play sends events by name, "+5m" passing time, "name{json}" with data,
// "trigger!json" results.
func (r *run) play(script string) string {
	r.t.Helper()
	at := time.Duration(0)
	for w := range strings.FieldsSeq(script) {
		if d, ok := strings.CutPrefix(w, "+"); ok {
			step, err := time.ParseDuration(d)
			if err != nil {
				r.t.Fatal(err)
			}
			at += step
			r.wake(t0.Add(at))
			continue
		}
		if trigger, result, ok := strings.Cut(w, "!"); ok {
			r.send(r.result(trigger, result, at))
			continue
		}
		name, data, _ := strings.Cut(w, "{")
		if data != "" {
			data = "{" + data
		}
		r.send(r.event(name, data, at))
	}
	return r.firings()
}

func (r *run) firings() string {
	var out []string
	for _, f := range r.fired {
		var parts []string
		for i, c := range f.Events {
			part := fmt.Sprintf("%s%d", c.Dependency, c.Seq)
			if i > 0 && c.Batch != f.Events[i-1].Batch {
				part = "|" + part
			}
			parts = append(parts, part)
		}
		s := f.Trigger + "(" + strings.ReplaceAll(strings.Join(parts, " "), " |", "|") + ")"
		if f.Items > 0 {
			s += fmt.Sprintf("#%d/%d", f.Item, f.Items)
		}
		if f.Correlation != "" {
			s += "@" + f.Correlation
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// TestConsumption is the table of what a sensor keeps. Numbers are sequences.
func TestConsumption(t *testing.T) {
	within := func(s *specs.Sensor) *specs.Sensor { s.Within = specs.Duration(10 * time.Minute); return s }
	x := sensor("a b", "t=a && b")
	for i := range x.Dependencies {
		x.Dependencies[i].Event = "*"
	}
	tests := []struct {
		name, script string
		spec         *specs.Sensor
		fires, says  string
	}{
		{"latest", "a a b", sensor("a b", "t=a && b"), "t(a2 b3)", "superseded at 1"},
		{"first", "a a b b", sensor("a:first b:first", "t=a && b"), "t(a1 b3) t(a2 b4)", ""},
		{"rest waits", "a b b", sensor("a b", "t=a && b"), "t(a1 b2)", ""},
		{"or", "a b", sensor("a b", "t=a || b"), "t(a1) t(b2)", ""},
		{"two triggers", "a b c", sensor("a b c", "t1=a && b; t2=a && c"), "t1(a1 b2) t2(a1 c3)", ""},
		{"window", "a +11m b", within(sensor("a b", "t=a && b")), "", "expired at 1"},
		{"both at once", "x", x, "t(a1 b1)", ""},

		{"all", "a a b a b", sensor("a:all b", "t=a && b"), "t(a1 a2 b3) t(a4 b5)", ""},
		{"first catches up", "a a a b b b", sensor("a:first b", "t=a && b"), "t(a1 b4) t(a2 b5) t(a3 b6)", ""},
		{"first with or", "a a b", sensor("a:first b:first", "t=a || b"), "t(a1) t(a2) t(b3)", ""},
		{"consumed by one trigger only", "a a b", sensor("a b", "t1=a; t2=a && b"), "t1(a1) t1(a2) t2(a2 b3)", "superseded at2 1"},
		{"default condition", "a b", sensor("a b", "t="), "t(a1 b2)", ""},
		{"mixed", "a c b", sensor("a b c", "t=(a && b) || c"), "t(a1 c2)", ""},
		{"edge of the window", "a +10m b", within(sensor("a b", "t=a && b")), "", "expired at 1"},
		{"inside the window", "a +9m59s b", within(sensor("a b", "t=a && b")), "t(a1 b2)", ""},
		{"window slides", "a +6m a +6m b", within(sensor("a b", "t=a && b")), "t(a2 b3)", "superseded at 1"},
		{"window of a queue", "a +6m a +6m b", within(sensor("a:first b", "t=a && b")), "t(a2 b3)", "expired at 1"},
		{"window of a list", "a +6m a +6m b", within(sensor("a:all b", "t=a && b")), "t(a2 b3)", "expired at 1"},
		{"payloads", `a{"n":1} b{"n":2} b{"n":1}`, sensor("a b", "t=a && b && a.data.n == b.data.n"), "t(a1 b3)", "superseded bt 2"},
		{"payload missing", `a{"n":1} b{}`, sensor("a b", "t=a && b && a.data.n < b.data.n"), "", "missing t 2 b.data.n"},
		{"not arrived is no fault", `a{"n":1}`, sensor("a b", "t=a.data.n == b.data.n"), "", ""},
		{"failure", `a{"n":0}`, sensor("a", "t=a.data.n % 0 == 1"), "", "failed t 1 runtime error: integer divide by zero"},
		{"lists", `a{"n":1} a{"n":5}`, sensor("a:all", "t=sum(a, .data.n) > 5"), "t(a1 a2)", ""},
	}
	for _, tt := range tests {
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

func TestNothingIsKeptOfWhatFiresAtOnce(t *testing.T) {
	r := newRun(t, compileOK(t, sensor("a b", "t1=a; t2=a || b")))
	r.play("a b a")
	if len(r.states) != 0 || len(r.fired) != 5 {
		t.Fatalf("states %v, fired %s", r.states, r.firings())
	}
}

func TestCorrelation(t *testing.T) {
	s := sensor("a b", "t=a && b")
	s.Correlate = expr("data.id")
	r := newRun(t, compileOK(t, s))
	got := r.play(`a{"id":"x"} a{"id":1} b{"id":"1"} b{"id":1.0} b{} b{"id":null} b{"id":"x"} a{"id":"1"} b{"id":9007199254740993} a{"id":9007199254740992}`)
	if want := "t(a2 b4)@#1 t(a1 b7)@x t(a8 b3)@1"; got != want {
		t.Errorf("fires %q, want %q", got, want)
	}
	if want := "missing b 5 data.id; missing b 6 data.id"; strings.Join(r.said, "; ") != want {
		t.Errorf("says %q", r.said)
	}
	if len(r.states) != 2 {
		t.Errorf("%d keys are waiting, want 2", len(r.states))
	}
}

func TestCorrelationKeys(t *testing.T) {
	seen := map[string]any{}
	for _, v := range []any{
		"", "a", "#", "#1", "1", int64(1), 1.5, true, "true",
		[]any{int64(1)},
		map[string]any{"b": int64(1), "a": nil},
		strings.Repeat("x", 1000), strings.Repeat("x", 1001), strings.Repeat("x", 200),
	} {
		k, err := correlationKey(v)
		if err != nil || k == "" || len(k) > maxKey {
			t.Errorf("%v: %q, %v", v, k, err)
		}
		if o, ok := seen[k]; ok {
			t.Errorf("%v and %v have the key %q", v, o, k)
		}
		seen[k] = v
	}
	a, _ := correlationKey(int64(7))
	b, _ := correlationKey(7.0)
	if a != b {
		t.Errorf("7 is %q, 7.0 is %q", a, b)
	}
}

func TestRouteVerdicts(t *testing.T) {
	s := sensor("a b c", "t=a && b && c")
	s.Dependencies[0].When = expr("data.n > 5")
	s.Dependencies[1] = specs.Dependency{Name: "b", Type: "t.*", When: expr("b.data.flag && type != 'x'")}
	s.Dependencies[2] = specs.Dependency{Name: "c", Source: "s?c", Event: "a", Subject: "*-eu-*"}
	p := compileOK(t, s)
	ev := func(data string) *bus.Event {
		return &bus.Event{ID: "1", Source: "/s", Type: "t.a", EventSource: "src", EventName: "a", Subject: "x-eu-y", Data: []byte(data), Seq: 4, DataContentType: "application/json"}
	}
	for data, want := range map[string]string{
		`{"n":6,"flag":true}`: "a b c |",
		`{"n":5,"flag":true}`: "b c | no a 4",
		`{"flag":1}`:          "c | missing a 4 data.n; failed b 4",
		`{"n":6}`:             "a c | missing b 4 b.data.flag",
		`{`:                   "c | failed a 4 event 4: data is not the JSON",
	} {
		routing := p.Route(NewView(ev(data)))
		r := newRun(t, p)
		var got []string
		for _, m := range routing.Matches {
			got = append(got, p.Dependencies()[m.Dep])
		}
		got = append(got, "|")
		for _, v := range routing.Verdicts {
			r.say(v)
		}
		if s := strings.Join(append(got, strings.Join(r.said, "; ")), " "); !strings.HasPrefix(strings.TrimSpace(s), want) {
			t.Errorf("%s: got %q, want %q", data, s, want)
		}
	}
}

func TestExplain(t *testing.T) {
	p := compileOK(t, sensor("a b", "t=a && b"))
	r := newRun(t, p)
	st, _, vs := p.Step(KeyState{}, Input{Event: r.event("a", "", 0), Deps: []int{0}, Time: t0, Explain: true})
	if len(vs) != 1 || vs[0].Outcome != Waiting || vs[0].Detail != "the condition does not hold; not arrived: b" {
		t.Errorf("%+v", vs)
	}
	_, fs, vs := p.Step(st, Input{Event: r.event("b", "", 0), Deps: []int{1}, Time: t0, Explain: true})
	if len(vs) != 1 || vs[0].Outcome != Fired || vs[0].Detail != fs[0].Key {
		t.Errorf("%+v", vs)
	}
	// A list that is not complete waits, too.
	s := sensor("a", "t=a")
	s.Dependencies[0].Count = 2
	_, _, vs = compileOK(t, s).Step(KeyState{}, Input{Event: r.event("a", "", 0), Deps: []int{0}, Time: t0, Explain: true})
	if len(vs) != 1 || vs[0].Outcome != Waiting || vs[0].Detail != "the condition does not hold; not arrived: a" {
		t.Errorf("%+v", vs)
	}
}

func TestFiring(t *testing.T) {
	s := sensor("a b", "t=a && b")
	r := newRun(t, compileOK(t, s))
	r.play("b +1m a")
	f := r.fired[0]
	if f.Last != 2 || f.Trigger != "t" || f.TriggerIndex != 0 || !f.Time.Equal(t0.Add(time.Minute)) || f.Rendered != nil || f.Late || f.Err != nil {
		t.Errorf("%+v", f)
	}
	// The key is stable: a change here calls every function of a waiting log twice.
	if f.Key != "A79pgYayvoykol_6Gt23o4Wk" {
		t.Errorf("key %s", f.Key)
	}
	key := func(change func(in *Input, p **Program)) string {
		p, in := r.p, Input{LogID: "log", Event: r.events[2], Deps: []int{0, 1}, Time: t0}
		change(&in, &p)
		_, fs, _ := p.Step(KeyState{}, in)
		return fs[0].Key
	}
	keys := map[string]bool{}
	for _, change := range []func(*Input, **Program){
		func(*Input, **Program) {},
		func(in *Input, _ **Program) { in.LogID = "other" },
		func(in *Input, _ **Program) { in.Key = "k" },
		func(in *Input, _ **Program) { in.Event = r.events[1] },
		func(_ *Input, p **Program) { *p, _ = Compile("sen2", s) },
		func(_ *Input, p **Program) { *p, _ = Compile("sen", sensor("a b", "t2=a && b")) },
	} {
		keys[key(change)] = true
	}
	if len(keys) != 6 {
		t.Errorf("%d keys of 6 are different", len(keys))
	}
	if key(func(in *Input, _ **Program) { in.Time = t0.Add(time.Hour) }) != key(func(*Input, **Program) {}) {
		t.Error("the key depends on the time")
	}
}

type config struct {
	URL     specs.TextOrSecret
	Headers map[string]specs.TextOrSecret
	Data    specs.Template
	List    []specs.Text
	hidden  specs.Text
	Next    *config
}

func TestRendering(t *testing.T) {
	s := sensor("a l:all", "t=a && l")
	tr := &s.Triggers[0]
	tr.Input = specs.Template{Set: true, Path: "in", Root: map[string]any{
		"n": text("in.n", "${ a.data.n }"), "all": text("in.all", "${ map(l, .data.n) }"), "id": text("in.id", "id-${ a.id }"), "k": "x",
	}}
	tr.Inline = &specs.Call{Kind: "http", Config: &config{
		URL:     specs.TextOrSecret{Text: text("url", "http://x/${ a.data.n }")},
		Headers: map[string]specs.TextOrSecret{"b": {Text: text("h.b", "plain")}, "a": {Text: text("h.a", "${ a.type }")}, "s": {Secret: &specs.SecretRef{}}},
		Data:    specs.Template{Set: true, Path: "data", Root: []any{text("", "${ len(l) }")}},
		List:    []specs.Text{text("l0", "${ l[0].data.n }")},
		hidden:  text("hidden", "${ a.id }"),
		Next:    &config{Data: specs.Template{}},
	}}
	p := compileOK(t, s)
	r := newRun(t, p)
	r.play(`l{"n":1} l{"n":2} a{"n":7}`)
	want := "map[data:[2] h.a:t.a in:map[all:[1 2] id:id-3 k:x n:7] l0:1 url:http://x/7]"
	if got := fmt.Sprint(r.fired[0].Rendered); got != want {
		t.Errorf("rendered %s, want %s", got, want)
	}
	again, err := p.RenderTrigger(0, r.contributing(r.fired[0]), 0)
	if got := fmt.Sprint(again); err != nil || got != want {
		t.Errorf("rendered again %s, %v", got, err)
	}

	r = newRun(t, p)
	r.play(`l{"n":1} a{}`)
	if f := r.fired[0]; f.Err == nil || f.Err.Error() != "url: missing `a.data.n`" || f.Rendered != nil {
		t.Errorf("%+v", f)
	}
	r = newRun(t, p)
	r.play(`l{"n":1} a{"n":"` + strings.Repeat("y", MaxRendered) + `"}`)
	if f := r.fired[0]; !f.Late || f.Rendered != nil || f.Err != nil {
		t.Errorf("late %v, err %v", f.Late, f.Err)
	}
	r = newRun(t, p)
	ev := r.event("a", "{", 0)
	ev.DataContentType = "application/json"
	r.send(r.event("l", `{"n":1}`, 0))
	ev.Seq = 9
	r.send(ev)
	if f := r.fired[0]; f.Err == nil || !strings.Contains(f.Err.Error(), "in: event 9: data is not the JSON") {
		t.Errorf("%+v", f.Err)
	}
}

func TestDiagnostics(t *testing.T) {
	broken := sensor("a b-c", "t=a && nope; u=c_b")
	broken.Dependencies[0].When = expr("data.x >")
	broken.Correlate = expr("now()")
	broken.Triggers[0].Input = specs.Template{Set: true, Path: "spec.triggers[0].input", Root: text("spec.triggers[0].input", "${ zzz }")}
	never := sensor("a b", "t=a; u=b")
	never.Triggers[0].Inline = &specs.Call{Config: &config{List: []specs.Text{text("spec.triggers[0].x", "${ b.id }")}}}
	many := sensor(strings.Repeat("a ", 65), "t=a")
	for i := range many.Dependencies {
		many.Dependencies[i].Name = fmt.Sprintf("a%d", i)
		many.Dependencies[i].Pos = specs.Pos{File: "s.yaml", Line: i + 1, Col: 3}
	}
	absent := func(triggers, after string) *specs.Sensor {
		s := sensor("a b", triggers)
		s.Dependencies[1].Absent = &specs.Absent{For: specs.Duration(time.Minute), After: after}
		return s
	}
	asks := absent("t=a || absent(b)", "a")
	asks.Triggers[0].Inline = &specs.Call{Config: &config{List: []specs.Text{text("spec.triggers[0].x", "${ absent(b) }")}}}
	for _, tt := range []struct {
		spec *specs.Sensor
		want []string
	}{
		{broken, []string{
			"spec.dependencies[0].when: the expression ends too early", "spec.correlate: now() reads the clock", "spec.triggers[0].condition: unknown name nope",
			"spec.triggers[0].input: unknown name zzz", "spec.triggers[1].condition: unknown name c_b",
		}},
		{sensor("a in", "t=a"), []string{"error[dependency-reserved-name] spec.dependencies[1].name: in has another meaning"}},
		{sensor("a 3d", "t=a"), []string{"error[dependency-reserved-name] spec.dependencies[1].name: 3d begins with a digit"}},
		{sensor("a b", "t=a"), []string{"warning[dependency-unused] spec.dependencies[1]: no condition refers to b"}},
		{sensor("a", "t=true"), []string{"s.yaml:1:1: error[condition-without-dependency] spec.triggers[0].condition"}},
		{never, []string{"s.yaml:20:1: error[template-never-arrives] spec.triggers[0].x: the template reads b"}},
		{absent("t=absent(b)", "zzz"), []string{"error[absent-after] spec.dependencies[1].absent.after: dependency \"zzz\" cannot begin the time of b"}},
		{absent("t=absent(b)", "b"), []string{"error[absent-after]"}},
		{absent("t=a && b", "a"), []string{"s.yaml:1:6: error[expr-absent-dependency] spec.triggers[0].condition: b is declared absent, so it never arrives (ask absent(b);"}},
		{absent("t=a && !b", "a"), []string{"error[expr-negated-dependency] spec.triggers[0].condition: !b would be true until b arrives (write absent(b))"}},
		{asks, []string{"s.yaml:20:1: error[template-never-arrives] spec.triggers[0].x: the template asks whether b is absent, which only a condition can (give each case its own trigger)"}},
		{many, []string{"s.yaml:65:3: error[sensor-too-many-dependencies] spec.dependencies: 65 dependencies"}},
	} {
		p, ds := Compile("s", tt.spec)
		if (p == nil) != ds.HasErrors() {
			t.Errorf("program %v with %v", p, ds)
		}
		all := ""
		for _, d := range ds {
			all += d.String() + "\n"
		}
		if len(ds) != len(tt.want) {
			t.Errorf("%d diagnostics, want %d:\n%s", len(ds), len(tt.want), all)
		}
		for _, w := range tt.want {
			if !strings.Contains(all, w) {
				t.Errorf("no %q in\n%s", w, all)
			}
		}
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "x", true},
		{"*", "", true},
		{"a", "a", true},
		{"a", "b", false},
		{"a*", "abc", true},
		{"*c", "abc", true},
		{"a*c", "ac", true},
		{"a*c", "acb", false},
		{"a?c", "aäc", true},
		{"a?c", "ac", false},
		{"com.*.x*", "com.a.b.xyz", true},
		{"*a*b*", "xxaxxbxx", true},
		{"*a*b*", "xxbxxaxx", false},
		{"**", "x", true},
		{"?", "", false},
		{strings.Repeat("a*", 50) + "b", strings.Repeat("a", 5000), false},
	} {
		if got := newPattern(tt.pattern).match(tt.s); got != tt.want {
			t.Errorf("%q on %q: %v", tt.pattern, tt.s, got)
		}
	}
}

func TestIndex(t *testing.T) {
	mk := func(deps ...specs.Dependency) *Program {
		s := &specs.Sensor{Dependencies: deps, Triggers: []specs.Trigger{{Name: "t"}}}
		for i := range s.Dependencies {
			s.Dependencies[i].Name = fmt.Sprintf("d%d", i)
		}
		return compileOK(t, s)
	}
	ps := []*Program{
		mk(specs.Dependency{Source: "s", Event: "a"}),
		mk(specs.Dependency{Source: "s", Event: "b"}, specs.Dependency{Source: "s", Event: "a"}),
		mk(specs.Dependency{Type: "t"}),
		mk(specs.Dependency{Type: "t*"}),
		mk(specs.Dependency{Source: "s", Event: "a"}, specs.Dependency{Type: "t"}),
		mk(specs.Dependency{Source: "s", Event: "a"}, specs.Dependency{Source: "s"}),
		mk(specs.Dependency{Source: "s", Event: "a", Type: "u"}),
	}
	x := NewIndex(ps)
	for _, tt := range []struct {
		ev   *bus.Event
		want []int
	}{
		{&bus.Event{EventSource: "s", EventName: "a", Type: "t"}, []int{0, 1, 2, 3, 4, 5}},
		{&bus.Event{EventSource: "s", EventName: "a", Type: "u"}, []int{0, 1, 3, 4, 5, 6}},
		{&bus.Event{EventSource: "s", EventName: "b", Type: "x"}, []int{1, 3, 5}},
		{&bus.Event{EventSource: "z", EventName: "z", Type: "t"}, []int{2, 3, 4, 5}},
	} {
		var got []int
		found, _ := x.Lookup(NewView(tt.ev), nil)
		for _, p := range found {
			got = append(got, slices.Index(ps, p))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s/%s %s: %v, want %v", tt.ev.EventSource, tt.ev.EventName, tt.ev.Type, got, tt.want)
		}
	}
}

func TestState(t *testing.T) {
	s := sensor("a:first b", "t=a && b; u=a && b")
	s.Within = specs.Duration(time.Minute)
	p := compileOK(t, s)
	r := newRun(t, p)
	r.play("a +1s a")
	st := r.states[""]
	if st.Empty() || st.MinRef() != 1 || !slices.Equal(st.Refs(), []uint64{1, 2}) || st.Seen() != 2 {
		t.Errorf("refs %v, min %d, seen %d", st.Refs(), st.MinRef(), st.Seen())
	}
	if at, ok := p.NextWake(st); !ok || !at.Equal(t0.Add(time.Minute)) {
		t.Errorf("wakes %v, %v", at, ok)
	}
	other := sensor("a b c", "t=a && c; u=b && c")
	other.Within = s.Within
	late := newRun(t, compileOK(t, other))
	late.play("b +1s a")
	if at, ok := late.p.NextWake(late.states[""]); !ok || !at.Equal(t0.Add(time.Minute)) {
		t.Errorf("wakes %v, not for the oldest of all triggers", at)
	}
	if k := st.Kept(); len(k) != 4 || k[1] != (Kept{"t", 0, 2, t0.Add(time.Second)}) {
		t.Errorf("kept %v", k)
	}
	b := st.Append(nil)
	if len(b) > 80 {
		t.Errorf("%d bytes", len(b))
	}
	// An event seen before changes nothing.
	if again, fs, vs := p.Step(st, Input{Event: r.events[2], Deps: []int{0, 1}, Time: t0}); len(fs)+len(vs) > 0 || again.Seen() != 2 {
		t.Errorf("%v %v", fs, vs)
	}
	// What the log has lost is not kept.
	st, _ = DecodeKeyState(b)
	if lost := st.Forget(2); lost != 2 || !slices.Equal(st.Refs(), []uint64{2}) {
		t.Errorf("%d lost, refs %v", lost, st.Refs())
	}
	st, _ = DecodeKeyState(b)
	if lost := st.Forget(9); lost != 4 || !st.Empty() {
		t.Errorf("%d lost, and not empty", lost)
	}
	for _, bad := range []string{"", "\x03", "\x02", "\x02\x00\x01\x01t\x01\x00\x01\x00\x05x", "\x01", "\x01\x00\x01", "\x01\x00\x01\x01t\x00", string(b) + "x", string(b[:len(b)-1])} {
		if _, err := DecodeKeyState([]byte(bad)); err == nil {
			t.Errorf("%q decodes", bad)
		}
	}
}

func TestAdopt(t *testing.T) {
	old := compileOK(t, sensor("a b c", "t=a && b; u=a && c"))
	now := compileOK(t, sensor("a b c", "v=a && b; u=c && b; t=a && b && c"))
	if old.StateFingerprint() != now.StateFingerprint() {
		t.Fatal("the fingerprint depends on triggers")
	}
	r := newRun(t, old)
	r.play("a")
	r.p = now
	r.play("b c")
	// t keeps a1 and sees b2 and c3; u no longer refers to a; v begins with b2.
	if got, want := r.firings(), "u(b2 c3) t(a1 b2 c3)"; got != want {
		t.Errorf("fires %s, want %s", got, want)
	}
	// A queue that waited under another condition is worked off in one step.
	queue := newRun(t, compileOK(t, sensor("a:first b", "t=a && b")))
	queue.play("a a")
	queue.p = compileOK(t, sensor("a:first b", "t=a"))
	if got := queue.play("a"); got != "t(a1) t(a2) t(a3)" || len(queue.states) != 0 {
		t.Errorf("fires %s", got)
	}
	if got := now.Adopt(KeyState{names: &[]string{"gone"}, first: triggerView{{seq: 1}}, more: &extra{fired: []int64{1}}}); !got.Empty() || got.names != nil {
		t.Errorf("%v", got)
	}
	for _, change := range []func(*specs.Sensor){
		func(s *specs.Sensor) { s.Correlate = expr("id") },
		func(s *specs.Sensor) { s.Dependencies[0].When = expr("true") },
		func(s *specs.Sensor) { s.Dependencies[0].Transform = specs.Transform{Expr: expr("data")} },
		func(s *specs.Sensor) { s.Dependencies[0].Transform = specs.Transform{JQ: expr(".data")} },
		func(s *specs.Sensor) { s.Dependencies[0].Count = 1 },
		func(s *specs.Sensor) { s.Dependencies[0].Count = 2 },
		func(s *specs.Sensor) { s.Dependencies[0].Distinct = expr("id") },
		func(s *specs.Sensor) { s.Dependencies[0].Pick = specs.PickFirst },
		func(s *specs.Sensor) { s.Dependencies[0], s.Dependencies[1] = s.Dependencies[1], s.Dependencies[0] },
	} {
		s := sensor("a b c", "t=a && b; u=a && c")
		change(s)
		if compileOK(t, s).StateFingerprint() == old.StateFingerprint() {
			t.Error("the fingerprint does not cover a change")
		}
	}
	same := sensor("a:latest b c", "t=a && b")
	same.Within = specs.Duration(time.Hour)
	if compileOK(t, same).StateFingerprint() != old.StateFingerprint() {
		t.Error("the fingerprint covers what does not matter")
	}
}

func TestBoundedQueue(t *testing.T) {
	r := newRun(t, compileOK(t, sensor("a:first b", "t=a && b")))
	for range MaxKept + 2 {
		r.send(r.event("a", "", 0))
	}
	st := r.states[""]
	if n := len(st.Refs()); n != MaxKept || st.MinRef() != 3 {
		t.Errorf("%d kept from %d on", n, st.MinRef())
	}
	if got := strings.Join(r.said, "; "); got != "superseded at 1; superseded at 2" {
		t.Errorf("says %s", got)
	}
}

// TestViewSharesPayload checks that programs see the same, whatever others
// looked at before them.
func TestViewSharesPayload(t *testing.T) {
	conds := map[string]Outcome{
		"data.a == 1": Yes, "data.b.c == 2": Yes, "data.a == 2": No, "data.x > 1": Missing, "data != nil && len(data) == 3": Yes,
		"d.data.a == 1": Yes, "'b' in data": Yes, "d != nil": Yes, "type == 't.d'": Yes, "data?.list[0] == 5": Yes, "get(data, 'a') == 1": Yes,
		"let x = data; x.list[0] == 5": Yes, "data['a'] == 1": Yes, "keys(data)[0] == 'a'": Yes, "data.b['c'] + data.a == 3": Yes,
	}
	compiled := map[string]*Program{}
	for c := range conds {
		s := sensor("d", "t=d")
		s.Dependencies[0].When = expr(c)
		compiled[c] = compileOK(t, s)
	}
	r := newRun(t, nil)
	v := NewView(r.event("x", "{", 0))
	for range 50 { // the order of the map is another each time
		v.Reset(r.event("d", `{"a":1,"b":{"c":2},"list":[5]}`, 0))
		for c, want := range conds {
			got := Yes
			if routing := compiled[c].Route(v); len(routing.Matches) == 0 {
				got = routing.Verdicts[0].Outcome
			}
			if got != want {
				t.Fatalf("%s: %v, want %v", c, got, want)
			}
		}
	}
	for _, data := range []string{"[1]", "5", "text", `"t"`, "", "\xff"} {
		v.Reset(r.event("d", data, 0))
		if routing := compiled["data.a == 1"].Route(v); len(routing.Matches) > 0 || routing.Verdicts[0].Outcome != Missing && routing.Verdicts[0].Outcome != Failed {
			t.Errorf("%q: %+v", data, routing)
		}
	}
}
