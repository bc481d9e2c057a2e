package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// wordTypes are the formats of codebooks: their decoders, in AVX-512 alone, gather the levels of 64 columns at a time from a
// table of the words.
var wordTypes = []blockType{
	{"IQ1_S", 256, 50, (*unpacker).iq1_S},
	{"IQ1_M", 256, 56, (*unpacker).iq1_M},
	{"IQ2_XXS", 256, 66, (*unpacker).iq2_XXS},
	{"IQ2_XS", 256, 74, (*unpacker).iq2_XS},
	{"IQ2_S", 256, 82, (*unpacker).iq2_S},
	{"IQ3_XXS", 256, 98, (*unpacker).iq3_XXS},
	{"IQ3_S", 256, 110, (*unpacker).iq3_S},
}

// wordConstants are shifts that differ from lane to lane, and some numbers.
type wordConstants struct {
	by7, by2, by3, by4, toSign, first4        operand.Mem // dwords, and bytes
	scalesLow, scalesHigh                     operand.Mem // qwords
	one, seven, bits7, bit7, bits9, bit8, two operand.Mem // a dword each
	onesInBytes, eighth, quarter              operand.Mem
}

func (g *gen) wordConstants() *wordConstants {
	table := func(name string, size, count int, f func(i int) int) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		for i := range count {
			switch v := f(i); size {
			case 1:
				g.AddDatum(i, operand.U8(uint8(v)))
			case 4:
				g.AddDatum(4*i, operand.U32(uint32(v)))
			default:
				g.AddDatum(8*i, operand.U64(uint64(v)))
			}
		}
		return m
	}
	dwords := func(name string, f func(i int) int) operand.Mem { return table(name, 4, 8, f) }
	dword := func(v uint32) operand.Mem {
		return table(fmt.Sprintf("dword%x", v), 4, 1, func(int) int { return int(v) })
	}
	float := func(v float32) operand.Mem { return dword(math.Float32bits(v)) }
	return &wordConstants{
		by7:    dwords("by7", func(i int) int { return i % 4 * 7 }),
		by2:    dwords("by2", func(i int) int { return i * 2 }),
		by3:    dwords("by3", func(i int) int { return i/4*16 + i%4*3 }),
		by4:    dwords("by4", func(i int) int { return i * 4 }),
		toSign: dwords("toSign", func(i int) int { return i/4*16 + 15 }),
		first4: table("first4", 1, 16, func(i int) int { return i%8/4*8 + i%4 }),
		// IQ1_M's scale of group g: bits 3·(g%4) of number ⌊g/4⌋.
		scalesLow:   table("scalesLow", 8, 8, func(i int) int { return i/4*16 + i%4*3 }),
		scalesHigh:  table("scalesHigh", 8, 8, func(i int) int { return 32 + i/4*16 + i%4*3 }),
		one:         dword(1),
		two:         dword(2),
		seven:       dword(7),
		bits7:       dword(127),
		bit7:        dword(128),
		bits9:       dword(511),
		bit8:        dword(256),
		onesInBytes: dword(0x01010101),
		eighth:      float(1. / 8),
		quarter:     float(1. / 4),
	}
}

// Registers of words: levels are 64 bytes, index is the words' numbers and signs the bits of each eight columns, in dwords.
const (
	levelsReg = 10
	indexReg  = 11
	signsReg  = 12
	spareReg  = 13
)

func (u *unpacker) z(i int) reg.Register { return u.reg(i) }

// unit puts d, of float16 bits at offset 0, times step into register 4.
func (u *unpacker) unit(step operand.Op) {
	u.half16(0, 4)
	if step != nil {
		u.VMULPS_BCST(step, u.z(4), u.z(4))
	}
}

// odd puts the scales 2·sc + 1 of the eight dwords sc in y(r).
func (u *unpacker) odd(r, position int) {
	u.VPADDD(u.y(r), u.y(r), u.y(r))
	u.VPADDD_BCST(u.words.one, u.y(r), u.y(r))
	u.putScales(r, 4, position)
}

