package pipeline

import (
	"runtime"
	"testing"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestEnoughRounds: a second does where rounds agree; where they do not there are more, until their mean is known or it has taken too long.
func TestEnoughRounds(t *testing.T) {
	const round = 100 * time.Millisecond
	rounds := func(of func(i int) float64) (n int, mean float64) {
		var times []float64
		for {
			times = append(times, of(len(times)))
			mean += times[len(times)-1]
			if n = len(times); enough(time.Duration(n)*round, times) {
				return n, mean / float64(n)
			}
		}
	}
	least, most := int(measuresLeast/round), int(measuresMost/round)
	if n, _ := rounds(func(int) float64 { return 3 }); n != least {
		t.Errorf("%d rounds that agree, want %d", n, least)
	}
	if n, _ := rounds(func(i int) float64 { return 3 + float64(i%2)/2 }); n <= least || n >= most/2 {
		t.Errorf("%d rounds that differ by a sixth", n)
	}
	// Half of the time, for half a second on end, all takes twice as long.
	if n, mean := rounds(func(i int) float64 { return 3 * float64(1+i/5%2) }); n != most || mean < 4.2 || mean > 4.8 {
		t.Errorf("%d rounds at two speeds, in the mean %g", n, mean)
	}
	if enough(measuresLeast-1, nil) || !enough(measuresLeast, nil) {
		t.Error("nobody asks how far rounds agree: that does not end with the second")
	}
	if slow := []float64{7}; enough(2*time.Second, slow) || !enough(measuresMost, slow) {
		t.Error("one round tells nothing of the others")
	}
}

// TestBesideMeasured: products of batches side by side are measured where the run has such batches, and nowhere else.
func TestBesideMeasured(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	small := testmodel.New("llama").Source()
	for _, c := range []struct {
		src    Source
		o      OutputHessian
		tokens int
		side   int
	}{
		{small, OutputHessianOn, 65536, 2},
		{small, OutputHessianOn, 512, 1}, // one batch
		{small, OutputHessianOff, 65536, 1},
		{llamaHeaders(2, 4096, 14336, 32, 8), OutputHessianOn, 65536, 1}, // layer by layer
	} {
		p, err := NewPlan(c.src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: c.o})
		if err != nil {
			t.Fatal(err)
		}
		if side, _ := p.sideBySide(openModel(t, c.src), c.tokens, 512); side != c.side {
			t.Errorf("%s, output Hessians %v, %d tokens: %d batches side by side, want %d", c.src.Name(), c.o, c.tokens, side, c.side)
		}
	}
	p, err := NewPlan(small, Recipe{Method: RTN, Type: ggml.Q4_0})
	if err != nil {
		t.Fatal(err)
	}
	for side, measured := range map[int]bool{1: false, 2: true} {
		round, err := p.rounds(t.Context(), side, 64)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := round(); err != nil || (r.beside > 0) != measured {
			t.Errorf("%d side by side: %v, %v", side, r, err)
		}
	}
}

// TestMeanOfRates: a machine that is at one speed for as long as at another does the mean of both.
func TestMeanOfRates(t *testing.T) {
	p, _ := planned(t, llamaHeaders(1, 2048, 5632, 32, 8), OutputHessianOff)
	fast, slow := rates{4e12, 2e11, 6e12, 1e9, 2e7, 1024}, rates{2e12, 1e11, 4e12, 1e9, 1e7, 1024}
	s := p.speeds(fast.plus(slow).over(2), 1e9)
	rounded, exact := roundingOps(p.Recipe.Method)
	column := rounded/3e12 + exact/1.5e11
	if want := (Speeds{Products: 3e12, Float32: 1.5e11, Beside: 5e12, Feature: 1e-9, Column: column, Weight: 1/1.5e7 - 1024*column, Disk: 1e9}); s != want {
		t.Errorf("speeds are %+v, want %+v", s, want)
	}
	if s := p.speeds(rates{products: 1e12, float32: 1e11, features: 1e9}, 0); s.Weight != 0 {
		t.Errorf("a weight that nobody rounds takes %g", s.Weight)
	}
}

// TestWidth: products are as wide as the linears that are quantized, in the harmonic mean, within bounds.
func TestWidth(t *testing.T) {
	for _, c := range []struct{ dim, ffn, want int }{
		{256, 768, 256},  // 2304 rows of 256 columns, 256 of 768: 307, in steps of 64
		{768, 3072, 960}, // 8448 rows of 768 columns, 768 of 3072
		{2048, 5632, speedWidest},
	} {
		p, _ := planned(t, llamaHeaders(1, c.dim, c.ffn, 4, 2), OutputHessianOff)
		if got := p.width(); got != c.want {
			t.Errorf("%d features: products of %d columns, want %d", c.dim, got, c.want)
		}
	}
	p, err := NewPlan(llamaHeaders(1, 256, 768, 4, 2), Recipe{Method: GPTQ, Type: ggml.F16})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.width(); got != speedMany {
		t.Errorf("nothing is quantized: products of %d columns", got)
	}
}

// TestVary: of the speeds at different times a tenth are left out on both sides, and the mean lies between.
func TestVary(t *testing.T) {
	c := &Cost{Seconds: 10, Fastest: 10, Slowest: 10}
	if c.Vary(nil); c.Fastest != 10 || c.Slowest != 10 {
		t.Errorf("without speeds: %g to %g s", c.Fastest, c.Slowest)
	}
	if c.Vary([]float64{14, 9, 8, 30, 1, 11, 12, 13, 9.5, 10}); c.Fastest != 8 || c.Slowest != 14 {
		t.Errorf("%g to %g s, want 8 to 14", c.Fastest, c.Slowest)
	}
	if c.Vary([]float64{11, 12}); c.Fastest != 10 || c.Slowest != 12 {
		t.Errorf("%g to %g s, want 10 to 12", c.Fastest, c.Slowest)
	}
}
