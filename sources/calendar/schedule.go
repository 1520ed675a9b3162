package calendar

import (
	"math"
	"slices"
	"time"
)

// Instants are Unix seconds, so that two of them compare and count without a
// zone. forever is later than every instant a schedule is asked about.
const forever = math.MaxInt64

// rule yields instants in ascending order. It is immutable.
type rule interface {
	// next returns the first instant strictly after the given one, or false
	// when there is none within [horizon].
	next(after int64) (int64, bool)
}

// horizon is how far ahead a rule looks before it is said to have ended: the
// Gregorian calendar repeats itself after 400 years.
const horizon = 400 * 366 * day

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

// schedule is what a config says: a rule or none, single instants, limits and
// exclusions. It is immutable and may be shared.
type schedule struct {
	rule  rule
	dates []int64 // ascending
	// first and last are limits, inclusive.
	first, last int64
	loc         *time.Location
	exclude     exclusions
}

// exclusions are instants and whole dates of a schedule's zone, ascending.
type exclusions struct {
	instants []int64
	dates    []int64 // days since 1970-01-01
}

// next returns the first occurrence strictly after the given instant.
func (s *schedule) next(after int64) (int64, bool) {
	after = max(after, s.first-1)
	for {
		t, ok := s.candidate(after)
		if !ok || t > s.last {
			return 0, false
		}
		if _, out := slices.BinarySearch(s.exclude.instants, t); out {
			after = t
			continue
		}
		if len(s.exclude.dates) == 0 {
			return t, true
		}
		date := floorDiv(t+offset(s.loc, t), day)
		if _, out := slices.BinarySearch(s.exclude.dates, date); !out {
			return t, true
		}
		// A clock that is put back over midnight shows a date again.
		after = max(t, instant(s.loc, (date+1)*day)-1)
	}
}

func (s *schedule) candidate(after int64) (t int64, ok bool) {
	t = forever
	if s.rule != nil {
		if n, found := s.rule.next(after); found {
			t, ok = n, true
		}
	}
	if i, _ := slices.BinarySearch(s.dates, after+1); i < len(s.dates) {
		t, ok = min(t, s.dates[i]), true
	}
	return t, ok
}

// latest returns the last occurrence after the first and up to the second
// instant. It bisects, so its cost does not depend on how many there are.
func (s *schedule) latest(after, upTo int64) (int64, bool) {
	low, ok := s.next(after)
	if !ok || low > upTo {
		return 0, false
	}
	for high := upTo; low < high; {
		middle := low + (high-low+1)/2
		if t, ok := s.next(middle - 1); ok && t <= high {
			low = t
		} else {
			high = middle - 1
		}
	}
	return low, true
}

// count returns how many occurrences lie after the first and up to the second
// instant; it stops counting at most.
func (s *schedule) count(after, upTo int64, most int) (n int) {
	for ; n < most; n++ {
		t, ok := s.next(after)
		if !ok || t > upTo {
			return n
		}
		after = t
	}
	return n
}

// time is an instant for people: in the zone of the schedule.
func (s *schedule) time(t int64) time.Time { return time.Unix(t, 0).In(s.loc) }

// every is a rule of equal distances in absolute time from an anchor.
type every struct{ anchor, interval int64 }

func (e every) next(after int64) (int64, bool) {
	return e.anchor + (floorDiv(after-e.anchor, e.interval)+1)*e.interval, true
}

// bounded limits a rule, both ends inclusive.
type bounded struct {
	rule
	first, last int64
}

func (b bounded) next(after int64) (int64, bool) {
	t, ok := b.rule.next(max(after, b.first-1))
	return t, ok && t <= b.last
}

// walls yields what a clock on the wall shows, in seconds since it showed
// 1970-01-01 00:00:00, without a zone. It is immutable.
type walls interface {
	next(after int64) (int64, bool)
}

// zoned is the rule of wall times in a zone. What that means when clocks are
// put forward or back is the policy of this package, the same for cron and
// recurrence rules (see docs/calendar.md):
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

func (z zoned) next(after int64) (int64, bool) {
	limit := after + horizon
	for t := after + 1; t <= limit; {
		in := zoneAt(z.loc, t)
		before := in.offset
		// Only the hours after a change are special; shifts of more than two
		// days do not exist.
		if z.once && in.start != math.MinInt64 && t-in.start < 2*day {
			before = offset(z.loc, in.start-1)
		}
		from := t + in.offset
		if before > in.offset { // put back: what was shown before is done
			from = max(from, in.start+before)
		}
		w, ok := z.walls.next(from - 1)
		found := int64(forever)
		if ok && (in.end == forever || w < in.end+in.offset) {
			found = w - in.offset
		}
		if before < in.offset && t+before < in.start+in.offset { // put forward: what was never shown
			if w, ok := z.walls.next(t + before - 1); ok && w < in.start+in.offset {
				found = min(found, w-before)
			}
		}
		if found != forever || !ok {
			return found, found != forever
		}
		// There is nothing before w, whose instant is at most a day from w read
		// as UTC, unless the clock is about to be put back to before t.
		if next := in.end; next-t > 2*day {
			t = max(next, w-2*day)
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
