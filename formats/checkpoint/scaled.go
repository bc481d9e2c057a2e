package checkpoint

import (
	"github.com/llmq/llmq/formats/safetensors"
)

// scaled is a weight of 8 bits, float or integer, times a scale:
//
//	W[i][j] = (code[i][j] − zero) · scale
//
// The scale is the tensor's, the row's, a group's of the row's columns or a block's; in three dimensions each expert has
// its own. Its parts are X.weight and X.weight_scale_inv (fp8), X.weight_scale (compressed-tensors, ModelOpt), X.scale (a power
// of two) or X.qscale_weight (Mistral).
func (a *assembly) scaled(p *part, stem string) (*logical, error) {
	var scale *part
	for _, name := range []string{p.name + "_scale_inv", p.name + "_scale", stem + ".scale", stem + ".qscale_weight"} {
		if scale == nil {
			scale = a.claim(name)
		}
	}
	integer := p.dtype == safetensors.I8
	switch {
	case scale == nil && integer:
		return nil, nil
	case scale == nil && a.quant.method != "":
		return nil, p.errorf("%s %d has no %q or %q beside it", p.dtype, p.shape, p.name+"_scale_inv", p.name+"_scale")
	}
	value, err := floats{}, error(nil)
	format := "fp8"
	if integer {
		value = floats{data: p.packed(), at: func(b []byte, i int) float32 { return float32(int8(b[i])) }}
		format = "int8"
	} else if value, err = floatsOf(p, false); err != nil {
		return nil, err
	}
	rows, cols := matrix(p.shape)
	if scale == nil { // floats that were merely cast
		return decoded(p.name, format, p, p.shape, cols, func(dst []float32, r int) error {
			for j := range dst {
				dst[j] = value.get(r*cols + j)
			}
			return nil
		}), nil
	}
	if len(p.shape) != 2 && len(p.shape) != 3 {
		return nil, p.errorf("its shape %d has neither 2 nor 3 dimensions", p.shape)
	}
	f, err := floatsOf(scale, true)
	if err != nil {
		return nil, err
	}
	g, err := a.gridOf(p, scale)
	if err != nil {
		return nil, err
	}
	zero := func(int) float32 { return 0 }
	if z := a.claim(p.name + "_zero_point"); z != nil {
		if err := z.expect(safetensors.I8, scale.shape...); err != nil {
			return nil, err
		}
		codes := z.packed()
		zero = func(i int) float32 { return float32(int8(codes[i])) }
	}
	perExpert := max(rows/max(elements(p.shape[:len(p.shape)-2]), 1), 1)
	return decoded(p.name, format, p, p.shape, cols, func(dst []float32, r int) error {
		at := r/perExpert*g.perExpert + r%perExpert/g.blockRows*g.perRow
		for j, i := 0, at; j < cols; i++ {
			z, s := zero(i), f.get(i)
			end := min(j+g.blockCols, cols)
			if value.bytes != nil { // the experts of the largest models, decoded for every batch
				codes := value.data[r*cols+j : r*cols+end]
				block := dst[j:end][:len(codes)]
				for k, c := range codes {
					block[k] = (value.bytes[c] - z) * s
				}
				j = end
			}
			for ; j < end; j++ {
				dst[j] = (value.get(r*cols+j) - z) * s
			}
		}
		return nil
	}), nil
}

// grid says which scale is whose.
type grid struct {
	blockRows, blockCols int // of weights that share one
	perRow, perExpert    int // scales of a row of blocks, of an expert
}

// gridOf finds the grid of a weight of [experts] out×in by its scale's shape.
func (a *assembly) gridOf(p, scale *part) (grid, error) {
	n := len(p.shape) - 2
	out, in := p.shape[n], p.shape[n+1]
	experts := elements(p.shape[:n])
	shape := scale.shape
	if elements(shape) == 1 && experts == 1 || elements(shape) == 1 && n == 0 {
		return grid{max(out, 1), max(in, 1), 1, 1}, nil
	}
	if n == 1 { // a scale of all experts' own, else the experts are the first dimension
		if len(shape) == 0 || shape[0] != experts {
			return grid{}, scale.errorf("its shape %d does not begin with the %d experts of %q %d", shape, experts, p.name, p.shape)
		}
		if shape = shape[1:]; elements(shape) == 1 {
			return grid{max(out, 1), max(in, 1), 1, 1}, nil
		}
	}
	if len(shape) == 1 {
		shape = []int{shape[0], 1}
	}
	if len(shape) == 2 {
		for _, b := range a.quant.blocks {
			if shape[0] == ceil(out, b[0]) && shape[1] == ceil(in, b[1]) {
				return grid{b[0], b[1], shape[1], shape[0] * shape[1]}, nil
			}
		}
		if groups := shape[1]; shape[0] == out && groups > 0 && in%groups == 0 && in > 0 {
			return grid{1, in / groups, groups, out * groups}, nil
		}
	}
	return grid{}, scale.errorf("its shape %d fits %q %d in no way: blocks are %d", scale.shape, p.name, p.shape, a.quant.blocks)
}

func ceil(n, d int) int {
	if n == 0 {
		return 0
	}
	return (n-1)/d + 1
}
