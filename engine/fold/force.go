package fold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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

// ReadForce returns since when a sensor is in force; ok is false when that was
// never noted.
func ReadForce(ctx context.Context, s bus.Store, sensor string) (f Force, ok bool, err error) {
	e, err := s.Get(ctx, forceKey(sensor))
	if errors.Is(err, bus.ErrNotFound) {
		return f, false, nil
	}
	if err != nil {
		return f, false, fmt.Errorf("asking since when sensor %s is in force: %w", sensor, err)
	}
	if err := json.Unmarshal(e.Value, &f); err != nil {
		return f, false, nil //nolint:nilerr // as good as not noted
	}
	return f, true, nil
}

// loadForce reads what was noted of the sensors in force. What was noted of
// another log, or beyond the end of this one, does not hold any more.
func (s *session) loadForce(ctx context.Context) error {
	s.force = map[string]Force{}
	return s.d.o.Bus.State().Scan(ctx, forcePrefix, func(e bus.Entry) error {
		var f Force
		name, err := bus.Untoken(e.Key[len(forcePrefix):])
		if err == nil && json.Unmarshal(e.Value, &f) == nil && f.Log == s.log && f.Changed <= s.main.pos {
			s.force[name] = f
		}
		return nil
	})
}

// enforce notes since when the sensors are in force that were put in force now;
// old are those before. It is stored with the next checkpoint.
func (s *session) enforce(old map[string]*Sensor) {
	for i := range s.rules.Sensors {
		is := &s.rules.Sensors[i]
		was, f, known := old[is.Name], Force{}, false
		if was != nil && was.Program.StateFingerprint() == is.Program.StateFingerprint() {
			if f, known = s.force[is.Name]; !known || f.Hash == is.Hash {
				continue
			}
		}
		f.Log, f.Changed, f.Hash, f.Fingerprint = s.log, s.main.pos, is.Hash, is.Program.StateFingerprint()
		if !known {
			f.Since = s.main.pos
		}
		s.force[is.Name] = f
		if b, err := json.Marshal(f); err == nil { // it holds texts and numbers
			s.batch.put(forceKey(is.Name), b)
		}
	}
}
