package fold_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

// fewKeys: order and payment of one id fire, and most keys are given up.
func fewKeys(t testing.TB, hash string, keys int) *fold.Rules {
	return compile(t, hash, map[string]*specs.Sensor{"pair": {
		Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}, {Name: "payment", Source: "shop", Event: "payments"}},
		Correlate:    expr("data.id"), Triggers: trigger(), Limits: &specs.StateLimits{Keys: keys},
	}})
}

// outcome is what fired and what waits.
func outcome(t *testing.T, b bus.Bus, d *fold.Dispatcher) string {
	t.Helper()
	p, err := d.Pending(t.Context(), "pair", 100)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, j := range allJobs(t, b) {
		lines = append(lines, fmt.Sprintf("fires %s %v", j.Correlation, j.Events))
	}
	for _, k := range p {
		if len(k.Refs) > 0 {
			lines = append(lines, fmt.Sprintf("waits %s %v", k.Key, k.Refs))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestEvictedKeysStayEvicted fails each write of a run in turn, in three ways,
// and lets a fold recover behind it: the same keys are given up, and none of
// them comes back.
func TestEvictedKeysStayEvicted(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	type event struct {
		name string
		id   int
	}
	var events []event
	for range 60 {
		events = append(events, event{[]string{"orders", "orders", "payments"}[rng.IntN(3)], rng.IntN(8)})
	}
	last := uint64(len(events))
	fill := func(t *testing.T, b bus.Bus) {
		for _, ev := range events {
			publish(t, b, ev.name, ev.id)
		}
	}
	b := open(t, bustest.Dir(t))
	fill(t, b)
	var alarms atomic.Int32
	d := dispatcher(b, fewKeys(t, "1", 3), func(code, message string) {
		if alarms.Add(1); code != "state-evicted" || !strings.HasPrefix(message, "sensor pair keeps as much as it may (3 keys, ") {
			t.Error(code, message)
		}
	})
	stop := run(d)
	until(t, "the checkpoint", covered(d, last))
	want := outcome(t, b, d)
	if c := d.SensorStats()["pair"]; c.Evicted < 10 || c.Keys != uint64(strings.Count(want, "waits")) || c.Bytes < 130*c.Keys || alarms.Load() != 1 {
		t.Errorf("counts %+v, %d alarms", c, alarms.Load())
	}
	stop()
	if strings.Count(want, "fires") < 5 || strings.Count(want, "waits") != 3 {
		t.Fatalf("not much happens:\n%s", want)
	}
	eachWrite(t, 5, func(t *testing.T, mode string, at int64) bool {
		b := open(t, bustest.Dir(t))
		fill(t, b)
		f := &fault{Bus: b, at: at, mode: mode}
		d := dispatcher(f, fewKeys(t, "1", 3), nil)
		stop := run(d)
		until(t, "the checkpoint or the crash", func() bool { return f.down.Load() || covered(d, last)() })
		if mode == "crash" {
			f.down.Store(true)
			stop()
			d = dispatcher(b, fewKeys(t, "1", 3), nil)
			stop = run(d)
		}
		until(t, "the last checkpoint", covered(d, last))
		got := outcome(t, b, d)
		stop()
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		d = dispatcher(b, fewKeys(t, "1", 3), nil)
		defer run(d)()
		if got := outcome(t, b, d); got != want {
			t.Errorf("after another restart, got\n%s\nwant\n%s", got, want)
		}
		return f.fired.Load()
	})
}

// TestLowerLimitOfAReload: what is too much goes at once, the oldest first, and
// does not come back.
func TestLowerLimitOfAReload(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := dispatcher(b, fewKeys(t, "1", 100), nil)
	stop := run(d)
	var last uint64
	for id := range 50 {
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	if err := d.Swap(t.Context(), fewKeys(t, "2", 2)); err != nil {
		t.Fatal(err)
	}
	want := "waits #48 [49]\nwaits #49 [50]"
	if got := outcome(t, b, d); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c := d.SensorStats()["pair"]; c.Evicted != 48 || c.Keys != 2 {
		t.Errorf("counts %+v", c)
	}
	stop()
	d = dispatcher(b, fewKeys(t, "2", 2), nil)
	stop = run(d)
	if got := outcome(t, b, d); got != want {
		t.Errorf("after a restart, got\n%s\nwant\n%s", got, want)
	}
	stop()
	// Also when the rules are others than those of the checkpoint.
	d = dispatcher(b, fewKeys(t, "3", 1), nil)
	defer run(d)()
	if got := outcome(t, b, d); got != "waits #49 [50]" {
		t.Errorf("with other rules, got\n%s", got)
	}
}
