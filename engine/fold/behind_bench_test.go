package fold_test

import (
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

// BenchmarkBehind compares, within one run, the rate at which the fold works a
// backlog off with a sensor alone, with that while another sensor catches up
// with a backlog of its own (main/alone), and the rate at which a sensor
// catches up while the fold has nothing to do (behind/alone).
func BenchmarkBehind(b *testing.B) {
	const events = 60_000
	rules := func(hash string, names ...string) *fold.Rules {
		list := map[string]*specs.Sensor{}
		for _, name := range names {
			list[name] = &specs.Sensor{
				Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders", When: expr("data.id % 10 == 0")}}, Triggers: trigger(),
			}
		}
		r := compile(b, hash, list)
		r.From = map[string]specs.From{"behind": specs.FromEarliest}
		return r
	}
	for b.Loop() {
		bs := open(b, bustest.Dir(b))
		options := func(r *fold.Rules) fold.Options {
			return fold.Options{Bus: bs, Cache: fold.NewCache(bs.Events(), 1<<13, 32<<20), Logger: quiet(), Rules: r}
		}
		rate := func(n uint64, since time.Time) float64 { return float64(n) / time.Since(since).Seconds() }
		last := publishMany(b, bs, events)
		d := fold.New(options(rules("1", "main")))
		begin := time.Now()
		stop := run(d)
		until(b, "the backlog", covered(d, last))
		alone := rate(events, begin)

		begin = time.Now()
		if err := d.Swap(b.Context(), rules("2", "main", "behind")); err != nil {
			b.Fatal(err)
		}
		until(b, "the end of the catching up", none(d))
		behind := rate(events, begin)
		if err := d.Swap(b.Context(), rules("3", "main")); err != nil {
			b.Fatal(err)
		}
		stop()

		last = publishMany(b, bs, events)
		d = fold.New(options(rules("3", "main")))
		stop = run(d)
		until(b, "the recovery", d.Ready)
		begin = time.Now()
		from, _ := d.Position()
		if err := d.Swap(b.Context(), rules("4", "main", "behind")); err != nil {
			b.Fatal(err)
		}
		until(b, "the backlog", covered(d, last))
		beside := rate(last-from, begin)
		at := d.Behind()["behind"]
		stop()
		b.ReportMetric(beside/alone, "main/alone")
		b.ReportMetric(behind/alone, "behind/alone")
		b.ReportMetric(alone, "events/s")
		b.ReportMetric(float64(at.Position)/float64(last-from), "behind/main")
	}
}
