package sensors

import (
	"cmp"
	"slices"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// gathering says what a trigger waits for when its condition has held: for
// quiet (debounce), or for more of the same (batch, when size is not 0).
type gathering struct {
	quiet, longest int64
	size           int
	wait           int64
}

func newGathering(t *specs.Trigger) *gathering {
	switch {
	case t.Batch != nil:
		return &gathering{size: cmp.Or(t.Batch.Size, specs.DefaultBatchSize), wait: int64(t.Batch.Wait)}
	case t.Debounce != nil:
		return &gathering{quiet: int64(t.Debounce.Quiet), longest: int64(t.Debounce.Max)}
	}
	return nil
}

// hold is what one trigger has gathered: what would have fired, each the
// events used. Debounce keeps the last only.
type hold struct {
	trigger int
	// first is when it began; due is when it ends by time, 0 for never.
	first, due int64
	sets       [][]kept
}

// gather keeps what a trigger used until it may fire.
func (s *step) gather(i int, t *trigger, used []kept) {
	h, g := s.st.hold(i, s.p), t.gathers
	if len(h.sets) == 0 {
		h.first, h.due = s.now, 0
		if g.wait > 0 {
			h.due = s.now + g.wait
		}
	}
	if g.size > 0 {
		h.sets = append(h.sets, slices.Clone(used))
		if len(h.sets) >= g.size {
			s.emit(i, t, s.st.release(i), 0)
			return
		}
	} else {
		if len(h.sets) > 0 {
			s.verdicts = append(s.verdicts, Verdict{
				Outcome: Debounced, Trigger: t.name, Seq: latest(h.sets[0]), Detail: "the condition held again within " + time.Duration(g.quiet).String(),
			})
		}
		h.sets, h.due = [][]kept{slices.Clone(used)}, s.now+g.quiet
		if g.longest > 0 {
			h.due = min(h.due, h.first+g.longest)
		}
	}
	if s.in.Explain {
		v := Verdict{Outcome: Waiting, Trigger: t.name, Seq: s.seq(), Detail: "gathered"}
		if h.due != 0 {
			v.Detail += "; fires at " + time.Unix(0, h.due).UTC().Format(time.RFC3339Nano)
		}
		s.verdicts = append(s.verdicts, v)
	}
}

// latest is the highest sequence of the events used.
func latest(used []kept) (seq uint64) {
	for i := range used {
		seq = max(seq, used[i].seq)
	}
	return seq
}

// release fires what was gathered and whose time is over. What a trigger
// gathered that does not gather any more fires one by one.
func (s *step) release() {
	for _, h := range slices.Clone(s.st.holds()) {
		if h.due == 0 || h.due > s.now {
			continue
		}
		t := &s.p.triggers[h.trigger]
		sets := s.st.release(h.trigger)
		if t.batched {
			s.emit(h.trigger, t, sets, h.due)
			continue
		}
		for i := range sets {
			s.emit(h.trigger, t, sets[i:i+1], h.due)
		}
	}
}
