package gptq

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// plainRefine is refine, one row and one block at a time.
func plainRefine(f *Factor, q *quant.Weight, w *tensor.Matrix, passes int) {
	n, full := w.Cols, f.damped(0, w.Cols)
	g := q.Grid.(*quant.Affine)
	// G = (W−Ŵ)H is half the negative gradient; it is kept up to date.
	values := tensor.New(w.Rows, n)
	q.DecodeTo(values)
	diff := tensor.New(w.Rows, n)
	for r := range w.Rows {
		a, b, d := w.Row(r), values.Row(r), diff.Row(r)
		for j := range d {
			d[j] = a[j] - b[j]
		}
	}
	grad := tensor.New(w.Rows, n)
	gemm.NN(grad, 1, diff, full, kernels.F32)
	step := g.Block
	deltas := tensor.New(w.Rows, min(step, n))
	moved := make([]int, w.Rows)
	for range passes {
		clear(moved)
		for i0 := 0; i0 < n; i0 += step {
			i1 := min(i0+step, n)
			d := deltas.View(0, w.Rows, 0, i1-i0)
			h := full.View(i0, i1, i0, i1)
			ones := plainSums(h, g)
			kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
				t := newPlainDescent(g, h, ones)
				for r := lo; r < hi; r++ {
					copy(t.grad, grad.Row(r)[i0:i1])
					copy(t.old, values.Row(r)[i0:i1])
					t.values = values.Row(r)[i0:i1]
					for b := range (i1 - i0) / g.Block {
						blk := q.Block(r, i0/g.Block+b)
						moved[r] += t.block(&blk, b*g.Block)
						q.SetBlock(r, i0/g.Block+b, &blk)
					}
					out := d.Row(r)
					for j := range out {
						out[j] = t.values[j] - t.old[j]
					}
				}
			})
			gemm.NN(grad, -1, d, full.View(i0, i1, 0, n), kernels.F32)
		}
		total := 0
		for _, m := range moved {
			total += m
		}
		if total == 0 {
			return
		}
	}
}

// plainSums returns, for each row of h, the sums over each group of the block that the row's column is in.
func plainSums(h *tensor.Matrix, g *quant.Affine) *tensor.Matrix {
	sums := tensor.New(h.Rows, g.Groups())
	for c := range h.Rows {
		c0 := c / g.Block * g.Block
		for j, v := range h.Row(c)[c0 : c0+g.Block] {
			sums.Row(c)[j/g.Group] += v
		}
	}
	return sums
}

// plainDescent is coordinate descent on some whole blocks of one row.
type plainDescent struct {
	g                 *quant.Affine
	h                 *tensor.Matrix // the Hessian of these columns
	ones              *tensor.Matrix // its plainSums
	grad, values, old []float32
	level             []float32
}

func newPlainDescent(g *quant.Affine, h, ones *tensor.Matrix) *plainDescent {
	return &plainDescent{
		g: g, h: h, ones: ones, grad: make([]float32, h.Rows), old: make([]float32, h.Rows),
		level: make([]float32, g.Block),
	}
}

// block improves one block, whose columns start at c0, and returns how many numbers moved.
func (t *plainDescent) block(b *quant.Block, c0 int) int {
	g := t.g
	moved := 0
	if t.super(b, c0) {
		moved++
	}
	for k := range g.Groups() {
		if g.Scales.Super && t.scale(b, k, c0+k*g.Group) {
			moved++
		}
		moved += t.codes(b, k, c0+k*g.Group)
	}
	return moved
}

// move changes the value of column c.
func (t *plainDescent) move(c int, v float32) {
	d := v - t.values[c]
	t.values[c] = v
	vector.Axpy(t.grad, -d, t.h.Row(c))
}

// codes moves the codes of group k.
func (t *plainDescent) codes(b *quant.Block, k, c0 int) int {
	g := t.g
	scale, minimum := t.g.Scale(b, k)
	codes := b.Codes[k*g.Group : (k+1)*g.Group]
	moved := 0
	for j, old := range codes {
		c := c0 + j
		code := g.Nearest(t.values[c]+t.grad[c]/t.h.Row(c)[c], scale, minimum)
		if code == old {
			continue
		}
		codes[j] = code
		t.move(c, float32(scale*g.Level(code))-minimum)
		moved++
	}
	return moved
}

// square returns column j's share of lᵀHl over the columns from c0 on: that of the products with itself, and twice with
// those before it.
func (t *plainDescent) square(c0, j int, l []float32) float64 {
	h := t.h.Row(c0 + j)[c0:]
	return float64(l[j] * (2*vector.Dot(h[:j], l) + h[j]*l[j]))
}

