package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/llmq/llmq/formats/safetensors"
)

// config is a config.json that says which checkpoint to write.
type config map[string]any

// readConfig reads path, with the special tokens of the tokenizer's checkpoint.
func readConfig(path, tokenizer string) (config, error) {
	c := config{}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	other := config{}
	if data, err = os.ReadFile(filepath.Join(tokenizer, "config.json")); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &other); err != nil {
		return nil, err
	}
	for _, name := range []string{"bos_token_id", "eos_token_id"} {
		c[name] = other[name]
	}
	return c, nil
}

func (c config) write(dir string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), append(data, '\n'), 0o644)
}

// ints returns members that are whole numbers; the first that is missing or less than 1 is the error.
func (c config) ints(names ...string) (map[string]int, error) {
	n := map[string]int{}
	for _, name := range names {
		v, _ := c[name].(float64)
		if v != float64(int(v)) || v < 1 {
			return nil, fmt.Errorf("config.json: %s is %v, want a whole number from 1 on", name, c[name])
		}
		n[name] = int(v)
	}
	return n, nil
}

// classes list the tensors of those model classes that have a config.json of their own here.
var classes = map[string]func(c config, w *writer) error{
	"Qwen3_5ForCausalLM":    qwen35,
	"NemotronHForCausalLM":  nemotronH,
	"DeepseekV3ForCausalLM": deepseekV3,
}

// writer collects tensors. In fp8, linears of the layers are stored in F8_E4M3, with a scale for each 128×128 weights.
type writer struct {
	infos []safetensors.Info
	fp8   bool
}

func (w *writer) add(name string, shape ...int) {
	w.infos = append(w.infos, safetensors.Info{Name: name, DType: safetensors.BF16, Shape: shape})
}

// fp8Block is the side of the square of weights that share a scale.
const fp8Block = 128

const fp8Scale = "_scale_inv"

func (w *writer) linear(name string, out, in int) {
	if w.add(name+".weight", out, in); !w.fp8 {
		return
	}
	w.infos[len(w.infos)-1].DType = safetensors.F8E4M3
	w.add(name+".weight"+fp8Scale, (out+fp8Block-1)/fp8Block, (in+fp8Block-1)/fp8Block)
}

func (w *writer) mlp(prefix string, dim, width int) {
	w.linear(prefix+"gate_proj", width, dim)
	w.linear(prefix+"up_proj", width, dim)
	w.linear(prefix+"down_proj", dim, width)
}

// tensors lists the checkpoint's tensors in the order of the forward pass.
func (c config) tensors() ([]safetensors.Info, error) {
	var class string
	if names, _ := c["architectures"].([]any); len(names) > 0 {
		class, _ = names[0].(string)
	}
	list := classes[class]
	if list == nil {
		return nil, fmt.Errorf("config.json: architectures: %q is none of those with tensors here", class)
	}
	quantization, _ := c["quantization_config"].(map[string]any)
	w := &writer{fp8: quantization["quant_method"] == "fp8"}
	if err := list(c, w); err != nil {
		return nil, err
	}
	return w.infos, nil
}

