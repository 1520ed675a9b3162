package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/teambition/rrule-go"
)

// dateFilter is what a recurrence rule says about dates: a date passes when
// every part that is given has it (RFC 5545, 3.3.10).
type dateFilter struct {
	months    uint64 // bits 1 to 12
	monthDays []int
	yearDays  []int
	weeks     []int
	weekdays  uint64 // bits 0 (Sunday) to 6
	nth       []nthWeekday
	// inMonth says whether nth counts within the month or the year.
	inMonth   bool
	weekStart int
}

// nthWeekday is for example the second Tuesday, or with n -1 the last.
type nthWeekday struct{ n, weekday int }

func (f *dateFilter) matches(d, year int64, month, dom int) bool {
	if f.months != 0 && f.months>>month&1 == 0 {
		return false
	}
	if len(f.monthDays) > 0 && !position(f.monthDays, dom, int(daysOf(year, month+1, 1)-daysOf(year, month, 1))) {
		return false
	}
	if len(f.yearDays) > 0 && !position(f.yearDays, int(d-daysOf(year, 1, 1))+1, int(daysOf(year+1, 1, 1)-daysOf(year, 1, 1))) {
		return false
	}
	if len(f.weeks) > 0 {
		if week, last := f.week(d, year); !position(f.weeks, week, last) {
			return false
		}
	}
	if f.weekdays == 0 && len(f.nth) == 0 {
		return true
	}
	w := weekday(d)
	if f.weekdays>>w&1 == 1 {
		return true
	}
	if len(f.nth) == 0 {
		return false
	}
	start, end := daysOf(year, 1, 1), daysOf(year+1, 1, 1)
	if f.inMonth {
		start, end = daysOf(year, month, 1), daysOf(year, month+1, 1)
	}
	for _, n := range f.nth {
		if n.weekday == w && (n.n > 0 && int(d-start)/7+1 == n.n || n.n < 0 && -int(end-1-d)/7-1 == n.n) {
			return true
		}
	}
	return false
}

// position reports whether the list has i, or i counted from the end of n.
func position(list []int, i, n int) bool {
	return slices.Contains(list, i) || slices.Contains(list, i-n-1)
}

// week returns the number of the week of a date and that of the last week of
// the same year of weeks. Week 1 is the first with four days in its year.
func (f *dateFilter) week(d, year int64) (week, last int) {
	first := f.firstWeek(year)
	switch next := f.firstWeek(year + 1); {
	case d < first:
		first, year = f.firstWeek(year-1), year-1
	case d >= next:
		first, year = next, year+1
	}
	return int(d-first)/7 + 1, int(f.firstWeek(year+1)-first) / 7
}

func (f *dateFilter) firstWeek(year int64) int64 { return startOfWeek(daysOf(year, 1, 4), f.weekStart) }

func startOfWeek(d int64, weekStart int) int64 {
	return d - floorMod(int64(weekday(d)-weekStart), 7)
}

// dayRule yields the wall times of a rule that repeats by days or longer.
type dayRule struct {
	dateFilter
	clock
	freq      rrule.Frequency
	interval  int64
	anchor    int64 // the day of the start
	positions []int // BYSETPOS
}

func (r *dayRule) next(after int64) (int64, bool) {
	d, second := floorDiv(after+1, Day), floorMod(after+1, Day)
	for limit := d + Horizon/Day; d <= limit; {
		year, month, dom := civil(d)
		period := r.period(d, year, month)
		if over := floorMod(period, r.interval); over != 0 {
			d, second = r.start(period+r.interval-over), 0
			continue
		}
		if len(r.positions) > 0 {
			if t, ok := r.positioned(period, d*Day+second); ok {
				return t, true
			}
			d, second = r.start(period+1), 0
			continue
		}
		if r.months != 0 && r.months>>month&1 == 0 {
			d, second = daysOf(year, month+1, 1), 0
			continue
		}
		if r.matches(d, year, month, dom) {
			if t, ok := r.clock.next(second); ok {
				return d*Day + t, true
			}
		}
		d, second = d+1, 0
	}
	return 0, false
}

// period is the number of the year, month, week or day, from that of the anchor.
func (r *dayRule) period(d, year int64, month int) int64 {
	switch r.freq {
	case rrule.YEARLY:
		y, _, _ := civil(r.anchor)
		return year - y
	case rrule.MONTHLY:
		y, m, _ := civil(r.anchor)
		return (year-y)*12 + int64(month-m)
	case rrule.WEEKLY:
		return floorDiv(d-startOfWeek(r.anchor, r.weekStart), 7)
	default:
		return d - r.anchor
	}
}

// start is the first day of a period.
func (r *dayRule) start(period int64) int64 {
	switch r.freq {
	case rrule.YEARLY:
		y, _, _ := civil(r.anchor)
		return daysOf(y+period, 1, 1)
	case rrule.MONTHLY:
		y, m, _ := civil(r.anchor)
		return daysOf(y+floorDiv(int64(m)-1+period, 12), int(floorMod(int64(m)-1+period, 12))+1, 1)
	case rrule.WEEKLY:
		return startOfWeek(r.anchor, r.weekStart) + 7*period
	default:
		return r.anchor + period
	}
}

