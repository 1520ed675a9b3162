package calendar

import (
	"runtime"
	"testing"
	"time"

	"github.com/sensor-engine/engine/sources"
)

func BenchmarkNext(b *testing.B) {
	for name, c := range map[string]*Config{
		"minutes":  {Schedule: "*/5 * * * *", Timezone: "Europe/Amsterdam"},
		"daily":    {Schedule: "30 2 * * *", Timezone: "Europe/Amsterdam"},
		"utc":      {Schedule: "30 2 * * *"},
		"weekdays": {RRule: "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=10", Timezone: "America/New_York"},
		"leap-day": {Schedule: "0 0 29 2 *", Timezone: "Australia/Sydney"},
		"hourly":   {RRule: "FREQ=HOURLY;INTERVAL=5;BYDAY=MO", Start: "2020-01-01", Timezone: "America/Santiago"},
		"interval": {Schedule: "@every 15m"},
	} {
		b.Run(name, func(b *testing.B) {
			s := newTest(b, c).schedule
			begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
			at := begin
			b.ReportAllocs()
			for b.Loop() {
				var ok bool
				if at, ok = s.next(at); !ok || at > begin+10*365*day {
					at = begin
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for name, c := range map[string]*Config{
		"schedule": {Schedule: "30 2 * * MON-FRI", Timezone: "Europe/Amsterdam"},
		"rrule":    {RRule: "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=18", Timezone: "Europe/Amsterdam"},
	} {
		b.Run(name, func(b *testing.B) {
			c.zones = &zones{}
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
