package sensors

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// formula is a condition the model evaluates for itself.
type formula struct {
	op          string // "&&", "||" or "" for a leaf
	left, right *formula
	dep         int
	absent      bool
}

func (f *formula) String() string {
	if f.op == "" {
		if f.absent {
			return "absent(d" + string(rune('0'+f.dep)) + ")"
		}
		return "d" + string(rune('0'+f.dep))
	}
	return "(" + f.left.String() + " " + f.op + " " + f.right.String() + ")"
}

func (f *formula) holds(have map[int]bool) bool {
	switch f.op {
	case "&&":
		return f.left.holds(have) && f.right.holds(have)
	case "||":
		return f.left.holds(have) || f.right.holds(have)
	default:
		return have[f.dep]
	}
}

func (f *formula) refs(set map[int]bool) map[int]bool {
	if f.op == "" {
		set[f.dep] = true
		return set
	}
	return f.right.refs(f.left.refs(set))
}

func genFormula(t *rapid.T, deps, depth, absent int) *formula {
	if depth == 0 || rapid.IntRange(0, 2).Draw(t, "leaf") == 0 {
		d := rapid.IntRange(0, max(deps-1, absent)).Draw(t, "dep")
		return &formula{dep: d, absent: d == absent}
	}
	return &formula{
		op:   rapid.SampledFrom([]string{"&&", "||"}).Draw(t, "op"),
		left: genFormula(t, deps, depth-1, absent), right: genFormula(t, deps, depth-1, absent),
	}
}

// model keeps everything in plain lists and looks at all of it each time.
type model struct {
	names  []string // event pattern by dependency
	picks  []specs.Pick
	odd    []bool // takes odd sequences only
	counts []int
	unique []bool // distinct values
	most   int    // events that wait for one dependency
	// absent is the number of the dependency after all others that is declared
	// absent, -1 for none.
	absent, after int
	patience      time.Duration
	conds         []*formula
	within        time.Duration
	wait          map[string][]waiting // by key and trigger
	cool          []time.Duration      // of the triggers
	fired         map[string]time.Time
	reset         int // minutes of the clock at which everything waiting is given up
	gathers       []*gathering
	gathered      map[string]*gathered
}

// gathered is what a trigger holds back.
type gathered struct {
	first, due time.Time
	sets       []string
}

type waiting struct {
	dep int
	seq uint64
	at  time.Time
	val string
	// answered and passed are about the absence this event begins.
	answered, passed bool
}

// waiting are those of one dependency.
func (m *model) waiting(list []waiting, d int) []waiting {
	return slices.DeleteFunc(slices.Clone(list), func(w waiting) bool { return w.dep != d })
}

// event takes one event and returns what fires as text.
func (m *model) event(name, key, val string, seq uint64, now time.Time) (fired []string) {
	for i, cond := range m.conds {
		refs := m.refs(cond)
		slot := fmt.Sprint(key, "/", i)
		list := m.inTime(m.wait[slot], now)
		if m.absent >= 0 && (m.names[m.absent] == "*" || m.names[m.absent] == name) {
			for j := range list {
				if list[j].dep == m.after && now.Before(list[j].at.Add(m.patience)) {
					list[j].answered = true
				}
			}
			list = slices.DeleteFunc(list, func(w waiting) bool { return w.answered && !m.without(cond) })
		}
		news := false
		for d, pattern := range m.names {
			if d == m.absent || !refs[d] || pattern != "*" && pattern != name || m.odd[d] && seq%2 == 0 {
				continue
			}
			if m.unique[d] {
				same := slices.IndexFunc(list, func(w waiting) bool { return w.dep == d && w.val == val })
				if same >= 0 && m.picks[d] == specs.PickFirst {
					continue
				}
				if same >= 0 {
					list = slices.Delete(list, same, same+1)
				}
			}
			list = append(list, waiting{dep: d, seq: seq, at: now, val: val})
			room := m.most
			if m.picks[d] == specs.PickLatest {
				room = m.counts[d]
			}
			if n := m.waiting(list, d); len(n) > room {
				list = slices.DeleteFunc(list, func(w waiting) bool { return w == n[0] })
			}
			news = true
		}
		var f []string
		if news {
			list, f = m.fire(i, key, list, now)
		}
		fired = append(fired, f...)
		m.wait[slot] = list
	}
	return fired
}

