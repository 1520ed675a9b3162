package schedule

import (
	"testing"
	"time"
)

func BenchmarkNext(b *testing.B) {
	cron := func(text, zone string) Rule { return mustCron(b, text, location(b, zone)) }
	recurrence := func(text, zone string, start time.Time) Rule {
		r, err := ParseRecurrence(text)
		if err != nil {
			b.Fatal(err)
		}
		return r.Rule(start.Unix(), Forever, location(b, zone))
	}
	for name, r := range map[string]Rule{
		"minutes":  cron("*/5 * * * *", "Europe/Amsterdam"),
		"daily":    cron("30 2 * * *", "Europe/Amsterdam"),
		"utc":      cron("30 2 * * *", "UTC"),
		"weekdays": recurrence("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=10", "America/New_York", time.Unix(0, 0)),
		"leap-day": cron("0 0 29 2 *", "Australia/Sydney"),
		"hourly":   recurrence("FREQ=HOURLY;INTERVAL=5;BYDAY=MO", "America/Santiago", time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)),
		"interval": cron("@every 15m", "UTC"),
	} {
		b.Run(name, func(b *testing.B) {
			begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
			at := begin
			b.ReportAllocs()
			for b.Loop() {
				var ok bool
				if at, ok = r.Next(at); !ok || at > begin+10*365*Day {
					at = begin
				}
			}
		})
	}
}
