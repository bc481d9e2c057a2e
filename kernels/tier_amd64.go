//go:build !purego

package kernels

import "golang.org/x/sys/cpu"

// BestTier is the highest tier that this machine has.
func BestTier() Tier {
	x := &cpu.X86
	switch {
	case !(x.HasAVX2 && x.HasFMA):
		return PureGo
	case !(x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ):
		return AVX2
	case !x.HasAVX512BF16:
		return AVX512
	case !(x.HasAMXTile && x.HasAMXBF16 && tilesAllowed()):
		return AVX512BF16
	}
	return AMX
}
