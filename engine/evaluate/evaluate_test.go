package evaluate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// log keeps what it is told, a line each.
type log struct {
	e     *evaluate.Evaluator
	load  func(seq uint64) (*bus.Event, error)
	start time.Time
	lines []string
}

func (l *log) add(sensor int, format string, args ...any) {
	l.lines = append(l.lines, fmt.Sprintf("%s %s %s", l.e.Now().Sub(l.start), l.e.Sensors()[sensor].Name, fmt.Sprintf(format, args...)))
}

func (l *log) Undecided(vs []sensors.GroupVerdict) {
	l.lines = append(l.lines, fmt.Sprintf("undecided %s", vs[0].Verdict.Detail))
}

func (l *log) Routed(sensor int, r sensors.Routing) {
	for _, m := range r.Matches {
		l.add(sensor, "wants %s", m.Key)
	}
}

func (l *log) Stepped(sensor int, vs []sensors.Verdict) {
	for _, v := range vs {
		if v.Outcome == sensors.Expired {
			l.add(sensor, "gives up %d", v.Seq)
		}
	}
}

func (l *log) read(seq uint64) (*bus.Event, error) { return l.load(seq) }

func (l *log) Evicted(sensor int, ev evaluate.Eviction) {
	l.add(sensor, "evicts %s, %d events, seen %d", ev.Key, ev.Events, ev.Seen)
}

func (l *log) Changed(k evaluate.Key, e *evaluate.Entry) {
	if e.State.Empty() {
		l.e.Drop(k)
	}
}

func (l *log) Fired(sensor int, f *sensors.Firing) { l.add(sensor, "fires %s", f.Correlation) }

// program compiles a sensor that waits for a and b.
func program(t *testing.T, name string, within time.Duration, when string) evaluate.Sensor {
	t.Helper()
	p, found := sensors.Compile(name, &specs.Sensor{
		Dependencies: []specs.Dependency{
			{Name: "a", Source: "s", Event: "a", When: specs.Expr{Source: when}}, {Name: "b", Source: "s", Event: "b", When: specs.Expr{Source: when}},
		},
		Correlate: specs.Expr{Source: "data.key"}, Within: specs.Duration(within),
		Triggers: []specs.Trigger{{Name: "t", Function: "f"}},
	})
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return evaluate.Sensor{Name: name, Program: p}
}

