package gptq

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// mostPacked is the most inputs whose Hessian and factor are packed: they then take as much memory besides as three quarters of one of them.
const mostPacked = 8192

// packedKey names what is packed: rows [i0,i1) of the Hessian, or of the factor.
type packedKey struct {
	factor bool
	i0, i1 int
}

// expectFewRows says that rows come in many small batches. Where products round, packing is most of what such a batch would take.
func (f *Factor) expectFewRows() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.packs = kernels.Auto.Rounds() && f.h.Rows <= mostPacked
}

// addProduct adds a·B to columns [j0,n) of dst, B being rows [i0,i1) of the Hessian, or columns [0,i0) of these rows of the factor.
func (f *Factor) addProduct(dst, a *tensor.Matrix, factor bool, i0, i1, j0 int) {
	b := f.h.View(i0, i1, 0, f.h.Rows)
	if factor {
		b = f.l.View(i0, i1, 0, i0)
	}
	if packed := f.packed(packedKey{factor, i0, i1}, b); packed != nil {
		gemm.NNPacked(dst, 1, a, packed, j0)
		return
	}
	gemm.NNSplit(dst, 1, a, b, 0, j0, kernels.Auto)
}

// packed returns b, packed once, or nil if that is not worth it.
func (f *Factor) packed(key packedKey, b *tensor.Matrix) *gemm.Packed {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.packs {
		return nil
	}
	if f.shared == nil {
		f.shared = map[packedKey]*gemm.Packed{}
	}
	if f.shared[key] == nil {
		f.shared[key] = gemm.Pack(b, kernels.Auto)
	}
	return f.shared[key]
}

// PackedMemory is what QuantizeCoupled takes for its products beside the factor.
func PackedMemory(in int) int64 {
	if !kernels.Auto.Rounds() || in > mostPacked {
		return 0
	}
	return gemm.PackedBytes(in, in, kernels.Auto) + gemm.PackedBytes(in, in, kernels.Auto)/2
}
