//go:build amd64 && !purego

package kernels

import (
	"sync"

	"golang.org/x/sys/unix"
)

// tilesAllowed asks the kernel, once, to let this process use AMX's tiles, which it saves for threads that have used them: see
// Linux's Documentation/arch/x86/xstate.rst. Threads that are there and those to come may use them then.
var tilesAllowed = sync.OnceValue(func() bool {
	const requestPermission, tileData = 0x1023, 18 // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, requestPermission, tileData, 0)
	return errno == 0
})
