package jobs

import (
	"context"
	"slices"
	"sync"
)

// Slots bounds the calls of one function that run at the same time, whoever
// makes them: who asks first is served first. It outlives the versions of the
// function. A nil Slots bounds nothing. Make it with [NewSlots]; it is safe for
// concurrent use.
type Slots struct {
	mu      sync.Mutex
	limit   int
	taken   int
	waiting []chan struct{} // waiting[head:], closed when its turn has come
	head    int
}

// NewSlots returns slots for limit calls.
func NewSlots(limit int) *Slots { return &Slots{limit: limit} }

// SetLimit changes how many calls may run. More than that may go on running
// until they end.
func (s *Slots) SetLimit(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.serveLocked()
}

// state is how many slots there are, how many are taken, and how many calls
// wait for one.
func (s *Slots) state() (limit, taken, waiting int) {
	if s == nil {
		return 0, 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit, s.taken, len(s.waiting) - s.head
}

// take waits for a slot until ctx ends. Who took one gives it back.
func (s *Slots) take(ctx context.Context) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	if s.taken < s.limit && s.head == len(s.waiting) {
		s.taken++
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	s.waiting = append(s.waiting, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-turn: // at the same moment: it is for the next one
		s.taken--
		s.serveLocked()
	default:
		i := slices.Index(s.waiting, turn)
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	return ctx.Err()
}

// give gives a slot back.
func (s *Slots) give() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	s.serveLocked()
}

// serveLocked lets those in who wait, as far as there is room. mu is held.
func (s *Slots) serveLocked() {
	for s.taken < s.limit && s.head < len(s.waiting) {
		close(s.waiting[s.head])
		s.waiting[s.head] = nil
		s.head++
		s.taken++
	}
	switch {
	case s.head == len(s.waiting):
		s.waiting, s.head = s.waiting[:0], 0
	case s.head > 1024 && s.head > len(s.waiting)/2:
		s.waiting, s.head = slices.Delete(s.waiting, 0, s.head), 0
	}
}
