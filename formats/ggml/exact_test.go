package ggml

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestEncodeExact rounds weights to a type, stores what it decodes to as a checkpoint may, and finds the same bytes again.
func TestEncodeExact(t *testing.T) {
	const blocks = 2000
	for _, typ := range []*Type{Q4_0, Q5_0, Q8_0, Q4_1, IQ4_NL, MXFP4, NVFP4} {
		for _, from := range []*Type{F32, BF16, F16} {
			rng := rand.New(rand.NewPCG(7, uint64(typ.ID)))
			var same, codes int
			for range blocks {
				w := make([]float32, typ.BlockLen)
				for j := range w {
					w[j] = 0.05 * float32(rng.NormFloat64())
				}
				data, back := make([]byte, typ.BlockBytes), make([]byte, typ.BlockBytes)
				typ.Encode(data, w, nil)
				typ.Decode(w, data)
				stored := make([]byte, from.RowBytes(len(w)))
				from.Encode(stored, w, nil)
				from.Decode(w, stored)
				if !typ.EncodeExact(back, w, from) {
					if typ == Q4_1 { // a minimum and its weights may cancel, so that the rounding of from shows
						continue
					}
					t.Fatalf("%s stored as %s: not found in %v", typ.Name, from.Name, w)
				}
				again := make([]float32, len(w))
				typ.Decode(again, back)
				from.Encode(stored, again, nil)
				from.Decode(again, stored)
				for j, v := range again {
					if v != w[j] {
						t.Fatalf("%s stored as %s: weight %d is %v, was %v", typ.Name, from.Name, j, v, w[j])
					}
				}
				a, b := parsed(typ, data), parsed(typ, back)
				for j, q := range a {
					if b[j] == q {
						same++
					}
				}
				codes += len(a)
			}
			if codes < blocks*typ.BlockLen*95/100 {
				t.Errorf("%s stored as %s: found in %d of %d blocks", typ.Name, from.Name, codes/typ.BlockLen, blocks)
			}
			// Where a minimum or a power of two can make up for other codes, the weights are the same with them.
			_, several := map[*Type]bool{Q4_1: true, MXFP4: true, NVFP4: true}[typ]
			if share := float64(same) / float64(codes); share < 0.9999 && !several {
				t.Errorf("%s stored as %s: %v of the codes are as first rounded", typ.Name, from.Name, share)
			}
		}
	}
}

// TestEncodeExactOfGGML does so with weights that ggml has rounded to Q4_0, the largest of each block to −8.
func TestEncodeExactOfGGML(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	same, codes := 0, 0
	for range 2000 {
		w, b := make([]float32, 32), quant.Block{Sc: []int8{1}, M: []int8{0}, Codes: make([]int8, 32)}
		var top float32
		for j := range w {
			if w[j] = 0.05 * float32(rng.NormFloat64()); math.Abs(float64(w[j])) > math.Abs(float64(top)) {
				top = w[j]
			}
		}
		d := top / -8 // quantize_row_q4_0_ref
		for j, v := range w {
			b.Codes[j] = int8(min(15, int(v*(1/d)+8.5)) - 8)
		}
		b.D = tensor.RoundF16(d)
		data, back := make([]byte, Q4_0.BlockBytes), make([]byte, Q4_0.BlockBytes)
		Q4_0.Pack(data, &b)
		Q4_0.Decode(w, data)
		stored := make([]byte, BF16.RowBytes(len(w)))
		BF16.Encode(stored, w, nil)
		BF16.Decode(w, stored)
		if !Q4_0.EncodeExact(back, w, BF16) {
			t.Fatalf("not found in %v", w)
		}
		for j, q := range parsed(Q4_0, back) {
			if q == b.Codes[j] {
				same++
			}
		}
		codes += len(w)
	}
	if share := float64(same) / float64(codes); share < 0.9999 {
		t.Errorf("%v of the codes are as first rounded", share)
	}
}

func parsed(t *Type, data []byte) []int8 {
	s := t.Grid.Shape()
	b := quant.Block{Sc: make([]int8, s.Groups()), M: make([]int8, s.Groups()), Codes: make([]int8, s.Block)}
	t.Parse(&b, data)
	return b.Codes
}

// TestEncodeExactRefuses: one weight beside the grid is enough, and random weights are on none.
func TestEncodeExactRefuses(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, typ := range Types {
		dst := make([]byte, typ.BlockBytes)
		w := make([]float32, typ.BlockLen)
		for range 500 {
			for j := range w {
				w[j] = float32(rng.NormFloat64())
			}
			stored := make([]byte, BF16.RowBytes(len(w)))
			BF16.Encode(stored, w, nil)
			BF16.Decode(w, stored)
			if typ.EncodeExact(dst, w, BF16) {
				t.Fatalf("%s: random weights are on the grid: %v", typ.Name, w)
			}
		}
		clear(w)
		if g, ok := typ.Grid.(*quant.Affine); ok && !g.Scales.Super && typ.EncodeExact(dst, w, F32) {
			typ.Decode(w, dst)
			if slices.ContainsFunc(w, func(v float32) bool { return v != 0 }) { // one bit has no zero but of a scale's
				t.Errorf("%s: zeros become %v", typ.Name, w)
			}
		}
	}
	w := make([]float32, 32)
	for j := range w {
		w[j] = 0.25 * float32(j%16-8)
	}
	dst := make([]byte, Q4_0.BlockBytes)
	if !Q4_0.EncodeExact(dst, w, F32) {
		t.Error("a lattice is not found")
	}
	if w[7] += 0.25 / 16; Q4_0.EncodeExact(dst, w, BF16) {
		t.Error("a weight beside the lattice is not seen")
	}
}
