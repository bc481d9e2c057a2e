package q8_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/blocktest"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// tiers are those that the package has code for.
var tiers = []kernels.Tier{kernels.PureGo, kernels.DotProd, kernels.I8MM, kernels.AVX2, kernels.AVXVNNI, kernels.AVX512, kernels.AMX}

// levelTypes are the types whose weights are whole numbers times a scale.
func levelTypes() []*ggml.Type {
	return slices.DeleteFunc(slices.Clone(blocktest.Types), func(t *ggml.Type) bool { return t.Levels == nil })
}

// TestLevels wants the values of the plain decoder from levels, scales and minimums.
func TestLevels(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	if n := len(levelTypes()); n != 25 {
		t.Errorf("%d blocktest.Types have levels", n)
	}
	for _, typ := range levelTypes() {
		const n = 1024
		w := blocktest.Weights(rng, typ, 1, n)
		lv := typ.Levels
		want, level := make([]float32, n), make([]int8, n)
		scale, minimum := make([]float32, n/lv.Group), make([]float32, n/lv.Group)
		typ.Unpack(want, w.Data)
		lv.Unpack(level, scale, minimum, w.Data)
		for j, v := range want {
			g := j / lv.Group
			if got := float32(scale[g]*float32(level[j])) - minimum[g]; got != v {
				t.Fatalf("%v: weight %d is %v, want %v", typ, j, got, v)
			}
			if lv.Minimums && level[j] < 0 || !lv.Minimums && minimum[g] != 0 {
				t.Fatalf("%v: weight %d has level %d and minimum %v", typ, j, level[j], minimum[g])
			}
		}
	}
}

// q8Round is the rounding that MatMul documents: codes, and the step of each 32 values.
func q8Round(x []float32) (codes []float64, steps []float64) {
	largest := func(x []float32) (m float64) {
		for _, v := range x {
			m = max(m, math.Abs(float64(v)))
		}
		return m
	}
	most := float32(largest(x))
	if most < 0x1p-64 {
		return make([]float64, len(x)), make([]float64, len(x)/32)
	}
	for g := 0; g < len(x); g += 32 {
		e := 0
		for e > -32 && largest(x[g:g+32]) <= math.Ldexp(float64(most), e-1) {
			e--
		}
		steps = append(steps, math.Ldexp(float64(most/127), e))
		for _, v := range x[g : g+32] {
			codes = append(codes, math.RoundToEven(float64(v*(127/most*float32(math.Ldexp(1, -e))))))
		}
	}
	return codes, steps
}

// q8Inputs are of all magnitudes that steps must follow.
func q8Inputs(rng *rand.Rand, rows, cols int) *tensor.Matrix {
	x := tensor.New(rows+1, cols+3).View(0, rows, 3, cols+3) // rows begin anywhere
	for i := range rows {
		row := x.Row(i)
		for g := 0; g < cols; g += 32 {
			size := math.Ldexp(1, []int{0, 0, 0, -1, 1, 3, -7, -40}[rng.IntN(8)])
			for j := range row[g : g+32] {
				row[g+j] = float32(size * rng.NormFloat64())
			}
			switch rng.IntN(8) {
			case 0:
				clear(row[g : g+32])
			case 1: // at the bounds of codes
				for j := range row[g : g+32] {
					row[g+j] = float32(math.Copysign(size, rng.Float64()-0.5))
				}
			}
		}
		switch rng.IntN(10) {
		case 0:
			clear(row)
		case 1:
			for j := range row {
				row[j] *= 0x1p-70
			}
		case 2:
			for j := range row {
				row[j] *= 0x1p100
			}
		}
	}
	return x
}

// product is X̂·Wᵀ in float64, and what its sums may differ by: sums of integers are exact, so the error is at most that of
// adding the groups' terms one after the other, a rounding for each term, and a few for scaling and adding up.
type product struct {
	w         *kernels.Weights
	x         *tensor.Matrix
	sum, size []float64 // tokens×out; size is the sum of the terms' magnitudes
}

