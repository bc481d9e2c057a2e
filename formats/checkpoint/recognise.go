package checkpoint

import (
	"strings"
	"sync"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// recognise makes a logical tensor of the part that holds its codes, by its name and the parts beside it; nil if it holds
// no codes that a format has. The parts are claimed.
func (a *assembly) recognise(p *part) (*logical, error) {
	stem, last, _ := cutLast(p.name, ".")
	blocks, isBlocks := strings.CutSuffix(p.name, "_blocks")
	switch {
	case p.claimed:
		return nil, nil
	case last == "qweight":
		return a.qweight(p, stem)
	case last == "weight_packed" && p.dtype == safetensors.I32:
		return a.packedInts(p, stem)
	case last == "weight_packed":
		return a.packedFloats(p, stem)
	case isBlocks && a.byName[blocks+"_scales"] != nil:
		return a.mxfp4Blocks(p, blocks)
	case a.byName[p.name+bnbState+"nf4"] != nil, a.byName[p.name+bnbState+"fp4"] != nil:
		return a.bnb4(p)
	case p.dtype == safetensors.I8 && a.byName[stem+".SCB"] != nil:
		return a.bnb8(p, stem)
	case p.dtype == safetensors.U8 && a.byName[p.name+"_scale_2"] != nil:
		return a.modelopt4(p)
	case p.dtype == safetensors.F8E4M3, p.dtype == safetensors.F8E5M2, p.dtype == safetensors.I8:
		return a.scaled(p, stem)
	}
	return nil, nil
}

// claim takes a part for a logical tensor; nil if there is none of that name.
func (a *assembly) claim(name string) *part {
	p := a.byName[name]
	if p != nil {
		p.claimed = true
	}
	return p
}

// need claims a part that must be there, beside p.
func (a *assembly) need(p *part, name string) (*part, error) {
	if q := a.claim(name); q != nil {
		return q, nil
	}
	return nil, p.errorf("%s %d has no %q beside it", p.dtype, p.shape, name)
}

// dims demands the number of a part's dimensions.
func (p *part) dims(n int) error {
	if len(p.shape) != n {
		return p.errorf("its shape %d has %d dimensions, not %d", p.shape, len(p.shape), n)
	}
	return nil
}

// expect demands a part's type and shape.
func (p *part) expect(dtype safetensors.DType, shape ...int) error {
	if p.dtype != dtype {
		return p.errorf("its type is %s, not %s", p.dtype, dtype)
	}
	return p.expectShape(shape...)
}

func (p *part) expectShape(shape ...int) error {
	same := len(p.shape) == len(shape)
	for i := range shape {
		same = same && p.shape[i] == shape[i]
	}
	if !same {
		return p.errorf("its shape is %d, not %d", p.shape, shape)
	}
	return nil
}

// rowDecoder decodes a row at a time.
type rowDecoder struct {
	shape []int // of the weight
	cols  int
	row   func(dst []float32, r int) error // may be called from several goroutines
	codes *part
	// rowBytes is the size of a row of codes; 0 if rows are not stored one after another.
	rowBytes int
}

// rows decodes on all processors: the experts of a layer are decoded whenever they are multiplied with. Of several rows with
// errors the first is told, as it would be by one goroutine.
func (d rowDecoder) rows(lo, hi int) ([]byte, error) {
	const grain = 1 << 14 // weights: some microseconds of work at the least
	out := make([]float32, (hi-lo)*d.cols)
	var mu sync.Mutex
	var first error
	failed := hi
	kernels.Parallel(hi-lo, grain/max(d.cols, 1), func(from, to int) {
		for r := lo + from; r < lo+to; r++ {
			if err := d.row(out[(r-lo)*d.cols:][:d.cols], r); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if r < failed {
					failed, first = r, err
				}
				return
			}
		}
	})
	if first != nil {
		return nil, first
	}
	return tensor.F32Bytes(out), nil
}

func (d rowDecoder) spans(lo, hi int) []span {
	if d.rowBytes > 0 {
		return d.codes.rowSpan(lo, hi, d.rowBytes)
	}
	// Transposed codes: a row's lie all over the part, which is done with when the last row is.
	if n, _ := matrix(d.shape); hi == n && d.codes.strides == nil && d.codes.m != nil {
		return []span{{d.codes.m, d.codes.data}}
	}
	return nil
}

// decoded is a logical tensor of float32.
func decoded(name, format string, codes *part, shape []int, rowBytes int, row func(dst []float32, r int) error) *logical {
	_, cols := matrix(shape)
	codes.claimed = true
	return &logical{
		Info{Name: name, Type: ggml.F32, Shape: shape, File: codes.file, Format: format},
		rowDecoder{shape: shape, cols: cols, row: row, codes: codes, rowBytes: rowBytes},
	}
}
