// Package fit chooses the scales of blocks: the search behind quant.Affine's Fit.
//
// Everywhere the error to minimise is Σ importance·(w−ŵ)² with ŵ the nearest value on the grid, measured with the decoder's
// own arithmetic. For fixed scales the best codes are the nearest; for fixed codes the best scales solve a least-squares
// problem; alternating the two ends in one of many local minima, so every search starts from many candidates. scale.go and
// min.go search the scales of one group, without and with a minimum; few.go those of long blocks of few levels; the super files make those of a super-block's groups
// small multiples of one float16 number; zero.go those with a zero point, and row.go one for a whole row.
//
// All but Q4_1, Q5_1 and the codebooks search 16 groups at a time, in the lanes of vectors (lanes.go): the candidates are
// measured by kernels, in one order of operations on every machine. A super-block's float16 number is chosen without
// measuring, by what the least-squares problem of each group says that rounding its scale costs (search.Lattice).
// How many candidates a search tries was chosen on the matrices of ggml's TestEncodeAgainstGgml: about 10 to 40 for a weight.
package fit

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// Search chooses the scales of one grid's blocks.
type Search struct {
	grid         *quant.Affine
	lv           *levels
	together     int // blocks that are searched at once
	full, coarse searchBlocks
}

type searchBlocks func(g *quant.Affine, lv *levels, b []quant.Block, w, importance []float32)

// New gives g the search that suits it.
func New(g quant.Affine) *quant.Affine {
	grid := &g
	s := &Search{grid: grid, lv: newLevels(grid), together: 1}
	minimums := g.HasMinimum()
	switch {
	case g.Block > maxBlock, g.Group > maxGroup && g.CodeMax-g.CodeMin > 64:
		s.full = fitRow
	case g.Minimums.Kind == quant.ZeroPoint:
		s.full = fitZero
	case g.Scales.Floats != nil:
		s.full = fitFloats
	case g.Scales.Super && minimums:
		s.together, s.full, s.coarse = kernels.Lanes/g.Groups(), fitSuperMins, fitSuperMinsCoarse
	case g.Scales.Super && g.Codebook != nil:
		s.full = fitSuper
	case g.Scales.Super:
		s.together, s.full = kernels.Lanes/g.Groups(), fitSupers
	case minimums:
		s.full = fitMin
	case g.Group > maxGroup && g.CodeMax-g.CodeMin < 4:
		s.full = fitFew
	case g.Codebook != nil, g.Group > maxGroup, g.BF16:
		s.full = fitScale
	default:
		s.together, s.full = kernels.Lanes, fitScales
	}
	if s.coarse == nil {
		s.coarse = s.full
	}
	grid.Fitter = s
	return grid
}

// Fit is quant.Grid's.
func (s *Search) Fit(b []quant.Block, w, importance []float32, e quant.Effort) {
	fit := s.full
	if e == quant.Coarse {
		fit = s.coarse
	}
	for i := 0; i < len(b); i += s.together {
		end := min(i+s.together, len(b))
		lo, hi := i*s.grid.Block, end*s.grid.Block
		var imp []float32
		if importance != nil {
			imp = importance[lo:hi]
		}
		fit(s.grid, s.lv, b[i:end], w[lo:hi], imp)
	}
}

// maxBlock and maxGroups bound every grid's block, so that scratch space can live on the stack.
const (
	maxBlock  = 256
	maxGroups = 16
)

// levels rounds to a grid's levels.
type levels struct {
	lo, hi         float32 // the outermost
	inverseHi      float32 // 1/hi
	loBits, hiBits int32   // 2·lo and 2·hi as measureTable clamps them: see roundMagic
	// table holds the nearest level of each interval of length ½ from −128 on: with whole numbers for levels, no midpoint
	// of two lies inside one. nil where the levels are all the whole numbers from lo to hi.
	table *[512]float32
	// A scale is searched among those that put a large weight at a level of magnitude from, from+step, ... below to.
	from, to, step float32
	// scan are those levels, negated: a scale's sign is that of top over level. coarse are some of them, for weights without
	// importances, where the largest weight matters most: it is best at the end that has one level more.
	scan, coarse []float32
	// ends are ranges for groups with a minimum, for search.SpreadRanges: a step being what the levels divide the group's
	// range into, either end goes to a level somewhat beside its own.
	ends [16][2]float32
	// byMagnitude lists the codes whose levels are not 0, those of the largest levels first: for Exact.
	byMagnitude []int8
}

// The best scale lets the largest weights clip, or leaves the last levels free, the less the more levels there are.
const (
	searchBelow = 1.3 // from = |lo|·(1 − searchBelow/√n) for n levels
	searchAbove = 0.9 // to   = |lo|·(1 + searchAbove/√n)
	coarseStep  = 2   // steps at once without importances
)

