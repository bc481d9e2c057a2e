package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/deltanet"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// gradientLimit bounds the error of gradients, as a share of their root mean square.
const gradientLimit = 1e-4

// richardson is the derivative by what nudge moves by a step, from differences in float64 whose errors of second order cancel.
func richardson(f func() float64, nudge func(by float64)) float64 {
	const step = 1. / 4096
	at := func(by float64) float64 {
		nudge(by)
		y := f()
		nudge(-by)
		return y
	}
	return (8*(at(step)-at(-step)) - (at(2*step) - at(-2*step))) / (12 * step)
}

// checkBackward compares Layer.Backward with derivatives of the layer's float64 reference, of a random function of its output: at
// the input, every feature of every token, and at the outputs of all linears, summed over tokens.
func checkBackward(t *testing.T, rng *rand.Rand, dim, width, seqLen int, places [][]part64) {
	t.Helper()
	checkInputs(t, rng, dim, width, width, seqLen, places)
}

// checkInputs is checkBackward where the gradient is told for the first features of the input alone.
func checkInputs(t *testing.T, rng *rand.Rand, dim, width, inputs, seqLen int, places [][]part64) {
	t.Helper()
	l := layerOf(dim, width, func(b *Loader) {
		for _, parts := range places {
			if len(parts) == 1 {
				b.Residual(parts[0].Residual)
				continue
			}
			var all []Residual
			for _, p := range parts {
				all = append(all, p.Residual)
			}
			b.Parallel(all...)
		}
	})
	const sequences = 2
	x, dy := random(rng, sequences*seqLen, width), random(rng, sequences*seqLen, width)
	hidden := make([][]float64, x.Rows)
	for i := range hidden {
		hidden[i] = wide(x.Row(i))
	}
	sequence := func(first int) float64 { // its share of the function
		sum := 0.0
		for i, row := range layer64(hidden[first:first+seqLen], dim, places) {
			for j, v := range row {
				sum += v * float64(dy.Row(first + i)[j])
			}
		}
		return sum
	}
	loss := func() float64 {
		sum := 0.0
		for first := 0; first < len(hidden); first += seqLen {
			sum += sequence(first)
		}
		return sum
	}

	// The gradient at each linear's output, summed over tokens, and its sum of squares.
	sums, squares := map[*Linear][]float64{}, map[*Linear]float64{}
	d := &Differential{See: func(lin *Linear, g *tensor.Matrix, _ []int) error {
		if sums[lin] == nil {
			sums[lin] = make([]float64, lin.Out)
		}
		for i := range g.Rows {
			for j, v := range g.Row(i) {
				sums[lin][j] += float64(v)
				squares[lin] += float64(v) * float64(v)
			}
		}
		return nil
	}}
	dx := dy.Clone()
	if err := l.Backward(t.Context(), l.m.NewState(), x, dx, seqLen, d); err != nil {
		t.Fatal(err)
	}
	if len(d.Opaque) > 0 {
		t.Fatalf("no derivative: %v", d.Opaque)
	}

	square, worst := 0.0, 0.0
	for i, row := range hidden {
		own := func() float64 { return sequence(i / seqLen * seqLen) }
		for j := range row[:inputs] {
			want := richardson(own, func(by float64) { row[j] += by })
			square += want * want
			if off := math.Abs(float64(dx.Row(i)[j]) - want); !(off <= worst) {
				worst = off
			}
		}
	}
	if scale := math.Sqrt(square / float64(len(hidden)*inputs)); !(worst <= gradientLimit*scale) {
		t.Errorf("the gradient at the input is off by %.3g, the root mean square is %.3g", worst, scale)
	}
	for _, site := range l.Sites() {
		for _, lin := range site.Linears {
			if sums[lin] == nil && (site.Expert < 0 || site.Head) { // an expert may have no tokens
				t.Errorf("%s: a linear is not shown", site.Name)
			}
		}
	}
	for lin, got := range sums {
		nudges[lin] = make([]float64, lin.Out)
		scale := math.Sqrt(squares[lin] / float64(lin.Out))
		for j := range got {
			want := richardson(loss, func(by float64) { nudges[lin][j] += by })
			if off := math.Abs(got[j] - want); !(off <= gradientLimit*scale) {
				t.Errorf("%s: output %d has the gradient %.7g, differences give %.7g (root mean square %.3g)", lin.Name, j, got[j], want, scale)
			}
		}
		delete(nudges, lin)
	}
}

