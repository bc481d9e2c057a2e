package main

import (
	"math"
	"slices"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// blockType is a format that unpackers decode.
type blockType struct {
	name           string
	weights, bytes int // of a block
	block          func(u *unpacker)
}

var blockTypes = []blockType{
	{"F16", 32, 64, (*unpacker).f16},
	{"BF16", 32, 64, (*unpacker).bf16},
	{"Q8_0", 32, 34, (*unpacker).q8_0},
	{"Q4_0", 32, 18, func(u *unpacker) { u.q4(2, u.minus8, u.floats16.q4_0, false) }},
	{"Q4_1", 32, 20, func(u *unpacker) { u.q4(4, nil, u.floats16.q4_K, true) }},
	{"Q5_0", 32, 22, func(u *unpacker) { u.q5(2, u.minus16, false) }},
	{"Q5_1", 32, 24, func(u *unpacker) { u.q5(4, nil, true) }},
	{"IQ4_NL", 32, 18, func(u *unpacker) { u.q4(2, u.iq4, u.floats16.iq4, false) }},
	{"Q2_K", 256, 84, (*unpacker).q2_K},
	{"Q3_K", 256, 110, (*unpacker).q3_K},
	{"Q4_K", 256, 144, func(u *unpacker) { u.q45_K(false) }},
	{"Q5_K", 256, 176, func(u *unpacker) { u.q45_K(true) }},
	{"Q6_K", 256, 210, (*unpacker).q6_K},
	{"IQ4_XS", 256, 136, (*unpacker).iq4_XS},
	{"MXFP4", 32, 17, (*unpacker).mxfp4},
	{"NVFP4", 64, 36, (*unpacker).nvfp4},
	{"TQ1_0", 256, 54, (*unpacker).tq1_0},
	{"TQ2_0", 256, 66, (*unpacker).tq2_0},
	{"Q1_0", 128, 18, (*unpacker).q1_0},
	{"Q2_0", 64, 18, (*unpacker).q2_0},
}

// unpack writes the decoders of block types: to float32 in AVX2 and AVX-512, bit for bit what the plain decoders of
// formats/ggml give, and to those values rounded to bfloat16. formats/ggml documents the layouts.
func unpack(g *gen) {
	c, l := g.constants(), g.levels16()
	words := g.wordConstants()
	for _, t := range append(slices.Clone(blockTypes), wordTypes...) {
		ofWords := slices.ContainsFunc(wordTypes, func(w blockType) bool { return w.name == t.name })
		for _, v := range []struct {
			isa
			half bool
		}{{avx2, false}, {avx512, false}, {avx512, true}} {
			name := "unpack" + t.name + v.name
			what := "decodes n > 0 blocks into float32 values."
			if t.weights == 32 && t.bytes == 64 {
				what = "decodes n > 0 runs of 32 weights into float32 values."
			}
			if v.half {
				if t.name == "BF16" {
					continue // nothing to do
				}
				name = "unpack" + t.name + "BF16"
				what = what[:len(what)-len("float32 values.")] + "bfloat16 values."
			}
			signature := "func(dst, src *byte, n int)"
			if ofWords {
				if v.isa == avx2 {
					continue
				}
				signature = "func(dst, src *byte, n int, table *byte)"
				what += " table holds the levels of each word, a byte each."
			}
			g.function(name, signature, what)
			u := &unpacker{gen: g, constants: c, isa: v.isa, half: v.half, floats16: l, words: words, dst: g.gp("dst"), src: g.gp("src")}
			n := g.gp("n")
			if ofWords {
				u.levelsOf = g.gp("table")
			}
			if t.weights > 32 {
				u.scales = g.AllocLocal(128)
			}
			g.Label("block")
			t.block(u)
			size := 4
			if v.half {
				size = 2
			}
			g.ADDQ(operand.I32(int32(t.bytes)), u.src)
			g.ADDQ(operand.I32(int32(t.weights*size)), u.dst)
			g.DECQ(n)
			g.JNZ(operand.LabelRef("block"))
			g.VZEROUPPER()
			g.RET()
		}
	}
}

// unpacker decodes blocks. Registers 0 to 3 belong to emit, 4 to 7 hold scales and minima, the others codes.
type unpacker struct {
	*gen
	constants
	isa
	half     bool     // bfloat16 output
	floats16 levels16 // with half
	dst, src reg.Register
	words    *wordConstants
	levelsOf reg.Register  // a table of words
	levels   *levelsOutput // where not nil, output as levels and scales
	product  func(at int)  // where not nil, takes the 32 float32 values from position at on instead of memory
	scales   operand.Mem   // 32 float32: scales of up to 16 groups, then their minima
}

// constants are 32 bytes each.
type constants struct {
	ones, threes, fifteens, sixteens, thirtyTwos, fortyEights, fours, eights operand.Mem // in every byte
	spread, bits                                                             operand.Mem // for expand
	iq4Levels, shifts2, shifts4, dwords3, dwords15, dwords32                 operand.Mem
	twos, lowBytes, e2m1Levels, e4m3Bits, e4m3Unit                           operand.Mem
}

func (g *gen) constants() constants {
	fill := func(name string, f func(i int) byte) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		for i := 0; i < 32; i += 8 {
			var v uint64
			for j := range 8 {
				v |= uint64(f(i+j)) << (8 * j)
			}
			g.AddDatum(i, operand.U64(v))
		}
		return m
	}
	all := func(name string, v byte) operand.Mem { return fill(name, func(int) byte { return v }) }
	dwords := func(name string, f func(i int) byte) operand.Mem {
		return fill(name, func(i int) byte {
			if i%4 > 0 {
				return 0
			}
			return f(i / 4)
		})
	}
	return constants{
		ones: all("ones", 1), threes: all("threes", 3), fours: all("fours", 4), eights: all("eights", 8),
		fifteens: all("fifteens", 15), sixteens: all("sixteens", 16), thirtyTwos: all("thirtyTwos", 32),
		fortyEights: all("fortyEights", 48),
		spread:      fill("spread", func(i int) byte { return byte(i / 8) }),
		bits:        fill("bits", func(i int) byte { return 1 << (i % 8) }),
		iq4Levels:   fill("iq4Levels", func(i int) byte { return byte(iq4Levels[i%16]) }),
		shifts2:     dwords("shifts2", func(i int) byte { return byte(2 * i) }),
		shifts4:     dwords("shifts4", func(i int) byte { return byte(4 * i) }),
		dwords3:     dwords("dwords3", func(int) byte { return 3 }),
		dwords15:    dwords("dwords15", func(int) byte { return 15 }),
		dwords32:    dwords("dwords32", func(int) byte { return 32 }),
		twos:        all("twos", 2),
		lowBytes:    fill("lowBytes", func(i int) byte { return byte(i%2) - 1 }),
		e2m1Levels:  fill("e2m1Levels", func(i int) byte { return byte(e2m1Levels[i%16]) }),
		e4m3Bits:    dwords("e4m3Bits", func(int) byte { return 127 }),
		e4m3Unit:    fill("e4m3Unit", func(i int) byte { return []byte{0, 0, 0, 0x7b}[i%4] }), // 2¹¹⁹
	}
}

