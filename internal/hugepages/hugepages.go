// Package hugepages makes large slices of pages that a processor finds quickly. Matrices are read down their columns, a page for each
// row: with pages of 4 KiB, few of them are in the processor's tables, and each new one is looked up in memory.
package hugepages

import "unsafe"

// least is the size in bytes from which slices lie in huge pages: below, the system call is time.
const least = 1 << 20

// Make returns n zeros. Where the operating system offers it (Linux, if not switched off), the pages are of 2 MiB.
func Make[T uint32 | float32](n int) []T {
	s := make([]T, n)
	if size := uintptr(n) * unsafe.Sizeof(s[0]); size >= least {
		advise(unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), size))
	}
	return s
}
