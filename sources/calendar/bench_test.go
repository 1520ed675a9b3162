package calendar

import (
	"runtime"
	"testing"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs/schedule"
)

func BenchmarkCompile(b *testing.B) {
	for name, c := range map[string]*Config{
		"schedule": {Schedule: "30 2 * * MON-FRI", Timezone: "Europe/Amsterdam"},
		"rrule":    {RRule: "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=18", Timezone: "Europe/Amsterdam"},
	} {
		b.Run(name, func(b *testing.B) {
			c.zones = &schedule.Zones{}
			b.ReportAllocs()
			for b.Loop() {
				if c.compile(func(problem) {}) == nil {
					b.Fatal("not valid")
				}
			}
		})
	}
}

// BenchmarkMemory reports what one calendar holds beside its config.
func BenchmarkMemory(b *testing.B) {
	const n = 10_000
	f := Factory()
	config := f.New().(*Config)
	config.Schedule, config.Timezone = "30 2 * * MON-FRI", "Europe/Amsterdam"
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		all := make([]sources.Source, n)
		for i := range all {
			var err error
			if all[i], err = f.Make(config, sources.Env{Source: "test", Event: "event"}); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/calendar")
		runtime.KeepAlive(all)
	}
}
