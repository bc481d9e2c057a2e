package model

import (
	"context"

	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/tensor"
)

// Layer is one transformer block. Its stages are methods, so that a calibration can look at the input of every linear,
// and replace its weights, before the next stage runs:
//
//	AttnIn    h = norm(x)                the input of attn_q, attn_k, attn_v
//	AttnCore  a = attention(q,k,v of h)  the input of attn_output
//	AttnOut   x += attn_output(a)
//	MLPIn     h = norm(x)                the input of ffn_gate, ffn_up
//	MLPCore   a = silu(gate)·up          the input of ffn_down
//	MLPOut    x += ffn_down(a)
//
// x holds any number of sequences of equal length, one after the other: (sequences·seqLen)×Dim.
type Layer struct {
	Index             int
	AttnNorm, MLPNorm []float32
	QNorm, KNorm      []float32 // per head, or nil
	Q, K, V, O        *Linear
	Gate, Up, Down    *Linear

	m *Model
}

// LoadLayer fetches layer i. Its weights stay in the source's type and storage until Release.
func (m *Model) LoadLayer(i int) (*Layer, error) {
	l := &Layer{Index: i, m: m}
	prefix := layerPrefix(i)
	for name, dst := range map[string]*[]float32{
		"attn_norm": &l.AttnNorm, "ffn_norm": &l.MLPNorm, "attn_q_norm": &l.QNorm, "attn_k_norm": &l.KNorm,
	} {
		name = prefix + name + ".weight"
		if m.tensors[name] == nil {
			continue // Open saw that only optional ones are missing
		}
		var err error
		if *dst, err = m.vector(name); err != nil {
			return nil, err
		}
	}
	for j, dst := range l.slots() {
		var err error
		if *dst, err = m.linear(prefix + m.linears()[j].name); err != nil {
			l.Release()
			return nil, err
		}
	}
	return l, nil
}

// ReadAhead says that layer i, or past the last the head, will be needed next: the source may read it while others
// compute.
func (m *Model) ReadAhead(i int) {
	switch {
	case i < m.Blocks:
		for _, l := range m.linears() {
			m.Source.ReadAhead(layerPrefix(i) + l.name + ".weight")
		}
	case m.Tied:
		m.Source.ReadAhead(embedName)
	default:
		m.Source.ReadAhead(outputName)
	}
}

// slots are the linears in the order of Config.linears.
func (l *Layer) slots() []**Linear {
	return []**Linear{&l.Q, &l.K, &l.V, &l.O, &l.Gate, &l.Up, &l.Down}
}

// Linears lists the layer's linears in the order of the forward pass.
func (l *Layer) Linears() []*Linear {
	return []*Linear{l.Q, l.K, l.V, l.O, l.Gate, l.Up, l.Down}
}

// Vectors returns the layer's norms and biases by their tensors' names. They share the layer's storage.
func (l *Layer) Vectors() map[string][]float32 {
	prefix := layerPrefix(l.Index)
	vectors := map[string][]float32{
		prefix + "attn_norm.weight": l.AttnNorm, prefix + "ffn_norm.weight": l.MLPNorm,
	}
	if l.QNorm != nil {
		vectors[prefix+"attn_q_norm.weight"], vectors[prefix+"attn_k_norm.weight"] = l.QNorm, l.KNorm
	}
	for _, lin := range l.Linears() {
		if lin.Bias != nil {
			vectors[lin.BiasName()] = lin.Bias
		}
	}
	return vectors
}

// On returns l computing with the scratch memory of m, which is l's model or a fork of it. Weights that are replaced
// in one are replaced in both; l alone is to be released.
func (l *Layer) On(m *Model) *Layer {
	on := *l
	on.m = m
	return &on
}

// Release gives the weights back to the source; the layer must not be used afterwards.
func (l *Layer) Release() {
	for _, lin := range l.slots() {
		if *lin != nil {
			l.m.Source.Release((*lin).tensor)
			*lin = nil
		}
	}
}

// AttnIn sets dst, tokens×Dim, to the input of attn_q, attn_k and attn_v.
func (l *Layer) AttnIn(dst, x *tensor.Matrix) { l.m.norm(dst, x, l.AttnNorm) }

// AttnCore sets dst, tokens×(Heads·HeadDim), to the attention's result for the normalised input in: the input of
// attn_output. Positions start anew every seqLen rows.
func (l *Layer) AttnCore(dst, in *tensor.Matrix, seqLen int) {
	l.attention(dst, in, in, seqLen, seqLen)
}

