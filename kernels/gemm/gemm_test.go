package gemm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// checkProduct compares got with was + alpha·Σ_k a(i,k)·b(j,k) in float64, where both factors are first rounded if bf16
// says so. Summing k terms one after the other errs by at most k·ε·Σ|a·b|.
func checkProduct(t *testing.T, got, was *tensor.Matrix, alpha float64, k int, a, b func(i, k int) float32,
	lower, bf16 bool) {
	t.Helper()
	sumsOf(got.Rows, got.Cols, k, a, b, lower, bf16).check(t, got, was, alpha)
}

// sums are Σ_k a(i,k)·b(j,k) and Σ_k |a(i,k)·b(j,k)| over k terms, of each i and j (of j ≤ i alone, where lower).
type sums struct {
	k           int
	lower       bool
	value, size [][]float64
}

func sumsOf(m, n, k int, a, b func(i, k int) float32, lower, bf16 bool) *sums {
	rounded := func(f func(i, k int) float32) func(i, k int) float32 {
		return func(i, k int) float32 { return tensor.BF16(tensor.ToBF16(f(i, k))) }
	}
	if bf16 {
		a, b = rounded(a), rounded(b)
	}
	row := func(f func(i, k int) float32, i int) []float64 {
		r := make([]float64, k)
		for p := range r {
			r[p] = float64(f(i, p))
		}
		return r
	}
	bs := make([][]float64, n)
	for j := range bs {
		bs[j] = row(b, j)
	}
	s := &sums{k, lower, make([][]float64, m), make([][]float64, m)}
	for i := range m {
		s.value[i], s.size[i] = make([]float64, n), make([]float64, n)
		as := row(a, i)
		for j, b := range bs {
			if lower && j > i {
				break
			}
			var sum, size float64
			for p, a := range as {
				x := a * b[p]
				sum += x
				size += math.Abs(x)
			}
			s.value[i][j], s.size[i][j] = sum, size
		}
	}
	return s
}

// check compares got with was + alpha·s.
func (s *sums) check(t *testing.T, got, was *tensor.Matrix, alpha float64) {
	t.Helper()
	relative := float64(s.k+4) * kerneltest.Epsilon
	for i := range got.Rows {
		for j, v := range got.Row(i) {
			if s.lower && j > i {
				break
			}
			want, size := alpha*s.value[i][j], s.size[i][j]*math.Abs(alpha)
			if was != nil {
				want += float64(was.Row(i)[j])
				size += math.Abs(float64(was.Row(i)[j]))
			}
			if d := math.Abs(float64(v) - want); !(d <= relative*size) {
				t.Fatalf("(%d,%d): %v, want %v, error %.3g, bound %.3g", i, j, v, want, d, relative*size)
			}
		}
	}
}

// shapes cross the edges of tiles, strips and blocks of every tier: m×n summed over k.
var shapes = [][3]int{
	{1, 1, 1}, {1, 1, 300}, {2, 3, 5}, {3, 16, 8}, {4, 31, 15}, {5, 32, 16}, {6, 33, 17}, {7, 15, 31}, {8, 64, 32},
	{11, 17, 33}, {12, 32, 256}, {13, 65, 257}, {24, 48, 255}, {25, 7, 513}, {37, 257, 64}, {100, 300, 100},
	{0, 3, 4}, {3, 0, 4}, {3, 4, 0}, {61, 63, 1025}, {33, 65, 1031}, {300, 290, 3},
	{254, 260, 9},
}

