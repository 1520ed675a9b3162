package evaluate_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/specs"
)

// reading is a sensor whose condition reads both events.
func reading(t testing.TB) evaluate.Sensor {
	return limited(t, specs.StateLimits{}, func(s *specs.Sensor) {
		s.Condition = specs.Expr{Source: "a && b && a.data.key == b.data.key"}
	})
}

// stored is an evaluator over a log that counts what is read.
func storedLog(l *log) (reads *[]uint64, event func(seq uint64, name, data string)) {
	events := map[uint64]*bus.Event{}
	reads = new([]uint64)
	l.load = func(seq uint64) (*bus.Event, error) {
		*reads = append(*reads, seq)
		return events[seq], nil
	}
	return reads, func(seq uint64, name, data string) {
		at := l.start.Add(time.Duration(seq) * time.Second)
		events[seq] = &bus.Event{ID: "1", Source: "/s", Type: "t", EventSource: "s", EventName: name, Data: []byte(data), Seq: seq, StoredAt: at}
		l.e.Advance(seq, at)
		l.e.Event(events[seq])
	}
}

// TestResidentEvents: the newest events that wait are in memory up to a limit,
// large ones are not; others are read when an expression does.
func TestResidentEvents(t *testing.T) {
	small, large := `{"key": "k%d"}`, `{"key": "k%d", "pad": "`+strings.Repeat("x", 64<<10)+`"}`
	for _, tt := range []struct {
		name     string
		resident int
		data     string
		reads    string
	}{
		{"none", 0, small, "[1 2 3]"},
		{"all", 1 << 20, small, "[]"},
		{"two of three", 2500, small, "[1]"},
		{"large ones", 1 << 30, large, "[1 2 3]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLog(reading(t))
			l.e.Resident = tt.resident
			reads, event := storedLog(l)
			for i := range uint64(3) {
				event(i+1, "a", fmt.Sprintf(tt.data, i+1))
			}
			for i := range uint64(3) {
				event(i+4, "b", fmt.Sprintf(tt.data, i+1))
			}
			if got := fmt.Sprint(*reads); got != tt.reads {
				t.Errorf("reads %s, want %s", got, tt.reads)
			}
			if n := strings.Count(strings.Join(l.lines, "\n"), "fires"); n != 3 {
				t.Errorf("%d firings", n)
			}
		})
	}
}

// TestUsedEventsLeave: what was used or given up makes room for others.
func TestUsedEventsLeave(t *testing.T) {
	l := newLog(reading(t))
	l.e.Resident = 2500
	reads, event := storedLog(l)
	event(1, "a", `{"key": "waits"}`)
	seq := uint64(1)
	for range 3000 { // used, superseded, and given up
		event(seq+1, "a", `{"key": "k"}`)
		event(seq+2, "a", `{"key": "k"}`)
		event(seq+3, "b", `{"key": "k"}`)
		seq += 3
		if seq > 500 {
			break
		}
	}
	event(seq+1, "b", `{"key": "waits"}`)
	if len(*reads) > 0 {
		t.Errorf("reads %v", *reads)
	}
}

// TestExpiryReadsNothing: a thousand keys come to their end without their events.
func TestExpiryReadsNothing(t *testing.T) {
	l := newLog(reading(t))
	reads, event := storedLog(l)
	for i := range uint64(1000) {
		event(i+1, "a", fmt.Sprintf(`{"key": "k%d"}`, i))
	}
	l.e.Deadlines(l.start.Add(time.Hour))
	if l.e.Len() > 0 || len(*reads) > 0 {
		t.Errorf("%d keys are left, %d events were read", l.e.Len(), len(*reads))
	}
}

// TestLoadErrorEndsEvaluation: what could not be decided is not, and nothing
// after it.
func TestLoadErrorEndsEvaluation(t *testing.T) {
	l := newLog(reading(t))
	_, event := storedLog(l)
	event(1, "a", `{"key": "k"}`)
	event(2, "a", `{"key": "l"}`)
	load, fail := l.load, errors.New("no bus")
	l.load = func(uint64) (*bus.Event, error) { return nil, fail }
	l.lines = nil
	event(3, "b", `{"key": "k"}`)
	l.is(t, "3s x wants k")
	if !errors.Is(l.e.Err(), fail) {
		t.Errorf("error %v", l.e.Err())
	}
	l.load = load
	event(4, "b", `{"key": "l"}`)
	l.e.Deadlines(l.start.Add(time.Hour))
	l.is(t, "")
}
