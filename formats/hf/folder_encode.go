package hf

import (
	"encoding/binary"

	"github.com/llmq/llmq/formats/safetensors"
)

// codesPerWord is how many codes of 4 bits a word holds, the first in its lowest bits.
const codesPerWord = 8

// storedPart is a tensor that a format has for a linear.
type storedPart struct {
	name string
	data []byte
}

// parts are the tensors that the format stores a linear as.
func (f FolderFormat) parts(t *target) []safetensors.Info {
	half := safetensors.F16
	if t.typ.BF16 {
		half = safetensors.BF16
	}
	part := func(name string, dtype safetensors.DType, shape ...int) safetensors.Info {
		return safetensors.Info{Name: t.stem + name, DType: dtype, Shape: shape}
	}
	groups := t.in / t.typ.BlockLen
	switch {
	case f == GPTQ:
		return []safetensors.Info{
			part(".g_idx", safetensors.I32, t.in),
			part(".qweight", safetensors.I32, t.in/codesPerWord, t.out),
			part(".qzeros", safetensors.I32, groups, t.out/codesPerWord),
			part(".scales", half, groups, t.out),
		}
	case t.typ.Bits == 8:
		return []safetensors.Info{
			part(".weight", safetensors.I8, t.out, t.in),
			part(".weight_scale", half, t.out, 1),
		}
	}
	parts := []safetensors.Info{
		part(".weight_packed", safetensors.I32, t.out, t.in/codesPerWord),
		part(".weight_scale", half, t.out, groups),
		part(".weight_shape", safetensors.I64, 2),
	}
	if t.typ.ZeroPoint {
		parts = append(parts, part(".weight_zero_point", safetensors.I32, (t.out+codesPerWord-1)/codesPerWord, groups))
	}
	return parts
}

// encode returns the data of the parts of a linear, whose rows are given in its type.
func (f FolderFormat) encode(t *target, rows []byte) []storedPart {
	infos := f.parts(t)
	parts := make([]storedPart, len(infos))
	for i := range infos {
		parts[i] = storedPart{infos[i].Name, make([]byte, infos[i].Bytes())}
	}
	groups := t.in / t.typ.BlockLen
	block := func(o, g int) []byte {
		at := (o*groups + g) * t.typ.BlockBytes
		return rows[at : at+t.typ.BlockBytes]
	}
	if f == GPTQ {
		gptqParts(t, groups, block, parts[0].data, parts[1].data, parts[2].data, parts[3].data)
		return parts
	}
	// Codes follow each other as the blocks have them.
	codes, scales := parts[0].data, parts[1].data
	for i := range t.out * groups {
		b := block(i/groups, i%groups)
		codes = codes[copy(codes, t.typ.Codes(b)):]
		binary.LittleEndian.PutUint16(scales[2*i:], t.typ.Scale(b))
	}
	if t.typ.Bits == 4 {
		binary.LittleEndian.PutUint64(parts[2].data, uint64(t.out))
		binary.LittleEndian.PutUint64(parts[2].data[8:], uint64(t.in))
	}
	if t.typ.ZeroPoint { // packed along the outputs
		zeros := parts[3].data
		for o := range t.out {
			for g := range groups {
				zeros[4*(o/codesPerWord*groups+g)+o%codesPerWord/2] |= t.typ.Zero(block(o, g)) << (o % 2 * 4)
			}
		}
	}
	return parts
}

// gptqParts fills in GPTQ's tensors: codes in words along the inputs, which are in×out, and zero points minus one along the outputs.
func gptqParts(t *target, groups int, block func(o, g int) []byte, index, qweight, qzeros, scales []byte) {
	size := t.typ.BlockLen
	for i := range t.in {
		binary.LittleEndian.PutUint32(index[4*i:], uint32(i/size))
	}
	words := size / codesPerWord // of a group
	for g := range groups {
		for o := range t.out {
			b := block(o, g)
			codes := t.typ.Codes(b)
			for k := range words {
				copy(qweight[4*((g*words+k)*t.out+o):], codes[4*k:4*k+4])
			}
			binary.LittleEndian.PutUint16(scales[2*(g*t.out+o):], t.typ.Scale(b))
			qzeros[4*(g*t.out/codesPerWord+o/codesPerWord)+o%codesPerWord/2] |= (t.typ.Zero(b) - 1) << (o % 2 * 4)
		}
	}
}
