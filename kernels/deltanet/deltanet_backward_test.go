package deltanet

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

// wide is a matrix in float64.
type wide [][]float64

func newWide(rows, cols int) wide {
	m := make(wide, rows)
	for i := range m {
		m[i] = make([]float64, cols)
	}
	return m
}

// back64 is the derivative of the rule in float64, token by token: the gradients at q, k, v, g and beta.
func back64(s *Shape, in *Inputs, do *tensor.Matrix, seqLen int) [5]wide {
	n := do.Rows
	d := [5]wide{newWide(n, in.Q.Cols), newWide(n, in.K.Cols), newWide(n, in.V.Cols), newWide(n, s.Heads), newWide(n, s.Heads)}
	for h := range s.Heads {
		kh := h % s.KeyHeads
		if s.Grouped {
			kh = h * s.KeyHeads / s.Heads
		}
		for t0 := 0; t0 < n; t0 += seqLen {
			back64Head(s, d, in, do, t0, t0+seqLen, h, kh)
		}
	}
	return d
}

func back64Head(s *Shape, d [5]wide, in *Inputs, do *tensor.Matrix, t0, t1, h, kh int) {
	key := func(m *tensor.Matrix, t, i int) float64 { return float64(m.Row(t)[kh*s.KeyDim+i]) }
	value := func(m *tensor.Matrix, t, j int) float64 { return float64(m.Row(t)[h*s.ValueDim+j]) }
	// By token: the memory that has faded, and after the correction, and what is corrected before β.
	faded, memory, short := []wide{}, []wide{}, newWide(t1-t0, s.ValueDim)
	last := newWide(s.KeyDim, s.ValueDim)
	for t := t0; t < t1; t++ {
		f, m, fade := newWide(s.KeyDim, s.ValueDim), newWide(s.KeyDim, s.ValueDim), math.Exp(float64(in.G.Row(t)[h]))
		for j := range s.ValueDim {
			e := value(in.V, t, j)
			for i := range f {
				f[i][j] = fade * last[i][j]
				e -= f[i][j] * key(in.K, t, i)
			}
			short[t-t0][j] = e
			for i := range f {
				m[i][j] = f[i][j] + key(in.K, t, i)*float64(in.Beta.Row(t)[h])*e
			}
		}
		faded, memory, last = append(faded, f), append(memory, m), m
	}
	after := newWide(s.KeyDim, s.ValueDim)
	for t := t1 - 1; t >= t0; t-- {
		f, m, e := faded[t-t0], memory[t-t0], short[t-t0]
		beta, fade := float64(in.Beta.Row(t)[h]), math.Exp(float64(in.G.Row(t)[h]))
		dq, dk := d[0][t][kh*s.KeyDim:], d[1][t][kh*s.KeyDim:]
		for j := range s.ValueDim {
			du, o := 0.0, float64(s.Scale)*value(do, t, j)
			for i := range f {
				after[i][j] += key(in.Q, t, i) * o
				dq[i] += m[i][j] * o
				du += after[i][j] * key(in.K, t, i)
				dk[i] += after[i][j] * beta * e[j]
			}
			d[4][t][h] += du * e[j]
			d[2][t][h*s.ValueDim+j] = beta * du
			for i := range f {
				dk[i] -= f[i][j] * beta * du
				after[i][j] -= key(in.K, t, i) * beta * du
				d[3][t][h] += after[i][j] * f[i][j]
				after[i][j] *= fade
			}
		}
	}
}

func gradients(rng *rand.Rand, in *Inputs) *Inputs {
	like := func(m *tensor.Matrix) *tensor.Matrix { return kerneltest.Random(rng, m.Rows, m.Cols) }
	return &Inputs{like(in.Q), like(in.K), like(in.V), like(in.G), like(in.Beta)}
}

// TestBack compares the derivative with float64, and demands the same bits of any number of threads.
func TestBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	for _, s := range []Shape{
		{Heads: 1, KeyHeads: 1, KeyDim: 1, ValueDim: 1, Scale: 1},
		{Heads: 4, KeyHeads: 2, KeyDim: 16, ValueDim: 8, Scale: 0.25},
		{Heads: 6, KeyHeads: 2, KeyDim: 5, ValueDim: 7, Scale: 0.4, Grouped: true},
	} {
		for _, seqLen := range []int{1, 2, 17, backChunk, backChunk + 1, 2*backChunk + 9} {
			for _, extreme := range []bool{false, true} {
				in := &Inputs{}
				in.Q, in.K, in.V, in.G, in.Beta = inputs(rng, &s, 2*seqLen, extreme)
				do := kerneltest.Random(rng, 2*seqLen, in.V.Cols)
				d, again := gradients(rng, in), gradients(rng, in)
				Back(&s, d, in, do, seqLen)
				want := back64(&s, in, do, seqLen)
				for i, got := range []*tensor.Matrix{d.Q, d.K, d.V, d.G, d.Beta} {
					what := fmt.Sprintf("%+v, %d tokens, extreme %v: gradient at %s", s, seqLen, extreme, []string{"q", "k", "v", "g", "beta"}[i])
					near(t, what, got, want[i])
				}
				threads := runtime.GOMAXPROCS(5)
				Back(&s, again, in, do, seqLen)
				runtime.GOMAXPROCS(threads)
				for i, m := range []*tensor.Matrix{again.Q, again.K, again.V, again.G, again.Beta} {
					if !slices.Equal(m.Data, []*tensor.Matrix{d.Q, d.K, d.V, d.G, d.Beta}[i].Data) {
						t.Errorf("%+v, %d tokens: other bits on five threads", s, seqLen)
					}
				}
			}
		}
	}
}

// near compares with the root mean square of what is wanted.
func near(t *testing.T, what string, got *tensor.Matrix, want wide) {
	t.Helper()
	var square, worst float64
	for i, row := range want {
		for j, w := range row {
			square += w * w
			if d := math.Abs(float64(got.Row(i)[j]) - w); !(d <= worst) {
				worst = d
			}
		}
	}
	if scale := math.Sqrt(square / float64(got.Rows*got.Cols)); !(worst <= 1e-5*scale) {
		t.Errorf("%s: off by %.3g, the root mean square is %.3g", what, worst, scale)
	}
}

func BenchmarkBack(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 2))
	s := Shape{Heads: 8, KeyHeads: 4, KeyDim: 128, ValueDim: 128, Scale: 0.1}
	in := &Inputs{}
	in.Q, in.K, in.V, in.G, in.Beta = inputs(rng, &s, 1024, false)
	do := kerneltest.Random(rng, 1024, in.V.Cols)
	d := gradients(rng, in)
	b.Run("scan", func(b *testing.B) {
		for b.Loop() {
			Scan(&s, d.V, in.Q, in.K, in.V, in.G, in.Beta, 1024)
		}
	})
	b.Run("back", func(b *testing.B) {
		for b.Loop() {
			Back(&s, d, in, do, 1024)
		}
	})
}
