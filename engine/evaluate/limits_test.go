package evaluate_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// limited compiles a sensor that waits for a and b within 10 minutes.
func limited(t testing.TB, l specs.StateLimits, change ...func(*specs.Sensor)) evaluate.Sensor {
	t.Helper()
	s := &specs.Sensor{
		Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a"}, {Name: "b", Source: "s", Event: "b"}},
		Correlate:    specs.Expr{Source: "data.key"}, Within: specs.Duration(10 * time.Minute),
		Triggers: []specs.Trigger{{Name: "t", Function: "f"}}, Limits: &l,
	}
	for _, f := range change {
		f(s)
	}
	p, found := sensors.Compile("x", s)
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return evaluate.Sensor{Name: "x", Program: p}
}

func TestOldestKeyIsEvicted(t *testing.T) {
	l := newLog(limited(t, specs.StateLimits{Keys: 2}))
	l.event(1, 0, "a", `{"key": "k"}`)
	l.event(2, 0, "a", `{"key": "l"}`)
	l.event(3, 0, "a", `{"key": "k"}`)
	l.lines = nil
	l.event(4, time.Second, "a", `{"key": "m"}`)
	l.is(t, "1s x wants m\n1s x evicts l, 1 events, seen 2")
	l.event(5, time.Second, "b", `{"key": "l"}`) // begins anew
	l.is(t, "1s x wants l\n1s x evicts k, 1 events, seen 3")
	l.event(6, time.Second, "b", `{"key": "m"}`) // makes room
	l.event(7, time.Second, "a", `{"key": "n"}`)
	l.is(t, "1s x wants m\n1s x fires m\n1s x wants n")
	if keys, _ := l.e.Usage(0); keys != 2 || l.e.Len() != 2 {
		t.Errorf("%d keys, %d entries", keys, l.e.Len())
	}
}

// TestKeysOfOneEventAreEvictedByName: they were touched at the same time.
func TestKeysOfOneEventAreEvictedByName(t *testing.T) {
	transformed := func(s *specs.Sensor) {
		s.Dependencies[0].Transform = specs.Transform{Expr: specs.Expr{Source: "{key: data.first}"}}
		s.Dependencies[1].Event, s.Dependencies[1].Transform = "a", specs.Transform{Expr: specs.Expr{Source: "{key: data.second}"}}
	}
	l := newLog(limited(t, specs.StateLimits{Keys: 2}, transformed))
	l.event(1, 0, "a", `{"first": "z", "second": "y"}`)
	l.event(2, 0, "a", `{"first": "k", "second": "l"}`)
	l.event(3, 0, "a", `{"first": "j", "second": "i"}`)
	var evicted []string
	for _, line := range l.lines {
		if _, what, ok := strings.Cut(line, " evicts "); ok {
			evicted = append(evicted, what[:1])
		}
	}
	if got := strings.Join(evicted, " "); got != "y z k l" {
		t.Errorf("evicted %s", got)
	}
}

func TestBytesAreLimited(t *testing.T) {
	// A key counts 128 bytes and its text, an event 32: six of them fit.
	l := newLog(limited(t, specs.StateLimits{Bytes: 1 << 10}, func(s *specs.Sensor) { s.Dependencies[0].Pick = specs.PickAll }))
	for seq := range uint64(6) {
		l.event(seq+1, 0, "a", fmt.Sprintf(`{"key": "k%d"}`, seq))
	}
	if keys, size := l.e.Usage(0); keys != 6 || size != 6*(128+2+32) {
		t.Errorf("%d keys count %d bytes", keys, size)
	}
	l.lines = nil
	l.event(7, 0, "a", `{"key": "k3"}`)
	l.event(8, 0, "a", `{"key": "k3"}`)
	l.is(t, "0s x wants k3\n0s x wants k3\n0s x evicts k0, 1 events, seen 1")
	// One that alone is too large does not drive out the others.
	seq := uint64(8)
	for len(l.lines) == 0 || !strings.Contains(l.lines[len(l.lines)-1], "evicts big") {
		seq++
		l.event(seq, 0, "a", `{"key": "big"}`)
		if len(l.lines) > 100 {
			t.Fatal("it stays")
		}
	}
	l.lines = nil
	l.event(seq+1, 0, "a", `{"key": "big"}`)
	l.is(t, "0s x wants big")
}

