package arch_test

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

type config = map[string]any

// absent takes a member away; nil makes it null.
var absent = new(int)

// bases are configurations of classes: small, and with layers enough for patterns.
var bases = map[string]config{
	"LlamaForCausalLM":   {"model_type": "llama"},
	"MistralForCausalLM": {"model_type": "mistral", "sliding_window": nil},
	"Qwen2ForCausalLM":   {"model_type": "qwen2"},
	"Qwen3ForCausalLM":   {"model_type": "qwen3", "head_dim": 16},
	"Qwen3MoeForCausalLM": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 5, "num_experts_per_tok": 2,
		"moe_intermediate_size": 32, "norm_topk_prob": true},
	"Gemma3ForCausalLM": {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 7,
		"hidden_act": absent, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": absent, "rope_theta": absent,
		"num_hidden_layers": 7},
}

func baseOf(class string) config {
	c := config{"architectures": []any{class}, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
		"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "max_position_embeddings": 256, "vocab_size": 279,
		"hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 276, "eos_token_id": 277}
	return with(c, bases[class])
}

func with(c, changes config) config {
	c = maps.Clone(c)
	for k, v := range changes {
		if c[k] = v; v == absent {
			delete(c, k)
		}
	}
	return c
}

// What becomes of a change to config.json: the model's function becomes another, in the way the transformers library says;
// or it stays, as the class does not read the member or the change says what goes without saying; or it is refused.
const (
	used = "used"
	same = "same"
)

// A member is one change and what becomes of it: used, same, a part of a warning that it is same with, or of an error
// after "!".
type member struct {
	changes config
	want    string
}

var (
	full, sliding = "full_attention", "sliding_attention"
	linear        = config{"rope_type": "linear", "factor": 2.5}
	yarn          = config{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
	llama3        = config{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
)

// everywhere are members that all classes read alike.
var everywhere = []member{
	{config{"rms_norm_eps": absent}, used}, // 1e-6
	{config{"rms_norm_eps": 0.05}, used},
	{config{"num_key_value_heads": 1}, used},
	{config{"num_key_value_heads": nil}, used},
	{config{"num_key_value_heads": 3}, "!num_key_value_heads: is 3, want a divisor"},
	{config{"intermediate_size": absent}, "!intermediate_size: is missing"},
	{config{"num_hidden_layers": absent}, "!num_hidden_layers: is missing"},
	{config{"tie_word_embeddings": true, "head": 0}, "head: no effect"},
	{config{"hidden_act": "relu", "hidden_activation": "relu"}, `!hidden_act`},
	{config{"use_cache": false, "initializer_range": 5, "attention_dropout": 0.3, "torch_dtype": "float16"}, same},
	{config{"surprise": 3}, "surprise: no effect"},
	{config{"surprise": nil}, same},
	{config{"partial_rotary_factor": 0.5}, "!partial_rotary_factor: is 0.5"},
	{config{"partial_rotary_factor": 1.0}, same},
	{config{"rope_scaling": linear}, used},
	{config{"rope_scaling": config{"type": "linear", "factor": 2}}, used},
	{config{"rope_scaling": config{"type": "yarn", "rope_type": "linear", "factor": 2}}, used},
	{config{"rope_scaling": config{"rope_type": "linear"}}, "!rope_scaling.factor: is missing"},
	{config{"rope_scaling": config{"rope_type": "linear", "factor": nil}}, "!rope_scaling.factor: is missing"},
	{config{"rope_scaling": config{"rope_type": "default", "mystery": 1}}, "rope_scaling.mystery: no effect"},
	{config{"rope_scaling": config{"rope_type": "default", "factor": 3}}, same},
	{config{"rope_scaling": config{}}, same},
	{config{"rope_scaling": nil, "rope_parameters": nil}, same},
	{config{"rope_scaling": config{"rope_type": "dynamic", "factor": 2.0}}, "dynamic scaling begins beyond"},
	{config{"rope_scaling": config{"rope_type": "wavy"}}, `!rope_scaling.rope_type: is "wavy"`},
	{config{"rope_scaling": config{"rope_type": "longrope", "short_factor": []any{1.0}, "long_factor": []any{2.0}}}, `!"longrope"`},
	{config{"rope_scaling": yarn}, used},
	{config{"rope_scaling": with(yarn, config{"original_max_position_embeddings": absent})}, used}, // the context
	{config{"rope_scaling": with(yarn, config{"original_max_position_embeddings": absent}), "original_max_position_embeddings": 32}, used},
	{config{"rope_scaling": yarn, "original_max_position_embeddings": 32}, used}, // which has priority
	{config{"rope_scaling": with(yarn, config{"factor": nil})}, used},            // context / original
	{config{"rope_scaling": with(yarn, config{"factor": absent})}, used},
	{config{"rope_scaling": with(yarn, config{"attention_factor": 1.7})}, used},
	{config{"rope_scaling": with(yarn, config{"mscale": 1.3, "mscale_all_dim": 0.6})}, used},
	{config{"rope_scaling": with(yarn, config{"mscale": 1.3})}, used}, // not without the other
	{config{"rope_scaling": with(yarn, config{"beta_fast": 8, "beta_slow": 2})}, used},
	{config{"rope_scaling": with(yarn, config{"truncate": true})}, used},
	{config{"rope_scaling": with(yarn, config{"truncate": false})}, "!rope_scaling.truncate: is false"},
}

// flat are members of classes that have one rotary embedding for all layers.
var flat = []member{
	{config{"head_dim": 24}, used},
	{config{"rope_theta": 500}, used},
	{config{"rope_theta": absent}, same}, // 10000
	{config{"rope_theta": nil}, same},
	{config{"rope_parameters": config{"rope_theta": 500.0, "rope_type": "default"}, "rope_theta": absent}, used},
	{config{"rope_parameters": config{"rope_theta": 500.0}}, used}, // before the one beside it
	{config{"rope_parameters": config{"rope_type": "default"}, "rope_theta": 700.0}, used},
	{config{"rope_parameters": with(yarn, config{"rope_theta": 500.0})}, used},
	{config{"rope_parameters": config{"rope_theta": 500.0}, "rope_scaling": linear}, used}, // the old goes first
	{config{"rope_parameters": config{"rope_theta": 500.0}, "rope_scaling": config{}}, used},
	{config{"rope_parameters": config{full: config{"rope_theta": 500.0}}}, used},
	{config{"rope_parameters": config{full: with(linear, config{"rope_theta": 500.0})}}, used},
	{config{"rope_parameters": config{full: config{"rope_theta": 500.0}, sliding: config{"rope_theta": 10.0}}}, "!rope_parameters.sliding_attention"},
	{config{"rope_parameters": config{full: config{"rope_theta": 500.0}, sliding: config{"rope_theta": 500.0}}}, used},
	{config{"rope_parameters": config{"partial_rotary_factor": 0.5}}, "!partial_rotary_factor: is 0.5"},
}

var noLlama3 = []member{{config{"rope_scaling": llama3}, `!rope_scaling.rope_type: is "llama3", which GGUF readers do not know`}}

var withLlama3 = []member{
	{config{"rope_scaling": llama3}, used},
	{config{"rope_scaling": with(llama3, config{"original_max_position_embeddings": absent})}, used}, // the context
	{config{"rope_scaling": with(llama3, config{"low_freq_factor": absent})}, "!rope_scaling.low_freq_factor: is missing"},
	{config{"rope_scaling": with(llama3, config{"high_freq_factor": 0.5})}, "!rope_scaling.high_freq_factor: is 0.5, want at least"},
}

// unbiased are members of classes whose linears have the biases that they have.
var unbiased = []member{
	{config{"attention_bias": true}, "attention_bias: no effect"},
	{config{"mlp_bias": true}, "mlp_bias: no effect"},
}

var biased = []member{
	{config{"attention_bias": true}, "!attention_bias: is true"},
	{config{"attention_bias": nil}, same},
	{config{"mlp_bias": true}, "mlp_bias: no effect"},
}

// qwenWindows are members that say which layers of Qwen2 and Qwen3 have a window.
var qwenWindows = []member{
	{config{"sliding_window": 7}, same},
	{config{"sliding_window": 7, "use_sliding_window": false, "max_window_layers": 0}, same},
	{config{"sliding_window": 7, "use_sliding_window": nil, "max_window_layers": 0}, same},
	{config{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0}, used},
	{config{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1}, used},
	{config{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 3}, same},
	{config{"sliding_window": 7, "use_sliding_window": true}, same}, // from layer 28 on
	{config{"sliding_window": nil, "use_sliding_window": true, "max_window_layers": 0}, same},
	{config{"use_sliding_window": true, "max_window_layers": 0}, same}, // 4096 tokens
	{config{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0, "layer_types": []any{full, full, full}}, same},
	{config{"sliding_window": 7, "use_sliding_window": true, "layer_types": []any{sliding, full, sliding}}, used},
	{config{"sliding_window": 7, "use_sliding_window": true, "layer_types": []any{sliding, sliding, sliding}}, used},
	{config{"sliding_window": 7, "use_sliding_window": false, "layer_types": []any{full, full, full}}, same},
	{config{"sliding_window": 7, "use_sliding_window": false, "layer_types": []any{full, sliding, full}}, "!layer_types: has sliding_attention"},
	{config{"layer_types": []any{full}}, "!layer_types: has 1 elements, want 3"},
	{config{"layer_types": []any{full, "chunked_attention", full}}, `!layer_types: has "chunked_attention"`},
}

var ofClass = map[string][][]member{
	"LlamaForCausalLM": {flat, withLlama3, {
		{config{"head_dim": nil}, same},
		{config{"head_dim": absent}, same},
		{config{"attention_bias": true}, used},
		{config{"mlp_bias": true}, used},
		{config{"attention_bias": true, "mlp_bias": true}, used},
		{config{"attention_bias": nil, "mlp_bias": nil}, same},
		{config{"num_key_value_heads": absent}, used},
		{config{"sliding_window": 7}, "sliding_window: no effect"},
		{config{"layer_types": []any{sliding, sliding, sliding}, "sliding_window": 7}, "layer_types, sliding_window: no effect"},
		{config{"max_position_embeddings": absent}, same},
	}},
	"MistralForCausalLM": {flat, withLlama3, unbiased, {
		{config{"head_dim": nil}, same},
		{config{"num_attention_heads": 16, "num_key_value_heads": absent}, used}, // 8
		{config{"sliding_window": 7}, used},
		{config{"sliding_window": absent}, same}, // 4096
		{config{"sliding_window": false}, "!sliding_window: is false, want an integer"},
		{config{"sliding_window": 7, "layer_types": []any{full, full, full}}, used}, // not read
	}},
	"Qwen2ForCausalLM": {flat, noLlama3, unbiased, qwenWindows, {{config{"head_dim": nil}, same}}},
	"Qwen3ForCausalLM": {flat, noLlama3, biased, qwenWindows, {{config{"head_dim": absent}, used}}}, // 128
	"Qwen3MoeForCausalLM": {flat, noLlama3, biased, {
		{config{"head_dim": absent}, same},
		{config{"sliding_window": 7, "use_sliding_window": true}, used},
		{config{"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 2}, used}, // all layers
		{config{"sliding_window": 7, "use_sliding_window": false}, same},
		{config{"num_experts_per_tok": 3}, used},
		{config{"num_experts": absent, "num_local_experts": 5}, same},
		{config{"num_experts_per_tok": 6}, "!num_experts_per_tok: is 6, want 1 to 5"},
		{config{"norm_topk_prob": false}, "!norm_topk_prob: is false"},
		{config{"norm_topk_prob": absent}, "!norm_topk_prob"},
		{config{"decoder_sparse_step": 2}, "!decoder_sparse_step: is 2"},
		{config{"mlp_only_layers": []any{1}}, "!mlp_only_layers: is [1]"},
		{config{"decoder_sparse_step": 1, "mlp_only_layers": []any{}}, same},
	}},
	"Gemma3ForCausalLM": {noLlama3, {
		{config{"attention_bias": true}, "!attention_bias: is true"},
		{config{"attention_bias": nil}, same},
		{config{"mlp_bias": true}, "mlp_bias: no effect"},
		{config{"num_key_value_heads": absent}, used},                          // 4
		{config{"head_dim": absent, "query_pre_attn_scalar": absent}, used},    // 256 both
		{config{"query_pre_attn_scalar": 32}, "!query_pre_attn_scalar: is 32"}, // readers take head_dim
		{config{"head_dim": 32, "query_pre_attn_scalar": 32}, used},            //
		{config{"sliding_window": 5}, used},                                    //
		{config{"sliding_window": absent}, used},                               // 4096
		{config{"sliding_window_pattern": 2}, used},                            //
		{config{"_sliding_window_pattern": 3}, used},                           //
		{config{"sliding_window_pattern": 6}, same},                            //
		{config{"layer_types": []any{full, sliding, full, full, sliding, sliding, full}}, used},
		{config{"layer_types": []any{full, full, full, full, full, full, full}}, used},
		{config{"rope_theta": 500.0}, used},
		{config{"rope_theta": 1000000.0}, same},
		{config{"rope_local_base_freq": 500.0}, used},
		{config{"rope_local_base_freq": 10000.0}, same},
		{config{"rope_parameters": config{full: config{"rope_theta": 500.0}, sliding: config{"rope_theta": 70.0}}}, used},
		{config{"rope_parameters": config{full: with(linear, config{"rope_theta": 500.0})}}, used},
		{config{"rope_parameters": config{full: config{}}, "rope_theta": 500.0, "rope_local_base_freq": 70.0}, used},
		{config{"rope_parameters": config{sliding: with(linear, config{"rope_theta": 500.0})}}, "!rope_parameters.sliding_attention.rope_type"},
		{config{"rope_parameters": config{"rope_theta": 500.0, "rope_type": "default"}}, "!rope_parameters"},
		{config{"final_logit_softcapping": 3.0}, used},
		{config{"final_logit_softcapping": nil}, same},
		{config{"attn_logit_softcapping": 30.0}, "!attn_logit_softcapping: is 30"},
		{config{"use_bidirectional_attention": true}, "!use_bidirectional_attention: is true"},
		{config{"use_bidirectional_attention": false}, same},
		{config{"tie_word_embeddings": false}, used},
		{config{"hidden_activation": absent}, same},
	}},
}

// TestMembers holds what becomes of config.json's members to the transformers library: its semantics in float64, over the
// weights that it would create. What a GGUF reader cannot compute is refused, what the class does not read noted.
func TestMembers(t *testing.T) {
	for class, groups := range ofClass {
		t.Run(class, func(t *testing.T) {
			tokens := testmodel.FromConfig(baseOf(class)).Tokens(40, 7)
			plain := testmodel.FromConfig(baseOf(class)).Forward(tokens).Logits
			for _, group := range append([][]member{everywhere}, groups...) {
				for _, m := range group {
					tryMember(t, class, m, tokens, plain)
				}
			}
		})
	}
}

func tryMember(t *testing.T, class string, m member, tokens []int32, plain [][]float64) {
	c := with(baseOf(class), m.changes)
	refused, isRefused := strings.CutPrefix(m.want, "!")
	of := c
	if isRefused { // weights of the configuration without the change: the library's reading of it is not asked for
		of = baseOf(class)
	}
	ref := testmodel.FromConfig(of)
	dir := t.TempDir()
	if err := ref.WriteFolder(dir); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, dir, c)
	src, err := hf.Open(dir, hf.Options{})
	if isRefused {
		if err == nil {
			src.Close()
		}
		if err == nil || !strings.Contains(err.Error(), refused) {
			t.Errorf("%v: error %v, want %s", m.changes, err, refused)
		}
		return
	}
	if err != nil {
		t.Errorf("%v: %v", m.changes, err)
		return
	}
	defer src.Close()
	warnings := strings.Join(src.Warnings(), "\n")
	if note := m.want; note != used && note != same && !strings.Contains(warnings, note) {
		t.Errorf("%v: warnings %q, want %s", m.changes, warnings, note)
	}
	mod, err := arch.Open(src)
	if err != nil {
		t.Errorf("%v: %v", m.changes, err)
		return
	}
	mod.Precision = kernels.F32
	want := ref.Forward(tokens).Logits
	row := 0
	worst := 0.0
	err = eval.Logits(context.Background(), mod, [][]int32{tokens}, eval.Options{}, func(logits *tensor.Matrix) error {
		for i := range logits.Rows {
			for j, v := range logits.Row(i) {
				worst = max(worst, math.Abs(float64(v)-want[row][j]))
			}
			row++
		}
		return nil
	})
	if err != nil || row != len(tokens) || !(worst <= 5e-4) {
		t.Errorf("%v: logits differ by %g from the library's in %d of %d rows; %v", m.changes, worst, row, len(tokens), err)
	}
	moved := 0.0
	for i := range want {
		for j := range want[i] {
			moved = max(moved, math.Abs(want[i][j]-plain[i][j]))
		}
	}
	if _, tied := m.changes["tie_word_embeddings"]; (m.want == used) != (moved > 5e-3) && !tied {
		t.Errorf("%v: the change moves logits by %g, which says nothing", m.changes, moved)
	}
}

func writeJSON(t *testing.T, dir string, c config) {
	t.Helper()
	data, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestModelTypes: model_type stands for the class where architectures is missing.
func TestModelTypes(t *testing.T) {
	for _, dir := range references(t) {
		data, err := os.ReadFile(filepath.Join(dir, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		config, err := object.Parse("config.json", data)
		if err != nil {
			t.Fatal(err)
		}
		want := config.Strings("architectures")[0]
		kind := config.String("model_type", "")
		if strings.HasPrefix(kind, "hunyuan") || !slices.Contains(arch.Classes(), want) {
			continue // whose words are in another order
		}
		bare, err := object.Parse("config.json", []byte(`{"model_type": "`+kind+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := arch.Convert(bare, nothing{}, arch.Options{}); err == nil || !strings.Contains(err.Error(), "is missing") ||
			strings.Contains(err.Error(), "architectures") {
			t.Errorf("%s: %v, want that members of %s are missing", kind, err, want)
		}
	}
	for kind, want := range map[string]string{"nonesuch": "architectures: is missing", "": "architectures: is missing", "_": "architectures: is missing"} {
		bare, err := object.Parse("config.json", []byte(`{"model_type": "`+kind+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := arch.Convert(bare, nothing{}, arch.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", kind, err, want)
		}
	}
}

// nothing is a checkpoint without tensors.
type nothing struct{}

func (nothing) Names() []string            { return nil }
func (nothing) Shape(string) ([]int, bool) { return nil, false }
func (nothing) Equal(string, string) bool  { return false }
func (nothing) Blocks(string) bool         { return false }
