package fold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sensor-engine/engine/bus"
)

// Prefixes of cursors in STATE: those that came with events, which the fold
// keeps, because events are purged, and those that sources stored by hand.
const (
	cursorPrefix   = "cursor."
	positionPrefix = "position."
)

// Cursor is the position of a source as it is known to the bus.
type Cursor struct {
	// Log is the identity of EVENTS, Seq the event after which Value holds.
	Log   string `json:"log"`
	Seq   uint64 `json:"seq"`
	Value string `json:"value"`
}

func cursorKey(prefix, source, event string) string {
	return prefix + bus.Token(source) + "." + bus.Token(event)
}

func (c Cursor) encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and a number
	}
	return b
}

// ReadCursor returns the newest cursor of a source, zero when it has none:
// that of its last stored event, that which the fold kept, or that stored with
// [StoreCursor]. last is the sequence of the source's last event in the log,
// 0 when there is none.
func ReadCursor(ctx context.Context, b bus.Bus, log, source, event string) (c Cursor, last uint64, err error) {
	r, err := b.Events().Last(ctx, bus.EventSubject(source, event))
	switch {
	case err == nil:
		last = r.Seq
		if ev, err := bus.DecodeEvent(r); err == nil && ev.Cursor != "" {
			c = Cursor{log, r.Seq, ev.Cursor}
		}
	case !errors.Is(err, bus.ErrNotFound):
		return c, 0, fmt.Errorf("looking up the cursor of %s/%s: %w", source, event, err)
	}
	// At the same event, what was stored by hand came later.
	for _, prefix := range [...]string{cursorPrefix, positionPrefix} {
		key := cursorKey(prefix, source, event)
		e, err := b.State().Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return c, 0, fmt.Errorf("reading the cursor of %s/%s: %w", source, event, err)
		}
		var kept Cursor
		if err := json.Unmarshal(e.Value, &kept); err != nil {
			return c, 0, fmt.Errorf("the cursor %s in STATE is damaged: %w", key, err)
		}
		if kept.Log != log { // of another log: older than anything in this one
			kept.Seq = 0
		}
		if kept.Seq >= c.Seq {
			c = kept
		}
	}
	return c, last, nil
}

// StoreCursor stores a cursor without an event.
func StoreCursor(ctx context.Context, s bus.Store, source, event string, c Cursor) error {
	_, err := s.Put(ctx, cursorKey(positionPrefix, source, event), c.encode())
	return err
}
