package schedule

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// clock is a set of times of a day: every combination of its hours, minutes
// and seconds, one bit each.
type clock struct{ hours, minutes, seconds uint64 }

const (
	allHours   = 1<<24 - 1
	allMinutes = 1<<60 - 1
)

// next returns the first time of the set at or after the given second of the
// day.
func (c clock) next(from int64) (int64, bool) {
	h, m, s := from/hour, from/minute%60, from%60
	if c.hours>>h&1 == 1 {
		if c.minutes>>m&1 == 1 {
			if rest := c.seconds >> s; rest != 0 {
				return from + int64(bits.TrailingZeros64(rest)), true
			}
		}
		if rest := c.minutes >> (m + 1); rest != 0 {
			return h*hour + (m+1+int64(bits.TrailingZeros64(rest)))*minute + c.at(0)%minute, true
		}
	}
	rest := c.hours >> (h + 1)
	if rest == 0 {
		return 0, false
	}
	return (h+1+int64(bits.TrailingZeros64(rest)))*hour + c.at(0)%hour, true
}

// cronDays are the days of a cron schedule, at its times.
type cronDays struct {
	clock
	days, months, weekdays uint64
	// either is true when day of month and day of week are both restricted:
	// then one of the two is enough, as cron has always had it.
	either bool
}

func (c *cronDays) next(after int64) (int64, bool) {
	d, second := floorDiv(after+1, Day), floorMod(after+1, Day)
	for limit := d + Horizon/Day; d <= limit; {
		y, m, dom := civil(d)
		if c.months>>m&1 == 0 {
			d, second = daysOf(y, m+1, 1), 0
			continue
		}
		if c.matches(d, dom) {
			if t, ok := c.clock.next(second); ok {
				return d*Day + t, true
			}
		}
		d, second = d+1, 0
	}
	return 0, false
}

func (c *cronDays) matches(d int64, dom int) bool {
	byDate, byWeekday := c.days>>dom&1 == 1, c.weekdays>>weekday(d)&1 == 1
	if c.either {
		return byDate || byWeekday
	}
	return byDate && byWeekday
}

// ParseCron returns the rule of a cron schedule for a zone: five fields, six
// with seconds in front, or a descriptor such as @daily. "@every 90s" is an
// [Every] with anchor 0. A zone in front is an error, see [CutZone]; what is
// often meant by wrong text is told by [CronHint]. A schedule that never occurs
// (31 February) is none: its rule has no next instant.
func ParseCron(text string, loc *time.Location) (r Rule, err error) {
	// The parser of the library must not see zones: it panics on some.
	if name, _, ok := CutZone(text); ok {
		return nil, fmt.Errorf("%s must stand before the fields", name)
	}
	if text, ok := strings.CutPrefix(text, "@every"); ok {
		interval, err := time.ParseDuration(strings.TrimSpace(text))
		if err != nil {
			return nil, errors.New("@every needs a duration such as 90s, 15m or 1h30m")
		}
		every, err := NewEvery(interval, 0)
		if err != nil {
			return nil, err
		}
		return every, nil
	}
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("not a schedule: %v", p)
		}
	}()
	parsed, err := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(text)
	if err != nil {
		return nil, err
	}
	s, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, errors.New("not a schedule of fields")
	}
	const star = 1 << 63 // the library's mark of a field that is * or ?
	days := &cronDays{
		clock: clock{s.Hour & allHours, s.Minute & allMinutes, s.Second & allMinutes},
		days:  s.Dom &^ star, months: s.Month &^ star, weekdays: s.Dow &^ star,
		either: s.Dom&star == 0 && s.Dow&star == 0,
	}
	return zoned{days, loc, days.hours != allHours}, nil
}

// NotCron is the hint of [CronHint] for what other programs have beyond cron.
const NotCron = "L, W and # are not part of cron"

// CronHint returns what to write instead of a schedule that [ParseCron] has
// refused, or "": it knows what people write that cron does not have.
func CronHint(text string) string {
	list := strings.Fields(text)
	switch {
	case strings.HasPrefix(text, "@"):
		return "one of @hourly, @daily, @weekly, @monthly, @yearly, @every 90s"
	case len(list) != 5 && len(list) != 6:
		return "five fields: minute, hour, day of month, month, day of week; a sixth in front for seconds"
	case strings.Contains(list[len(list)-1], "7"):
		return "Sunday is 0 or SUN"
	case strings.ContainsAny(strings.ToUpper(text), "LW#"):
		return NotCron
	}
	return ""
}

// CutZone splits a leading CRON_TZ=zone (or TZ=zone) from the fields of a cron
// schedule. Without one, ok is false and fields is the text. Either may be
// empty; neither is checked.
func CutZone(text string) (zone, fields string, ok bool) {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(text, "CRON_"), "TZ=")
	if !ok {
		return "", text, false
	}
	end := strings.IndexAny(rest, " \t")
	if end < 0 {
		return rest, "", true
	}
	return rest[:end], strings.TrimSpace(rest[end:]), true
}

// civil returns the date of a day since 1970-01-01; daysOf is its inverse and
// takes months beyond December. They are a tenth of the work of package time.
func civil(d int64) (year int64, month, dom int) {
	d += 719468
	era := floorDiv(d, 146097)
	doe := d - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	dom = int(doy - (153*mp+2)/5 + 1)
	month = int(mp + 3)
	year = yoe + era*400
	if month > 12 {
		month, year = month-12, year+1
	}
	return year, month, dom
}

func daysOf(year int64, month, dom int) int64 {
	year += floorDiv(int64(month)-1, 12)
	m := floorMod(int64(month)-1, 12) + 1
	if m <= 2 {
		m, year = m+12, year-1
	}
	era := floorDiv(year, 400)
	yoe := year - era*400
	doy := (153*(m-3)+2)/5 + int64(dom) - 1
	return era*146097 + yoe*365 + yoe/4 - yoe/100 + doy - 719468
}

// weekday is 0 for Sunday, as in cron.
func weekday(d int64) int { return int(floorMod(d+4, 7)) }