// nibbleScales sets the bytes of x(8) to 2·sc + 1 for the 4-bit numbers sc at offset, the low half first.
func (u *unpacker) nibbleScales(offset, bytes int) {
	if bytes == 8 {
		u.VMOVQ(at(u.src, offset), u.x(8))
	} else {
		u.VMOVD(at(u.src, offset), u.x(8))
	}
	u.VPSRLW(operand.U8(4), u.x(8), u.x(9))
	u.VPAND(u.fifteens, u.x(8), u.x(8))
	u.VPAND(u.fifteens, u.x(9), u.x(9))
	u.VPUNPCKLBW(u.x(9), u.x(8), u.x(8))
	u.VPADDB(u.x(8), u.x(8), u.x(8))
	u.VPADDB(u.ones, u.x(8), u.x(8))
}

// gather sets levels to those of 8 words of 8 columns, or 16 of 4, from the table.
func (u *unpacker) gather(width int) {
	u.KXNORW(reg.K1, reg.K1, reg.K1)
	u.VPXORD(u.z(levelsReg), u.z(levelsReg), u.z(levelsReg))
	if width == 8 {
		u.VPGATHERDQ(operand.Mem{Base: u.levelsOf, Index: u.y(indexReg), Scale: 8}, reg.K1, u.z(levelsReg))
	} else {
		u.VPGATHERDD(operand.Mem{Base: u.levelsOf, Index: u.z(indexReg), Scale: 4}, reg.K1, u.z(levelsReg))
	}
}

// evenSigns completes the seven bits of each dword of signs to eight of which an even number are set.
func (u *unpacker) evenSigns() {
	s, p := u.y(signsReg), u.y(spareReg)
	u.VPSRLD(operand.U8(4), s, p)
	u.VPXOR(s, p, p)
	for _, by := range []uint8{2, 1} {
		u.VPSRLD(operand.U8(by), p, u.y(14))
		u.VPXOR(u.y(14), p, p)
	}
	u.VPSLLD(operand.U8(7), p, p)
	u.VPANDD_BCST(u.words.bit7, p, p)
	u.VPOR(p, s, s)
}

// mask moves the low byte of each dword of signs to K2, a bit for each column.
func (u *unpacker) mask() {
	u.VPMOVDB(u.y(signsReg), u.x(spareReg))
	r := u.GP64()
	u.VMOVQ(u.x(spareReg), r)
	u.KMOVQ(r, reg.K2)
}

// negate turns the levels of K2's columns.
func (u *unpacker) negate() {
	u.VPXORD(u.z(spareReg), u.z(spareReg), u.z(spareReg))
	u.VPSUBB(u.z(levelsReg), u.z(spareReg), reg.K2, u.z(levelsReg))
}

// signs8 moves the eight bytes at offset to K2.
func (u *unpacker) signs8(offset int) {
	r := u.GP64()
	u.MOVQ(at(u.src, offset), r)
	u.KMOVQ(r, reg.K2)
}

// emit64 stores the levels of the 64 columns of a step, times the scales of their groups.
func (u *unpacker) emit64(step, group int) {
	for h := range 2 {
		for i := range 2 {
			u.VEXTRACTI32X4(operand.U8(uint8(2*h+i)), u.z(levelsReg), u.x(8+i))
		}
		lo := scaled{6, -1, -1}
		hi := lo
		if group == 16 {
			lo, hi = u.by16(2*step+h, false)
		} else {
			u.VBROADCASTSS(u.group(2*step+h), u.z(6))
		}
		u.emit(64*step+32*h, 8, 9, lo, hi)
	}
}

// twoGroups sets signs to 7·i bits of the dwords lo and hi of x(r), four times each.
func (u *unpacker) twoGroups(r int, lo, hi uint8) {
	u.VPSHUFD(operand.U8(lo*0x55), u.x(r), u.x(spareReg))
	u.VPSHUFD(operand.U8(hi*0x55), u.x(r), u.x(14))
	u.VINSERTI128(operand.U8(1), u.x(14), u.y(spareReg), u.y(signsReg))
	u.VPSRLVD(u.words.by7, u.y(signsReg), u.y(signsReg))
	u.VPANDD_BCST(u.words.bits7, u.y(signsReg), u.y(signsReg))
}

