package fold

import (
	"context"
	"sync/atomic"

	"github.com/sensor-engine/engine/bus"
)

// Cache keeps the newest events in memory, bounded in number and bytes, so
// that workers seldom read them from the bus again, and reads older ones ahead.
// One goroutine puts, any number read.
type Cache struct {
	ahead    readAhead
	id       string // identity of the log
	slots    []atomic.Pointer[bus.Event]
	oldest   uint64 // sequence after the last one given up for bytes
	next     uint64 // sequence after the last one put
	bytes    int
	maxBytes int
}

// NewCache returns a cache of up to size events and maxBytes of payload in
// front of log. What is read ahead takes up to a quarter of maxBytes more.
func NewCache(log bus.Log, size, maxBytes int) *Cache {
	return &Cache{ahead: readAhead{log: log, maxBytes: maxBytes / 4}, slots: make([]atomic.Pointer[bus.Event], size), maxBytes: maxBytes}
}

// adopt drops what is not of the log with this identity and last sequence: the
// log was exchanged or shortened, and its numbers are given to other events.
func (c *Cache) adopt(id string, last uint64) {
	if c.id == id && c.next <= last+1 {
		return
	}
	for i := range c.slots {
		c.slots[i].Store(nil)
	}
	c.ahead.forget()
	c.id, c.oldest, c.next, c.bytes = id, 0, 0, 0
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

// peek returns the event with this sequence when it is in memory, or nil.
func (c *Cache) peek(seq uint64) *bus.Event {
	if ev := c.slots[seq%uint64(len(c.slots))].Load(); ev != nil && ev.Seq == seq {
		return ev
	}
	return nil
}

// Event returns the event with this sequence, from memory or the bus. It may
// block on the bus.
func (c *Cache) Event(ctx context.Context, seq uint64) (*bus.Event, error) {
	if ev := c.peek(seq); ev != nil {
		return ev, nil
	}
	return c.ahead.event(ctx, seq)
}