// iq4Levels are those of IQ4_NL and IQ4_XS.
var iq4Levels = [16]int8{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// levels16 are the levels of four-bit codes in float32.
type levels16 struct{ q4_K, q4_0, iq4 operand.Mem }

func (g *gen) levels16() levels16 {
	return levels16{
		q4_K: g.floats("levels", func(i int) float32 { return float32(i) }),
		q4_0: g.floats("levels8", func(i int) float32 { return float32(i - 8) }),
		iq4:  g.floats("iq4Floats", func(i int) float32 { return float32(iq4Levels[i]) }),
	}
}

// floats is a vector of 16 float32 constants.
func (g *gen) floats(name string, f func(i int) float32) operand.Mem {
	m := g.StaticGlobal(name)
	g.DataAttributes(rodata)
	for i := range 16 {
		g.AddDatum(4*i, operand.U32(math.Float32bits(f(i))))
	}
	return m
}

func (u *unpacker) x(i int) reg.Register {
	return reg.LookupPhysical(reg.KindVector, reg.Index(i), reg.S128)
}
func (u *unpacker) y(i int) reg.Register {
	return reg.LookupPhysical(reg.KindVector, reg.Index(i), reg.S256)
}

// scaled says how codes become weights: level·scale, then minus or plus a register; −1 for none.
type scaled struct{ scale, minus, plus int }

// emit stores 32 weights from position at on: the signed bytes of X registers lo and hi.
func (u *unpacker) emit(at, lo, hi int, slo, shi scaled) {
	if u.levels != nil {
		u.putLevels(at, lo, hi, slo, shi)
		return
	}
	finish := func(r int, s scaled) {
		u.VCVTDQ2PS(u.reg(r), u.reg(r))
		u.VMULPS(u.reg(s.scale), u.reg(r), u.reg(r))
		if s.minus >= 0 {
			u.VSUBPS(u.reg(s.minus), u.reg(r), u.reg(r))
		}
		if s.plus >= 0 {
			u.VADDPS(u.reg(s.plus), u.reg(r), u.reg(r))
		}
	}
	for h, s := range []scaled{slo, shi} {
		codes := []int{lo, hi}[h]
		if u.bytes == 64 {
			u.VPMOVSXBD(u.x(codes), u.reg(h))
			finish(h, s)
			continue
		}
		u.VPMOVSXBD(u.x(codes), u.reg(2*h))
		u.VPSHUFD(operand.U8(0xee), u.x(codes), u.x(codes))
		u.VPMOVSXBD(u.x(codes), u.reg(2*h+1))
		finish(2*h, s)
		finish(2*h+1, s)
	}
	u.put(at)
}

// put stores the 32 float32 values of registers 0 and up.
func (u *unpacker) put(position int) {
	if u.product != nil {
		u.product(position)
		return
	}
	if u.half {
		u.vcvtne2ps2bf16(u.reg(0), u.reg(1), u.reg(2))
		u.VMOVUPS(u.reg(2), at(u.dst, 2*position))
		return
	}
	for i := range 128 / u.bytes {
		u.VMOVUPS(u.reg(i), at(u.dst, 4*position+i*u.bytes))
	}
}

// half16 fills vector register r with the float16 value at offset.
func (u *unpacker) half16(offset, r int) {
	if u.bytes == 64 {
		u.VPBROADCASTW(at(u.src, offset), u.y(r))
		u.VCVTPH2PS(u.y(r), u.reg(r))
	} else {
		u.VPBROADCASTW(at(u.src, offset), u.x(r))
		u.VCVTPH2PS(u.x(r), u.reg(r))
	}
}

func (u *unpacker) f16() {
	for i := range 128 / u.bytes {
		u.VCVTPH2PS(at(u.src, i*u.bytes/2), u.reg(i))
	}
	u.put(0)
}

func (u *unpacker) bf16() {
	for i := range 128 / u.bytes {
		u.VPMOVZXWD(at(u.src, i*u.bytes/2), u.reg(i))
		u.VPSLLD(operand.U8(16), u.reg(i), u.reg(i))
	}
	u.put(0)
}

func (u *unpacker) q8_0() {
	u.half16(0, 4)
	u.VMOVDQU(at(u.src, 2), u.x(8))
	u.VMOVDQU(at(u.src, 18), u.x(9))
	s := scaled{4, -1, -1}
	u.emit(0, 8, 9, s, s)
}

// nibbles sets X register lo to the low and hi to the high halves of the 16 bytes at offset.
func (u *unpacker) nibbles(offset, lo, hi int) {
	u.VMOVDQU(at(u.src, offset), u.x(lo))
	u.VPSRLW(operand.U8(4), u.x(lo), u.x(hi))
	u.VPAND(u.fifteens, u.x(lo), u.x(lo))
	u.VPAND(u.fifteens, u.x(hi), u.x(hi))
}

// headed reads a 32-weight block's scale, and its additive minimum if it has one.
func (u *unpacker) headed(minimum bool) scaled {
	u.half16(0, 4)
	if !minimum {
		return scaled{4, -1, -1}
	}
	u.half16(2, 5)
	return scaled{4, -1, 5}
}

func (u *unpacker) minus8(r int)  { u.VPSUBB(u.eights, u.x(r), u.x(r)) }
func (u *unpacker) minus16(r int) { u.VPSUBB(u.sixteens, u.x(r), u.x(r)) }

// iq4 replaces codes by levels.
func (u *unpacker) iq4(r int) {
	u.VMOVDQU(u.iq4Levels, u.x(12))
	u.VPSHUFB(u.x(r), u.x(12), u.x(r))
}

// table sets r to the 16 weights that codes of one scale stand for, in bfloat16, twice. It uses register 0.
func (u *unpacker) table(levels operand.Mem, s scaled, r int) {
	u.VMULPS(levels, u.reg(s.scale), u.reg(0))
	if s.minus >= 0 {
		u.VSUBPS(u.reg(s.minus), u.reg(0), u.reg(0))
	}
	if s.plus >= 0 {
		u.VADDPS(u.reg(s.plus), u.reg(0), u.reg(0))
	}
	u.vcvtne2ps2bf16(u.reg(0), u.reg(0), u.reg(r))
}

// look16 stores 32 weights from position on: those of the low, then those of the high halves of the 16 bytes at offset.
func (u *unpacker) look16(offset, position int, levels operand.Mem, s scaled) {
	u.table(levels, s, 1)
	u.Comment("Of an index, VPERMW reads the low four bits.")
	u.VPMOVZXBW(at(u.src, offset), u.y(2))
	u.VPSRLW(operand.U8(4), u.y(2), u.y(3))
	for h := range 2 {
		u.VPERMW(u.y(1), u.y(2+h), u.y(2+h))
		u.VMOVDQU(u.y(2+h), at(u.dst, 2*position+32*h))
	}
}

// look32 does so for 64 weights of 32 bytes, with a scale for each half.
func (u *unpacker) look32(offset, position int, levels operand.Mem, s [2]scaled) {
	u.Comment("Of an index, VPERMW reads the low five bits; the table holds its weights twice.")
	u.VPMOVZXBW(at(u.src, offset), u.reg(2))
	u.VPSRLW(operand.U8(4), u.reg(2), u.reg(3))
	for h := range 2 {
		u.table(levels, s[h], 1)
		u.VPERMW(u.reg(1), u.reg(2+h), u.reg(2+h))
		u.VMOVDQU64(u.reg(2+h), at(u.dst, 2*position+64*h))
	}
}

// q4 decodes Q4_0 and its like; header is the offset of qs. adjust turns codes into their levels; levels are all 16.
func (u *unpacker) q4(header int, adjust func(r int), levels operand.Mem, minimum bool) {
	s := u.headed(minimum)
	if u.half {
		u.look16(header, 0, levels, s)
		return
	}
	u.nibbles(header, 8, 9)
	if adjust != nil {
		adjust(8)
		adjust(9)
	}
	u.emit(0, 8, 9, s, s)
}

// q5 decodes Q5_0 and Q5_1.
func (u *unpacker) q5(header int, adjust func(r int), minimum bool) {
	s := u.headed(minimum)
	u.nibbles(header+4, 8, 9)
	u.Comment("Bit 4 of each weight: its byte of qh, its bit of that byte.")
	u.VPBROADCASTD(at(u.src, header), u.y(10))
	u.VPSHUFB(u.spread, u.y(10), u.y(10))
	u.VMOVDQU(u.bits, u.y(11))
	u.VPAND(u.y(11), u.y(10), u.y(10))
	u.VPCMPEQB(u.y(11), u.y(10), u.y(10))
	u.VPAND(u.sixteens, u.y(10), u.y(10))
	u.VEXTRACTI128(operand.U8(1), u.y(10), u.x(11))
	for i := range 2 {
		u.VPOR(u.x(10+i), u.x(8+i), u.x(8+i))
		if adjust != nil {
			adjust(8 + i)
		}
	}
	u.emit(0, 8, 9, s, s)
}

// group is where scale or minimum i waits, as putScales left them.
func (u *unpacker) group(i int) operand.Mem { return u.scales.Offset(4 * i) }

// putScales stores float32(sc)·d for the eight bytes, or dwords, that y(r) holds after widening.
func (u *unpacker) putScales(r, d, position int) {
	u.VCVTDQ2PS(u.y(r), u.y(r))
	u.VMULPS(u.y(d), u.y(r), u.y(r))
	u.VMOVUPS(u.y(r), u.group(position))
}

// putScales16 does so for the 16 signed bytes of x(r).
func (u *unpacker) putScales16(r, d, position int) {
	u.VPMOVSXBD(u.x(r), u.y(0))
	u.VPSHUFD(operand.U8(0xee), u.x(r), u.x(1))
	u.VPMOVSXBD(u.x(1), u.y(1))
	u.putScales(0, d, position)
	u.putScales(1, d, position+8)
}

// scaleMin6 puts the eight scales and minima of Q4_K and Q5_K, times registers 4 and 5.
func (u *unpacker) scaleMin6() {
	a, b, c, t := u.GP32(), u.GP32(), u.GP32(), u.GP32()
	u.MOVL(at(u.src, 4), a)
	u.MOVL(at(u.src, 8), b)
	u.MOVL(at(u.src, 12), c)
	// The first four numbers are the low six bits of a (or b), the last four the low (or high) halves of c with the top
	// two bits of a (or b) above.
	for i, w := range []reg.Register{a, b} {
		u.MOVL(w, t)
		u.ANDL(operand.U32(0x3f3f3f3f), t)
		u.VMOVD(t, u.x(8+i))
		u.SHRL(operand.U8(2), w)
		u.ANDL(operand.U32(0x30303030), w)
		u.MOVL(c, t)
		if i == 1 {
			u.SHRL(operand.U8(4), t)
		}
		u.ANDL(operand.U32(0x0f0f0f0f), t)
		u.ORL(t, w)
		u.VPINSRD(operand.U8(1), w, u.x(8+i), u.x(8+i))
		u.VPMOVZXBD(u.x(8+i), u.y(8+i))
		u.putScales(8+i, 4+i, 16*i)
	}
}

// q45_K decodes Q4_K and Q5_K.
func (u *unpacker) q45_K(five bool) {
	u.half16(0, 4)
	u.half16(2, 5)
	u.scaleMin6()
	qs := 16
	if five {
		qs = 48
		u.VMOVDQU(at(u.src, 16), u.x(12))
		u.VMOVDQU(at(u.src, 32), u.x(13))
	}
	s := scaled{6, 7, -1}
	if u.half && !five {
		for p := range 4 {
			for h := range 2 {
				u.VBROADCASTSS(u.group(2*p+h), u.reg(6+2*h))
				u.VBROADCASTSS(u.group(16+2*p+h), u.reg(7+2*h))
			}
			u.look32(qs+32*p, 64*p, u.floats16.q4_K, [2]scaled{{6, 7, -1}, {8, 9, -1}})
		}
		return
	}
	for p := range 4 {
		u.nibbles(qs+32*p, 8, 10)
		u.nibbles(qs+32*p+16, 9, 11)
		for h := range 2 {
			group, lo, hi := 2*p+h, 8+2*h, 9+2*h
			if five {
				for i := range 2 {
					u.bitsTo(12+i, group, 4, u.sixteens, 14)
					u.VPOR(u.x(14), u.x(lo+i), u.x(lo+i))
				}
			}
			u.VBROADCASTSS(u.group(group), u.reg(6))
			u.VBROADCASTSS(u.group(16+group), u.reg(7))
			u.emit(32*group, lo, hi, s, s)
		}
	}
}

// bitsTo sets x(t) to the bytes of x(r) with bit from moved to bit to, and all bits that mask has not cleared.
func (u *unpacker) bitsTo(r, from, to int, mask operand.Mem, t int) {
	switch {
	case from > to:
		u.VPSRLW(operand.U8(uint8(from-to)), u.x(r), u.x(t))
		u.VPAND(mask, u.x(t), u.x(t))
	case from < to:
		u.VPSLLW(operand.U8(uint8(to-from)), u.x(r), u.x(t))
		u.VPAND(mask, u.x(t), u.x(t))
	default:
		u.VPAND(mask, u.x(r), u.x(t))
	}
}

// by16 loads the scales, and minima if there are any, of groups 2·i and 2·i+1, 16 weights each.
func (u *unpacker) by16(i int, minima bool) (lo, hi scaled) {
	u.VBROADCASTSS(u.group(2*i), u.reg(4))
	u.VBROADCASTSS(u.group(2*i+1), u.reg(6))
	if !minima {
		return scaled{4, -1, -1}, scaled{6, -1, -1}
	}
	u.VBROADCASTSS(u.group(16+2*i), u.reg(5))
	u.VBROADCASTSS(u.group(16+2*i+1), u.reg(7))
	return scaled{4, 5, -1}, scaled{6, 7, -1}
}

func (u *unpacker) q2_K() {
	u.half16(80, 4)
	u.half16(82, 5)
	u.nibbles(0, 8, 9)
	u.putScales16(8, 4, 0)
	u.putScales16(9, 5, 16)
	for i := range 8 {
		if i%4 == 0 {
			u.VMOVDQU(at(u.src, 16+32*(i/4)), u.x(12))
			u.VMOVDQU(at(u.src, 32+32*(i/4)), u.x(13))
		}
		u.bitsTo(12, 2*(i%4), 0, u.threes, 8)
		u.bitsTo(13, 2*(i%4), 0, u.threes, 9)
		lo, hi := u.by16(i, true)
		u.emit(32*i, 8, 9, lo, hi)
	}
}

func (u *unpacker) q3_K() {
	u.half16(108, 4)
	a, b, c, t, h := u.GP32(), u.GP32(), u.GP32(), u.GP32(), u.GP32()
	u.MOVL(at(u.src, 96), a)
	u.MOVL(at(u.src, 100), b)
	u.MOVL(at(u.src, 104), c)
	for i := range 4 {
		u.MOVL([]reg.Register{a, b}[i%2], t)
		if i >= 2 {
			u.SHRL(operand.U8(4), t)
		}
		u.ANDL(operand.U32(0x0f0f0f0f), t)
		u.MOVL(c, h)
		if i > 0 {
			u.SHRL(operand.U8(uint8(2*i)), h)
		}
		u.ANDL(operand.U32(0x03030303), h)
		u.SHLL(operand.U8(4), h)
		u.ORL(h, t)
		if i == 0 {
			u.VMOVD(t, u.x(8))
		} else {
			u.VPINSRD(operand.U8(uint8(i)), t, u.x(8), u.x(8))
		}
	}
	u.VPSUBB(u.thirtyTwos, u.x(8), u.x(8))
	u.putScales16(8, 4, 0)
	u.VMOVDQU(at(u.src, 0), u.x(10))
	u.VMOVDQU(at(u.src, 16), u.x(11))
	for i := range 8 {
		if i%4 == 0 {
			u.VMOVDQU(at(u.src, 32+32*(i/4)), u.x(12))
			u.VMOVDQU(at(u.src, 48+32*(i/4)), u.x(13))
		}
		for h := range 2 {
			u.bitsTo(12+h, 2*(i%4), 0, u.threes, 8+h)
			u.bitsTo(10+h, i, 2, u.fours, 14)
			u.VPOR(u.x(14), u.x(8+h), u.x(8+h))
			u.VPSUBB(u.fours, u.x(8+h), u.x(8+h))
		}
		lo, hi := u.by16(i, false)
		u.emit(32*i, 8, 9, lo, hi)
	}
}

func (u *unpacker) q6_K() {
	u.half16(208, 4)
	u.VMOVDQU(at(u.src, 192), u.x(8))
	u.putScales16(8, 4, 0)
	for i := range 8 {
		half, chunk := i/4, i%4
		if chunk == 0 {
			u.VMOVDQU(at(u.src, 128+32*half), u.x(12))
			u.VMOVDQU(at(u.src, 144+32*half), u.x(13))
		}
		for h := range 2 {
			u.VMOVDQU(at(u.src, 64*half+32*(chunk%2)+16*h), u.x(10))
			u.bitsTo(10, 4*(chunk/2), 0, u.fifteens, 8+h)
			u.bitsTo(12+h, 2*chunk, 4, u.fortyEights, 14)
			u.VPOR(u.x(14), u.x(8+h), u.x(8+h))
			u.VPSUBB(u.thirtyTwos, u.x(8+h), u.x(8+h))
		}
		lo, hi := u.by16(i, false)
		u.emit(32*i, 8, 9, lo, hi)
	}
}

func (u *unpacker) iq4_XS() {
	u.half16(0, 4)
	t := u.GP32()
	u.Comment("Group g: bits 4g of scales_l, bits 2g of scales_h.")
	u.VPBROADCASTD(at(u.src, 4), u.y(8))
	u.VPSRLVD(u.shifts4, u.y(8), u.y(8))
	u.VPAND(u.dwords15, u.y(8), u.y(8))
	u.MOVWLZX(at(u.src, 2), t)
	u.VMOVD(t, u.x(9))
	u.VPBROADCASTD(u.x(9), u.y(9))
	u.VPSRLVD(u.shifts2, u.y(9), u.y(9))
	u.VPAND(u.dwords3, u.y(9), u.y(9))
	u.VPSLLD(operand.U8(4), u.y(9), u.y(9))
	u.VPOR(u.y(9), u.y(8), u.y(8))
	u.VPSUBD(u.dwords32, u.y(8), u.y(8))
	u.putScales(8, 4, 0)
	s := scaled{6, -1, -1}
	for g := range 8 {
		u.VBROADCASTSS(u.group(g), u.reg(6))
		if u.half {
			u.look16(8+16*g, 32*g, u.floats16.iq4, s)
			continue
		}
		u.nibbles(8+16*g, 8, 9)
		u.iq4(8)
		u.iq4(9)
		u.emit(32*g, 8, 9, s, s)
	}
}
