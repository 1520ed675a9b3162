package evaluate

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
)

// TestResidentIsBounded: what is held is what is counted, never more than may
// be, and what was put last, as long as it was not removed.
func TestResidentIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r resident
		most := rapid.IntRange(0, 40_000).Draw(t, "most")
		for seq := uint64(1); seq <= 200; seq++ {
			ev := &bus.Event{Seq: seq, Data: make([]byte, rapid.SampledFrom([]int{0, 10, 3000, largeEvent, largeEvent + 1}).Draw(t, "size"))}
			r.put(ev, most)
			if held := r.get(seq) == ev; held != (weight(ev) <= most && len(ev.Data) <= largeEvent) {
				t.Fatalf("event %d of %d bytes is held: %v", seq, len(ev.Data), held)
			}
			for range rapid.IntRange(0, 2).Draw(t, "removed") {
				r.remove(rapid.Uint64Range(1, seq).Draw(t, "which"))
			}
			sum := 0
			for _, ev := range r.events {
				sum += weight(ev)
			}
			if sum != r.bytes || sum > most || len(r.order) > 2*len(r.events)+1024+1 {
				t.Fatalf("%d events of %d bytes are counted as %d, %d in order", len(r.events), sum, r.bytes, len(r.order))
			}
		}
	})
}