// positioned returns the first wall time of a period at or after from that is
// at one of the rule's positions among all of them.
func (r *dayRule) positioned(period, from int64) (int64, bool) {
	var days []int64
	for d, end := r.start(period), r.start(period+1); d < end; d++ {
		if year, month, dom := civil(d); r.matches(d, year, month, dom) {
			days = append(days, d)
		}
	}
	perDay := r.clock.len()
	found, ok := int64(Forever), false
	for _, p := range r.positions {
		i := p - 1
		if p < 0 {
			i = len(days)*perDay + p
		}
		if i < 0 || i >= len(days)*perDay {
			continue
		}
		if t := days[i/perDay]*Day + r.clock.at(i%perDay); t >= from && t < found {
			found, ok = t, true
		}
	}
	return found, ok
}

// len is the number of times in the set, at the i-th of them.
func (c clock) len() int {
	return bits.OnesCount64(c.hours) * bits.OnesCount64(c.minutes) * bits.OnesCount64(c.seconds)
}

func (c clock) at(i int) int64 {
	m, s := bits.OnesCount64(c.minutes), bits.OnesCount64(c.seconds)
	return nthBit(c.hours, i/s/m)*hour + nthBit(c.minutes, i/s%m)*minute + nthBit(c.seconds, i%s)
}

func nthBit(set uint64, n int) int64 {
	for range n {
		set &= set - 1
	}
	return int64(bits.TrailingZeros64(set))
}

// hourRule yields the instants of a rule that repeats by hours, minutes or
// seconds. Its periods are counted in absolute time; what it says about dates
// and times of the day is compared with the clock on the wall.
type hourRule struct {
	dateFilter
	clock
	loc            *time.Location
	unit, interval int64 // seconds, units
	anchor         int64 // instant
	// exact is true when an occurrence is a period's very beginning; otherwise
	// it is any second of the period that the clock set has.
	exact bool
}

// mostSteps bounds the search of an hourRule, which takes a step for each day
// without an occurrence and a few on others.
const mostSteps = 1 << 17

func (r *hourRule) Next(after int64) (int64, bool) {
	t, limit := after+1, after+Horizon
	in := span{end: t}
	for range mostSteps {
		if period := floorDiv(t-r.anchor, r.unit); r.exact {
			step := r.unit * r.interval
			t = r.anchor - floorDiv(r.anchor-t, step)*step
		} else if over := floorMod(period, r.interval); over != 0 {
			t = r.anchor + (period+r.interval-over)*r.unit
		}
		if t > limit {
			break
		}
		if t >= in.end {
			in = zoneAt(r.loc, t)
		}
		d, second := floorDiv(t+in.offset, Day), floorMod(t+in.offset, Day)
		year, month, dom := civil(d)
		skip := Day - second
		if r.matches(d, year, month, dom) {
			if n, ok := r.clock.next(second); ok {
				if n == second {
					return t, true
				}
				skip = n - second
			}
		}
		t = min(t+skip, in.end)
	}
	return 0, false
}

// Recurrence is the text of a recurrence rule, taken apart. It is immutable.
type Recurrence struct {
	option rrule.ROption
	until  string
}

// ParseRecurrence reads the value of an RRULE property, such as
// "FREQ=MONTHLY;BYDAY=-1FR". What RFC 5545 does not allow is an error.
func ParseRecurrence(text string) (r Recurrence, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not a recurrence rule: %v", p)
		}
	}()
	var parts []string
	seen := map[string]bool{}
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.ToUpper(text), ";"), ";") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok:
			return r, fmt.Errorf("%q is not KEY=VALUE", part)
		case seen[key]:
			return r, fmt.Errorf("%s is given twice", key)
		case key == "UNTIL":
			r.until = value
		case key == "DTSTART" || key == "BYEASTER":
			return r, fmt.Errorf("%s is not a part of a recurrence rule", key)
		default:
			parts = append(parts, part)
		}
		seen[key] = true
	}
	option, err := rrule.StrToROption(strings.Join(parts, ";"))
	if err != nil {
		return r, err
	}
	r.option = *option
	if _, err := rrule.NewRRule(*option); err != nil { // the limits of numbers
		return r, err
	}
	return r, r.check(seen)
}

