package hf

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
)

// source is where a tensor of the virtual GGUF comes from.
type source struct {
	info  ggml.Info
	hf    string // its name in the checkpoint
	heads int    // of q and k, where rows are interleaved; 0: the data is as it is
	data  []byte // of a tensor that the checkpoint does not have
}

// tensorSpec is a tensor that config.json says is there.
type tensorSpec struct {
	hf, gguf string
	shape    []int
	heads    int
}

// The tensors outside the layers.
const (
	embedName = "model.embed_tokens.weight"
	normName  = "model.norm.weight"
	headName  = "lm_head.weight"
)

// untied says that a checkpoint whose head is tied to the embeddings, by config.json, has a head that is not a copy of
// them. The transformers library from 5 on uses that head, and so do GGUF readers.
func (c *config) untied(st *safetensors.Checkpoint) (bool, error) {
	head, stored := st.Lookup(headName)
	embed, ok := st.Lookup(embedName)
	if !c.tied || !stored || !ok {
		return false, nil
	}
	if head.DType != embed.DType || !slices.Equal(head.Shape, embed.Shape) {
		return true, nil
	}
	h, _, err := st.Tensor(headName)
	if err != nil {
		return false, err
	}
	defer st.Release(headName)
	e, _, err := st.Tensor(embedName)
	if err != nil {
		return false, err
	}
	defer st.Release(embedName)
	return !bytes.Equal(h, e), nil
}

// tensors lists what the checkpoint must hold outside the layers.
func (c *config) tensors() []tensorSpec {
	specs := []tensorSpec{
		{hf: embedName, gguf: "token_embd.weight", shape: []int{c.vocab, c.dim}},
		{hf: normName, gguf: "output_norm.weight", shape: []int{c.dim}},
	}
	if !c.tied {
		specs = append(specs, tensorSpec{hf: headName, gguf: "output.weight", shape: []int{c.vocab, c.dim}})
	}
	return specs
}

// layerTensors lists what the checkpoint must hold for layer i.
func (c *config) layerTensors(i int) []tensorSpec {
	q, kv := c.heads*c.headDim, c.kvHeads*c.headDim
	qHeads, kHeads := 0, 0
	if c.arch.interleave {
		qHeads, kHeads = c.heads, c.kvHeads
	}
	var specs []tensorSpec
	add := func(hf, gguf string, heads int, shape ...int) {
		specs = append(specs, tensorSpec{
			fmt.Sprintf("model.layers.%d.%s", i, hf), fmt.Sprintf("blk.%d.%s", i, gguf), shape, heads,
		})
	}
	linear := func(hf, gguf string, out, in, heads int, bias bool) {
		add(hf+".weight", gguf+".weight", heads, out, in)
		if bias {
			add(hf+".bias", gguf+".bias", heads, out)
		}
	}
	qkvBias := c.arch.qkvBias || c.attnBias
	add("input_layernorm.weight", "attn_norm.weight", 0, c.dim)
	linear("self_attn.q_proj", "attn_q", q, c.dim, qHeads, qkvBias)
	linear("self_attn.k_proj", "attn_k", kv, c.dim, kHeads, qkvBias)
	linear("self_attn.v_proj", "attn_v", kv, c.dim, 0, qkvBias)
	if c.arch.headNorms {
		add("self_attn.q_norm.weight", "attn_q_norm.weight", 0, c.headDim)
		add("self_attn.k_norm.weight", "attn_k_norm.weight", 0, c.headDim)
	}
	linear("self_attn.o_proj", "attn_output", c.dim, q, 0, c.attnBias)
	add("post_attention_layernorm.weight", "ffn_norm.weight", 0, c.dim)
	linear("mlp.gate_proj", "ffn_gate", c.ffn, c.dim, 0, c.mlpBias)
	linear("mlp.up_proj", "ffn_up", c.ffn, c.dim, 0, c.mlpBias)
	linear("mlp.down_proj", "ffn_down", c.dim, c.ffn, 0, c.mlpBias)
	return specs
}

// noWeight matches tensors that old checkpoints carry and that follow from config.json.
var noWeight = regexp.MustCompile(`\.(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias)$`)

// mapTensors pairs the tensors that config.json calls for with those of the checkpoint, in the order in which the
// forward pass needs them.
func (c *config) mapTensors(st *safetensors.Checkpoint) ([]source, error) {
	var sources []source
	used := make(map[string]bool)
	add := func(s tensorSpec) error {
		info, ok := st.Lookup(s.hf)
		if !ok {
			return fmt.Errorf("tensor %q is missing; config.json (%s, %d layers) calls for it", s.hf, c.class, c.layers)
		}
		if !slices.Equal(info.Shape, s.shape) {
			return fmt.Errorf("%s: tensor %q is %v, config.json calls for %v", info.Shard, s.hf, info.Shape, s.shape)
		}
		var typ *ggml.Type
		switch info.DType {
		case safetensors.F32:
			typ = ggml.F32
		case safetensors.F16:
			typ = ggml.F16
		case safetensors.BF16:
			typ = ggml.BF16
		default:
			return fmt.Errorf("%s: tensor %q is %s; supported: F32, F16, BF16", info.Shard, s.hf, info.DType)
		}
		used[s.hf] = true
		sources = append(sources, source{info: ggml.Info{Name: s.gguf, Type: typ, Shape: s.shape}, hf: s.hf, heads: s.heads})
		return nil
	}
	outer := c.tensors()
	if err := add(outer[0]); err != nil {
		return nil, err
	}
	if data := c.rope.freqFactors(); data != nil {
		sources = append(sources, source{
			info: ggml.Info{Name: "rope_freqs.weight", Type: ggml.F32, Shape: []int{len(data) / 4}}, data: data,
		})
	}
	for i := range c.layers {
		for _, s := range c.layerTensors(i) {
			if err := add(s); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range outer[1:] {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	for _, name := range st.Names() {
		tiedHead := c.tied && name == headName // a copy of the embeddings
		if !used[name] && !tiedHead && !noWeight.MatchString(name) {
			info, _ := st.Lookup(name)
			return nil, fmt.Errorf("%s: tensor %q %v is not one that config.json (%s, %d layers) calls for",
				info.Shard, name, info.Shape, c.class, c.layers)
		}
	}
	return sources, nil
}

// interleave returns a copy of q's or k's rows in llama.cpp's order. Of the rotated rows of a head, those of the first
// half go to the even places and those of the second half to the odd ones.
func interleave(src []byte, rows, heads, dims int) []byte {
	dst := make([]byte, len(src))
	rowBytes, headDim := len(src)/rows, rows/heads
	copyRow := func(to, from int) {
		copy(dst[to*rowBytes:(to+1)*rowBytes], src[from*rowBytes:(from+1)*rowBytes])
	}
	for first := 0; first < rows; first += headDim {
		for i := range headDim {
			from := i
			if i < dims {
				from = i/2 + i%2*dims/2
			}
			copyRow(first+i, first+from)
		}
	}
	return dst
}
