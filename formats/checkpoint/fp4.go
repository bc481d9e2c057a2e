package checkpoint

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
)

// Weights of FP4 (E2M1), two a byte, the even column in the low bits, with a scale a block of columns:
//
//	MXFP4: W = code · 2^(scale−127), blocks of 32
//	NVFP4: W = (code · scale) · global, scale in E4M3, blocks of 16
//
// ModelOpt stores NVFP4's global factor as X.weight_scale_2; compressed-tensors its reciprocal as X.weight_global_scale.
const (
	mxfp4Block = 32
	nvfp4Block = 16
)

// modelopt4 reads ModelOpt's NVFP4: X.weight, X.weight_scale, X.weight_scale_2.
func (a *assembly) modelopt4(p *part) (*logical, error) {
	global, err := a.need(p, p.name+"_scale_2")
	if err != nil {
		return nil, err
	}
	return a.fp4(p, p.name, global, false)
}

// packedFloats reads compressed-tensors' nvfp4-pack-quantized and mxfp4-pack-quantized: X.weight_packed, X.weight_scale.
func (a *assembly) packedFloats(p *part, stem string) (*logical, error) {
	a.claim(stem + ".weight_shape")
	return a.fp4(p, stem+".weight", a.claim(stem+".weight_global_scale"), true)
}

// fp4 reads [experts] out × in/2 bytes of codes and [experts] out × in/block scales; a global factor makes them NVFP4.
func (a *assembly) fp4(p *part, name string, global *part, reciprocal bool) (*logical, error) {
	scale, err := a.need(p, name+"_scale")
	if err != nil {
		return nil, err
	}
	n := len(p.shape) - 1
	if p.dtype != safetensors.U8 || n != 1 && n != 2 {
		return nil, p.errorf("%s %d are no codes of 4 bits: U8 of 2 or 3 dimensions", p.dtype, p.shape)
	}
	if p.shape[n] > 1<<40 {
		return nil, p.errorf("its shape %d is impossible", p.shape)
	}
	block := mxfp4Block
	if global != nil {
		block = nvfp4Block
	}
	in := 2 * p.shape[n]
	shape := append(append([]int{}, p.shape[:n]...), in)
	if in%block != 0 {
		return nil, p.errorf("%d columns are no blocks of %d", in, block)
	}
	if err := scale.expectShape(append(append([]int{}, p.shape[:n]...), in/block)...); err != nil {
		return nil, err
	}
	if global == nil {
		if scale.dtype != safetensors.U8 && scale.dtype != safetensors.F8E8M0 {
			return nil, scale.errorf("its type is %s; MXFP4's is U8 or F8_E8M0, and NVFP4 has a global scale", scale.dtype)
		}
		return mxfp4Rows(p, name, shape, scale), nil
	}
	if scale.dtype != safetensors.F8E4M3 {
		return nil, scale.errorf("its type is %s, not %s", scale.dtype, safetensors.F8E4M3)
	}
	experts := elements(p.shape[:n-1])
	count := elements(global.shape)
	if count != 1 && count != experts {
		return nil, global.errorf("its shape %d is neither one number nor one for each of %d experts", global.shape, experts)
	}
	g, err := floatsOf(global, false)
	if err != nil {
		return nil, err
	}
	factors := make([]float32, count)
	for i := range factors {
		factors[i] = g.get(i)
		if !reciprocal {
			continue
		}
		if factors[i] == 0 {
			return nil, global.errorf("number %d is zero: its reciprocal is the scale", i)
		}
		factors[i] = 1 / factors[i]
	}
	return nvfp4Rows(p, name, shape, scale, factors)
}

// mxfp4Blocks reads gpt-oss's experts: X_blocks, experts × out × in/32 × 16 bytes, and X_scales.
func (a *assembly) mxfp4Blocks(p *part, name string) (*logical, error) {
	scale, err := a.need(p, name+"_scales")
	if err != nil {
		return nil, err
	}
	n := len(p.shape) - 1
	if p.dtype != safetensors.U8 || n < 2 || p.shape[n] != mxfp4Block/2 {
		return nil, p.errorf("%s %d are no blocks of %d bytes", p.dtype, p.shape, mxfp4Block/2)
	}
	if err := scale.expect(safetensors.U8, p.shape[:n]...); err != nil {
		return nil, err
	}
	if p.shape[n-1] > 1<<40 {
		return nil, p.errorf("its shape %d is impossible", p.shape)
	}
	shape := append(append([]int{}, p.shape[:n-1]...), p.shape[n-1]*mxfp4Block)
	return mxfp4Rows(p, name, shape, scale), nil
}

