//go:build unix

package wasm

import "golang.org/x/sys/unix"

// space is a reserved range of addresses.
type space struct {
	b    []byte
	used uint64
}

// reserve reserves size bytes; when that fails, nothing can be committed.
func reserve(size uint64) space {
	if size == 0 {
		return space{}
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return space{}
	}
	return space{b: b}
}

// commit makes the first size bytes usable; nil when there is no memory.
func (s *space) commit(size uint64) []byte {
	if size > uint64(len(s.b)) {
		return nil
	}
	if size > s.used { // pages of WebAssembly are multiples of those of the system
		if err := unix.Mprotect(s.b[s.used:size], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return nil
		}
		s.used = size
	}
	return s.b[:size:size]
}

// release gives all of it back.
func (s *space) release() {
	if s.b != nil {
		_ = unix.Munmap(s.b)
		s.b = nil
	}
}
