package kernels

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
)

// Tier is a set of instructions that kernels may use. Those of a machine are ordered, each includes the ones before it; but there
// are processors with AVX-512 that lack AVXVNNI.
type Tier int

const (
	PureGo     Tier = iota // Go alone
	NEON                   // arm64: float32 products
	DotProd                // arm64: SDOT, products of four bytes at a time
	I8MM                   // arm64: SMMLA too, products of 2×8 by 8×2 bytes
	BF16                   // arm64: BFMMLA too, products of 2×4 by 4×2 bfloat16 values
	AVX2                   // AVX2, FMA and F16C
	AVXVNNI                // VPDPBUSD of 256 bits, for processors without AVX-512: products of bytes
	AVX512                 // AVX-512 F, BW, VL and DQ
	AVX512BF16             // VDPBF16PS: products of bfloat16 pairs
	AMX                    // TDPBF16PS: products of tiles of bfloat16 pairs
)

var tierNames = [...]string{"purego", "neon", "dotprod", "i8mm", "bf16", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"}

func (t Tier) String() string { return tierNames[t] }

// Rounds says whether the tier multiplies bfloat16 faster than float32.
func (t Tier) Rounds() bool { return t >= AVX512BF16 || t == BF16 }

// ParseTier is String's inverse.
func ParseTier(name string) (Tier, error) {
	for t, n := range tierNames {
		if n == name {
			return Tier(t), nil
		}
	}
	return 0, fmt.Errorf("unknown tier %q; there are %s", name, strings.Join(tierNames[:], ", "))
}

var tier atomic.Int32

// TierEnv names the environment variable that caps the tier when the program starts. A value that is no tier's name has no effect here;
// package main refuses it.
const TierEnv = "LLMQ_CPU"

func init() {
	t := BestTier()
	if limit, err := ParseTier(os.Getenv(TierEnv)); err == nil {
		t = atMost(limit)
	}
	tier.Store(int32(t))
}

// BestTier is the highest tier that this machine has.
func BestTier() Tier { return atMost(AMX) }

// atMost is the highest tier of this machine that is not above limit.
func atMost(limit Tier) Tier {
	for t := min(limit, AMX); t > PureGo; t-- {
		if has(t) {
			return t
		}
	}
	return PureGo
}

// CurrentTier is the tier in use: at first the best that this machine has, capped by TierEnv.
func CurrentTier() Tier { return Tier(tier.Load()) }

// Tiers lists the tiers of this machine, lowest first.
func Tiers() []Tier {
	tiers := []Tier{PureGo}
	for t := NEON; t <= AMX; t++ {
		if has(t) {
			tiers = append(tiers, t)
		}
	}
	return tiers
}

// SetTier switches to t, or to the best tier of this machine below it, and returns the tier that was in use.
// It is for tests and benchmarks; kernels that are running when it is called may finish on either.
func SetTier(t Tier) (previous Tier) {
	return Tier(tier.Swap(int32(atMost(t))))
}

// Lanes is the number of float32 values that t's vector loops take at a time; 0 in pure Go, and on arm64, which has no
// more than products and package vector's two loops.
func (t Tier) Lanes() int {
	switch {
	case t >= AVX512:
		return 16
	case t >= AVX2:
		return 8
	}
	return 0
}
