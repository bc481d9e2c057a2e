package arch_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// The families with LayerNorm in the forms that the reference checkpoints do not have, against plain float64 passes as the
// transformers library's classes compute them. Each pass makes up the weights that it asks for, and these are the
// checkpoint.

// plainModel is a checkpoint that comes to be while the forward pass of its class asks for weights.
type plainModel struct {
	rng     *rand.Rand
	tensors []testmodel.Tensor
	known   map[string][]float32

	dim, heads, kvHeads, ffn, layers, vocab int
	rotated                                 int // of a head's elements
	theta                                   float64
	window                                  int
	pairs                                   bool // RoPE turns neighbours
}

func (m *plainModel) headDim() int { return m.dim / m.heads }

// get returns a tensor's values, which bfloat16 holds: small ones, or in norms ones near 1.
func (m *plainModel) get(name string, shape ...int) []float32 {
	if v, ok := m.known[name]; ok {
		return v
	}
	n := 1
	for _, s := range shape {
		n *= s
	}
	v := make([]float32, n)
	for i := range v {
		f := m.rng.NormFloat64() / math.Sqrt(float64(shape[len(shape)-1]))
		if len(shape) == 1 {
			f = 0.7 + 0.2*m.rng.NormFloat64()
		}
		v[i] = math.Float32frombits(math.Float32bits(float32(f)) &^ 0xffff)
	}
	m.known[name] = v
	m.tensors = append(m.tensors, testmodel.Tensor{Name: name, Shape: shape, Data: v})
	return v
}

// linear is x·Wᵀ+b, or x·W+b with the weight in×out.
func (m *plainModel) linear(x [][]float64, name string, out, in int, bias, transposed bool) [][]float64 {
	var w []float32
	if transposed {
		w = m.get(name+".weight", in, out)
	} else {
		w = m.get(name+".weight", out, in)
	}
	y := make([][]float64, len(x))
	for t := range x {
		y[t] = make([]float64, out)
		for o := range out {
			for i, v := range x[t] {
				if transposed {
					y[t][o] += v * float64(w[i*out+o])
				} else {
					y[t][o] += v * float64(w[o*in+i])
				}
			}
			if bias {
				y[t][o] += float64(m.get(name+".bias", out)[o])
			}
		}
	}
	return y
}

func layerNorm64(x []float64, w, b []float32) []float64 {
	var mean, variance float64
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		variance += (v - mean) * (v - mean) / float64(len(x))
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = (v - mean) / math.Sqrt(variance+1e-5) * float64(w[i])
		if b != nil {
			y[i] += float64(b[i])
		}
	}
	return y
}

func (m *plainModel) norm(x [][]float64, name string, bias bool) [][]float64 {
	y := make([][]float64, len(x))
	for t := range x {
		var b []float32
		w := m.get(name+".weight", m.dim)
		if bias {
			b = m.get(name+".bias", m.dim)
		}
		y[t] = layerNorm64(x[t], w, b)
	}
	return y
}

// headNorms normalises each head with the weights of its own that of gives.
func (m *plainModel) headNorms(x [][]float64, heads int, of func(head int) []float32) {
	d := m.headDim()
	for t := range x {
		for h := range heads {
			copy(x[t][h*d:], layerNorm64(x[t][h*d:(h+1)*d], of(h), nil))
		}
	}
}

// attend is causal attention, with RoPE if elements are rotated.
func (m *plainModel) attend(q, k, v [][]float64, rotated, window int) [][]float64 {
	d := m.headDim()
	turn := func(x [][]float64, heads int) {
		for t := range x {
			for h := range heads {
				for i := range rotated / 2 {
					a, b := h*d+i, h*d+i+rotated/2
					if m.pairs {
						a, b = h*d+2*i, h*d+2*i+1
					}
					sin, cos := math.Sincos(float64(t) * math.Pow(m.theta, -2*float64(i)/float64(rotated)))
					x[t][a], x[t][b] = x[t][a]*cos-x[t][b]*sin, x[t][b]*cos+x[t][a]*sin
				}
			}
		}
	}
	turn(q, m.heads)
	turn(k, m.kvHeads)
	out := make([][]float64, len(q))
	for t := range q {
		out[t] = make([]float64, m.dim)
		for h := range m.heads {
			kv := h / (m.heads / m.kvHeads)
			sum := 0.0
			for s := range t + 1 {
				if window > 0 && s <= t-window {
					continue
				}
				dot := 0.0
				for i := range d {
					dot += q[t][h*d+i] * k[s][kv*d+i]
				}
				e := math.Exp(dot / math.Sqrt(float64(d)))
				sum += e
				for i := range d {
					out[t][h*d+i] += e * v[s][kv*d+i]
				}
			}
			for i := range d {
				out[t][h*d+i] /= sum
			}
		}
	}
	return out
}

