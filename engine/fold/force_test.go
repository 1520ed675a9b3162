package fold_test

import (
	"context"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

// TestForce: it is known since when a sensor is in force, over changes,
// removals and restarts.
func TestForce(t *testing.T) {
	ctx := context.Background()
	dir := bustest.Dir(t)
	b := open(t, dir)
	force := func(b bus.Bus, sensor string) (since, changed uint64, hash string) {
		t.Helper()
		all, err := fold.ReadForce(ctx, b.State())
		if err != nil {
			t.Fatal(err)
		}
		f, ok := all[sensor]
		if !ok {
			return 99, 99, "never"
		}
		return f.Since, f.Changed, f.Hash
	}
	is := func(b bus.Bus, sensor string, since, changed uint64, hash string) {
		t.Helper()
		if s, c, h := force(b, sensor); s != since || c != changed || h != hash {
			t.Errorf("%s: since %d, changed %d, %s; want %d, %d, %s", sensor, s, c, h, since, changed, hash)
		}
	}
	one := func(hash, when string, within int) *fold.Rules {
		return compile(t, hash, map[string]*specs.Sensor{"one": {
			Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr(when)}}, Within: specs.Duration(within), Triggers: trigger(),
		}})
	}
	d := dispatcher(b, one("h1", "data.id > 0", 0), nil)
	stop := run(d)
	until(t, "the first event", covered(d, publish(t, b, "orders", 1)))
	is(b, "one", 0, 0, "h1")
	swap := func(d *fold.Dispatcher, r *fold.Rules) {
		t.Helper()
		if err := d.Swap(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	swap(d, one("h1", "data.id > 0", 0))
	is(b, "one", 0, 0, "h1")
	until(t, "the second event", covered(d, publish(t, b, "orders", 2)))
	swap(d, one("h2", "data.id > 0", 1e9)) // the same dependencies
	is(b, "one", 0, 2, "h2")
	until(t, "the third event", covered(d, publish(t, b, "orders", 3)))
	swap(d, one("h3", "data.id > 1", 1e9))
	is(b, "one", 3, 3, "h3")
	is(b, "two", 99, 99, "never")
	stop()
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}

	b = open(t, dir)
	d = dispatcher(b, one("h3", "data.id > 1", 1e9), nil)
	stop = run(d)
	until(t, "the fourth event", covered(d, publish(t, b, "orders", 4)))
	is(b, "one", 3, 3, "h3")
	swap(d, &fold.Rules{Hash: "none"})
	until(t, "the fifth event", covered(d, publish(t, b, "orders", 5)))
	swap(d, one("h3", "data.id > 1", 1e9))
	is(b, "one", 5, 5, "h3")
	stop()
}
