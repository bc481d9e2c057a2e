package fit

import (
	"cmp"
	"math"
	"slices"
	"sync"

	"github.com/llmq/llmq/quant"
)

// One scale for a long block and few levels: TQ1_0, TQ2_0, Q1_0, Q2_0. Most weights of such a block may be clipped, and no
// weight tells of itself what the scale is; but all the ways to round the block can be gone through.

// crossing is where a weight moves from one level to the next: at = midpoint of levels/weight, as 1/scale grows.
type crossing struct {
	at     float32
	weight int16
	level  int8 // the new level's place
}

// few is room for the search.
type few struct {
	scratch
	crossings []crossing
	level     [maxBlock]int8
	levels    []float32
}

var fewPool = sync.Pool{New: func() any { return new(few) }}

// fitFew finds the best scale exactly, up to its rounding to float16. Between the crossings of all weights the levels stay
// as they are, and the best scale for them has the error Σ wt·x² − (Σ wt·l·x)²/Σ wt·l².
func fitFew(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	s := fewPool.Get().(*few)
	defer fewPool.Put(s)
	s.load(w, importance)
	gr := s.group(0, g.Block)
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 0
	if gr.largest() == 0 {
		return
	}
	s.levels = s.levels[:0]
	for c := g.CodeMin; c <= g.CodeMax; c++ {
		s.levels = append(s.levels, g.Level(int8(c)))
	}
	scale, gain := s.best(&gr, 1)
	if lv.lo != -lv.hi {
		if v, more := s.best(&gr, -1); more > gain {
			scale = v
		}
	}
	best := lv.measure(&gr, 0, 0).Err
	d := roundScale(scale)
	step := stepF16(d)
	for _, d := range [3]float32{d, roundScale(d - step), roundScale(d + step)} {
		if e := lv.measure(&gr, d, 0).Err; e < best {
			best, b.D = e, d
		}
	}
}

// best returns the best scale of the given sign, and by how much it lessens the error of zeros.
func (s *few) best(gr *group, sign float32) (scale float32, gain float64) {
	var lx, ll float64 // Σ wt·l·x and Σ wt·l² at the levels that the weights have so far
	s.crossings = s.crossings[:0]
	for j, x := range gr.x {
		x *= sign
		at := 0
		for i := range len(s.levels) - 1 {
			middle := (s.levels[i] + s.levels[i+1]) / 2
			if middle < 0 || middle == 0 && x > 0 {
				at = i + 1
			}
			switch v := middle / x; {
			case !(v > 0) || v > math.MaxFloat32: // crossed at no scale that there is, or from the start
			case x > 0:
				s.crossings = append(s.crossings, crossing{v, int16(j), int8(i + 1)})
			default:
				s.crossings = append(s.crossings, crossing{v, int16(j), int8(i)})
			}
		}
		s.level[j] = int8(at)
		wt, l := float64(gr.wt[j]), float64(s.levels[at])
		lx += wt * l * float64(x)
		ll += wt * l * l
	}
	slices.SortFunc(s.crossings, func(a, b crossing) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.weight, b.weight))
	})
	consider := func() {
		if e := lx * lx / ll; lx > 0 && e > gain {
			scale, gain = float32(lx/ll), e
		}
	}
	consider()
	for i := range s.crossings {
		c := &s.crossings[i]
		wt, x := float64(gr.wt[c.weight]), float64(sign*gr.x[c.weight])
		from, to := float64(s.levels[s.level[c.weight]]), float64(s.levels[c.level])
		lx += wt * x * (to - from)
		ll += wt * (to*to - from*from)
		s.level[c.weight] = c.level
		consider()
	}
	return float32(math.Copysign(float64(scale), float64(sign))), gain
}