// apart splits rows of q, k and v in one, where at says which head of the row is head h of q, k and v.
func (m *plainModel) apart(x [][]float64, at func(which, h int) int) (q, k, v [][]float64) {
	d := m.headDim()
	parts := [3][][]float64{}
	for which, heads := range []int{m.heads, m.kvHeads, m.kvHeads} {
		for t := range x {
			var row []float64
			for h := range heads {
				row = append(row, x[t][at(which, h)*d:][:d]...)
			}
			parts[which] = append(parts[which], row)
		}
	}
	return parts[0], parts[1], parts[2]
}

func plus(xs ...[][]float64) [][]float64 {
	y := make([][]float64, len(xs[0]))
	for t := range y {
		y[t] = make([]float64, len(xs[0][t]))
		for _, x := range xs {
			for i, v := range x[t] {
				y[t][i] += v
			}
		}
	}
	return y
}

func gelu64(x [][]float64) [][]float64 {
	for t := range x {
		for i, v := range x[t] {
			x[t][i] = v / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v)))
		}
	}
	return x
}

func silu64(x [][]float64) [][]float64 {
	for t := range x {
		for i, v := range x[t] {
			x[t][i] = v / (1 + math.Exp(-v))
		}
	}
	return x
}

func (m *plainModel) embed(name string, tokens []int32) [][]float64 {
	table := m.get(name, m.vocab, m.dim)
	var x [][]float64
	for _, id := range tokens {
		row := make([]float64, m.dim)
		for i := range row {
			row[i] = float64(table[int(id)*m.dim+i])
		}
		x = append(x, row)
	}
	return x
}

// gated is an MLP with a gate under Llama's names.
func (m *plainModel) gated(h [][]float64, p string) [][]float64 {
	g, u := silu64(m.linear(h, p+"mlp.gate_proj", m.ffn, m.dim, false, false)), m.linear(h, p+"mlp.up_proj", m.ffn, m.dim, false, false)
	for t := range g {
		for i := range g[t] {
			g[t][i] *= u[t][i]
		}
	}
	return m.linear(g, p+"mlp.down_proj", m.dim, m.ffn, false, false)
}

// project is q, k and v under the usual names.
func (m *plainModel) project(h [][]float64, p string, bias bool) (q, k, v [][]float64) {
	kv := m.kvHeads * m.headDim()
	return m.linear(h, p+"self_attn.q_proj", m.dim, m.dim, bias, false), m.linear(h, p+"self_attn.k_proj", kv, m.dim, bias, false),
		m.linear(h, p+"self_attn.v_proj", kv, m.dim, bias, false)
}

func (m *plainModel) stablelm(tokens []int32, side, norms, bias bool) [][]float64 {
	x := m.embed("model.embed_tokens.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		h := m.norm(x, p+"input_layernorm", true)
		q, k, v := m.project(h, p, bias)
		if norms {
			of := func(name string) func(head int) []float32 {
				return func(head int) []float32 {
					return m.get(fmt.Sprintf("%sself_attn.%s.norms.%d.weight", p, name, head), m.headDim())
				}
			}
			m.headNorms(q, m.heads, of("q_layernorm"))
			m.headNorms(k, m.kvHeads, of("k_layernorm"))
		}
		a := m.linear(m.attend(q, k, v, m.rotated, 0), p+"self_attn.o_proj", m.dim, m.dim, false, false)
		if side {
			x = plus(x, a, m.gated(h, p))
		} else {
			x = plus(x, a)
			x = plus(x, m.gated(m.norm(x, p+"post_attention_layernorm", true), p))
		}
	}
	return m.linear(m.norm(x, "model.norm", true), "lm_head", m.vocab, m.dim, false, false)
}

