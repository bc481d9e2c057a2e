package fit

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestMeasure compares the sums with plain ones in float64 over the grid's own rounding.
func TestMeasure(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, g := range []*quant.Affine{
		New(quant.Affine{Name: "four bits", Block: 32, Group: 32, CodeMin: -8, CodeMax: 7}),
		New(quant.Affine{Name: "eight bits", Block: 32, Group: 32, CodeMin: -128, CodeMax: 127}),
		New(quant.Affine{Name: "four bits and a minimum", Block: 32, Group: 32, CodeMin: 0, CodeMax: 15,
			Minimums: quant.Minimums{Kind: quant.BlockMinimum}}),
		New(quant.Affine{Name: "two bits of super-blocks", Block: 256, Group: 16, CodeMin: 0, CodeMax: 3,
			Scales: quant.Scales{Super: true, Max: 15}, Minimums: quant.Minimums{Kind: quant.GroupMinimums, Max: 15}}),
		New(quant.Affine{Name: "a codebook", Block: 32, Group: 32, CodeMin: 0, CodeMax: 15,
			Codebook: []float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}}),
	} {
		lv := newLevels(g)
		for _, n := range []int{2, 4, 16, 32, 256} {
			for _, scale := range []float32{0, 1, -1, 0.03, 1e-7, -300, 3e6} {
				var gr group
				for range n {
					gr.x = append(gr.x, float32(rng.NormFloat64()*50*float64(scale)))
					gr.wt = append(gr.wt, rng.Float32())
				}
				var minimum float32
				if g.HasMinimum() {
					minimum = 7.25 * scale
				}
				var want [4]float64
				for j, x := range gr.x {
					q := g.Level(g.Nearest(x, scale, minimum))
					if scale == 0 {
						q = 0
					}
					d, w := float64(x-(float32(scale*q)-minimum)), float64(gr.wt[j])
					for i, v := range [4]float64{d * d, float64(q), float64(q * q), float64(q * x)} {
						want[i] += w * v
					}
				}
				f := lv.measure(&gr, scale, minimum)
				for i, v := range [4]float32{f.Err, f.L, f.LL, f.LX} {
					if scale == 0 && i > 0 {
						continue // whatever level the zero scale was rounded to
					}
					// Values near the middle of two levels may go either way, which the sums notice but the error does not.
					tolerance := 1e-5*math.Abs(want[i]) + 1e-30
					if g.Codebook == nil && math.Abs(float64(v)-want[i]) > tolerance+1e-4*math.Abs(want[2]) ||
						i == 0 && math.Abs(float64(v)-want[i]) > tolerance {
						t.Errorf("%s: %d weights, scale %v: sum %d is %v, want %v", g, n, scale, i, v, want[i])
					}
				}
			}
		}
	}
}

func TestRoundScale(t *testing.T) {
	check := func(v float32) {
		if got, want := roundScale(v), min(max(tensor.RoundF16(v), -encode.MaxF16), encode.MaxF16); got != want {
			t.Fatalf("%v (%#x) rounds to %v, want %v", v, math.Float32bits(v), got, want)
		}
	}
	// Every float16, and what lies around it and around the middle to the next, of either sign.
	for bits := range uint16(0x7c00) {
		v, next := tensor.F16(bits), float32(1<<16)
		if bits+1 < 0x7c00 {
			next = tensor.F16(bits + 1)
		}
		if got := v + stepF16(v); got != next {
			t.Fatalf("the float16 after %v is %v, not %v", v, next, got)
		}
		for _, w := range []float32{v, (v + next) / 2} {
			for _, x := range []float32{w, math.Nextafter32(w, 1e9), math.Nextafter32(w, -1e9)} {
				check(x)
				check(-x)
			}
		}
	}
	for _, v := range []float32{1e-45, 1e-10, 65519.99, 65520, 1e10, math.MaxFloat32, float32(math.Inf(1))} {
		check(v)
		check(-v)
	}
}
