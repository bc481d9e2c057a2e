package elementwise

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// near reports whether got is within relative of want, or both are tiny or the same infinity.
func near(got float32, want, relative float64) bool {
	g := float64(got)
	return g == want || math.Abs(g-want) <= relative*math.Abs(want)+1e-36
}

func TestExp(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 70 {
			_, src := kerneltest.Guarded(1, n)
			whole, dst := kerneltest.Guarded(1, n)
			var sum float64
			for i := range src.Row(0) {
				src.Row(0)[i] = float32(rng.Float64()*190 - 105)
				if i == 5 {
					src.Row(0)[i] = float32(math.Inf(-1))
				}
			}
			got := ExpSum(dst.Row(0), src.Row(0), 3)
			kerneltest.CheckGuards(t, whole, 1, n)
			for i, v := range src.Row(0) {
				want := math.Exp(float64(v - 3))
				sum += want
				if !near(dst.Row(0)[i], want, 0x1p-22) {
					t.Fatalf("n=%d: exp(%v) = %v, want %v", n, v-3, dst.Row(0)[i], want)
				}
			}
			if !near(got, sum, 0x1p-21) {
				t.Fatalf("n=%d: sum %v, want %v", n, got, sum)
			}
		}
		special := []float32{float32(math.NaN()), float32(math.Inf(-1)), 0, -1000}
		dst := make([]float32, len(special))
		ExpSum(dst, special, 0)
		if dst[0] == dst[0] || dst[1] != 0 || dst[2] != 1 || dst[3] != 0 {
			t.Errorf("exp of NaN, −Inf, 0, −1000 is %v", dst)
		}
	})
}

// TestDecays compares every length with float64: sums are large, their differences need not be.
func TestDecays(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for n := range 70 {
			sums := make([]float64, n)
			s := -1e6 * rng.Float64()
			for i := range sums {
				sums[i] = s + []float64{rng.Float64(), 90 * rng.Float64(), 2000 * rng.Float64()}[rng.IntN(3)]
			}
			whole, dst := kerneltest.Guarded(1, n)
			Decays(dst.Row(0), sums, s)
			kerneltest.CheckGuards(t, whole, 1, n)
			for i, v := range sums {
				if want := math.Exp(float64(float32(s - v))); !near(dst.Row(0)[i], want, 0x1p-22) {
					t.Fatalf("n=%d: exp(%v) = %v, want %v", n, s-v, dst.Row(0)[i], want)
				}
			}
		}
	})
}

// TestProducts: ScaleMul and ScaleTo have the bits of the plain products at every length.
func TestProducts(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		for n := range 2*len(ones) + 3 {
			if n > 70 && n%len(ones) > 3 {
				continue
			}
			x, w, s := kerneltest.Random(rng, 1, n).Row(0), kerneltest.Random(rng, 1, n).Row(0), float32(rng.NormFloat64())
			whole, dst := kerneltest.Guarded(2, n)
			ScaleMul(dst.Row(0), x, w, s)
			ScaleTo(dst.Row(1), x, s)
			kerneltest.CheckGuards(t, whole, 2, n)
			for i, v := range x {
				if a, b := dst.Row(0)[i], dst.Row(1)[i]; a != float32(v*s)*w[i] || b != v*s {
					t.Fatalf("n=%d: %v·%v·%v is %v, without the last factor %v", n, v, s, w[i], a, b)
				}
			}
		}
	})
}

// sigmoidOf is σ(x) in float64.
func sigmoidOf(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// geluOf is the tanh form of GELU in float64.
func geluOf(x float64) float64 {
	return x * sigmoidOf(2*math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x))
}

