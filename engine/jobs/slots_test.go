package jobs

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlotsServeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(1)
		if err := s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []int
		gone, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				ctx := t.Context()
				if i == 2 {
					ctx = gone
				}
				if err := s.take(ctx); err != nil {
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				s.give()
			})
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		s.give()
		wg.Wait()
		if want := []int{0, 1, 3, 4}; len(order) != 4 || order[0] != 0 || order[1] != 1 || order[2] != 3 || order[3] != 4 {
			t.Errorf("served %v, want %v", order, want)
		}
	})
}

func TestSlotsFollowTheirLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(2)
		served := 0
		for range 6 {
			go func() {
				if s.take(t.Context()) == nil {
					served++
				}
			}()
			synctest.Wait()
		}
		if served != 2 {
			t.Fatalf("%d served at a limit of 2", served)
		}
		s.SetLimit(3)
		synctest.Wait()
		if served != 3 {
			t.Fatalf("%d served at a limit of 3", served)
		}
		s.SetLimit(1)
		for _, want := range []int{3, 3, 4, 5, 6} {
			s.give()
			synctest.Wait()
			if served != want {
				t.Fatalf("%d served, want %d", served, want)
			}
		}
		s.give()
		if s.taken != 0 || len(s.waiting) != 0 {
			t.Errorf("%d taken and %d waiting at the end", s.taken, len(s.waiting))
		}
	})
}

// Never more than the limit, and none is lost when those who wait give up at
// the moment they are served.
func TestSlotsUnderPressure(t *testing.T) {
	s := NewSlots(3)
	var running, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%4)*50*time.Microsecond)
				if s.take(ctx) == nil {
					n := running.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					running.Add(-1)
					s.give()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || s.taken != 0 || s.head != len(s.waiting) {
		t.Errorf("at most %d at the same time, %d taken and %d waiting at the end", most.Load(), s.taken, len(s.waiting)-s.head)
	}
}

func BenchmarkSlots(b *testing.B) {
	s := NewSlots(1 << 20)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = s.take(b.Context())
			s.give()
		}
	})
}