// qwen35 is Qwen3.5: gated DeltaNet, and attention where layer_types says so, each before an MLP.
func qwen35(c config, w *writer) error {
	n, err := c.ints("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
		"head_dim", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads")
	if err != nil {
		return err
	}
	types, _ := c["layer_types"].([]any)
	if len(types) != n["num_hidden_layers"] {
		return fmt.Errorf("config.json: layer_types has %d elements, num_hidden_layers is %d", len(types), n["num_hidden_layers"])
	}
	dim, heads, values := n["hidden_size"], n["linear_num_value_heads"], n["linear_num_value_heads"]*n["linear_value_head_dim"]
	channels := 2*n["linear_num_key_heads"]*n["linear_key_head_dim"] + values
	q, kv := n["num_attention_heads"]*n["head_dim"], n["num_key_value_heads"]*n["head_dim"]
	w.add("model.embed_tokens.weight", n["vocab_size"], dim)
	for i, kind := range types {
		p := fmt.Sprintf("model.layers.%d.", i)
		w.add(p+"input_layernorm.weight", dim)
		if kind == "full_attention" {
			w.linear(p+"self_attn.q_proj", 2*q, dim)
			w.linear(p+"self_attn.k_proj", kv, dim)
			w.linear(p+"self_attn.v_proj", kv, dim)
			w.linear(p+"self_attn.o_proj", dim, q)
			w.add(p+"self_attn.q_norm.weight", n["head_dim"])
			w.add(p+"self_attn.k_norm.weight", n["head_dim"])
		} else {
			w.linear(p+"linear_attn.in_proj_qkv", channels, dim)
			w.linear(p+"linear_attn.in_proj_z", values, dim)
			w.linear(p+"linear_attn.in_proj_b", heads, dim)
			w.linear(p+"linear_attn.in_proj_a", heads, dim)
			w.add(p+"linear_attn.conv1d.weight", channels, 1, n["linear_conv_kernel_dim"])
			w.add(p+"linear_attn.A_log", heads)
			w.add(p+"linear_attn.dt_bias", heads)
			w.add(p+"linear_attn.norm.weight", n["linear_value_head_dim"])
			w.linear(p+"linear_attn.out_proj", dim, values)
		}
		w.add(p+"post_attention_layernorm.weight", dim)
		w.mlp(p+"mlp.", dim, n["intermediate_size"])
	}
	w.add("model.norm.weight", dim)
	w.add("lm_head.weight", n["vocab_size"], dim)
	return nil
}

// nemotronH is Nemotron-H of Mamba-2 layers (M in hybrid_override_pattern), attention (*) and MLPs (-).
func nemotronH(c config, w *writer) error {
	n, err := c.ints("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
		"head_dim", "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
	if err != nil {
		return err
	}
	dim, heads, inner := n["hidden_size"], n["mamba_num_heads"], n["mamba_num_heads"]*n["mamba_head_dim"]
	channels := inner + 2*n["n_groups"]*n["ssm_state_size"]
	q, kv := n["num_attention_heads"]*n["head_dim"], n["num_key_value_heads"]*n["head_dim"]
	pattern, _ := c["hybrid_override_pattern"].(string)
	w.add("backbone.embeddings.weight", n["vocab_size"], dim)
	for i, kind := range pattern {
		p := fmt.Sprintf("backbone.layers.%d.", i)
		w.add(p+"norm.weight", dim)
		switch p += "mixer."; kind {
		case 'M':
			w.linear(p+"in_proj", inner+channels+heads, dim)
			w.add(p+"conv1d.weight", channels, 1, n["conv_kernel"])
			w.add(p+"conv1d.bias", channels)
			w.add(p+"dt_bias", heads)
			w.add(p+"A_log", heads)
			w.add(p+"D", heads)
			w.add(p+"norm.weight", inner)
			w.linear(p+"out_proj", dim, inner)
		case '*':
			w.linear(p+"q_proj", q, dim)
			w.linear(p+"k_proj", kv, dim)
			w.linear(p+"v_proj", kv, dim)
			w.linear(p+"o_proj", dim, q)
		case '-':
			w.linear(p+"up_proj", n["intermediate_size"], dim)
			w.linear(p+"down_proj", dim, n["intermediate_size"])
		default:
			return fmt.Errorf("config.json: hybrid_override_pattern has %q, want M, * or -", kind)
		}
	}
	w.add("backbone.norm_f.weight", dim)
	w.add("lm_head.weight", n["vocab_size"], dim)
	return nil
}

// deepseekV3 is DeepSeek-V3: latent attention, and experts after first_k_dense_replace layers with an MLP.
func deepseekV3(c config, w *writer) error {
	n, err := c.ints("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank",
		"kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts", "moe_intermediate_size")
	if err != nil {
		return err
	}
	dense, _ := c["first_k_dense_replace"].(float64)
	dim, heads, width := n["hidden_size"], n["num_attention_heads"], n["moe_intermediate_size"]
	nope, rope, value := n["qk_nope_head_dim"], n["qk_rope_head_dim"], n["v_head_dim"]
	w.add("model.embed_tokens.weight", n["vocab_size"], dim)
	for i := range n["num_hidden_layers"] {
		p := fmt.Sprintf("model.layers.%d.", i)
		w.add(p+"input_layernorm.weight", dim)
		w.linear(p+"self_attn.q_a_proj", n["q_lora_rank"], dim)
		w.add(p+"self_attn.q_a_layernorm.weight", n["q_lora_rank"])
		w.linear(p+"self_attn.q_b_proj", heads*(nope+rope), n["q_lora_rank"])
		w.linear(p+"self_attn.kv_a_proj_with_mqa", n["kv_lora_rank"]+rope, dim)
		w.add(p+"self_attn.kv_a_layernorm.weight", n["kv_lora_rank"])
		w.linear(p+"self_attn.kv_b_proj", heads*(nope+value), n["kv_lora_rank"])
		w.linear(p+"self_attn.o_proj", dim, heads*value)
		w.add(p+"post_attention_layernorm.weight", dim)
		if i < int(dense) {
			w.mlp(p+"mlp.", dim, n["intermediate_size"])
			continue
		}
		w.add(p+"mlp.gate.weight", n["n_routed_experts"], dim)
		w.add(p+"mlp.gate.e_score_correction_bias", n["n_routed_experts"])
		for e := range n["n_routed_experts"] {
			w.mlp(fmt.Sprintf("%smlp.experts.%d.", p, e), dim, width)
		}
		w.mlp(p+"mlp.shared_experts.", dim, n["n_shared_experts"]*width)
	}
	w.add("model.norm.weight", dim)
	w.add("lm_head.weight", n["vocab_size"], dim)
	return nil
}
