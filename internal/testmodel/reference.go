package testmodel

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Trace is what a forward pass computes on the way.
type Trace struct {
	Embed  [][]float64   // token, feature
	Hidden [][][]float64 // layer, token, feature: the layer's output
	Logits [][]float64   // token, vocabulary
}

// Forward runs the checkpoint on one sequence, as transformers' modeling_llama.py and its siblings define it, in
// float64 and with no thought for speed.
func (m *Model) Forward(tokens []int32) *Trace {
	l := m.library()
	tr := &Trace{}
	embed := m.tensor("model.embed_tokens.weight")
	x := make([][]float64, len(tokens))
	for t, id := range tokens {
		x[t] = widen(embed.Data[int(id)*l.dim : (int(id)+1)*l.dim])
		for i := range x[t] {
			if l.gemma {
				x[t][i] *= math.Sqrt(float64(l.dim))
			}
		}
	}
	tr.Embed = clone(x)
	for i := range l.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		y := m.linear(p+"self_attn.o_proj", m.attention(l, i, p+"self_attn.", m.normed(l, p+"input_layernorm.weight", x)))
		if l.gemma {
			y = m.normed(l, p+"post_attention_layernorm.weight", y)
		}
		addTo(x, y)
		switch {
		case l.gemma:
			y = m.mlp(l, p+"mlp.", m.normed(l, p+"pre_feedforward_layernorm.weight", x))
			y = m.normed(l, p+"post_feedforward_layernorm.weight", y)
		case l.experts > 0:
			y = m.mixture(l, p+"mlp.", m.normed(l, p+"post_attention_layernorm.weight", x))
		default:
			y = m.mlp(l, p+"mlp.", m.normed(l, p+"post_attention_layernorm.weight", x))
		}
		addTo(x, y)
		tr.Hidden = append(tr.Hidden, clone(x))
	}
	head := "lm_head"
	if l.tied {
		head = "model.embed_tokens"
	}
	tr.Logits = m.linear(head, m.normed(l, "model.norm.weight", x))
	for _, row := range tr.Logits {
		for i, v := range row {
			if l.softcap > 0 {
				row[i] = l.softcap * math.Tanh(v/l.softcap)
			}
		}
	}
	return tr
}

func (m *Model) mlp(l *library, prefix string, h [][]float64) [][]float64 {
	gate, up := m.linear(prefix+"gate_proj", h), m.linear(prefix+"up_proj", h)
	for t := range gate {
		for j, g := range gate[t] {
			act := g / (1 + math.Exp(-g))
			if l.act == "gelu" {
				act = g / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(g+0.044715*g*g*g)))
			}
			gate[t][j] = act * up[t][j]
		}
	}
	return m.linear(prefix+"down_proj", gate)
}

// mixture adds up the outputs of the experts that the router prefers, weighted by its softmax over all of them.
func (m *Model) mixture(l *library, prefix string, h [][]float64) [][]float64 {
	y := make([][]float64, len(h))
	for t, scores := range m.linear(prefix+"gate", h) {
		y[t] = make([]float64, l.dim)
		all, chosen := 0.0, 0.0
		order := make([]int, len(scores))
		for e, s := range scores {
			scores[e] = math.Exp(s)
			all += scores[e]
			order[e] = e
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(scores[b], scores[a]) })
		for _, e := range order[:l.used] {
			chosen += scores[e]
		}
		if !l.normalized {
			chosen = all
		}
		for _, e := range order[:l.used] {
			out := m.mlp(l, fmt.Sprintf("%sexperts.%d.", prefix, e), h[t:t+1])[0]
			for i, v := range out {
				y[t][i] += scores[e] / chosen * v
			}
		}
	}
	return y
}

func (m *Model) attention(l *library, layer int, prefix string, h [][]float64) [][]float64 {
	d := l.headDim
	q, k, v := m.linear(prefix+"q_proj", h), m.linear(prefix+"k_proj", h), m.linear(prefix+"v_proj", h)
	rope, window := l.ropes[layer], l.windows[layer]
	out := make([][]float64, len(h))
	for t := range h {
		out[t] = make([]float64, l.heads*d)
		for _, part := range []struct {
			rows []float64
			norm string
		}{{q[t], "q_norm.weight"}, {k[t], "k_norm.weight"}} {
			for at := 0; at < len(part.rows); at += d {
				head := part.rows[at : at+d]
				if l.qkNorm {
					copy(head, m.rmsNorm(l, head, prefix+part.norm))
				}
				for j := range d / 2 { // rotate_half
					sin, cos := math.Sincos(float64(t) * rope.inverse[j])
					sin, cos = sin*rope.magnitude, cos*rope.magnitude
					a, b := head[j], head[j+d/2]
					head[j], head[j+d/2] = a*cos-b*sin, b*cos+a*sin
				}
			}
		}
	}
	for t := range h {
		for i := range l.heads {
			kv := i / (l.heads / l.kvHeads) * d
			p := make([]float64, t+1)
			sum := 0.0
			for s := range p {
				if window > 0 && t-s >= window {
					continue
				}
				dot := 0.0
				for j := range d {
					dot += q[t][i*d+j] * k[s][kv+j]
				}
				p[s] = math.Exp(dot * l.scale)
				sum += p[s]
			}
			for s := range p {
				for j := range d {
					out[t][i*d+j] += p[s] / sum * v[s][kv+j]
				}
			}
		}
	}
	return out
}

// linear applies a weight and, if there is one, its bias.
func (m *Model) linear(name string, x [][]float64) [][]float64 {
	w, b := m.tensor(name+".weight"), m.tensor(name+".bias")
	out, in := w.Shape[0], w.Shape[1]
	y := make([][]float64, len(x))
	for t := range x {
		y[t] = make([]float64, out)
		for o := range out {
			sum := 0.0
			for i, v := range w.Data[o*in : (o+1)*in] {
				sum += float64(v) * x[t][i]
			}
			if b != nil {
				sum += float64(b.Data[o])
			}
			y[t][o] = sum
		}
	}
	return y
}

func (m *Model) normed(l *library, name string, x [][]float64) [][]float64 {
	y := make([][]float64, len(x))
	for t := range x {
		y[t] = m.rmsNorm(l, x[t], name)
	}
	return y
}

func (m *Model) rmsNorm(l *library, x []float64, name string) []float64 {
	w := m.tensor(name).Data
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	y := make([]float64, len(x))
	for i, v := range x {
		factor := float64(w[i])
		if l.gemma {
			factor++
		}
		y[i] = v / math.Sqrt(sum/float64(len(x))+l.eps) * factor
	}
	return y
}

func widen(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

func clone(x [][]float64) [][]float64 {
	y := make([][]float64, len(x))
	for i := range x {
		y[i] = append([]float64(nil), x[i]...)
	}
	return y
}

func addTo(x, y [][]float64) {
	for t := range x {
		for i, v := range y[t] {
			x[t][i] += v
		}
	}
}
