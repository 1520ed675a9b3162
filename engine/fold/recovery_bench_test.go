package fold_test

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

var million = flag.Bool("million", false, "benchmarks with a million keys, too")

// BenchmarkRecovery is a start of the fold when many keys wait.
func BenchmarkRecovery(b *testing.B) {
	sizes := []int{1000, 20_000}
	if *million {
		sizes = []int{1000, 1_000_000}
	}
	for _, keys := range sizes {
		b.Run(fmt.Sprint("keys=", keys), func(b *testing.B) {
			bs := open(b, bustest.Dir(b))
			rules := compile(b, "1", map[string]*specs.Sensor{"pair": {
				Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}, {Name: "payment", Source: "shop", Event: "payments"}},
				Correlate:    expr("data.id"), Within: specs.Duration(24 * time.Hour), Triggers: trigger(), Limits: &specs.StateLimits{Keys: 2 * keys},
			}})
			options := fold.Options{Bus: bs, Cache: fold.NewCache(bs.Events(), 1<<13, 32<<20), Logger: quiet(), Rules: rules}
			fill := time.Now()
			var wg sync.WaitGroup
			for i := range keys {
				wg.Add(1)
				ev := &bus.Event{ID: fmt.Sprint(i), Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: fmt.Appendf(nil, `{"id":"ord-2026-%09d"}`, i)}
				if err := bs.Events().AppendAsync(context.Background(), ev.Record(), func(bus.Ack, error) { wg.Done() }); err != nil {
					b.Fatal(err)
				}
			}
			wg.Wait()
			d := fold.New(options)
			stop := run(d)
			for _, covered := d.Position(); covered < uint64(keys); _, covered = d.Position() {
				time.Sleep(10 * time.Millisecond)
			}
			stop()
			b.Logf("%d keys in %s", keys, time.Since(fill))
			before := heap()
			var size uint64
			for b.Loop() {
				d := fold.New(options)
				stop := run(d)
				for !d.Ready() {
					time.Sleep(time.Millisecond)
				}
				b.StopTimer()
				if size = heap() - before; d.SensorStats()["pair"].Keys != uint64(keys) {
					b.Fatal(d.SensorStats())
				}
				stop()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(keys), "ns/key")
			b.ReportMetric(float64(size)/float64(keys), "B/key")
		})
	}
}

// BenchmarkNewKeys is one event on a new key: as many keys wait as come, or
// each drives one out.
func BenchmarkNewKeys(b *testing.B) {
	for name, keys := range map[string]int{"waiting": 1 << 20, "evicting": 1000} {
		b.Run(name, func(b *testing.B) {
			bs := open(b, bustest.Dir(b))
			for i := range b.N {
				ev := &bus.Event{ID: fmt.Sprint(i), Source: "/t", Type: "t", EventSource: "shop", EventName: "orders", Data: fmt.Appendf(nil, `{"id":"ord-2026-%09d"}`, i)}
				if err := bs.Events().AppendAsync(context.Background(), ev.Record(), func(bus.Ack, error) {}); err != nil {
					b.Fatal(err)
				}
			}
			d := fold.New(fold.Options{
				Bus: bs, Cache: fold.NewCache(bs.Events(), 1<<13, 32<<20), Logger: quiet(), Rules: fewKeys(b, "1", keys), Alarm: func(string, string) {},
			})
			b.ResetTimer()
			stop := run(d)
			until(b, "the checkpoint", covered(d, uint64(b.N)))
			stop()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
