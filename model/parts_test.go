package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// random returns a matrix of normal values.
func random(rng *rand.Rand, rows, cols int) *tensor.Matrix {
	m := tensor.New(rows, cols)
	for i := range rows {
		for j := range m.Row(i) {
			m.Row(i)[j] = float32(rng.NormFloat64())
		}
	}
	return m
}

// linear returns a linear with random values.
func linear(rng *rand.Rand, out, in int) *Linear {
	return &Linear{Name: "w", Out: out, In: in, Expert: -1, F32: random(rng, out, in)}
}

// norm returns an RMSNorm with random weights.
func norm(rng *rand.Rand, n int) *Norm {
	return &Norm{Name: "n", W: random(rng, 1, n).Row(0), Eps: 1e-6}
}

// In float64, for one token each.

// nudges are added to the outputs of linears, in float64 alone.
var nudges = map[*Linear][]float64{}

func (l *Linear) ref(x []float64) []float64 {
	y := make([]float64, l.Out)
	for r := range y {
		if l.Bias != nil {
			y[r] = float64(l.Bias[r])
		}
		if nudge := nudges[l]; nudge != nil {
			y[r] += nudge[r]
		}
		for c, w := range l.F32.Row(r) {
			y[r] += float64(w) * x[c]
		}
	}
	return y
}

func (n *Norm) ref(x []float64) []float64 {
	if n == nil {
		return x
	}
	var mean, sum float64
	if n.Layer {
		for _, v := range x {
			mean += v / float64(len(x))
		}
	}
	for _, v := range x {
		sum += (v - mean) * (v - mean)
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = (v - mean) * float64(n.W[i]) / math.Sqrt(sum/float64(len(x))+float64(n.Eps))
		if n.B != nil {
			y[i] += float64(n.B[i])
		}
	}
	return y
}

func geluRef(x float64) float64 {
	return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

// ref is act(gate)·up, or act(up) where gate is nil.
func (f Activation) ref(gate, up []float64) []float64 {
	y := make([]float64, len(up))
	for i, u := range up {
		g := u
		if gate != nil {
			g = gate[i]
		}
		switch f {
		case SiLU:
			g /= 1 + math.Exp(-g)
		case GELU:
			g = geluRef(g)
		case ReLU2:
			g = max(g, 0) * max(g, 0)
		case SwiGLUO:
			g, u = min(g, 7), max(-7, min(u, 7))+1
			g /= 1 + math.Exp(-1.702*g)
		}
		if y[i] = g; gate != nil {
			y[i] *= u
		}
	}
	return y
}

func (f *MLP) ref(x []float64) []float64 {
	up := f.Up.ref(x)
	switch n := f.Down.In; {
	case f.Gate != nil:
		return f.Down.ref(f.Act.ref(f.Gate.ref(x), up))
	case len(up) == 2*n:
		return f.Down.ref(f.Act.ref(up[:n], up[n:]))
	default:
		return f.Down.ref(f.Act.ref(nil, up))
	}
}

func wide(row []float32) []float64 {
	y := make([]float64, len(row))
	for i, v := range row {
		y[i] = float64(v)
	}
	return y
}

// layerOf builds a layer from a function, for hidden states of some width.
func layerOf(dim, width int, build func(b *Loader)) *Layer {
	m := &Model{Dim: dim, Width: width, Precision: kernels.F32}
	l := &Layer{m: m, vectors: map[string][]float32{}}
	build(&Loader{m: m, layer: l})
	return l
}

func forwardLast(t *testing.T, l *Layer, x *tensor.Matrix, seqLen, last int) *tensor.Matrix {
	t.Helper()
	y := x.Clone()
	if err := l.ForwardLast(t.Context(), l.m.NewState(), y, seqLen, last); err != nil {
		t.Fatal(err)
	}
	return y
}

func nearly(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	for j, w := range want {
		if d := math.Abs(float64(got[j]) - w); !(d <= 2e-4*(1+math.Abs(w))) {
			t.Fatalf("%s: feature %d is %v, want %v", what, j, got[j], w)
		}
	}
}

// TestSum compares a sum of two branches with norms of their own, a norm around both and a factor of the layer.
func TestSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, shape := range [][3]int{{16, 24, 1}, {33, 7, 5}, {64, 96, 40}} {
		dim, ffn, tokens := shape[0], shape[1], shape[2]
		mlp := func() *MLP {
			return &MLP{Gate: linear(rng, ffn, dim), Up: linear(rng, ffn, dim), Down: linear(rng, dim, ffn), Act: GELU}
		}
		a, b := mlp(), mlp()
		pre1, post1, pre2, post2, post := norm(rng, dim), norm(rng, dim), norm(rng, dim), norm(rng, dim), norm(rng, dim)
		factor := float32(0.75)
		l := layerOf(dim, dim, func(load *Loader) {
			load.Residual(Residual{
				Branch: Sum{{Pre: pre1, Branch: a.Branch(), Post: post1}, {Pre: pre2, Branch: b.Branch(), Post: post2}}.Branch(),
				Post:   post, LayerScale: &LayerScale{[]float32{factor}},
			})
		})
		if p := l.Stages[2].Sites[0].Prev; p == nil || &p.Norm[0] != &pre2.W[0] {
			t.Error("the second part's input is not scaled by its norm")
		}
		x := random(rng, tokens, dim)
		y := forwardLast(t, l, x, tokens, tokens)
		for i := range tokens {
			in := wide(x.Row(i))
			sum := post1.ref(a.ref(pre1.ref(in)))
			for j, v := range post2.ref(b.ref(pre2.ref(in))) {
				sum[j] += v
			}
			want := post.ref(sum)
			for j := range want {
				want[j] = float64(factor) * (in[j] + want[j])
			}
			nearly(t, "sum", y.Row(i), want)
		}
	}
}

