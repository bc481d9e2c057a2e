package ggml

import (
	"fmt"
	"slices"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// batch is room for the blocks that are searched together.
type batch struct {
	block [kernels.Lanes]quant.Block
	sc, m [kernels.Lanes * maxGroups]int8
	codes [kernels.Lanes * maxBlock]int8
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// Encode stores the weights w, whole blocks of one row, in dst, which is RowBytes(len(w)) long. Each block's scales are
// chosen so that Σ importance·(w−ŵ)² is small; importance has one value per weight, or is nil for equal ones. Weights
// beyond what the type can hold are stored as its nearest value; they should be finite. The result is the Σ(w−ŵ)² that
// rounding is expected to make: see quant.Weight.Noise. For floating-point types it is 0.
func (t *Type) Encode(dst []byte, w, importance []float32) (noise float64) {
	if len(w)%t.BlockLen != 0 || len(dst) != t.RowBytes(len(w)) || importance != nil && len(importance) != len(w) {
		panic(fmt.Sprintf("ggml: %s: %d bytes for %d weights and %d importances", t.Name, len(dst), len(w), len(importance)))
	}
	if t.Grid == nil {
		t.encode(dst, w)
		return 0
	}
	if importance == nil && t.round != nil {
		return t.encodePlain(dst, w)
	}
	g := t.Grid.Shape()
	n := g.Groups()
	if g.Block > maxBlock {
		return t.encodeRow(dst, w, importance)
	}
	a := batches.Get().(*batch)
	defer batches.Put(a)
	for i := range a.block {
		a.block[i] = quant.Block{Sc: a.sc[i*n : (i+1)*n], M: a.m[i*n : (i+1)*n], Codes: a.codes[i*g.Block : (i+1)*g.Block]}
	}
	blocks := len(w) / g.Block
	for i := 0; i < blocks; i += len(a.block) {
		bs := a.block[:min(len(a.block), blocks-i)]
		lo, hi := i*g.Block, (i+len(bs))*g.Block
		var imp []float32
		if importance != nil {
			imp = importance[lo:hi]
		}
		quant.Round(t.Grid, bs, w[lo:hi], imp)
		for k := range bs {
			b := &bs[k]
			t.Pack(dst[(i+k)*t.BlockBytes:(i+k+1)*t.BlockBytes], b)
			noise += t.Grid.Noise(b)
		}
	}
	return noise
}

// encodeRow is Encode for types whose blocks are rows.
func (t *Type) encodeRow(dst []byte, w, importance []float32) (noise float64) {
	q := quant.NewWeight(t.Grid, 1, len(w))
	for i := range len(w) / t.BlockLen {
		b := [1]quant.Block{q.Block(0, i)}
		lo, hi := i*t.BlockLen, (i+1)*t.BlockLen
		var imp []float32
		if importance != nil {
			imp = importance[lo:hi]
		}
		quant.Round(t.Grid, b[:], w[lo:hi], imp)
		t.Pack(dst[i*t.BlockBytes:(i+1)*t.BlockBytes], &b[0])
		noise += t.Grid.Noise(&b[0])
	}
	return noise
}

// encodePlain is Encode for weights of equal importance and types with one scale for each block.
func (t *Type) encodePlain(dst []byte, w []float32) (noise float64) {
	search := t.Grid.(*quant.Affine).Fitter.(*fit.Search)
	for len(w) > 0 {
		blocks := min(kernels.Lanes, len(w)/t.BlockLen)
		d := search.OneScale(w[:blocks*t.BlockLen])
		t.makePositive(d[:blocks], w)
		t.round(dst[:blocks*t.BlockBytes], w[:blocks*t.BlockLen], d[:blocks])
		for _, v := range d[:blocks] {
			noise += float64(v) * float64(v) * float64(t.BlockLen) / 12 // Grid.Noise
		}
		w, dst = w[blocks*t.BlockLen:], dst[blocks*t.BlockBytes:]
	}
	return noise
}

// makePositive is quant.Affine.MakePositive before w is rounded: a negative scale stays where a weight is nearest to the
// least code.
func (t *Type) makePositive(d, w []float32) {
	least := float32(t.Grid.(*quant.Affine).CodeMin)
	for i, v := range d {
		if v < 0 && slices.Max(w[i*t.BlockLen:(i+1)*t.BlockLen]) < (least+0.5)*v {
			d[i] = -v
		}
	}
}
