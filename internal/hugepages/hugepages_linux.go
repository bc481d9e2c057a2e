package hugepages

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageSize is that of huge pages on amd64, and of arm64 with its usual pages of 4 KiB.
const pageSize = 2 << 20

// advise asks for the huge pages that b lies in, those of its ends included, which others use too: what stays of the heap there becomes a part of them.
// That stays with the addresses when Go gives them to others, which costs memory at most: a small thing takes 2 MiB if nothing else is near. A system that has no such pages refuses, which changes nothing.
func advise(b []byte) {
	at := uintptr(unsafe.Pointer(&b[0]))
	from, to := at/pageSize*pageSize, (at+uintptr(len(b))+pageSize-1)/pageSize*pageSize
	// Not unix.Madvise, which takes a slice: one that begins in what others have is none of Go's.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_HUGEPAGE)
	runtime.KeepAlive(b)
}
