package main

import (
	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// AVX512_BF16 is in neither Go's assembler nor avo. All instructions that the kernels need take registers only, so one
// encoding serves (Intel SDM volume 2, section 2.7.1, "Instruction format and EVEX"):
//
//	62 | ~R ~X ~B ~R' 0 m m m | W ~v ~v ~v ~v 1 p p | z L' L b ~V' a a a | opcode | 11 reg rm
//
// mmm = 2 selects the 0F 38 opcodes, pp = 2 the F3 and pp = 3 the F2 prefix, L'L = 2 is 512 bits; R' and R extend reg,
// X and B rm, V' v.

// An opcode with its pp.
type opcode struct{ pp, op byte }

var (
	opVDPBF16PS      = opcode{2, 0x52}
	opVCVTNEPS2BF16  = opcode{2, 0x72}
	opVCVTNE2PS2BF16 = opcode{3, 0x72}
)

// evex returns the six bytes of a 512-bit EVEX.0F38.W0 instruction on registers.
func evex(o opcode, reg, v, rm uint8) [6]byte {
	bit := func(r, i uint8) byte { return ^r >> i & 1 }
	return [6]byte{
		0x62,
		bit(reg, 3)<<7 | bit(rm, 4)<<6 | bit(rm, 3)<<5 | bit(reg, 4)<<4 | 2,
		(^v&15)<<3 | 1<<2 | o.pp,
		2<<5 | bit(v, 4)<<3,
		o.op,
		3<<6 | reg&7<<3 | rm&7,
	}
}

// emit writes an instruction as bytes. The registers must be physical: the allocator does not see into the bytes.
func (g *gen) emit(code [6]byte) {
	g.Instruction(&ir.Instruction{Opcode: "LONG", Operands: []operand.Op{
		operand.U32(uint32(code[0]) | uint32(code[1])<<8 | uint32(code[2])<<16 | uint32(code[3])<<24),
	}})
	g.Instruction(&ir.Instruction{Opcode: "WORD", Operands: []operand.Op{
		operand.U16(uint16(code[4]) | uint16(code[5])<<8),
	}})
}

// vdpbf16ps emits acc[i] += a[2i]·b[2i] + a[2i+1]·b[2i+1], 16 float32 sums of bfloat16 pairs.
func (g *gen) vdpbf16ps(b, a, acc reg.Physical) {
	g.emit(evex(opVDPBF16PS, uint8(acc.PhysicalIndex()), uint8(a.PhysicalIndex()), uint8(b.PhysicalIndex())))
}

// vcvtneps2bf16 emits dst = bfloat16(src), 16 values to the nearest, ties to even; dst is a Y register.
func (g *gen) vcvtneps2bf16(src, dst reg.Physical) {
	g.emit(evex(opVCVTNEPS2BF16, uint8(dst.PhysicalIndex()), 0, uint8(src.PhysicalIndex())))
}

// vcvtne2ps2bf16 emits dst = bfloat16(lo), bfloat16(hi): 32 values.
func (g *gen) vcvtne2ps2bf16(lo, hi, dst reg.Physical) {
	g.emit(evex(opVCVTNE2PS2BF16, uint8(dst.PhysicalIndex()), uint8(hi.PhysicalIndex()), uint8(lo.PhysicalIndex())))
}

// vpdpbusd emits acc[i] += Σ a[4i+j]·b[4i+j] over j < 4, a unsigned and b signed bytes. Go's assembler has it, avo not.
func (g *gen) vpdpbusd(b, a, acc reg.Physical) {
	g.Instruction(&ir.Instruction{Opcode: "VPDPBUSD", Operands: []operand.Op{b, a, acc}})
}
