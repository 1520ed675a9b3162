package worker

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"github.com/sensor-engine/engine/triggers"
)

// stream reads what a worker writes to one of its streams, always, so that it
// never waits, and keeps the beginning. What a worker wrote before it answered
// is in the pipe when the answer is, so take finds it there without waiting.
type stream struct {
	f    *os.File
	done chan struct{} // the reader has ended

	mu     sync.Mutex
	fd     int // valid as long as closed is false
	closed bool
	kept   []byte
	cut    bool
	room   [4 << 10]byte
}

func newStream(f *os.File) *stream {
	return &stream{f: f, fd: -1, closed: true, done: make(chan struct{})}
}

// begin starts the reader.
func (s *stream) begin() {
	conn, err := s.f.SyscallConn()
	if err != nil { // cannot be: it is an open pipe
		close(s.done)
		return
	}
	_ = conn.Control(func(fd uintptr) { s.fd, s.closed = int(fd), false })
	go func() {
		defer close(s.done)
		_ = conn.Read(func(uintptr) bool {
			for {
				switch s.step() {
				case more:
				case empty:
					return false // called again when there is something
				case ended:
					return true
				}
			}
		})
	}()
}

// outcome is that of one look into a pipe.
type outcome int

const (
	more outcome = iota
	empty
	ended
)

// step reads once, without waiting.
func (s *stream) step() outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read()
}

// read is step. mu is held.
func (s *stream) read() outcome {
	if s.closed {
		return ended
	}
	room := s.room[:]
	if s.cut { // more at a time, of which nothing is kept
		room = make([]byte, flood)
	}
	n, err := syscall.Read(s.fd, room)
	switch {
	case errors.Is(err, syscall.EINTR):
		return more
	case errors.Is(err, syscall.EAGAIN):
		return empty
	case err != nil || n <= 0:
		return ended
	}
	keep := min(n, triggers.MaxLogs-len(s.kept))
	s.kept = append(s.kept, room[:keep]...)
	s.cut = s.cut || keep < n
	return more
}

const (
	flood = 64 << 10
	// maxPipe is more than a pipe holds.
	maxPipe = 2 << 20
)

// take returns what came since the last time and whether that is not all. With
// look, it reads what is there, which one who never stops writing cannot
// prolong.
func (s *stream) take(look bool) (kept []byte, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for looked := 0; look && looked < maxPipe && s.read() == more; looked += len(s.room) {
		if s.cut {
			looked += flood - len(s.room)
		}
	}
	kept, cut = s.kept, s.cut
	s.kept, s.cut = nil, false
	return kept, cut
}

// close ends the reader and closes the pipe.
func (s *stream) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	_ = s.f.Close()
	<-s.done
}
