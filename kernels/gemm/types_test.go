package gemm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/internal/blocktest"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// MatMul over every type against float64 sums of the plain decoder's values. The bound is that of checkProduct in
// gemm_test.go: k·ε, and with bfloat16 inputs 2·εbf16, times Σ|x·w|.
func TestMatMulTypes(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for _, typ := range blocktest.Types {
			shapes := [][3]int{{1, 5, 256}, {5, 33, 512}, {14, 40, 768}, {2, 20, 1280}, {3, 9, 1280}, {4, 3, 512}}
			if typ.BlockLen == 1 {
				for _, s := range slices.Clone(shapes) {
					shapes = append(shapes, [3]int{s[0], s[1], s[2] - 7})
				}
			}
			for _, s := range shapes {
				tokens, out, in := s[0], s[1], s[2]
				w := blocktest.Weights(rng, typ, out, in)
				x, dst := tensor.New(tokens, in), tensor.New(tokens, out)
				for i := range x.Data {
					x.Data[i] = float32(rng.NormFloat64())
				}
				for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
					bound := float64(in+4) * 0x1p-24
					gemm.MatMul(dst, x, w, p)
					x := x
					switch few := tokens <= 4; {
					case few && p.Rounds() && typ == ggml.Q4_K && kernels.CurrentTier() >= kernels.AVX512BF16: // alone of its kind it rounds the inputs of few tokens
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
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		const in, out = 512, 35
		x, dst, row := tensor.New(in, in), tensor.New(in, out), make([]float32, in)
		for k := range in {
			x.Row(k)[k] = 1
		}
		for _, typ := range blocktest.Types {
			w := blocktest.Weights(rng, typ, out, in)
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				gemm.MatMul(dst, x, w, p)
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
		for _, typ := range blocktest.Types {
			b.Run(fmt.Sprintf("%d/%v", tokens, typ), func(b *testing.B) {
				w := blocktest.Weights(rng, typ, out, in)
				kerneltest.Rate(b, 2*float64(tokens)*out*in, func() { gemm.MatMul(dst, x, w, kernels.Auto) })
			})
		}
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
		for _, typ := range blocktest.Types {
			b.Run(fmt.Sprintf("%d/%v", tokens, typ), func(b *testing.B) {
				w := blocktest.Weights(rng, typ, 512, in)
				w.Rows = out
				for len(w.Data) < out*typ.RowBytes(in) {
					w.Data = append(w.Data, w.Data[:min(len(w.Data), out*typ.RowBytes(in)-len(w.Data))]...)
				}
				kerneltest.Rate(b, float64(len(w.Data)), func() { gemm.MatMul(dst, x, w, kernels.Auto) })
			})
		}
	}
}
