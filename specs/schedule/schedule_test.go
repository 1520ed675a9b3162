package schedule

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"pgregory.net/rapid"
)

// zonesOfTests are of both hemispheres, with shifts of half an hour, at
// midnight, over a whole day, and none.
var zonesOfTests = []string{
	"Europe/Amsterdam", "America/New_York", "America/St_Johns", "Asia/Beirut", "Africa/Casablanca", "Asia/Tehran",
	"Australia/Sydney", "Australia/Lord_Howe", "America/Santiago", "Pacific/Auckland", "Pacific/Chatham", "America/Sao_Paulo",
	"Pacific/Apia", "Pacific/Kwajalein", "Antarctica/Troll", "Europe/Dublin", "Asia/Kolkata", "UTC",
}

func location(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := (&Zones{}).Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// changes are the clock changes of a zone from 1990 to 2040.
func changes(loc *time.Location) (out []time.Time) {
	last := time.Date(2041, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	for in := zoneAt(loc, 631152000); in.end < last; in = zoneAt(loc, in.end) {
		if offset(loc, in.end) != in.offset {
			out = append(out, time.Unix(in.end, 0).UTC())
		}
	}
	return out
}

// TestZones: all names of the list exist, and their spans hold together.
func TestZones(t *testing.T) {
	var known Zones
	for name := range strings.Lines(zoneNames) {
		loc, err := known.Load(strings.TrimSuffix(name, "\n"))
		if err != nil {
			t.Error(err)
			continue
		}
		end := time.Date(2450, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
		for at := time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC).Unix(); at < end; {
			in := zoneAt(loc, at)
			if in.start > at || in.end <= at {
				t.Fatalf("%s: the span of %d is %+v", name, at, in)
			}
			if in.end == Forever {
				break
			}
			if o := offset(loc, in.end-1); o != in.offset {
				t.Fatalf("%s: the span of %d is %+v, but ends with offset %d", name, at, in, o)
			}
			at = in.end
		}
	}
	for wrong, want := range map[string]string{
		"Europe/Amsterdm": "Europe/Amsterdam", "amsterdam": "Europe/Amsterdam", "europe/amsterdam": "Europe/Amsterdam",
		"America/New York": "America/New_York", "Asia/Tokio": "Asia/Tokyo", "nowhere at all": "", "": "",
	} {
		if got := nearestZone(wrong); got != want {
			t.Errorf("nearest to %q is %q, want %q", wrong, got, want)
		}
	}
}

func mustCron(t interface{ Fatalf(string, ...any) }, text string, loc *time.Location) Rule {
	r, err := ParseCron(text, loc)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

// TestCronAtClockChanges compares schedules with the reference around every
// kind of clock change.
func TestCronAtClockChanges(t *testing.T) {
	all := map[string][]time.Time{}
	for _, name := range zonesOfTests {
		if list := changes(location(t, name)); len(list) > 0 {
			all[name] = list
		}
	}
	names := slices.DeleteFunc(slices.Clone(zonesOfTests), func(n string) bool { return len(all[n]) == 0 })
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(names).Draw(t, "zone")
		loc, err := (&Zones{}).Load(name)
		if err != nil {
			t.Fatal(err)
		}
		change := rapid.SampledFrom(all[name]).Draw(t, "change")
		c := newCronSpec(fmt.Sprintf("%s %s %s %s %s", drawField(t, "minute", 0, 59, 20), drawField(t, "hour", 0, 23, 30),
			drawField(t, "dom", 1, 31, 80), drawField(t, "month", 1, 12, 90), drawField(t, "dow", 0, 6, 80)))
		from, to := change.Add(-36*time.Hour), change.Add(36*time.Hour)
		want := occurrencesIn(c.matches, !c.everyHourOfDay, loc, from.Add(-26*time.Hour), to.Add(26*time.Hour))
		want = slices.DeleteFunc(want, func(x time.Time) bool { return !x.After(from) || !x.Before(to) })
		differ(t, c.text+" in "+name, loc, between(mustCron(t, c.text, loc), from, to), want)
	})
}

// TestCronOverYears compares schedules with the reference over whole years.
func TestCronOverYears(t *testing.T) {
	schedules := []string{
		"30 2 * * *", "*/20 * * * *", "0 0 * * *", "30 */2 * * *", "15 1-3 1-7 * 1", "0 12 29 2 *", "5 0 31 */2 *",
	}
	for i, name := range []string{"Europe/Amsterdam", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Auckland"} {
		t.Run(name, func(t *testing.T) {
			loc := location(t, name)
			from := time.Date(2020+i, 1, 1, 0, 0, 0, 0, time.UTC)
			to := from.AddDate(1, 0, 0)
			for _, text := range schedules {
				c := newCronSpec(text)
				want := occurrencesIn(c.matches, !c.everyHourOfDay, loc, from.AddDate(0, 0, -2), to.AddDate(0, 0, 2))
				want = slices.DeleteFunc(want, func(x time.Time) bool { return !x.After(from) || !x.Before(to) })
				differ(t, text, loc, between(mustCron(t, text, loc), from, to), want)
			}
		})
	}
}

// TestCronLikeLibrary: without clock changes robfig/cron is right.
func TestCronLikeLibrary(t *testing.T) {
	parser := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	rapid.Check(t, func(t *rapid.T) {
		text := fmt.Sprintf("%s %s %s %s %s %s", drawField(t, "second", 0, 59, 10), drawField(t, "minute", 0, 59, 20), drawField(t, "hour", 0, 23, 30),
			drawField(t, "dom", 1, 31, 50), drawField(t, "month", 1, 12, 50), drawField(t, "dow", 0, 6, 50))
		lib, err := parser.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		ours := mustCron(t, text, time.UTC)
		at := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "at"), 0).UTC()
		for range 20 {
			next, ok := ours.Next(at.Unix())
			want := lib.Next(at)
			// The library gives up after five years, we after four hundred.
			if want.IsZero() {
				if ok && next < at.AddDate(4, 0, 0).Unix() {
					t.Fatalf("%s after %v: %v, the library says never", text, at, time.Unix(next, 0).UTC())
				}
				return
			}
			if !ok || next != want.Unix() {
				t.Fatalf("%s after %v: %v %v, want %v", text, at, time.Unix(next, 0).UTC(), ok, want)
			}
			at = want
		}
	})
}

