package smoothquant

import (
	"math"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// group returns a norm before one linear of 2×32 weights, with an outlier in channel 3.
func group() *quant.Group {
	norm := make([]float32, 32)
	w, x := tensor.New(2, 32), tensor.New(4, 32)
	for j := range norm {
		norm[j] = 1
		w.Row(0)[j], w.Row(1)[j] = 0.1*float32(j%5+1), -0.2*float32(j%3+1)
		for i := range x.Rows {
			x.Row(i)[j] = float32((i+j)%7) - 3
		}
	}
	norm[3] = 100
	w.Row(0)[3], w.Row(1)[3] = 0.004, -0.002
	for i := range x.Rows {
		x.Row(i)[3] *= 100
	}
	in := quant.NewInputs(32)
	in.Observe(x)
	return &quant.Group{Name: "g", Prev: &quant.Scaler{Name: "norm", Norm: norm}, In: in, Sample: x,
		Linears: []*quant.Linear{{Name: "w", W: w, Grid: ggml.Q4_0.Grid}}}
}

// TestEquation4 holds the scales to the paper's formula, and the folded group to what it computed before.
func TestEquation4(t *testing.T) {
	for _, alpha := range []float64{0, 0.3, 0.5, 1} {
		g, before := group(), group()
		f, err := Smoothing{Alpha: alpha}.Transform(t.Context(), g)
		if err != nil || f.Skipped != "" || f.Alpha != alpha || f.Into != "norm" {
			t.Fatalf("%+v, %v", f, err)
		}
		g.Scale(f.Scale)
		for j := range before.Prev.Norm {
			var x, w float64
			for i := range before.Sample.Rows {
				x = max(x, math.Abs(float64(before.Sample.Row(i)[j])))
			}
			for r := range 2 {
				w = max(w, math.Abs(float64(before.Linears[0].W.Row(r)[j])))
			}
			want := math.Pow(x, alpha) / math.Pow(w, 1-alpha)
			if got := float64(before.Prev.Norm[j] / g.Prev.Norm[j]); math.Abs(got-want) > 1e-5*want {
				t.Errorf("alpha %g: channel %d is divided by %g, want %g", alpha, j, got, want)
			}
			for r := range 2 {
				a := before.Linears[0].W.Row(r)[j] * before.Prev.Norm[j]
				b := g.Linears[0].W.Row(r)[j] * g.Prev.Norm[j]
				if math.Abs(float64(a-b)) > 1e-5*math.Abs(float64(a)) {
					t.Errorf("alpha %g: weight [%d %d] times its norm is %g, was %g", alpha, r, j, b, a)
				}
			}
		}
	}
}

// TestAuto: the outlier's column is small among its neighbours, and smoothing makes up for that.
func TestAuto(t *testing.T) {
	f, err := Smoothing{Auto: true}.Transform(t.Context(), group())
	if err != nil || f.Skipped != "" || !(f.After < f.Before/2) {
		t.Errorf("%+v, %v", f, err)
	}
	for i := range autoSteps + 1 {
		fixed, err := Smoothing{Alpha: float64(i) / autoSteps}.Transform(t.Context(), group())
		if err != nil || fixed.After < f.After || fixed.Before != f.Before {
			t.Errorf("%+v, %v; auto found %+v", fixed, err, f)
		}
	}
}

// TestInt8Inputs: weights that stay exact lose nothing by an outlier in the inputs, unless those are rounded too.
func TestInt8Inputs(t *testing.T) {
	g := group()
	g.Linears[0].Grid = ggml.Q8_0.Grid
	g.Int8Inputs = true
	for r := range 2 {
		g.Linears[0].W.Row(r)[3] = 0
	}
	f, err := Smoothing{Auto: true}.Transform(t.Context(), g)
	if err != nil || f.Skipped != "" || !(f.After < f.Before/10) {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestRefused(t *testing.T) {
	for _, alpha := range []float64{-0.1, 1.1, math.NaN()} {
		if _, err := (Smoothing{Alpha: alpha}).Transform(t.Context(), group()); err == nil {
			t.Errorf("alpha %g is accepted", alpha)
		}
	}
	g := group()
	g.Prev = nil
	if f, err := (Smoothing{Alpha: 0.5}).Transform(t.Context(), g); err != nil || f.Skipped == "" {
		t.Errorf("%+v, %v for a group that nothing can absorb", f, err)
	}
}
