//go:build arm64 && !purego

package kernels

import (
	"sync"

	"golang.org/x/sys/unix"
)

// hasBF16 asks macOS for the processor's FEAT_BF16, which package cpu does not tell.
var hasBF16 = sync.OnceValue(func() bool {
	v, err := unix.SysctlUint32("hw.optional.arm.FEAT_BF16")
	return err == nil && v != 0
})