func newLog(list ...evaluate.Sensor) *log {
	l := &log{start: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	l.e = evaluate.New(l, "log", 0, l.start, l.read)
	l.e.Use(list)
	return l
}

// event evaluates an event stored at a time after the start.
func (l *log) event(seq uint64, at time.Duration, name, data string) bool {
	stored := l.start.Add(at)
	l.e.Advance(seq, stored)
	return l.e.Event(&bus.Event{ID: "1", Source: "/s", Type: "t", EventSource: "s", EventName: name, Data: []byte(data), Seq: seq, StoredAt: stored})
}

func (l *log) is(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(l.lines, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	l.lines = nil
}

// TestDeadlinesAreInOrder: what is due before an event goes first, by
// deadline, sensor and key; log time does not go back.
func TestDeadlinesAreInOrder(t *testing.T) {
	l := newLog(program(t, "y", 10*time.Minute, ""), program(t, "x", 10*time.Minute, ""), program(t, "z", 5*time.Minute, ""))
	l.event(1, 0, "a", `{"key": "l"}`)
	l.event(2, 0, "a", `{"key": "k"}`)
	l.is(t, "0s y wants l\n0s x wants l\n0s z wants l\n0s y wants k\n0s x wants k\n0s z wants k")
	if at, ok := l.e.NextWake(); !ok || at.Sub(l.start) != 5*time.Minute {
		t.Errorf("the next deadline is %s, %v", at, ok)
	}
	l.event(3, 10*time.Minute, "b", `{"key": "k"}`)
	l.is(t, "5m0s z gives up 2\n5m0s z gives up 1\n10m0s x gives up 2\n10m0s x gives up 1\n10m0s y gives up 2\n10m0s y gives up 1\n"+
		"10m0s y wants k\n10m0s x wants k\n10m0s z wants k")
	l.event(4, 9*time.Minute, "a", `{"key": "k"}`)
	l.is(t, "10m0s y wants k\n10m0s y fires k\n10m0s x wants k\n10m0s x fires k\n10m0s z wants k\n10m0s z fires k")
	if n := l.e.Len(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	l.e.Deadlines(l.start.Add(time.Hour))
	if l.e.Now().Sub(l.start) != 10*time.Minute {
		t.Errorf("time passes without deadlines: %s", l.e.Now().Sub(l.start))
	}
}

// TestSeenEventsAreSkipped: a state that has seen an event does not see it again.
func TestSeenEventsAreSkipped(t *testing.T) {
	l := newLog(program(t, "x", 0, ""))
	l.event(1, 0, "a", `{"key": "k"}`)
	k := evaluate.Key{Sensor: "x", Key: "k"}
	again := newLog(program(t, "x", 0, ""))
	again.e.Put(k, &evaluate.Entry{State: l.e.Entry(k).State, Seen: 2})
	again.event(2, 0, "b", `{"key": "k"}`)
	again.is(t, "0s x wants k")
	again.event(3, 0, "b", `{"key": "k"}`)
	again.is(t, "0s x wants k\n0s x fires k")
}

func TestUndecidedAndUnwanted(t *testing.T) {
	l := newLog(program(t, "x", 0, `data.o.kind == "x"`))
	if l.event(1, 0, "a", `{"key": "k"}`) || l.event(2, 0, "c", `{"key": "k"}`) || !l.event(3, 0, "a", `{"key": "k", "o": {"kind": "x"}}`) {
		t.Error("an event is wanted that is not, or the other way round")
	}
	l.is(t, "undecided data.o\n0s x wants k")
	if l.e.Sensor("x") == nil || l.e.Sensor("y") != nil || !slices.ContainsFunc(l.e.Groups(), func(g sensors.Group) bool { return len(g.Members) == 1 }) {
		t.Error("sensors and groups are not those in force")
	}
}

// TestMove: what a sensor keeps goes to another evaluator and back, with its
// deadlines and its limits, and nothing of it stays behind.
func TestMove(t *testing.T) {
	x, y := program(t, "x", 10*time.Minute, ""), program(t, "y", 10*time.Minute, "")
	from, to := newLog(x, y), newLog(x)
	from.event(1, 0, "a", `{"key": "k"}`)
	from.event(2, time.Minute, "a", `{"key": "l"}`)
	if n := from.e.Oldest(); n != 1 {
		t.Fatalf("the oldest event is %d", n)
	}
	for range 2 { // and back
		from.lines, to.lines = nil, nil
		from.e.Use([]evaluate.Sensor{y})
		from.e.Move(to.e)
		if keys, bytes := to.e.Usage(0); to.e.Len() != 2 || from.e.Len() != 2 || keys != 2 || bytes == 0 {
			t.Errorf("%d keys went, %d stayed; %d with %d bytes", to.e.Len(), from.e.Len(), keys, bytes)
		}
		if at, ok := to.e.NextWake(); !ok || at.Sub(to.start) != 10*time.Minute || to.e.Oldest() != 1 {
			t.Errorf("the next deadline is %s, %v; the oldest event is %d", at, ok, to.e.Oldest())
		}
		from.e.Use([]evaluate.Sensor{x, y})
		to.e.Use(nil)
		to.e.Move(from.e)
		if at, ok := to.e.NextWake(); ok || to.e.Len() != 0 || to.e.Oldest() != 0 {
			t.Errorf("%d keys are left, one until %s; the oldest event is %d", to.e.Len(), at, to.e.Oldest())
		}
		to.e.Use([]evaluate.Sensor{x})
	}
	from.event(3, 10*time.Minute, "b", `{"key": "l"}`)
	from.is(t, "10m0s x gives up 1\n10m0s y gives up 1\n10m0s x wants l\n10m0s x fires l\n10m0s y wants l\n10m0s y fires l")
	if n := from.e.Len(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