func newLevels(g *quant.Affine) *levels {
	lv := &levels{lo: g.Level(int8(g.CodeMin)), hi: g.Level(int8(g.CodeMax))}
	lv.inverseHi = 1 / lv.hi
	lv.byMagnitude = byMagnitude(g)
	n := g.CodeMax - g.CodeMin + 1
	width := -lv.lo / float32(math.Sqrt(float64(n)))
	lv.from, lv.to = -lv.lo-searchBelow*width, -lv.lo+searchAbove*width
	lv.step = (lv.to - lv.from) / float32(10+n/16)
	for level := lv.from; level < lv.to; level += lv.step {
		lv.scan = append(lv.scan, -level)
		// Where nothing is clipped, the scale's sign makes no difference to whole levels, and hardly any to many levels.
		if level > lv.hi+0.5 && n <= 64 {
			lv.scan = append(lv.scan, level)
		}
	}
	for level := lv.from; level < lv.to; level += coarseStep * lv.step {
		lv.coarse = append(lv.coarse, -level)
	}
	for k := range lv.ends {
		beside := [...]float32{0, -0.6, 0.6, 1.2}
		a, b := beside[k/4], beside[k%4]
		lv.ends[k] = [2]float32{1 - (a+b)*lv.inverseHi, -a}
	}
	bits := func(v float32) int32 { return int32(math.Float32bits(v + roundMagic)) }
	if g.Codebook != nil {
		lv.loBits, lv.hiBits = bits(2*lv.lo), bits(2*lv.hi)
		lv.table = new([512]float32)
		for k := range lv.table {
			lv.table[k] = g.Level(g.NearestLevel(float32(k-256)/2 + 0.25))
		}
	}
	return lv
}

// roundMagic is 1.5·2²³. A float32 of magnitude below 2²² plus roundMagic is rounded to a whole number, which stands in
// the low bits. Beyond, the bits of the sum, read as an int32, still are in order, and so can be clamped.
const roundMagic = 3 << 22

// fit describes a group's weights x on the grid: Err is Σ wt·(x−ŵ)², and L, LL and LX are the sums Σ wt·l, Σ wt·l² and
// Σ wt·l·x over the levels l that the weights were rounded to.
type fit search.LevelSums

// measure rounds a group to scale·level − minimum. Codebooks have no minimum.
func (lv *levels) measure(gr *group, scale, minimum float32) fit {
	if lv.table != nil {
		return measureTable(gr.x, gr.wt, scale, lv.table, lv.loBits, lv.hiBits)
	}
	return fit(search.MeasureLevels(gr.x, gr.wt, scale, minimum, int32(lv.lo), int32(lv.hi)))
}

// maxGroup is the longest group that is searched in lanes.
const maxGroup = 32

// tries are scales and minima to be measured on one group.
type tries struct {
	n              int
	scale, minimum [maxTries]float32
	fit            [maxTries]fit
}

// maxTries holds the longest list, that of scan.
const maxTries = 80

func (t *tries) add(scale, minimum float32) {
	t.scale[t.n], t.minimum[t.n] = scale, minimum
	t.n++
}

// measure fills t.fit.
func (t *tries) measure(lv *levels, gr *group) {
	if lv.table != nil {
		for i := range t.n {
			t.fit[i] = lv.measure(gr, t.scale[i], t.minimum[i])
		}
		return
	}
	var c search.Candidates
	for i := 0; i < t.n; i += len(c.Scale) {
		n := copy(c.Scale[:], t.scale[i:t.n])
		copy(c.Minimum[:], t.minimum[i:t.n])
		c.Measure(n, gr.x, gr.wt, int32(lv.lo), int32(lv.hi))
		for k := range n {
			t.fit[i+k] = fit(c.Sums(k))
		}
	}
}

// measureTable is measure for a codebook. Rounding 2v − ½ to a whole number finds v's interval of length ½; on the border
// of two, a midpoint of levels or a place without meaning, either will do.
func measureTable(x, wt []float32, scale float32, table *[512]float32, loBits, hiBits int32) fit {
	const first = 256 - 0x4b400000 // 0x4b400000 are roundMagic's bits
	inv := 2 * inverse(scale)
	wt = wt[:len(x)]
	var e0, e1, l0, l1, ll0, ll1, lx0, lx1 float32
	for j := 0; j+1 < len(x); j += 2 {
		v0, v1 := x[j], x[j+1]
		w0, w1 := wt[j], wt[j+1]
		i0 := int32(math.Float32bits(float32(v0*inv) - 0.5 + roundMagic))
		i1 := int32(math.Float32bits(float32(v1*inv) - 0.5 + roundMagic))
		q0 := table[(min(max(i0, loBits), hiBits)+first)&511]
		q1 := table[(min(max(i1, loBits), hiBits)+first)&511]
		d0 := v0 - float32(scale*q0)
		d1 := v1 - float32(scale*q1)
		e0 += float32(float32(w0*d0) * d0)
		e1 += float32(float32(w1*d1) * d1)
		w0 *= q0
		w1 *= q1
		l0 += w0
		l1 += w1
		ll0 += float32(w0 * q0)
		ll1 += float32(w1 * q1)
		lx0 += float32(w0 * v0)
		lx1 += float32(w1 * v1)
	}
	return fit{e0 + e1, l0 + l1, ll0 + ll1, lx0 + lx1}
}

