package fold

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/sensor-engine/engine/bus"
)

// forcePrefix begins the keys in STATE of what is known of sensors in force.
const forcePrefix = "force."

func forceKey(sensor string) string { return forcePrefix + bus.Token(sensor) }

// Force tells since when a sensor is in force, so that what it decided can be
// found out again.
type Force struct {
	// Log is the identity of EVENTS.
	Log string `json:"log"`
	// Since is the last event before the sensor began with nothing: the first
	// that it saw with these dependencies and this correlation is the next one.
	Since uint64 `json:"since"`
	// Changed is the last event before its spec was as it is now, at least
	// Since, and Hash is that spec's.
	Changed uint64 `json:"changed"`
	Hash    string `json:"hash"`
	// Fingerprint is that of its state; see [sensors.Program.StateFingerprint].
	Fingerprint string `json:"fingerprint"`
}

// ReadForce returns since when sensors are in force, by name, of those of which
// that was noted. It blocks on the bus.
func ReadForce(ctx context.Context, s bus.Store) (map[string]Force, error) {
	out := map[string]Force{}
	err := s.Scan(ctx, forcePrefix, func(e bus.Entry) error {
		var f Force
		// What cannot be read is as good as not noted.
		if name, err := bus.Untoken(e.Key[len(forcePrefix):]); err == nil && json.Unmarshal(e.Value, &f) == nil {
			out[name] = f
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("asking since when sensors are in force: %w", err)
	}
	return out, nil
}

// loadForce reads what was noted of the sensors in force. What was noted of
// another log, or beyond the end of this one, does not hold any more.
func (s *session) loadForce(ctx context.Context) error {
	all, err := ReadForce(ctx, s.d.o.Bus.State())
	maps.DeleteFunc(all, func(name string, f Force) bool {
		l := s.laneOf(name)
		return f.Log != s.log || l == nil || l.from != "" || f.Changed > l.pos
	})
	s.force = all
	return err
}

// enforce notes since when the sensors are in force that were put in force now;
// old are those before. It is stored with the next checkpoint.
func (s *session) enforce(old map[string]*Sensor) {
	for i := range s.rules.Sensors {
		is := &s.rules.Sensors[i]
		was, f, known := old[is.Name], Force{}, false
		l := s.laneOf(is.Name)
		if l.from != "" {
			continue // it is noted when that is known
		}
		if was != nil && was.Program.StateFingerprint() == is.Program.StateFingerprint() {
			if f, known = s.force[is.Name]; !known || f.Hash == is.Hash {
				continue
			}
		}
		f.Log, f.Changed, f.Hash, f.Fingerprint = s.log, l.pos, is.Hash, is.Program.StateFingerprint()
		if !known {
			f.Since = l.pos
		}
		s.note(is.Name, f)
	}
}

// enforceFrom notes where the sensors of a lane begin.
func (s *session) enforceFrom(l *lane) {
	for i := range l.running {
		is := &l.running[i]
		s.note(is.Name, Force{Log: s.log, Since: l.pos, Changed: l.pos, Hash: is.Hash, Fingerprint: is.Program.StateFingerprint()})
	}
}

// unforce makes it unknown since when a sensor is in force: it did not see all
// events since then, so that what it decided cannot be found out again.
func (s *session) unforce(sensor string) {
	s.note(sensor, Force{})
	delete(s.force, sensor)
}

// note stores since when a sensor is in force, with the next checkpoint.
func (s *session) note(sensor string, f Force) {
	s.force[sensor] = f
	if b, err := json.Marshal(f); err == nil { // it holds texts and numbers
		s.batch.put(forceKey(sensor), b)
	}
}