// mxfp4Rows keeps the codes and the scales: only their places in a block differ from ggml's.
func mxfp4Rows(p *part, name string, shape []int, scale *part) *logical {
	_, cols := matrix(shape)
	p.claimed = true
	return &logical{
		Info{Name: name, Type: ggml.MXFP4, Shape: shape, File: p.file, Format: MXFP4},
		mxfp4Decoder{codes: p, packed: p.packed(), scales: scale.packed(), blocks: cols / mxfp4Block},
	}
}

// mxfp4Decoder makes ggml's blocks: the scale, then byte j has column j in the low half and column j+16 in the high half.
type mxfp4Decoder struct {
	codes          *part
	packed, scales []byte
	blocks         int // in a row
}

func (d mxfp4Decoder) rows(lo, hi int) ([]byte, error) {
	const half = mxfp4Block / 2
	out := make([]byte, 0, (hi-lo)*d.blocks*(1+half))
	for b := lo * d.blocks; b < hi*d.blocks; b++ {
		if d.scales[b] == 255 {
			return nil, fmt.Errorf("row %d: the scale of block %d is not a number", b/d.blocks, b%d.blocks)
		}
		out = append(out, d.scales[b])
		src := d.packed[b*half:][:half]
		for j := range half {
			low, high := src[j/2], src[(j+half)/2]
			if j%2 == 1 {
				low, high = low>>4, high>>4
			}
			out = append(out, low&15|high<<4)
		}
	}
	return out, nil
}

func (d mxfp4Decoder) spans(lo, hi int) []span {
	return d.codes.rowSpan(lo, hi, d.blocks*mxfp4Block/2)
}

// nvfp4Rows decodes rows of codes; factors are the weight's, one or one for each expert.
func nvfp4Rows(p *part, name string, shape []int, scale *part, factors []float32) (*logical, error) {
	const block = nvfp4Block
	f, err := floatsOf(scale, false)
	if err != nil {
		return nil, err
	}
	rows, cols := matrix(shape)
	perFactor := max(rows/max(len(factors), 1), 1)
	codes := p.packed()
	t := decoded(name, NVFP4, p, shape, cols/2, func(dst []float32, r int) error {
		factor := factors[r/perFactor]
		row := codes[r*cols/2:][:cols/2]
		for b := range cols / block {
			s := f.get(r*(cols/block) + b)
			w := dst[b*block:][:block]
			for j, c := range row[b*block/2:][:block/2] {
				w[2*j], w[2*j+1] = fp4[c&15]*s, fp4[c>>4]*s
			}
			for j := range w {
				w[j] *= factor
			}
		}
		return nil
	})
	if cols%ggml.NVFP4.BlockLen == 0 {
		t.decoder = nvfp4Decoder{t.decoder, factors, codes, scale.packed(), cols}
	}
	return t, nil
}

// nvfp4Decoder is the decoder of a weight whose rows can be had as ggml's blocks too.
type nvfp4Decoder struct {
	decoder
	factors       []float32
	codes, scales []byte
	cols          int
}

// Factors are what the weights that Codes returns have to be multiplied by: one, or one for each expert; nil for a tensor that
// is not stored as NVFP4, in rows of whole blocks of ggml's.
func (c *Checkpoint) Factors(name string) []float32 {
	if t, ok := c.tensors[name]; ok {
		d, _ := t.decoder.(nvfp4Decoder)
		return d.factors
	}
	return nil
}

// Codes returns rows lo to hi of a tensor that has Factors in ggml's blocks of NVFP4, code by code.
func (c *Checkpoint) Codes(name string, lo, hi int) ([]byte, error) {
	t, ok := c.tensors[name]
	if !ok || c.Factors(name) == nil {
		return nil, fmt.Errorf("checkpoint: no tensor %q of codes", name)
	}
	if n, _ := matrix(t.Shape); lo < 0 || lo > hi || hi > n {
		return nil, fmt.Errorf("checkpoint: %s: tensor %q: rows %d to %d of %d", t.File, name, lo, hi, n)
	}
	d := t.decoder.(nvfp4Decoder)
	groups := d.cols / nvfp4Block
	out := make([]byte, 0, (hi-lo)*ggml.NVFP4.RowBytes(d.cols))
	for g := lo * groups; g < hi*groups; g += 4 {
		for i, s := range d.scales[g : g+4] {
			if s >= 127 { // a sign, or no number: ggml's blocks have neither
				return nil, formatErrorf("%s: tensor %q: row %d: the scale of group %d is %g, which blocks of NVFP4 cannot hold",
					t.File, name, g/groups, g%groups+i, e4m3[s])
			}
		}
		out = append(out, d.scales[g:g+4]...)
		for i := range 4 {
			const half = nvfp4Block / 2
			src := d.codes[(g+i)*half:][:half]
			for j := range half {
				low, high := src[j/2], src[(j+half)/2]
				if j%2 == 1 {
					low, high = low>>4, high>>4
				}
				out = append(out, low&15|high<<4)
			}
		}
	}
	return out, nil
}
