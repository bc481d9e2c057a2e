package pipeline

import (
	"math"
	"slices"
	"sync"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/vector"
)

// Tensors outside the layers, and without calibration all of them, are converted row by row: each row is read, checked,
// rounded, measured and packed by one goroutine while it is in the processor's cache, and a batch of rows is written
// while the next ones are being converted.

// batchWeights is how many weights are converted between writes: a few megabytes of output. Tests take fewer.
var batchWeights = 1 << 22

const (
	// rowWeights is how many weights a goroutine takes at a time, at least.
	rowWeights = 1 << 15
	// readAheadBytes bounds the tensors, at four bytes a weight, that are read while the one before is being converted: all
	// of it must find room.
	readAheadBytes = 256 << 20
	// pendingWrites is how many batches may wait for the disk.
	pendingWrites = 2
)

// batchRows is how many rows of t are a batch.
func batchRows(t *Tensor) int { return max(1, batchWeights/t.Cols()) }

func decodeRow(in *ggml.Tensor, w []float32, row int) {
	n := in.Type.RowBytes(len(w))
	in.Type.Decode(w, in.Data[row*n:(row+1)*n])
}

// rowSum gathers what is reported of rows.
type rowSum struct {
	errorSum
	noise float64 // ‖ΔW‖² to be expected: ggml.Type.Encode
	exact int     // rows that are copied, or were on the type's grid
}

func (s *rowSum) add(o *rowSum) {
	s.num += o.num
	s.den += o.den
	s.noise += o.noise
	s.exact += o.exact
}

// rowsReport is what is reported of a tensor that was converted.
func (s *rowSum) rowsReport() *rowsReport {
	return &rowsReport{outputs: s.errorSum, weights: s.errorSum, noise: s.noise, exact: s.exact}
}

// suspect says whether a weight of a row with these sums may be one that check refuses.
func (s *rowSum) suspect() bool {
	const tooMuch = 65000 * 65000 // F16 ends at 65504
	return !(s.den < tooMuch)
}

// converter is one goroutine's scratch space.
type converter struct {
	t          *Tensor
	in         *ggml.Tensor
	w, decoded []float32
}

var converters = sync.Pool{New: func() any { return new(converter) }}

// newConverter returns a converter, which is to be freed.
func newConverter(t *Tensor, in *ggml.Tensor) *converter {
	c := converters.Get().(*converter)
	c.t, c.in = t, in
	c.w, c.decoded = slices.Grow(c.w[:0], t.Cols())[:t.Cols()], slices.Grow(c.decoded[:0], t.Cols())[:t.Cols()]
	return c
}

func (c *converter) free() {
	c.t, c.in = nil, nil
	converters.Put(c)
}

// row converts a row to dst, by the importance of its input's features or, if that is nil, by the weights alone.
func (c *converter) row(dst []byte, row int, importance []float32) (sum rowSum) {
	decodeRow(c.in, c.w, row)
	sum.den = sumSquares(c.w)
	t := c.t.Type
	if t == c.in.Type {
		copy(dst, c.in.Data[row*len(dst):])
		sum.exact = 1
		return sum
	}
	if t.EncodeExact(dst, c.w, c.in.Type) {
		sum.exact = 1
		return sum
	}
	sum.noise = t.Encode(dst, c.w, importance)
	t.Decode(c.decoded, dst)
	vector.Axpy(c.decoded, -1, c.w)
	sum.num = sumSquares(c.decoded)
	return sum
}

// sumSquares returns Σ x².
func sumSquares(x []float32) float64 {
	const block = 1024 // products that are added in float32
	var sum float64
	for ; len(x) > 0; x = x[min(block, len(x)):] {
		part := x[:min(block, len(x))]
		s := vector.Dot(part, part)
		if s > 1e-30 && s < math.MaxFloat32 {
			sum += float64(s)
			continue
		}
		for _, v := range part { // squares beyond float32
			sum += float64(v) * float64(v)
		}
	}
	return sum
}
