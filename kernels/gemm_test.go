package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/tensor"
)

// guard surrounds the data of test matrices; kernels must neither read it into results nor write it.
const guard = float32(1e30)

// guarded returns a rows×cols view inside a larger matrix of guards, at an offset that no vector is aligned to.
func guarded(rows, cols int) (whole, view *tensor.Matrix) {
	whole = tensor.New(rows+2, cols+5)
	for i := range whole.Data {
		whole.Data[i] = guard
	}
	return whole, whole.View(1, rows+1, 1, cols+1)
}

func checkGuards(t *testing.T, whole *tensor.Matrix, rows, cols int) {
	t.Helper()
	for i := range whole.Rows {
		for j, v := range whole.Row(i) {
			inside := i >= 1 && i <= rows && j >= 1 && j <= cols
			if !inside && v != guard {
				t.Fatalf("guard at (%d,%d) became %v", i-1, j-1, v)
			}
		}
	}
}

func random(rng *rand.Rand, rows, cols int) *tensor.Matrix {
	_, m := guarded(rows, cols)
	for i := range rows {
		row := m.Row(i)
		for j := range row {
			row[j] = float32(rng.NormFloat64())
		}
	}
	return m
}

// eachTier runs f on every tier of this machine.
func eachTier(t *testing.T, f func(t *testing.T)) {
	defer SetTier(SetTier(PureGo))
	for _, tier := range Tiers() {
		SetTier(tier)
		t.Run(tier.String(), f)
	}
}

// epsilon is float32's and bfloat16's unit roundoff.
const (
	epsilon     = 0x1p-24
	epsilonBF16 = 0x1p-8
)

// checkProduct compares got with was + alpha·Σ_k a(i,k)·b(j,k) in float64, where both factors are first rounded if bf16
// says so. Summing k terms one after the other errs by at most k·ε·Σ|a·b|.
func checkProduct(t *testing.T, got, was *tensor.Matrix, alpha float64, k int, a, b func(i, k int) float32,
	lower, bf16 bool) {
	t.Helper()
	relative := float64(k+4) * epsilon
	rounded := func(f func(i, k int) float32) func(i, k int) float32 {
		return func(i, k int) float32 { return tensor.BF16(tensor.ToBF16(f(i, k))) }
	}
	if bf16 {
		a, b = rounded(a), rounded(b)
	}
	for i := range got.Rows {
		for j, v := range got.Row(i) {
			if lower && j > i {
				break
			}
			var sum, size float64
			for p := range k {
				x := float64(a(i, p)) * float64(b(j, p))
				sum += x
				size += math.Abs(x)
			}
			want := alpha * sum
			size *= math.Abs(alpha)
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
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, s := range shapes {
			m, n, k := s[0], s[1], s[2]
			for _, alpha := range []float32{1, -0.3} {
				a, b, at, bt := random(rng, m, k), random(rng, n, k), random(rng, k, m), random(rng, k, n)
				was := random(rng, m, n)
				rows := func(m *tensor.Matrix) func(i, k int) float32 {
					return func(i, k int) float32 { return m.Data[i*m.Stride+k] }
				}
				cols := func(m *tensor.Matrix) func(i, k int) float32 {
					return func(i, k int) float32 { return m.Data[k*m.Stride+i] }
				}
				for _, c := range []struct {
					name  string
					run   func(dst *tensor.Matrix)
					a, b  func(i, k int) float32
					lower bool
				}{
					{"NN", func(dst *tensor.Matrix) { GemmNN(dst, alpha, a, bt, F32) }, rows(a), cols(bt), false},
					{"NN Auto", func(dst *tensor.Matrix) { GemmNN(dst, alpha, a, bt, Auto) }, rows(a), cols(bt), false},
					{"NT", func(dst *tensor.Matrix) { GemmNT(dst, alpha, a, b) }, rows(a), rows(b), false},
					{"TN", func(dst *tensor.Matrix) { GemmTN(dst, alpha, at, bt, F32) }, cols(at), cols(bt), false},
					{"TN Auto", func(dst *tensor.Matrix) { GemmTN(dst, alpha, at, bt, Auto) }, cols(at), cols(bt), false},
					{"NTLower", func(dst *tensor.Matrix) { GemmNTLower(dst, alpha, a, b) }, rows(a), rows(b), true},
				} {
					whole, dst := guarded(m, n)
					for i := range m {
						copy(dst.Row(i), was.Row(i))
					}
					c.run(dst)
					checkGuards(t, whole, m, n)
					checkProduct(t, dst, was, float64(alpha), k, c.a, c.b, c.lower,
						strings.HasSuffix(c.name, "Auto") && Auto.Rounds())
				}
			}
		}
	})
}

func TestMatMulF32(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for _, s := range shapes {
			x, w := random(rng, s[0], s[2]), random(rng, s[1], s[2])
			whole, dst := guarded(s[0], s[1])
			MatMulF32(dst, x, w)
			checkGuards(t, whole, s[0], s[1])
			checkProduct(t, dst, nil, 1, s[2],
				func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return w.Row(j)[k] }, false, false)
		}
	})
}