func TestLowerLimits(t *testing.T) {
	l := newLog(limited(t, specs.StateLimits{Keys: 5}))
	for seq := range uint64(5) {
		l.event(seq+1, 0, "a", fmt.Sprintf(`{"key": "k%d"}`, seq))
	}
	l.lines = nil
	l.e.Use([]evaluate.Sensor{limited(t, specs.StateLimits{Keys: 3})})
	l.e.Limit()
	l.is(t, "0s x evicts k0, 1 events, seen 1\n0s x evicts k1, 1 events, seen 2")
	l.e.Deadlines(l.start.Add(time.Hour))
	l.is(t, "10m0s x gives up 3\n10m0s x gives up 4\n10m0s x gives up 5")
	if keys, size := l.e.Usage(0); keys != 0 || size != 0 {
		t.Errorf("%d keys count %d bytes", keys, size)
	}
}

// world runs an evaluator and keeps what it says.
type world struct {
	t       *rapid.T
	e       *evaluate.Evaluator
	events  map[uint64]*bus.Event
	evicted []evaluate.Eviction
	fired   []string
	keep    bool // emptied keys stay until they are swept
	changed map[evaluate.Key]bool
}

func (w *world) Undecided([]sensors.GroupVerdict) {}
func (w *world) Routed(int, sensors.Routing)      {}
func (w *world) Stepped(int, []sensors.Verdict)   {}
func (w *world) Evicted(_ int, ev evaluate.Eviction) {
	w.evicted = append(w.evicted, ev)
}

func (w *world) Changed(k evaluate.Key, en *evaluate.Entry) {
	w.changed[k] = true
	if en.State.Empty() && !w.keep {
		w.e.Drop(k)
	}
}

func (w *world) Fired(_ int, f *sensors.Firing) {
	w.fired = append(w.fired, fmt.Sprintf("%s %v", f.Correlation, f.Events))
}

var began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *rapid.T, s evaluate.Sensor, events map[uint64]*bus.Event, position uint64, now time.Time) *world {
	w := &world{t: t, events: events, changed: map[evaluate.Key]bool{}}
	w.e = evaluate.New(w, "log", position, now, evaluate.Events(events).Load)
	w.e.Use([]evaluate.Sensor{s})
	return w
}

func (w *world) event(seq uint64) {
	ev := w.events[seq]
	w.e.Advance(seq, ev.StoredAt)
	w.e.Event(ev)
}

// drawSensor draws a sensor with small limits.
func drawSensor(t *rapid.T) evaluate.Sensor {
	l := specs.StateLimits{Keys: rapid.IntRange(1, 5).Draw(t, "keys"), Events: rapid.IntRange(1, 3).Draw(t, "events")}
	if rapid.Bool().Draw(t, "bytes limited") {
		l.Bytes = specs.Size(rapid.IntRange(150, 900).Draw(t, "bytes"))
	}
	s := &specs.Sensor{
		Dependencies: []specs.Dependency{
			{Name: "a", Source: "s", Event: "a", Pick: rapid.SampledFrom([]specs.Pick{specs.PickLatest, specs.PickFirst, specs.PickAll}).Draw(t, "pick")},
			{Name: "b", Source: "s", Event: "b"},
			{Name: "c", Source: "s", Event: "c", Absent: &specs.Absent{For: specs.Duration(3 * time.Second), After: "b"}},
		},
		Correlate: specs.Expr{Source: "data.key"}, Condition: specs.Expr{Source: rapid.SampledFrom([]string{"a && b", "a && b && absent(c)", "a && (b || absent(c))"}).Draw(t, "condition")},
		Within:   specs.Duration(rapid.SampledFrom([]time.Duration{0, 4 * time.Second, 15 * time.Second}).Draw(t, "within")),
		Triggers: []specs.Trigger{{Name: "t", Function: "f"}, {Name: "u", Function: "f", Cooldown: specs.Duration(rapid.SampledFrom([]time.Duration{0, 5 * time.Second}).Draw(t, "cooldown"))}},
		Limits:   &l,
	}
	if rapid.Bool().Draw(t, "distinct") && s.Dependencies[0].Pick != specs.PickLatest {
		s.Dependencies[0].Distinct = specs.Expr{Source: "data.n"}
	}
	p, found := sensors.Compile("x", s)
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return evaluate.Sensor{Name: "x", Program: p}
}

