package hf

import (
	"fmt"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/model"
)

var _ model.RowCopier = (*Checkpoint)(nil)

// TestCopies: what Copies calls a view is the same memory each time, and what it calls a copy is another.
func TestCopies(t *testing.T) {
	const dim, experts = 64, 3
	s := small("MixtralForCausalLM").with(settings{"hidden_size": dim, "intermediate_size": dim, "num_hidden_layers": 1,
		"num_local_experts": experts, "num_experts_per_tok": 2, "quantization_config": settings{"quant_method": "fp8"}})
	var infos []safetensors.Info
	add := func(name string, dtype safetensors.DType, shape ...int) {
		infos = append(infos, safetensors.Info{Name: name, DType: dtype, Shape: shape})
	}
	for _, info := range weights(s) {
		if len(info.Shape) < 2 || info.Name == "model.embed_tokens.weight" || info.Name == "lm_head.weight" ||
			info.Name[len("model.layers.0."):][:4] == "self" {
			infos = append(infos, info)
		}
	}
	add("model.layers.0.block_sparse_moe.gate.weight", safetensors.BF16, experts, dim)
	for e := range experts {
		name := fmt.Sprintf("model.layers.0.block_sparse_moe.experts.%d.w", e)
		add(name+"1.weight", safetensors.F8E4M3, dim, dim)
		add(name+"1.weight_scale", safetensors.F32)
		add(name+"2.weight", safetensors.BF16, dim, dim)
		add(name+"3.weight", safetensors.BF16, dim, dim)
	}
	c := mustOpen(t, folder(t, s, infos))
	for _, x := range []struct {
		name   string
		lo, hi int
		copies bool
	}{
		{"blk.0.ffn_gate_exps.weight", dim, 2 * dim, true}, // decoded
		{"blk.0.ffn_down_exps.weight", dim, 2 * dim, false},
		{"blk.0.ffn_down_exps.weight", 0, experts * dim, true}, // put together
		{"blk.0.attn_q.weight", 0, dim, true},                  // in another order
		{"blk.0.attn_output.weight", 3, dim, false},
	} {
		a, aerr := c.Rows(x.name, x.lo, x.hi)
		b, berr := c.Rows(x.name, x.lo, x.hi)
		if aerr != nil || berr != nil {
			t.Fatal(aerr, berr)
		}
		if got := c.Copies(x.name, x.lo, x.hi); got != x.copies || got == (&a.Data[0] == &b.Data[0]) {
			t.Errorf("%s, rows %d to %d: copies %v, want %v", x.name, x.lo, x.hi, got, x.copies)
		}
	}
	if c.Copies("nosuch", 0, 1) {
		t.Error("a tensor that is not there is copied")
	}
	lazy := *c
	lazy.lazy = true
	if lazy.Copies("blk.0.ffn_gate_exps.weight", dim, 2*dim) {
		t.Error("weights that would be fetched from afar are not held")
	}
}
