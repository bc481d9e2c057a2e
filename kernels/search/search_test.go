package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

// searchCase is 16 groups with guard values around them.
type searchCase struct {
	x, wt      []kernels.Lane
	inverse    kernels.Lane // of what levels are multiplied with
	moments    Moments
	levels     []float32
	ranges     []Range
	window     Window
	steps      [][2]float32
	rounds     int
	lo, hi     int32
	guarded    []kernels.Lane
	guardValue float32
}

func newSearchCase(rng *rand.Rand, length, count, rounds int) *searchCase {
	c := &searchCase{rounds: rounds, lo: -3, hi: 12, guardValue: 1e30}
	c.guarded = make([]kernels.Lane, 2*length+3)
	for i := range c.guarded {
		for k := range c.guarded[i] {
			c.guarded[i][k] = c.guardValue
		}
	}
	c.x, c.wt = c.guarded[1:1+length], c.guarded[2+length:2+2*length]
	for i := range kernels.Lanes {
		var w, wx float32
		for j := range length {
			c.x[j][i], c.wt[j][i] = float32(rng.NormFloat64()), rng.Float32()
			switch i {
			case 3: // zeros
				c.x[j][i] = 0
			case 4: // no importance
				c.wt[j][i] = 0
			case 5:
				c.x[j][i] = float32(math.NaN())
			case 6:
				c.x[j][i] = 3
			case 7:
				c.x[j][i] *= 1e30
			case 8:
				c.x[j][i] *= 1e-30
			case 9:
				c.wt[j][i] = 1
			}
			w += c.wt[j][i]
			wx += c.wt[j][i] * c.x[j][i]
		}
		c.inverse[i] = rng.Float32()
		c.moments.InverseW[i], c.moments.WX[i], c.moments.Mean[i] = 1/w, wx, wx/w
	}
	for i := range kernels.Lanes {
		c.window.Scale[i], c.window.Minimum[i] = float32(rng.NormFloat64())/30, float32(rng.NormFloat64())/60
		c.window.Q[i], c.window.M[i] = float32(math.Round(rng.NormFloat64()*30)), float32(rng.NormFloat64()*60)
		c.window.Slope[i] = float32(rng.NormFloat64())
	}
	c.window.Scale[10], c.window.Q[11], c.window.M[11], c.window.M[12] = 0, float32(math.NaN()), float32(math.NaN()), 1e30
	for range count {
		c.steps = append(c.steps, [2]float32{float32(rng.IntN(3) - 1), float32(rng.IntN(3) - 1)})
		c.levels = append(c.levels, rng.Float32()*8-1)
		var r Range
		for i := range kernels.Lanes {
			r.Scale[i], r.Minimum[i] = rng.Float32()/3, rng.Float32()*3
		}
		r.Scale[1] = 0
		c.ranges = append(c.ranges, r)
	}
	return c
}

// sameLane compares bit for bit, but for NaN.
func sameLane(a, b kernels.Lane) bool {
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) && (a[i] == a[i] || b[i] == b[i]) {
			return false
		}
	}
	return true
}

// searched is what the searches find.
type searched struct {
	scale    BestScale
	minimum  BestMinimum
	chosen   BestRange
	multiple BestMultiple
}

func (c *searchCase) run() (r searched) {
	r.scale.Search(c.x, c.wt, &c.inverse, c.levels, c.rounds, c.lo, c.hi)
	r.minimum.Search(c.x, c.wt, &c.moments, c.ranges, c.rounds, c.lo, c.hi)
	for i := range r.chosen.Err {
		r.chosen.Err[i] = 1e38
		r.chosen.Index[i] = -1
		r.multiple.Err[i], r.multiple.Q[i] = 1e38, 77
	}
	r.multiple.Choose(c.x, c.wt, &c.window, c.steps, c.lo, c.hi, -32, 31, 63)
	r.chosen.Choose(5, c.x, c.wt, c.ranges, c.lo, c.hi)
	return r
}