// drawEvents draws a log.
func drawEvents(t *rapid.T) (map[uint64]*bus.Event, uint64) {
	n, at, events := rapid.IntRange(1, 40).Draw(t, "n"), began, map[uint64]*bus.Event{}
	for seq := range uint64(n) {
		at = at.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "pause")) * time.Second)
		events[seq+1] = &bus.Event{
			ID: "1", Source: "/s", Type: "t", EventSource: "s", EventName: rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "event"),
			Data: fmt.Appendf(nil, `{"key":"k%d","n":"%s"}`, rapid.IntRange(0, 8).Draw(t, "key"), rapid.SampledFrom([]string{"", "x", "long"}).Draw(t, "value")),
			Seq:  seq + 1, StoredAt: at,
		}
	}
	return events, uint64(n)
}

// plain is the model: a map that is looked through.
type plain struct {
	p      *sensors.Program
	states map[string]sensors.KeyState
	seen   map[string]uint64
	now    time.Time
	pos    uint64
	said   []string
}

func (m *plain) step(key string, in sensors.Input) {
	in.Key = key
	st, fired, _ := m.p.Step(m.states[key], in)
	if m.states[key], m.seen[key] = st, m.pos; st.Empty() {
		delete(m.states, key)
	}
	for i := range fired {
		m.said = append(m.said, fmt.Sprintf("%s %v", key, fired[i].Events))
	}
}

func (m *plain) advance(until time.Time) {
	for {
		var due time.Time
		next := ""
		for _, key := range slices.Sorted(maps.Keys(m.states)) {
			if at, ok := m.p.NextWake(m.states[key]); ok && !at.After(until) && (next == "" || at.Before(due)) {
				due, next = at, key
			}
		}
		if next == "" {
			return
		}
		m.step(next, sensors.Input{LogID: "log", Time: due})
	}
}

func (m *plain) evict(key string) {
	st := m.states[key]
	m.said = append(m.said, fmt.Sprintf("evicts %s %d %d", key, len(st.Refs()), m.seen[key]))
	delete(m.states, key)
}

func (m *plain) size() (n int) {
	for key, st := range m.states {
		n += m.p.Size(key, &st)
	}
	return n
}

func (m *plain) event(ev *bus.Event) {
	if ev.StoredAt.After(m.now) {
		m.advance(ev.StoredAt)
		m.now = ev.StoredAt
	}
	m.pos = ev.Seq
	matches := m.p.Route(sensors.NewView(ev)).Matches
	if len(matches) == 0 {
		return
	}
	key := matches[0].Key
	m.step(key, sensors.Input{LogID: "log", Event: ev, Deps: []int{matches[0].Dep}, Time: m.now})
	most := m.p.Limits()
	if st := m.states[key]; m.p.Size(key, &st) > most.Bytes {
		m.evict(key)
	}
	for len(m.states) > most.Keys || m.size() > most.Bytes {
		oldest := ""
		for _, key := range slices.Sorted(maps.Keys(m.states)) {
			if oldest == "" || m.seen[key] < m.seen[oldest] {
				oldest = key
			}
		}
		m.evict(oldest)
	}
}

// TestLimitsAgainstModel: what fires and what is given up is what a plain map
// that is looked through says, and what the evaluator has counted is what there
// is.
func TestLimitsAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSensor(t)
		events, n := drawEvents(t)
		m := &plain{p: s.Program, states: map[string]sensors.KeyState{}, seen: map[string]uint64{}, now: began}
		w := newWorld(t, s, events, 0, began)
		w.keep = rapid.Bool().Draw(t, "sweep later")
		for seq := uint64(1); seq <= n; seq++ {
			m.said, w.fired, w.evicted = nil, nil, nil
			m.event(events[seq])
			w.event(seq)
			for _, ev := range w.evicted {
				w.fired = append(w.fired, fmt.Sprintf("evicts %s %d %d", ev.Key, ev.Events, ev.Seen))
			}
			if !slices.Equal(m.said, w.fired) {
				t.Fatalf("event %d: the evaluator says %q, the model %q", seq, w.fired, m.said)
			}
			if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
				least := uint64(0)
				for _, st := range m.states {
					if seq := st.MinRef(); seq > 0 && (least == 0 || seq < least) {
						least = seq
					}
				}
				if got := w.e.Oldest(); got != least {
					t.Fatalf("event %d: the oldest event referred to is %d, the model's %d", seq, got, least)
				}
			}
			keys, size := w.e.Usage(0)
			live := 0
			for k, en := range w.e.Keys() {
				st := m.states[k.Key]
				if !bytes.Equal(en.State.Append(nil), st.Append(nil)) {
					t.Fatalf("event %d: the state of %s is not that of the model", seq, k.Key)
				}
				if !en.State.Empty() {
					live++
				}
				if at, ok := m.p.NextWake(st); ok != !en.Wake().IsZero() || ok && !at.Equal(en.Wake()) {
					t.Fatalf("event %d: the deadline of %s is %s, the model's %s", seq, k.Key, en.Wake(), at)
				}
			}
			if keys != len(m.states) || size != m.size() || live != keys {
				t.Fatalf("event %d: %d keys count %d bytes, %d are not empty; the model has %d with %d", seq, keys, size, live, len(m.states), m.size())
			}
			if most := s.Program.Limits(); keys > most.Keys || size > most.Bytes {
				t.Fatalf("event %d: %d keys count %d bytes, beyond %+v", seq, keys, size, most)
			}
			if rapid.IntRange(0, 5).Draw(t, "sweep") == 0 {
				for k, en := range w.e.Keys() {
					if en.State.Empty() {
						w.e.Drop(k)
					}
				}
			}
		}
	})
}