// TestPerLayer compares embeddings for layers: how they are made, and what a layer adds for them, for the last tokens of
// sequences too.
func TestPerLayer(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	const dim, width, layers, at, seqs, seqLen = 24, 8, 3, 8, 2, 9
	table := random(rng, 50, width*layers)
	p := &PerLayerEmbeddings{Width: width, Proj: linear(rng, width*layers, dim), Norm: norm(rng, width),
		Table: func(dst *tensor.Matrix, tokens []int32) error {
			for i, id := range tokens {
				copy(dst.Row(i), table.Row(int(id)))
			}
			return nil
		}}
	hidden := random(rng, seqs*seqLen, dim+width*layers)
	tokens := make([]int32, hidden.Rows)
	for i := range tokens {
		tokens[i] = int32(rng.IntN(50))
	}
	aux := hidden.View(0, hidden.Rows, dim, hidden.Cols)
	if err := p.Embed(aux, hidden.View(0, hidden.Rows, 0, dim), tokens, nil); err != nil {
		t.Fatal(err)
	}
	for i, id := range tokens {
		proj := p.Proj.ref(wide(hidden.Row(i)[:dim]))
		for j := range proj {
			proj[j] /= math.Sqrt(dim)
		}
		want := make([]float64, len(proj))
		for l := range layers {
			copy(want[l*width:], p.Norm.ref(proj[l*width:(l+1)*width]))
		}
		for j := range want {
			want[j] = (want[j] + float64(table.Row(int(id))[j])*math.Sqrt(width)) / math.Sqrt2
		}
		nearly(t, "embedding", aux.Row(i), want)
	}
	f := &PerLayer{Gate: linear(rng, width, dim), Proj: linear(rng, dim, width), Act: GELU, At: at}
	post := norm(rng, dim)
	a := &Attention{Heads: 2, KVHeads: 1, HeadDim: 4, Scale: 0.5, Q: linear(rng, 8, dim), K: linear(rng, 4, dim), V: linear(rng, 4, dim), O: linear(rng, dim, 8)}
	attend := layerOf(dim, hidden.Cols, func(b *Loader) { b.Residual(Residual{Branch: a.Branch()}) })
	both := layerOf(dim, hidden.Cols, func(b *Loader) {
		b.Residual(Residual{Branch: a.Branch()})
		b.Residual(Residual{Branch: f.Branch(), Post: post})
	})
	between := forwardLast(t, attend, hidden, seqLen, seqLen)
	for _, last := range []int{seqLen, 4, 1} {
		y := forwardLast(t, both, hidden, seqLen, last)
		for i := range y.Rows {
			if i%seqLen < seqLen-last {
				continue
			}
			x, e := wide(between.Row(i)[:dim]), wide(aux.Row(i)[at:at+width])
			g := f.Gate.ref(x)
			for j := range g {
				g[j] = geluRef(g[j]) * e[j]
			}
			want := post.ref(f.Proj.ref(g))
			for j := range want {
				want[j] += x[j]
			}
			nearly(t, "added", y.Row(i), want)
		}
	}
}

