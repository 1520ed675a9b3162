package evaluate

import "container/heap"

// references find the oldest event that any state refers to. A key is in the
// queue once, for an event no younger than the oldest it refers to: that one
// only gets younger, and the place is corrected when it comes up. There is no
// queue until somebody asks, and none again when most of it is void.
type references struct {
	queue refHeap
	built bool
}

type reference struct {
	seq   uint64
	entry *Entry
}

// add puts a key into the queue, if there is one and it has to be there.
func (r *references) add(en *Entry, keys int) {
	if !r.built || en.referred || en.size == 0 {
		return
	}
	if cap(r.queue) > 4*keys+4096 {
		*r = references{}
		return
	}
	if seq := en.State.MinRef(); seq > 0 {
		en.referred = true
		heap.Push(&r.queue, reference{seq, en})
	}
}

// Oldest is the smallest sequence of the events that states refer to, 0 for
// none.
func (e *Evaluator) Oldest() uint64 {
	r := &e.oldest
	if !r.built {
		r.built = true
		r.queue = make(refHeap, 0, e.keys+e.keys/4)
		for _, sp := range e.spaces {
			for _, en := range sp.keys {
				seq := en.State.MinRef()
				if en.referred = seq > 0; en.referred {
					r.queue = append(r.queue, reference{seq, en})
				}
			}
		}
		heap.Init(&r.queue)
	}
	for len(r.queue) > 0 {
		top := &r.queue[0]
		switch seq := top.entry.State.MinRef(); seq {
		case top.seq:
			return seq
		case 0:
			top.entry.referred = false
			heap.Pop(&r.queue)
		default:
			top.seq = seq
			heap.Fix(&r.queue, 0)
		}
	}
	return 0
}

type refHeap []reference

func (h refHeap) Len() int           { return len(h) }
func (h refHeap) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h refHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push and Pop are for container/heap.
func (h *refHeap) Push(x any) { *h = append(*h, x.(reference)) }

// Pop is for container/heap.
func (h *refHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = reference{}
	*h = old[:len(old)-1]
	return x
}