// scale moves the scale and the minimum of group k.
func (t *plainDescent) scale(b *quant.Block, k, c0 int) bool {
	g := t.g
	n := g.Group
	level := t.level[:n]
	for j, code := range b.Codes[k*n : (k+1)*n] {
		level[j] = g.Level(code)
	}
	var e quant.Quadratic
	for j, l := range level {
		gr := t.grad[c0+j]
		e.P += float64(l * gr)
		e.Q -= float64(gr)
		e.A += t.square(c0, j, level)
		ones := t.ones.Row(c0 + j)[k]
		e.B -= float64(l * ones)
		e.C += float64(ones)
	}
	d, dmin := float64(b.D), float64(b.DMin)
	sc, m := float64(b.Sc[k]), float64(b.M[k])
	if d == 0 {
		return false
	}
	// Of all scales and minimums there are, the least: the descent looks at some neighbours.
	best, bestSc, bestM := -1e-9*math.Abs(e.A), sc, m
	most := 0
	if g.HasMinimum() && dmin != 0 {
		most = g.Minimums.Max
	}
	for s := g.Scales.Min; s <= g.Scales.Max; s++ {
		for i := range most + 1 {
			mm := m
			if most > 0 {
				mm = float64(i)
			}
			if v := e.At((float64(s)-sc)*d, (mm-m)*dmin); v < best {
				best, bestSc, bestM = v, float64(s), mm
			}
		}
	}
	if bestSc == sc && bestM == m {
		return false
	}
	b.Sc[k], b.M[k] = int8(bestSc), int8(bestM)
	t.apply(b, k, c0)
	return true
}

// apply recomputes the values of group k.
func (t *plainDescent) apply(b *quant.Block, k, c0 int) {
	scale, minimum := t.g.Scale(b, k)
	n := t.g.Group
	for j, code := range b.Codes[k*n : (k+1)*n] {
		if v := float32(scale*t.g.Level(code)) - minimum; v != t.values[c0+j] {
			t.move(c0+j, v)
		}
	}
}

// super moves the block's scale and minimum, which multiply those of its groups.
func (t *plainDescent) super(b *quant.Block, c0 int) bool {
	g := t.g
	n := g.Block
	level := t.level[:n]
	for j, code := range b.Codes {
		k := j / g.Group
		level[j] = g.Level(code) * float32(b.Sc[k])
	}
	var e quant.Quadratic
	for j, l := range level {
		gr := t.grad[c0+j]
		e.P += float64(l * gr)
		e.A += t.square(c0, j, level)
		if g.HasMinimum() {
			var hm float32
			for k, v := range t.ones.Row(c0 + j) {
				hm += float32(b.M[k]) * v
			}
			m := float32(b.M[j/g.Group])
			e.Q -= float64(m * gr)
			e.B -= float64(l * hm)
			e.C += float64(m * hm)
		}
	}
	x, y := e.P/e.A, 0.0
	if g.HasMinimum() && e.C > 0 {
		if det := e.A*e.C - e.B*e.B; det > 1e-9*e.A*e.C {
			x, y = (e.P*e.C-e.Q*e.B)/det, (e.A*e.Q-e.B*e.P)/det
		}
	}
	d := tensor.RoundF16(b.D + float32(x))
	dmin := tensor.RoundF16(b.DMin + float32(y))
	if d-d != 0 || dmin-dmin != 0 || d == b.D && dmin == b.DMin {
		return false
	}
	if e.At(float64(d)-float64(b.D), float64(dmin)-float64(b.DMin)) >= 0 {
		return false
	}
	b.D, b.DMin = d, dmin
	for k := range g.Groups() {
		t.apply(b, k, c0+k*g.Group)
	}
	return true
}

