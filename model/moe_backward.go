package model

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dy is the gradient at the mixture's output. Which experts are chosen is a step function, whose derivative
// is zero; their weights have one.
func (f *MoE) back(st *State, d *Differential, h, dy, dh *tensor.Matrix) {
	st.In = h
	f.route(st)
	r := st.routes
	dWeights := make([][]float32, len(f.Down))
	all := d.wants(f.Router) // whose gradient takes that at the weight of each expert's output
	for e := range f.Down {
		if len(r.tokens[e]) > 0 && (all || d.wants(f.expert(e)...)) {
			dWeights[e] = f.expertBack(st, d, e, dy, dh)
		}
	}
	if f.Shared != nil && d.wants(f.Shared.Gate, f.Shared.Up, f.Shared.Down, f.SharedGate) {
		f.sharedBack(st, d, h, dy, dh)
	}
	if !all {
		return
	}
	x := h
	if f.RouterIn != nil {
		x = f.RouterIn.of(st)
	}
	logits := st.Scratch("router", x.Rows, f.Router.Out)
	f.Router.exact(logits, x)
	f.logitsBack(logits, dWeights, r)
	if f.RouterIn != nil {
		dIn := st.Scratch("back router", x.Rows, x.Cols)
		dIn.Zero()
		d.back(st, f.Router, dIn, logits)
		f.RouterIn.scale(dIn)
		f.RouterIn.Norm.back(dIn, st.X, dIn)
		addColumns(d.stream, dIn)
		return
	}
	d.back(st, f.Router, dh, logits)
}

// expert lists the linears of expert e.
func (f *MoE) expert(e int) []*Linear {
	switch {
	case f.GateUp != nil:
		return []*Linear{f.GateUp[e], f.Down[e]}
	case f.Gate != nil:
		return []*Linear{f.Gate[e], f.Up[e], f.Down[e]}
	}
	return []*Linear{f.Up[e], f.Down[e]}
}

// holding returns a linear whose weights are fetched as one that has them, for as long as it is needed.
func (l *Linear) holding() *Linear {
	if l.held() || !l.stored() {
		return l
	}
	w, err := l.Weights()
	if err != nil {
		return l // the way back through the layer reports it
	}
	h := *l
	h.W = w
	return &h
}

// expertBack passes on the gradients of expert e, and returns those at the weights of its tokens. Gate and up are multiplied with on
// the way forth, for their derivatives and on the way back, and so held meanwhile.
func (f *MoE) expertBack(st *State, d *Differential, e int, dy, dh *tensor.Matrix) []float32 {
	r, down := st.routes, f.Down[e]
	tokens, weights := r.tokens[e], r.weights[e]
	d.tokens = tokens
	defer func() { d.tokens = nil }()
	x := f.gather(st, e)
	inner := &MLP{Up: nil, Down: down, Act: f.Act}
	switch {
	case f.GateUp != nil:
		inner.Up = f.GateUp[e].holding()
	case f.Gate != nil:
		inner.Gate, inner.Up = f.Gate[e].holding(), f.Up[e].holding()
	default:
		inner.Up = f.Up[e].holding()
	}
	z := inner.inner(st, "expert ", x)
	scale := float32(1)
	if f.ExpertScale != nil {
		scale = f.ExpertScale[e]
	}
	dOut := st.Scratch("back expert out", len(tokens), down.Out)
	dWeight := make([]float32, len(tokens))
	for i, t := range tokens {
		w := scale
		if !f.WeightFirst {
			w *= weights[i]
		}
		for j, v := range dy.Row(t) {
			dOut.Row(i)[j] = w * v
		}
	}
	dz := st.Scratch("back expert inner", len(tokens), down.In)
	dz.Zero()
	d.back(st, down, dz, dOut)
	if !f.WeightFirst { // an output is linear in its weight: the gradient there is ⟨output, its gradient⟩ over the weight
		for i, w := range weights {
			if w == 0 {
				continue
			}
			v := vector.Dot(z.Row(i), dz.Row(i))
			if down.Bias != nil {
				v += vector.Dot(down.Bias, dOut.Row(i))
			}
			dWeight[i] = v / w
		}
	}
	dx := st.Scratch("back expert in", x.Rows, x.Cols)
	dx.Zero()
	inner.back(st, d, x, dz, dx)
	kernels.Parallel(len(tokens), 16, func(lo, hi int) { // a token reaches an expert once
		for i := lo; i < hi; i++ {
			w := float32(1)
			if f.WeightFirst {
				w = weights[i]
				dWeight[i] = vector.Dot(r.in.Row(tokens[i]), dx.Row(i))
			}
			vector.Axpy(dh.Row(tokens[i]), w, dx.Row(i))
		}
	})
	return dWeight
}

