package hf

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/packed"
)

// planned is a folder in GPTQ's format of a checkpoint, before anything is written.
func planned(t *testing.T, c *Checkpoint, group int) (*FolderPlan, error) {
	t.Helper()
	f, err := c.Folder(GPTQ, packed.Scheme{Bits: 4, Group: group})
	if err != nil {
		t.Fatal(err)
	}
	return f.Plan(linearTypes(c, f), nil)
}

// TestGPTQRulesOfServers: rules of linears that are not quantized match the names under which vLLM looks for them (its
// get_dynamic_override compares from a name's start): the checkpoint's, and those of linears and experts that it makes one of.
func TestGPTQRulesOfServers(t *testing.T) {
	s := small("Qwen3MoeForCausalLM").with(settings{"hidden_size": 64, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
		"head_dim": 32, "norm_topk_prob": true})
	dense := small("LlamaForCausalLM").with(settings{"hidden_size": 64, "intermediate_size": 128})
	for _, test := range []struct {
		name            string
		c               *Checkpoint
		group           int
		kept, quantized []string
	}{
		{"experts", mustOpen(t, folder(t, s, experts(s, 3))), 128,
			[]string{"self_attn.qkv_proj", "self_attn.q_proj", "mlp.experts", "mlp.experts.2.down_proj", "mlp.gate"}, []string{"self_attn.o_proj"}},
		{"dense", mustOpen(t, folder(t, dense, weights(dense))), 128,
			[]string{"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.up_proj"}, []string{"mlp.down_proj"}},
		{"all", mustOpen(t, folder(t, s, experts(s, 3))), 32,
			[]string{"mlp.gate"}, []string{"self_attn.qkv_proj", "mlp.experts", "mlp.experts.0.gate_proj", "mlp.experts.0.gate_up_proj", "mlp.gate_up_proj"}},
	} {
		p, err := planned(t, test.c, test.group)
		if err != nil {
			t.Fatal(err)
		}
		var config struct {
			Dynamic map[string]struct{} `json:"dynamic"`
		}
		if err := json.Unmarshal(p.more[gptqConfigFile], &config); err != nil {
			t.Fatal(err)
		}
		skipped := func(module string) bool {
			for rule := range config.Dynamic {
				pattern, negative := strings.CutPrefix(rule, "-:")
				if negative && regexp.MustCompile("^(?:"+pattern+")").MatchString(module) {
					return true
				}
			}
			return false
		}
		for _, layer := range []string{"model.layers.0.", "model.layers.1."} {
			for _, module := range test.kept {
				if !skipped(layer + module) {
					t.Errorf("%s: no rule matches %s, which is not quantized", test.name, layer+module)
				}
			}
			for _, module := range test.quantized {
				if skipped(layer + module) {
					t.Errorf("%s: a rule matches %s, which is quantized", test.name, layer+module)
				}
			}
		}
	}
}

// TestQuantizationConfigNull: null says that a checkpoint is not quantized, in config.json and in its text_config; the output has
// one quantization_config, and any other is refused.
func TestQuantizationConfigNull(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"hidden_size": 64})
	dir := folder(t, s, weights(s))
	null := json.RawMessage("null")
	for _, config := range []settings{
		s,
		s.with(settings{"quantization_config": null}),
		s.with(settings{"quantization_config": null, "text_config": settings{"quantization_config": null}}),
	} {
		write(t, dir, configFile, config.json(t))
		p, err := planned(t, mustOpen(t, dir), 32)
		if err != nil {
			t.Errorf("%s: %v", config.json(t), err)
			continue
		}
		var got struct {
			Hidden int `json:"hidden_size"`
			Q      struct {
				Method string `json:"quant_method"`
			} `json:"quantization_config"`
		}
		top := bytes.Count(p.config, []byte("\n  \"quantization_config\"")) + bytes.Count(p.config, []byte(",\"quantization_config\""))
		if err := json.Unmarshal(p.config, &got); err != nil || got.Hidden != 64 || got.Q.Method != "gptq" || top != 1 {
			t.Errorf("%s: becomes %s: %v", config.json(t), p.config, err)
		}
	}
	declared := settings{"quant_method": "gptq"}
	for _, config := range []settings{
		s.with(settings{"quantization_config": declared}),
		s.with(settings{"quantization_config": null, "text_config": settings{"quantization_config": declared}}),
	} {
		write(t, dir, configFile, config.json(t))
		if _, err := planned(t, mustOpen(t, dir), 32); err == nil || !strings.Contains(err.Error(), "has a quantization_config") {
			t.Errorf("%s: %v", config.json(t), err)
		}
	}
}
