package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// How scales are chosen. Everywhere the error to minimise is Σ importance·(w−ŵ)² with ŵ the nearest value on the grid,
// measured with the decoder's own arithmetic. For fixed scales the best codes are the nearest; for fixed codes the best
// scales solve a least-squares problem; alternating the two converges to one of many local minima, so each search
// starts from many candidates. The searches are in fit_scale.go, fit_min.go, fit_super.go and fit_super_min.go; the
// loops that take the time are the measure functions in this file.

// newGrid returns g with the Fit that suits it.
func newGrid(g quant.Grid) *quant.Grid {
	grid := &g
	lv := newLevels(grid)
	super := g.Groups() > 1
	switch {
	case super && g.MinMax > 0:
		grid.Fit = func(b *quant.Block, w, importance []float32) { fitSuperMin(grid, lv, b, w, importance) }
	case super:
		grid.Fit = func(b *quant.Block, w, importance []float32) { fitSuper(grid, lv, b, w, importance) }
	case g.MinMax > 0:
		grid.Fit = func(b *quant.Block, w, importance []float32) { fitMin(grid, lv, b, w, importance) }
	default:
		grid.Fit = func(b *quant.Block, w, importance []float32) { fitScale(grid, lv, b, w, importance) }
	}
	return grid
}

// levels rounds to a grid's levels.
type levels struct {
	lo, hi float32 // the outermost
	// table holds the nearest level of every half-open interval of length ½ from −128 on: with whole numbers for levels,
	// no midpoint of two lies inside one. nil where the levels are all the whole numbers from lo to hi.
	table *[512]float32
}

func newLevels(g *quant.Grid) *levels {
	lv := &levels{lo: g.Level(int8(g.CodeMin)), hi: g.Level(int8(g.CodeMax))}
	if g.Codebook != nil {
		lv.table = new([512]float32)
		for k := range lv.table {
			lv.table[k] = g.Level(g.NearestLevel(float32(k-256)/2 + 0.25))
		}
	}
	return lv
}

// roundMagic is 1.5·2²³: adding and subtracting it rounds a float32 below 2²² to a whole number.
const roundMagic = 3 << 22

// fit sums up a group's weights on the grid: err is Σ wt·(x−ŵ)², and l, ll and lx are the sums Σ wt·l, Σ wt·l² and
// Σ wt·l·x over the levels l that the weights were rounded to.
type fit struct{ err, l, ll, lx float32 }

// measure rounds x to scale·level; it leaves l at zero.
func (lv *levels) measure(x, wt []float32, scale float32) fit {
	if lv.table != nil {
		return measureTable(lv.table, x, wt, scale, lv.lo, lv.hi)
	}
	return measureScale(x, wt, scale, lv.lo, lv.hi)
}

// measureScale measures the levels lo, lo+1, ..., hi.
func measureScale(x, wt []float32, scale, lo, hi float32) (f fit) {
	inv := inverse(scale)
	wt = wt[:len(x)]
	for j, v := range x {
		q := v * inv
		if q < lo {
			q = lo
		} else if q > hi {
			q = hi
		}
		q = float32(q+roundMagic) - roundMagic
		d := v - float32(scale*q)
		wq := wt[j] * q
		f.err += float32(float32(wt[j]*d) * d)
		f.ll += float32(wq * q)
		f.lx += float32(wq * v)
	}
	return f
}

// measureTable measures the levels of a codebook.
func measureTable(table *[512]float32, x, wt []float32, scale, lo, hi float32) (f fit) {
	inv := inverse(scale)
	wt = wt[:len(x)]
	for j, v := range x {
		q := v * inv
		if q < lo {
			q = lo
		} else if q > hi {
			q = hi
		}
		q = table[int(2*q+256)&511]
		d := v - float32(scale*q)
		wq := wt[j] * q
		f.err += float32(float32(wt[j]*d) * d)
		f.ll += float32(wq * q)
		f.lx += float32(wq * v)
	}
	return f
}

// measureMin rounds x to scale·q − minimum with q in 0..hi.
func measureMin(x, wt []float32, scale, minimum, hi float32) (f fit) {
	inv := inverse(scale)
	wt = wt[:len(x)]
	for j, v := range x {
		q := (v + minimum) * inv
		if q < 0 {
			q = 0
		} else if q > hi {
			q = hi
		}
		q = float32(q+roundMagic) - roundMagic
		d := v - (float32(scale*q) - minimum)
		wq := wt[j] * q
		f.err += float32(float32(wt[j]*d) * d)
		f.l += wq
		f.ll += float32(wq * q)
		f.lx += float32(wq * v)
	}
	return f
}

// inverse returns 1/scale, and 0 for 0, which rounds everything to one code.
func inverse(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return 1 / scale
}

// maxWeight bounds the weights that are fitted, so that no sum of squares overflows. No grid reaches so far: Q6_K, which
// reaches farthest, ends at 65504·128·32.
const maxWeight = 1 << 30

// group is what a search knows of the columns that share a scale.
type group struct {
	x, wt []float32
	w, wx float32 // Σ wt, Σ wt·x
}

// scratch holds a block as the searches want it: finite weights of moderate size, importances in 0..1.
type scratch struct {
	x, wt  [maxBlock]float32
	groups [maxGroups]group
}

// deadImportance is the importance of columns in a group where all have none. They share scales with others, so they
// must not weigh, but their group's own scale is free to suit them.
const deadImportance = 1e-18

// load fills s from a block's weights and importances, which may be nil, and returns the groups.
func (s *scratch) load(g *quant.Grid, w, importance []float32) []group {
	groups := s.groups[:g.Groups()]
	var largest float32
	for _, v := range importance {
		largest = max(largest, v)
	}
	largest = min(largest, math.MaxFloat32)
	for k := range groups {
		lo, hi := k*g.Group, (k+1)*g.Group
		gr := group{x: s.x[lo:hi], wt: s.wt[lo:hi]}
		for j := range gr.x {
			gr.x[j] = min(max(w[lo+j], -maxWeight), maxWeight)
			gr.wt[j] = 1
		}
		if largest > 0 {
			dead := true
			for j := range gr.wt {
				v := max(min(importance[lo+j], largest)/largest, 0)
				gr.wt[j] = v
				dead = dead && v == 0
			}
			for j := range gr.wt {
				if dead {
					gr.wt[j] = deadImportance
				}
			}
		}
		for j, v := range gr.x {
			gr.w += gr.wt[j]
			gr.wx += float32(gr.wt[j] * v)
		}
		groups[k] = gr
	}
	return groups
}

// largest returns the weight of largest magnitude.
func (gr *group) largest() float32 {
	var v float32
	for _, x := range gr.x {
		if abs(x) > abs(v) {
			v = x
		}
	}
	return v
}

func abs(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }

const (
	minNormalF16 = 1.0 / (1 << 14)
	quantumF16   = 1.0 / (1 << 24) // the distance of subnormal float16 values
)

// roundScale returns v rounded to float16, saturating.
func roundScale(v float32) float32 {
	switch a := abs(v); {
	case a >= maxF16:
		return float32(math.Copysign(maxF16, float64(v)))
	case a < minNormalF16:
		const magic = 1.5 * (1 << 23) * quantumF16
		return float32(v+magic) - magic
	}
	b := math.Float32bits(v)
	return math.Float32frombits((b + 0xfff + b>>13&1) &^ 0x1fff)
}

// stepF16 returns the distance from the float16 value v to the next larger magnitude.
func stepF16(v float32) float32 {
	b := math.Float32bits(v) & 0x7f800000
	return max(math.Float32frombits(b)/1024, quantumF16)
}
