package ggml

import (
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
	"github.com/llmq/llmq/tensor"
)

// EncodeExact stores the weights w, whole blocks of one row that a checkpoint has as type from, in dst, if they lie on t's
// grid: t's values, rounded to from, are w. Nothing is lost then. It says whether they do; dst is unspecified if not.
// Super-blocks, whose scales have scales, are not looked for, nor are grids that no type of ggml has.
func (t *Type) EncodeExact(dst []byte, w []float32, from *Type) bool {
	g, ok := t.Grid.(*quant.Affine)
	if !ok || g.Scales.Super || g.BF16 || g.Minimums.Kind == quant.ZeroPoint || g.Block > maxBlock {
		return false
	}
	storage := storages[from]
	if storage.Round == nil {
		storage = storages[F32]
	}
	var sc, m [maxGroups]int8
	var codes [maxBlock]int8
	n := g.Groups()
	b := quant.Block{Sc: sc[:n], M: m[:n], Codes: codes[:g.Block]}
	for ; len(w) > 0; w, dst = w[t.BlockLen:], dst[t.BlockBytes:] {
		if !fit.Exact(g, &b, w[:t.BlockLen], storage) {
			return false
		}
		t.Pack(dst[:t.BlockBytes], &b)
	}
	return true
}

// storages is how checkpoints' types round; those of others are float32 values.
var storages = map[*Type]fit.Storage{
	F32:  {Round: func(v float32) float32 { return v }, Bits: 23, MinExponent: -149},
	F16:  {Round: tensor.RoundF16, Bits: 10, MinExponent: -24},
	BF16: {Round: func(v float32) float32 { return tensor.BF16(tensor.ToBF16(v)) }, Bits: 7, MinExponent: -133},
}