// stored is a state as it is kept elsewhere.
type stored struct {
	state []byte
	seen  uint64
}

// snapshot is all there is at a place.
func (w *world) snapshot() map[string]stored {
	out := map[string]stored{}
	for k, en := range w.e.Keys() {
		out[k.Key] = stored{en.State.Append(nil), en.Seen}
	}
	return out
}

// TestEvictionsAfterACrash: after a crash that left the states of some keys, at
// different places behind the checkpoint, and what was evicted, all goes on as
// if there had been none.
func TestEvictionsAfterACrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSensor(t)
		events, n := drawEvents(t)
		w := newWorld(t, s, events, 0, began)
		w.keep = true
		at := make([]map[string]stored, n+1)
		now := make([]time.Time, n+1)
		fired := make([][]string, n+1)
		at[0], now[0] = w.snapshot(), began
		for seq := uint64(1); seq <= n; seq++ {
			w.fired = nil
			w.event(seq)
			at[seq], now[seq], fired[seq] = w.snapshot(), w.e.Now(), w.fired
		}
		covered := rapid.Uint64Range(0, n).Draw(t, "covered")
		reached := rapid.Uint64Range(covered, n).Draw(t, "reached")
		again := newWorld(t, s, events, covered, now[covered])
		again.keep = true
		ahead := uint64(0)
		for _, key := range slices.Sorted(maps.Keys(at[reached])) {
			st, ok := at[rapid.Uint64Range(covered, reached).Draw(t, "stored "+key)][key]
			if !ok {
				continue
			}
			state, err := sensors.DecodeKeyState(st.state)
			if err != nil {
				t.Fatal(err)
			}
			if state.Empty() && st.seen <= covered {
				continue
			}
			k := evaluate.Key{Sensor: "x", Key: key}
			again.e.Put(k, &evaluate.Entry{State: state, Seen: st.seen})
			again.e.Schedule(k)
			ahead = max(ahead, st.seen)
		}
		// The list is there before any state is.
		var list []evaluate.Eviction
		for _, ev := range w.evicted {
			if ev.Position > covered && ev.Position <= reached {
				list = append(list, evaluate.Eviction{Position: ev.Position, Key: ev.Key})
			}
		}
		switch {
		case len(list) > 0 && (ahead > covered || rapid.Bool().Draw(t, "list")):
			again.e.Decided("x", reached, list)
		case ahead > covered:
			again.e.Decided("x", ahead, nil)
		}
		for seq := covered + 1; seq <= n; seq++ {
			again.fired = nil
			again.event(seq)
			for _, f := range again.fired {
				if !slices.Contains(fired[seq], f) {
					t.Fatalf("event %d fires %q after the crash, and %q without one", seq, again.fired, fired[seq])
				}
			}
			if seq > reached && len(again.fired) != len(fired[seq]) {
				t.Fatalf("event %d fires %q after the crash, and %q without one", seq, again.fired, fired[seq])
			}
			if seq < reached {
				continue
			}
			got := again.snapshot()
			for key, st := range at[seq] {
				if other := got[key]; len(other.state) > 0 && !bytes.Equal(other.state, st.state) {
					t.Fatalf("event %d: the state of %s is another after the crash", seq, key)
				} else if len(other.state) == 0 && !empty(st.state) {
					t.Fatalf("event %d: the state of %s is gone after the crash", seq, key)
				}
				delete(got, key)
			}
			for key, st := range got {
				if !empty(st.state) {
					t.Fatalf("event %d: %s has a state after the crash only", seq, key)
				}
			}
		}
	})
}

func empty(b []byte) bool {
	s, err := sensors.DecodeKeyState(b)
	return err == nil && s.Empty()
}