func (m *plainModel) cohere(tokens []int32, norms bool, windowed func(i int) bool, scale float64) [][]float64 {
	x := m.embed("model.embed_tokens.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		h := m.norm(x, p+"input_layernorm", false)
		q, k, v := m.project(h, p, false)
		if norms {
			d := m.headDim()
			m.headNorms(q, m.heads, func(n int) []float32 { return m.get(p+"self_attn.q_norm.weight", m.heads, d)[n*d:][:d] })
			m.headNorms(k, m.kvHeads, func(n int) []float32 { return m.get(p+"self_attn.k_norm.weight", m.kvHeads, d)[n*d:][:d] })
		}
		rotated, window := m.headDim(), 0
		if m.window > 0 {
			if window = m.window; !windowed(i) {
				rotated, window = 0, 0
			}
		}
		a := m.linear(m.attend(q, k, v, rotated, window), p+"self_attn.o_proj", m.dim, m.dim, false, false)
		x = plus(x, a, m.gated(h, p))
	}
	x = m.linear(m.norm(x, "model.norm", false), "model.embed_tokens", m.vocab, m.dim, false, false)
	for t := range x {
		for i := range x[t] {
			x[t][i] *= scale
		}
	}
	return x
}

func (m *plainModel) starcoder2(tokens []int32, bias bool) [][]float64 {
	x := m.embed("model.embed_tokens.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		q, k, v := m.project(m.norm(x, p+"input_layernorm", true), p, bias)
		x = plus(x, m.linear(m.attend(q, k, v, m.headDim(), m.window), p+"self_attn.o_proj", m.dim, m.dim, bias, false))
		h := gelu64(m.linear(m.norm(x, p+"post_attention_layernorm", true), p+"mlp.c_fc", m.ffn, m.dim, bias, false))
		x = plus(x, m.linear(h, p+"mlp.c_proj", m.dim, m.ffn, bias, false))
	}
	return m.linear(m.norm(x, "model.norm", true), "model.embed_tokens", m.vocab, m.dim, false, false)
}

func (m *plainModel) phi(tokens []int32) [][]float64 {
	x := m.embed("model.embed_tokens.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		h := m.norm(x, p+"input_layernorm", true)
		q, k, v := m.project(h, p, true)
		a := m.linear(m.attend(q, k, v, m.rotated, 0), p+"self_attn.dense", m.dim, m.dim, true, false)
		x = plus(x, a, m.linear(gelu64(m.linear(h, p+"mlp.fc1", m.ffn, m.dim, true, false)), p+"mlp.fc2", m.dim, m.ffn, true, false))
	}
	return m.linear(m.norm(x, "model.final_layernorm", true), "lm_head", m.vocab, m.dim, true, false)
}

func (m *plainModel) neox(tokens []int32, side, bias bool) [][]float64 {
	x := m.embed("gpt_neox.embed_in.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("gpt_neox.layers.%d.", i)
		qkv := m.linear(m.norm(x, p+"input_layernorm", true), p+"attention.query_key_value", 3*m.dim, m.dim, bias, false)
		q, k, v := m.apart(qkv, func(which, h int) int { return 3*h + which })
		a := m.linear(m.attend(q, k, v, m.rotated, 0), p+"attention.dense", m.dim, m.dim, bias, false)
		from := plus(x, a)
		if side {
			from = x
		}
		h := gelu64(m.linear(m.norm(from, p+"post_attention_layernorm", true), p+"mlp.dense_h_to_4h", m.ffn, m.dim, true, false))
		x = plus(x, a, m.linear(h, p+"mlp.dense_4h_to_h", m.dim, m.ffn, true, false))
	}
	return m.linear(m.norm(x, "gpt_neox.final_layer_norm", true), "embed_out", m.vocab, m.dim, false, false)
}

