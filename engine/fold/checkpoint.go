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
	// Epoch is the lowest epoch of sensor state that counts.
	Epoch uint64 `json:"epoch,omitempty"`
	// Behind are the sensors that do not stand at Event. They are here and not
	// beside it, so that where a sensor stands, and that it joined the others,
	// is one write with where the others stand, and fenced with it.
	Behind []standing `json:"behind,omitempty"`
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
	seen, epoch                   uint64
	empty                         bool // a tombstone
	state                         []byte
}

// Versions of the stored form. The first has neither epoch nor flags.
const (
	firstStored   = 1
	storedVersion = 2
	flagEmpty     = 1
)

func (s *storedKey) encode() []byte {
	b := make([]byte, 0, 64+len(s.key)+len(s.state))
	flags := byte(0)
	if s.empty {
		flags = flagEmpty
	}
	b = append(b, storedVersion, flags)
	for _, v := range [...]string{s.log, s.sensor, s.key, s.fingerprint} {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	b = binary.AppendUvarint(b, s.seen)
	b = binary.AppendUvarint(b, s.epoch)
	return append(b, s.state...)
}

func decodeStored(b []byte) (*storedKey, error) {
	bad := errors.New("stored sensor state is damaged")
	s := &storedKey{}
	switch {
	case len(b) >= 2 && b[0] == storedVersion:
		s.empty, b = b[1]&flagEmpty != 0, b[2:]
	case len(b) >= 1 && b[0] == firstStored:
		s.epoch, b = firstEpoch, b[1:]
	default:
		return nil, bad
	}
	versioned := s.epoch == 0
	for _, p := range [...]*string{&s.log, &s.sensor, &s.key, &s.fingerprint} {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, bad
		}
		*p = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	numbers := []*uint64{&s.seen, &s.epoch}
	if !versioned {
		numbers = numbers[:1]
	}
	for _, p := range numbers {
		n, w := binary.Uvarint(b)
		if w <= 0 {
			return nil, bad
		}
		*p, b = n, b[w:]
	}
	s.state = b
	return s, nil
}
