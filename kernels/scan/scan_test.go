package scan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

func random(r *rand.Rand, rows, cols int) *tensor.Matrix {
	m := tensor.New(rows, cols)
	for i := range m.Data {
		m.Data[i] = float32(r.NormFloat64())
	}
	return m
}

func values(r *rand.Rand, n int) []float32 { return random(r, 1, n).Row(0) }

func near(t *testing.T, what string, got *tensor.Matrix, want [][]float64, limit float64) {
	t.Helper()
	var scale, worst float64
	for i, row := range want {
		for j, w := range row {
			scale = max(scale, math.Abs(w))
			if d := math.Abs(float64(got.Row(i)[j]) - w); !(d <= worst) {
				worst = d
			}
		}
	}
	if !(worst <= limit*scale) {
		t.Errorf("%s: off by %g, the largest is %g", what, worst, scale)
	}
}

// plainConv is Conv as its comment says, in float64.
func plainConv(x *tensor.Matrix, taps, bias []float32, width int) [][]float64 {
	y := make([][]float64, x.Rows)
	for t := range y {
		y[t] = make([]float64, x.Cols)
		for c := range y[t] {
			if bias != nil {
				y[t][c] = float64(bias[c])
			}
			for k := range width {
				if s := t - width + 1 + k; s >= 0 {
					y[t][c] += float64(taps[c*width+k]) * float64(x.Row(s)[c])
				}
			}
		}
	}
	return y
}

// TestConv compares every tier with float64, and bit for bit with the plain loop, at every length up to several vectors and past a
// block of channels, of matrices that have more columns.
func TestConv(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		check := func(rows, cols, width int, bias []float32) {
			what := fmt.Sprintf("%d tokens, %d channels, width %d", rows, cols, width)
			x, taps := random(r, rows, cols+3).View(0, rows, 2, cols+2), values(r, cols*width)
			whole, dst := kerneltest.Guarded(rows, cols)
			Conv(dst, x, taps, bias, width)
			kerneltest.CheckGuards(t, whole, rows, cols)
			near(t, what, dst, plainConv(x, taps, bias, width), 1e-6)
			w := byTap(taps, bias, width)
			y := make([]float32, cols)
			for i := range rows {
				k := max(0, width-1-i)
				if weighGo(y, w, x, 1+k, i-width+1+k, 1, 0); !slices.Equal(y, dst.Row(i)) {
					t.Fatalf("%s: token %d has other bits than the plain loop", what, i)
				}
			}
			ConvBack(dst, x, taps, width)
			kerneltest.CheckGuards(t, whole, rows, cols)
			near(t, what+" back", dst, plainConvBack(x, taps, width), 1e-6)
		}
		for _, rows := range []int{0, 1, 2, 3, 17, 100} {
			for _, width := range []int{1, 2, 3, 4, 7} {
				check(rows, 13, width, values(r, 13))
				check(rows, 40, width, nil)
			}
		}
		for cols := range 131 {
			check(5, cols, 4, values(r, cols))
		}
		check(19, channels+channels/2+7, 4, values(r, channels+channels/2+7))
	})
}

// plainConvBack is ConvBack as its comment says, in float64.
func plainConvBack(dy *tensor.Matrix, taps []float32, width int) [][]float64 {
	dx := make([][]float64, dy.Rows)
	for t := range dx {
		dx[t] = make([]float64, dy.Cols)
		for c := range dx[t] {
			for k := range width {
				if s := t + width - 1 - k; s < dy.Rows {
					dx[t][c] += float64(taps[c*width+k]) * float64(dy.Row(s)[c])
				}
			}
		}
	}
	return dx
}

