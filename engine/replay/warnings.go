package replay

import (
	"fmt"

	"github.com/sensor-engine/engine/bus"
)

// Warnings says why what a sensor is evaluated to have met at event seq, from
// event from on, may differ from what it did meet. chosen is true when from is
// not where it began.
func Warnings(s *Sensor, from, seq uint64, chosen bool, info bus.LogInfo) (out []string) {
	switch {
	case chosen && from > s.Since+1:
		out = append(out, fmt.Sprintf("computed from event %d on, as asked for: events before it may have been waiting", from))
	case info.First > s.Since+1 && s.Since == 0:
		out = append(out, fmt.Sprintf("events before %d are no longer stored: some of them may have been waiting", info.First))
	case info.First > s.Since+1:
		out = append(out, fmt.Sprintf("the sensor began after event %d, and events before %d are no longer stored: some of them may have been waiting", s.Since, info.First))
	}
	switch {
	case !s.Known:
		out = append(out, "it is not known since when this sensor is in force, or it has skipped events; computed as if it had seen all that are stored")
	case s.Changed > s.Since && seq <= s.Changed:
		out = append(out, fmt.Sprintf("the event was evaluated with an earlier version of the spec, which changed after event %d; computed with today's", s.Changed))
	case s.Changed > s.Since && from <= s.Changed:
		out = append(out, fmt.Sprintf("the spec changed after event %d; what an earlier version did with the events before is computed with today's", s.Changed))
	}
	return out
}