func newProduct(w *kernels.Weights, x *tensor.Matrix) *product {
	lv := w.Format.Levels
	n := w.Cols / lv.Group
	p := &product{w: w, x: x, sum: make([]float64, x.Rows*w.Rows), size: make([]float64, x.Rows*w.Rows)}
	level, scale, minimum := make([]int8, w.Cols), make([]float32, n), make([]float32, n)
	codes, steps := make([][]float64, x.Rows), make([][]float64, x.Rows)
	for i := range x.Rows {
		codes[i], steps[i] = q8Round(x.Row(i))
	}
	for o := range w.Rows {
		lv.Unpack(level, scale, minimum, w.Row(o))
		for i := range x.Rows {
			var sum, size float64
			for g := range n {
				var dot, total float64
				for j := g * lv.Group; j < (g+1)*lv.Group; j++ {
					dot += codes[i][j] * float64(level[j])
					total += codes[i][j]
				}
				step := steps[i][g*lv.Group/32]
				dot, total = dot*step*float64(scale[g]), total*step*float64(minimum[g])
				sum += dot - total
				size += math.Abs(dot) + math.Abs(total)
			}
			p.sum[i*w.Rows+o], p.size[i*w.Rows+o] = sum, size
		}
	}
	return p
}

// check compares dst with was + X̂·Wᵀ.
func (p *product) check(t *testing.T, what string, dst, was *tensor.Matrix) {
	t.Helper()
	n := p.w.Cols / p.w.Format.Levels.Group
	for i := range dst.Rows {
		for o, got := range dst.Row(i) {
			before := float64(was.Row(i)[o])
			want, size := before+p.sum[i*p.w.Rows+o], math.Abs(before)+p.size[i*p.w.Rows+o]
			if d := math.Abs(float64(got) - want); !(d <= float64(2*n+8)*0x1p-24*size) {
				t.Fatalf("%s: %v %d×%d: [%d %d] is %v, want %v", what, p.w.Format.Name, p.w.Rows, p.w.Cols, i, o, got, want)
			}
		}
	}
}

// guardedLike returns a copy of m within guards, at an address that no vector is aligned to.
func guardedLike(m *tensor.Matrix) (view *tensor.Matrix, check func() bool) {
	const guard = 1e30
	whole := tensor.New(m.Rows+2, m.Cols+5)
	for i := range whole.Data {
		whole.Data[i] = guard
	}
	view = whole.View(1, m.Rows+1, 1, m.Cols+1)
	for i := range m.Rows {
		copy(view.Row(i), m.Row(i))
	}
	return view, func() bool {
		for i := range whole.Rows {
			for j, v := range whole.Row(i) {
				if inside := i >= 1 && i <= m.Rows && j >= 1 && j <= m.Cols; !inside && v != guard {
					return false
				}
			}
		}
		return true
	}
}

// TestMatMul takes every type in every tier through all remainders of tokens, outputs and groups.
func TestMatMul(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var products []*product
	for _, typ := range levelTypes() {
		for i := range 36 {
			tokens, out, in := i%13, 1+(i*29)%71, typ.BlockLen*(1+i%(19*32/typ.BlockLen))
			if i == 35 {
				tokens, out, in = 110, 70, 768 // several parts
			} else if (testing.Short() || typ.ByRequest || typ.Words != nil) && i%5 > 0 { // the blocks of few models have a few shapes
				continue
			}
			products = append(products, newProduct(blocktest.Weights(rng, typ, out, in), q8Inputs(rng, tokens, in)))
		}
	}
	kerneltest.OnTiers(t, tiers, func(t *testing.T) {
		for _, p := range products {
			was := tensor.New(p.x.Rows, p.w.Rows)
			dst, intact := guardedLike(was)
			q8.MatMul(p.x, kernels.Product{Dst: dst, W: p.w})
			p.check(t, "store", dst, was)
			for i := range was.Data {
				was.Data[i] = float32(rng.NormFloat64())
			}
			sum, sumIntact := guardedLike(was)
			q8.MatMulAdd(sum, p.x, p.w)
			p.check(t, "add", sum, was)
			if !intact() || !sumIntact() {
				t.Fatalf("%s: %d tokens, %d×%d: wrote outside dst", p.w.Format.Name, p.x.Rows, p.w.Rows, p.w.Cols)
			}
		}
	})
}

