package calendar

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// problem is something wrong with a config.
type problem struct{ field, hint, text string }

// compiler turns a config into a schedule and collects what is wrong with it.
type compiler struct {
	*Config
	report func(problem)
	failed bool
	loc    *time.Location
	out    *schedule
}

func (c *compiler) fail(field, hint, format string, args ...any) {
	c.failed = true
	c.report(problem{field, hint, fmt.Sprintf(format, args...)})
}

// compile returns the schedule of the config, or nil after it reported why
// there is none.
func (cfg *Config) compile(report func(problem)) *schedule {
	c := compiler{Config: cfg, report: report, loc: time.UTC}
	c.out = &schedule{first: math.MinInt64 / 2, last: forever}
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
		var err error
		if c.out.rule, err = newEvery(cfg.Interval.D(), anchor); err != nil {
			c.fail("interval", "", "%v", err)
		}
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
	c.out.loc = c.loc
	for _, list := range []*[]int64{&c.out.dates, &c.out.exclude.instants, &c.out.exclude.dates} {
		slices.Sort(*list)
		*list = slices.Clip(slices.Compact(*list))
	}
	return c.out
}

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// zone finds the time zone, and returns the schedule without it.
func (c *compiler) zone() (fields string) {
	field, name := "timezone", c.Timezone
	inside, fields, ok := cronZone(c.Schedule)
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
		z = &zones{}
	}
	loc, err := z.load(name)
	if err != nil {
		hint := "use a name of the IANA database such as Europe/Amsterdam"
		if near := nearestZone(name); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		c.fail(field, hint, "%v", err)
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
		*start, c.out.first = &m, m.instant(c.loc)
	}
	if c.End == "" {
		return
	}
	m, err := parseMoment(c.End)
	if err != nil {
		c.fail("end", momentHint, "%v", err)
		return
	}
	if c.out.last = m.end(c.loc); c.out.last < c.out.first {
		c.fail("end", "", "lies before start")
	}
}

func (c *compiler) cron(fields string) {
	r, err := parseCron(fields, c.loc)
	if err != nil {
		c.fail("schedule", cronHint(fields), "`%s` is not a schedule: %v", clip(c.Schedule), err)
		return
	}
	if e, ok := r.(every); ok {
		if c.out.first > math.MinInt64/2 {
			e.anchor = c.out.first
		}
		r = e
	}
	c.out.rule = r
}

// cronHint knows what people write that cron does not have.
func cronHint(fields string) string {
	list := strings.Fields(fields)
	switch {
	case strings.HasPrefix(fields, "@"):
		return "one of @hourly, @daily, @weekly, @monthly, @yearly, @every 90s"
	case len(list) != 5 && len(list) != 6:
		return "five fields: minute, hour, day of month, month, day of week; a sixth in front for seconds"
	case strings.Contains(list[len(list)-1], "7"):
		return "Sunday is 0 or SUN"
	case strings.ContainsAny(strings.ToUpper(fields), "LW#"):
		return "L, W and # are not part of cron; write it as rrule, for example FREQ=MONTHLY;BYMONTHDAY=-1"
	}
	return ""
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
	var r recurrence
	found := false
	for _, l := range contentLines(c.RRule) {
		var err error
		switch l.name {
		case "RRULE":
			if found {
				err = errors.New("more than one RRULE; use an event for each")
			} else {
				r, err = parseRecurrence(l.value)
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
	} else if why := r.needsStart(); why != "" {
		c.fail("rrule", "add start, for example start: 2026-01-01T09:00", "needs a start: %s", why)
		return
	}
	until := int64(forever)
	if r.until != "" {
		m, err := parseMoment(r.until)
		if err != nil {
			c.fail("rrule", "", "UNTIL: %v", err)
			return
		}
		until = m.end(c.loc)
	}
	b := r.rule(begin, c.loc)
	b.last = min(b.last, until)
	c.out.rule = b
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
	c.out.dates = append(c.out.dates, m.instant(c.loc))
}

func (c *compiler) exclude(field, text string) {
	m, err := parseMoment(text)
	switch {
	case err != nil:
		c.fail(field, momentHint, "%v", err)
	case m.date:
		c.out.exclude.dates = append(c.out.exclude.dates, m.seconds/day)
	default:
		c.out.exclude.instants = append(c.out.exclude.instants, m.instant(c.loc))
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
	return instant(loc, m.seconds)
}

// end is the instant, or the last one of a date.
func (m moment) end(loc *time.Location) int64 {
	if m.date {
		return instant(loc, m.seconds+day) - 1
	}
	return m.instant(loc)
}

// wall is what a clock in the zone shows.
func (m moment) wall(loc *time.Location) int64 {
	if m.fixed {
		return m.seconds + offset(loc, m.seconds)
	}
	return m.seconds
}

// occurs reports when a schedule has no occurrence after now, unless missed
// ones may still be caught up on.
func (cfg *Config) occurs(s *schedule, now time.Time, report func(problem)) {
	at := now.Unix()
	if _, ok := s.next(at); ok {
		return
	}
	bare := *s
	bare.exclude = exclusions{}
	if _, ok := bare.next(at); ok {
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
	last, ok := s.latest(at-horizon, at)
	if !ok {
		if bare.last = forever; cfg.End != "" {
			if t, ok := bare.next(bare.first - 1); ok {
				never = problem{"end", "", "lies before the first occurrence, " + s.time(t).Format(time.RFC3339)}
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
	report(problem{field, "remove the event, or let it catch up on missed occurrences with catchup", "has no occurrence any more, the last was " + s.time(last).Format(time.RFC3339)})
}
