package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/deltanet"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// random adds a tensor of normal values times scale to a source, and returns them.
func random(src *testmodel.Source, rng *rand.Rand, scale float64, name string, shape ...int) []float32 {
	n := 1
	for _, d := range shape {
		n *= d
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(scale * rng.NormFloat64())
	}
	t := ggml.Tensor{Info: ggml.Info{Name: name, Type: ggml.F32, Shape: shape}, Data: make([]byte, 4*n)}
	tensor.EncodeF32(t.Data, v)
	src.List = append(src.List, t)
	return v
}

// deltaCase is a layer of one DeltaNet, with its weights.
type deltaCase struct {
	deltanet.Shape
	taps  int
	fused bool
	dim   int

	qkv, gate, alpha, beta, both, conv, dt, a, norm, out []float32
}

const deltaEps = 1e-3 // large, so that it matters where it stands

// open makes a model of the layer.
func (c *deltaCase) open(t *testing.T, rng *rand.Rand) *model.Model {
	src := &testmodel.Source{Path: "deltanet"}
	inner := c.Heads * c.ValueDim
	channels := 2*c.KeyHeads*c.KeyDim + inner
	one := 1 / math.Sqrt(float64(c.dim))
	random(src, rng, 1, "token_embd.weight", 8, c.dim)
	c.qkv, c.gate = random(src, rng, one, "blk.0.attn_qkv.weight", channels, c.dim), random(src, rng, one, "blk.0.attn_gate.weight", inner, c.dim)
	if c.fused {
		c.both = random(src, rng, one, "blk.0.ssm_ba.weight", 2*c.Heads, c.dim)
	} else {
		c.alpha, c.beta = random(src, rng, one, "blk.0.ssm_alpha.weight", c.Heads, c.dim), random(src, rng, one, "blk.0.ssm_beta.weight", c.Heads, c.dim)
	}
	c.conv = random(src, rng, 1, "blk.0.ssm_conv1d.weight", channels, c.taps)
	c.dt, c.a = random(src, rng, 2, "blk.0.ssm_dt.bias", c.Heads), random(src, rng, -0.3, "blk.0.ssm_a", c.Heads)
	for i, v := range c.a {
		c.a[i] = -float32(math.Abs(float64(v)))
	}
	tensor.EncodeF32(src.Find("blk.0.ssm_a").Data, c.a)
	c.norm = random(src, rng, 1, "blk.0.ssm_norm.weight", c.ValueDim)
	c.out = random(src, rng, 1/math.Sqrt(float64(inner)), "blk.0.ssm_out.weight", c.dim, inner)
	m, err := model.New(src, &model.Spec{Arch: "test", Layers: 1, Dim: c.dim, Vocab: 8, Context: 1000,
		Outer: func(b *model.Loader) model.Ends { return model.Ends{} },
		Layer: func(b *model.Loader, i int) {
			d := &model.DeltaNet{Shape: c.Shape, Taps: c.taps, Eps: deltaEps,
				QKV:  b.Linear("attn_qkv", channels, c.dim, model.Absent),
				Gate: b.Linear("attn_gate", inner, c.dim, model.Absent),
				Conv: b.Values("ssm_conv1d.weight", model.RoleKept, model.Required, channels, c.taps),
				DT:   b.Vector("ssm_dt.bias", c.Heads, model.Required),
				A:    b.Vector("ssm_a", c.Heads, model.Required),
				Norm: b.Norm("ssm_norm", c.ValueDim, deltaEps),
				O:    b.Linear("ssm_out", c.dim, inner, model.Absent),
			}
			if c.fused {
				d.BetaAlpha = b.Linear("ssm_ba", 2*c.Heads, c.dim, model.Absent)
			} else {
				d.Alpha, d.Beta = b.Linear("ssm_alpha", c.Heads, c.dim, model.Absent), b.Linear("ssm_beta", c.Heads, c.dim, model.Absent)
			}
			b.Residual(model.Residual{Branch: d.Branch()})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	return m
}

// row is row r of w, dim wide, times x.
func row(w []float32, r int, x []float64) float64 {
	sum := 0.0
	for i, v := range x {
		sum += float64(w[r*len(x)+i]) * v
	}
	return sum
}

func silu64(x float64) float64 { return x / (1 + math.Exp(-x)) }

// reference is the layer for one sequence in float64, from the definition.
func (c *deltaCase) reference(x [][]float64) [][]float64 {
	keys, inner := c.KeyHeads*c.KeyDim, c.Heads*c.ValueDim
	channels, share := 2*keys+inner, c.Heads/c.KeyHeads
	mixed := make([][]float64, len(x))
	memory := make([]float64, c.Heads*c.KeyDim*c.ValueDim)
	out := make([][]float64, len(x))
	for t, h := range x {
		mixed[t] = make([]float64, channels)
		u := make([]float64, channels)
		for r := range channels {
			mixed[t][r] = row(c.qkv, r, h)
			for j := range c.taps {
				if s := t - c.taps + 1 + j; s >= 0 {
					u[r] += float64(c.conv[r*c.taps+j]) * mixed[s][r]
				}
			}
			u[r] = silu64(u[r])
		}
		unit := func(v []float64) []float64 {
			sum := deltaEps
			for _, e := range v {
				sum += e * e
			}
			w := make([]float64, len(v))
			for i, e := range v {
				w[i] = e / math.Sqrt(sum)
			}
			return w
		}
		y := make([]float64, inner)
		for head := range c.Heads {
			kh := head % c.KeyHeads
			if c.Grouped {
				kh = head / share
			}
			var beta, alpha float64
			if c.fused {
				first := head / share * 2 * share
				beta, alpha = row(c.both, first+head%share, h), row(c.both, first+share+head%share, h)
			} else {
				beta, alpha = row(c.beta, head, h), row(c.alpha, head, h)
			}
			beta = 1 / (1 + math.Exp(-beta))
			fade := math.Exp(float64(c.a[head]) * math.Log(1+math.Exp(alpha+float64(c.dt[head]))))
			q, k := unit(u[kh*c.KeyDim:(kh+1)*c.KeyDim]), unit(u[keys+kh*c.KeyDim:keys+(kh+1)*c.KeyDim])
			v := u[2*keys+head*c.ValueDim : 2*keys+(head+1)*c.ValueDim]
			s := memory[head*c.KeyDim*c.ValueDim:]
			o, squares := y[head*c.ValueDim:(head+1)*c.ValueDim], 0.0
			for j := range o {
				held := 0.0
				for i := range k {
					s[i*c.ValueDim+j] *= fade
					held += s[i*c.ValueDim+j] * k[i]
				}
				for i := range k {
					s[i*c.ValueDim+j] += k[i] * beta * (v[j] - held)
					o[j] += s[i*c.ValueDim+j] * q[i] * float64(c.Scale)
				}
				squares += o[j] * o[j]
			}
			for j := range o {
				o[j] *= float64(c.norm[j]) / math.Sqrt(squares/float64(len(o))+deltaEps) * silu64(row(c.gate, head*c.ValueDim+j, h))
			}
		}
		out[t] = slices.Clone(h)
		for r := range out[t] {
			out[t][r] += row(c.out, r, y)
		}
	}
	return out
}

// TestDeltaNet compares the mixer with float64, and demands the same bits of sequences alone or together, of the last
// tokens alone, and of any number of threads.
func TestDeltaNet(t *testing.T) {
	const few = 4 // tokens, up to which products sum in another order
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range []deltaCase{
		{Shape: deltanet.Shape{Heads: 4, KeyHeads: 2, KeyDim: 16, ValueDim: 16, Scale: 0.25}, taps: 4, dim: 32},
		{Shape: deltanet.Shape{Heads: 4, KeyHeads: 2, KeyDim: 8, ValueDim: 8, Scale: 0.35, Grouped: true}, taps: 4, fused: true, dim: 24},
		{Shape: deltanet.Shape{Heads: 3, KeyHeads: 1, KeyDim: 5, ValueDim: 7, Scale: 1}, taps: 2, dim: 16},
		{Shape: deltanet.Shape{Heads: 6, KeyHeads: 3, KeyDim: 32, ValueDim: 32, Scale: 0.2, Grouped: true}, taps: 1, dim: 40},
	} {
		m := c.open(t, rng)
		l, err := m.LoadLayer(0)
		if err != nil {
			t.Fatal(err)
		}
		st := m.NewState()
		for _, seqLen := range []int{1, 3, 19, 70} {
			const seqs = 2
			x := tensor.New(seqs*seqLen, c.dim)
			for i := range x.Data {
				x.Data[i] = float32(rng.NormFloat64())
			}
			run := func(x *tensor.Matrix, last int) *tensor.Matrix {
				y := x.Clone()
				if err := l.ForwardLast(t.Context(), st, y, seqLen, last); err != nil {
					t.Fatal(err)
				}
				return y
			}
			got := run(x, seqLen)
			for s := range seqs {
				in := make([][]float64, seqLen)
				for i := range in {
					for _, v := range x.Row(s*seqLen + i) {
						in[i] = append(in[i], float64(v))
					}
				}
				compare(t, fmt.Sprintf("%+v of %d", c.Shape, seqLen), got, s*seqLen, c.reference(in), 1e-5)
				alone := run(x.View(s*seqLen, (s+1)*seqLen, 0, c.dim), seqLen)
				if seqLen > few && !slices.Equal(alone.Data, got.Data[s*seqLen*c.dim:(s+1)*seqLen*c.dim]) {
					t.Errorf("%+v: sequence %d of %d alone differs", c.Shape, s, seqLen)
				}
			}
			for last := few + 1; last < seqLen; last += 5 {
				tail := run(x, last)
				for i := range x.Rows {
					if i%seqLen >= seqLen-last && !slices.Equal(tail.Row(i), got.Row(i)) {
						t.Fatalf("%+v, the last %d of %d: token %d differs", c.Shape, last, seqLen, i)
					}
				}
			}
			// What comes to the output's linear outlasts that linear's products, of replaced weights too.
			st.Enter(m, x.Clone(), seqLen)
			if err := l.Run(t.Context(), st, 0, 1, nil); err != nil {
				t.Fatal(err)
			}
			in, o := st.In.Clone(), l.Stages[1].Sites[0].Linears[0]
			if o.F32, err = o.Matrix(); err != nil {
				t.Fatal(err)
			}
			if st.AddProduct(tensor.New(x.Rows, c.dim), o, st.In); !slices.Equal(in.Data, st.In.Data) {
				t.Errorf("%+v: a product of the output's linear changes its input", c.Shape)
			}
			o.F32 = nil
			threads := runtime.GOMAXPROCS(5)
			more := run(x, seqLen)
			runtime.GOMAXPROCS(threads)
			if !slices.Equal(more.Data, got.Data) {
				t.Errorf("%+v: another number of threads gives other values", c.Shape)
			}
		}
		l.Release()
	}
}
