package fold

import (
	"github.com/sensor-engine/engine/engine/evaluate"
)

const (
	// leastTombstones is the default of [Options.Tombstones].
	leastTombstones = 1024
	// firstEpoch is that of everything stored before there were epochs.
	firstEpoch = 1
	// sweepBatch is how many keys are written again with one batch.
	sweepBatch = 512
)

// tombstones are the emptied keys of STATE. An empty state stays stored as
// long as an older one of its key could come back: JetStream forgets that a
// value was replaced when the newer one is deleted, and a store that is
// rebuilt from its blocks after a crash may hold the older one again.
//
// So states are stored with an epoch, and a checkpoint has the lowest that
// counts. When many keys are empty, a new epoch begins: the others are written
// again, some with each batch; then the old epoch no longer counts, and with
// it whatever could come back, and its tombstones are removed. That costs at
// most one write more for each key that is emptied.
//
// All fields belong to the fold's goroutine.
type tombstones struct {
	epoch uint64
	floor uint64 // the lowest epoch that counts
	names map[string]uint64
	least int

	sweeping bool
	rest     []evaluate.Key // still to be written in this epoch
}

// note takes notice of a state that is written under name.
func (t *tombstones) note(name string, empty bool) {
	if empty {
		t.names[name] = t.epoch
	} else {
		delete(t.names, name)
	}
}

// found takes notice of an epoch that is stored.
func (t *tombstones) found(epoch uint64) { t.epoch = max(t.epoch, epoch) }

// sweep writes some keys of an old epoch again with the batch, and ends the
// epoch when there are no more.
func (s *session) sweep(b *batch) {
	t := &s.stones
	if !t.sweeping {
		keys := 0
		for l := range s.all {
			keys += l.eval.Len()
		}
		if len(t.names) < max(t.least, keys) {
			return
		}
		t.sweeping = true
		t.epoch++
		for l := range s.all {
			for k, en := range l.eval.Keys() {
				if en.Stored {
					t.rest = append(t.rest, k)
				}
			}
		}
	}
	n := min(len(t.rest), sweepBatch)
	for _, k := range t.rest[:n] {
		l := s.laneOf(k.Sensor)
		if l == nil {
			continue
		}
		if en := l.eval.Entry(k); en != nil && en.Stored && en.Epoch < t.epoch {
			l.saveKey(b, k)
		}
	}
	if t.rest = t.rest[n:]; len(t.rest) > 0 {
		return
	}
	t.sweeping, t.rest, t.floor = false, nil, t.epoch
	for name, epoch := range t.names {
		if epoch < t.floor {
			b.tombs = append(b.tombs, name)
			delete(t.names, name)
		}
	}
}