// TestRefine compares the descent by lanes of rows with the plain one. Sums in another order may turn one number, and all
// after it: what comes of it must be as good.
func TestRefine(t *testing.T) {
	const cols = 768
	w, in := problem(1, 37, cols, 2*cols)
	for _, typ := range ggml.Types {
		g, ok := typ.Grid.(*quant.Affine)
		if !ok {
			continue
		}
		f, err := NewFactor(t.Context(), in.H, g, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for passes := 1; passes <= 3; passes += 2 {
			if testing.Short() && passes > 1 {
				break
			}
			start := quant.NewWeight(g, w.Rows, cols)
			if err := f.inBands(t.Context(), w.Rows, f.sweep(start, g, w)); err != nil {
				t.Fatal(err)
			}
			residual := tensor.New(w.Rows, cols)
			gemm.MatMulF32(residual, inOrder(f, w, start, &band{r1: w.Rows}), transposed(f.l))
			swept, want := outputError(w, start, in.H), clone(start)
			plainRefine(f, want, w, passes)
			e := outputError(w, want, in.H)
			previous := kernels.CurrentTier()
			for _, tier := range kernels.Tiers() {
				got := clone(start)
				kernels.SetTier(tier)
				refine := f.refine(got, w, passes)
				err := f.inBands(t.Context(), w.Rows, func(ctx context.Context, b *band) error {
					for r := range b.residual.Rows {
						copy(b.residual.Row(r), residual.Row(b.r0+r))
					}
					return refine(ctx, b)
				})
				kernels.SetTier(previous)
				if err != nil {
					t.Fatal(err)
				}
				differ := 0
				for i, c := range want.Codes {
					if got.Codes[i] != c {
						differ++
					}
				}
				gain := (swept - outputError(w, got, in.H)) / (swept - e)
				least, most := 0.98, 1.05
				if !tier.Rounds() {
					least, most = 0.99, 1.01
				}
				if !(gain >= least && gain <= most) || differ > len(want.Codes)/20 {
					t.Errorf("%s, %d passes, %s: %.4f of the plain descent's gain, %d of %d codes differ", typ, passes, tier,
						gain, differ, len(want.Codes))
				}
			}
		}
	}
}

// TestGradient compares what the sweep leaves as E·L, and what becomes of it, with products of the errors E themselves.
func TestGradient(t *testing.T) {
	for typ, cols := range map[*ggml.Type]int{ggml.Q4_0: 544, ggml.IQ3_XXS: 512} { // more than is gathered at a time
		w, in := problem(2, 17, cols, cols+1)
		for _, opt := range []Options{{}, {StaticScales: true}} {
			f, err := NewFactor(t.Context(), in.H, typ.Grid, opt)
			if err != nil {
				t.Fatal(err)
			}
			previous := kernels.CurrentTier()
			for _, tier := range kernels.Tiers() {
				kernels.SetTier(tier)
				q := quant.NewWeight(typ.Grid, w.Rows, cols)
				var sweep bandStep
				if g, ok := typ.Grid.(*quant.Affine); ok {
					sweep = f.sweep(q, g, w)
				} else {
					sweep = f.sweepWords(q, typ.Grid.(*quant.Lattice), w)
				}
				err := f.inBands(t.Context(), w.Rows, func(ctx context.Context, b *band) error {
					if err := sweep(ctx, b); err != nil {
						return err
					}
					residual := b.residual.Clone()
					grad, _ := f.gradient(q, w, f.damping(), b)
					kernels.SetTier(previous)
					e := inOrder(f, w, q, b)
					want := tensor.New(e.Rows, cols)
					gemm.MatMulF32(want, e, transposed(f.l))
					near(t, typ.Name+", "+tier.String()+": residual", residual, want, tier)
					natural := tensor.New(e.Rows, cols)
					for r := range e.Rows {
						for i, c := range f.order {
							natural.Row(r)[c] = e.Row(r)[i]
						}
					}
					gemm.MatMulF32(want, natural, f.damped(0, cols))
					near(t, typ.Name+", "+tier.String()+": gradient", grad, want, kernels.PureGo)
					return nil
				})
				kernels.SetTier(previous)
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// near fails where got is farther from want than rounding explains: of float32, or where a tier has bfloat16 of what the sweep sums.
func near(t *testing.T, what string, got, want *tensor.Matrix, tier kernels.Tier) {
	t.Helper()
	limit := 1e-4
	if tier.Rounds() {
		limit = 1e-2
	}
	var apart, size float64
	for r := range got.Rows {
		for j, v := range want.Row(r) {
			d := float64(got.Row(r)[j] - v)
			apart += d * d
			size += float64(v) * float64(v)
		}
	}
	if e := math.Sqrt(apart / size); !(e < limit) {
		t.Errorf("%s is %.2g of its size from what it should be", what, e)
	}
}

// inOrder returns what w's rows in a band lose to q, their columns in the factor's order.
func inOrder(f *Factor, w *tensor.Matrix, q *quant.Weight, b *band) *tensor.Matrix {
	values := tensor.New(w.Rows, w.Cols)
	q.DecodeTo(values)
	e := tensor.New(b.r1-b.r0, w.Cols)
	for r := range e.Rows {
		for i, c := range f.order {
			e.Row(r)[i] = w.Row(b.r0 + r)[c] - values.Row(b.r0 + r)[c]
		}
	}
	return e
}

func transposed(m *tensor.Matrix) *tensor.Matrix {
	t := m.Clone()
	transpose(t)
	return t
}

// clone returns a copy of what is stored for a weight.
func clone(w *quant.Weight) *quant.Weight {
	c := *w
	c.Codes, c.Sc, c.M = slices.Clone(w.Codes), slices.Clone(w.Sc), slices.Clone(w.M)
	c.D, c.DMin = slices.Clone(w.D), slices.Clone(w.DMin)
	return &c
}
