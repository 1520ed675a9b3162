package fold

import (
	"context"
	"slices"
	"sync"

	"github.com/sensor-engine/engine/bus"
)

// readAhead serves the events that a backlog of jobs refers to. Jobs are worked
// off in about the order of their events, and one read of many events costs the
// bus little more than that of a single one: it holds its log in blocks of
// several MiB, which it loads anew when memory is short.
//
// A window grows while what it fetches is used, and shrinks to a single event
// while it is not. When half of one is used, the next is fetched meanwhile, so
// that nobody waits for it. There are several, for triggers that are at
// different places.
type readAhead struct {
	log      bus.Log
	maxBytes int

	mu      sync.Mutex
	windows []*window // the latest used last
	bytes   int
}

const (
	maxWindows = 8
	// maxWindow is the most events of a window, windowBytes bounds their size
	// but for the last one's.
	maxWindow   = 256
	windowBytes = 512 << 10
	// windowGap is how far behind the end of a window an event is still next to it.
	windowGap = 64
)

// window is a run of events, from ≤ sequence < to.
type window struct {
	from, to uint64
	size     int           // events asked for
	ready    chan struct{} // closed when it was fetched
	records  []bus.Record  // by sequence; with ready
	bytes    int
	used     int
	followed bool // the next one was asked for
}

// event returns the event with this sequence. It may block on the bus.
func (r *readAhead) event(ctx context.Context, seq uint64) (*bus.Event, error) {
	w, next, fetch := r.window(seq)
	if fetch {
		r.fetch(ctx, w)
	}
	if next != nil {
		// It is for others; the bus ends it in time.
		go r.fetch(context.WithoutCancel(ctx), next)
	}
	select {
	case <-w.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	i, found := slices.BinarySearchFunc(w.records, seq, func(rec bus.Record, seq uint64) int {
		switch {
		case rec.Seq < seq:
			return -1
		case rec.Seq > seq:
			return 1
		}
		return 0
	})
	if found {
		return bus.DecodeEvent(w.records[i])
	}
	// Removed, beyond what was stored or fits, or the read failed.
	rec, err := r.log.Get(ctx, seq)
	if err != nil {
		return nil, err
	}
	return bus.DecodeEvent(rec)
}

// window returns the window of an event, whether the caller must fetch it, and
// the one to fetch after it, if it is time.
func (r *readAhead) window(seq uint64) (w, next *window, fetch bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	size := 1
	for i, w := range slices.Backward(r.windows) {
		if seq >= w.from && seq < w.to {
			w.used++
			r.windows = append(slices.Delete(r.windows, i, i+1), w)
			return w, r.follow(w), false
		}
		if seq >= w.to && seq < w.to+windowGap && size == 1 {
			if size = max(w.size/2, 1); 4*w.used >= w.size {
				size = min(2*w.size, maxWindow)
			}
		}
	}
	return r.open(seq, size, 1), nil, true
}

// open adds a window that is not fetched yet. mu is held.
func (r *readAhead) open(from uint64, size, used int) *window {
	w := &window{from: from, to: from + uint64(size), size: size, used: used, ready: make(chan struct{})}
	r.windows = append(r.windows, w)
	r.trim()
	return w
}

// follow opens the window after one of which half was used, unless there is
// one or it was done. mu is held.
func (r *readAhead) follow(w *window) *window {
	if w.followed || w.size == 1 || 2*w.used < w.size {
		return nil
	}
	select {
	case <-w.ready: // its end is known
	default:
		return nil
	}
	w.followed = true
	if w.to == w.from || len(w.records) == 0 ||
		slices.ContainsFunc(r.windows, func(o *window) bool { return w.to >= o.from && w.to < o.to }) {
		return nil
	}
	return r.open(w.to, min(2*w.size, maxWindow), 0)
}

// fetch fills a window.
func (r *readAhead) fetch(ctx context.Context, w *window) {
	defer close(w.ready)
	if w.size == 1 {
		return // a single get will do
	}
	records, err := r.log.GetBatch(ctx, w.from, w.size, windowBytes)
	for len(records) > 0 && records[len(records)-1].Seq >= w.to { // beyond a gap
		records = records[:len(records)-1]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w.records = records
	for _, rec := range records {
		w.bytes += 512 + len(rec.Data)
	}
	if n := len(records); err != nil {
		w.to = w.from // nobody else finds it
	} else if n > 0 && n < w.size && w.bytes >= windowBytes {
		w.to = records[n-1].Seq + 1
		w.size = n
	}
	if slices.Contains(r.windows, w) {
		r.bytes += w.bytes
		r.trim()
	}
}

// trim lets the windows go that were not used for longest. mu is held.
func (r *readAhead) trim() {
	for len(r.windows) > maxWindows || r.bytes > r.maxBytes && len(r.windows) > 1 {
		r.bytes -= r.windows[0].bytes
		r.windows = slices.Delete(r.windows, 0, 1)
	}
}

// forget drops what was read.
func (r *readAhead) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.windows, r.bytes = nil, 0
}