// refs are what a condition refers to, the event that begins an absence too.
func (m *model) refs(cond *formula) map[int]bool {
	refs := cond.refs(map[int]bool{})
	if m.absent >= 0 && refs[m.absent] {
		refs[m.after] = true
	}
	return refs
}

// without reports whether a condition can hold when nothing is absent.
func (m *model) without(cond *formula) bool {
	have := map[int]bool{}
	for d := range m.names {
		have[d] = d != m.absent
	}
	return cond.holds(have) // conditions only gain by what arrives
}

func (m *model) inTime(list []waiting, now time.Time) []waiting {
	return slices.DeleteFunc(list, func(w waiting) bool { return m.over(w, now) })
}

func (m *model) over(w waiting, now time.Time) bool {
	if m.within != 0 && !now.Before(w.at.Add(m.within)) {
		return true
	}
	for at := w.at.Truncate(time.Minute).Add(time.Minute); m.reset > 0 && !at.After(now); at = at.Add(time.Minute) {
		if at.Minute()%m.reset == 0 {
			return true
		}
	}
	return false
}

// deadlines lets what is due up to now happen, one after the other: first what
// was gathered, then absences.
func (m *model) deadlines(key string, now time.Time) (fired []string) {
	for {
		var due time.Time
		for i, cond := range m.conds {
			if g := m.gathered[fmt.Sprint(key, "/", i)]; g != nil && !g.due.IsZero() && !g.due.After(now) && (due.IsZero() || g.due.Before(due)) {
				due = g.due
			}
			for _, w := range m.wait[fmt.Sprint(key, "/", i)] {
				at := w.at.Add(m.patience)
				if m.absent >= 0 && !m.over(w, at) && m.refs(cond)[m.absent] && w.dep == m.after && !w.answered && !w.passed && !at.After(now) && (due.IsZero() || at.Before(due)) {
					due = at
				}
			}
		}
		if due.IsZero() {
			break
		}
		for i := range m.conds {
			slot := fmt.Sprint(key, "/", i)
			if g := m.gathered[slot]; g != nil && g.due.Equal(due) {
				delete(m.gathered, slot)
				fired = append(fired, m.emit(i, key, strings.Join(g.sets, " |"), due)...)
			}
		}
		for i, cond := range m.conds {
			slot, over := fmt.Sprint(key, "/", i), false
			list := m.inTime(m.wait[slot], due)
			for j, w := range list {
				if m.absent >= 0 && m.refs(cond)[m.absent] && w.dep == m.after && !w.answered && !w.passed && w.at.Add(m.patience).Equal(due) {
					list[j].passed, over = true, true
				}
			}
			var f []string
			if over {
				list, f = m.fire(i, key, list, due)
			}
			fired = append(fired, f...)
			m.wait[slot] = list
		}
	}
	return fired
}

// fire is what one trigger fires of what waits.
func (m *model) fire(i int, key string, list []waiting, now time.Time) (rest []waiting, fired []string) {
	cond := m.conds[i]
	refs := m.refs(cond)
	for {
		var used []waiting
		have := map[int]bool{}
		for d := range m.names {
			all := m.waiting(list, d)
			if !refs[d] || d == m.absent {
				continue
			}
			if len(all) < m.counts[d] {
				continue
			}
			if m.picks[d] != specs.PickAll {
				all = all[:m.counts[d]]
			}
			used, have[d] = append(used, all...), true
		}
		for _, w := range used {
			if w.passed {
				have[m.absent] = true
			}
		}
		if len(used) == 0 || !cond.holds(have) {
			return list, fired
		}
		s := ""
		for _, w := range used {
			s += fmt.Sprintf(" d%d:%d", w.dep, w.seq)
		}
		if m.gathers[i] == nil {
			fired = append(fired, m.emit(i, key, s, now)...)
		} else {
			fired = append(fired, m.gather(i, key, s, now)...)
		}
		list = slices.DeleteFunc(list, func(w waiting) bool { return slices.Contains(used, w) })
	}
}