// biased is even with a name and a bias.
func biased(rng *rand.Rand, name string, out, in int) *Linear {
	l := even(rng, out, in)
	l.Name = name
	l.Bias = vectorOf(rng, out)
	elementwise.Scale(l.Bias, 0.5)
	return l
}

// plain is even with a name, and no bias.
func plain(rng *rand.Rand, name string, out, in int) *Linear {
	l := even(rng, out, in)
	l.Name = name
	return l
}

func layerNorm(rng *rand.Rand, n int, bias bool) *Norm {
	v := &Norm{Name: "n", W: vectorOf(rng, n), Eps: 1e-5, Layer: true}
	if bias {
		v.B = vectorOf(rng, n)
	}
	return v
}

// some is an attention of 4 heads, 2 of them of keys, with 4 features.
func some(rng *rand.Rand, dim int) *Attention {
	return &Attention{Heads: 4, KVHeads: 2, HeadDim: 4, Scale: attention.Scale(4), Q: biased(rng, "q", 16, dim), K: biased(rng, "k", 8, dim),
		V: biased(rng, "v", 8, dim), O: biased(rng, "o", dim, 16), RoPE: rotary(4, elementwise.RoPEHalves)}
}

func rotary(dims int, style elementwise.RoPEStyle) *RoPE {
	return &RoPE{Dims: dims, Base: 50, Scaling: "none", Factor: 1, OrigContext: 64, AttnFactor: 1, BetaFast: 32, BetaSlow: 1, Style: style}
}

func TestAttentionBackward(t *testing.T) {
	const dim = 8
	for name, change := range map[string]func(rng *rand.Rand, a *Attention){
		"plain": func(_ *rand.Rand, a *Attention) { a.RoPE = nil },
		"no bias, rotated pairs": func(rng *rand.Rand, a *Attention) {
			a.Q, a.K, a.V, a.O = plain(rng, "q", 16, dim), plain(rng, "k", 8, dim), plain(rng, "v", 8, dim), plain(rng, "o", dim, 16)
			a.RoPE = rotary(4, elementwise.RoPEPairs)
		},
		"fused, part of a head rotated, window": func(rng *rand.Rand, a *Attention) {
			a.Q, a.K, a.V, a.QKV = nil, nil, nil, biased(rng, "qkv", 32, dim)
			a.RoPE, a.Window = rotary(2, elementwise.RoPEHalves), 3
		},
		"norms of heads":     func(rng *rand.Rand, a *Attention) { a.QNorm, a.KNorm = norm(rng, 4), norm(rng, 4) },
		"norms after RoPE":   func(rng *rand.Rand, a *Attention) { a.QNorm, a.KNorm, a.NormAfter = norm(rng, 4), norm(rng, 4), true },
		"norms of all heads": func(rng *rand.Rand, a *Attention) { a.QNorm, a.KNorm = norm(rng, 16), norm(rng, 8) },
		"norms of each head": func(rng *rand.Rand, a *Attention) { a.QNorm, a.KNorm = perHead(rng, 16), perHead(rng, 8) },
		"LayerNorm of heads": func(rng *rand.Rand, a *Attention) {
			a.QNorm, a.KNorm = layerNorm(rng, 4, true), layerNorm(rng, 4, false)
		},
		"softcap, window":         func(_ *rand.Rand, a *Attention) { a.Softcap, a.Window = 0.75, 4 },
		"sinks, window":           func(rng *rand.Rand, a *Attention) { a.Sinks, a.Window = vectorOf(rng, 4), 3 },
		"sinks":                   func(rng *rand.Rand, a *Attention) { a.Sinks = vectorOf(rng, 4) },
		"gate of a linear's own":  func(rng *rand.Rand, a *Attention) { a.Gate = biased(rng, "gate", 16, dim) },
		"temperature":             func(_ *rand.Rand, a *Attention) { a.Temperature = &Temperature{Scale: 0.5, Every: 2, Offset: 1} },
		"values are keys, normed": func(rng *rand.Rand, a *Attention) { a.V, a.KNorm, a.VNorm = nil, norm(rng, 4), Unweighted(4, 1e-6) },
		"queries with gates": func(rng *rand.Rand, a *Attention) {
			a.Q, a.Gated, a.QNorm, a.KNorm = biased(rng, "q", 32, dim), true, norm(rng, 4), norm(rng, 4)
		},
		"fused with gates": func(rng *rand.Rand, a *Attention) {
			a.Q, a.K, a.V, a.QKV, a.Gated = nil, nil, nil, biased(rng, "qkv", 48, dim), true
		},
		"YaRN": func(_ *rand.Rand, a *Attention) {
			a.RoPE.Scaling, a.RoPE.Factor, a.RoPE.OrigContext, a.QNorm = "yarn", 4, 16, nil
		},
		"factors of frequencies, long": func(_ *rand.Rand, a *Attention) {
			a.RoPE.Factors, a.RoPE.OrigContext = []float32{1, 2}, 4
			a.RoPE.Long = a.RoPE.WithBase(50)
			a.RoPE.Long.Factors, a.RoPE.Long.AttnFactor = []float32{3, 4}, 1.25
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(15, uint64(len(name))))
			a := some(rng, dim)
			change(rng, a)
			checkBackward(t, rng, dim, dim, 6, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: a.Branch()}, a.ref}}})
		})
	}
}