// difference says what r has that is not as wanted; empty if it is the same, bit for bit.
func (r *searched) difference(want *searched) string {
	for name, p := range map[string][2]kernels.Lane{
		"scale's score": {r.scale.Score, want.scale.Score}, "scale": {r.scale.Scale, want.scale.Scale},
		"scale's LL":      {r.scale.LL, want.scale.LL},
		"minimum's score": {r.minimum.Score, want.minimum.Score},
		"minimum's scale": {r.minimum.Scale, want.minimum.Scale},
		"minimum":         {r.minimum.Minimum, want.minimum.Minimum},
		"minimum's L":     {r.minimum.L, want.minimum.L}, "minimum's LL": {r.minimum.LL, want.minimum.LL},
		"error":            {r.chosen.Err, want.chosen.Err},
		"multiple's error": {r.multiple.Err, want.multiple.Err},
		"multiple":         {r.multiple.Q, want.multiple.Q}, "minimum's multiple": {r.multiple.M, want.multiple.M},
	} {
		if !sameLane(p[0], p[1]) {
			return fmt.Sprintf("%s %v, want %v", name, p[0], p[1])
		}
	}
	if r.chosen.Index != want.chosen.Index {
		return fmt.Sprintf("index %v, want %v", r.chosen.Index, want.chosen.Index)
	}
	return ""
}

// Every tier finds what pure Go finds, bit for bit; with importances of 1 that is what is found without.
func TestScaleSearch(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, length := range []int{0, 2, 4, 16, 32, 256} {
			for _, count := range []int{0, 1, 2, 7} {
				for rounds := range 3 {
					c := newSearchCase(rng, length, count, rounds)
					check := func(got searched, what string) {
						tier := kernels.SetTier(kernels.PureGo)
						want := c.run()
						kernels.SetTier(tier)
						if d := got.difference(&want); d != "" {
							t.Fatalf("%d weights, %d candidates, %d rounds, %s: %s", length, count, rounds, what, d)
						}
					}
					check(c.run(), "importances")
					wt := c.wt
					c.wt = nil
					equal := c.run()
					check(equal, "no importances")
					c.wt = wt
					for j := range wt {
						for i := range wt[j] {
							wt[j][i] = 1
						}
					}
					check(equal, "importances of 1")
				}
			}
		}
	})
}

// BestMultiple.Choose finds what BestRange.Choose does with the same ranges.
func TestBestMultiple(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		c := newSearchCase(rand.New(rand.NewPCG(7, 8)), 32, 12, 0)
		var found BestMultiple
		var want BestRange
		ranges := make([]Range, len(c.steps))
		var qs, ms [12]kernels.Lane
		for i := range kernels.Lanes {
			found.Err[i], want.Err[i], want.Index[i] = 1e38, 1e38, -1
			q, m := c.window.Q[i], c.window.M[i]
			for k, step := range c.steps {
				qs[k][i] = float32(math.Trunc(float64(min(max(q, -32), 31))))
				ms[k][i] = float32(math.Trunc(float64(min(max(m, 0), 63))))
				ranges[k].Scale[i], ranges[k].Minimum[i] = c.window.Scale[i]*qs[k][i], c.window.Minimum[i]*ms[k][i]
				q += step[0]
				m = m + c.window.Slope[i] + step[1]
			}
		}
		found.Choose(c.x, c.wt, &c.window, c.steps, c.lo, c.hi, -32, 31, 63)
		want.Choose(0, c.x, c.wt, ranges, c.lo, c.hi)
		for i, k := range want.Index {
			if i == 5 || i == 11 { // NaN
				continue
			}
			if k < 0 {
				if found.Err[i] != 1e38 || found.Q[i] != 0 || found.M[i] != 0 {
					t.Errorf("group %d: error %v with %v and %v, want none", i, found.Err[i], found.Q[i], found.M[i])
				}
				continue
			}
			if found.Err[i] != want.Err[i] || found.Q[i] != qs[k][i] || found.M[i] != ms[k][i] {
				t.Errorf("group %d: error %v with %v and %v, want %v with %v and %v", i, found.Err[i], found.Q[i], found.M[i],
					want.Err[i], qs[k][i], ms[k][i])
			}
		}
	})
}

