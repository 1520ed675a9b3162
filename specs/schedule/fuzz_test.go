package schedule

import (
	"testing"
	"time"
)

// inOrder asks a rule for its instants: there is an answer soon, they come in
// order, and asked in between it says the same.
func inOrder(t *testing.T, r Rule) {
	s := &Schedule{Rule: r, First: -Horizon, Last: Forever, Zone: time.UTC}
	begin := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC).Unix()
	at := begin
	for range 5 {
		next, ok := s.Next(at)
		if !ok {
			break
		}
		if next <= at {
			t.Fatalf("after %d comes %d", at, next)
		}
		if again, ok := r.Next(next - 1); !ok || again != next {
			t.Fatalf("just before %d comes %d (%v)", next, again, ok)
		}
		at = next
	}
	if last, ok := s.Latest(begin, at); at > begin && (!ok || last != at) {
		t.Fatalf("the latest up to %d is %d (%v)", at, last, ok)
	}
}

func FuzzParseCron(f *testing.F) {
	for _, s := range []string{
		"30 2 * * *", "*/5 0-3,7 1-7/2 JAN-MAR MON", "0 0 31 2 *", "@daily", "@every 90s", "@every -1s", "CRON_TZ=UTC 0 0 * * *",
		"TZ=", "* * * * * *", "", "@", "*/0 * * * *", "? ? ? ? ?", "1-0 * * * *", "@every 9999999h", "0 0 L * *",
	} {
		f.Add(s, "Europe/Amsterdam")
	}
	f.Fuzz(func(t *testing.T, text, zone string) {
		_ = ZoneHint(zone)
		loc, err := new(Zones).Load(zone)
		if err != nil {
			return
		}
		r, err := ParseCron(text, loc)
		if err == nil {
			inOrder(t, r)
		} else if r != nil {
			t.Fatalf("a rule and the error %v", err)
		}
		_ = CronHint(text)
	})
}

func FuzzParseRecurrence(f *testing.F) {
	for _, s := range []string{
		"FREQ=DAILY", "FREQ=MONTHLY;BYDAY=-1FR;BYSETPOS=1", "FREQ=YEARLY;BYWEEKNO=53;BYDAY=MO", "FREQ=HOURLY;INTERVAL=7;BYMINUTE=3",
		"FREQ=SECONDLY;BYSECOND=59", "FREQ=DAILY;UNTIL=2030", "FREQ=", "RRULE", ";;", "FREQ=WEEKLY;BYDAY=+1MO", "FREQ=YEARLY;BYDAY=99MO",
		"FREQ=YEARLY;BYYEARDAY=-366;INTERVAL=3", "FREQ=DAILY;COUNT=100000;BYHOUR=1,2,3", "FREQ=MINUTELY;INTERVAL=999999999;BYSECOND=1",
	} {
		f.Add(s, int64(1_760_000_000))
	}
	loc := location(f, "Europe/Amsterdam")
	f.Fuzz(func(t *testing.T, text string, start int64) {
		r, err := ParseRecurrence(text)
		if err == nil && start > -Horizon && start < Horizon {
			_ = r.NeedsStart()
			inOrder(t, r.Rule(start, Forever, loc))
		}
	})
}
