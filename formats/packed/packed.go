// Package packed has the grids of the integers that servers read from safetensors, in compressed-tensors' and GPTQ's formats
// (github.com/vllm-project/compressed-tensors, github.com/ModelCloud/GPTQModel): weights of 4 bits in groups of columns, with or
// without a zero point, and of 8 bits with a scale for each row.
//
//	4 bits   w = d·(q − z), q in 0..15; z is 8 where there are no zero points
//	8 bits   w = d·q, q in −127..127
//
// d is of the checkpoint's own 16-bit type, so that a server that computes in it reads what was chosen. With groups of 32 and
// float16 the symmetric grid is Q4_0's.
//
// A Type is how a run keeps such weights on their way into a file, block by block, as it keeps ggml's types; formats/hf
// distributes its blocks over the tensors of a format.
package packed

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
	"github.com/llmq/llmq/tensor"
)

// Scheme says what becomes of a linear's weights.
type Scheme struct {
	Bits int // 4 or 8
	// Group is how many columns share a scale: 32, 64 or 128. 0 with 8 bits, where it is the row's.
	Group int
	// ZeroPoint: each group has a zero point, from MinZero to 15. Without, it is 8.
	ZeroPoint bool
	MinZero   int
}

// Groups are the sizes that servers have kernels for.
var Groups = []int{32, 64, 128}

// Check says why there is no such scheme.
func (s Scheme) Check() error {
	switch {
	case s.Bits != 4 && s.Bits != 8:
		return fmt.Errorf("%d bits: 4 and 8 are possible", s.Bits)
	case s.Bits == 8 && (s.Group != 0 || s.ZeroPoint):
		return fmt.Errorf("weights of 8 bits have one scale for each row, no groups and no zero points")
	case s.Bits == 4 && !slices.Contains(Groups, s.Group):
		return fmt.Errorf("groups of %d columns: %d are possible", s.Group, Groups)
	}
	return nil
}

// Name is such as int4-g128.
func (s Scheme) Name() string {
	if s.Bits == 8 {
		return "int8-channel"
	}
	if s.ZeroPoint {
		return fmt.Sprintf("int4-g%d-zp", s.Group)
	}
	return fmt.Sprintf("int4-g%d", s.Group)
}

// Type is a scheme for weights of so many columns, as a type of ggml's that its files do not have.
type Type struct {
	*ggml.Type
	Scheme
	BF16 bool // the scales' type; else float16
	grid *quant.Affine
}

// Unsigned is a code or zero point as the formats store them, from 0 on.
func (t *Type) Unsigned(q int8) byte {
	if t.ZeroPoint {
		return byte(q)
	}
	return byte(q + 8)
}

type key struct {
	Scheme
	bf16 bool
	cols int // of 8 bits
}

var (
	mu     sync.Mutex
	types  = map[key]*Type{}
	byType = map[*ggml.Type]*Type{}
)

// TypeFor returns the scheme's type for weights of cols columns, the same one each time; nil if groups do not divide them.
func (s Scheme) TypeFor(cols int, bf16 bool) *Type {
	k := key{s, bf16, 0}
	if s.Bits == 8 {
		k.cols = cols
	}
	if s.Bits == 4 && cols%s.Group != 0 {
		return nil
	}
	mu.Lock()
	defer mu.Unlock()
	t := types[k]
	if t == nil {
		t = s.newType(cols, bf16)
		types[k], byType[t.Type] = t, t
	}
	return t
}

// Nominal is a type that stands for the scheme whatever the columns are; no weight has it.
func (s Scheme) Nominal() *ggml.Type { return s.TypeFor(4096, false).Type }

// Named is the Nominal type of the scheme of a name; nil if there is none.
func Named(name string) *ggml.Type {
	schemes := []Scheme{{Bits: 8}}
	for _, n := range Groups {
		schemes = append(schemes, Scheme{Bits: 4, Group: n}, Scheme{Bits: 4, Group: n, ZeroPoint: true})
	}
	for _, s := range schemes {
		if s.Name() == name {
			return s.Nominal()
		}
	}
	return nil
}

