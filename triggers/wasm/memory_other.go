//go:build !unix

package wasm

// space is memory of the Go heap where address space cannot be reserved.
type space struct {
	b    []byte
	size uint64
}

func reserve(size uint64) space { return space{size: size} }

// commit gives size bytes that begin with what was there before.
func (s *space) commit(size uint64) []byte {
	if size > s.size {
		return nil
	}
	if size > uint64(len(s.b)) {
		s.b = append(s.b, make([]byte, size-uint64(len(s.b)))...)
	}
	return s.b[:size:size]
}

func (s *space) release() { s.b = nil }
