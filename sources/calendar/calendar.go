// Package calendar is the event source of points in time: cron schedules,
// recurrence rules of RFC 5545 and intervals, in any time zone. It owns what a
// config says, what an occurrence is, and what becomes of those that were
// missed. When occurrences are, also at clock changes, is package schedule's.
// It starts no goroutine and has no timer: the engine wakes a calendar when its
// next occurrence is due.
package calendar

import (
	"cmp"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/schedule"
)

// DefaultType is the CloudEvents type of occurrences.
const DefaultType = "calendar"

// Config says when there are events, and what becomes of those that were missed.
type Config struct {
	Schedule string         `yaml:"schedule" doc:"Cron schedule: minute, hour, day of month, month, day of week; a sixth field in front is the second. Also @hourly, @daily, @weekly, @monthly, @yearly, @every 90s, and CRON_TZ=zone in front." example:"30 2 * * MON-FRI"`
	RRule    string         `yaml:"rrule" doc:"Recurrence rule of RFC 5545; also with lines DTSTART, RDATE and EXDATE as calendars write them." example:"FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=18"`
	Interval specs.Duration `yaml:"interval" min:"1s" doc:"Equal distances, counted from start, or from 1970-01-01T00:00:00Z." example:"15m"`
	RDate    []string       `yaml:"rdate" doc:"Single occurrences, also beside a schedule, rule or interval." example:"[2026-12-24T18:00]"`
	ExDate   []string       `yaml:"exdate" doc:"Dates and instants without occurrences; the same as exclude, under its name in RFC 5545."`
	Exclude  []string       `yaml:"exclude" doc:"Dates (2026-12-25) and instants (2026-12-31T02:30, 2026-12-31T02:30:00+01:00, 20261231T013000Z) without occurrences." example:"[2026-12-25, 2026-12-26]"`
	Timezone string         `yaml:"timezone" doc:"IANA name of the time zone of everything above that names none; default UTC." example:"Europe/Amsterdam"`
	Start    string         `yaml:"start" doc:"No occurrence before this date or instant; from it INTERVAL and COUNT of a rule and interval count." example:"2026-01-01T09:00"`
	End      string         `yaml:"end" doc:"No occurrence after this date (the day itself included) or instant." example:"2026-12-31"`
	Catchup  Catchup        `yaml:"catchup" short:"mode" doc:"What becomes of occurrences that nobody was there for; the mode alone may stand for it." example:"last"`
	Jitter   specs.Duration `yaml:"jitter" min:"0s" doc:"Longest delay of each occurrence. It follows from the occurrence's id, so it is the same everywhere; the event keeps the scheduled time." example:"30s"`

	zones *schedule.Zones
}

// Catchup says what becomes of occurrences that are more than a minute late:
// the engine was down, the machine slept, or the clock was put forward.
type Catchup struct {
	Mode   string         `yaml:"mode" enum:"none,last,all" doc:"none (default): they are left out; last: the last of them happens, unless a later one is on time; all: each happens, oldest first."`
	MaxAge specs.Duration `yaml:"maxAge" min:"1s" doc:"Occurrences older than that are left out all the same; default: however old." example:"1d"`
}

// The modes of [Catchup].
const (
	catchupNone = "none"
	catchupLast = "last"
	catchupAll  = "all"
)

// mode is the mode with its default.
func (c Catchup) mode() string { return cmp.Or(c.Mode, catchupNone) }

// Factory makes calendars.
func Factory() sources.Factory {
	shared := &schedule.Zones{}
	return sources.Factory{
		Type: specs.Type{
			Name: "calendar", Doc: "Events at points in time: cron schedules, recurrence rules (RFC 5545) and intervals, in any time zone, with catch-up of missed ones.",
			New: func() any { return &Config{zones: shared} },
		},
		DefaultType: DefaultType,
		Payload:     []string{"time", "eventTime", "missed", "late"},
		Single:      true,
		Make: func(config any, env sources.Env) (sources.Source, error) {
			return newCalendar(config.(*Config), env)
		},
		Describe: func(config any, _ sources.Env, now time.Time) []sources.Detail {
			return config.(*Config).describe(now)
		},
	}
}

// Validate checks what the types cannot say.
func (cfg *Config) Validate(ck *specs.Checker) {
	failed := false
	report := func(p problem) {
		failed = true
		ck.Errorf(p.field, specs.CodeInvalidValue, p.hint, "%s", p.text)
	}
	s := cfg.compile(report)
	if cfg.Catchup.MaxAge > 0 && cfg.Catchup.mode() == catchupNone {
		report(problem{"catchup.maxAge", "add mode: last or mode: all", "has no meaning without catch-up"})
	}
	if !failed {
		cfg.occurs(s, time.Now(), report)
	}
}

// describe shows the next ten occurrences.
func (cfg *Config) describe(now time.Time) []sources.Detail {
	const most = 10
	s := cfg.compile(func(problem) {})
	if s == nil {
		return nil
	}
	zone := sources.Detail{Name: "Time zone", Values: []string{s.Zone.String()}}
	next := sources.Detail{Name: "Next occurrences"}
	for t, ok := s.Next(now.Unix()); ok && len(next.Values) < most; t, ok = s.Next(t) {
		next.Values = append(next.Values, s.Time(t).Format("Mon 2006-01-02T15:04:05Z07:00"))
	}
	if len(next.Values) == 0 {
		next.Values = append(next.Values, "none is left")
	}
	return []sources.Detail{zone, next}
}