func TestGemm(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, s := range shapes {
			m, n, k := s[0], s[1], s[2]
			for _, alpha := range []float32{1, -0.3} {
				a, b, at, bt := kerneltest.Random(rng, m, k), kerneltest.Random(rng, n, k), kerneltest.Random(rng, k, m), kerneltest.Random(rng, k, n)
				was := kerneltest.Random(rng, m, n)
				rows := func(m *tensor.Matrix) func(i, k int) float32 {
					return func(i, k int) float32 { return m.Data[i*m.Stride+k] }
				}
				cols := func(m *tensor.Matrix) func(i, k int) float32 {
					return func(i, k int) float32 { return m.Data[k*m.Stride+i] }
				}
				known := map[string]*sums{} // by what is multiplied, and how it is rounded
				for _, c := range []struct {
					name  string
					run   func(dst *tensor.Matrix)
					of    string
					a, b  func(i, k int) float32
					lower bool
				}{
					{"NN", func(dst *tensor.Matrix) { NN(dst, alpha, a, bt, kernels.F32) }, "NN", rows(a), cols(bt), false},
					{"NN Auto", func(dst *tensor.Matrix) { NN(dst, alpha, a, bt, kernels.Auto) }, "NN", rows(a), cols(bt), false},
					{"NT", func(dst *tensor.Matrix) { NT(dst, alpha, a, b) }, "NT", rows(a), rows(b), false},
					{"TN", func(dst *tensor.Matrix) { TN(dst, alpha, at, bt, kernels.F32) }, "TN", cols(at), cols(bt), false},
					{"TN Auto", func(dst *tensor.Matrix) { TN(dst, alpha, at, bt, kernels.Auto) }, "TN", cols(at), cols(bt), false},
					{"Serial NN", func(dst *tensor.Matrix) { Serial{}.NN(dst, alpha, a, bt) }, "NN", rows(a), cols(bt), false},
					{"Serial NT", func(dst *tensor.Matrix) { Serial{}.NT(dst, alpha, a, b) }, "NT", rows(a), rows(b), false},
					{"Serial TN", func(dst *tensor.Matrix) { Serial{}.TN(dst, alpha, at, bt) }, "TN", cols(at), cols(bt), false},
					{"SetNN Auto", func(dst *tensor.Matrix) { SetNN(dst, alpha, a, bt, kernels.Auto) }, "NN", rows(a), cols(bt), false},
					{"NTLower", func(dst *tensor.Matrix) { NTLower(dst, alpha, a, b) }, "NT", rows(a), rows(b), true},
				} {
					sets := strings.Contains(c.name, "Set")
					if sets && alpha == 1 {
						continue // the products are those that add
					}
					whole, dst := kerneltest.Guarded(m, n)
					for i := range m {
						copy(dst.Row(i), was.Row(i))
					}
					c.run(dst)
					kerneltest.CheckGuards(t, whole, m, n)
					was := was
					if sets {
						was = nil
					}
					bf16 := strings.HasSuffix(c.name, "Auto") && kernels.Auto.Rounds()
					key := fmt.Sprint(c.of, c.lower, bf16)
					if known[key] == nil {
						known[key] = sumsOf(m, n, k, c.a, c.b, c.lower, bf16)
					}
					known[key].check(t, dst, was, float64(alpha))
				}
			}
		}
	})
}

func TestMatMulF32(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for _, s := range shapes {
			x, w := kerneltest.Random(rng, s[0], s[2]), kerneltest.Random(rng, s[1], s[2])
			whole, dst := kerneltest.Guarded(s[0], s[1])
			MatMulF32(dst, x, w)
			kerneltest.CheckGuards(t, whole, s[0], s[1])
			checkProduct(t, dst, nil, 1, s[2],
				func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return w.Row(j)[k] }, false, false)
		}
	})
}

func TestNNSplit(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		const m, n, k = 37, 300, 70
		a, b, was := kerneltest.Random(rng, m, k), kerneltest.Random(rng, k, n), kerneltest.Random(rng, m, n)
		for _, part := range [][2]int{{0, n}, {0, 100}, {100, n}, {30, 47}, {120, 120}} {
			j0, j1 := part[0], part[1]
			whole, dst := kerneltest.Guarded(m, n)
			for i := range m {
				copy(dst.Row(i), was.Row(i))
			}
			NNSplit(dst, -0.3, a, b, j0, j1, kernels.Auto)
			kerneltest.CheckGuards(t, whole, m, n)
			checkProduct(t, dst, was, -0.3, k, func(i, k int) float32 { return a.Row(i)[k] }, func(j, k int) float32 {
				if j >= j0 && j < j1 {
					return 0
				}
				return b.Row(k)[j]
			}, false, kernels.Auto.Rounds())
		}
	})
}

