package pipeline

import (
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// coded is a source that has weights of NVFP4 with factors beside them, as NVIDIA's checkpoints do, and shows them in float32 with
// the factors in them. GGUF files hold the codes in X.weight and the factors in X.scale (llama.cpp's converter).
type coded interface {
	// Factors are what the weights that Codes returns have to be multiplied by: one, or one for each expert; nil for others.
	Factors(name string) []float32
	// Codes returns rows lo to hi of a weight in NVFP4.
	Codes(name string, lo, hi int) (*ggml.Tensor, error)
}

// factorsOf returns the factors of a tensor of any source, nil if it has none.
func factorsOf(src Source, name string) []float32 {
	if c, ok := src.(coded); ok {
		return c.Factors(name)
	}
	return nil
}

// keepCodes has linears that become NVFP4 and are it in the source keep their codes, and plans their factors behind them.
func (p *Plan) keepCodes(src Source) {
	var ts []Tensor
	for _, t := range p.Tensors {
		var values []float32
		stem, weight := strings.CutSuffix(t.Name, ".weight")
		if t.Type == ggml.NVFP4 && t.Role == model.RoleLinear && weight {
			values = factorsOf(src, t.Name)
		}
		t.coded = values != nil
		if ts = append(ts, t); t.coded {
			ts = append(ts, Tensor{Info: ggml.Info{Name: stem + ".scale", Type: ggml.F32, Shape: []int{len(values)}},
				From: ggml.F32, Wanted: ggml.F32, Role: model.RoleVector, values: values})
		}
	}
	p.Tensors = ts
}

// valuesTensor is a planned tensor that the source does not have.
func (t *Tensor) valuesTensor() *ggml.Tensor {
	data := make([]byte, 4*len(t.values))
	tensor.EncodeF32(data, t.values)
	return &ggml.Tensor{Info: t.Info, Data: data}
}
