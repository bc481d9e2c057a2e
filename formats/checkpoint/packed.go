package checkpoint

import (
	"encoding/binary"
	"math"

	"github.com/llmq/llmq/formats/safetensors"
)

// packedInts reads compressed-tensors' pack-quantized integers. X.weight_packed is out × ⌈in/n⌉ words of n = ⌊32/bits⌋ codes,
// X.weight_scale out×groups; X.weight_zero_point, where there is one, is packed along the outputs: ⌈out/n⌉ × groups.
//
//	W[o][i] = (q[o][i] − zero[o][g(i)]) · scale[o][g(i)], zero = 2^(bits−1) where none is stored
func (a *assembly) packedInts(p *part, stem string) (*logical, error) {
	scale, err := a.need(p, stem+".weight_scale")
	if err != nil {
		return nil, err
	}
	shape, err := a.need(p, stem+".weight_shape")
	if err != nil {
		return nil, err
	}
	if err := p.dims(2); err != nil {
		return nil, err
	}
	out, in, err := storedShape(shape)
	if err != nil {
		return nil, err
	}
	width := 0
	for _, b := range append(append([]int{}, a.quant.bits...), 4, 8) {
		if b >= 1 && b <= 8 && width == 0 && p.shape[1] == ceil(in, 32/b) {
			width = b
		}
	}
	if width == 0 || p.shape[0] != out {
		return nil, p.errorf("its shape %d does not hold %d×%d codes of %d bits", p.shape, out, in, a.quant.bits)
	}
	perWord := 32 / width
	if len(scale.shape) == 0 || len(scale.shape) > 2 || elements(scale.shape) != 1 && scale.shape[0] != out {
		return nil, scale.errorf("its shape %d does not fit weights of %d×%d", scale.shape, out, in)
	}
	groups, scaleRow := 1, 1
	if elements(scale.shape) == 1 && out != 1 {
		scaleRow = 0 // one for the tensor
	} else if len(scale.shape) == 2 {
		groups, scaleRow = scale.shape[1], scale.shape[1]
	}
	f, err := floatsOf(scale, false)
	if err != nil {
		return nil, err
	}
	group, err := a.group(p, in, groups, a.claim(stem+".weight_g_idx"))
	if err != nil {
		return nil, err
	}
	zero := func(o, g int) int { return 1 << (width - 1) }
	if z := a.claim(stem + ".weight_zero_point"); z != nil {
		if err := z.expect(safetensors.I32, ceil(out, perWord), groups); err != nil {
			return nil, err
		}
		zeros := words(z.packed())
		zero = func(o, g int) int {
			return int(zeros.word(o/perWord*groups+g) >> (o % perWord * width) & (1<<width - 1))
		}
	}
	codes := words(p.packed())
	rowWords := p.shape[1]
	return decoded(stem+".weight", "int", p, []int{out, in}, 4*rowWords, func(dst []float32, o int) error {
		for i := 0; i < in; {
			g, end, err := group.run(i, in)
			if err != nil {
				return err
			}
			z, s := zero(o, g), f.get(o*scaleRow+g)
			for ; i < end; i++ {
				q := int(codes.word(o*rowWords+i/perWord) >> (i % perWord * width) & (1<<width - 1))
				dst[i] = float32(q-z) * s
			}
		}
		return nil
	}), nil
}

// storedShape reads out and in, which are stored as a tensor of two integers.
func storedShape(p *part) (out, in int, err error) {
	if err := p.expectShape(2); err != nil {
		return 0, 0, err
	}
	b := p.packed()
	var dims [2]int64
	for i := range dims {
		switch p.dtype {
		case safetensors.I64:
			dims[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
		case safetensors.I32:
			dims[i] = int64(int32(binary.LittleEndian.Uint32(b[4*i:])))
		default:
			return 0, 0, p.errorf("its type is %s, not I64", p.dtype)
		}
	}
	if dims[0] < 1 || dims[1] < 1 || dims[0] > math.MaxInt32 || dims[1] > math.MaxInt32 {
		return 0, 0, p.errorf("it says that the weight is %d×%d", dims[0], dims[1])
	}
	return int(dims[0]), int(dims[1]), nil
}