func perHead(rng *rand.Rand, n int) *Norm {
	v := norm(rng, n)
	v.PerHead = true
	return v
}

// TestSharedKeysBackward: two attentions take the keys and values of a third, and add to the gradients there.
func TestSharedKeysBackward(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 101))
	const dim, at = 8, 3
	keeps := some(rng, dim)
	keeps.Keeps, keeps.KNorm, keeps.VNorm = &KV{at}, norm(rng, 4), Unweighted(4, 1e-6)
	places := [][]part64{{{Residual{Pre: norm(rng, dim), Branch: keeps.Branch()}, keeps.ref}}}
	for i := range 2 {
		takes := some(rng, dim)
		takes.Takes, takes.K, takes.V, takes.QNorm, takes.Window = &KV{at}, nil, nil, norm(rng, 4), 3*i
		places = append(places, []part64{{Residual{Pre: norm(rng, dim), Branch: takes.Branch()}, takes.ref}})
	}
	checkBackward(t, rng, dim, dim+at+16, 5, places)
}

func TestMLPBackward(t *testing.T) {
	const dim, inner = 6, 7
	rng := rand.New(rand.NewPCG(15, 102))
	gated := func(act Activation, big float32) *MLP {
		f := &MLP{Gate: biased(rng, "gate", inner, dim), Up: biased(rng, "up", inner, dim), Down: biased(rng, "down", dim, inner), Act: act}
		elementwise.Scale(f.Gate.F32.Data, big)
		elementwise.Scale(f.Up.F32.Data, big)
		return f
	}
	for name, f := range map[string]*MLP{
		"SiLU":                                 gated(SiLU, 1),
		"GELU":                                 gated(GELU, 1),
		"SwiGLU of gpt-oss, beyond its limits": gated(SwiGLUO, 6),
		"fused":                                {Up: biased(rng, "up", 2*inner, dim), Down: biased(rng, "down", dim, inner)},
		"fused GELU":                           {Up: biased(rng, "up", 2*inner, dim), Down: biased(rng, "down", dim, inner), Act: GELU},
		"no gate":                              {Up: biased(rng, "up", inner, dim), Down: biased(rng, "down", dim, inner), Act: GELU},
		"no gate, ReLU²":                       {Up: biased(rng, "up", inner, dim), Down: biased(rng, "down", dim, inner), Act: ReLU2},
		"no gate, SiLU":                        {Up: biased(rng, "up", inner, dim), Down: biased(rng, "down", dim, inner)},
	} {
		t.Run(name, func(t *testing.T) {
			checkBackward(t, rng, dim, dim, 5, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: f.Branch()}, byToken(f.ref)}}})
		})
	}
}