// TestMatMulTogether wants products that share an input to be those that each has alone, and the same for every number
// of threads.
func TestMatMulTogether(t *testing.T) {
	kerneltest.OnTiers(t, tiers, func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
		rng := rand.New(rand.NewPCG(5, 6))
		const tokens, in = 215, 768
		x := q8Inputs(rng, tokens, in)
		var products []kernels.Product
		var alone []*tensor.Matrix
		runtime.GOMAXPROCS(1)
		for i, typ := range levelTypes() {
			out := 20 + 17*(i%12)
			if unpack.DecoderLevels(&typ.Format) == nil {
				out = 1 + i%12 // the plain product, a slow one, computes one after the other
			}
			p := kernels.Product{Dst: tensor.New(tokens, out), W: blocktest.Weights(rng, typ, out, in)}
			products, alone = append(products, p), append(alone, tensor.New(tokens, out))
			q8.MatMul(x, kernels.Product{Dst: alone[i], W: p.W})
		}
		for _, threads := range []int{1, 2, 5} {
			if testing.Short() && threads == 1 {
				continue
			}
			runtime.GOMAXPROCS(threads)
			q8.MatMul(x, products...)
			for i, p := range products {
				if !slices.Equal(alone[i].Data, p.Dst.Data) {
					t.Fatalf("%s, %d threads: another result", p.W.Format.Name, threads)
				}
			}
		}
	})
}

// TestMatMulNotFinite wants tokens with a NaN or an infinity, and only those, to have NaN results.
func TestMatMulNotFinite(t *testing.T) {
	kerneltest.OnTiers(t, tiers, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			x, dst := tensor.New(9, 256), tensor.New(9, 5)
			for i := range x.Data {
				x.Data[i] = float32(rng.NormFloat64())
			}
			x.Row(4)[77] = float32(bad)
			q8.MatMul(x, kernels.Product{Dst: dst, W: blocktest.Weights(rng, ggml.Q4_K, 5, 256)})
			for i := range dst.Rows {
				for _, v := range dst.Row(i) {
					if (v != v) != (i == 4) {
						t.Errorf("%v: token %d has the result %v", bad, i, v)
					}
				}
			}
		}
	})
}

func TestMatMulRefuses(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("float16 weights are accepted")
		}
	}()
	q8.MatMul(tensor.New(1, 32), kernels.Product{Dst: tensor.New(1, 1),
		W: &kernels.Weights{Rows: 1, Cols: 32, Format: &ggml.F16.Format, Data: make([]byte, 64)}})
}

// BenchmarkMatMul counts 2·tokens·out·in operations.
func BenchmarkMatMul(b *testing.B) {
	const out, in = 5632, 2048
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tokens := range []int{8, 64, 1024} {
		x, dst := tensor.New(tokens, in), tensor.New(tokens, out)
		for i := range x.Data {
			x.Data[i] = rng.Float32()
		}
		for _, typ := range levelTypes() {
			b.Run(fmt.Sprintf("%d/%v", tokens, typ), func(b *testing.B) {
				w := blocktest.Weights(rng, typ, out, in)
				kerneltest.Rate(b, 2*float64(tokens)*out*in, func() { q8.MatMul(x, kernels.Product{Dst: dst, W: w}) })
			})
		}
	}
}

// TestTiles wants the results of AMX to be those of AVX-512, and up to 512 columns the plain product's, bit for bit: the order of sums
// is theirs.
func TestTiles(t *testing.T) {
	if kernels.BestTier() < kernels.AMX {
		t.Skip("no AMX here")
	}
	defer kernels.SetTier(kernels.SetTier(kernels.AMX))
	rng := rand.New(rand.NewPCG(11, 12))
	for i, typ := range levelTypes() {
		if typ.Levels.Group != 32 || unpack.DecoderLevels(&typ.Format) == nil {
			continue
		}
		for j := i % 3; j < 19; j += 3 {
			tokens, out, in := 13+(5*i+3*j)%20, 1+(11*i+29*j)%71, typ.BlockLen*(1+j*32/typ.BlockLen)
			w, x := blocktest.Weights(rng, typ, out, in), q8Inputs(rng, tokens, in)
			multiply := func(tier kernels.Tier) *tensor.Matrix {
				kernels.SetTier(tier)
				dst := tensor.New(tokens, out)
				for k := range dst.Data {
					dst.Data[k] = float32(k)
				}
				if j%2 > 0 {
					q8.MatMulAdd(dst, x, w)
				} else {
					q8.MatMul(x, kernels.Product{Dst: dst, W: w})
				}
				return dst
			}
			got, want := multiply(kernels.AMX), multiply(kernels.AVX512)
			if !slices.Equal(got.Data, want.Data) {
				t.Fatalf("%v: %d tokens, %d×%d: not AVX-512's results", typ, tokens, out, in)
			}
			if in <= 512 && !slices.Equal(got.Data, multiply(kernels.PureGo).Data) {
				t.Fatalf("%v: %d tokens, %d×%d: not the plain results", typ, tokens, out, in)
			}
		}
	}
}
