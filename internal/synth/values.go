package main

import (
	"math"
	"strings"

	"github.com/llmq/llmq/formats/safetensors"
)

// values are those of a tensor: a constant, or random with a standard deviation.
type values struct{ constant, spread float32 }

const (
	// spread is that of initialised transformers.
	spread = 0.02
	// codeSpread is that of the codes of weights in eight bits, which then reach some five times as far of their 448.
	codeSpread = 64
)

// valuesOf says what a tensor holds. Norms are 1, and so are logarithms of decay; with the steps' bias a scan's state fades
// by an eighth from token to token.
func valuesOf(info safetensors.Info) values {
	has := func(suffix string) bool { return strings.HasSuffix(info.Name, suffix) }
	switch {
	case has(fp8Scale):
		return values{constant: spread / codeSpread}
	case info.DType == safetensors.F8E4M3:
		return values{spread: codeSpread}
	case has("dt_bias"):
		return values{constant: -3}
	case has("conv1d.bias"), has("e_score_correction_bias"):
		return values{}
	case has("conv1d.weight"):
		return values{spread: 0.5}
	case len(info.Shape) == 1:
		return values{constant: 1}
	}
	return values{spread: spread}
}

// toE4M3 rounds to the nearest value of OCP's E4M3, ties away from 0, and beyond the largest, 448, to that.
func toE4M3(x float32) byte {
	var sign byte
	if math.Signbit(float64(x)) {
		sign = 0x80
	}
	a := min(math.Abs(float64(x)), 448)
	exponent := max(math.Ilogb(a), -6)
	if a == 0 {
		return sign
	}
	mantissa := int(math.Round(math.Ldexp(a, 3-exponent))) // of 8 to 16, and below 8 with the least exponent
	return sign | byte(mantissa+(exponent+6)<<3)
}