func (u *unpacker) iq2_XXS() {
	u.unit(u.words.eighth)
	u.Comment("A group's scale is the top of its eight bytes.")
	u.VMOVDQU64(at(u.src, 2), u.z(8))
	u.VPSRLQ(operand.U8(60), u.z(8), u.z(8))
	u.VPMOVQD(u.z(8), u.y(8))
	u.odd(8, 0)
	for s := range 4 {
		u.VMOVDQU(at(u.src, 2+16*s), u.x(signsReg))
		u.VPSHUFB(u.words.first4, u.x(signsReg), u.x(indexReg))
		u.VPMOVZXBD(u.x(indexReg), u.y(indexReg))
		u.twoGroups(signsReg, 1, 3)
		u.evenSigns()
		u.mask()
		u.gather(8)
		u.negate()
		u.emit64(s, 32)
	}
}

func (u *unpacker) iq2_XS() {
	u.unit(u.words.eighth)
	u.nibbleScales(66, 8)
	u.putScales16(8, 4, 0)
	for s := range 4 {
		u.VPMOVZXWD(at(u.src, 2+16*s), u.y(indexReg))
		u.VPSRLD(operand.U8(9), u.y(indexReg), u.y(signsReg))
		u.VPANDD_BCST(u.words.bits9, u.y(indexReg), u.y(indexReg))
		u.evenSigns()
		u.mask()
		u.gather(8)
		u.negate()
		u.emit64(s, 16)
	}
}

func (u *unpacker) iq2_S() {
	u.unit(u.words.eighth)
	u.nibbleScales(74, 8)
	u.putScales16(8, 4, 0)
	for s := range 4 {
		u.VPMOVZXBD(at(u.src, 2+8*s), u.y(indexReg))
		r := u.GP32()
		u.MOVWLZX(at(u.src, 66+2*s), r)
		u.VMOVD(r, u.x(spareReg))
		u.VPBROADCASTD(u.x(spareReg), u.y(spareReg))
		u.VPSRLVD(u.words.by2, u.y(spareReg), u.y(spareReg))
		u.VPAND(u.dwords3, u.y(spareReg), u.y(spareReg))
		u.VPSLLD(operand.U8(8), u.y(spareReg), u.y(spareReg))
		u.VPOR(u.y(spareReg), u.y(indexReg), u.y(indexReg))
		u.signs8(34 + 8*s)
		u.gather(8)
		u.negate()
		u.emit64(s, 16)
	}
}

func (u *unpacker) iq3_XXS() {
	u.unit(u.words.quarter)
	u.VMOVDQU(at(u.src, 66), u.y(8))
	u.VPSRLD(operand.U8(28), u.y(8), u.y(8))
	u.odd(8, 0)
	for s := range 4 {
		u.VPMOVZXBD(at(u.src, 2+16*s), u.z(indexReg))
		u.VMOVQ(at(u.src, 66+8*s), u.x(signsReg))
		u.twoGroups(signsReg, 0, 1)
		u.evenSigns()
		u.mask()
		u.gather(4)
		u.negate()
		u.emit64(s, 32)
	}
}

func (u *unpacker) iq3_S() {
	u.unit(nil)
	u.nibbleScales(106, 4)
	u.VPMOVZXBD(u.x(8), u.y(8))
	u.putScales(8, 4, 0)
	for s := range 4 {
		u.VPMOVZXBD(at(u.src, 2+16*s), u.z(indexReg))
		r := u.GP32()
		u.MOVWLZX(at(u.src, 66+2*s), r)
		u.KMOVW(r, reg.K1)
		u.VPORD_BCST(u.words.bit8, u.z(indexReg), reg.K1, u.z(indexReg))
		u.signs8(74 + 8*s)
		u.gather(4)
		u.negate()
		u.emit64(s, 32)
	}
}

