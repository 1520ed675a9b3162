// Package schedule owns the arithmetic of points in time: cron schedules,
// recurrence rules of RFC 5545, intervals, what limits and exclusions leave of
// them, time zones and their names, and the one policy for clocks that are put
// forward or back. All that says "at this time" in a spec means the same by it.
//
// Instants are Unix seconds, so that two of them compare and count without a
// zone. Wall times are what a clock on the wall shows, in seconds since it
// showed 1970-01-01 00:00:00.
//
// When clocks change (docs/calendar.md has the table), a cron schedule with
// certain hours, a recurrence rule of days and longer and a single wall time
// happen once: a wall time that does not exist is read with the offset before
// the change (02:30 becomes 03:30), of one that exists twice the first counts.
// A cron schedule for every hour happens whenever the clock shows it: not at
// all, or twice. Intervals and recurrence rules of hours and shorter count
// absolute time.
//
// The package is pure: the same question has the same answer. It knows no clock
// (the caller says after when), starts no goroutine, and what it makes is
// immutable and safe for concurrent use. It must not touch specs, their places
// and diagnostics, nor know who asks. Only [Zones.Load] reads, the zone
// database.
package schedule

import (
	"errors"
	"math"
	"slices"
	"time"
)

// Rule yields instants in ascending order. It is immutable, and safe for
// concurrent use.
type Rule interface {
	// Next returns the first instant strictly after the given one, both in Unix
	// seconds, or false when there is none within [Horizon].
	Next(after int64) (int64, bool)
}

// Forever is later than every instant a rule is asked about: the limit of what
// has none.
const Forever = math.MaxInt64

// Horizon is how far ahead, in seconds, a rule looks before it is said to have
// ended: the Gregorian calendar repeats itself after 400 years.
const Horizon = 400 * 366 * Day

// Day is the length of a day on the wall, in seconds.
const Day = 24 * hour

const (
	minute = 60
	hour   = 60 * minute
)

// Schedule is a rule with single instants beside it, limits and exclusions. It
// is a [Rule] itself. It must not be changed once it was asked, and may then be
// shared.
type Schedule struct {
	// Rule may be nil: then there are only the dates.
	Rule Rule
	// Dates are single instants, ascending.
	Dates []int64
	// First and Last are the limits of everything, instants, inclusive; Last is
	// [Forever] when there is none.
	First, Last int64
	// Zone is where the dates of Exclude are, and the times of [Schedule.Time].
	Zone *time.Location
	// Exclude is what does not happen.
	Exclude Exclusions
}

// Exclusions are instants and whole dates of a schedule's zone.
type Exclusions struct {
	Instants []int64 // ascending
	Dates    []int64 // days since 1970-01-01, ascending
}

// Next returns the first occurrence strictly after the given instant.
func (s *Schedule) Next(after int64) (int64, bool) {
	after = max(after, s.First-1)
	for {
		t, ok := s.candidate(after)
		if !ok || t > s.Last {
			return 0, false
		}
		if _, out := slices.BinarySearch(s.Exclude.Instants, t); out {
			after = t
			continue
		}
		if len(s.Exclude.Dates) == 0 {
			return t, true
		}
		date := floorDiv(Wall(s.Zone, t), Day)
		if _, out := slices.BinarySearch(s.Exclude.Dates, date); !out {
			return t, true
		}
		// A clock that is put back over midnight shows a date again.
		after = max(t, Instant(s.Zone, (date+1)*Day)-1)
	}
}

func (s *Schedule) candidate(after int64) (t int64, ok bool) {
	t = Forever
	if s.Rule != nil {
		if n, found := s.Rule.Next(after); found {
			t, ok = n, true
		}
	}
	if i, _ := slices.BinarySearch(s.Dates, after+1); i < len(s.Dates) {
		t, ok = min(t, s.Dates[i]), true
	}
	return t, ok
}

// Latest returns the last occurrence after the first and up to the second
// instant. It bisects, so its cost does not depend on how many there are.
func (s *Schedule) Latest(after, upTo int64) (int64, bool) {
	low, ok := s.Next(after)
	if !ok || low > upTo {
		return 0, false
	}
	for high := upTo; low < high; {
		middle := low + (high-low+1)/2
		if t, ok := s.Next(middle - 1); ok && t <= high {
			low = t
		} else {
			high = middle - 1
		}
	}
	return low, true
}

