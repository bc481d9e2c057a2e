package checkpoint

import (
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/safetensors"
)

// qweight reads a linear of GPTQ or AWQ, X.qweight, X.qzeros and X.scales, which are stored in×out:
//
//	W[o][i] = scales[g(i)][o] · (q[i][o] − zeros[g(i)][o])
//
// They are told apart by how wide a row of qweight is.
func (a *assembly) qweight(p *part, stem string) (*logical, error) {
	zeros, err := a.need(p, stem+".qzeros")
	if err != nil {
		return nil, err
	}
	scales, err := a.need(p, stem+".scales")
	if err != nil {
		return nil, err
	}
	index := a.claim(stem + ".g_idx")
	for _, q := range []*part{p, zeros, scales} {
		if err := q.dims(2); err != nil {
			return nil, err
		}
	}
	if p.dtype != safetensors.I32 || zeros.dtype != safetensors.I32 {
		return nil, unsupportedf("%s: tensor %q: %s with zero points in %s; only I32 is supported", p.file, p.name, p.dtype, zeros.dtype)
	}
	if err := zeros.expect(safetensors.I32, scales.shape[0], zeros.shape[1]); err != nil {
		return nil, err
	}
	f, err := floatsOf(scales, false)
	if err != nil {
		return nil, err
	}
	q := qlinear{p: p, name: stem + ".weight", zeros: words(zeros.packed()), zeroWords: zeros.shape[1], scales: f, index: index,
		groups: scales.shape[0], out: scales.shape[1]}
	switch {
	case p.shape[1] == q.out:
		return a.gptq(q)
	case p.shape[1] == q.zeroWords:
		return a.awq(q)
	}
	return nil, p.errorf("its shape %d fits neither GPTQ nor AWQ (GEMM): scales are %d, qzeros %d", p.shape, scales.shape, zeros.shape)
}

// qlinear is what GPTQ and AWQ share.
type qlinear struct {
	p           *part
	name        string
	zeros       words
	zeroWords   int // a row
	scales      floats
	index       *part // nil without g_idx
	groups, out int
}

// group finds the columns' groups.
func (a *assembly) group(p *part, in, groups int, index *part) (groupOf, error) {
	if index != nil {
		if err := index.expect(safetensors.I32, in); err != nil {
			return groupOf{}, err
		}
		return groupOf{index: words(index.packed()), groups: groups}, nil
	}
	size, err := groupSize(in, groups, a.quant.groupSize)
	if err != nil {
		return groupOf{}, p.errorf("%v", err)
	}
	return groupOf{size: size, groups: groups}, nil
}

// gptq reads codes that are packed along the inputs, of 2 to 8 bits: qweight is in·bits/32 × out, qzeros groups × out·bits/32.
// Version 1 stores zero points minus one.
func (a *assembly) gptq(q qlinear) (*logical, error) {
	if q.out < 1 || q.zeroWords*32%q.out != 0 {
		return nil, q.p.errorf("qzeros of %d words a row hold no whole number of bits for %d outputs", q.zeroWords, q.out)
	}
	width := q.zeroWords * 32 / q.out
	if !slices.Contains([]int{2, 3, 4, 8}, width) || q.p.shape[0]*32%width != 0 {
		return nil, q.p.errorf("codes of %d bits in %d words a column; 2, 3, 4 and 8 bits are supported", width, q.p.shape[0])
	}
	if !a.quant.dynamic && len(a.quant.bits) > 0 && !slices.Contains(a.quant.bits, width) {
		return nil, q.p.errorf("its zero points have %d bits, quantization_config has %d", width, a.quant.bits)
	}
	if f := a.quant.checkpointFormat; f != "" && f != "gptq" && f != "gptq_v2" {
		return nil, unsupportedf("%s: tensor %q: checkpoint_format %q; gptq and gptq_v2 are supported", q.p.file, q.p.name, f)
	}
	in := q.p.shape[0] * 32 / width
	group, err := a.group(q.p, in, q.groups, q.index)
	if err != nil {
		return nil, err
	}
	offset := 1
	if a.quant.checkpointFormat == "gptq_v2" {
		offset = 0
	}
	codes := words(q.p.packed())
	return decoded(q.name, "gptq", q.p, []int{q.out, in}, 0, func(dst []float32, o int) error {
		for i := 0; i < in; {
			g, end, err := group.run(i, in)
			if err != nil {
				return err
			}
			z := int(q.zeros.bit(g*q.zeroWords, 1, o*width, width)) + offset
			s := q.scales.get(g*q.out + o)
			for ; i < end; i++ {
				dst[i] = s * float32(int(codes.bit(o, q.out, i*width, width))-z)
			}
		}
		return nil
	}), nil
}

// awqPlace is the place in a word of each of eight columns: words hold columns 0 2 4 6 1 3 5 7.
var awqPlace = [8]int{0, 4, 1, 5, 2, 6, 3, 7}

// awq reads codes of 4 bits that are packed along the outputs: qweight is in × out/8, qzeros groups × out/8.
func (a *assembly) awq(q qlinear) (*logical, error) {
	in := q.p.shape[0]
	switch v := strings.ToLower(a.quant.version); {
	case strings.Contains(v, "gemv"), strings.Contains(v, "marlin"):
		return nil, unsupportedf("%s: tensor %q: AWQ's layout %q; gemm is supported", q.p.file, q.p.name, a.quant.version)
	case q.out != 8*q.zeroWords:
		return nil, q.p.errorf("%d words a row hold no %d codes of 4 bits", q.zeroWords, q.out)
	case len(a.quant.bits) > 0 && !slices.Contains(a.quant.bits, 4):
		return nil, q.p.errorf("its codes have 4 bits, quantization_config has %d", a.quant.bits)
	}
	group, err := a.group(q.p, in, q.groups, q.index)
	if err != nil {
		return nil, err
	}
	codes := words(q.p.packed())
	return decoded(q.name, "awq", q.p, []int{q.out, in}, 0, func(dst []float32, o int) error {
		word, shift := o/8, 4*awqPlace[o%8]
		for i := 0; i < in; {
			g, end, err := group.run(i, in)
			if err != nil {
				return err
			}
			z := int(q.zeros.word(g*q.zeroWords+word) >> shift & 15)
			s := q.scales.get(g*q.out + o)
			for ; i < end; i++ {
				dst[i] = s * float32(int(codes.word(i*q.zeroWords+word)>>shift&15)-z)
			}
		}
		return nil
	}), nil
}
