package fold

import "context"

// Sabotage makes the evaluation of a sensor panic the next time it fires.
// With again, it is as if it had panicked before, too, and what it had decided
// could not be decided again.
func (d *Dispatcher) Sabotage(ctx context.Context, sensor string, again bool) error {
	return d.do(ctx, func(s *session) error {
		l := s.laneOf(sensor)
		if l == nil {
			return ErrNoSensor
		}
		for i := range l.running {
			if l.running[i].Name == sensor {
				l.running[i].subjects = nil
			}
		}
		if again {
			d.condemned[sensor] = &panicError{sensor: sensor}
		}
		return nil
	})
}
