package fold_test

import (
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/specs"
)

// TestAbsenceByLogTime checks that a deadline fires without an event, that it
// survives a restart and then fires late with the right time, and that it does
// not fire when the log holds the answer.
func TestAbsenceByLogTime(t *testing.T) {
	b := open(t, bustest.Dir(t))
	wait := time.Second
	rules := compile(t, "1", map[string]*specs.Sensor{"watch": {
		Dependencies: []specs.Dependency{
			{Name: "order", Source: "shop", Event: "orders"},
			{Name: "payment", Source: "shop", Event: "payments", Absent: &specs.Absent{For: specs.Duration(wait), After: "order"}},
		},
		Correlate: expr("data.id"), Triggers: trigger(),
	}})
	d := dispatcher(b, rules, nil)
	stop := run(d)
	defer func() { stop() }()
	waiting := func(n int) func() bool {
		return func() bool { p, err := d.Pending(t.Context(), "", 9); return err == nil && len(p) == n }
	}
	publish(t, b, "orders", 1)
	until(t, "the firing without any event", func() bool { return len(allJobs(t, b)) == 1 })
	until(t, "the end of the wait", waiting(0))

	// 2 waits when the engine goes; 3 comes and is answered while it is away.
	two := publish(t, b, "orders", 2)
	until(t, "the wait", covered(d, two))
	stop()
	publish(t, b, "orders", 3)
	publish(t, b, "payments", 3)
	<-time.After(wait + 50*time.Millisecond)
	d = dispatcher(b, rules, nil)
	stop = run(d)
	until(t, "the late firing", func() bool { return len(allJobs(t, b)) == 2 })
	until(t, "the end of the wait", waiting(0))
	all := allJobs(t, b)
	for i, seq := range []uint64{1, two} {
		j := all[i]
		if len(j.Events) != 1 || j.Events[0].Seq != seq {
			t.Fatalf("job %d is about %v, want event %d", i, j.Events, seq)
		}
		r, err := b.Events().Get(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if want := r.Time.Add(wait); !j.Time.Equal(want) {
			t.Errorf("job %d fires at %v, want %v", i, j.Time, want)
		}
	}
}
