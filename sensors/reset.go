package sensors

import (
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/schedule"
)

// reset compiles the schedule of the sensor's reset; nil when there is none, or
// after it reported why it is none.
func (c *compilation) reset() schedule.Rule {
	r := c.spec.Reset
	if r == nil {
		return nil
	}
	wrong := func(pos specs.Pos, field, hint, format string, args ...any) schedule.Rule {
		c.report(specs.Error, pos, specs.CodeInvalidValue, "spec.reset."+field, hint, format, args...)
		return nil
	}
	loc, err := new(schedule.Zones).Load(r.Timezone)
	if err != nil {
		wrong(r.TimezonePos, "timezone", schedule.ZoneHint(r.Timezone), "%v", err)
		loc = time.UTC // what is wrong with cron is wrong in every zone
	}
	if zone, _, ok := schedule.CutZone(r.Cron); ok {
		return wrong(r.CronPos, "cron", "write timezone: "+zone, "the time zone has its own key")
	}
	rule, err := schedule.ParseCron(r.Cron, loc)
	if err != nil {
		return wrong(r.CronPos, "cron", schedule.CronHint(r.Cron), "this is not a schedule: %v", err)
	}
	if _, ok := rule.Next(0); !ok {
		return wrong(r.CronPos, "cron", "no date has this day and month", "the schedule can never occur")
	}
	return rule
}
