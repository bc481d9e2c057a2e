package main

import "github.com/mmcloughlin/avo/operand"

// Types of four-bit floating-point numbers, and of two bits and fewer.

// e2m1Levels are those of MXFP4 and NVFP4, doubled.
var e2m1Levels = [16]int8{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// e2m1 replaces codes by levels.
func (u *unpacker) e2m1(r int) {
	u.VMOVDQU(u.e2m1Levels, u.x(12))
	u.VPSHUFB(u.x(r), u.x(12), u.x(r))
}

// broadcast fills register r with the float32 value whose bits are in a general register.
func (u *unpacker) broadcast(from operand.Op, r int) {
	u.VMOVD(from, u.x(r))
	u.VBROADCASTSS(u.x(r), u.reg(r))
}

// mxfp4 has one scale, half of 2^(e−127): from e = 2 on a float32 with e−1 for an exponent, below subnormal.
func (u *unpacker) mxfp4() {
	e, bits, small := u.GP32(), u.GP32(), u.GP32()
	u.MOVBLZX(at(u.src, 0), e)
	u.LEAL(operand.Mem{Base: e, Disp: -1}, bits)
	u.SHLL(operand.U8(23), bits)
	u.MOVL(e, small)
	u.INCL(small)
	u.SHLL(operand.U8(21), small) // 2⁻¹²⁸ for 0, 2⁻¹²⁷ for 1
	u.CMPL(e, operand.U8(2))
	u.CMOVLCS(small, bits)
	u.broadcast(bits, 4)
	u.nibbles(1, 8, 9)
	u.e2m1(8)
	u.e2m1(9)
	s := scaled{4, -1, -1}
	u.emit(0, 8, 9, s, s)
}

// nvfp4 has four groups of 16, whose scales are E4M3: exponent and fraction in a float32's place, times 2¹¹⁹ for the halves of
// their values. 127 is no number, and 0.
func (u *unpacker) nvfp4() {
	u.VPMOVZXBD(at(u.src, 0), u.x(8))
	u.VPCMPEQD(u.e4m3Bits, u.x(8), u.x(9))
	u.VPAND(u.e4m3Bits, u.x(8), u.x(8))
	u.VPSLLD(operand.U8(20), u.x(8), u.x(8))
	u.VMULPS(u.e4m3Unit, u.x(8), u.x(8))
	u.VPANDN(u.x(8), u.x(9), u.x(8))
	u.VMOVUPS(u.x(8), u.group(0))
	for i := range 2 {
		u.Comment("Eight bytes are a group: low halves, then high halves.")
		u.nibbles(4+16*i, 10, 11)
		u.VPUNPCKLQDQ(u.x(11), u.x(10), u.x(8))
		u.VPUNPCKHQDQ(u.x(11), u.x(10), u.x(9))
		u.e2m1(8)
		u.e2m1(9)
		lo, hi := u.by16(i, false)
		u.emit(32*i, 8, 9, lo, hi)
	}
}

// digit sets the bytes of x(to) to the first of the ternary digits of the 16 fractions in the words of y(r), less 1, and moves
// on to the next.
func (u *unpacker) digit(r, to int) {
	u.VPADDW(u.y(r), u.y(r), u.y(7))
	u.VPADDW(u.y(7), u.y(r), u.y(r))
	u.VPSRLW(operand.U8(8), u.y(r), u.y(7))
	u.VPAND(u.lowBytes, u.y(r), u.y(r))
	u.VEXTRACTI128(operand.U8(1), u.y(7), u.x(to))
	u.VPACKUSWB(u.x(to), u.x(7), u.x(to))
	u.VPSUBB(u.ones, u.x(to), u.x(to))
}

func (u *unpacker) tq1_0() {
	u.half16(52, 4)
	s := scaled{4, -1, -1}
	u.VPMOVZXBW(at(u.src, 0), u.y(10))
	u.VPMOVZXBW(at(u.src, 16), u.y(11))
	for n := range 5 {
		u.digit(10, 8)
		u.digit(11, 9)
		u.emit(32*n, 8, 9, s, s)
	}
	u.VPMOVZXBW(at(u.src, 32), u.y(10))
	for n := range 2 {
		u.digit(10, 8)
		u.digit(10, 9)
		u.emit(160+32*n, 8, 9, s, s)
	}
	u.digit(10, 8)
	u.Comment("The last 16 weights: four digits of four bytes.")
	u.VMOVD(at(u.src, 48), u.x(10))
	u.VPMOVZXBW(u.x(10), u.y(10))
	u.digit(10, 9)
	u.digit(10, 13)
	u.VPUNPCKLDQ(u.x(13), u.x(9), u.x(9))
	u.digit(10, 13)
	u.digit(10, 14)
	u.VPUNPCKLDQ(u.x(14), u.x(13), u.x(13))
	u.VPUNPCKLQDQ(u.x(13), u.x(9), u.x(9))
	u.emit(224, 8, 9, s, s)
}

func (u *unpacker) tq2_0() {
	u.half16(64, 4)
	s := scaled{4, -1, -1}
	for i := range 8 {
		if i%4 == 0 {
			u.VMOVDQU(at(u.src, 32*(i/4)), u.x(12))
			u.VMOVDQU(at(u.src, 16+32*(i/4)), u.x(13))
		}
		for h := range 2 {
			u.bitsTo(12+h, 2*(i%4), 0, u.threes, 8+h)
			u.VPSUBB(u.ones, u.x(8+h), u.x(8+h))
		}
		u.emit(32*i, 8, 9, s, s)
	}
}

// q1_0's levels are −1 and 1, q2_0's −1 to 2.
func (u *unpacker) q1_0() {
	u.half16(0, 4)
	s := scaled{4, -1, -1}
	for i := range 4 {
		u.VPBROADCASTD(at(u.src, 2+4*i), u.y(10))
		u.VPSHUFB(u.spread, u.y(10), u.y(10))
		u.VMOVDQU(u.bits, u.y(11))
		u.VPAND(u.y(11), u.y(10), u.y(10))
		u.VPCMPEQB(u.y(11), u.y(10), u.y(10)) // −1 where the bit is set
		u.VPAND(u.twos, u.y(10), u.y(10))
		u.VPSUBB(u.ones, u.y(10), u.y(10))
		u.VMOVDQA(u.x(10), u.x(8))
		u.VEXTRACTI128(operand.U8(1), u.y(10), u.x(9))
		u.emit(32*i, 8, 9, s, s)
	}
}

func (u *unpacker) q2_0() {
	u.half16(0, 4)
	s := scaled{4, -1, -1}
	for i := range 2 {
		u.Comment("A byte in each dword holds four weights, from its lowest bits on.")
		for h := range 2 {
			u.VPMOVZXBD(at(u.src, 2+8*i+4*h), u.x(8+h))
			u.VMOVDQA(u.x(8+h), u.x(10))
			for k := 1; k < 4; k++ {
				u.VPSLLD(operand.U8(uint8(6*k)), u.x(10), u.x(11)) // bits 2k to bits 8k
				u.VPOR(u.x(11), u.x(8+h), u.x(8+h))
			}
			u.VPAND(u.threes, u.x(8+h), u.x(8+h))
			u.VPSUBB(u.ones, u.x(8+h), u.x(8+h))
		}
		u.emit(32*i, 8, 9, s, s)
	}
}