// Of returns what TypeFor has made of a type; nil for ggml's own.
func Of(t *ggml.Type) *Type {
	mu.Lock()
	defer mu.Unlock()
	return byType[t]
}

// firstID numbers types that no GGUF file has.
const firstID = 1 << 16

func (s Scheme) newType(cols int, bf16 bool) *Type {
	g := quant.Affine{Name: s.Name(), Block: s.Group, Group: s.Group, CodeMin: -8, CodeMax: 7, BF16: bf16}
	if s.ZeroPoint {
		g.CodeMin, g.CodeMax = 0, 15
		g.Minimums = quant.Minimums{Kind: quant.ZeroPoint, Min: s.MinZero, Max: 15}
	}
	if s.Bits == 8 {
		g.Block, g.Group, g.CodeMin, g.CodeMax = cols, cols, -127, 127
	}
	t := &Type{Scheme: s, BF16: bf16, grid: fit.New(g)}
	t.Type = &ggml.Type{
		Format: kernels.Format{Name: g.Name, BlockLen: g.Block, BlockBytes: t.codesAt() + g.Block*s.Bits/8, Unpack: t.unpack},
		ID:     firstID, ByRequest: true, Grid: t.grid, Pack: t.pack, Parse: t.parse,
	}
	return t
}

// codesAt is where a block's codes begin: behind the scale and, if there is one, the zero point.
func (t *Type) codesAt() int {
	if t.ZeroPoint {
		return 3
	}
	return 2
}

// Scale returns a block's scale, in the 16 bits that files have.
func (t *Type) Scale(block []byte) uint16 { return binary.LittleEndian.Uint16(block) }

// Zero returns a block's zero point.
func (t *Type) Zero(block []byte) byte {
	if t.ZeroPoint {
		return block[2]
	}
	return 8
}

// Codes returns a block's codes: of 4 bits from 0 to 15, two a byte, the first in the low half; of 8 bits signed bytes.
func (t *Type) Codes(block []byte) []byte { return block[t.codesAt():] }

func (t *Type) pack(dst []byte, b *quant.Block) {
	binary.LittleEndian.PutUint16(dst, t.scaleBits(b.D))
	if t.ZeroPoint {
		dst[2] = byte(t.grid.Zero(b))
	}
	codes := t.Codes(dst)
	if t.Bits == 8 {
		for j, q := range b.Codes {
			codes[j] = byte(q)
		}
		return
	}
	for j := range codes {
		codes[j] = t.Unsigned(b.Codes[2*j]) | t.Unsigned(b.Codes[2*j+1])<<4
	}
}

func (t *Type) parse(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = t.scale(src), 0, 1, 0
	var lift int8 // from stored codes to the grid's
	if t.ZeroPoint {
		b.DMin, b.M[0] = b.D*float32(src[2]), 1
	} else {
		lift = 8
	}
	codes := t.Codes(src)
	if t.Bits == 8 {
		for j := range b.Codes {
			b.Codes[j] = int8(codes[j])
		}
		return
	}
	for j, v := range codes[:t.BlockLen/2] {
		b.Codes[2*j], b.Codes[2*j+1] = int8(v&15)-lift, int8(v>>4)-lift
	}
}

// unpack decodes as the formats' readers do: the difference of code and zero point times the scale.
func (t *Type) unpack(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[t.BlockLen:], src[t.BlockBytes:] {
		d, codes := t.scale(src), t.Codes(src[:t.BlockBytes])
		if t.Bits == 8 {
			for j, v := range codes {
				dst[j] = float32(int8(v)) * d
			}
			continue
		}
		z := int(t.Zero(src))
		for j, v := range codes {
			dst[2*j] = float32(int(v&15)-z) * d
			dst[2*j+1] = float32(int(v>>4)-z) * d
		}
	}
}

func (t *Type) scale(block []byte) float32 {
	if t.BF16 {
		return tensor.BF16(t.Scale(block))
	}
	return tensor.F16(t.Scale(block))
}

func (t *Type) scaleBits(d float32) uint16 {
	if t.BF16 {
		return tensor.ToBF16(d)
	}
	return tensor.ToF16(d)
}
