// Package words keeps the buffers that operands are packed into, and looks at 32-bit words as what they hold.
package words

import (
	"slices"
	"sync"
	"unsafe"

	"github.com/llmq/llmq/internal/hugepages"
)

// free are buffers for packed operands, kept from one product to the next: memory that is new must first be cleared, a
// page at a time, and there would be megabytes of it for every linear.
var free buffers

// Get returns a buffer of n words of unspecified content. Put gives it back.
func Get(n int) []uint32 { return free.get(n) }

// Put gives a buffer back, whole: what Get returned.
func Put(w []uint32) { free.put(w) }

// Release forgets the buffers that nobody has.
func Release() { free.release() }

// Floats is w seen as float32 values.
func Floats(w []uint32) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(w))), len(w))
}

// Bytes is v seen as bytes, little-endian as the machines that have assembly are.
func Bytes[T uint32 | float32](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}

// Of is f seen as a word.
func Of(f *float32) *uint32 { return (*uint32)(unsafe.Pointer(f)) }

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
	return hugepages.Make[uint32](n)
}

func (b *buffers) put(w []uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, _ := slices.BinarySearchFunc(b.free, cap(w), func(w []uint32, n int) int { return cap(w) - n })
	b.free = slices.Insert(b.free, i, w)
}

func (b *buffers) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = nil
}