// sharedBack passes on the gradients of the expert that sees all tokens.
func (f *MoE) sharedBack(st *State, d *Differential, h, dy, dh *tensor.Matrix) {
	down := f.Shared.Down
	dOut := st.Scratch("back shared out", dy.Rows, dy.Cols)
	copyTo(dOut, 0, dy)
	var gate *tensor.Matrix
	if f.SharedGate != nil {
		gate = st.Scratch("back shared gate", h.Rows, 1)
		f.SharedGate.exact(gate, h)
		for t := range dOut.Rows {
			s := float32(1 / (1 + math.Exp(-float64(gate.Row(t)[0]))))
			gate.Row(t)[0] = s
			for j := range dOut.Row(t) {
				dOut.Row(t)[j] *= s
			}
		}
	}
	dz := st.Scratch("back shared inner", dy.Rows, down.In)
	dz.Zero()
	d.back(st, down, dz, dOut)
	if gate != nil {
		z := f.Shared.inner(st, "shared ", h)
		for t := range gate.Rows {
			v := vector.Dot(z.Row(t), dz.Row(t))
			if down.Bias != nil {
				v += vector.Dot(down.Bias, dOut.Row(t))
			}
			gate.Row(t)[0] = v * (1 - gate.Row(t)[0])
		}
		d.back(st, f.SharedGate, dh, gate)
	}
	f.Shared.back(st, d, h, dz, dh)
}

// logitsBack replaces the router's logits by the gradients there, for those at the weights of each expert's tokens.
func (f *MoE) logitsBack(logits *tensor.Matrix, dWeights [][]float32, r *routes) {
	n := len(f.Down)
	// By token: what choose calls p, and the gradients at the weights of the chosen.
	dp := tensor.New(logits.Rows, n)
	chosen := make([][]int, logits.Rows)
	for e, tokens := range r.tokens {
		for i, t := range tokens {
			dp.Row(t)[e] = dWeights[e][i]
			chosen[t] = append(chosen[t], e)
		}
	}
	scale := 1.0
	if f.Scale != 0 {
		scale = float64(f.Scale)
	}
	kernels.Parallel(logits.Rows, 64, func(lo, hi int) {
		p := make([]float64, n)
		for t := lo; t < hi; t++ {
			f.tokenBack(logits.Row(t), dp.Row(t), chosen[t], p, scale)
		}
	})
}

// tokenBack is logitsBack for one token, dw having the gradients at the weights. p is scratch memory.
func (f *MoE) tokenBack(logits, dw []float32, chosen []int, p []float64, scale float64) {
	switch f.Gating {
	case GateSoftmax:
		softmax(p, logits)
	case GateSigmoid:
		for i, v := range logits {
			p[i] = 1 / (1 + math.Exp(-float64(v)))
		}
	case GateSelected:
		clear(p)
		largest, sum := math.Inf(-1), 0.0
		for _, e := range chosen {
			largest = max(largest, float64(logits[e]))
		}
		for _, e := range chosen {
			p[e] = math.Exp(float64(logits[e]) - largest)
			sum += p[e]
		}
		for _, e := range chosen {
			p[e] /= sum
		}
	}
	var sum, mean float64
	for _, e := range chosen {
		sum += p[e]
		mean += p[e] * float64(dw[e])
	}
	along := 0.0 // Σ p·dp
	dp := func(e int) float64 {
		v := scale * float64(dw[e])
		if f.Normalize { // sum is above choose's bound against division by zero, or what is chosen has no weight
			v = scale * (float64(dw[e]) - mean/sum) / sum
		}
		return v
	}
	for _, e := range chosen {
		along += p[e] * dp(e)
	}
	at := make([]float64, 0, 16)
	for _, e := range chosen {
		at = append(at, dp(e))
	}
	for e := range logits {
		logits[e] = 0
		if f.Gating == GateSoftmax {
			logits[e] = float32(-p[e] * along)
		}
	}
	for i, e := range chosen {
		switch f.Gating {
		case GateSigmoid:
			logits[e] = float32(p[e] * (1 - p[e]) * at[i])
		default:
			logits[e] = float32(p[e] * (at[i] - along))
		}
	}
}