func TestSpreadRanges(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 8))
		for count := range 17 {
			var a, b, c kernels.Lane
			for i := range kernels.Lanes {
				a[i], b[i], c[i] = rng.Float32(), rng.Float32(), rng.Float32()
			}
			factors := make([][2]float32, count)
			for k := range factors {
				factors[k] = [2]float32{rng.Float32(), rng.Float32()}
			}
			ranges := make([]Range, count+1)
			SpreadRanges(ranges, &a, &b, &c, factors)
			for k, f := range factors {
				for i := range kernels.Lanes {
					if r := &ranges[k]; r.Scale[i] != f[0]*a[i] || r.Minimum[i] != float32(f[1]*b[i])-c[i] {
						t.Fatalf("range %d of %d, group %d: %v and %v", k, count, i, r.Scale[i], r.Minimum[i])
					}
				}
			}
			if ranges[count] != (Range{}) {
				t.Fatalf("%d ranges: written past the end", count)
			}
		}
	})
}

func TestLattice(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for count := range 9 {
			var l Lattice
			steps := make([]Range, count)
			for i := range kernels.Lanes {
				// A group of three levels, 0, 3 and 7, say.
				l.W[i], l.L[i], l.LL[i], l.InverseW[i] = 3, 10, 58, 1.0/3
				l.Scale[i], l.Minimum[i] = float32(rng.NormFloat64()), rng.Float32()
				for k := range steps {
					steps[k].Scale[i], steps[k].Minimum[i] = rng.Float32()/32-1.0/64, rng.Float32()/64
				}
			}
			err := make([]kernels.Lane, count+1)
			l.Errors(err, steps, -32, 31, 63)
			if err[count] != (kernels.Lane{}) {
				t.Fatal("written past the end")
			}
			tier := kernels.SetTier(kernels.PureGo)
			want := make([]kernels.Lane, count)
			l.Errors(want, steps, -32, 31, 63)
			kernels.SetTier(tier)
			for k := range steps {
				if !sameLane(err[k], want[k]) {
					t.Fatalf("step %d of %d: %v, want %v", k, count, err[k], want[k])
				}
				for i := range kernels.Lanes {
					q, m, e := l.nearest(i, steps[k].Scale[i], steps[k].Minimum[i], -32, 31, 63)
					x, y := float64(q*steps[k].Scale[i]-l.Scale[i]), float64(m*steps[k].Minimum[i]-l.Minimum[i])
					var sum float64
					for _, level := range [3]float64{0, 3, 7} {
						sum += (x*level - y) * (x*level - y)
					}
					if math.Abs(sum-float64(e)) > 1e-4*(sum+1e-3) {
						t.Fatalf("scale %v of %v: error %v, want %v", q, steps[k].Scale[i], e, sum)
					}
				}
			}
		}
	})
}

func TestSpans(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, length := range []int{2, 4, 16, 32, 256} {
			c := newSearchCase(rng, length, 0, 0)
			c.x[length/2][0] = 0
			got := Spans(c.x, c.wt)
			tier := kernels.SetTier(kernels.PureGo)
			want := Spans(c.x, c.wt)
			kernels.SetTier(tier)
			if !sameLane(got.Lo, want.Lo) || !sameLane(got.Hi, want.Hi) || !sameLane(got.Least, want.Least) ||
				!sameLane(got.W, want.W) || !sameLane(got.WX, want.WX) {
				t.Fatalf("%d weights: %v, want %v", length, got, want)
			}
			lo, hi, least := float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.Inf(1))
			for j := range c.x {
				v := c.x[j][0]
				lo, hi = min(lo, v), max(hi, v)
				if v != 0 {
					least = min(least, max(v, -v))
				}
			}
			if got.Lo[0] != lo || got.Hi[0] != hi || got.Least[0] != least {
				t.Fatalf("%d weights: from %v to %v, least %v, want %v, %v, %v", length, got.Lo[0], got.Hi[0], got.Least[0],
					lo, hi, least)
			}
		}
	})
}

