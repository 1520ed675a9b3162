package fold

import (
	"context"
	"sync/atomic"

	"github.com/sensor-engine/engine/bus"
)

// Cache keeps the newest events in memory, bounded in number and bytes, so
// that workers seldom read them from the bus again. One goroutine puts, any
// number read.
type Cache struct {
	log      bus.Log
	slots    []atomic.Pointer[bus.Event]
	oldest   uint64 // sequence after the last one given up for bytes
	next     uint64 // sequence after the last one put
	bytes    int
	maxBytes int
}

// NewCache returns a cache of up to size events and maxBytes of payload in
// front of log.
func NewCache(log bus.Log, size, maxBytes int) *Cache {
	return &Cache{log: log, slots: make([]atomic.Pointer[bus.Event], size), maxBytes: maxBytes}
}

func cost(ev *bus.Event) int { return 512 + len(ev.Data) + len(ev.Request) }

// put adds an event; sequences only grow.
func (c *Cache) put(ev *bus.Event) {
	if ev.Seq < c.next { // folded again after a recovery
		return
	}
	slot := &c.slots[ev.Seq%uint64(len(c.slots))]
	if old := slot.Swap(ev); old != nil {
		c.bytes -= cost(old)
	}
	c.bytes += cost(ev)
	c.next = ev.Seq + 1
	if c.oldest == 0 || c.oldest+uint64(len(c.slots)) < c.next {
		c.oldest = max(c.oldest, c.next-min(c.next, uint64(len(c.slots))))
	}
	for c.bytes > c.maxBytes && c.oldest < ev.Seq {
		slot := &c.slots[c.oldest%uint64(len(c.slots))]
		if old := slot.Load(); old != nil && old.Seq <= c.oldest {
			slot.Store(nil)
			c.bytes -= cost(old)
		}
		c.oldest++
	}
}

// Event returns the event with this sequence, from memory or the bus. It may
// block on the bus.
func (c *Cache) Event(ctx context.Context, seq uint64) (*bus.Event, error) {
	if ev := c.slots[seq%uint64(len(c.slots))].Load(); ev != nil && ev.Seq == seq {
		return ev, nil
	}
	r, err := c.log.Get(ctx, seq)
	if err != nil {
		return nil, err
	}
	return bus.DecodeEvent(r)
}
