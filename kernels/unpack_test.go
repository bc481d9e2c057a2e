package kernels_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// types are all block types; blocks of random bytes have random scales, some of which are subnormal, infinite or NaN.
var types = []*ggml.Type{ggml.F32, ggml.F16, ggml.BF16, ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q5_1,
	ggml.IQ4_NL, ggml.Q2_K, ggml.Q3_K, ggml.Q4_K, ggml.Q5_K, ggml.Q6_K, ggml.IQ4_XS}

// eachTier runs f on every tier of this machine.
func eachTier(t *testing.T, f func(t *testing.T)) {
	defer kernels.SetTier(kernels.SetTier(kernels.PureGo))
	for _, tier := range kernels.Tiers() {
		kernels.SetTier(tier)
		t.Run(tier.String(), f)
	}
}

// Unpack gives the plain decoder's values bit for bit, but for the sign and payload of NaN, and writes no further.
func TestUnpack(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, typ := range types {
			lengths := []int{0, 1, 2, 3, 7, 20}
			if typ.BlockLen == 1 {
				lengths = []int{0, 1, 31, 32, 33, 63, 64, 65, 500}
			}
			for _, blocks := range lengths {
				src := make([]byte, 1+blocks*typ.BlockBytes)[1:] // unaligned
				for i := range src {
					src[i] = byte(rng.Uint32())
				}
				n := blocks * typ.BlockLen
				want, got := make([]float32, n), make([]float32, n+3)
				got[0], got[n+1], got[n+2] = 42, 42, 42
				typ.Unpack(want, src)
				kernels.Unpack(&typ.Format, got[1:n+1], src)
				if got[0] != 42 || got[n+1] != 42 || got[n+2] != 42 {
					t.Fatalf("%v, %d blocks: wrote outside dst", typ, blocks)
				}
				for i, w := range want {
					g := got[1+i]
					if math.Float32bits(g) != math.Float32bits(w) && !(g != g && w != w) {
						t.Fatalf("%v, %d blocks: weight %d is %v, want %v", typ, blocks, i, g, w)
					}
				}
			}
		}
	})
}

// weights returns random weights of a type, rows×cols: random bytes, but scales of moderate size.
func weights(rng *rand.Rand, typ *ggml.Type, rows, cols int) *kernels.Weights {
	w := &kernels.Weights{Rows: rows, Cols: cols, Format: &typ.Format, Data: make([]byte, rows*typ.RowBytes(cols))}
	row := make([]float32, cols)
	for i := range rows {
		for j := range row {
			row[j] = float32(rng.NormFloat64())
		}
		if typ.Grid == nil {
			typ.Encode(w.Row(i), row, nil)
			continue
		}
		for j := range w.Row(i) {
			w.Row(i)[j] = byte(rng.Uint32())
		}
		for b := 0; b < len(w.Row(i)); b += typ.BlockBytes {
			block := w.Row(i)[b : b+typ.BlockBytes]
			for _, at := range scalesAt[typ.Name] {
				block[at+1] = block[at+1]&0x83 | 0x28 // exponent 2⁻⁵ or 2⁻⁴
			}
		}
	}
	return w
}

// scalesAt are the offsets of the float16 values in a block.
var scalesAt = map[string][]int{"Q8_0": {0}, "Q4_0": {0}, "Q4_1": {0, 2}, "Q5_0": {0}, "Q5_1": {0, 2}, "IQ4_NL": {0},
	"Q2_K": {80, 82}, "Q3_K": {108}, "Q4_K": {0, 2}, "Q5_K": {0, 2}, "Q6_K": {208}, "IQ4_XS": {0}}

