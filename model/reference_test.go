package model

import (
	"cmp"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels/elementwise"
)

// Branches in float64, from their definitions, for one sequence: with what they have for options, as families use them.

// Float64 takes hidden states of one sequence, tokens×Width, through a layer whose linears have their weights in F32, by the
// definitions of its branches. Also told is which experts were chosen on the way.
func (l *Layer) Float64(hidden [][]float64) (after [][]float64, chosen []int) {
	var places [][]part64
	for _, s := range l.spans {
		var parts []part64
		for _, p := range s.parts {
			parts = append(parts, p.float64())
		}
		places = append(places, parts)
	}
	choices = nil
	after = layer64(hidden, l.m.Dim, places)
	return after, choices
}

func (p *part) float64() part64 {
	var ref func(h, x, aux [][]float64) [][]float64
	switch b := p.Branch.Back.(type) {
	case *Attention:
		ref = b.ref
	case *MLP:
		ref = byToken(b.ref)
	case *MoE:
		ref = b.ref
	case *PerLayer:
		ref = b.ref
	case *MLA:
		ref = recurrent(b.ref)
	case *ShortConv:
		ref = recurrent(b.ref)
	case *Mamba2:
		ref = recurrent(b.ref)
	case *DeltaNet:
		ref = recurrent(b.ref)
	case sumParts:
		var parts []part64
		for _, p := range b {
			parts = append(parts, p.float64())
		}
		ref = sum64(parts)
	default:
		panic("a branch without a reference in float64")
	}
	return part64{p.Residual, ref}
}

// Float64 returns the logits for the hidden state x of a token, Width features.
func (h *Head) Float64(x []float64) []float64 {
	logits := h.Linear.ref(h.Norm.ref(x[:h.m.Dim]))
	for j, v := range logits {
		if scale := h.m.ends.LogitScale; scale != 0 {
			v *= float64(scale)
		}
		if c := float64(h.m.ends.Softcap); c != 0 {
			v = c * math.Tanh(v/c)
		}
		logits[j] = v
	}
	return logits
}

// Nudge has a linear's outputs moved by values, of all tokens, in float64 alone; nil: not.
func Nudge(lin *Linear, by []float64) {
	if nudges[lin] = by; by == nil {
		delete(nudges, lin)
	}
}

// choices are the experts that MoE.ref has chosen.
var choices []int

// part64 is a residual connection with its branch in float64: of the normalised inputs h, the residual stream x, and what hidden
// states have beside it, aux, which it may change.
type part64 struct {
	Residual
	ref func(h, x, aux [][]float64) [][]float64
}

// byToken is the reference of a branch that sees each token by itself.
func byToken(ref func(x []float64) []float64) func(h, x, aux [][]float64) [][]float64 {
	return func(h, _, _ [][]float64) [][]float64 { return each(h, ref) }
}

// recurrent is the reference of a mixer that takes normalised inputs alone.
func recurrent(ref func(h [][]float64) [][]float64) func(h, x, aux [][]float64) [][]float64 {
	return func(h, _, _ [][]float64) [][]float64 { return ref(h) }
}

func each(x [][]float64, f func(x []float64) []float64) [][]float64 {
	y := make([][]float64, len(x))
	for t, row := range x {
		y[t] = f(row)
	}
	return y
}

// layer64 takes hidden states of one sequence through a layer: places from which branches start, one after the other.
func layer64(hidden [][]float64, dim int, places [][]part64) [][]float64 {
	var x, aux [][]float64
	for _, row := range hidden {
		x, aux = append(x, slices.Clone(row[:dim])), append(aux, slices.Clone(row[dim:]))
	}
	for _, parts := range places {
		from := each(x, slices.Clone)
		for _, p := range parts {
			y := p.ref(each(from, p.Pre.ref), from, aux)
			scale := 1.0
			if p.Scale != 0 {
				scale = float64(p.Scale)
			}
			for t := range x {
				for j, v := range p.Post.ref(y[t]) {
					x[t][j] += scale * v
				}
				if p.LayerScale != nil && p.LayerScale.V != nil {
					for j := range x[t] {
						x[t][j] *= float64(p.LayerScale.V[0])
					}
				}
			}
		}
	}
	out := make([][]float64, len(x))
	for t := range x {
		out[t] = append(x[t], aux[t]...)
	}
	return out
}

