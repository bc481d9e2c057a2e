package kernels

import (
	"slices"
	"sync"
)

// words are buffers for packed operands, kept from one product to the next: memory that is new must first be cleared,
// a page at a time, and there would be megabytes of it for every linear.
var words buffers

// buffers is a list of free buffers. There are never more than were once in use together, and the largest of them are
// as large as what was once asked for.
type buffers struct {
	mu   sync.Mutex
	free [][]uint32 // ascending in capacity
}

// get returns a buffer of n words of unspecified content: the smallest that is large enough.
func (b *buffers) get(n int) []uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, _ := slices.BinarySearchFunc(b.free, n, func(w []uint32, n int) int { return cap(w) - n })
	if i < len(b.free) {
		w := b.free[i]
		b.free = slices.Delete(b.free, i, i+1)
		return w[:n]
	}
	if i > 0 { // outgrown
		b.free = slices.Delete(b.free, i-1, i)
	}
	return make([]uint32, n)
}

// put gives a buffer back.
func (b *buffers) put(w []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, _ := slices.BinarySearchFunc(b.free, cap(w), func(w []uint32, n int) int { return cap(w) - n })
	b.free = slices.Insert(b.free, i, w)
}