func (m *plainModel) gpt2(tokens []int32, root, head string) [][]float64 {
	x := m.embed(root+"wte.weight", tokens)
	for t, row := range m.embed(root+"wte.weight", tokens) {
		for i := range row {
			x[t][i] += float64(m.get(root+"wpe.weight", 128, m.dim)[t*m.dim+i])
		}
	}
	for i := range m.layers {
		p := fmt.Sprintf("%sh.%d.", root, i)
		q, k, v := m.apart(m.linear(m.norm(x, p+"ln_1", true), p+"attn.c_attn", 3*m.dim, m.dim, true, true),
			func(which, h int) int { return which*m.heads + h })
		x = plus(x, m.linear(m.attend(q, k, v, 0, 0), p+"attn.c_proj", m.dim, m.dim, true, true))
		h := gelu64(m.linear(m.norm(x, p+"ln_2", true), p+"mlp.c_fc", m.ffn, m.dim, true, true))
		x = plus(x, m.linear(h, p+"mlp.c_proj", m.dim, m.ffn, true, true))
	}
	return m.linear(m.norm(x, root+"ln_f", true), head, m.vocab, m.dim, false, false)
}

func (m *plainModel) falcon(tokens []int32, norms int, head string) [][]float64 {
	x := m.embed("transformer.word_embeddings.weight", tokens)
	for i := range m.layers {
		p := fmt.Sprintf("transformer.h.%d.", i)
		var h, g [][]float64
		if norms == 2 {
			h, g = m.norm(x, p+"ln_attn", true), m.norm(x, p+"ln_mlp", true)
		} else {
			h = m.norm(x, p+"input_layernorm", true)
			g = h
		}
		all := m.linear(h, p+"self_attention.query_key_value", m.dim+2*m.kvHeads*m.headDim(), m.dim, false, false)
		group := m.heads / m.kvHeads
		q, k, v := m.apart(all, func(which, h int) int {
			if which == 0 {
				return h/group*(group+2) + h%group
			}
			return h*(group+2) + group + which - 1
		})
		a := m.linear(m.attend(q, k, v, m.headDim(), 0), p+"self_attention.dense", m.dim, m.dim, false, false)
		g = gelu64(m.linear(g, p+"mlp.dense_h_to_4h", m.ffn, m.dim, false, false))
		x = plus(x, a, m.linear(g, p+"mlp.dense_4h_to_h", m.dim, m.ffn, false, false))
	}
	return m.linear(m.norm(x, "transformer.ln_f", true), head, m.vocab, m.dim, false, false)
}