// attention is AttnCore for the last tokens of each sequence alone: last rows of dst, and of queries, for seqLen of in.
func (l *Layer) attention(dst, in, queries *tensor.Matrix, seqLen, last int) {
	m := l.m
	q := m.buffer(scratchQ, queries.Rows, m.Heads*m.HeadDim)
	k := m.buffer(scratchK, in.Rows, m.KVHeads*m.HeadDim)
	v := m.buffer(scratchV, in.Rows, m.KVHeads*m.HeadDim)
	if last == seqLen {
		applyAll(in, m.Precision, []*Linear{l.Q, l.K, l.V}, q, k, v)
	} else {
		applyAll(queries, m.Precision, []*Linear{l.Q}, q)
		applyAll(in, m.Precision, []*Linear{l.K, l.V}, k, v)
	}
	l.Attend(dst, q, k, v, seqLen)
}

// Attend sets dst to the attention's result for the outputs of attn_q, attn_k and attn_v: AttnCore after its products. k and
// v have seqLen rows for each sequence; q and dst as many or fewer, for its last tokens alone. It changes q and k.
func (l *Layer) Attend(dst, q, k, v *tensor.Matrix, seqLen int) {
	m := l.m
	seqs := k.Rows / seqLen
	last := q.Rows / seqs
	cos, sin := m.rope(seqLen)
	scale := attention.Scale(m.HeadDim)
	rotate := func(x *tensor.Matrix, norm []float32, from int) { // x's first token is at position from
		byRows(x.Rows, func(lo, hi int) {
			l.rotate(x.View(lo, hi, 0, x.Cols), norm, cos.View(from+lo, from+hi, 0, cos.Cols), sin.View(from+lo, from+hi, 0, sin.Cols))
		})
	}
	for i := range seqs {
		qs, out := q.View(i*last, (i+1)*last, 0, q.Cols), dst.View(i*last, (i+1)*last, 0, dst.Cols)
		ks, vs := k.View(i*seqLen, (i+1)*seqLen, 0, k.Cols), v.View(i*seqLen, (i+1)*seqLen, 0, v.Cols)
		rotate(qs, l.QNorm, seqLen-last)
		rotate(ks, l.KNorm, 0)
		attention.Causal(out, qs, ks, vs, m.Heads, m.KVHeads, m.HeadDim, m.SlidingWindow, scale, m.Precision)
	}
}

// rotate applies the norm of heads, if there is one, and RoPE. x has no padding.
func (l *Layer) rotate(x *tensor.Matrix, norm []float32, cos, sin *tensor.Matrix) {
	if norm != nil {
		heads := tensor.FromSlice(x.Rows*x.Cols/len(norm), len(norm), x.Data)
		elementwise.RMSNorm(heads, heads, norm, l.m.Eps)
	}
	elementwise.RoPE(x, l.m.HeadDim, cos, sin, l.m.RoPE.Style)
}

// AttnOut adds attn_output's result for AttnCore's output in to x, tokens×Dim.
func (l *Layer) AttnOut(x, in *tensor.Matrix) { l.Add(x, l.O, in) }

// MLPIn sets dst, tokens×Dim, to the input of ffn_gate and ffn_up.
func (l *Layer) MLPIn(dst, x *tensor.Matrix) { l.m.norm(dst, x, l.MLPNorm) }

// MLPCore sets dst, tokens×FFN, to the input of ffn_down for the normalised input in.
func (l *Layer) MLPCore(dst, in *tensor.Matrix) {
	gate := l.m.buffer(scratchGate, in.Rows, l.m.FFN)
	applyAll(in, l.m.Precision, []*Linear{l.Gate, l.Up}, gate, dst)
	l.Gated(dst, gate, dst)
}

// Gated sets dst to SiLU(gate)·up, element by element: MLPCore after its products. dst may be up.
func (l *Layer) Gated(dst, gate, up *tensor.Matrix) {
	byRows(dst.Rows, func(lo, hi int) {
		elementwise.SiLUMul(dst.View(lo, hi, 0, dst.Cols), gate.View(lo, hi, 0, gate.Cols), up.View(lo, hi, 0, up.Cols))
	})
}

// MLPOut adds ffn_down's result for MLPCore's output in to x, tokens×Dim.
func (l *Layer) MLPOut(x, in *tensor.Matrix) { l.Add(x, l.Down, in) }

// Add adds the result of lin, which is one of l's, for in to x.
func (l *Layer) Add(x *tensor.Matrix, lin *Linear, in *tensor.Matrix) {
	l.AddProduct(x, lin, in)
	lin.addBias(x)
}