func TestNearestLevels(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for length := range 70 {
			x := make([]float32, length)
			for j := range x {
				x[j] = float32(math.Round(rng.NormFloat64()*400) / 8) // with ties
			}
			for k, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e30} {
				if length > 20+k {
					x[20+k] = float32(v)
				}
			}
			guarded := make([]int8, length+2)
			guarded[0], guarded[length+1] = 99, 99
			codes := guarded[1 : 1+length]
			for _, c := range []struct {
				scale, minimum float32
				lo, hi         int8
			}{{1, 0, -8, 7}, {-0.5, 3, 0, 15}, {0.25, 0, -128, 127}, {1e-30, 0, 0, 3}} {
				NearestLevels(codes, x, c.scale, c.minimum, c.lo, c.hi)
				for j, v := range x {
					want := int8(math.RoundToEven(math.Min(math.Max(float64((v+c.minimum)/c.scale), float64(c.lo)),
						float64(c.hi))))
					if v != v {
						want = c.lo
					}
					if codes[j] != want {
						t.Fatalf("%d weights, %+v: %v is rounded to %d, want %d", length, c, v, codes[j], want)
					}
				}
				if guarded[0] != 99 || guarded[length+1] != 99 {
					t.Fatalf("%d weights: written outside", length)
				}
			}
		}
	})
}

// What a search finds is as good as it says: its score is what measuring the error finds missing from Σ wt·x².
func TestScaleSearchScores(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	c := newSearchCase(rng, 32, 7, 2)
	var s BestScale
	s.Search(c.x, c.wt, &c.inverse, c.levels, c.rounds, c.lo, c.hi)
	var m BestMinimum
	m.Search(c.x, c.wt, &c.moments, c.ranges, c.rounds, c.lo, c.hi)
	for _, i := range []int{0, 2, 9, 10, 11, 15} {
		var xx, dd float64
		for j := range c.x {
			x, w := float64(c.x[j][i]), float64(c.wt[j][i])
			d := x - float64(c.moments.Mean[i])
			xx += w * x * x
			dd += w * d * d
		}
		for name, r := range map[string]struct {
			xx                    float64
			score, scale, minimum float32
		}{
			"scale":   {xx, s.Score[i], s.Scale[i], 0},
			"minimum": {dd, m.Score[i], m.Scale[i], m.Minimum[i]},
		} {
			var b BestRange
			b.Err[i] = 1e38
			var one Range
			one.Scale[i], one.Minimum[i] = r.scale, r.minimum
			b.Choose(0, c.x, c.wt, []Range{one}, c.lo, c.hi)
			// Rounding once more with the new scale can only help.
			if e := float64(b.Err[i]); e > r.xx-float64(r.score)+1e-5*r.xx || e < 0.2*(r.xx-float64(r.score)) {
				t.Errorf("group %d, %s: error %v, Σ wt·x² %v less score %v", i, name, e, r.xx, r.score)
			}
		}
	}
}

func BenchmarkScaleSearch(b *testing.B) {
	c := newSearchCase(rand.New(rand.NewPCG(1, 2)), 32, 16, 0)
	measured := float64(kernels.Lanes * 32 * 16)
	b.Run("scale", func(b *testing.B) {
		kerneltest.Rate(b, measured, func() {
			var s BestScale
			s.Search(c.x, c.wt, &c.inverse, c.levels, 0, c.lo, c.hi)
		})
	})
	b.Run("minimum", func(b *testing.B) {
		kerneltest.Rate(b, measured, func() {
			var s BestMinimum
			s.Search(c.x, c.wt, &c.moments, c.ranges, 0, c.lo, c.hi)
		})
	})
	b.Run("choose", func(b *testing.B) {
		kerneltest.Rate(b, measured, func() {
			var s BestRange
			s.Choose(0, c.x, c.wt, c.ranges, c.lo, c.hi)
		})
	})
}