// inverse returns 1/scale, and 0 for 0, which rounds everything to one level.
func inverse(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return 1 / scale
}

// group is what a search knows of the columns that share a scale.
type group struct {
	x, wt      []float32
	w, wx, wxx float32 // Σ wt, Σ wt·x, Σ wt·x²
	uneven     bool    // not all wt are equal
}

// scratch holds a block as the searches want it.
type scratch struct{ x, wt [maxBlock]float32 }

const (
	// maxWeight bounds the weights that are fitted, so that no sum of squares overflows. No grid reaches so far: the one
	// that reaches farthest, Q6_K, ends at 65504·128·32 < 2²⁹.
	maxWeight = 1 << 30
	// deadImportance is what columns weigh in a group where all have no importance. The group's own scale is then free to
	// suit them, but they leave what groups share alone.
	deadImportance = 1e-18
)

// load fills s with a block's weights and with importances in 0..1, the largest being 1. Without importances, or with
// none above zero, all are 1.
func (s *scratch) load(w, importance []float32) {
	for j, v := range w {
		s.x[j] = min(max(v, -maxWeight), maxWeight)
		s.wt[j] = 1
	}
	var largest float32
	for _, v := range importance {
		largest = max(largest, v)
	}
	if !(largest > 0) {
		return
	}
	largest = min(largest, math.MaxFloat32)
	for j, v := range importance {
		s.wt[j] = max(min(v, largest)/largest, 0)
	}
}

// group returns the n columns from lo on.
func (s *scratch) group(lo, n int) group {
	gr := group{x: s.x[lo : lo+n], wt: s.wt[lo : lo+n]}
	dead := true
	for _, v := range gr.wt {
		dead = dead && v == 0
		gr.uneven = gr.uneven || v != gr.wt[0]
	}
	for j, v := range gr.x {
		if dead {
			gr.wt[j] = deadImportance
		}
		wx := gr.wt[j] * v
		gr.w += gr.wt[j]
		gr.wx += wx
		gr.wxx += float32(wx * v)
	}
	return gr
}

func abs(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }

const (
	minNormalF16 = 1.0 / (1 << 14)
	quantumF16   = 1.0 / (1 << 24) // the distance between subnormal float16 values
)

// roundScale returns v rounded to float16, saturating.
func roundScale(v float32) float32 {
	switch a := abs(v); {
	case a >= encode.MaxF16:
		return float32(math.Copysign(encode.MaxF16, float64(v)))
	case a < minNormalF16:
		const magic = roundMagic * quantumF16 // rounds to multiples of the quantum
		return float32(v+magic) - magic
	}
	b := math.Float32bits(v)
	return math.Float32frombits((b + 0xfff + b>>13&1) &^ 0x1fff)
}

// roundScaleOf is roundScale to what g's D can be. bfloat16 reaches as far as the weights do.
func roundScaleOf(g *quant.Affine, v float32) float32 {
	if g.BF16 {
		return g.RoundScale(v)
	}
	return roundScale(v)
}

// roundScales is roundScale of each lane.
func roundScales(l *kernels.Lane) {
	const minNormal, limit = 0x38800000, 0x477fe000 // float32's bits of 2⁻¹⁴ and of MaxF16
	for i, v := range l {
		b := math.Float32bits(v)
		if b&^(1<<31)-minNormal < limit-minNormal {
			l[i] = math.Float32frombits((b + 0xfff + b>>13&1) &^ 0x1fff)
			continue
		}
		l[i] = roundScale(v)
	}
}

// stepF16 returns the distance from the float16 value v to the next of larger magnitude.
func stepF16(v float32) float32 {
	exponent := math.Float32frombits(math.Float32bits(v) & 0x7f800000)
	return max(exponent/1024, quantumF16)
}

// stepOf is stepF16 for what g's D can be.
func stepOf(g *quant.Affine, v float32) float32 {
	if g.BF16 {
		return math.Float32frombits(math.Float32bits(v)&0x7f800000) / 128
	}
	return stepF16(v)
}