// Count returns how many occurrences lie after the first and up to the second
// instant; it stops counting at most.
func (s *Schedule) Count(after, upTo int64, most int) (n int) {
	for ; n < most; n++ {
		t, ok := s.Next(after)
		if !ok || t > upTo {
			return n
		}
		after = t
	}
	return n
}

// Time is an instant for people: in the zone of the schedule.
func (s *Schedule) Time(t int64) time.Time { return time.Unix(t, 0).In(s.Zone) }

// Every is a rule of equal distances in absolute time from an anchor; make it
// with [NewEvery].
type Every struct {
	// Anchor is an instant, one of those the rule yields.
	Anchor int64
	// Interval is the distance in seconds, at least 1.
	Interval int64
}

// ErrTooShort says that an interval is shorter than a second.
var ErrTooShort = errors.New("the interval must be at least 1s")

// NewEvery returns the rule with this interval that has an occurrence at the
// anchor, an instant. The interval must be of whole seconds and at least one
// ([ErrTooShort]).
func NewEvery(interval time.Duration, anchor int64) (Every, error) {
	switch {
	case interval < time.Second:
		return Every{}, ErrTooShort
	case interval%time.Second != 0:
		return Every{}, errors.New("the interval must be of whole seconds")
	}
	return Every{anchor, int64(interval / time.Second)}, nil
}

// Next returns the first instant of the rule after the given one.
func (e Every) Next(after int64) (int64, bool) {
	return e.Anchor + (floorDiv(after-e.Anchor, e.Interval)+1)*e.Interval, true
}

// bounded limits a rule, both ends inclusive.
type bounded struct {
	rule        Rule
	first, last int64
}

func (b bounded) Next(after int64) (int64, bool) {
	t, ok := b.rule.Next(max(after, b.first-1))
	return t, ok && t <= b.last
}

// walls yields what a clock on the wall shows, in seconds since it showed
// 1970-01-01 00:00:00, without a zone. It is immutable.
type walls interface {
	next(after int64) (int64, bool)
}

// zoned is the rule of wall times in a zone. What that means when clocks are
// put forward or back is the policy of this package, the same for cron and
// recurrence rules:
//
//   - once: each wall time happens once. One that does not exist is read with
//     the offset before the change (02:30 becomes 03:30), one that exists
//     twice means the first. This is RFC 5545, 3.3.5.
//   - otherwise (a schedule for every hour): whenever the clock shows it. One
//     that does not exist is left out, one that exists twice happens twice.
type zoned struct {
	walls walls
	loc   *time.Location
	once  bool
}

func (z zoned) Next(after int64) (int64, bool) {
	limit := after + Horizon
	for t := after + 1; t <= limit; {
		in := zoneAt(z.loc, t)
		before := in.offset
		// Only the hours after a change are special; shifts of more than two
		// days do not exist.
		if z.once && in.start != math.MinInt64 && t-in.start < 2*Day {
			before = offset(z.loc, in.start-1)
		}
		from := t + in.offset
		if before > in.offset { // put back: what was shown before is done
			from = max(from, in.start+before)
		}
		w, ok := z.walls.next(from - 1)
		found := int64(Forever)
		if ok && (in.end == Forever || w < in.end+in.offset) {
			found = w - in.offset
		}
		if before < in.offset && t+before < in.start+in.offset { // put forward: what was never shown
			if w, ok := z.walls.next(t + before - 1); ok && w < in.start+in.offset {
				found = min(found, w-before)
			}
		}
		if found != Forever || !ok {
			return found, found != Forever
		}
		// There is nothing before w, whose instant is at most a day from w read
		// as UTC, unless the clock is about to be put back to before t.
		if next := in.end; next-t > 2*Day {
			t = max(next, w-2*Day)
		} else {
			t = next
		}
	}
	return 0, false
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func floorMod(a, b int64) int64 { return a - floorDiv(a, b)*b }
