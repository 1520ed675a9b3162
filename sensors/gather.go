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

// hold is what one trigger has gathered: what would have fired. Debounce keeps
// the last only.
type hold struct {
	trigger int
	// first is when it began; due is when it ends by time, 0 for never.
	first, due int64
	taken
}

// taken is what a firing uses: the events of one time the condition held, or of
// several, the ends of which are then given.
type taken struct {
	kept []kept
	ends []int
}

// times is how often the condition held.
func (t *taken) times() int {
	if t.ends == nil && len(t.kept) > 0 {
		return 1
	}
	return len(t.ends)
}

// at are the events of one of these times.
func (t *taken) at(i int) []kept {
	if t.ends == nil {
		return t.kept
	}
	from := 0
	if i > 0 {
		from = t.ends[i-1]
	}
	return t.kept[from:t.ends[i]]
}

// add adds the events of one more time. It copies them.
func (t *taken) add(used []kept) {
	t.kept = append(t.kept, used...)
	t.ends = append(t.ends, len(t.kept))
}

// last is the event with the highest sequence, nil for none.
func last(used []kept) (k *kept) {
	for i := range used {
		if k == nil || used[i].seq > k.seq {
			k = &used[i]
		}
	}
	return k
}

// gather keeps what a trigger used until it may fire.
func (s *step) gather(i int, t *trigger, used []kept) {
	h, g := s.st.hold(i), t.gathers
	if len(h.kept) == 0 {
		h.first, h.due = s.now, 0
		if g.wait > 0 {
			h.due = s.now + g.wait
		}
	}
	if g.size > 0 {
		h.add(used)
		if h.times() >= g.size {
			s.emit(i, t, s.st.release(i), 0)
			return
		}
	} else {
		if len(h.kept) > 0 {
			s.verdicts = append(s.verdicts, Verdict{
				Outcome: Debounced, Trigger: t.name, Seq: last(h.kept).seq, Detail: "the condition held again within " + time.Duration(g.quiet).String(),
			})
		}
		h.taken = taken{}
		h.add(used)
		h.due = s.now + g.quiet
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

// release fires what was gathered and whose time is over. What a trigger
// gathered that does not gather any more fires one by one.
func (s *step) release() {
	for _, h := range slices.Clone(s.st.holds()) {
		if h.due == 0 || h.due > s.now {
			continue
		}
		t := &s.p.triggers[h.trigger]
		used := s.st.release(h.trigger)
		if t.batched {
			s.emit(h.trigger, t, used, h.due)
			continue
		}
		for i := range used.times() {
			s.emit(h.trigger, t, taken{kept: used.at(i)}, h.due)
		}
	}
}