// TestCompositionBackward has all that is put around branches, and branches together.
func TestCompositionBackward(t *testing.T) {
	const dim, inner = 6, 7
	rng := rand.New(rand.NewPCG(15, 103))
	mlp := func() *MLP {
		return &MLP{Gate: biased(rng, "gate", inner, dim), Up: biased(rng, "up", inner, dim), Down: biased(rng, "down", dim, inner)}
	}
	around := func(r Residual) part64 {
		f := mlp()
		r.Branch = f.Branch()
		return part64{r, byToken(f.ref)}
	}
	attend := func(r Residual) part64 {
		a := some(rng, dim)
		r.Branch = a.Branch()
		r.Branch.Narrows = false
		return part64{r, a.ref}
	}
	pre := layerNorm(rng, dim, true)
	parts := []part64{around(Residual{Pre: norm(rng, dim), Post: norm(rng, dim)}), around(Residual{Pre: norm(rng, dim), Post: norm(rng, dim)})}
	sum := Sum{parts[0].Residual, parts[1].Residual}
	factor := &LayerScale{[]float32{0.75}}
	perLayer := &PerLayer{Gate: biased(rng, "gate", 4, dim), Proj: biased(rng, "proj", dim, 4), Act: GELU, At: 2}
	for name, places := range map[string][][]part64{
		"no norm":               {{around(Residual{})}},
		"LayerNorm":             {{around(Residual{Pre: layerNorm(rng, dim, true)})}},
		"LayerNorm, no bias":    {{around(Residual{Pre: layerNorm(rng, dim, false)})}},
		"norm after, scale":     {{around(Residual{Post: norm(rng, dim), Scale: 0.3})}},
		"norms, layer's factor": {{around(Residual{Pre: norm(rng, dim), Post: layerNorm(rng, dim, true), LayerScale: factor})}},
		"two places":            {{attend(Residual{Pre: norm(rng, dim)})}, {around(Residual{Pre: norm(rng, dim), LayerScale: factor})}},
		"parallel, one norm":    {{attend(Residual{Pre: pre}), around(Residual{Pre: pre})}},
		"parallel, two norms":   {{attend(Residual{Pre: norm(rng, dim), Scale: 0.5}), around(Residual{Pre: norm(rng, dim), Scale: 2})}},
		"sum":                   {{{Residual{Branch: sum.Branch(), Post: norm(rng, dim), LayerScale: factor}, sum64(parts)}}},
		"embeddings of layers":  {{{Residual{Branch: perLayer.Branch(), Post: norm(rng, dim)}, perLayer.ref}}},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "embeddings of layers" { // which no linear of a layer makes
				checkInputs(t, rng, dim, dim+7, dim, 5, places)
				return
			}
			checkBackward(t, rng, dim, dim, 5, places)
		})
	}
}

