package hf

import (
	"fmt"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/tensor"
)

// TestCodes: of weights in NVFP4, as linears with rows in another order and as experts that are stacked, the codes times their
// factors are the weights.
func TestCodes(t *testing.T) {
	const dim, experts = 64, 3
	s := small("MixtralForCausalLM").with(settings{"hidden_size": dim, "intermediate_size": dim, "num_hidden_layers": 1,
		"num_local_experts": experts, "num_experts_per_tok": 2, "quantization_config": settings{"quant_method": "modelopt"}})
	var infos []safetensors.Info
	add := func(name string, dtype safetensors.DType, shape ...int) {
		infos = append(infos, safetensors.Info{Name: name, DType: dtype, Shape: shape})
	}
	coded := func(name string, out, in int) {
		add(name, safetensors.U8, out, in/2)
		add(name+"_scale", safetensors.F8E4M3, out, in/16)
		add(name+"_scale_2", safetensors.F32)
	}
	for _, info := range weights(s) {
		if linear := len(info.Shape) == 2 && info.Name != "model.embed_tokens.weight" && info.Name != "lm_head.weight"; !linear {
			infos = append(infos, info)
		} else if info.Name[len("model.layers.0."):][:4] == "self" {
			coded(info.Name, info.Shape[0], info.Shape[1])
		}
	}
	add("model.layers.0.block_sparse_moe.gate.weight", safetensors.BF16, experts, dim)
	for e := range experts {
		for i := 1; i <= 3; i++ {
			coded(fmt.Sprintf("model.layers.0.block_sparse_moe.experts.%d.w%d.weight", e, i), dim, dim)
		}
	}
	c := mustOpen(t, folder(t, s, infos))
	found := map[int]int{}
	for _, info := range c.Tensors() {
		factors := c.Factors(info.Name)
		found[len(factors)]++
		if factors == nil {
			if _, err := c.Codes(info.Name, 0, 1); err == nil {
				t.Errorf("%s has codes", info.Name)
			}
			continue
		}
		all, err := c.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range [][2]int{{0, info.Rows()}, {3, info.Rows() - 5}} {
			codes, err := c.Codes(info.Name, span[0], span[1])
			if err != nil {
				t.Fatal(err)
			}
			got, want := make([]float32, (span[1]-span[0])*dim), make([]float32, (span[1]-span[0])*dim)
			tensor.DecodeF32(want, all.Data[4*dim*span[0]:4*dim*span[1]])
			ggml.NVFP4.Unpack(got, codes.Data)
			for i := range got {
				got[i] *= factors[(span[0]*dim+i)/(info.Elements()/len(factors))]
			}
			if codes.Type != ggml.NVFP4 || !slices.Equal(got, want) {
				t.Errorf("%s, rows %v: codes and factors are not the weights", info.Name, span)
			}
		}
	}
	if found[1] != 4 || found[experts] != 3 {
		t.Errorf("tensors by their factors: %v", found)
	}
}