// TestNNPacked: a packed B gives what B gives, to the last bit, whatever is cut off.
func TestNNPacked(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 8))
		for _, p := range []kernels.Precision{kernels.F32, kernels.Auto} {
			for _, s := range [][4]int{{1, 1, 1, 0}, {5, 3, 2, 0}, {16, 512, 1024, 512}, {64, 512, 1030, 0}, {37, 300, 70, 64}, {37, 300, 70, 70}, {33, 1100, 300, 32}, {3, 2050, 65, 7},
				{300, 513, 513, 256}, {0, 4, 4, 0}, {4, 0, 4, 0}} {
				m, k, n, j0 := s[0], s[1], s[2], s[3]
				a, b, was := kerneltest.Random(rng, m, k), kerneltest.Random(rng, k, n), kerneltest.Random(rng, m, n)
				want := tensor.New(m, n)
				for i := range m {
					copy(want.Row(i), was.Row(i))
				}
				NN(want.View(0, m, j0, n), 0.7, a, b.View(0, k, j0, n), p)
				packed := Pack(b, p)
				for _, threads := range []int{1, 4} {
					kerneltest.SetThreads(t, threads)
					whole, dst := kerneltest.Guarded(m, n)
					for i := range m {
						copy(dst.Row(i), was.Row(i))
					}
					NNPacked(dst, 0.7, a, packed, j0)
					kerneltest.CheckGuards(t, whole, m, n)
					for i := range m {
						if !slices.Equal(dst.Row(i), want.Row(i)) {
							t.Fatalf("%v, %d threads: row %d is not that of a B that is not packed", s, threads, i)
						}
					}
				}
				if got := int64(4 * len(packed.words)); got != PackedBytes(k, n, p) {
					t.Errorf("%v: %d bytes, said to be %d", s, got, PackedBytes(k, n, p))
				}
			}
		}
	})
}

func TestMatMulLower(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, s := range [][2]int{{1, 1}, {3, 2}, {0, 5}, {5, 0}, {6, 16}, {7, 33}, {13, 257}, {37, 300}, {25, 513}, {300, 1100}} {
			m, n := s[0], s[1]
			x, l := kerneltest.Random(rng, m, n), kerneltest.Random(rng, n, n)
			for i := range n {
				clear(l.Row(i)[i+1:])
			}
			whole, dst := kerneltest.Guarded(m, n)
			kerneltest.SetThreads(t, 1)
			MatMulLower(dst, x, l)
			kerneltest.CheckGuards(t, whole, m, n)
			for _, row := range [...]int{0, m / 2, m - 1} { // of the largest product a few rows
				if row < 0 || row >= m {
					continue
				}
				checkProduct(t, dst.View(row, row+1, 0, n), nil, 1, n, func(_, k int) float32 { return x.Row(row)[k] },
					func(j, k int) float32 { return l.Row(j)[k] }, false, false)
			}
			// Which zeros a task leaves out changes nothing.
			whole, again := kerneltest.Guarded(m, n)
			kerneltest.SetThreads(t, 4)
			MatMulLower(again, x, l)
			kerneltest.CheckGuards(t, whole, m, n)
			for i := range m {
				if !slices.Equal(again.Row(i), dst.Row(i)) {
					t.Fatalf("%d×%d: row %d is another with other threads", m, n, i)
				}
			}
		}
	})
}

func TestSyrk(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, s := range shapes {
			n, k := s[1], s[2]
			x := kerneltest.Random(rng, k, n)
			was := kerneltest.Random(rng, n, n)
			mirror(was)
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				whole, dst := kerneltest.Guarded(n, n)
				for i := range n {
					copy(dst.Row(i), was.Row(i))
				}
				Syrk(dst, x, p)
				kerneltest.CheckGuards(t, whole, n, n)
				at := func(i, k int) float32 { return x.Data[k*x.Stride+i] }
				checkProduct(t, dst, was, 1, k, at, at, true, p.Rounds())
				for i := range n {
					for j := range i {
						if dst.Row(i)[j] != dst.Row(j)[i] {
							t.Fatalf("not symmetric at (%d,%d)", i, j)
						}
					}
				}
			}
		}
	})
}

// A long calibration run in many batches keeps its digits: the error stays that of one block and the number of blocks.
func TestSyrkLongRun(t *testing.T) {
	const n, batch, batches = 20, 1000, 40
	rng := rand.New(rand.NewPCG(7, 8))
	x := kerneltest.Random(rng, batch*batches, n)
	sum, size := make([]float64, n*n), make([]float64, n*n)
	for s := range x.Rows {
		row := x.Row(s)
		for i, u := range row {
			for j, v := range row {
				sum[i*n+j] += float64(u) * float64(v)
				size[i*n+j] += math.Abs(float64(u) * float64(v))
			}
		}
	}
	kerneltest.EachTier(t, func(t *testing.T) {
		if kernels.CurrentTier() == kernels.PureGo {
			t.Skip("the plain loop adds token by token")
		}
		h := tensor.New(n, n)
		for s := 0; s < x.Rows; s += batch {
			Syrk(h, x.View(s, s+batch, 0, n), kernels.F32)
		}
		for i, want := range sum {
			if d := math.Abs(float64(h.Data[i]) - want); !(d <= 20*kerneltest.Epsilon*size[i]) {
				t.Fatalf("element %d: error %.3g of %.3g", i, d, size[i])
			}
		}
	})
}