// TestActivations compares activations of every length, in place and not, with float64.
func TestActivations(t *testing.T) {
	kinds := map[string]struct {
		f func(dst, gate, up *tensor.Matrix)
		// want is the result, and size what the error is relative to: a sigmoid far below 1 may be lost.
		want func(gate, up float64) (want, size float64)
	}{
		"SiLUMul": {SiLUMul, func(g, u float64) (float64, float64) { w := g * sigmoidOf(g) * u; return w, w }},
		"GELUMul": {GELUMul, func(g, u float64) (float64, float64) { return geluOf(g) * u, g * u }},
		"SiLU": {func(dst, gate, _ *tensor.Matrix) { SiLU(dst, gate) },
			func(g, _ float64) (float64, float64) { w := g * sigmoidOf(g); return w, w }},
		"GELU": {func(dst, gate, _ *tensor.Matrix) { GELU(dst, gate) },
			func(g, _ float64) (float64, float64) { return geluOf(g), g }},
		"SigmoidMul": {func(dst, gate, up *tensor.Matrix) {
			for r := range dst.Rows {
				copy(dst.Row(r), up.Row(r))
			}
			SigmoidMul(dst, gate)
		}, func(g, u float64) (float64, float64) { w := sigmoidOf(g) * u; return w, w }},
		"ReLU2": {func(dst, gate, _ *tensor.Matrix) { ReLU2(dst, gate) },
			func(g, _ float64) (float64, float64) { w := max(g, 0) * max(g, 0); return w, w }},
		"SwiGLUOMul": {SwiGLUOMul, func(g, u float64) (float64, float64) {
			g, u = min(g, 7), max(-7, min(u, 7))+1
			return g * sigmoidOf(1.702*g) * u, g * 8
		}},
	}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for n := range 70 {
			if n == 69 {
				n = 2500 // several blocks of ones
			}
			gate, up := kerneltest.Random(rng, 2, n), kerneltest.Random(rng, 2, n)
			for i := range gate.Row(0) {
				gate.Row(0)[i] *= 30
				up.Row(0)[i] *= 10
			}
			for name, k := range kinds {
				whole, dst := kerneltest.Guarded(2, n)
				k.f(dst, gate, up)
				kerneltest.CheckGuards(t, whole, 2, n)
				again := gate.Clone()
				if name != "SigmoidMul" {
					k.f(again, again, up)
				} else {
					again = dst
				}
				for r := range 2 {
					for i, g := range gate.Row(r) {
						want, size := k.want(float64(g), float64(up.Row(r)[i]))
						got := float64(dst.Row(r)[i])
						if !(math.Abs(got-want) <= 0x1p-20*math.Abs(size)+1e-33) || again.Row(r)[i] != dst.Row(r)[i] {
							t.Fatalf("%s, n=%d: of %v it is %v and %v in place, want %v", name, n, g, got, again.Row(r)[i], want)
						}
					}
				}
			}
		}
		for _, f := range kinds {
			x, one := tensor.FromSlice(1, 3, []float32{float32(math.NaN()), -1e20, 1e20}), tensor.FromSlice(1, 3, []float32{1, 1, 1})
			dst := tensor.New(1, 3)
			f.f(dst, x, one)
			if got := dst.Row(0); got[0] == got[0] || got[1] != got[1] || got[2] != got[2] {
				t.Errorf("of NaN, −1e20, 1e20 it is %v", got)
			}
		}
	})
}

func TestRMSNorm(t *testing.T) {
	const eps = 1e-5
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, n := range []int{1, 2, 7, 8, 9, 31, 64, 100, 1023, 2500} {
			x, w := kerneltest.Random(rng, 3, n), kerneltest.Random(rng, 1, n)
			whole, dst := kerneltest.Guarded(3, n)
			RMSNorm(dst, x, w.Row(0), eps)
			kerneltest.CheckGuards(t, whole, 3, n)
			for r := range 3 {
				var sum float64
				for _, v := range x.Row(r) {
					sum += float64(v) * float64(v)
				}
				for i, v := range x.Row(r) {
					want := float64(v) / math.Sqrt(sum/float64(n)+eps) * float64(w.Row(0)[i])
					if !near(dst.Row(r)[i], want, 16*kerneltest.Epsilon) {
						t.Fatalf("n=%d: %v, want %v", n, dst.Row(r)[i], want)
					}
				}
			}
		}
	})
}

func TestLogSumExp(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		for _, n := range []int{1, 2, 15, 16, 17, 33, 1024, 1025, 32001} {
			whole, view := kerneltest.Guarded(1, n)
			row := view.Row(0)
			m := math.Inf(-1)
			for i := range row {
				row[i] = float32(rng.NormFloat64() * 5)
				m = max(m, float64(row[i]))
			}
			var sum float64
			for _, v := range row {
				sum += math.Exp(float64(v - float32(m))) // the difference is rounded to float32
			}
			if got := LogSumExp(row); math.Abs(got-(m+math.Log(sum))) > 1e-6 {
				t.Errorf("n=%d: LogSumExp %v, want %v", n, got, m+math.Log(sum))
			}
			kerneltest.CheckGuards(t, whole, 1, n)
		}
		if got := LogSumExp(nil); !math.IsInf(got, -1) {
			t.Errorf("LogSumExp of nothing is %v", got)
		}
	})
}

// Max and Scale, which attention takes, over whole vectors and what is left behind them.
func TestMaxScale(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(15, 16))
		for n := range 70 {
			whole, x := kerneltest.Guarded(1, n)
			row, want := x.Row(0), float32(math.Inf(-1))
			for i := range row {
				row[i] = float32(rng.NormFloat64())
				want = max(want, row[i])
			}
			if got := Max(row); got != want {
				t.Fatalf("n=%d: the largest is %v, want %v", n, got, want)
			}
			was := slices.Clone(row)
			Scale(row, 0.7)
			kerneltest.CheckGuards(t, whole, 1, n)
			for i, v := range was {
				if row[i] != v*0.7 {
					t.Fatalf("n=%d: 0.7·%v is %v", n, v, row[i])
				}
			}
		}
	})
}

func TestAdd(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	a, b := kerneltest.Random(rng, 3, 37), kerneltest.Random(rng, 3, 37)
	sum := a.Clone()
	Add(sum, b)
	for i := range 3 {
		for j, v := range sum.Row(i) {
			if v != a.Row(i)[j]+b.Row(i)[j] {
				t.Fatalf("(%d,%d): %v", i, j, v)
			}
		}
	}
}

