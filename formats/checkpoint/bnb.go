package checkpoint

import (
	"github.com/llmq/llmq/formats/safetensors"
)

// bnbState begins the names of the parts that describe a weight of bitsandbytes; nf4 or fp4 follows.
const bnbState = ".quant_state.bitsandbytes__"

// bnb4 reads a weight of bitsandbytes' nf4 or fp4. Codes follow each other through the whole weight, the first in the high bits:
//
//	W[n] = quant_map[code[n]] · absmax[n/blocksize]
//
// With double quantization absmax is itself coded: nested_quant_map[absmax[b]] · nested_absmax[b/nested_blocksize] + nested_offset.
func (a *assembly) bnb4(p *part) (*logical, error) {
	kind := "nf4"
	state := a.claim(p.name + bnbState + kind)
	if state == nil {
		kind = "fp4"
		state = a.claim(p.name + bnbState + kind)
	}
	var s struct {
		Shape     []int   `json:"shape"`
		Block     int     `json:"blocksize"`
		Nested    int     `json:"nested_blocksize"`
		Offset    float64 `json:"nested_offset"`
		QuantType string  `json:"quant_type"`
	}
	if state.dtype != safetensors.U8 || len(state.data) > 1<<16 {
		return nil, state.errorf("%s %d is no JSON of a quant_state", state.dtype, state.shape)
	}
	if err := unmarshal(state.packed(), &s); err != nil {
		return nil, state.errorf("%v", err)
	}
	if err := checkShape(s.Shape); err != nil {
		return nil, state.errorf("%v", err)
	}
	n := elements(s.Shape)
	if len(s.Shape) == 0 || n == 0 || s.Block < 1 || s.QuantType != kind {
		return nil, state.errorf("shape %d, blocksize %d, quant_type %q", s.Shape, s.Block, s.QuantType)
	}
	codes := p.packed()
	if len(codes) != ceil(n, 2) {
		return nil, p.errorf("%d bytes, %d codes of shape %d need %d", len(codes), n, s.Shape, ceil(n, 2))
	}
	values, err := a.floatsOf(p, ".quant_map", safetensors.F32, 16)
	if err != nil {
		return nil, err
	}
	blocks := ceil(n, s.Block)
	absmax, err := a.need(p, p.name+".absmax")
	if err != nil {
		return nil, err
	}
	var scale func(b int) float32
	if absmax.dtype == safetensors.U8 {
		if err := absmax.expectShape(blocks); err != nil {
			return nil, err
		}
		if s.Nested < 1 {
			return nil, state.errorf("nested_blocksize is %d", s.Nested)
		}
		nested, err := a.floatsOf(p, ".nested_quant_map", safetensors.F32, 256)
		if err != nil {
			return nil, err
		}
		top, err := a.floatsOf(p, ".nested_absmax", safetensors.F32, ceil(blocks, s.Nested))
		if err != nil {
			return nil, err
		}
		bytes, offset := absmax.packed(), float32(s.Offset)
		// The conversion keeps the product from being fused with the sum.
		scale = func(b int) float32 { return float32(nested.get(int(bytes[b]))*top.get(b/s.Nested)) + offset }
	} else {
		plain, err := a.floatsOf(p, ".absmax", safetensors.F32, blocks)
		if err != nil {
			return nil, err
		}
		scale = plain.get
	}
	_, cols := matrix(s.Shape)
	rowBytes := 0
	if cols%2 == 0 {
		rowBytes = cols / 2
	}
	t := decoded(p.name, "bitsandbytes "+kind, p, s.Shape, rowBytes, func(dst []float32, r int) error {
		last, absmax := -1, float32(0)
		for j := range dst {
			n := r*cols + j
			if b := n / s.Block; b != last {
				last, absmax = b, scale(b)
			}
			c := codes[n/2]
			if n%2 == 0 {
				c >>= 4
			}
			dst[j] = values.get(int(c&15)) * absmax
		}
		return nil
	})
	return t, nil
}

// floatsOf claims an array of so many floats beside p.
func (a *assembly) floatsOf(p *part, suffix string, dtype safetensors.DType, n int) (floats, error) {
	q, err := a.need(p, p.name+suffix)
	if err != nil {
		return floats{}, err
	}
	if err := q.expect(dtype, n); err != nil {
		return floats{}, err
	}
	return floatsOf(q, false)
}

// bnb8 reads a weight of bitsandbytes' LLM.int8: W[o][i] = code[o][i] · SCB[o] / 127.
func (a *assembly) bnb8(p *part, stem string) (*logical, error) {
	if err := p.dims(2); err != nil {
		return nil, err
	}
	scb, err := a.need(p, stem+".SCB")
	if err != nil {
		return nil, err
	}
	out, in := p.shape[0], p.shape[1]
	if err := scb.expect(safetensors.F32, out); err != nil {
		return nil, err
	}
	if f := a.claim(stem + ".weight_format"); f != nil {
		if b := f.packed(); len(b) == 0 || b[0] != 0 {
			return nil, unsupportedf("%s: tensor %q: weight_format is %d; 0, row by row, is supported", f.file, f.name, b)
		}
	}
	f, err := floatsOf(scb, false)
	if err != nil {
		return nil, err
	}
	codes := p.packed()
	return decoded(p.name, "bitsandbytes int8", p, p.shape, in, func(dst []float32, o int) error {
		s := f.get(o)
		for i := range dst {
			dst[i] = float32(int8(codes[o*in+i])) * s / 127
		}
		return nil
	}), nil
}
