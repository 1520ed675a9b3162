package calendar

import (
	"testing"
	"time"
)

// fuzz asks a config for its occurrences: whatever it says, there is an answer
// soon, and occurrences come in order.
func fuzz(t *testing.T, c *Config) {
	reported := 0
	s := c.compile(func(problem) { reported++ })
	if (s == nil) != (reported > 0) {
		t.Fatalf("schedule %v with %d problems reported", s, reported)
	}
	if s == nil {
		return
	}
	now := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
	c.occurs(s, now, func(problem) {})
	at := now.Unix()
	for range 5 {
		next, ok := s.Next(at)
		if !ok {
			break
		}
		if next <= at {
			t.Fatalf("after %d comes %d", at, next)
		}
		if again, ok := s.Next(next - 1); !ok || again != next {
			t.Fatalf("just before %d comes %d (%v)", next, again, ok)
		}
		at = next
	}
	if last, ok := s.Latest(now.Unix(), at); at > now.Unix() && (!ok || last != at) {
		t.Fatalf("the latest up to %d is %d (%v)", at, last, ok)
	}
}

func FuzzSchedule(f *testing.F) {
	for _, s := range []string{
		"30 2 * * *", "*/5 0-3,7 1-7/2 JAN-MAR MON", "0 0 31 2 *", "@daily", "@every 90s", "@every -1s", "CRON_TZ=Asia/Tokyo 0 0 * * *",
		"TZ=UTC", "CRON_TZ=UTC", "CRON_TZ=", "TZ= ", "TZ=UTC TZ=UTC", "* * * * * *", "", "@", "*/0 * * * *", "? ? ? ? ?", "1-0 * * * *", "@every 9999999h",
	} {
		f.Add(s, "Europe/Amsterdam")
	}
	f.Fuzz(func(t *testing.T, schedule, zone string) { fuzz(t, &Config{Schedule: schedule, Timezone: zone}) })
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{
		"FREQ=DAILY", "FREQ=MONTHLY;BYDAY=-1FR;BYSETPOS=1", "FREQ=YEARLY;BYWEEKNO=53;BYDAY=MO", "FREQ=HOURLY;INTERVAL=7;BYMINUTE=3",
		"DTSTART;TZID=Asia/Tokyo:20260101T090000\nRRULE:FREQ=DAILY;COUNT=3\nEXDATE:20260102T000000Z\nRDATE:20270101", "FREQ=SECONDLY;BYSECOND=59",
		"FREQ=DAILY;UNTIL=2030", "FREQ=", "RRULE", ";;", "FREQ=WEEKLY;BYDAY=+1MO", "FREQ=YEARLY;BYDAY=99MO", "FREQ=DAILY;INTERVAL=999999999999",
		"FREQ=YEARLY;BYYEARDAY=-366;INTERVAL=3", "FREQ=DAILY;COUNT=100000;BYHOUR=1,2,3", "FREQ=MINUTELY;INTERVAL=999999999;BYSECOND=1",
	} {
		f.Add(s, "2026-01-01T09:30", "2026-03-29")
	}
	f.Fuzz(func(t *testing.T, rule, start, exclude string) {
		fuzz(t, &Config{RRule: rule, Start: start, Exclude: []string{exclude}, Timezone: "Europe/Amsterdam"})
		fuzz(t, &Config{RRule: rule})
	})
}