// gather keeps what would fire.
func (m *model) gather(i int, key, s string, now time.Time) []string {
	slot, rule := fmt.Sprint(key, "/", i), m.gathers[i]
	g := m.gathered[slot]
	if g == nil {
		g = &gathered{first: now}
		m.gathered[slot] = g
	}
	if rule.size == 0 {
		g.sets = []string{s}
		if g.due = now.Add(time.Duration(rule.quiet)); rule.longest > 0 && g.first.Add(time.Duration(rule.longest)).Before(g.due) {
			g.due = g.first.Add(time.Duration(rule.longest))
		}
		return nil
	}
	g.sets = append(g.sets, s)
	if rule.wait > 0 {
		g.due = g.first.Add(time.Duration(rule.wait))
	}
	if len(g.sets) < rule.size {
		return nil
	}
	delete(m.gathered, slot)
	return m.emit(i, key, strings.Join(g.sets, " |"), now)
}

// emit fires, unless the trigger is quiet.
func (m *model) emit(i int, key, s string, now time.Time) []string {
	slot := fmt.Sprint(key, "/", i)
	if last, ok := m.fired[slot]; ok && m.cool[i] > 0 && now.Before(last.Add(m.cool[i])) {
		return nil
	}
	m.fired[slot] = now
	return []string{fmt.Sprintf("t%d@%s%s", i, key, s)}
}

func TestStepAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deps := rapid.IntRange(1, 3).Draw(t, "deps")
		m := &model{wait: map[string][]waiting{}, fired: map[string]time.Time{}, gathered: map[string]*gathered{}, within: time.Duration(rapid.SampledFrom([]int{0, 3, 10}).Draw(t, "within")) * time.Minute}
		m.most = rapid.SampledFrom([]int{MaxKept, 3, 4}).Draw(t, "most")
		s := &specs.Sensor{Within: specs.Duration(m.within), Limits: &specs.StateLimits{Events: m.most}}
		for d := range deps {
			m.names = append(m.names, rapid.SampledFrom([]string{"a", "b", "c", "*"}).Draw(t, "event"))
			m.picks = append(m.picks, rapid.SampledFrom([]specs.Pick{specs.PickLatest, specs.PickFirst, specs.PickAll}).Draw(t, "pick"))
			s.Dependencies = append(s.Dependencies, specs.Dependency{Name: fmt.Sprint("d", d), Source: "src", Event: m.names[d], Pick: m.picks[d]})
			s.Dependencies[d].Count = rapid.SampledFrom([]int{0, 0, 1, 2, 3}).Draw(t, "count")
			m.counts = append(m.counts, max(s.Dependencies[d].Count, 1))
			m.unique = append(m.unique, rapid.Bool().Draw(t, "distinct"))
			if m.unique[d] {
				s.Dependencies[d].Distinct = expr("dataschema")
			}
			m.odd = append(m.odd, rapid.Bool().Draw(t, "transform"))
			if m.odd[d] {
				s.Dependencies[d].Transform, s.Dependencies[d].When = specs.Transform{Expr: expr("{parity: id}")}, expr("data.parity == 'odd'")
				if rapid.Bool().Draw(t, "jq") {
					s.Dependencies[d].Transform = specs.Transform{JQ: expr("{parity: .id}")}
				}
			}
		}
		if m.reset = rapid.SampledFrom([]int{0, 0, 5, 7}).Draw(t, "reset"); m.reset > 0 {
			s.Reset = &specs.Reset{Cron: fmt.Sprintf("*/%d * * * *", m.reset)}
		}
		m.absent = -1
		if rapid.Bool().Draw(t, "absent") {
			m.absent, m.after, m.patience = deps, rapid.IntRange(0, deps-1).Draw(t, "after"), time.Duration(rapid.IntRange(1, 2).Draw(t, "for"))*time.Minute
			m.picks[m.after], m.counts[m.after] = specs.PickLatest, 1
			s.Dependencies[m.after].Pick, s.Dependencies[m.after].Count = "", 0
			m.names = append(m.names, rapid.SampledFrom([]string{"a", "b", "c", "*"}).Draw(t, "event"))
			m.picks, m.odd, m.unique, m.counts = append(m.picks, ""), append(m.odd, false), append(m.unique, false), append(m.counts, 1)
			s.Dependencies = append(s.Dependencies, specs.Dependency{
				Name: fmt.Sprint("d", deps), Source: "src", Event: m.names[deps],
				Absent: &specs.Absent{For: specs.Duration(m.patience), After: fmt.Sprint("d", m.after)},
			})
		}
		for i := range rapid.IntRange(1, 2).Draw(t, "triggers") {
			m.conds = append(m.conds, genFormula(t, deps, 2, m.absent))
			cond := m.conds[i].String()
			if rapid.Bool().Draw(t, "reads payloads") {
				// The same, but decided by evaluating over the events.
				leaf := m.conds[i].leaf()
				if leaf == m.absent {
					leaf = m.after
				}
				cond += fmt.Sprintf(" && (d%d == nil || true)", leaf)
			}
			s.Triggers = append(s.Triggers, specs.Trigger{Name: fmt.Sprint("t", i), Condition: expr(cond)})
			m.cool = append(m.cool, time.Duration(rapid.SampledFrom([]int{0, 0, 1, 5}).Draw(t, "cooldown"))*time.Minute)
			s.Triggers[i].Cooldown = specs.Duration(m.cool[i])
			minutes := func(least int) specs.Duration {
				return specs.Duration(time.Duration(rapid.IntRange(least, 6).Draw(t, "minutes")) * time.Minute)
			}
			switch rapid.IntRange(0, 4).Draw(t, "gathers") {
			case 0:
				s.Triggers[i].Debounce = &specs.Debounce{Quiet: minutes(1), Max: minutes(0)}
			case 1:
				s.Triggers[i].Batch = &specs.Batch{Size: rapid.IntRange(1, 3).Draw(t, "size"), Wait: minutes(0)}
			}
			m.gathers = append(m.gathers, newGathering(&s.Triggers[i]))
		}
		correlated := rapid.Bool().Draw(t, "correlated")
		if correlated {
			s.Correlate = expr("subject")
		}
		p, ds := Compile("sen", s)
		if ds.HasErrors() {
			t.Fatal(ds)
		}

		type sent struct {
			name, key, val string
			after          time.Duration
		}
		script := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) sent {
			e := sent{name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"), after: time.Duration(rapid.IntRange(0, 4).Draw(t, "after")) * time.Minute}
			e.val = rapid.SampledFrom([]string{"v", "w"}).Draw(t, "value")
			if correlated {
				e.key = rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key")
			}
			return e
		}), 1, 30).Draw(t, "events")
		stored := rapid.SliceOfN(rapid.Bool(), len(script), len(script)).Draw(t, "stored after")

		play := func(compare bool, code func(i int) bool) []Firing {
			states, events := map[string]KeyState{}, map[uint64]*bus.Event{}
			var all []Firing
			kept := func(seq uint64) *bus.Event { return events[seq] }
			now := t0
			for i, e := range script {
				now = now.Add(e.after)
				seq := uint64(i + 1)
				ev := &bus.Event{ID: []string{"even", "odd"}[seq%2], Source: "s", Type: "t", EventSource: "src", EventName: e.name, Subject: e.key, DataSchema: e.val, Seq: seq, StoredAt: now}
				events[seq] = ev
				text := func(fired []Firing) (got []string) {
					for _, f := range fired {
						s := fmt.Sprintf("t%d@%s", f.TriggerIndex, f.Correlation)
						sets := []map[int]bool{}
						for j, c := range f.Events {
							if j == 0 || c.Batch != f.Events[j-1].Batch {
								sets = append(sets, map[int]bool{m.absent: true})
							}
							if j > 0 && c.Batch != f.Events[j-1].Batch {
								s += " |"
							}
							s += fmt.Sprintf(" %s:%d", c.Dependency, c.Seq)
							sets[c.Batch][int(c.Dependency[1]-'0')] = true
						}
						for _, have := range sets {
							if !m.conds[f.TriggerIndex].holds(have) {
								t.Fatalf("%s fires without its condition %s", s, m.conds[f.TriggerIndex])
							}
						}
						got = append(got, s)
					}
					return got
				}
				for _, k := range []string{"", "k1", "k2"} { // deadlines
					var late []Firing
					for {
						at, ok := p.NextWake(states[k])
						if !ok || at.After(now) {
							break
						}
						st, fs, _ := p.Step(states[k], Input{LogID: "l", Key: k, Time: at, Kept: kept})
						if again, ok := p.NextWake(st); ok && !again.After(at) {
							t.Fatalf("the deadline %v wakes again at %v", at, again)
						}
						late = append(late, fs...)
						if code(i) {
							st = restored(t, st)
						}
						states[k] = st
					}
					all = append(all, late...)
					if !compare {
						continue
					}
					if got, want := text(late), m.deadlines(k, now); !slices.Equal(got, want) {
						t.Fatalf("before event %d: deadlines of %q fire %v, want %v", seq, k, got, want)
					}
				}
				var fired []Firing
				ms := p.Route(NewView(ev)).Matches
				if len(ms) > 0 {
					in := Input{LogID: "l", Key: ms[0].Key, Event: ev, Time: now, Kept: kept}
					for _, mt := range ms {
						in.Deps = append(in.Deps, mt.Dep)
					}
					st, fs, _ := p.Step(states[in.Key], in)
					if code(i) {
						st = restored(t, st)
					}
					states[in.Key], fired = st, fs
				}
				all = append(all, fired...)
				if !compare {
					continue
				}
				if got, want := text(fired), m.event(e.name, e.key, e.val, seq, now); !slices.Equal(got, want) {
					t.Fatalf("event %d (%s): fires %v, want %v", seq, e.name, got, want)
				}
			}
			// Nothing waits that the model has given up, and the other way round.
			if compare {
				kept := 0
				for _, st := range states {
					kept += len(st.Kept())
				}
				want := 0
				for _, list := range m.wait {
					for _, w := range list {
						if !m.over(w, now) {
							want++
						}
					}
				}
				if kept != want {
					t.Fatalf("%d events are kept, want %d", kept, want)
				}
			}
			return all
		}
		first := play(true, func(i int) bool { return stored[i] })
		// The same log gives the same firings, stored in between or not.
		for _, code := range []func(int) bool{func(int) bool { return false }, func(int) bool { return true }} {
			again := play(false, code)
			if len(first) != len(again) {
				t.Fatalf("%d firings, then %d", len(first), len(again))
			}
			keys := map[string]bool{}
			for i := range first {
				if first[i].Key != again[i].Key || !reflect.DeepEqual(first[i].Events, again[i].Events) {
					t.Fatalf("firing %d differs: %v, %v", i, first[i], again[i])
				}
				if keys[first[i].Key] {
					t.Fatalf("firing key %s twice", first[i].Key)
				}
				keys[first[i].Key] = true
			}
		}
	})
}

