package scan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/tensor"
)

func zeros(rows, cols int) [][]float64 {
	m := make([][]float64, rows)
	for i := range m {
		m[i] = make([]float64, cols)
	}
	return m
}

func TestConvBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	for _, rows := range []int{0, 1, 2, 3, 17, 100} {
		for _, width := range []int{1, 2, 3, 4, 7} {
			dy, cols := random(r, rows, 13), 13
			taps := values(r, cols*width)
			want := zeros(rows, cols)
			for t := range rows {
				for c := range cols {
					for k := range width {
						if s := t - width + 1 + k; s >= 0 {
							want[s][c] += float64(taps[c*width+k]) * float64(dy.Row(t)[c])
						}
					}
				}
			}
			dx := random(r, rows, cols)
			ConvBack(dx, dy, taps, width)
			near(t, fmt.Sprintf("%d tokens, width %d", rows, width), dx, want, 1e-6)
		}
	}
}

// plainBack is the derivative of the recurrence in float64, token by token: the gradients at x, b, c and dt.
func (m *Mamba2) plainBack(in *Mamba2Inputs, dy *tensor.Matrix, seqLen int) [4][][]float64 {
	d := [4][][]float64{zeros(dy.Rows, dy.Cols), zeros(dy.Rows, in.B.Cols), zeros(dy.Rows, in.C.Cols), zeros(dy.Rows, m.Heads)}
	for t0 := 0; t0 < dy.Rows; t0 += seqLen {
		for head := range m.Heads {
			m.plainHead(d, in, dy, t0, t0+seqLen, head)
		}
	}
	return d
}

func (m *Mamba2) plainHead(d [4][][]float64, in *Mamba2Inputs, dy *tensor.Matrix, t0, t1, head int) {
	g, a := head/(m.Heads/m.Groups), float64(m.A[head])
	states := [][][]float64{zeros(m.State, m.HeadDim)} // before each token
	for t := t0; t < t1; t++ {
		h, dt := zeros(m.State, m.HeadDim), float64(in.Dt.Row(t)[head])
		for n := range h {
			for p := range h[n] {
				h[n][p] = math.Exp(dt*a)*states[t-t0][n][p] + dt*float64(in.B.Row(t)[g*m.State+n])*float64(in.X.Row(t)[head*m.HeadDim+p])
			}
		}
		states = append(states, h)
	}
	after := zeros(m.State, m.HeadDim)
	for t := t1 - 1; t >= t0; t-- {
		dt := float64(in.Dt.Row(t)[head])
		for p := range m.HeadDim {
			i := head*m.HeadDim + p
			grad, x := float64(dy.Row(t)[i]), float64(in.X.Row(t)[i])
			d[0][t][i] += float64(m.D[head]) * grad
			for n := range m.State {
				b, c := float64(in.B.Row(t)[g*m.State+n]), float64(in.C.Row(t)[g*m.State+n])
				d[2][t][g*m.State+n] += grad * states[t-t0+1][n][p]
				l := after[n][p] + c*grad
				d[0][t][i] += dt * b * l
				d[1][t][g*m.State+n] += dt * x * l
				d[3][t][head] += l * (b*x + a*math.Exp(dt*a)*states[t-t0][n][p])
				after[n][p] = math.Exp(dt*a) * l
			}
		}
	}
}

func gradients(r *rand.Rand, in *Mamba2Inputs) *Mamba2Inputs {
	like := func(m *tensor.Matrix) *tensor.Matrix { return random(r, m.Rows, m.Cols) }
	return &Mamba2Inputs{like(in.X), like(in.B), like(in.C), like(in.Dt)}
}

// TestMamba2Back compares the derivative with float64, and demands the same bits of any number of threads.
func TestMamba2Back(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	for _, shape := range [][4]int{{1, 1, 1, 1}, {4, 16, 2, 8}, {6, 5, 3, 7}, {20, 4, 1, 16}} {
		m := randomMamba2(r, shape[0], shape[1], shape[2], shape[3])
		for _, seqLen := range []int{1, 5, backChunk - 1, backChunk, backChunk + 1, 2*backChunk + 17} {
			in := &Mamba2Inputs{}
			in.X, in.B, in.C, in.Dt = m.randomInputs(r, 2*seqLen)
			dy := random(r, 2*seqLen, in.X.Cols)
			d, again := gradients(r, in), gradients(r, in)
			m.Back(d, in, dy, seqLen)
			want := m.plainBack(in, dy, seqLen)
			threads := runtime.GOMAXPROCS(5)
			m.Back(again, in, dy, seqLen)
			runtime.GOMAXPROCS(threads)
			more := []*tensor.Matrix{again.X, again.B, again.C, again.Dt}
			for i, got := range []*tensor.Matrix{d.X, d.B, d.C, d.Dt} {
				what := fmt.Sprintf("%v, %d tokens: gradient at %s", shape, seqLen, []string{"x", "b", "c", "dt"}[i])
				near(t, what, got, want[i], 3e-6)
				if !slices.Equal(got.Data, more[i].Data) {
					t.Errorf("%s: other bits on five threads", what)
				}
			}
		}
	}
}

func BenchmarkMamba2Back(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	m := randomMamba2(r, 64, 64, 8, 128)
	in := &Mamba2Inputs{}
	in.X, in.B, in.C, in.Dt = m.randomInputs(r, 512)
	dy, d := random(r, 512, in.X.Cols), gradients(r, in)
	for b.Loop() {
		m.Back(d, in, dy, 512)
	}
}