func sigmoid64(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// headsRef normalises heads of x as Attention does.
func (n *Norm) headsRef(x []float64, headDim int) []float64 {
	if n == nil || len(n.W) == len(x) && !n.PerHead {
		return n.ref(x)
	}
	var y []float64
	for at := 0; at < len(x); at += headDim {
		one := *n
		if n.PerHead {
			one.W = n.W[at : at+headDim]
		}
		y = append(y, one.ref(x[at:at+headDim])...)
	}
	return y
}

// ref turns the heads of a token at a position.
func (r *RoPE) ref(x []float64, headDim, position int) []float64 {
	if r == nil {
		return x
	}
	freq, magnitude := r.frequencies()
	y := slices.Clone(x)
	for at := 0; at < len(x); at += headDim {
		for j, f := range freq {
			a, b := at+j, at+j+len(freq)
			if r.Style == elementwise.RoPEPairs {
				a, b = at+2*j, at+2*j+1
			}
			s, c := math.Sincos(float64(position) * f)
			y[a], y[b] = magnitude*(x[a]*c-x[b]*s), magnitude*(x[a]*s+x[b]*c)
		}
	}
	return y
}

func (a *Attention) ref(h, _, aux [][]float64) [][]float64 {
	n, kv, rope := a.HeadDim, a.kvWidth(), a.RoPE.For(len(h))
	heads := func(x []float64, norm *Norm, t int) []float64 {
		if a.NormAfter {
			return norm.headsRef(rope.ref(x, n, t), n)
		}
		return rope.ref(norm.headsRef(x, n), n, t)
	}
	var keys, values, out [][]float64
	for t, x := range h {
		var q, k, v, gate []float64
		switch {
		case a.QKV != nil:
			all := a.QKV.ref(x)
			wide := len(all) - 2*kv
			q, k, v = all[:wide], all[wide:wide+kv], all[wide+kv:]
		case a.Takes != nil:
			q, k, v = a.Q.ref(x), aux[t][a.Takes.At:a.Takes.At+kv], aux[t][a.Takes.At+kv:a.Takes.At+2*kv]
		default:
			q, k = a.Q.ref(x), a.K.ref(x)
			if v = k; a.V != nil {
				v = a.V.ref(x)
			}
		}
		if a.Gated {
			both := q
			q = nil
			for i := range a.Heads {
				q, gate = append(q, both[2*i*n:(2*i+1)*n]...), append(gate, both[(2*i+1)*n:(2*i+2)*n]...)
			}
		}
		if a.Gate != nil {
			gate = a.Gate.ref(x)
		}
		q = heads(q, a.QNorm, t)
		if f := a.Temperature; f != nil {
			for j := range q {
				q[j] *= 1 + f.Scale*math.Log(1+math.Floor(float64(t+f.Offset)/float64(f.Every)))
			}
		}
		if a.Takes == nil {
			k, v = heads(k, a.KNorm, t), a.VNorm.headsRef(v, n)
		}
		if a.Keeps != nil {
			copy(aux[t][a.Keeps.At:], k)
			copy(aux[t][a.Keeps.At+kv:], v)
		}
		keys, values = append(keys, k), append(values, v)
		y := a.meetRef(q, keys, values)
		for j, g := range gate {
			y[j] *= sigmoid64(g)
		}
		out = append(out, a.O.ref(y))
	}
	return out
}

// meetRef is what the last token takes of values.
func (a *Attention) meetRef(q []float64, keys, values [][]float64) []float64 {
	n, y := a.HeadDim, make([]float64, a.Heads*a.HeadDim)
	first := 0
	if a.Window > 0 {
		first = max(0, len(keys)-a.Window)
	}
	for i := range a.Heads {
		at := i / (a.Heads / a.KVHeads) * n
		sum, weights := 0.0, make([]float64, len(keys))
		if a.Sinks != nil {
			sum = math.Exp(float64(a.Sinks[i]))
		}
		for s := first; s < len(keys); s++ {
			score := 0.0
			for j, k := range keys[s][at : at+n] {
				score += float64(a.Scale) * k * q[i*n+j]
			}
			if c := float64(a.Softcap); c != 0 {
				score = c * math.Tanh(score/c)
			}
			weights[s] = math.Exp(score)
			sum += weights[s]
		}
		for s := first; s < len(keys); s++ {
			for j, v := range values[s][at : at+n] {
				y[i*n+j] += weights[s] / sum * v
			}
		}
	}
	return y
}

// refChoice returns the experts of a token, the best first, and their weights.
func (f *MoE) refChoice(logits []float64) (chosen []int, weights []float64) {
	p := make([]float64, len(logits))
	for e, v := range logits {
		p[e] = v
		switch f.Gating {
		case GateSigmoid:
			p[e] = sigmoid64(v)
		case GateSoftmax:
			sum := 0.0
			for _, u := range logits {
				sum += math.Exp(u - v)
			}
			p[e] = 1 / sum
		}
	}
	by := slices.Clone(p)
	for e, b := range f.SelectionBias {
		by[e] += float64(b)
	}
	groups, size := max(1, f.Groups), len(p)/max(1, f.Groups)
	best := make([]int, groups)
	two := func(g int) float64 {
		sorted := slices.Sorted(slices.Values(by[g*size : (g+1)*size]))
		return sorted[size-1] + sorted[max(0, size-2)]
	}
	for e := range p {
		if e < groups {
			best[e] = e
		}
		chosen = append(chosen, e)
	}
	if groups > 1 {
		slices.SortFunc(best, func(a, b int) int { return cmp.Compare(two(b), two(a)) })
		best = best[:f.GroupsUsed]
	}
	chosen = slices.DeleteFunc(chosen, func(e int) bool { return !slices.Contains(best, e/size) })
	slices.SortFunc(chosen, func(a, b int) int { return cmp.Compare(by[b], by[a]) })
	chosen = chosen[:f.Top]
	sum := 0.0
	for _, e := range chosen {
		if f.Gating == GateSelected {
			p[e] = math.Exp(p[e])
		}
		sum += p[e]
	}
	for _, e := range chosen {
		w := p[e]
		if f.Normalize || f.Gating == GateSelected {
			w /= sum
		}
		if f.Scale != 0 {
			w *= float64(f.Scale)
		}
		weights = append(weights, w)
	}
	return chosen, weights
}

func (f *MoE) ref(h, x, _ [][]float64) [][]float64 {
	out := make([][]float64, len(h))
	for t, in := range h {
		router := in
		if f.RouterIn != nil {
			router = f.RouterIn.Norm.ref(x[t])
			for j := range router {
				router[j] *= f.RouterIn.Factor * float64(f.RouterIn.Scale[j])
			}
		}
		y := make([]float64, len(in))
		if f.Shared != nil {
			y = f.Shared.ref(in)
			if f.SharedGate != nil {
				scaleRef(y, sigmoid64(f.SharedGate.ref(in)[0]))
			}
		}
		chosen, weights := f.refChoice(f.Router.ref(router))
		choices = append(choices, chosen...)
		for i, e := range chosen {
			in, w := slices.Clone(in), weights[i]
			if f.WeightFirst {
				scaleRef(in, w)
				w = 1
			}
			one := MLP{Down: f.Down[e], Act: f.Act}
			switch {
			case f.GateUp != nil:
				one.Up = f.GateUp[e]
			case f.Gate != nil:
				one.Gate, one.Up = f.Gate[e], f.Up[e]
			default:
				one.Up = f.Up[e]
			}
			if f.ExpertScale != nil {
				w *= float64(f.ExpertScale[e])
			}
			for j, v := range one.ref(in) {
				y[j] += w * v
			}
		}
		out[t] = y
	}
	return out
}

func scaleRef(x []float64, by float64) {
	for j := range x {
		x[j] *= by
	}
}

func (f *PerLayer) ref(h, _, aux [][]float64) [][]float64 {
	out := make([][]float64, len(h))
	for t, x := range h {
		out[t] = f.Proj.ref(f.Act.ref(f.Gate.ref(x), aux[t][f.At:f.At+f.Gate.Out]))
	}
	return out
}

// sum64 is the reference of a Sum of parts.
func sum64(parts []part64) func(h, x, aux [][]float64) [][]float64 {
	return func(_, x, aux [][]float64) [][]float64 {
		out := make([][]float64, len(x))
		for _, p := range parts {
			for t, y := range p.ref(each(x, p.Pre.ref), x, aux) {
				y = p.Post.ref(y)
				if out[t] == nil {
					out[t] = make([]float64, len(y))
				}
				for j, v := range y {
					out[t][j] += v
				}
			}
		}
		return out
	}
}

func (d *DeltaNet) ref(h [][]float64) [][]float64 {
	keys, share := d.KeyHeads*d.KeyDim, d.Heads/d.KeyHeads
	silu := func(x float64) float64 { return x * sigmoid64(x) }
	unit := func(x []float64) []float64 {
		sum := float64(d.Eps)
		for _, v := range x {
			sum += v * v
		}
		y := slices.Clone(x)
		scaleRef(y, 1/math.Sqrt(sum))
		return y
	}
	memory := make([]float64, d.Heads*d.KeyDim*d.ValueDim)
	var mixed, out [][]float64
	for t, x := range h {
		mixed = append(mixed, d.QKV.ref(x))
		u := make([]float64, d.QKV.Out)
		for r := range u {
			for j := range d.Taps {
				if s := t - d.Taps + 1 + j; s >= 0 {
					u[r] += float64(d.Conv[r*d.Taps+j]) * mixed[s][r]
				}
			}
			u[r] = silu(u[r])
		}
		var alpha, beta, both []float64
		if d.BetaAlpha != nil {
			both = d.BetaAlpha.ref(x)
		} else {
			alpha, beta = d.Alpha.ref(x), d.Beta.ref(x)
		}
		y, gate := make([]float64, d.Heads*d.ValueDim), d.Gate.ref(x)
		for head := range d.Heads {
			kh := head % d.KeyHeads
			if d.Grouped {
				kh = head / share
			}
			var a, b float64
			if both != nil {
				first := head/share*2*share + head%share
				a, b = both[first+share], both[first]
			} else {
				a, b = alpha[head], beta[head]
			}
			fade := math.Exp(float64(d.A[head]) * math.Log1p(math.Exp(a+float64(d.DT[head]))))
			q, k := unit(u[kh*d.KeyDim:(kh+1)*d.KeyDim]), unit(u[keys+kh*d.KeyDim:keys+(kh+1)*d.KeyDim])
			s, o := memory[head*d.KeyDim*d.ValueDim:], y[head*d.ValueDim:(head+1)*d.ValueDim]
			for j := range o {
				held := 0.0
				for i := range k {
					s[i*d.ValueDim+j] *= fade
					held += s[i*d.ValueDim+j] * k[i]
				}
				for i := range k {
					s[i*d.ValueDim+j] += k[i] * sigmoid64(b) * (u[2*keys+head*d.ValueDim+j] - held)
					o[j] += s[i*d.ValueDim+j] * q[i] * float64(d.Scale)
				}
			}
			for j, v := range d.Norm.ref(o) {
				o[j] = v * silu(gate[head*d.ValueDim+j])
			}
		}
		out = append(out, d.O.ref(y))
	}
	return out
}
