package wasm

import "github.com/tetratelabs/wazero/experimental"

// memories makes the linear memories of one call, at most limit bytes each.
type memories struct {
	limit uint64
	// refused is true when the module asked for more.
	refused bool
}

// Allocate implements experimental.MemoryAllocator.
func (m *memories) Allocate(_, most uint64) experimental.LinearMemory {
	return &memory{memories: m, space: reserve(min(most, m.limit))}
}

// memory is one linear memory. Its address space is reserved at once, so that
// growing moves nothing and what is not used costs nothing.
type memory struct {
	*memories
	space space
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size == 0 {
		return []byte{}
	}
	if size <= m.limit {
		if b := m.space.commit(size); b != nil {
			return b
		}
	}
	m.refused = true
	return nil
}

// Free implements experimental.LinearMemory.
func (m *memory) Free() { m.space.release() }