func TestSyrk(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, s := range shapes {
			n, k := s[1], s[2]
			x := random(rng, k, n)
			was := random(rng, n, n)
			Mirror(was)
			for _, p := range []Precision{Auto, F32} {
				whole, dst := guarded(n, n)
				for i := range n {
					copy(dst.Row(i), was.Row(i))
				}
				SyrkTo(dst, x, p)
				checkGuards(t, whole, n, n)
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
	x := random(rng, batch*batches, n)
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
	eachTier(t, func(t *testing.T) {
		if CurrentTier() == PureGo {
			t.Skip("the plain loop adds token by token")
		}
		h := tensor.New(n, n)
		for s := 0; s < x.Rows; s += batch {
			SyrkTo(h, x.View(s, s+batch, 0, n), F32)
		}
		for i, want := range sum {
			if d := math.Abs(float64(h.Data[i]) - want); !(d <= 20*epsilon*size[i]) {
				t.Fatalf("element %d: error %.3g of %.3g", i, d, size[i])
			}
		}
	})
}

// plainF32 is a format for tests that has no unpacker of its own.
var plainF32 = &Format{Name: "test", BlockLen: 1, BlockBytes: 4, Unpack: tensor.DecodeF32}

func TestMatMul(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 10))
		for _, s := range shapes {
			x, m := random(rng, s[0], s[2]), random(rng, s[1], s[2])
			w := &Weights{Rows: s[1], Cols: s[2], Format: plainF32, Data: make([]byte, 4*s[1]*s[2])}
			for i := range m.Rows {
				tensor.EncodeF32(w.Row(i), m.Row(i))
			}
			for _, p := range []Precision{Auto, F32} {
				whole, dst := guarded(s[0], s[1])
				MatMul(dst, x, w, p)
				checkGuards(t, whole, s[0], s[1])
				checkProduct(t, dst, nil, 1, s[2],
					func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return m.Row(j)[k] },
					false, p.Rounds() && s[0] > fewTokens)

				// Several at a time, and added to what is there, are the same products.
				many, again := tensor.New(s[0], s[1]), tensor.New(s[0], s[1])
				MatMulMany(x, p, Product{many, w}, Product{again, w})
				was := random(rng, s[0], s[1])
				whole, sum := guarded(s[0], s[1])
				for i := range was.Rows {
					copy(sum.Row(i), was.Row(i))
				}
				MatMulAdd(sum, x, w, p)
				checkGuards(t, whole, s[0], s[1])
				checkProduct(t, sum, was, 1, s[2],
					func(i, k int) float32 { return x.Row(i)[k] }, func(j, k int) float32 { return m.Row(j)[k] },
					false, p.Rounds() && s[0] > fewTokens)
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
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(11, 12))
		x, w := random(rng, 70, 600), random(rng, 300, 600)
		all := tensor.New(70, 300)
		MatMulF32(all, x, w)
		for _, threads := range []int{1, 3} {
			setThreads(t, threads)
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

func TestDotAxpy(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(13, 14))
		for n := range 200 {
			for offset := range 3 {
				a, b := random(rng, 1, n+offset).Row(0)[offset:], random(rng, 1, n+offset).Row(0)[offset:]
				var sum, size float64
				for i := range a {
					sum += float64(a[i]) * float64(b[i])
					size += math.Abs(float64(a[i]) * float64(b[i]))
				}
				if got := float64(Dot(a, b)); math.Abs(got-sum) > float64(n)*epsilon*size {
					t.Fatalf("n=%d: dot %v, want %v", n, got, sum)
				}
				whole, view := guarded(1, n)
				dst := view.Row(0)
				copy(dst, b)
				Axpy(dst, 0.7, a)
				checkGuards(t, whole, 1, n)
				for i := range a {
					want := float64(b[i]) + float64(float32(0.7))*float64(a[i])
					if math.Abs(float64(dst[i])-want) > 2*epsilon*(math.Abs(want)+math.Abs(float64(a[i]))) {
						t.Fatalf("n=%d: axpy[%d] = %v, want %v", n, i, dst[i], want)
					}
				}
			}
		}
	})
}

func TestTier(t *testing.T) {
	for tier := PureGo; tier <= AVX512BF16; tier++ {
		if got, err := ParseTier(tier.String()); err != nil || got != tier {
			t.Errorf("%v: %v, %v", tier, got, err)
		}
	}
	if _, err := ParseTier("mmx"); err == nil {
		t.Error("mmx accepted")
	}
	defer SetTier(SetTier(AVX512BF16))
	if CurrentTier() != BestTier() {
		t.Errorf("tier %v on a machine of %v", CurrentTier(), BestTier())
	}
}

func BenchmarkMatMulF32(b *testing.B) {
	for tier := AVX2; tier <= min(AVX512, BestTier()); tier++ {
		for _, s := range [][3]int{{2048, 4096, 4096}, {512, 4096, 4096}, {512, 2048, 2048}, {64, 4096, 4096}} {
			b.Run(fmt.Sprintf("%v/%dx%dx%d", tier, s[0], s[1], s[2]), func(b *testing.B) {
				defer SetTier(SetTier(tier))
				rng := rand.New(rand.NewPCG(1, 1))
				x, w, dst := tensor.New(s[0], s[2]), tensor.New(s[1], s[2]), tensor.New(s[0], s[1])
				for _, m := range []*tensor.Matrix{x, w} {
					for i := range m.Data {
						m.Data[i] = rng.Float32()
					}
				}
				rate(b, 2*float64(s[0])*float64(s[1])*float64(s[2]), func() { MatMulF32(dst, x, w) })
			})
		}
	}
}

func BenchmarkPeakLoops(b *testing.B) {
	for _, p := range arithmeticPeaks() {
		b.Run(p.Name, func(b *testing.B) { rate(b, 1000*p.opsPerRound, func() { p.run(1000) }) })
	}
}