// eighths adds an eighth to each level, 1 here, or takes it off where the dword of signs is not 0.
func (u *unpacker) eighths() {
	u.VPXOR(u.y(spareReg), u.y(spareReg), u.y(spareReg))
	u.VPSUBD(u.y(signsReg), u.y(spareReg), u.y(signsReg)) // 1 becomes all ones
	u.mask()
	u.VPBROADCASTD(u.words.onesInBytes, u.z(spareReg))
	u.VPADDB(u.z(spareReg), u.z(levelsReg), u.z(levelsReg))
	u.VPADDB(u.z(spareReg), u.z(spareReg), u.z(spareReg))
	u.VPSUBB(u.z(spareReg), u.z(levelsReg), reg.K2, u.z(levelsReg))
}

// high sets index to its bytes with the low three bits of the dwords of y(spare) above.
func (u *unpacker) high() {
	u.VPANDD_BCST(u.words.seven, u.y(spareReg), u.y(spareReg))
	u.VPSLLD(operand.U8(8), u.y(spareReg), u.y(spareReg))
	u.VPOR(u.y(spareReg), u.y(indexReg), u.y(indexReg))
}

func (u *unpacker) iq1_S() {
	u.unit(u.words.eighth)
	u.VPMOVZXWD(at(u.src, 34), u.y(8))
	u.VPSRLD(operand.U8(12), u.y(8), u.y(8))
	u.VPANDD_BCST(u.words.seven, u.y(8), u.y(8))
	u.odd(8, 0)
	for s := range 4 {
		u.VPMOVZXBD(at(u.src, 2+8*s), u.y(indexReg))
		u.VPBROADCASTD(at(u.src, 34+4*s), u.y(signsReg))
		u.VPSRLVD(u.words.by3, u.y(signsReg), u.y(spareReg))
		u.high()
		u.VPSRLVD(u.words.toSign, u.y(signsReg), u.y(signsReg))
		u.VPANDD_BCST(u.words.one, u.y(signsReg), u.y(signsReg))
		u.gather(8)
		u.eighths()
		u.emit64(s, 32)
	}
}

func (u *unpacker) iq1_M() {
	u.Comment("d is the top four bits of each of the four numbers.")
	all, part, d := u.GP64(), u.GP64(), u.GP64()
	u.MOVQ(at(u.src, 48), all)
	u.XORQ(d, d)
	for i := range 4 {
		u.MOVQ(all, part)
		u.SHRQ(operand.U8(uint8(12+12*i)), part)
		u.ANDQ(operand.U32(15<<(4*i)), part)
		u.ORQ(part, d)
	}
	u.VMOVQ(d, u.x(4))
	u.VPBROADCASTW(u.x(4), u.y(4))
	u.VCVTPH2PS(u.y(4), u.z(4))
	u.VMULPS_BCST(u.words.eighth, u.z(4), u.z(4))
	for i, shifts := range []operand.Mem{u.words.scalesLow, u.words.scalesHigh} {
		u.VPBROADCASTQ(at(u.src, 48), u.z(8))
		u.VPSRLVQ(shifts, u.z(8), u.z(8))
		u.VPMOVQD(u.z(8), u.y(8))
		u.VPANDD_BCST(u.words.seven, u.y(8), u.y(8))
		u.odd(8, 8*i)
	}
	for s := range 4 {
		u.VPMOVZXBD(at(u.src, 8*s), u.y(indexReg))
		u.VPBROADCASTD(at(u.src, 32+4*s), u.y(signsReg))
		u.VPSRLVD(u.words.by4, u.y(signsReg), u.y(signsReg))
		u.VMOVDQA(u.y(signsReg), u.y(spareReg))
		u.high()
		u.VPSRLD(operand.U8(3), u.y(signsReg), u.y(signsReg))
		u.VPANDD_BCST(u.words.one, u.y(signsReg), u.y(signsReg))
		u.gather(8)
		u.eighths()
		u.emit64(s, 16)
	}
}
