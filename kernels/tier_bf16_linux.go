//go:build arm64 && !purego

package kernels

import (
	"sync"

	"golang.org/x/sys/unix"
)

// hasBF16 asks Linux for the processor's FEAT_BF16, which package cpu does not tell: see its Documentation/arch/arm64/elf_hwcaps.rst.
var hasBF16 = sync.OnceValue(func() bool {
	const hwcap2, bf16 = 26, 1 << 14 // AT_HWCAP2, HWCAP2_BF16
	vector, err := unix.Auxv()
	if err != nil {
		return false
	}
	for _, v := range vector {
		if v[0] == hwcap2 {
			return v[1]&bf16 != 0
		}
	}
	return false
})