func TestMoEBackward(t *testing.T) {
	const dim, inner, experts = 6, 5, 6
	for name, change := range map[string]func(rng *rand.Rand, f *MoE){
		"softmax":             func(_ *rand.Rand, f *MoE) {},
		"softmax, normalised": func(_ *rand.Rand, f *MoE) { f.Normalize, f.Scale = true, 1.5 },
		"sigmoid":             func(_ *rand.Rand, f *MoE) { f.Gating, f.Scale = GateSigmoid, 2.5 },
		"of the selected":     func(_ *rand.Rand, f *MoE) { f.Gating = GateSelected },
		"one, by its input":   func(_ *rand.Rand, f *MoE) { f.Gating, f.Top, f.WeightFirst = GateSigmoid, 1, true },
		"factors of experts":  func(rng *rand.Rand, f *MoE) { f.ExpertScale, f.Normalize = vectorOf(rng, experts), true },
		"SwiGLU of gpt-oss":   func(_ *rand.Rand, f *MoE) { f.Act, f.Gating = SwiGLUO, GateSelected },
		"groups, bias of scores": func(rng *rand.Rand, f *MoE) {
			f.Gating, f.Normalize, f.Groups, f.GroupsUsed, f.SelectionBias = GateSigmoid, true, 3, 2, vectorOf(rng, experts)
		},
		"fused GELU": func(rng *rand.Rand, f *MoE) {
			f.Gate, f.Up, f.Act = nil, nil, GELU
			for range experts {
				f.GateUp = append(f.GateUp, biased(rng, "gate and up", 2*inner, dim))
			}
		},
		"no gates, ReLU²": func(_ *rand.Rand, f *MoE) { f.Gate, f.Act, f.Gating, f.Normalize = nil, ReLU2, GateSigmoid, true },
		"shared": func(rng *rand.Rand, f *MoE) {
			f.Shared = &MLP{Gate: biased(rng, "shared gate", 4, dim), Up: biased(rng, "shared up", 4, dim), Down: biased(rng, "shared down", dim, 4)}
		},
		"shared, gated": func(rng *rand.Rand, f *MoE) {
			f.Shared = &MLP{Up: biased(rng, "shared up", 4, dim), Down: biased(rng, "shared down", dim, 4), Act: ReLU2}
			f.SharedGate = plain(rng, "shared gate", 1, dim)
		},
		"router of the stream": func(rng *rand.Rand, f *MoE) {
			f.RouterIn = &RouterInput{Norm: Unweighted(dim, 1e-6), Scale: vectorOf(rng, dim), Factor: 0.4}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(15, uint64(900+len(name))))
			f := &MoE{Router: plain(rng, "router", experts, dim), Top: 2}
			for range experts {
				f.Gate, f.Up = append(f.Gate, biased(rng, "gate", inner, dim)), append(f.Up, biased(rng, "up", inner, dim))
				f.Down = append(f.Down, biased(rng, "down", dim, inner))
			}
			change(rng, f)
			checkBackward(t, rng, dim, dim, 8, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: f.Branch()}, f.ref}}})
		})
	}
}

func TestMLABackward(t *testing.T) {
	for i, shape := range [][6]int{{8, 2, 4, 2, 6, 3}, {6, 3, 3, 4, 5, 4}} {
		rng := rand.New(rand.NewPCG(15, uint64(300+i)))
		dim := shape[0]
		a := &MLA{Heads: shape[1], Nope: shape[2], Rope: shape[3], Rank: shape[4], ValueDim: shape[5], Scale: 0.4, O: biased(rng, "o", dim, shape[1]*shape[5])}
		a.RoPE = rotary(a.Rope, elementwise.RoPEPairs)
		a.RoPE.AttnFactor = 1.25
		if wide := a.Heads * (a.Nope + a.Rope); i == 0 {
			a.Q = plain(rng, "q", wide, dim)
		} else {
			a.QA, a.QNorm, a.QB = biased(rng, "q_a", 7, dim), norm(rng, 7), plain(rng, "q_b", wide, 7)
		}
		a.KVA, a.KVNorm = biased(rng, "kv_a", a.Rank+a.Rope, dim), norm(rng, a.Rank)
		for range a.Heads {
			a.KB, a.VB = append(a.KB, plain(rng, "k_b", a.Rank, a.Nope)), append(a.VB, plain(rng, "v_b", a.ValueDim, a.Rank))
		}
		checkBackward(t, rng, dim, dim, 7, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: a.Branch()}, recurrent(a.ref)}}})
	}
}

func TestShortConvBackward(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 400))
	const dim = 6
	m := &ShortConv{In: biased(rng, "in", 3*dim, dim), Out: biased(rng, "out", dim, dim), Width: 3, Taps: vectorOf(rng, 3*dim)}
	checkBackward(t, rng, dim, dim, 8, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: m.Branch()}, recurrent(m.ref)}}})
}

func TestMamba2Backward(t *testing.T) {
	const dim = 6
	for i, shape := range [][4]int{{8, 4, 2, 3}, {6, 3, 1, 4}} { // Inner, Heads, Groups, State
		rng := rand.New(rand.NewPCG(15, uint64(500+i)))
		m := &Mamba2{Inner: shape[0], Heads: shape[1], Groups: shape[2], State: shape[3], Width: 4}
		m.In, m.Out = biased(rng, "in", m.InWidth(), dim), biased(rng, "out", dim, m.Inner)
		m.Taps, m.DtBias, m.D, m.A = vectorOf(rng, m.Channels()*m.Width), vectorOf(rng, m.Heads), vectorOf(rng, m.Heads), vectorOf(rng, m.Heads)
		for h, v := range m.A {
			m.A[h] = -float32(math.Exp(float64(v)))
		}
		if i == 0 {
			m.TapsBias, m.Norm = vectorOf(rng, m.Channels()), norm(rng, m.Inner)
		}
		checkBackward(t, rng, dim, dim, 9, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: m.Branch()}, recurrent(m.ref)}}})
	}
}

