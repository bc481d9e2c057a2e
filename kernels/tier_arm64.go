//go:build !purego

package kernels

import "golang.org/x/sys/cpu"

// BestTier is the highest tier that this machine has: every arm64 processor has NEON. What comes after it is told by the
// system: by Linux in HWCAP, by macOS in hw.optional.arm, by Windows in processor features.
func BestTier() Tier {
	switch a := &cpu.ARM64; {
	case !a.HasASIMDDP:
		return NEON
	case !a.HasI8MM:
		return DotProd
	}
	return I8MM
}