// restored is a state after it was stored and loaded.
func restored(t *rapid.T, st KeyState) KeyState {
	got, err := DecodeKeyState(st.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (f *formula) leaf() int {
	for f.op != "" {
		f = f.left
	}
	return f.dep
}

func FuzzDecodeKeyState(f *testing.F) {
	spec := sensor("a:first b:all", "t=a && b; u=a && b")
	spec.Within = specs.Duration(time.Minute)
	p := compileOK(f, spec)
	r := newRun(f, p)
	for range 3 {
		r.play("a +1s a")
		st := r.states[""]
		f.Add(st.Append(nil))
	}
	spec.Dependencies[1].Distinct = expr("id")
	r = newRun(f, compileOK(f, spec))
	r.play("b b")
	r.p.triggers[0].cooldown = 1
	full := r.states[""]
	full.setQuiet(0, 5)
	f.Add(full.Append(nil))
	gathers := newRun(f, compileOK(f, batch(sensor("a", "t=a"), 3, time.Minute)))
	gathers.play("a a")
	state := gathers.states[""]
	f.Add(state.Append(nil))
	flows := newRun(f, compileOK(f, after(sensor("a", "b=a; c=a"), "d<b,c")))
	flows.play("a b!1 a")
	state = flows.states[""]
	f.Add(state.Append(nil))
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := DecodeKeyState(b)
		if err != nil {
			return
		}
		again, err := DecodeKeyState(st.Append(nil))
		if err != nil || !reflect.DeepEqual(st, again) {
			t.Fatalf("%v becomes %v, %v", st, again, err)
		}
		// Whatever it holds, a step takes it.
		p.NextWake(st)
		ev := benchEvent("a", st.Seen()+1)
		st, _, _ = p.Step(st, Input{LogID: "l", Event: ev, Deps: []int{0}, Time: t0, Kept: func(seq uint64) *bus.Event { return benchEvent("a", seq) }})
		if st.Empty() && st.Seen() != 0 {
			t.Fatal("empty, but not zero")
		}
	})
}