func TestLayerNormFamilies(t *testing.T) {
	type object = map[string]any
	tm := testmodel.New("qwen2")
	tokens := tm.Tokens(23, 5)
	for _, c := range []struct {
		name   string
		m      plainModel
		config object
		pass   func(m *plainModel) [][]float64
	}{
		{"stablelm parallel", plainModel{kvHeads: 2, rotated: 4}, object{"architectures": []string{"StableLmForCausalLM"},
			"use_parallel_residual": true, "qk_layernorm": true, "use_qkv_bias": true},
			func(m *plainModel) [][]float64 { return m.stablelm(tokens, true, true, true) }},
		{"stablelm", plainModel{kvHeads: 1, rotated: 8, theta: 500}, object{"architectures": []string{"StableLmForCausalLM"},
			"rope_parameters": object{"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}},
			func(m *plainModel) [][]float64 { return m.stablelm(tokens, false, false, false) }},
		{"command-r of 64 layers", plainModel{kvHeads: 2, layers: 64, pairs: true}, object{"architectures": []string{"CohereForCausalLM"},
			"use_qk_norm": true, "logit_scale": 0.5}, func(m *plainModel) [][]float64 { return m.cohere(tokens, true, nil, 0.5) }},
		{"cohere2", plainModel{kvHeads: 4, layers: 3, window: 6, pairs: true, theta: 900}, object{"architectures": []string{"Cohere2ForCausalLM"},
			"sliding_window": 6, "rope_theta": 900, "layer_types": []string{"full_attention", "sliding_attention", "full_attention"}},
			func(m *plainModel) [][]float64 {
				return m.cohere(tokens, false, func(i int) bool { return i == 1 }, 0.0625)
			}},
		{"starcoder2 without biases", plainModel{kvHeads: 2, window: 5}, object{"architectures": []string{"Starcoder2ForCausalLM"},
			"use_bias": false, "sliding_window": 5}, func(m *plainModel) [][]float64 { return m.starcoder2(tokens, false) }},
		{"phi", plainModel{kvHeads: 2, rotated: 12, theta: 300}, object{"architectures": []string{"PhiForCausalLM"},
			"rope_theta": 300, "partial_rotary_factor": 0.75}, func(m *plainModel) [][]float64 { return m.phi(tokens) }},
		{"gptneox sequential", plainModel{rotated: 8, theta: 700}, object{"architectures": []string{"GPTNeoXForCausalLM"},
			"use_parallel_residual": false, "rotary_pct": 0.5, "rotary_emb_base": 700},
			func(m *plainModel) [][]float64 { return m.neox(tokens, false, true) }},
		{"gptneox without attention's biases", plainModel{rotated: 4}, object{"architectures": []string{"GPTNeoXForCausalLM"},
			"attention_bias": false}, func(m *plainModel) [][]float64 { return m.neox(tokens, true, false) }},
		{"gpt2 untied", plainModel{}, object{"architectures": []string{"GPT2LMHeadModel"}, "tie_word_embeddings": false,
			"n_positions": 128, "n_inner": 96}, func(m *plainModel) [][]float64 { return m.gpt2(tokens, "transformer.", "lm_head") }},
		{"falcon 40B", plainModel{kvHeads: 2}, object{"architectures": []string{"FalconForCausalLM"}, "new_decoder_architecture": true,
			"num_kv_heads": 2, "ffn_hidden_size": 96}, func(m *plainModel) [][]float64 { return m.falcon(tokens, 2, "transformer.word_embeddings") }},
		{"falcon 11B", plainModel{kvHeads: 2, theta: 40}, object{"architectures": []string{"FalconForCausalLM"},
			"new_decoder_architecture": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96, "rope_theta": 40,
			"tie_word_embeddings": false}, func(m *plainModel) [][]float64 { return m.falcon(tokens, 1, "lm_head") }},
		{"falcon with all heads", plainModel{}, object{"architectures": []string{"RWForCausalLM"}, "multi_query": false,
			"ffn_hidden_size": 96}, func(m *plainModel) [][]float64 { return m.falcon(tokens, 1, "transformer.word_embeddings") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &c.m
			m.rng, m.known = rand.New(rand.NewPCG(8, 9)), map[string][]float32{}
			m.dim, m.heads, m.ffn, m.vocab = 64, 4, 96, tm.Config.VocabSize
			if m.layers == 0 {
				m.layers = 2
			}
			if m.kvHeads == 0 {
				m.kvHeads = m.heads
			}
			if m.theta == 0 {
				m.theta = 10000
			}
			want := c.pass(m)
			sizes := object{"hidden_size": m.dim, "num_hidden_layers": m.layers, "num_attention_heads": m.heads,
				"num_key_value_heads": m.kvHeads, "intermediate_size": m.ffn, "vocab_size": m.vocab}
			for key, v := range sizes {
				if _, ok := c.config[key]; !ok {
					c.config[key] = v
				}
			}
			tm.Tensors = m.tensors
			dir := t.TempDir()
			if err := tm.WriteFolder(dir); err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(c.config)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
				t.Fatal(err)
			}
			src, err := hf.Open(dir, hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			got, err := arch.Open(src)
			if err != nil {
				t.Fatal(err)
			}
			got.Precision = kernels.F32
			x := through(t, got, tokens, len(tokens), len(tokens))
			head, err := got.LoadHead()
			if err != nil {
				t.Fatal(err)
			}
			defer head.Release()
			logits := tensor.New(len(tokens), got.Vocab)
			head.Logits(logits, x)
			worst, largest := 0.0, 0.0
			for i := range want {
				for j, w := range want[i] {
					worst, largest = max(worst, math.Abs(w-float64(logits.Row(i)[j]))), max(largest, math.Abs(w))
				}
			}
			if t.Logf("largest difference %.2g of %.2g", worst, largest); !(worst <= 2e-5*largest) {
				t.Errorf("largest difference %g, of %g", worst, largest)
			}
		})
	}
}
