package fold

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
)

// Keys in STATE.
const (
	checkpointKey = "fold.checkpoint"
	sensorPrefix  = "sensor."
)

// checkpoint is where the fold stands. Its revision in STATE is the fence: a
// second fold of the same log fails to write it.
type checkpoint struct {
	// Log is the identity of EVENTS.
	Log string `json:"log"`
	// Event is the last event folded whose firings are in JOBS.
	Event uint64 `json:"event"`
	// Job is a JOBS sequence below that of every firing of later events.
	Job uint64 `json:"job"`
	// JobLog is the identity of JOBS.
	JobLog string `json:"jobLog"`
	// Time is the log time.
	Time time.Time `json:"time"`
	// Spec is the hash of the rules in force.
	Spec string `json:"spec"`
}

// ReadCheckpoint returns the hash of the rules in force at the last
// checkpoint and the position, or zero values when there is none.
func ReadCheckpoint(ctx context.Context, s bus.Store) (spec string, position uint64, err error) {
	cp, _, err := readCheckpoint(ctx, s)
	return cp.Spec, cp.Event, err
}

func readCheckpoint(ctx context.Context, s bus.Store) (checkpoint, uint64, error) {
	var cp checkpoint
	e, err := s.Get(ctx, checkpointKey)
	if errors.Is(err, bus.ErrNotFound) {
		return cp, 0, nil
	}
	if err != nil {
		return cp, 0, fmt.Errorf("reading the checkpoint: %w", err)
	}
	if err := json.Unmarshal(e.Value, &cp); err != nil {
		return cp, 0, fmt.Errorf("the checkpoint in STATE is damaged: %w", err)
	}
	return cp, e.Revision, nil
}

// stateKey is the key in STATE of a sensor's correlation key.
func stateKey(k evaluate.Key) string {
	h := sha256.Sum256([]byte(k.Key))
	return sensorPrefix + bus.Token(k.Sensor) + "." + hex.EncodeToString(h[:12])
}

// storedKey is the stored form of one correlation key's state.
type storedKey struct {
	log, sensor, key, fingerprint string
	seen                          uint64
	state                         []byte
}

const storedVersion = 1

func (s *storedKey) encode() []byte {
	b := make([]byte, 0, 64+len(s.key)+len(s.state))
	b = append(b, storedVersion)
	for _, v := range [...]string{s.log, s.sensor, s.key, s.fingerprint} {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	b = binary.AppendUvarint(b, s.seen)
	return append(b, s.state...)
}

func decodeStored(b []byte) (*storedKey, error) {
	bad := errors.New("stored sensor state is damaged")
	if len(b) == 0 || b[0] != storedVersion {
		return nil, bad
	}
	b = b[1:]
	s := &storedKey{}
	for _, p := range [...]*string{&s.log, &s.sensor, &s.key, &s.fingerprint} {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, bad
		}
		*p = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	n, w := binary.Uvarint(b)
	if w <= 0 {
		return nil, bad
	}
	s.seen = n
	s.state = b[w:]
	return s, nil
}
