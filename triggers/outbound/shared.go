package outbound

import (
	"io"
	"sync"
)

// Shared keeps what functions with the same settings share, such as their
// connections. The zero value is ready; it is safe for concurrent use.
type Shared[T any] struct {
	mu    sync.Mutex
	known map[string]*share[T]
}

type share[T any] struct {
	value T
	users int
}

// Open returns what belongs to the settings that key stands for, from open when
// nobody has it yet. The caller closes use once it needs it no more, which never
// fails; the last one closes it with end.
func (s *Shared[T]) Open(key string, open func() T, end func(T)) (value T, use io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.known[key]
	if one == nil {
		if s.known == nil {
			s.known = map[string]*share[T]{}
		}
		one = &share[T]{value: open()}
		s.known[key] = one
	}
	one.users++
	return one.value, release(sync.OnceFunc(func() {
		s.mu.Lock()
		one.users--
		last := one.users == 0
		if last {
			delete(s.known, key)
		}
		s.mu.Unlock()
		if last {
			end(one.value)
		}
	}))
}

// release gives something up.
type release func()

// Close implements [io.Closer].
func (r release) Close() error {
	r()
	return nil
}

// Len is how many there are.
func (s *Shared[T]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}
