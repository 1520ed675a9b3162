package engine

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/sensor-engine/engine/sources"
)

// maxAwake bounds the timed sources that are awake at the same time. They
// mostly wait for the bus, which takes their events together.
const maxAwake = 128

// wakes calls timed sources when they are due: one heap and one goroutine for
// all that sleep.
type wakes struct {
	poke  chan struct{}
	slots chan struct{}

	mu   sync.Mutex
	heap wakeHeap
}

// sleeper is a timed source in the heap.
type sleeper struct {
	u     *unit
	ctx   context.Context
	src   sources.Timed
	at    time.Time
	place int // in the heap, -1 when it is not there
	awake bool
	ended bool
}

func newWakes() *wakes {
	return &wakes{poke: make(chan struct{}, 1), slots: make(chan struct{}, maxAwake)}
}

// add has a source called at once, and then when it says, until end.
func (w *wakes) add(ctx context.Context, u *unit, src sources.Timed) *sleeper {
	s := &sleeper{u: u, ctx: ctx, src: src, at: time.Now(), place: -1}
	w.put(s)
	return s
}

// put makes a source sleep until its time; one whose time is zero sleeps for ever.
func (w *wakes) put(s *sleeper) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.awake = false
	if s.ended {
		close(s.u.done)
		return
	}
	if s.at.IsZero() {
		return
	}
	heap.Push(&w.heap, s)
	if s.place == 0 {
		select {
		case w.poke <- struct{}{}:
		default:
		}
	}
}

// end takes a source out; its unit is done when it sleeps.
func (w *wakes) end(s *sleeper) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.place >= 0 {
		heap.Remove(&w.heap, s.place)
	}
	if !s.awake {
		close(s.u.done)
	}
}

// run wakes sources until ctx ends.
func (w *wakes) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, wait := w.next(time.Now())
		if s == nil {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-w.poke:
			case <-timer.C:
			}
			continue
		}
		select {
		case w.slots <- struct{}{}:
			go func() {
				s.wake()
				<-w.slots
				w.put(s)
			}()
		case <-ctx.Done():
			w.put(s)
			return
		}
	}
}

// next takes the next source that is due out of the heap, or tells how long to
// wait for it. The clock is looked at again after a second at the latest: it
// may be set.
func (w *wakes) next(now time.Time) (*sleeper, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.heap) == 0 {
		return nil, time.Hour
	}
	if s := w.heap[0]; !s.at.After(now) {
		heap.Pop(&w.heap)
		s.awake = true
		return s, 0
	}
	return nil, min(w.heap[0].at.Sub(now), sources.WakeAtLeast)
}

// wake calls the source once and sets when it is called next.
func (s *sleeper) wake() {
	begin := time.Now()
	next, err := s.call(begin)
	switch pause, permanent := time.Duration(0), false; {
	case s.ctx.Err() != nil:
		s.at = time.Time{}
	case err == nil:
		s.u.backoff, s.at = 0, next
	default:
		pause, permanent = s.u.failed(err, 0)
		if s.at = begin.Add(pause); permanent {
			s.at = time.Time{}
		}
	}
}

func (s *sleeper) call(now time.Time) (next time.Time, err error) {
	defer s.u.recovered(&err)
	// Only the wall clock counts: it is what schedules are written in.
	return s.src.Wake(s.ctx, s.u.host, now.Round(0))
}

// wakeHeap orders sleepers by time.
type wakeHeap []*sleeper

func (h wakeHeap) Len() int           { return len(h) }
func (h wakeHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h wakeHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements [heap.Interface].
func (h *wakeHeap) Push(x any) {
	s := x.(*sleeper)
	s.place = len(*h)
	*h = append(*h, s)
}

// Pop implements [heap.Interface].
func (h *wakeHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.place = -1
	return s
}