// TestRuleByDays compares recurrence rules of a day and longer with the reference.
func TestRuleByDays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t, "YEARLY", "MONTHLY", "WEEKLY", "DAILY")
		if len(r.monthDays)+len(r.weekdays)+len(r.hours) > 0 {
			r.pos = drawList(t, "positions", 40, 1, 6, true)
		}
		end := r.start.AddDate(7, 0, 0)
		want := r.wallsUntil(end)
		got := between(r.compile(t, time.UTC), r.start.Add(-time.Second), end)
		differ(t, r.start.Format(time.RFC3339)+" "+r.text(), time.UTC, got, want)
		// Asked in the middle it says the same as when it comes there.
		if len(want) > 2 && r.count == 0 {
			i := rapid.IntRange(1, len(want)-1).Draw(t, "middle")
			if next, ok := r.compile(t, time.UTC).Next(want[i].Unix() - 1); !ok || next != want[i].Unix() {
				t.Fatalf("%s: just before %v comes %v", r.text(), want[i], time.Unix(next, 0).UTC())
			}
		}
	})
}

// TestRuleLikeLibrary: in UTC and from DAILY on, rrule-go says the same, but
// for what it gets wrong: some weeks of other years, plain and numbered days
// of the week in one list, positions in the part of a week that the rule
// begins in.
func TestRuleLikeLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t, "YEARLY", "MONTHLY", "WEEKLY", "DAILY")
		plain := 0
		for _, w := range r.weekdays {
			if w.n == 0 {
				plain++
			}
		}
		if r.weeks = nil; plain > 0 && plain < len(r.weekdays) {
			r.weekdays = nil
		}
		if r.freq != "WEEKLY" && len(r.monthDays)+len(r.weekdays)+len(r.hours) > 0 {
			r.pos = drawList(t, "positions", 40, 1, 6, true)
		}
		end := r.start.AddDate(7, 0, 0)
		got := between(r.compile(t, time.UTC), r.start.Add(-time.Second), end)
		if len(got) == 0 || len(got) < r.count {
			t.Skip() // the library would search until the year 9999
		}
		differ(t, r.start.Format(time.RFC3339)+" "+r.text(), time.UTC, got, r.library(t, end))
	})
}