// check finds what the library lets pass and RFC 5545 does not.
func (r *Recurrence) check(given map[string]bool) error {
	const longest = 1_000_000_000
	o := &r.option
	switch {
	case given["COUNT"] && r.until != "":
		return errors.New("COUNT and UNTIL exclude each other")
	case given["COUNT"] && (o.Count < 1 || o.Count > mostCounted):
		return fmt.Errorf("COUNT must be 1 to %d; use UNTIL for more", mostCounted)
	case given["INTERVAL"] && (o.Interval < 1 || o.Interval > longest):
		return fmt.Errorf("INTERVAL must be 1 to %d", longest)
	case o.Freq != rrule.YEARLY && len(o.Byweekno) > 0:
		return errors.New("BYWEEKNO is for FREQ=YEARLY")
	case o.Freq > rrule.DAILY && len(o.Bysetpos) > 0:
		return errors.New("BYSETPOS is for FREQ=DAILY and longer")
	}
	for _, list := range [][]int{o.Bymonthday, o.Byyearday, o.Byweekno, o.Bysetpos} {
		if slices.Contains(list, 0) {
			return errors.New("0 is neither a position from the beginning nor one from the end")
		}
	}
	for _, w := range o.Byweekday {
		if w.N() != 0 && (o.Freq > rrule.MONTHLY || len(o.Byweekno) > 0) {
			return errors.New("BYDAY with a number is for FREQ=MONTHLY and FREQ=YEARLY without BYWEEKNO")
		}
	}
	return nil
}

// Until is the value of UNTIL as written, "" when there is none.
func (r *Recurrence) Until() string { return r.until }

// NeedsStart tells why the rule means nothing without a start, or "".
func (r *Recurrence) NeedsStart() string {
	o := &r.option
	switch {
	case o.Count > 0:
		return "COUNT counts from the start"
	case o.Interval > 1:
		return "INTERVAL counts from the start"
	case o.Freq == rrule.WEEKLY && len(o.Byweekday) == 0:
		return "without BYDAY the start says which day of the week"
	}
	return ""
}

// mostCounted bounds COUNT, whose last occurrence is found by counting.
const mostCounted = 100_000

// Rule makes the rule in a zone. It begins at the wall time start, which is an
// occurrence only if the rule says so, and ends with the instant until,
// [Forever] when there is no such limit, or after COUNT occurrences.
func (r *Recurrence) Rule(start, until int64, loc *time.Location) Rule {
	o := &r.option
	first := Instant(loc, start)
	second := floorMod(start, Day)
	f := dateFilter{
		months: set(o.Bymonth), monthDays: o.Bymonthday, yearDays: o.Byyearday, weeks: o.Byweekno,
		inMonth: o.Freq == rrule.MONTHLY || len(o.Bymonth) > 0, weekStart: (o.Wkst.Day() + 1) % 7,
	}
	for _, w := range o.Byweekday {
		if wd := (w.Day() + 1) % 7; w.N() == 0 {
			f.weekdays |= 1 << wd
		} else {
			f.nth = append(f.nth, nthWeekday{w.N(), wd})
		}
	}
	interval := int64(max(o.Interval, 1))
	c := clock{set(o.Byhour), set(o.Byminute), set(o.Bysecond)}
	var out Rule
	if o.Freq <= rrule.DAILY {
		_, month, dom := civil(floorDiv(start, Day))
		if len(f.weeks)+len(f.yearDays)+len(f.monthDays)+len(f.nth) == 0 && f.weekdays == 0 {
			switch o.Freq { //nolint:exhaustive // a day says nothing more
			case rrule.YEARLY:
				if f.months == 0 {
					f.months = 1 << month
				}
				f.monthDays = []int{dom}
			case rrule.MONTHLY:
				f.monthDays = []int{dom}
			case rrule.WEEKLY:
				f.weekdays = 1 << weekday(floorDiv(start, Day))
			}
		}
		c.hours = cmp.Or(c.hours, 1<<(second/hour))
		c.minutes = cmp.Or(c.minutes, 1<<(second/minute%60))
		c.seconds = cmp.Or(c.seconds, 1<<(second%60))
		out = zoned{&dayRule{f, c, o.Freq, interval, floorDiv(start, Day), o.Bysetpos}, loc, true}
	} else {
		h := &hourRule{dateFilter: f, loc: loc, interval: interval, anchor: first}
		switch o.Freq {
		case rrule.HOURLY:
			h.unit, h.exact = hour, c.minutes|c.seconds == 0
			if !h.exact {
				c.minutes = cmp.Or(c.minutes, 1<<(second/minute%60))
				c.seconds = cmp.Or(c.seconds, 1<<(second%60))
			}
		case rrule.MINUTELY:
			h.unit, h.exact = minute, c.seconds == 0
		default:
			h.unit, h.exact = 1, true
		}
		if !h.exact {
			h.anchor -= second % h.unit
		}
		h.clock = clock{cmp.Or(c.hours, allHours), cmp.Or(c.minutes, allMinutes), cmp.Or(c.seconds, allMinutes)}
		out = h
	}
	b := bounded{out, first, Forever}
	if o.Count > 0 {
		b.last = first - 1
		for range o.Count {
			t, ok := b.rule.Next(b.last)
			if !ok || t > first+Horizon {
				break
			}
			b.last = t
		}
	}
	b.last = min(b.last, until)
	return b
}

func set(list []int) (out uint64) {
	for _, i := range list {
		out |= 1 << i
	}
	return out
}
