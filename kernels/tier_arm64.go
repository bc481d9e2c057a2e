//go:build !purego

package kernels

import "golang.org/x/sys/cpu"

// has says whether this machine has a tier: every arm64 processor has NEON. What comes after it is told by the system: by Linux in
// HWCAP, by macOS in hw.optional.arm, by Windows in processor features.
func has(t Tier) bool {
	switch t {
	case NEON:
		return true
	case DotProd:
		return cpu.ARM64.HasASIMDDP
	case I8MM:
		return has(DotProd) && cpu.ARM64.HasI8MM
	case BF16:
		return has(I8MM) && hasBF16()
	}
	return false
}