// MatMul over every type against float64 sums of the plain decoder's values. The bound is that of checkProduct in
// gemm_test.go: k·ε, and with bfloat16 inputs 2·εbf16, times Σ|x·w|.
func TestMatMulTypes(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for _, typ := range types {
			shapes := [][3]int{{1, 5, 256}, {5, 33, 512}, {14, 40, 768}, {2, 20, 1280}, {3, 9, 1280}, {4, 3, 512}}
			if typ.BlockLen == 1 {
				for _, s := range slices.Clone(shapes) {
					shapes = append(shapes, [3]int{s[0], s[1], s[2] - 7})
				}
			}
			for _, s := range shapes {
				tokens, out, in := s[0], s[1], s[2]
				w := weights(rng, typ, out, in)
				x, dst := tensor.New(tokens, in), tensor.New(tokens, out)
				for i := range x.Data {
					x.Data[i] = float32(rng.NormFloat64())
				}
				for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
					bound := float64(in+4) * 0x1p-24
					kernels.MatMul(dst, x, w, p)
					x := x
					switch few := tokens <= 4; {
					case few && p.Rounds() && typ == ggml.Q4_K: // alone of its kind it rounds the inputs of few tokens
						x = x.Clone()
						for i, v := range x.Data {
							x.Data[i] = tensor.BF16(tensor.ToBF16(v))
						}
					case !few && p.Rounds():
						bound += 2.01 * 0x1p-8
					}
					row := make([]float32, in)
					for o := range out {
						typ.Unpack(row, w.Row(o))
						for i := range tokens {
							var sum, size float64
							for k, v := range x.Row(i) {
								sum += float64(v) * float64(row[k])
								size += math.Abs(float64(v) * float64(row[k]))
							}
							if d := math.Abs(float64(dst.Row(i)[o]) - sum); !(d <= bound*size) {
								t.Fatalf("%v %v precision %d: (%d,%d) is %v, want %v", typ, s, p, i, o, dst.Row(i)[o], sum)
							}
						}
					}
				}
			}
		}
	})
}

// Unit vectors pick single weights, and a product that rounds gives each of them rounded once.
func TestMatMulPicks(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		const in, out = 512, 35
		x, dst, row := tensor.New(in, in), tensor.New(in, out), make([]float32, in)
		for k := range in {
			x.Row(k)[k] = 1
		}
		for _, typ := range types {
			w := weights(rng, typ, out, in)
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				kernels.MatMul(dst, x, w, p)
				for o := range out {
					typ.Unpack(row, w.Row(o))
					for k, want := range row {
						if p.Rounds() {
							want = tensor.BF16(tensor.ToBF16(want))
						}
						if got := dst.Row(k)[o]; got != want {
							t.Fatalf("%v precision %d: weight %d of row %d is %v, want %v", typ, p, k, o, got, want)
						}
					}
				}
			}
		}
	})
}

// BenchmarkMatMul counts 2·tokens·out·in operations.
func BenchmarkMatMul(b *testing.B) {
	const out, in = 4096, 4096
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tokens := range []int{1, 8, 64, 512, 2048} {
		x, dst := tensor.New(tokens, in), tensor.New(tokens, out)
		for i := range x.Data {
			x.Data[i] = rng.Float32()
		}
		for _, typ := range types {
			b.Run(fmt.Sprintf("%d/%v", tokens, typ), func(b *testing.B) {
				w := weights(rng, typ, out, in)
				kernels.Rate(b, 2*float64(tokens)*out*in, func() { kernels.MatMul(dst, x, w, kernels.Auto) })
			})
		}
	}
}

// BenchmarkUnpack counts weights.
func BenchmarkUnpack(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, typ := range types {
		b.Run(typ.Name, func(b *testing.B) {
			w := weights(rng, typ, 1, 4096)
			dst := make([]float32, 4096)
			kernels.Rate(b, 4096, func() { kernels.Unpack(&typ.Format, dst, w.Data) })
		})
	}
}

// BenchmarkMatMulFew reports gigabytes of weights per second.
func BenchmarkMatMulFew(b *testing.B) {
	const out, in = 14336, 4096
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tokens := range []int{1, 2, 4, 8} {
		x, dst := tensor.New(tokens, in), tensor.New(tokens, out)
		for i := range x.Data {
			x.Data[i] = rng.Float32()
		}
		for _, typ := range types {
			b.Run(fmt.Sprintf("%d/%v", tokens, typ), func(b *testing.B) {
				w := weights(rng, typ, 512, in)
				w.Rows = out
				for len(w.Data) < out*typ.RowBytes(in) {
					w.Data = append(w.Data, w.Data[:min(len(w.Data), out*typ.RowBytes(in)-len(w.Data))]...)
				}
				kernels.Rate(b, float64(len(w.Data)), func() { kernels.MatMul(dst, x, w, kernels.Auto) })
			})
		}
	}
}
