//go:build !purego

package kernels

import "golang.org/x/sys/cpu"

// has says whether this machine has a tier.
func has(t Tier) bool {
	x := &cpu.X86
	switch t {
	case AVX2:
		return x.HasAVX2 && x.HasFMA
	case AVXVNNI:
		return has(AVX2) && x.HasAVXVNNI
	case AVX512:
		return has(AVX2) && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ
	case AVX512BF16:
		return has(AVX512) && x.HasAVX512BF16
	case AMX:
		return has(AVX512BF16) && x.HasAMXTile && x.HasAMXBF16 && tilesAllowed()
	}
	return false
}