// AddProduct is Add without lin's bias: what a difference of inputs makes of the output.
func (l *Layer) AddProduct(x *tensor.Matrix, lin *Linear, in *tensor.Matrix) {
	switch {
	case !lin.stored():
		delta := l.m.buffer(scratchDelta, x.Rows, x.Cols)
		lin.product(delta, in, l.m.Precision)
		byRows(x.Rows, func(lo, hi int) {
			elementwise.Add(x.View(lo, hi, 0, x.Cols), delta.View(lo, hi, 0, delta.Cols))
		})
	case lin.Q8:
		q8.MatMulAdd(x, in, &lin.W)
	default:
		gemm.MatMulAdd(x, in, &lin.W, l.m.Precision)
	}
}

// Forward runs all stages on x in place. It stops between stages when ctx ends; x is then of no use.
func (l *Layer) Forward(ctx context.Context, x *tensor.Matrix, seqLen int) error {
	return l.ForwardLast(ctx, x, seqLen, seqLen)
}

// ForwardLast is Forward for the last tokens of each sequence alone, the rest of x stays as it is: what a model's last
// layer has to do where only those are scored. The others still serve as keys and values.
func (l *Layer) ForwardLast(ctx context.Context, x *tensor.Matrix, seqLen, last int) error {
	m := l.m
	seqs := x.Rows / seqLen
	h := m.buffer(scratchNorm, x.Rows, m.Dim)
	y, queries := x, h
	if last < seqLen {
		y, queries = m.buffer(scratchLast, seqs*last, m.Dim), m.buffer(scratchQueries, seqs*last, m.Dim)
	}
	each := func(move func(whole, part []float32), whole, part *tensor.Matrix) {
		for i := range part.Rows {
			move(whole.Row(i/last*seqLen+seqLen-last+i%last), part.Row(i))
		}
	}
	take := func(whole, part []float32) { copy(part, whole) }
	give := func(whole, part []float32) { copy(whole, part) }
	a := m.buffer(scratchIn, y.Rows, m.Heads*m.HeadDim)
	var f *tensor.Matrix
	for _, stage := range []func(){
		func() { l.AttnIn(h, x) },
		func() {
			if last < seqLen {
				each(take, x, y)
				each(take, h, queries)
			}
			l.attention(a, h, queries, seqLen, last)
		},
		func() { l.AttnOut(y, a) },
		func() { h = m.buffer(scratchNorm, y.Rows, m.Dim); l.MLPIn(h, y) },
		func() { f = m.buffer(scratchIn, y.Rows, m.FFN); l.MLPCore(f, h) },
		func() { l.MLPOut(y, f) },
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		stage()
	}
	if last < seqLen {
		each(give, x, y)
	}
	return nil
}

// Group is the linears of a layer that share one input, and what comes before it.
type Group struct {
	Name    string // "attn_in", "attn_out", "mlp_in" or "mlp_out"
	Linears []*Linear
	Prev    Prev
	// Residual says that the linear's output is added to the hidden states.
	Residual bool
}

// Prev produces a group's input, channel by channel, so that a factor on a channel can move from the input into it:
// either a norm's weights or the rows of a linear.
type Prev struct {
	Name   string // the tensor's
	Norm   []float32
	Linear *Linear
	// Row gives, where Linear is set, the row that produces each channel. With grouped-query attention several
	// channels of attn_output's input come from one row of attn_v and can only be scaled together.
	Row []int
}

// Groups lists the layer's groups in the order of the forward pass.
func (l *Layer) Groups() []Group {
	m := l.m
	prefix := layerPrefix(l.Index)
	v := make([]int, m.Heads*m.HeadDim)
	for i := range v {
		head := i / m.HeadDim / (m.Heads / m.KVHeads)
		v[i] = head*m.HeadDim + i%m.HeadDim
	}
	up := make([]int, m.FFN)
	for i := range up {
		up[i] = i
	}
	return []Group{
		{"attn_in", []*Linear{l.Q, l.K, l.V}, Prev{Name: prefix + "attn_norm.weight", Norm: l.AttnNorm}, false},
		{"attn_out", []*Linear{l.O}, Prev{Name: l.V.Name, Linear: l.V, Row: v}, true},
		{"mlp_in", []*Linear{l.Gate, l.Up}, Prev{Name: prefix + "ffn_norm.weight", Norm: l.MLPNorm}, false},
		{"mlp_out", []*Linear{l.Down}, Prev{Name: l.Up.Name, Linear: l.Up, Row: up}, true},
	}
}