// plainF32 is a format for tests that has no decoder of its own.
var plainF32 = &kernels.Format{Name: "test", BlockLen: 1, BlockBytes: 4, Unpack: tensor.DecodeF32}

func TestMatMul(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 10))
		for _, s := range shapes {
			x, m := kerneltest.Random(rng, s[0], s[2]), kerneltest.Random(rng, s[1], s[2])
			w := &kernels.Weights{Rows: s[1], Cols: s[2], Format: plainF32, Data: make([]byte, 4*s[1]*s[2])}
			for i := range m.Rows {
				tensor.EncodeF32(w.Row(i), m.Row(i))
			}
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				whole, dst := kerneltest.Guarded(s[0], s[1])
				MatMul(dst, x, w, p)
				kerneltest.CheckGuards(t, whole, s[0], s[1])
				checkProduct(t, dst, nil, 1, s[2],
					func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return m.Row(j)[k] },
					false, p.Rounds() && s[0] > FewTokens)

				// Several at a time, and added to what is there, are the same products.
				many, again := tensor.New(s[0], s[1]), tensor.New(s[0], s[1])
				MatMulMany(x, p, kernels.Product{Dst: many, W: w}, kernels.Product{Dst: again, W: w})
				was := kerneltest.Random(rng, s[0], s[1])
				whole, sum := kerneltest.Guarded(s[0], s[1])
				for i := range was.Rows {
					copy(sum.Row(i), was.Row(i))
				}
				MatMulAdd(sum, x, w, p)
				kerneltest.CheckGuards(t, whole, s[0], s[1])
				checkProduct(t, sum, was, 1, s[2],
					func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return m.Row(j)[k] },
					false, p.Rounds() && s[0] > FewTokens)
				for i := range dst.Rows {
					if !slices.Equal(many.Row(i), dst.Row(i)) || !slices.Equal(again.Row(i), dst.Row(i)) {
						t.Fatalf("%v, precision %v: row %d of several products differs", s, p, i)
					}
				}
			}
		}
	})
}

// An output depends neither on the thread count nor on the other rows of the batch.
func TestMatMulFixedOrder(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(11, 12))
		x, w := kerneltest.Random(rng, 70, 600), kerneltest.Random(rng, 300, 600)
		all := tensor.New(70, 300)
		MatMulF32(all, x, w)
		for _, threads := range []int{1, 3} {
			kerneltest.SetThreads(t, threads)
			for _, rows := range []int{20, 33, 70} {
				part := tensor.New(rows, 300)
				MatMulF32(part, x.View(0, rows, 0, 600), w)
				for i := range rows {
					for j, v := range part.Row(i) {
						if v != all.Row(i)[j] {
							t.Fatalf("%d threads, %d rows: (%d,%d) is %v, was %v", threads, rows, i, j, v, all.Row(i)[j])
						}
					}
				}
			}
		}
	})
}

func BenchmarkMatMulF32(b *testing.B) {
	for _, tier := range slices.DeleteFunc(kernels.Tiers(), func(t kernels.Tier) bool { return t != kernels.AVX2 && t != kernels.AVX512 }) {
		for _, s := range [][3]int{{2048, 4096, 4096}, {512, 4096, 4096}, {512, 2048, 2048}, {64, 4096, 4096}} {
			b.Run(fmt.Sprintf("%v/%dx%dx%d", tier, s[0], s[1], s[2]), func(b *testing.B) {
				defer kernels.SetTier(kernels.SetTier(tier))
				rng := rand.New(rand.NewPCG(1, 1))
				x, w, dst := tensor.New(s[0], s[2]), tensor.New(s[1], s[2]), tensor.New(s[0], s[1])
				for _, m := range []*tensor.Matrix{x, w} {
					for i := range m.Data {
						m.Data[i] = rng.Float32()
					}
				}
				kerneltest.Rate(b, 2*float64(s[0])*float64(s[1])*float64(s[2]), func() { MatMulF32(dst, x, w) })
			})
		}
	}
}
