package calendar

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/specs/schedule"
)

// problem is something wrong with a config.
type problem struct{ field, hint, text string }

// compiler turns a config into a schedule and collects what is wrong with it.
type compiler struct {
	*Config
	report func(problem)
	failed bool
	loc    *time.Location
	out    *schedule.Schedule
}

func (c *compiler) fail(field, hint, format string, args ...any) {
	c.failed = true
	c.report(problem{field, hint, fmt.Sprintf(format, args...)})
}

// compile returns the schedule of the config, or nil after it reported why
// there is none.
func (cfg *Config) compile(report func(problem)) *schedule.Schedule {
	c := compiler{Config: cfg, report: report, loc: time.UTC}
	c.out = &schedule.Schedule{First: math.MinInt64 / 2, Last: schedule.Forever}
	given := 0
	for _, yes := range []bool{cfg.Schedule != "", cfg.RRule != "", cfg.Interval != 0} {
		if yes {
			given++
		}
	}
	if given > 1 || given == 0 && len(cfg.RDate) == 0 {
		c.fail("", `for example schedule: "30 2 * * *"`, "needs exactly one of schedule, rrule and interval, or rdate alone")
		return nil
	}
	text := c.zone()
	if c.failed {
		return nil // no time can be read without it
	}
	var start *moment
	c.limits(&start)
	switch {
	case cfg.Schedule != "":
		c.cron(text)
	case cfg.RRule != "":
		c.recurrence(start)
	case cfg.Interval != 0:
		anchor := int64(0)
		if start != nil {
			anchor = start.instant(c.loc)
		}
		every, err := schedule.NewEvery(cfg.Interval.D(), anchor)
		if err != nil {
			c.fail("interval", "", "%v", withTicker(err))
		}
		c.out.Rule = every
	}
	for i, t := range cfg.RDate {
		c.date(indexed("rdate", i), t)
	}
	for i, t := range cfg.ExDate {
		c.exclude(indexed("exdate", i), t)
	}
	for i, t := range cfg.Exclude {
		c.exclude(indexed("exclude", i), t)
	}
	if c.failed {
		return nil
	}
	c.out.Zone = c.loc
	for _, list := range []*[]int64{&c.out.Dates, &c.out.Exclude.Instants, &c.out.Exclude.Dates} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
	return c.out
}

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// zone finds the time zone, and returns the schedule without it.
func (c *compiler) zone() (fields string) {
	field, name := "timezone", c.Timezone
	inside, fields, ok := schedule.CutZone(c.Schedule)
	if ok {
		if c.Timezone != "" && c.Timezone != inside {
			c.fail("schedule", "give one of them", "names the time zone %q, but timezone is %q", inside, c.Timezone)
			return ""
		}
		if inside == "" || fields == "" {
			c.fail("schedule", `for example "CRON_TZ=Europe/Amsterdam 30 2 * * *"`, "needs a time zone and fields after CRON_TZ=")
			return ""
		}
		field, name = "schedule", inside
	}
	if c.RRule != "" {
		for _, l := range contentLines(c.RRule) {
			zone := l.params["TZID"]
			switch {
			case zone == "" || zone == name:
			case name != "":
				c.fail("rrule", "all its times must be of one zone", "names the time zone %q, but there is also %q", zone, name)
				return ""
			default:
				field, name = "rrule", zone
			}
		}
	}
	loc := c.loadZone(field, name)
	if loc != nil {
		c.loc = loc
	}
	return fields
}

func (c *compiler) loadZone(field, name string) *time.Location {
	z := c.zones
	if z == nil { // a config that no factory made
		z = &schedule.Zones{}
	}
	loc, err := z.Load(name)
	if err != nil {
		c.fail(field, schedule.ZoneHint(name), "%v", err)
	}
	return loc
}

func (c *compiler) limits(start **moment) {
	if c.Start != "" {
		m, err := parseMoment(c.Start)
		if err != nil {
			c.fail("start", momentHint, "%v", err)
			return
		}
		*start, c.out.First = &m, m.instant(c.loc)
	}
	if c.End == "" {
		return
	}
	m, err := parseMoment(c.End)
	if err != nil {
		c.fail("end", momentHint, "%v", err)
		return
	}
	if c.out.Last = m.end(c.loc); c.out.Last < c.out.First {
		c.fail("end", "", "lies before start")
	}
}

