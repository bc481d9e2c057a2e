package arch_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf/object"
)

// shapes are the weights of a checkpoint by their shapes alone.
type shapes map[string][]int

func (s shapes) Names() []string                   { return slices.Sorted(maps.Keys(s)) }
func (s shapes) Shape(name string) ([]int, bool)   { shape, ok := s[name]; return shape, ok }
func (s shapes) Equal(a, b string) bool            { return a == b }
func (s shapes) Blocks(string) bool                { return false }
func (s shapes) add(prefix string, tensors shapes) { maps.Copy(s, tensors.under(prefix)) }

func (s shapes) under(prefix string) shapes {
	moved := shapes{}
	for name, shape := range s {
		moved[prefix+name] = shape
	}
	return moved
}

var (
	gatedMLP  = shapes{"mlp.gate_proj.weight": {6, 4}, "mlp.up_proj.weight": {6, 4}, "mlp.down_proj.weight": {4, 6}}
	fullLayer = shapes{"input_layernorm.weight": {4}, "post_attention_layernorm.weight": {4}, "self_attn.q_proj.weight": {4, 4},
		"self_attn.k_proj.weight": {2, 4}, "self_attn.v_proj.weight": {2, 4}, "self_attn.o_proj.weight": {4, 4}}
	furtherToken = shapes{"eh_proj.weight": {4, 8}, "enorm.weight": {4}, "hnorm.weight": {4}, "shared_head.norm.weight": {4}}
)

// glm4MoE is GLM-4.5 with a dense layer, one of experts, and one that predicts a further token.
func glm4MoE() (config map[string]any, weights shapes) {
	config = map[string]any{"architectures": []string{"Glm4MoeForCausalLM"}, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
		"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9, "n_routed_experts": 2, "num_experts_per_tok": 1,
		"moe_intermediate_size": 3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "partial_rotary_factor": 1.0}
	weights = shapes{"model.embed_tokens.weight": {9, 4}, "model.norm.weight": {4}, "lm_head.weight": {9, 4}}
	experts := shapes{"mlp.gate.weight": {2, 4}, "mlp.gate.e_score_correction_bias": {2}}
	for _, e := range []string{"mlp.experts.0.", "mlp.experts.1.", "mlp.shared_experts."} {
		experts.add(e, shapes{"gate_proj.weight": {3, 4}, "up_proj.weight": {3, 4}, "down_proj.weight": {4, 3}})
	}
	for i, mlp := range []shapes{gatedMLP, experts, experts} {
		weights.add("model.layers."+string(rune('0'+i))+".", fullLayer)
		weights.add("model.layers."+string(rune('0'+i))+".", mlp)
	}
	weights.add("model.layers.2.", furtherToken)
	return config, weights
}

// qwen35 is Qwen3.5 with a layer of attention, and one that predicts a further token.
func qwen35() (config map[string]any, weights shapes) {
	config = map[string]any{"architectures": []string{"Qwen3_5ForCausalLM"}, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
		"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": 9, "layer_types": []string{"full_attention"},
		"full_attention_interval": 1, "mtp_num_hidden_layers": 1, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-6,
		"linear_num_key_heads": 1, "linear_num_value_heads": 1, "linear_key_head_dim": 2, "linear_value_head_dim": 2}
	weights = shapes{"model.embed_tokens.weight": {9, 4}, "model.norm.weight": {4}, "lm_head.weight": {9, 4}, "mtp.fc.weight": {4, 8},
		"mtp.norm.weight": {4}, "mtp.pre_fc_norm_embedding.weight": {4}, "mtp.pre_fc_norm_hidden.weight": {4}}
	for _, prefix := range []string{"model.layers.0.", "mtp.layers.0."} {
		weights.add(prefix, fullLayer)
		weights.add(prefix, gatedMLP)
		weights.add(prefix, shapes{"self_attn.q_proj.weight": {8, 4}, "self_attn.q_norm.weight": {2}, "self_attn.k_norm.weight": {2}})
	}
	return config, weights
}

// TestNextnConversion holds layers that predict further tokens to llama.cpp's converter: the tensors that it writes for
// them, and what counts them.
func TestNextnConversion(t *testing.T) {
	attention := []string{"attn_k.weight", "attn_norm.weight", "attn_output.weight", "attn_q.weight", "attn_v.weight", "post_attention_norm.weight"}
	further := []string{"nextn.eh_proj.weight", "nextn.enorm.weight", "nextn.hnorm.weight", "nextn.shared_head_norm.weight"}
	for _, c := range []struct {
		of     func() (map[string]any, shapes)
		layers int
		auto   bool // keeps them
		want   []string
	}{
		{glm4MoE, 2, true, append(slices.Clone(attention), "exp_probs_b.bias", "ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight",
			"ffn_down_exps.weight", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight")},
		{qwen35, 1, false, append(slices.Clone(attention), "attn_q_norm.weight", "attn_k_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")},
	} {
		for _, mtp := range []arch.MTP{arch.AutoMTP, arch.KeepMTP, arch.DropMTP} {
			drop := mtp == arch.DropMTP || mtp == arch.AutoMTP && !c.auto
			config, weights := c.of()
			got := convertShapes(t, config, weights, arch.Options{MTP: mtp})
			prefix := "blk." + string(rune('0'+c.layers)) + "."
			var names []string
			for _, s := range got.Tensors {
				if rest, ok := strings.CutPrefix(s.Name, prefix); ok {
					names = append(names, rest)
				}
			}
			slices.Sort(names)
			want, layers := slices.Sorted(slices.Values(append(slices.Clone(c.want), further...))), c.layers+1
			if drop {
				want, layers = nil, c.layers
			}
			if !slices.Equal(names, want) {
				t.Errorf("%s, drop %t: layer %d has %v, want %v", got.Class, drop, c.layers, names, want)
			}
			if v, _ := got.Metadata.Get(got.Family.Name + ".block_count"); v != uint32(layers) {
				t.Errorf("%s, drop %t: block_count is %v, want %d", got.Class, drop, v, layers)
			}
			if v, ok := got.Metadata.Get(got.Family.Name + ".nextn_predict_layers"); ok == drop || !drop && v != uint32(1) {
				t.Errorf("%s, drop %t: nextn_predict_layers is %v", got.Class, drop, v)
			}
			if drop && !strings.Contains(strings.Join(got.Warnings, "\n"), "predict further tokens") {
				t.Errorf("%s: nothing says that tensors are dropped: %q", got.Class, got.Warnings)
			}
		}
	}
}

func convertShapes(t *testing.T, config map[string]any, weights shapes, opt arch.Options) *arch.Conversion {
	t.Helper()
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	o, err := object.Parse("config.json", data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := arch.Convert(o, weights, opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
