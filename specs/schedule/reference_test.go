package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/teambition/rrule-go"
	"pgregory.net/rapid"
)

// The references of this file are slow and obviously right: they look at every
// minute (or second) there is and ask whether it is one.

// cronSpec is a schedule of five fields as a reference understands it.
type cronSpec struct {
	text                             string
	minute, hour, dom, month, dow    map[int]bool
	domStar, dowStar, everyHourOfDay bool
}

func newCronSpec(text string) *cronSpec {
	f := strings.Fields(text)
	c := &cronSpec{
		text: text, minute: cronField(f[0], 0, 59), hour: cronField(f[1], 0, 23),
		dom: cronField(f[2], 1, 31), month: cronField(f[3], 1, 12), dow: cronField(f[4], 0, 6),
	}
	star := func(f string) bool { return f == "*" || f == "*/1" }
	c.domStar, c.dowStar, c.everyHourOfDay = star(f[2]), star(f[4]), len(c.hour) == 24
	return c
}

func cronField(text string, low, high int) map[int]bool {
	out := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		span, step, stepped := strings.Cut(part, "/")
		by := 1
		if stepped {
			by, _ = strconv.Atoi(step)
		}
		from, to := low, high
		if a, b, isRange := strings.Cut(span, "-"); isRange {
			from, _ = strconv.Atoi(a)
			to, _ = strconv.Atoi(b)
		} else if span != "*" {
			from, _ = strconv.Atoi(span)
			if to = from; stepped {
				to = high
			}
		}
		for i := from; i <= to; i += by {
			out[i] = true
		}
	}
	return out
}

// matches says whether a clock that shows t is one that the schedule names.
func (c *cronSpec) matches(t time.Time) bool {
	if !c.minute[t.Minute()] || !c.hour[t.Hour()] || !c.month[int(t.Month())] || t.Second() != 0 {
		return false
	}
	dom, dow := c.dom[t.Day()], c.dow[int(t.Weekday())]
	if c.domStar || c.dowStar {
		return dom && dow
	}
	return dom || dow
}

