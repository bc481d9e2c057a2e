package testmodel

import (
	"fmt"
	"math"
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
	c := &m.Config
	tr := &Trace{}
	embed := m.tensor("model.embed_tokens.weight")
	x := make([][]float64, len(tokens))
	for t, id := range tokens {
		x[t] = widen(embed.Data[int(id)*c.HiddenSize : (int(id)+1)*c.HiddenSize])
	}
	tr.Embed = clone(x)
	for i := range c.NumHiddenLayers {
		p := fmt.Sprintf("model.layers.%d.", i)
		h := m.normed(p+"input_layernorm.weight", x)
		addTo(x, m.linear(p+"self_attn.o_proj", m.attention(p+"self_attn.", h)))
		h = m.normed(p+"post_attention_layernorm.weight", x)
		gate, up := m.linear(p+"mlp.gate_proj", h), m.linear(p+"mlp.up_proj", h)
		for t := range gate {
			for j, g := range gate[t] {
				gate[t][j] = g / (1 + math.Exp(-g)) * up[t][j]
			}
		}
		addTo(x, m.linear(p+"mlp.down_proj", gate))
		tr.Hidden = append(tr.Hidden, clone(x))
	}
	head := "lm_head"
	if c.TieWordEmbeddings {
		head = "model.embed_tokens"
	}
	tr.Logits = m.linear(head, m.normed("model.norm.weight", x))
	return tr
}

func (m *Model) attention(prefix string, h [][]float64) [][]float64 {
	c := &m.Config
	d := c.headDim()
	q, k, v := m.linear(prefix+"q_proj", h), m.linear(prefix+"k_proj", h), m.linear(prefix+"v_proj", h)
	freq, magnitude := c.inverseFrequencies()
	out := make([][]float64, len(h))
	for t := range h {
		out[t] = make([]float64, c.NumAttentionHeads*d)
		for _, part := range []struct {
			rows []float64
			norm string
		}{{q[t], "q_norm.weight"}, {k[t], "k_norm.weight"}} {
			for at := 0; at < len(part.rows); at += d {
				head := part.rows[at : at+d]
				if w := m.tensor(prefix + part.norm); w != nil {
					copy(head, rmsNorm(head, w.Data, c.RMSNormEps))
				}
				for j := range d / 2 { // rotate_half
					sin, cos := math.Sincos(float64(t) * freq[j])
					sin, cos = sin*magnitude, cos*magnitude
					a, b := head[j], head[j+d/2]
					head[j], head[j+d/2] = a*cos-b*sin, b*cos+a*sin
				}
			}
		}
	}
	for t := range h {
		for i := range c.NumAttentionHeads {
			kv := i / (c.NumAttentionHeads / c.NumKeyValueHeads) * d
			p := make([]float64, t+1)
			sum := 0.0
			for s := range p {
				if c.SlidingWindow > 0 && t-s >= c.SlidingWindow {
					continue
				}
				dot := 0.0
				for j := range d {
					dot += q[t][i*d+j] * k[s][kv+j]
				}
				p[s] = math.Exp(dot / math.Sqrt(float64(d)))
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

// inverseFrequencies are transformers' modeling_rope_utils.py: the angle per position of each pair, and the factor on
// cosine and sine.
func (c *Config) inverseFrequencies() (inv []float64, attention float64) {
	d := float64(c.headDim())
	num := func(key string) float64 {
		switch v := c.RopeScaling[key].(type) {
		case int:
			return float64(v)
		case float64:
			return v
		}
		panic("testmodel: rope_scaling." + key)
	}
	attention = 1
	for i := 0.0; i < d; i += 2 {
		f := 1 / math.Pow(c.RopeTheta, i/d)
		switch c.RopeScaling["rope_type"] {
		case "linear":
			f /= num("factor")
		case "llama3":
			original, low, high := num("original_max_position_embeddings"), num("low_freq_factor"), num("high_freq_factor")
			wavelength := 2 * math.Pi / f
			switch {
			case wavelength < original/high:
			case wavelength > original/low:
				f /= num("factor")
			default:
				smooth := (original/wavelength - low) / (high - low)
				f = (1-smooth)*f/num("factor") + smooth*f
			}
		case "yarn":
			const betaFast, betaSlow = 32, 1 // transformers' defaults
			original := num("original_max_position_embeddings")
			correction := func(rotations float64) float64 {
				return d * math.Log(original/(rotations*2*math.Pi)) / (2 * math.Log(c.RopeTheta))
			}
			low := math.Max(math.Floor(correction(betaFast)), 0)
			high := math.Min(math.Ceil(correction(betaSlow)), d-1)
			if low == high {
				high += 0.001
			}
			ramp := math.Min(math.Max((i/2-low)/(high-low), 0), 1)
			f = f/num("factor")*ramp + f*(1-ramp)
			attention = 0.1*math.Log(num("factor")) + 1
		}
		inv = append(inv, f)
	}
	return inv, attention
}

// linear applies a weight and, if there is one, its bias.
func (m *Model) linear(name string, x [][]float64) [][]float64 {
	w, b := m.tensor(name+".weight"), m.tensor(name+".bias")
	out, in := w.Shape[0], w.Shape[1]
	y := make([][]float64, len(x))
	for t := range x {
		y[t] = make([]float64, out)
		for o := range out {
			for i, v := range w.Data[o*in : (o+1)*in] {
				y[t][o] += float64(v) * x[t][i]
			}
			if b != nil {
				y[t][o] += float64(b.Data[o])
			}
		}
	}
	return y
}

func (m *Model) normed(name string, x [][]float64) [][]float64 {
	y := make([][]float64, len(x))
	for t := range x {
		y[t] = rmsNorm(x[t], m.tensor(name).Data, m.Config.RMSNormEps)
	}
	return y
}

func rmsNorm(x []float64, w []float32, eps float64) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v / math.Sqrt(sum/float64(len(x))+eps) * float64(w[i])
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