func (c *compiler) cron(fields string) {
	r, err := schedule.ParseCron(fields, c.loc)
	if err != nil {
		c.fail("schedule", cronHint(fields), "`%s` is not a schedule: %v", clip(c.Schedule), withTicker(err))
		return
	}
	if e, ok := r.(schedule.Every); ok {
		if c.out.First > math.MinInt64/2 {
			e.Anchor = c.out.First
		}
		r = e
	}
	c.out.Rule = r
}

// cronHint is what to write instead of a schedule that is none.
func cronHint(fields string) string {
	hint := schedule.CronHint(fields)
	if hint == schedule.NotCron {
		hint += "; write it as rrule, for example FREQ=MONTHLY;BYMONTHDAY=-1"
	}
	return hint
}

// withTicker adds to an error about a short interval who has shorter ones.
func withTicker(err error) error {
	if errors.Is(err, schedule.ErrTooShort) {
		return fmt.Errorf("%w; for shorter ones there is the ticker", err)
	}
	return err
}

func clip(s string) string {
	const most = 60
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// recurrence compiles rrule with all its lines.
func (c *compiler) recurrence(start *moment) {
	var r schedule.Recurrence
	found := false
	for _, l := range contentLines(c.RRule) {
		var err error
		switch l.name {
		case "RRULE":
			if found {
				err = errors.New("more than one RRULE; use an event for each")
			} else {
				r, err = schedule.ParseRecurrence(l.value)
			}
			found = true
		case "DTSTART":
			var m moment
			if start != nil {
				err = errors.New("has a DTSTART, and start is given too")
			} else if m, err = parseMoment(l.value); err == nil {
				start = &m
			}
		case "RDATE":
			for v := range strings.SplitSeq(l.value, ",") {
				c.date("rrule", v)
			}
		case "EXDATE":
			for v := range strings.SplitSeq(l.value, ",") {
				c.exclude("rrule", v)
			}
		default:
			err = fmt.Errorf("%s is not a line of a recurrence rule", l.name)
		}
		if err != nil {
			c.fail("rrule", "for example FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=9;BYMINUTE=30", "`%s` is not a recurrence rule: %v", clip(l.text), err)
			return
		}
	}
	if !found {
		c.fail("rrule", "for example FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=9;BYMINUTE=30", "has no RRULE")
		return
	}
	begin := int64(0)
	if start != nil {
		begin = start.wall(c.loc)
	} else if why := r.NeedsStart(); why != "" {
		c.fail("rrule", "add start, for example start: 2026-01-01T09:00", "needs a start: %s", why)
		return
	}
	until := int64(schedule.Forever)
	if text := r.Until(); text != "" {
		m, err := parseMoment(text)
		if err != nil {
			c.fail("rrule", "", "UNTIL: %v", err)
			return
		}
		until = m.end(c.loc)
	}
	c.out.Rule = r.Rule(begin, until, c.loc)
}

// line is a content line of iCalendar.
type line struct {
	name, value, text string
	params            map[string]string
}

// contentLines splits the lines of rrule; one without a name is the rule.
func contentLines(text string) (out []line) {
	for raw := range strings.Lines(text) {
		raw = strings.TrimSpace(raw)
		if raw == "" {
			continue
		}
		head, value, ok := strings.Cut(raw, ":")
		if !ok {
			out = append(out, line{name: "RRULE", value: raw, text: raw})
			continue
		}
		names := strings.Split(head, ";")
		l := line{name: strings.ToUpper(names[0]), value: value, text: raw, params: map[string]string{}}
		for _, p := range names[1:] {
			k, v, _ := strings.Cut(p, "=")
			l.params[strings.ToUpper(k)] = v
		}
		out = append(out, l)
	}
	return out
}

func (c *compiler) date(field, text string) {
	m, err := parseMoment(text)
	if err != nil {
		c.fail(field, momentHint, "%v", err)
		return
	}
	c.out.Dates = append(c.out.Dates, m.instant(c.loc))
}

func (c *compiler) exclude(field, text string) {
	m, err := parseMoment(text)
	switch {
	case err != nil:
		c.fail(field, momentHint, "%v", err)
	case m.date:
		c.out.Exclude.Dates = append(c.out.Exclude.Dates, m.seconds/schedule.Day)
	default:
		c.out.Exclude.Instants = append(c.out.Exclude.Instants, m.instant(c.loc))
	}
}

// moment is a point in time as written: an instant, a wall time or a date.
type moment struct {
	seconds int64 // of the instant, or on the wall
	fixed   bool  // an instant
	date    bool
}

const momentHint = "write 2026-12-31, 2026-12-31T02:30 or 2026-12-31T02:30:00+01:00"

// parseMoment reads the forms of RFC 3339 and of RFC 5545.
func parseMoment(text string) (moment, error) {
	for _, layout := range []string{time.RFC3339, "20060102T150405Z"} {
		if t, err := time.Parse(layout, text); err == nil && inReach(t) {
			if t.Nanosecond() != 0 {
				break
			}
			return moment{seconds: t.Unix(), fixed: true}, nil
		}
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", "20060102T150405"} {
		if t, err := time.Parse(layout, text); err == nil && inReach(t) && t.Nanosecond() == 0 {
			return moment{seconds: t.Unix()}, nil
		}
	}
	for _, layout := range []string{time.DateOnly, "20060102"} {
		if t, err := time.Parse(layout, text); err == nil && inReach(t) {
			return moment{seconds: t.Unix(), date: true}, nil
		}
	}
	return moment{}, fmt.Errorf("`%s` is not a date or an instant of whole seconds", clip(text))
}

func inReach(t time.Time) bool { return t.Year() >= 1 && t.Year() < 9999 }

func (m moment) instant(loc *time.Location) int64 {
	if m.fixed {
		return m.seconds
	}
	return schedule.Instant(loc, m.seconds)
}

// end is the instant, or the last one of a date.
func (m moment) end(loc *time.Location) int64 {
	if m.date {
		return schedule.Instant(loc, m.seconds+schedule.Day) - 1
	}
	return m.instant(loc)
}

// wall is what a clock in the zone shows.
func (m moment) wall(loc *time.Location) int64 {
	if m.fixed {
		return schedule.Wall(loc, m.seconds)
	}
	return m.seconds
}

// occurs reports when a schedule has no occurrence after now, unless missed
// ones may still be caught up on.
func (cfg *Config) occurs(s *schedule.Schedule, now time.Time, report func(problem)) {
	at := now.Unix()
	if _, ok := s.Next(at); ok {
		return
	}
	bare := *s
	bare.Exclude = schedule.Exclusions{}
	if _, ok := bare.Next(at); ok {
		field := "exclude"
		if len(cfg.Exclude) == 0 {
			if field = "exdate"; len(cfg.ExDate) == 0 {
				field = "rrule"
			}
		}
		report(problem{field, "", "excludes every occurrence"})
		return
	}
	// What names the time is to blame, unless it is the limit.
	field := "rdate"
	switch {
	case cfg.Schedule != "":
		field = "schedule"
	case cfg.RRule != "":
		field = "rrule"
	case cfg.Interval != 0:
		field = "interval"
	}
	never := problem{field, "", "can never occur"}
	if cfg.Schedule != "" {
		never.hint = "no date has this day and month"
	}
	last, ok := s.Latest(at-schedule.Horizon, at)
	if !ok {
		if bare.Last = schedule.Forever; cfg.End != "" {
			if t, ok := bare.Next(bare.First - 1); ok {
				never = problem{"end", "", "lies before the first occurrence, " + s.Time(t).Format(time.RFC3339)}
			}
		}
		report(never)
		return
	}
	if cfg.Catchup.mode() != catchupNone {
		return
	}
	if cfg.End != "" {
		field = "end"
	}
	report(problem{field, "remove the event, or let it catch up on missed occurrences with catchup", "has no occurrence any more, the last was " + s.Time(last).Format(time.RFC3339)})
}