// RoPE against complex multiplication; dimensions past those that rotate stay.
func TestRoPE(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, c := range []struct{ heads, headDim, half int }{{1, 2, 1}, {3, 8, 4}, {2, 64, 32}, {2, 80, 20}, {1, 6, 3}} {
		for _, style := range []RoPEStyle{RoPEPairs, RoPEHalves} {
			const tokens = 5
			x := kerneltest.Random(rng, tokens, c.heads*c.headDim)
			cos, sin := tensor.New(tokens, c.half), tensor.New(tokens, c.half)
			for i := range cos.Data {
				s, co := math.Sincos(rng.Float64() * 7)
				cos.Data[i], sin.Data[i] = float32(co), float32(s)
			}
			was := x.Clone()
			RoPE(x, c.headDim, cos, sin, style)
			for tok := range tokens {
				for h := range c.heads {
					in, out := was.Row(tok)[h*c.headDim:], x.Row(tok)[h*c.headDim:]
					for i := range c.half {
						a, b := 2*i, 2*i+1
						if style == RoPEHalves {
							a, b = i, i+c.half
						}
						z := complex(float64(in[a]), float64(in[b])) *
							complex(float64(cos.Row(tok)[i]), float64(sin.Row(tok)[i]))
						size := math.Abs(float64(in[a])) + math.Abs(float64(in[b]))
						if math.Abs(float64(out[a])-real(z)) > 4*kerneltest.Epsilon*size ||
							math.Abs(float64(out[b])-imag(z)) > 4*kerneltest.Epsilon*size {
							t.Fatalf("%+v style %d: (%v,%v), want %v", c, style, out[a], out[b], z)
						}
					}
					for i := 2 * c.half; i < c.headDim; i++ {
						if out[i] != in[i] {
							t.Fatalf("%+v: dimension %d changed", c, i)
						}
					}
				}
			}
		}
	}
}

// TestRoPETiers compares the vector loops with the plain one, bit for bit, over lengths and padding.
func TestRoPETiers(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(13, 14))
		for half := range 70 {
			for _, s := range []struct{ heads, rest int }{{1, 0}, {3, 0}, {2, 5}} {
				for _, style := range []RoPEStyle{RoPEPairs, RoPEHalves} {
					headDim := max(1, 2*half+s.rest)
					whole, x := kerneltest.Guarded(2, s.heads*headDim)
					cos, sin := tensor.New(2, half), tensor.New(2, half)
					for i := range cos.Data {
						si, co := math.Sincos(rng.Float64() * 7)
						cos.Data[i], sin.Data[i] = float32(co), float32(si)
					}
					want := tensor.New(2, x.Cols)
					for tok := range 2 {
						for i := range x.Row(tok) {
							x.Row(tok)[i] = float32(rng.NormFloat64())
						}
						copy(want.Row(tok), x.Row(tok))
						ropeGo(want.Row(tok), headDim, cos.Row(tok), sin.Row(tok), 0, style)
					}
					RoPE(x, headDim, cos, sin, style)
					kerneltest.CheckGuards(t, whole, 2, x.Cols)
					for tok := range 2 {
						if !slices.Equal(x.Row(tok), want.Row(tok)) {
							t.Fatalf("half %d, %+v, style %d: %v, want %v", half, s, style, x.Row(tok), want.Row(tok))
						}
					}
				}
			}
		}
	})
}

func BenchmarkElementwise(b *testing.B) {
	const rows, n = 16, 4096
	rng := rand.New(rand.NewPCG(1, 1))
	x, y, dst := kerneltest.Random(rng, rows, n), kerneltest.Random(rng, rows, n), tensor.New(rows, n)
	cos, sin := kerneltest.Random(rng, rows, 32), kerneltest.Random(rng, rows, 32)
	for name, f := range map[string]func(){
		"SiLUMul":    func() { SiLUMul(dst, x, y) },
		"GELUMul":    func() { GELUMul(dst, x, y) },
		"GELU":       func() { GELU(dst, x) },
		"SiLU":       func() { SiLU(dst, x) },
		"SwiGLUOMul": func() { SwiGLUOMul(dst, x, y) },
		"LayerNorm":  func() { LayerNorm(dst, x, y.Row(0), y.Row(1), 1e-5) },
		"RMSNorm":    func() { RMSNorm(dst, x, y.Row(0), 1e-5) },
		"LogSumExp":  func() { LogSumExp(x.Row(0)) },
		"RoPEPairs":  func() { RoPE(dst, 64, cos, sin, RoPEPairs) },
		"RoPEHalves": func() { RoPE(dst, 64, cos, sin, RoPEHalves) },
	} {
		elements := rows * n
		if name == "LogSumExp" {
			elements = n
		}
		b.Run(fmt.Sprintf("%s/elements", name), func(b *testing.B) { kerneltest.Rate(b, float64(elements), f) })
	}
}