// plainScan is the recurrence, token by token in float64.
func (m *Mamba2) plainScan(x, b, c, dt *tensor.Matrix) [][]float64 {
	y := make([][]float64, x.Rows)
	h := make([]float64, m.Heads*m.State*m.HeadDim)
	for t := range y {
		y[t] = make([]float64, x.Cols)
		for head := range m.Heads {
			d := float64(dt.Row(t)[head])
			decay := math.Exp(d * float64(m.A[head]))
			g := head / (m.Heads / m.Groups)
			for p := range m.HeadDim {
				i := head*m.HeadDim + p
				v := float64(x.Row(t)[i])
				y[t][i] = float64(m.D[head]) * v
				for n := range m.State {
					s := &h[i*m.State+n]
					*s = decay**s + d*float64(b.Row(t)[g*m.State+n])*v
					y[t][i] += float64(c.Row(t)[g*m.State+n]) * *s
				}
			}
		}
	}
	return y
}

func (m *Mamba2) randomInputs(r *rand.Rand, rows int) (x, b, c, dt *tensor.Matrix) {
	x, b, c = random(r, rows, m.Heads*m.HeadDim), random(r, rows, m.Groups*m.State), random(r, rows, m.Groups*m.State)
	dt = random(r, rows, m.Heads)
	for i, v := range dt.Data {
		dt.Data[i] = float32(math.Log1p(math.Exp(float64(v) - 2)))
	}
	return x, b, c, dt
}

func randomMamba2(r *rand.Rand, heads, headDim, groups, state int) *Mamba2 {
	m := &Mamba2{Heads: heads, HeadDim: headDim, Groups: groups, State: state, A: values(r, heads), D: values(r, heads)}
	for i, v := range m.A {
		m.A[i] = -float32(math.Exp(float64(2 * v))) // from hardly any decay to a state that is gone at once
	}
	return m
}

func TestMamba2(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, shape := range [][4]int{{1, 1, 1, 1}, {4, 16, 2, 8}, {6, 5, 3, 7}, {8, 64, 1, 128}, {2, 32, 2, 16}} {
		m := randomMamba2(r, shape[0], shape[1], shape[2], shape[3])
		for _, rows := range []int{0, 1, 5, chunk - 1, chunk, chunk + 1, 3*chunk + 17} {
			x, b, c, dt := m.randomInputs(r, rows)
			want := m.plainScan(x, b, c, dt)
			kerneltest.EachTier(t, func(t *testing.T) {
				dst := random(r, rows, x.Cols)
				m.Scan(dst, x, b, c, dt)
				near(t, fmt.Sprintf("%v, %d tokens", shape, rows), dst, want, 3e-6)
			})
		}
	}
}

// TestDeterministic: bits depend on the threads in no way, nor on what comes later.
func TestDeterministic(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	m := randomMamba2(r, 6, 16, 2, 24)
	const rows, prefix = 150, 100
	x, b, c, dt := m.randomInputs(r, rows)
	dst, again, short := tensor.New(rows, x.Cols), tensor.New(rows, x.Cols), tensor.New(prefix, x.Cols)
	m.Scan(dst, x, b, c, dt)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	m.Scan(again, x, b, c, dt)
	if !slices.Equal(dst.Data, again.Data) {
		t.Error("other bits on one thread")
	}
	head := func(m *tensor.Matrix) *tensor.Matrix { return m.View(0, prefix, 0, m.Cols) }
	m.Scan(short, head(x), head(b), head(c), head(dt))
	for i := range prefix {
		for j, v := range short.Row(i) {
			if d := math.Abs(float64(v - dst.Row(i)[j])); d > 1e-5*(1+math.Abs(float64(v))) {
				t.Fatalf("token %d depends on later ones: %g, %g", i, v, dst.Row(i)[j])
			}
		}
	}
}

func BenchmarkMamba2(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	m := randomMamba2(r, 64, 64, 8, 128)
	x, bs, c, dt := m.randomInputs(r, 512)
	dst := tensor.New(x.Rows, x.Cols)
	for b.Loop() {
		m.Scan(dst, x, bs, c, dt)
	}
	b.ReportMetric(float64(x.Rows)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
