// Package q8 multiplies weights that are stored as whole numbers with inputs that it rounds to eight bits, in integers.
package q8

import (
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// MatMul sets Dst = X̂·Wᵀ for each of the products, of x, tokens×in; formats must have Levels. X̂ is x rounded to eight
// bits: 32 consecutive values of a token share a step, which is a power of two times a step of the token, and is large
// enough for 127 of it to reach the largest magnitude; values become the nearest multiple. So a value changes by at most
// 1/127 of the largest of its 32 at worst, and 1/254 for the largest of the token.
//
// Products of a group of 32 columns, or of fewer that share a scale, are summed in integers, exactly; the sums times scale
// and step are added in float32. What is not finite in a token makes all of its results NaN.
//
// The power of two is what makes it fast: see _asm/q8.go. llama.cpp's Q8_0, which it rounds inputs to, has a step of its
// own for each 32 values.
func MatMul(x *tensor.Matrix, products ...kernels.Product) { matMul(x, false, products) }

// MatMulAdd sets dst += X̂·Wᵀ: see MatMul.
func MatMulAdd(dst, x *tensor.Matrix, w *kernels.Weights) {
	matMul(x, true, []kernels.Product{{Dst: dst, W: w}})
}

func matMul(x *tensor.Matrix, add bool, products []kernels.Product) {
	type batch struct { // of products by the same kernels, whose inputs are rounded once
		*kernelSet
		results        []kernels.Product
		quarters, wide bool // some weights have groups of 16, some are multiplied in 16 bits
		offset         uint32
	}
	var batches []batch
	var dotResults []kernels.Product
	d := dotTier()
	for _, p := range products {
		if p.Dst.Rows != x.Rows || p.Dst.Cols != p.W.Rows || x.Cols != p.W.Cols {
			panic("q8: matmul shapes do not agree")
		}
		lv := p.W.Format.Levels
		if lv == nil || lv.Group != q8Group && lv.Group != q8Group/2 || p.W.Cols%q8Group != 0 {
			panic(fmt.Sprintf("q8: integer products with %s weights of %d columns", p.W.Format.Name, p.W.Cols))
		}
		k := tiles(x.Rows, lv)
		if k == nil {
			k = tier()
		}
		switch {
		case d != nil && x.Cols > 0:
			dotResults = append(dotResults, p)
		case k == nil || unpack.DecoderLevels(p.W.Format) == nil || x.Cols == 0:
			matMulGo(p.Dst, x, p.W, add)
		case x.Rows > 0 && p.W.Rows > 0:
			offset := k.offset(p.W)
			i := slices.IndexFunc(batches, func(b batch) bool {
				return b.kernelSet == k && (b.offset == offset || b.offset == 0 || offset == 0)
			})
			if i < 0 {
				i, batches = len(batches), append(batches, batch{kernelSet: k})
			}
			b := &batches[i]
			b.quarters, b.wide, b.offset = b.quarters || lv.Group < q8Group, b.wide || k.wide(p.W), max(b.offset, offset)
			b.results = append(b.results, p)
		}
	}
	for _, b := range batches {
		in := b.round(x, b.quarters, b.wide, b.offset)
		in.product(add, b.results)
		in.release()
	}
	if len(dotResults) > 0 && x.Rows > 0 {
		in := d.round(x, dotResults)
		in.product(add, dotResults)
		in.release()
	}
}

// q8Group is how many inputs share a step.
const q8Group = 32

// Steps of a group are the token's times 2^e for −q8Finest ≤ e ≤ 0. A token whose values all are below q8Least counts as
// zero, so that nothing overflows.
const (
	q8Finest = 32
	q8Least  = 0x1p-64
)

// q8Steps turns the bits of the largest magnitude of each group into its e, and returns the token's step and its inverse:
// 0 and 0 for a token of zeros, NaN for one with a value that is not finite.
func q8Steps(e []int32, largest []uint32) (step, inverse float32) {
	var most uint32
	for _, v := range largest {
		most = max(most, v)
	}
	m := math.Float32frombits(most)
	switch {
	case !(m-m == 0):
		clear(e)
		return float32(math.NaN()), 0
	case m < q8Least:
		clear(e)
		return 0, 0
	}
	for g, v := range largest {
		// The difference of the bits is that of the exponents, and of the fractions below: rounded up, the least e for which
		// v ≤ most·2^e.
		e[g] = max(int32(v)-int32(most)+1<<23-1, -q8Finest<<23) >> 23
	}
	return m / 127, 127 / m
}

// power2 returns 2^e.
func power2(e int32) float32 { return math.Float32frombits(uint32(127+e) << 23) }

// roundGo rounds a token's values: x[j] ≈ step·2^e[j/32]·codes[j].
func roundGo(codes []int8, e []int32, x []float32) (step float32) {
	largest := make([]uint32, len(e))
	for j, v := range x {
		largest[j/q8Group] = max(largest[j/q8Group], math.Float32bits(v)&^(1<<31))
	}
	step, inverse := q8Steps(e, largest)
	if step != step {
		clear(codes)
		return step
	}
	for j, v := range x {
		codes[j] = int8(math.RoundToEven(float64(v * (inverse * power2(-e[j/q8Group])))))
	}
	return step
}

// fma returns x·y + z, rounded once, as every tier's multiply-add does.
func fma(x, y, z float32) float32 {
	product := float64(x) * float64(y) // exact
	sum := float64(product + float64(z))
	// What the sum lost goes into its last bit, if that is free, so that rounding it again is as rounding the exact sum.
	part := float64(sum - product)
	lost := float64(product-float64(sum-part)) + float64(float64(z)-part)
	if bits := math.Float64bits(sum); lost != 0 && sum-sum == 0 && bits&1 == 0 {
		if (lost > 0) == (sum > 0) {
			sum = math.Float64frombits(bits + 1)
		} else {
			sum = math.Float64frombits(bits - 1)
		}
	}
	return float32(sum)
}

// matMulGo is the plain product.
func matMulGo(dst, x *tensor.Matrix, w *kernels.Weights, add bool) {
	groups := x.Cols / q8Group
	codes, exponents, steps := make([]int8, x.Rows*x.Cols), make([]int32, x.Rows*groups), make([]float32, x.Rows)
	kernels.Parallel(x.Rows, 1, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			steps[t] = roundGo(codes[t*x.Cols:(t+1)*x.Cols], exponents[t*groups:(t+1)*groups], x.Row(t))
		}
	})
	lv := w.Format.Levels
	kernels.Parallel(w.Rows, 1, func(lo, hi int) {
		level := make([]int8, w.Cols)
		scale, minimum := make([]float32, w.Cols/lv.Group), make([]float32, w.Cols/lv.Group)
		for o := lo; o < hi; o++ {
			lv.Unpack(level, scale, minimum, w.Row(o))
			for t := range x.Rows {
				var sum float32
				for g, s := range scale {
					var dot, total int32
					for j := g * lv.Group; j < (g+1)*lv.Group; j++ {
						c := int32(codes[t*x.Cols+j])
						dot += int32(level[j]) * c
						total += c
					}
					unit := power2(exponents[t*groups+g*lv.Group/q8Group])
					sum = fma(s, float32(dot)*unit, sum)
					if lv.Minimums {
						sum = fma(-minimum[g], float32(total)*unit, sum)
					}
				}
				if sum = float32(sum * steps[t]); add {
					sum += dst.Row(t)[o]
				}
				dst.Row(t)[o] = sum
			}
		}
	})
}