// TestSharedKeys has a layer take another's keys and values: it must do what a layer with the same keys and values of its
// own, from the hidden states that the other saw, would do.
func TestSharedKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, shape := range [][4]int{{2, 1, 8, 3}, {4, 2, 16, 0}, {6, 6, 4, 5}} {
		heads, kvHeads, d, window := shape[0], shape[1], shape[2], shape[3]
		const dim, seqs, seqLen = 20, 2, 11
		kv := kvHeads * d
		width := dim + 3 + 2*kv
		rope := &RoPE{Dims: d, Base: 100, Scaling: "none", Factor: 1, OrigContext: 64, AttnFactor: 1, Style: elementwise.RoPEHalves}
		base := Attention{Heads: heads, KVHeads: kvHeads, HeadDim: d, Scale: attention.Scale(d), Window: window, RoPE: rope,
			KNorm: norm(rng, d), VNorm: Unweighted(d, 1e-6), K: linear(rng, kv, dim), V: linear(rng, kv, dim)}
		first, second := base, base
		first.Q, first.O, first.QNorm = linear(rng, heads*d, dim), linear(rng, dim, heads*d), norm(rng, d)
		second.Q, second.O, second.QNorm = linear(rng, heads*d, dim), linear(rng, dim, heads*d), norm(rng, d)
		keeps, takes := first, second
		keeps.Keeps, takes.Takes, takes.K, takes.V, takes.KNorm, takes.VNorm = &KV{3}, &KV{3}, nil, nil, nil, nil
		x := random(rng, seqs*seqLen, width)
		one := func(a Attention, x *tensor.Matrix, last int) *tensor.Matrix {
			return forwardLast(t, layerOf(dim, width, func(b *Loader) { b.Residual(Residual{Branch: a.Branch()}) }), x, seqLen, last)
		}
		kept := one(keeps, x, seqLen)
		for i := range kept.Rows {
			nearly(t, "the layer that keeps", kept.Row(i)[:dim], wide(one(first, x, seqLen).Row(i)[:dim]))
		}
		// The second layer sees the hidden states that the first saw, and what the first has kept.
		again := kept.Clone()
		for i := range again.Rows {
			copy(again.Row(i)[:dim], x.Row(i)[:dim])
		}
		want := one(second, x, seqLen)
		for _, last := range []int{seqLen, 5} {
			got := one(takes, again, last)
			for i := range got.Rows {
				if i%seqLen >= seqLen-last {
					nearly(t, "the layer that takes", got.Row(i)[:dim], wide(want.Row(i)[:dim]))
				}
			}
		}
		if s := layerOf(dim, width, func(b *Loader) { b.Residual(Residual{Branch: takes.Branch()}) }).Stages; !s[0].ReadsAux || len(s[0].Sites[0].Linears) != 1 {
			t.Error("a layer that takes keys has other linears than its queries', or does not say that it reads them")
		}
	}
}

// TestTemperature compares factors of queries with the formula, for the last tokens alone too.
func TestTemperature(t *testing.T) {
	f := &Temperature{Scale: 0.1, Every: 4, Offset: 1}
	for _, at := range []int{0, 3, 10} {
		q := random(rand.New(rand.NewPCG(4, 4)), 9, 6)
		was := q.Clone()
		f.apply(q, at)
		for i := range q.Rows {
			scale := 1 + 0.1*math.Log(1+math.Floor(float64(at+i+1)/4))
			want := wide(was.Row(i))
			for j := range want {
				want[j] *= scale
			}
			nearly(t, "queries", q.Row(i), want)
		}
	}
	(*Temperature)(nil).apply(random(rand.New(rand.NewPCG(5, 5)), 1, 1), 3)
}

// TestLongRoPE: sequences beyond the original context have other factors.
func TestLongRoPE(t *testing.T) {
	r := &RoPE{Dims: 4, Base: 100, Scaling: "none", Factor: 1, OrigContext: 8, AttnFactor: 1, Factors: []float32{1, 2}}
	r.Long = r.WithBase(r.Base)
	r.Long.Factors = []float32{3, 4}
	if (*RoPE)(nil).For(9) != nil || r.For(8) != r || r.For(9) != r.Long {
		t.Error("another rotary embedding than the length calls for")
	}
	cos, _ := r.For(9).Table(9)
	if want := math.Cos(5 * 1 / 3.0); math.Abs(float64(cos.Row(5)[0])-want) > 1e-6 {
		t.Errorf("cosine %v, want %v", cos.Row(5)[0], want)
	}
}
