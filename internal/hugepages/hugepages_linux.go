package hugepages

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageSize is that of huge pages on amd64, and of arm64 with its usual pages of 4 KiB.
const pageSize = 2 << 20

// advise asks for the huge pages that b lies in, those of its ends included, which others use too: what stays of the heap there becomes a part of them.
// That stays with the addresses when Go gives them to others, and does no harm there. A system that has no such pages refuses, which changes nothing.
func advise(b []byte) {
	before := uintptr(unsafe.Pointer(&b[0])) % pageSize
	size := (before + uintptr(len(b)) + pageSize - 1) / pageSize * pageSize
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(&b[0]), -int(before))), size), unix.MADV_HUGEPAGE)
}
