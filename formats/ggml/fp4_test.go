package ggml

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// positiveZeros returns a block with its negative zeros, of which grids know nothing, made positive ones.
func positiveZeros(typ *Type, block []byte) []byte {
	block = slices.Clone(block)
	codes := block[typ.BlockBytes-typ.BlockLen/2:]
	for i, v := range codes {
		for _, shift := range []int{0, 4} {
			if v>>shift&15 == 8 {
				codes[i] &^= 8 << shift
			}
		}
	}
	return block
}

// minifloat is the value of a number with so many bits of exponent and fraction below its sign, by the specification:
// (−1)^s·2^(e−bias)·1.f, and 2^(1−bias)·0.f where e is 0.
func minifloat(v, exponentBits, fractionBits int) float64 {
	e, f := v>>fractionBits&(1<<exponentBits-1), float64(v&(1<<fractionBits-1))/float64(int(1)<<fractionBits)
	bias := 1<<(exponentBits-1) - 1
	x := math.Ldexp(1+f, e-bias)
	if e == 0 {
		x = math.Ldexp(f, 1-bias)
	}
	if v>>(exponentBits+fractionBits)&1 != 0 {
		x = -x
	}
	return x
}

// TestFP4 compares every scale with every code, in every place, with the formats' specifications.
func TestFP4(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 1))
	scales := map[*Type]func(v int) float64{
		MXFP4: func(v int) float64 { return math.Ldexp(1, v-127) },
		NVFP4: func(v int) float64 { return minifloat(v, 4, 3) },
	}
	for typ, scale := range scales {
		groups := typ.Grid.Shape().Groups()
		size := typ.BlockLen / groups
		for v := range 255 {
			if typ == NVFP4 && v >= 127 {
				break // not a number, then what the sign of an unsigned number would be
			}
			src := make([]byte, typ.BlockBytes)
			for i := range src {
				src[i] = byte(rng.IntN(256))
			}
			want, got := make([]float32, typ.BlockLen), make([]float32, typ.BlockLen)
			for g := range groups {
				src[g] = byte((v + g) % 127)
				if typ == MXFP4 {
					src[g] = byte(v)
				}
				for j := range size {
					// The first half of a group is in the low halves of its bytes.
					q := int(src[groups+g*size/2+j%(size/2)]) >> (j / (size / 2) * 4) & 15
					want[g*size+j] = float32(scale(int(src[g])) * minifloat(q, 2, 1))
				}
			}
			typ.Decode(got, src)
			for j := range got {
				if got[j] != want[j] {
					t.Fatalf("%s: scale byte %d, weight %d of %x is %v, want %v", typ, v, j, src, got[j], want[j])
				}
			}
			checkParse(t, typ, src, got)
		}
	}
}

// TestFP4Encode: a row that is on the grid already stays as it is, and zeros are zeros.
func TestFP4Encode(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 1))
	for _, typ := range []*Type{MXFP4, NVFP4} {
		for range 200 {
			src := make([]byte, typ.BlockBytes)
			groups := typ.Grid.Shape().Groups()
			for i := range src {
				src[i] = byte(rng.IntN(256))
				if i < groups {
					src[i] = byte(80 + rng.IntN(40)) // squared errors are not lost in float32
				}
			}
			w, got := make([]float32, typ.BlockLen), make([]float32, typ.BlockLen)
			typ.Decode(w, src)
			data := make([]byte, typ.BlockBytes)
			typ.Encode(data, w, nil)
			typ.Decode(got, data)
			if !slices.Equal(w, got) {
				t.Fatalf("%s: %v becomes %v", typ, w, got)
			}
			clear(w)
			typ.Encode(data, w, nil)
			typ.Decode(got, data)
			if !slices.Equal(w, got) {
				t.Fatalf("%s: zeros become %v", typ, got)
			}
		}
	}
}