// naive is what the clock shows, as a time without a zone.
func naive(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// occurrencesIn steps through the minutes from one instant to another. Near
// the ends of the window, what happens once is uncertain: the caller leaves
// two days aside.
func occurrencesIn(matches func(shown time.Time) bool, once bool, loc *time.Location, from, to time.Time) []time.Time {
	var out []time.Time
	shown := map[int64]bool{}
	for t := from; t.Before(to); t = t.Add(time.Minute) {
		clock := naive(t.In(loc))
		if !matches(clock) {
			continue
		}
		if !once || !shown[clock.Unix()] {
			out = append(out, t)
		}
		shown[clock.Unix()] = once
	}
	if !once {
		return out
	}
	// What was never shown, although the clock showed an earlier and a later time.
	for t := from; t.Before(to); t = t.Add(time.Minute) {
		clock, next := naive(t.In(loc)), naive(t.Add(time.Minute).In(loc))
		for w := clock.Add(time.Minute); w.Before(next); w = w.Add(time.Minute) {
			if matches(w) && !shown[w.Unix()] {
				out = append(out, t.Add(w.Sub(clock))) // with the offset before
			}
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}

// between lists what a rule yields after one instant and before another.
func between(r Rule, after, before time.Time) (out []time.Time) {
	for t, ok := r.Next(after.Unix()); ok && t < before.Unix(); t, ok = r.Next(t) {
		out = append(out, time.Unix(t, 0).UTC())
	}
	return out
}

func differ(t interface{ Fatalf(string, ...any) }, what string, loc *time.Location, got, want []time.Time) {
	if slices.EqualFunc(got, want, time.Time.Equal) {
		return
	}
	show := func(list []time.Time) string {
		var b strings.Builder
		for i, x := range list {
			if b.WriteString(x.In(loc).Format(" Mon 2006-01-02T15:04:05Z07:00")); i == 40 {
				break
			}
		}
		return b.String()
	}
	i := 0
	for i < len(got) && i < len(want) && got[i].Equal(want[i]) {
		i++
	}
	t.Fatalf("%s: %d occurrences, want %d, from number %d on\n got%s\nwant%s", what, len(got), len(want), i, show(got[i:]), show(want[i:]))
}

// drawField draws a cron field; every n-th is a star.
func drawField(t *rapid.T, name string, low, high, stars int) string {
	if rapid.IntRange(1, 100).Draw(t, name+" star") <= stars {
		return "*"
	}
	n := rapid.IntRange(low, high)
	switch rapid.IntRange(0, 4).Draw(t, name+" form") {
	case 0:
		return fmt.Sprintf("*/%d", rapid.IntRange(1, high).Draw(t, name))
	case 1:
		a, b := n.Draw(t, name), n.Draw(t, name)
		return fmt.Sprintf("%d-%d", min(a, b), max(a, b))
	case 2:
		a, b := n.Draw(t, name), n.Draw(t, name)
		return fmt.Sprintf("%d-%d/%d", min(a, b), max(a, b), rapid.IntRange(1, 10).Draw(t, name))
	case 3:
		return fmt.Sprintf("%d,%d", n.Draw(t, name), n.Draw(t, name))
	default:
		return strconv.Itoa(n.Draw(t, name))
	}
}

// ruleSpec is a recurrence rule as a reference understands it.
type ruleSpec struct {
	freq                                                    string
	interval, count                                         int
	weekStart                                               time.Weekday
	months, monthDays, yearDays, weeks, hours, minutes, pos []int
	weekdays                                                []nthWeekday // n 0: each
	start                                                   time.Time    // naive
}

var weekdayNames = []string{"SU", "MO", "TU", "WE", "TH", "FR", "SA"}

func (r *ruleSpec) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "FREQ=%s;INTERVAL=%d;WKST=%s", r.freq, r.interval, weekdayNames[r.weekStart])
	if r.count > 0 {
		fmt.Fprintf(&b, ";COUNT=%d", r.count)
	}
	for _, l := range []struct {
		name string
		list []int
	}{
		{"BYMONTH", r.months},
		{"BYMONTHDAY", r.monthDays},
		{"BYYEARDAY", r.yearDays},
		{"BYWEEKNO", r.weeks},
		{"BYHOUR", r.hours},
		{"BYMINUTE", r.minutes},
		{"BYSETPOS", r.pos},
	} {
		if len(l.list) > 0 {
			b.WriteString(";" + l.name + "=" + strings.Trim(strings.ReplaceAll(fmt.Sprint(l.list), " ", ","), "[]"))
		}
	}
	if len(r.weekdays) > 0 {
		b.WriteString(";BYDAY=")
		for i, w := range r.weekdays {
			if i > 0 {
				b.WriteString(",")
			}
			if w.n != 0 {
				b.WriteString(strconv.Itoa(w.n))
			}
			b.WriteString(weekdayNames[w.weekday])
		}
	}
	return b.String()
}

// has reports whether the list has i, counted from the front or the back of n.
func has(list []int, i, n int) bool {
	for _, x := range list {
		if x == i || x < 0 && n+1+x == i {
			return true
		}
	}
	return false
}

func daysInMonth(t time.Time) int {
	return time.Date(t.Year(), t.Month()+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

func daysInYear(t time.Time) int { return time.Date(t.Year(), 12, 31, 0, 0, 0, 0, time.UTC).YearDay() }

// date says whether the parts of the rule about dates let one pass.
func (r *ruleSpec) date(d time.Time) bool {
	if len(r.months) > 0 && !slices.Contains(r.months, int(d.Month())) ||
		len(r.monthDays) > 0 && !has(r.monthDays, d.Day(), daysInMonth(d)) ||
		len(r.yearDays) > 0 && !has(r.yearDays, d.YearDay(), daysInYear(d)) {
		return false
	}
	if len(r.weeks) > 0 { // ISO, so weeks begin on Monday
		year, week := d.ISOWeek()
		_, last := time.Date(year, 12, 28, 0, 0, 0, 0, time.UTC).ISOWeek()
		if !has(r.weeks, week, last) {
			return false
		}
	}
	for _, w := range r.weekdays {
		if int(d.Weekday()) != w.weekday {
			continue
		}
		if w.n == 0 {
			return true
		}
		// How many such days are there before it, and after it?
		same := func(x time.Time) bool {
			if r.freq == "MONTHLY" || len(r.months) > 0 {
				return x.Month() == d.Month() && x.Year() == d.Year()
			}
			return x.Year() == d.Year()
		}
		before, after := 1, 1
		for x := d.AddDate(0, 0, -7); same(x); x = x.AddDate(0, 0, -7) {
			before++
		}
		for x := d.AddDate(0, 0, 7); same(x); x = x.AddDate(0, 0, 7) {
			after++
		}
		if w.n == before || w.n == -after {
			return true
		}
	}
	return len(r.weekdays) == 0
}

// period names the year, month, week or day of a date, and counts it from the start.
func (r *ruleSpec) period(d time.Time) int {
	week := func(x time.Time) time.Time {
		for x.Weekday() != r.weekStart {
			x = x.AddDate(0, 0, -1)
		}
		return x
	}
	start := r.start.Truncate(24 * time.Hour)
	switch r.freq {
	case "YEARLY":
		return d.Year() - start.Year()
	case "MONTHLY":
		return (d.Year()-start.Year())*12 + int(d.Month()) - int(start.Month())
	case "WEEKLY":
		return int(week(d).Sub(week(start)) / (7 * 24 * time.Hour))
	default:
		return int(d.Sub(start) / (24 * time.Hour))
	}
}

// wallsUntil steps through the days from the start, and the minutes of each.
func (r *ruleSpec) wallsUntil(end time.Time) (out []time.Time) {
	x := *r
	hours, minutes := x.hours, x.minutes
	if len(hours) == 0 {
		hours = []int{x.start.Hour()}
	}
	if len(minutes) == 0 {
		minutes = []int{x.start.Minute()}
	}
	if len(x.weeks)+len(x.yearDays)+len(x.monthDays)+len(x.weekdays) == 0 {
		switch x.freq {
		case "YEARLY":
			if x.monthDays = []int{x.start.Day()}; len(x.months) == 0 {
				x.months = []int{int(x.start.Month())}
			}
		case "MONTHLY":
			x.monthDays = []int{x.start.Day()}
		case "WEEKLY":
			x.weekdays = []nthWeekday{{0, int(x.start.Weekday())}}
		}
	}
	// A year before the start, so that the first period is whole.
	var group []time.Time
	last := 0
	flush := func() {
		for i, t := range group {
			if (len(x.pos) == 0 || has(x.pos, i+1, len(group))) && !t.Before(x.start) {
				out = append(out, t)
			}
		}
		group = nil
	}
	for d := x.start.Truncate(24*time.Hour).AddDate(-1, 0, 0); d.Before(end.AddDate(1, 0, 1)); d = d.AddDate(0, 0, 1) {
		p := x.period(d)
		if p != last {
			flush()
			last = p
		}
		if (p%x.interval+x.interval)%x.interval != 0 || !x.date(d) {
			continue
		}
		for m := range 24 * 60 {
			if slices.Contains(hours, m/60) && slices.Contains(minutes, m%60) {
				group = append(group, d.Add(time.Duration(m)*time.Minute))
			}
		}
	}
	flush()
	if x.count > 0 && len(out) > x.count {
		out = out[:x.count]
	}
	return slices.DeleteFunc(out, func(t time.Time) bool { return !t.Before(end) })
}

func drawList(t *rapid.T, name string, chance, low, high int, negative bool) []int {
	if rapid.IntRange(1, 100).Draw(t, name+" given") > chance {
		return nil
	}
	n := rapid.IntRange(low, high)
	if negative {
		n = rapid.OneOf(n, rapid.IntRange(-high, -1))
	}
	return rapid.SliceOfNDistinct(n, 1, 3, rapid.ID).Draw(t, name)
}

func drawRule(t *rapid.T, freqs ...string) *ruleSpec {
	r := &ruleSpec{
		freq: rapid.SampledFrom(freqs).Draw(t, "freq"), interval: rapid.SampledFrom([]int{1, 1, 2, 3, 5, 13}).Draw(t, "interval"),
		weekStart: time.Weekday(rapid.IntRange(0, 6).Draw(t, "week start")),
		months:    drawList(t, "months", 30, 1, 12, false), monthDays: drawList(t, "month days", 30, 1, 31, true),
		yearDays: drawList(t, "year days", 10, 1, 366, true),
		hours:    drawList(t, "hours", 40, 0, 23, false), minutes: drawList(t, "minutes", 30, 0, 59, false),
		start: time.Date(rapid.IntRange(1995, 2040).Draw(t, "year"), 1, rapid.IntRange(1, 366).Draw(t, "day"),
			rapid.IntRange(0, 23).Draw(t, "hour"), rapid.IntRange(0, 59).Draw(t, "minute"), 0, 0, time.UTC),
	}
	if r.freq == "YEARLY" && rapid.Bool().Draw(t, "weeks") {
		r.weeks, r.weekStart = drawList(t, "weeks", 50, 1, 53, true), time.Monday
	}
	for _, w := range drawList(t, "weekdays", 40, 0, 6, false) {
		n := 0
		if (r.freq == "MONTHLY" || r.freq == "YEARLY") && len(r.weeks) == 0 && rapid.Bool().Draw(t, "nth") {
			n = rapid.SampledFrom([]int{1, 2, 3, 4, 5, -1, -2, -5}).Draw(t, "n")
		}
		r.weekdays = append(r.weekdays, nthWeekday{n, w})
	}
	if rapid.IntRange(1, 4).Draw(t, "count given") == 1 {
		r.count = rapid.IntRange(1, 40).Draw(t, "count")
	}
	return r
}

func (r *ruleSpec) compile(t interface{ Fatalf(string, ...any) }, loc *time.Location) Rule {
	parsed, err := ParseRecurrence(r.text())
	if err != nil {
		t.Fatalf("%s: %v", r.text(), err)
	}
	return parsed.Rule(r.start.Unix(), Forever, loc)
}

// library is what rrule-go says, which is right in UTC and from DAILY on, but
// for some things the drawn rules leave out.
func (r *ruleSpec) library(t interface{ Fatalf(string, ...any) }, end time.Time) []time.Time {
	option, err := rrule.StrToROption(r.text())
	if err != nil {
		t.Fatalf("%v", err)
	}
	option.Dtstart = r.start
	lib, err := rrule.NewRRule(*option)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return lib.Between(r.start, end.Add(-time.Second), true)
}
