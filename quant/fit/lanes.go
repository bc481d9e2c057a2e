package fit

import (
	"math"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// lanes are up to 16 groups of one or more blocks side by side: lane i holds group i.
type lanes struct {
	n, size int // groups, and weights of each
	search.Span
	weighted    bool
	groups      [maxGroup]kernels.Lane
	importances [maxGroup]kernels.Lane
}

func (s *lanes) x() []kernels.Lane { return s.groups[:s.size] }

// wt are what weights count: Σ wt·(x−ŵ)² is to be small.
func (s *lanes) wt() []kernels.Lane {
	if !s.weighted {
		return ones[:s.size]
	}
	return s.importances[:s.size]
}

// weights are wt for kernels, to which nil means 1.
func (s *lanes) weights() []kernels.Lane {
	if !s.weighted {
		return nil
	}
	return s.importances[:s.size]
}

// lanesPool has lanes to be loaded: setting them to zero takes long.
var lanesPool = sync.Pool{New: func() any { return new(lanes) }}

// ones are the importances of groups without.
var ones = func() (l [maxGroup]kernels.Lane) {
	for j := range l {
		for i := range l[j] {
			l[j][i] = 1
		}
	}
	return l
}()

// load fills s with groups of size weights: blocks of so many, whose importances count relative to each other. Without
// importances, or with none above zero, all weights of a block count the same.
func (s *lanes) load(w, importance []float32, size, block int) {
	s.n, s.size = len(w)/size, size
	transpose(s.x(), w)
	if s.weighted = importance != nil; s.weighted {
		transpose(s.wt(), importance)
		s.normalize(block / size)
	}
	s.Span = search.Spans(s.x(), s.wt())
	s.bound()
}

// transpose brings groups, perhaps fewer than there are lanes, side by side.
func transpose(dst []kernels.Lane, src []float32) {
	if len(src) < kernels.Lanes*len(dst) {
		var padded [kernels.Lanes * maxGroup]float32
		copy(padded[:], src)
		src = padded[:]
	}
	columns.FromRows(dst, src, len(dst))
}

// normalize brings the importances of each block, so many lanes, to 0..1, the largest being 1.
func (s *lanes) normalize(groups int) {
	wt := s.wt()
	largest := search.Largest(wt)
	var inverse kernels.Lane
	for i := 0; i < kernels.Lanes; i += groups {
		var top float32
		for _, v := range largest[i : i+groups] {
			top = max(top, v)
		}
		top = min(top, math.MaxFloat32)
		for k := i; k < i+groups; k++ {
			// 1/top may be infinite for tiny importances: they are brought up first.
			largest[k], inverse[k] = top, 1/top
			if !(top >= tinyImportance) {
				s.raise(k, top)
				largest[k], inverse[k] = 1, 1
			}
		}
	}
	search.Normalize(wt, &largest, &inverse)
}

// tinyImportance is where 1/importance is near the end of float32.
const tinyImportance = 1e-30

// raise brings lane i's importances to 0..1, the largest of the block being top, or to 1 where top is 0.
func (s *lanes) raise(i int, top float32) {
	for j := range s.importances[:s.size] {
		v := &s.importances[j][i]
		if !(top > 0) {
			*v = 1
		} else {
			*v /= top
		}
	}
}

// bound brings weights to ±maxWeight.
func (s *lanes) bound() {
	far := false
	for i := range kernels.Lanes {
		if s.Lo[i] >= -maxWeight && s.Hi[i] <= maxWeight {
			continue
		}
		far = true
		for j := range s.x() {
			s.groups[j][i] = min(max(s.groups[j][i], -maxWeight), maxWeight)
		}
	}
	if far {
		s.Span = search.Spans(s.x(), s.wt())
	}
}

// top returns each group's weight of largest magnitude.
func (s *lanes) top() (top kernels.Lane) {
	for i := range top {
		// Without a branch, which nobody could predict: the sum has the sign of the larger.
		lo, hi := math.Float32bits(s.Lo[i]), math.Float32bits(s.Hi[i])
		lower := uint32(int32(math.Float32bits(s.Lo[i]+s.Hi[i])) >> 31)
		top[i] = math.Float32frombits(hi ^ (hi^lo)&lower)
	}
	return top
}

// mostImportant returns each group's weight that contributes most to Σ wt·x².
func (s *lanes) mostImportant() (v kernels.Lane) {
	var most kernels.Lane
	wt := s.wt()
	for j := range wt {
		for i, x := range s.groups[j] {
			if e := wt[j][i] * x * x; e > most[i] {
				v[i], most[i] = x, e
			}
		}
	}
	return v
}

// invert returns 1/v, and 0 where v is so small that no float16 scale is.
func invert(v *kernels.Lane) (inverse kernels.Lane) {
	for i, x := range v {
		if abs(x) > 1e-20 {
			inverse[i] = 1 / x
		}
	}
	return inverse
}

// revive gives groups where no weight has importance a little, the same for all: the group's own scale is then free to
// suit them, but they leave what groups share alone.
func (s *lanes) revive() {
	if !s.weighted {
		return
	}
	dead := false
	for i, w := range s.W {
		if w > 0 {
			continue
		}
		dead = true
		for j := range s.wt() {
			s.importances[j][i] = deadImportance
		}
	}
	if dead {
		s.Span = search.Spans(s.x(), s.wt())
	}
}

// clips sets ranges to those with one or both ends nearer to the weighted mean, in case unimportant outliers had better be
// clipped.
func (s *lanes) clips(m *search.Moments, ranges *[12]search.Range, lv *levels) {
	var variance search.BestRange
	var mean search.Range
	for i := range variance.Err {
		variance.Err[i], mean.Minimum[i] = float32(math.Inf(1)), -m.Mean[i]
	}
	variance.Choose(0, s.x(), s.wt(), []search.Range{mean}, int32(lv.lo), int32(lv.hi))
	for i, v := range variance.Err {
		deviation := float32(math.Sqrt(float64(v * m.InverseW[i])))
		for k, c := range [...]float32{1, 1.5, 2, 2.5} {
			lo, hi := m.Mean[i]-c*deviation, m.Mean[i]+c*deviation
			for e, ends := range [...][2]float32{{lo, hi}, {s.Lo[i], hi}, {lo, s.Hi[i]}} {
				r := &ranges[3*k+e]
				r.Scale[i], r.Minimum[i] = max(ends[1]-ends[0], 0)*lv.inverseHi, -ends[0]
			}
		}
	}
}

// constantScale returns the float16 d, the sc of the grid and with them the value d·sc·level nearest to v, not
// 0, which all weights have: rounding to float16 is all that can go wrong, and differs from product to product.
func constantScale(g *quant.Affine, v float32) (d, sc float32) {
	least := float32(math.Inf(1))
	lo, hi := g.Scales.Bounds()
	for s := 1; s <= max(-lo, hi); s++ {
		for level := g.CodeMin; level < 0; level++ {
			sign := float32(1)
			if s > hi {
				sign = -1
			}
			scale := sign * float32(s)
			x := roundScale(v / (scale * float32(level)))
			if e := abs(float32(float32(x*scale)*float32(level)) - v); e < least {
				d, sc, least = x, scale, e
			}
		}
	}
	return d, sc
}
