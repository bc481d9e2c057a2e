package main

import (
	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// AMX, the instructions on tiles of eight registers of 16 rows of 64 bytes, is in neither Go's assembler nor avo. Those that the
// kernels need have one form (Intel SDM volume 2, section 2.3.5, "The VEX prefix"):
//
//	C4 | ~R ~X ~B m m m m m | W ~v ~v ~v ~v L p p | opcode | mod reg rm | sib | disp8
//
// mmmmm = 2 selects the 0F 38 opcodes, W and L are 0. A tile's number is in reg, v or rm; X and B extend a memory operand's
// index and base.
var (
	opLDTILECFG   = opcode{0, 0x49}
	opSTTILE      = opcode{2, 0x4b} // TILESTORED
	opLDTILE      = opcode{3, 0x4b} // TILELOADD
	opTILEZERO    = opcode{3, 0x49}
	opTDPBF16PS   = opcode{2, 0x5c}
	opTDPBSSD     = opcode{3, 0x5e}
	opTILERELEASE = [5]byte{0xc4, 0xe2, 0x78, 0x49, 0xc0}

	opVPDPBUSD = opcode{1, 0x50} // of AVX-VNNI: Go's assembler writes AVX-512's
)

// vex returns the bytes of an instruction on tiles: mod, reg and rm are its last byte's.
func vex(o opcode, reg, v, rm uint8) []byte {
	return []byte{0xc4, 0xe2, (^v&15)<<3 | o.pp, o.op, 3<<6 | reg&7<<3 | rm&7}
}

// vexMem returns the bytes of an instruction on a tile and the memory at base + index + disp, whose rows are index bytes apart.
func vexMem(o opcode, tile, base, index uint8, disp int8) []byte {
	return []byte{0xc4, (^index>>3&1)<<6 | (^base>>3&1)<<5 | 1<<7 | 2, 15<<3 | o.pp, o.op,
		1<<6 | tile&7<<3 | 4, index&7<<3 | base&7, byte(disp)}
}

// vexConfig returns the bytes of LDTILECFG of the 64 bytes at base, which has a number below 4.
func vexConfig(base uint8) []byte { return []byte{0xc4, 0xe2, 15 << 3, opLDTILECFG.op, base} }

// vexYMM returns the bytes of an instruction on registers of 256 bits.
func vexYMM(o opcode, reg, v, rm uint8) []byte {
	return []byte{0xc4, (^reg>>3&1)<<7 | 1<<6 | (^rm>>3&1)<<5 | 2, (^v&15)<<3 | 1<<2 | o.pp, o.op, 3<<6 | reg&7<<3 | rm&7}
}

// raw writes an instruction as it is.
func (g *gen) raw(code []byte) {
	for _, b := range code {
		g.Instruction(&ir.Instruction{Opcode: "BYTE", Operands: []operand.Op{operand.U8(b)}})
	}
}

func number(r reg.Physical) uint8 { return uint8(r.PhysicalIndex()) }

// tileConfig loads what shapes tiles have.
func (g *gen) tileConfig(base reg.GPPhysical) { g.raw(vexConfig(number(base))) }

// tileLoad emits tile = memory at base+disp, rows of which are stride bytes apart; tileStore is the inverse.
func (g *gen) tileLoad(tile uint8, base, stride reg.GPPhysical, disp int8) {
	g.raw(vexMem(opLDTILE, tile, number(base), number(stride), disp))
}

func (g *gen) tileStore(tile uint8, base, stride reg.GPPhysical, disp int8) {
	g.raw(vexMem(opSTTILE, tile, number(base), number(stride), disp))
}

func (g *gen) tileZero(tile uint8) { g.raw(vex(opTILEZERO, tile, 0, 0)) }

// tileRelease clears the tiles, so that the kernel need not save them.
func (g *gen) tileRelease() { g.raw(opTILERELEASE[:]) }

// vpdpbusd256 is vpdpbusd of 8 sums, without AVX-512.
func (g *gen) vpdpbusd256(b, a, acc reg.Physical) {
	g.raw(vexYMM(opVPDPBUSD, number(acc), number(a), number(b)))
}

// tdpbf16ps emits acc[m][n] += Σ a[m][2k]·b[k][2n] + a[m][2k+1]·b[k][2n+1].
func (g *gen) tdpbf16ps(acc, a, b uint8) { g.raw(vex(opTDPBF16PS, acc, b, a)) }

// tdpbssd emits acc[m][n] += Σ a[m][4k+j]·b[k][4n+j] over j < 4, of signed bytes.
func (g *gen) tdpbssd(acc, a, b uint8) { g.raw(vex(opTDPBSSD, acc, b, a)) }
