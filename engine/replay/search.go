package replay

import (
	"context"
	"errors"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// Search says which events are looked for.
type Search struct {
	// Subject is the coarsest filter, which the log applies; "" for all.
	Subject string
	// Since is the time before which none is looked for, zero for none.
	Since time.Time
	// Match tells which of them are meant.
	Match func(*bus.Event) bool
	// Limit is how many are enough.
	Limit int
}

// Bounds keep one search from taking the bus for itself.
type Bounds struct {
	Looked, Bytes int // events looked at, payload kept
	Time          time.Duration
	Window        uint64 // most sequences looked through at once
}

// DefaultBounds are those of a search that somebody waits for.
func DefaultBounds() Bounds { return Bounds{50_000, 64 << 20, 5 * time.Second, 8192} }

// Newest returns the newest events that match, oldest first, without a gap. It
// looks back window by window. complete is false when the bounds of the search
// ended it before it had enough.
func Newest(ctx context.Context, log bus.Log, info bus.LogInfo, s Search, b Bounds) (found []*bus.Event, complete bool, err error) {
	end := time.Now().Add(b.Time)
	looked, size := 0, 0
	step := uint64(max(s.Limit, 64))
	for hi := info.Last + 1; hi > info.First && len(found) < s.Limit; step = min(4*step, b.Window) {
		lo := max(info.First, hi-min(hi, step))
		var part []*bus.Event
		older := false // the window reaches beyond Since
		for seq := lo; seq < hi; {
			if looked >= b.Looked || size > b.Bytes || time.Now().After(end) {
				return found, false, nil // the newer half of the window is not known: leave it out
			}
			rec, err := log.Next(ctx, s.Subject, seq)
			if errors.Is(err, bus.ErrNotFound) || err == nil && rec.Seq >= hi {
				break
			}
			if err != nil {
				return nil, false, err
			}
			seq = rec.Seq + 1
			looked++
			if rec.Time.Before(s.Since) {
				older = true
				continue
			}
			if ev, err := bus.DecodeEvent(rec); err == nil && s.Match(ev) {
				part = append(part, ev)
				size += len(ev.Data)
			}
		}
		found = append(part, found...)
		if older {
			break
		}
		hi = lo
	}
	return found[max(0, len(found)-s.Limit):], true, nil
}
