package evaluate

import (
	"fmt"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// dropping lets emptied keys go.
type dropping struct{ e *Evaluator }

func (d *dropping) Undecided([]sensors.GroupVerdict) {}
func (d *dropping) Routed(int, sensors.Routing)      {}
func (d *dropping) Stepped(int, []sensors.Verdict)   {}
func (d *dropping) Evicted(int, Eviction)            {}
func (d *dropping) Fired(_ int, _ *sensors.Firing)   {}
func (d *dropping) Changed(k Key, en *Entry) {
	if en.State.Empty() {
		d.e.Drop(k)
	}
}

// TestReferencesStayFew: keys that come and go leave no more behind than what
// waits.
func TestReferencesStayFew(t *testing.T) {
	p, found := sensors.Compile("s", &specs.Sensor{
		Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a"}, {Name: "b", Source: "s", Event: "b"}},
		Correlate:    specs.Expr{Source: "subject"}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}},
	})
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	d := &dropping{}
	d.e = New(d, "log", 0, time.Time{}, Events{}.Load)
	d.e.Use([]Sensor{{Name: "s", Program: p}})
	seq := uint64(0)
	send := func(name string, key int) {
		seq++
		d.e.Advance(seq, time.Unix(int64(seq), 0))
		d.e.Event(&bus.Event{ID: "1", EventSource: "s", EventName: name, Subject: fmt.Sprint(key), Seq: seq, StoredAt: time.Unix(int64(seq), 0)})
	}
	send("a", -1)
	for key := range 30_000 {
		send("a", key)
		send("b", key)
		if key%1000 == 0 && d.e.Oldest() != 1 {
			t.Fatal(d.e.Oldest())
		}
	}
	if n := cap(d.e.oldest.queue); n > 8192 {
		t.Errorf("%d places for one key", n)
	}
	send("a", 1)
	send("b", -1)
	if d.e.Oldest() != seq-1 {
		t.Errorf("the oldest is %d, want %d", d.e.Oldest(), seq-1)
	}
}