// TestRuleByDaysInZones: the wall times of a rule are those of a cron schedule
// at clock changes.
func TestRuleByDaysInZones(t *testing.T) {
	for _, name := range zonesOfTests {
		loc := location(t, name)
		for _, h := range []int{0, 1, 2, 3, 23} {
			from, to := time.Date(2009, 6, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
			r := &ruleSpec{freq: "DAILY", interval: 1, hours: []int{h}, minutes: []int{30}, start: time.Date(2009, 1, 1, 0, 0, 0, 0, time.UTC)}
			differ(t, fmt.Sprintf("%02d:30 in %s", h, name), loc, between(r.compile(t, loc), from, to),
				between(mustCron(t, fmt.Sprintf("30 %d * * *", h), loc), from, to))
		}
	}
}

// TestRuleByHours compares rules below a day with a reference that steps
// through the seconds or minutes around clock changes.
func TestRuleByHours(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(zonesOfTests).Draw(t, "zone")
		loc, err := (&Zones{}).Load(name)
		if err != nil {
			t.Fatal(err)
		}
		freq := rapid.SampledFrom([]string{"HOURLY", "MINUTELY", "SECONDLY"}).Draw(t, "freq")
		unit := map[string]time.Duration{"HOURLY": time.Hour, "MINUTELY": time.Minute, "SECONDLY": time.Second}[freq]
		around := time.Date(2021, 7, 1, 0, 0, 0, 0, time.UTC)
		if list := changes(loc); len(list) > 0 {
			around = rapid.SampledFrom(list).Draw(t, "change")
		}
		r := &ruleSpec{freq: freq, interval: rapid.SampledFrom([]int{1, 2, 3, 7, 25, 90}).Draw(t, "interval")}
		step, back, ahead := time.Minute, 60*time.Hour, 60*time.Hour
		if freq == "SECONDLY" {
			step, back, ahead = time.Second, 2*time.Hour, 3*time.Hour
		}
		r.hours, r.minutes = drawList(t, "hours", 30, 0, 23, false), drawList(t, "minutes", 50, 0, 59, false)
		r.months, r.monthDays = drawList(t, "months", 15, 1, 12, false), drawList(t, "month days", 20, 1, 31, true)
		for _, w := range drawList(t, "weekdays", 20, 0, 6, false) {
			r.weekdays = append(r.weekdays, nthWeekday{0, w})
		}
		start := around.Add(-back).Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "start")) * step)
		r.start = naive(start.In(loc))
		start = time.Unix(Instant(loc, r.start.Unix()), 0).UTC()
		var want []time.Time
		for x := start; x.Before(around.Add(ahead)); x = x.Add(step) {
			clock := naive(x.In(loc))
			if !r.date(clock) || len(r.hours) > 0 && !slices.Contains(r.hours, clock.Hour()) || len(r.minutes) > 0 && !slices.Contains(r.minutes, clock.Minute()) {
				continue
			}
			periods := x.Sub(start) / unit
			if freq == "HOURLY" && len(r.minutes) > 0 { // any minute of the hour
				periods = x.Sub(start.Add(-time.Duration(r.start.Minute())*time.Minute)) / unit
			} else if x.Sub(start)%unit != 0 {
				continue
			}
			if int(periods)%r.interval == 0 {
				want = append(want, x)
			}
		}
		differ(t, freq+" from "+r.start.Format(time.DateTime)+" "+r.text()+" in "+name, loc,
			between(r.compile(t, loc), start.Add(-time.Second), around.Add(ahead)), want)
	})
}

// TestInstant compares single wall times with the reference.
func TestInstant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom(zonesOfTests).Draw(t, "zone")
		loc, err := (&Zones{}).Load(name)
		if err != nil {
			t.Fatal(err)
		}
		around := time.Date(2021, 7, 1, 0, 0, 0, 0, time.UTC)
		if list := changes(loc); len(list) > 0 {
			around = rapid.SampledFrom(list).Draw(t, "change")
		}
		wall := naive(around.In(loc)).Add(time.Duration(rapid.IntRange(-30*60, 30*60).Draw(t, "minutes")) * time.Minute).Truncate(time.Minute)
		want := occurrencesIn(wall.Equal, true, loc, around.Add(-80*time.Hour), around.Add(80*time.Hour))
		if got := Instant(loc, wall.Unix()); len(want) != 1 || got != want[0].Unix() {
			t.Fatalf("%v in %s is %v, want %v", wall, name, time.Unix(got, 0).UTC(), want)
		}
	})
}

// TestCivil compares dates with those of package time.
func TestCivil(t *testing.T) {
	for d := int64(-800_000); d < 800_000; d += 13 {
		want := time.Unix(d*Day, 0).UTC()
		year, month, dom := civil(d)
		if int(year) != want.Year() || month != int(want.Month()) || dom != want.Day() || weekday(d) != int(want.Weekday()) || daysOf(year, month, dom) != d {
			t.Fatalf("day %d is %d-%d-%d (%d), want %v", d, year, month, dom, weekday(d), want)
		}
	}
	if a, b := daysOf(2026, 13, 1), daysOf(2027, 1, 1); a != b {
		t.Errorf("month 13 begins on day %d, want %d", a, b)
	}
}

// TestClock compares the search in a set of times with one by one.
func TestClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, n int) uint64 {
			return set(rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 1, 4, rapid.ID).Draw(t, name))
		}
		c := clock{draw("hours", 24), draw("minutes", 60), draw("seconds", 60)}
		var times []int64
		for s := range int64(Day) {
			if c.hours>>(s/hour)&1 == 1 && c.minutes>>(s/minute%60)&1 == 1 && c.seconds>>(s%60)&1 == 1 {
				times = append(times, s)
			}
		}
		if c.len() != len(times) {
			t.Fatalf("%d times, want %d", c.len(), len(times))
		}
		for i, want := range times {
			if c.at(i) != want {
				t.Fatalf("time %d is %d, want %d", i, c.at(i), want)
			}
		}
		for range 50 {
			from := rapid.Int64Range(0, Day-1).Draw(t, "from")
			i, _ := slices.BinarySearch(times, from)
			got, ok := c.next(from)
			if ok != (i < len(times)) || ok && got != times[i] {
				t.Fatalf("next at or after %d is %d %v", from, got, ok)
			}
		}
	})
}
