package evaluate

import (
	"cmp"
	"container/heap"
)

// deadlines are the times at which keys must be stepped, the earliest first.
// A key is in the queue once, for no later than its deadline: a deadline that
// moves away, as a window does that slides with each event, costs nothing until
// its old place comes up. Who waits for nothing any more is found out there too,
// or when most are such.
type deadlines struct {
	queue   deadlineHeap
	waiting int // keys that have a deadline
}

// deadline is a place in the queue.
type deadline struct {
	at    int64 // in nanoseconds since 1970
	space *space
	key   string
	entry *Entry
}

// at sets the deadline of a key.
func (d *deadlines) at(at int64, sp *space, key string, en *Entry) {
	if !en.waits {
		en.waits = true
		d.waiting++
	}
	en.wake = at
	if en.queued && en.alarm <= at {
		return
	}
	// When it is there for later already, that place is void: no key is asked for
	// the time it is not queued for.
	en.queued, en.alarm = true, at
	heap.Push(&d.queue, deadline{at, sp, key, en})
}

// none takes the deadline of a key away.
func (d *deadlines) none(en *Entry) {
	if en.waits {
		en.waits = false
		d.waiting--
	}
}

// first is the earliest deadline, nil when there is none. It is valid until a
// deadline changes.
func (d *deadlines) first() *deadline {
	for len(d.queue) > 0 {
		top := &d.queue[0]
		en := top.entry
		switch {
		case !en.queued || en.alarm != top.at: // void
			heap.Pop(&d.queue)
		case !en.waits:
			en.queued = false
			heap.Pop(&d.queue)
		case en.wake != top.at:
			top.at, en.alarm = en.wake, en.wake
			heap.Fix(&d.queue, 0)
		default:
			return top
		}
	}
	return nil
}

// crowded reports whether the queue takes much more room than it needs.
func (d *deadlines) crowded() bool { return cap(d.queue) > 4*d.waiting+4096 }

// rebuild makes the queue anew.
func (d *deadlines) rebuild(spaces map[string]*space) {
	d.queue = make(deadlineHeap, 0, d.waiting+d.waiting/4)
	for _, sp := range spaces {
		for key, en := range sp.keys {
			if en.queued = en.waits; en.waits {
				en.alarm = en.wake
				d.queue = append(d.queue, deadline{en.wake, sp, key, en})
			}
		}
	}
	heap.Init(&d.queue)
}

type deadlineHeap []deadline

func (h deadlineHeap) Len() int { return len(h) }
func (h deadlineHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return cmp.Or(cmp.Compare(h[i].space.sensor, h[j].space.sensor), cmp.Compare(h[i].key, h[j].key)) < 0
}
func (h deadlineHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *deadlineHeap) Push(x any) { *h = append(*h, x.(deadline)) }

// Pop is for container/heap.
func (h *deadlineHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*h = old[:len(old)-1]
	return x
}