func TestDeltaNetBackward(t *testing.T) {
	const dim = 6
	for i, grouped := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(15, uint64(600+i)))
		d := &DeltaNet{Shape: deltanet.Shape{Heads: 4, KeyHeads: 2, KeyDim: 3, ValueDim: 4, Scale: 0.5, Grouped: grouped}, Taps: 3, Eps: 1e-3,
			QKV: biased(rng, "qkv", 28, dim), Gate: biased(rng, "gate", 16, dim), Conv: vectorOf(rng, 28*3), Norm: norm(rng, 4),
			A: vectorOf(rng, 4), DT: vectorOf(rng, 4), O: biased(rng, "o", dim, 16)}
		for h, v := range d.A {
			d.A[h] = -float32(math.Exp(float64(v)))
		}
		if grouped {
			d.BetaAlpha = biased(rng, "beta and alpha", 8, dim)
		} else {
			d.Alpha, d.Beta = biased(rng, "alpha", 4, dim), biased(rng, "beta", 4, dim)
		}
		checkBackward(t, rng, dim, dim, 9, [][]part64{{{Residual{Pre: norm(rng, dim), Branch: d.Branch()}, recurrent(d.ref)}}})
	}
}

// TestHeadBackward compares the gradient of Σ log p(label) at the last hidden states.
func TestHeadBackward(t *testing.T) {
	const dim, width, vocab, tokens = 6, 8, 19, 5
	rng := rand.New(rand.NewPCG(15, 700))
	for name, ends := range map[string]Ends{
		"RMSNorm":        {Norm: norm(rng, dim)},
		"LayerNorm":      {Norm: layerNorm(rng, dim, true)},
		"bias, scale":    {Norm: norm(rng, dim), HeadBias: vectorOf(rng, vocab), LogitScale: 0.6},
		"softcap":        {Norm: norm(rng, dim), Softcap: 1.5},
		"scale, softcap": {Norm: layerNorm(rng, dim, false), LogitScale: 1.7, Softcap: 2},
	} {
		m := &Model{Dim: dim, Width: width, Vocab: vocab, ends: ends, Precision: kernels.F32}
		h := &Head{Norm: ends.Norm, Linear: even(rng, vocab, dim), m: m}
		h.Linear.W = kernels.Weights{Rows: vocab, Cols: dim, Format: &ggml.F32.Format, Data: make([]byte, 4*vocab*dim)}
		tensor.EncodeF32(h.Linear.W.Data, h.Linear.F32.Data)
		h.Linear.Bias = ends.HeadBias
		x, dx := random(rng, tokens, width), random(rng, tokens, width)
		// Label 3 of the first token, 10 of the second, …; of every other all tokens have weights, some below zero.
		weights := func(t int, a []float32) {
			clear(a)
			if a[(7*t+3)%vocab] = 1; t%2 > 0 {
				for j := range a {
					a[j] = float32((j*5+t)%7)/3 - 1
				}
			}
		}
		h.Backward(m.NewState(), dx, x, func(t int, a, _ []float32) { weights(t, a) })
		a := make([]float32, vocab)
		for i := range tokens {
			row := wide(x.Row(i))
			weights(i, a)
			loss := func() float64 {
				logits, sum := h.Float64(row), 0.0
				for _, v := range logits {
					sum += math.Exp(v)
				}
				total := 0.0
				for j, v := range logits {
					total += float64(a[j]) * (v - math.Log(sum))
				}
				return total
			}
			for j := range row {
				want := richardson(loss, func(by float64) { row[j] += by })
				if off := math.Abs(float64(dx.Row(i)[j]) - want); !(off <= gradientLimit*0.1) {
					t.Errorf("%s: token %d, feature %d: gradient %.7g, differences give %.7g", name, i, j, dx.Row(i)[j], want)
				}
			}
		}
	}
}
