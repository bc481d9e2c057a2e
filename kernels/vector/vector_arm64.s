//go:build !purego

#include "textflag.h"

// Operands are in Go's order: VFMLA Vm, Vn, Vd is Vd += Vn·Vm.

// func dotNEON(a, b *float32, n int) float32
TEXT ·dotNEON(SB), NOSPLIT, $0-28
	MOVD a+0(FP), R0
	MOVD b+8(FP), R1
	MOVD n+16(FP), R2
	VEOR V0.B16, V0.B16, V0.B16
	VEOR V1.B16, V1.B16, V1.B16
	VEOR V2.B16, V2.B16, V2.B16
	VEOR V3.B16, V3.B16, V3.B16

part:
	VLD1.P 64(R0), [V4.S4, V5.S4, V6.S4, V7.S4]
	VLD1.P 64(R1), [V16.S4, V17.S4, V18.S4, V19.S4]
	VFMLA V16.S4, V4.S4, V0.S4
	VFMLA V17.S4, V5.S4, V1.S4
	VFMLA V18.S4, V6.S4, V2.S4
	VFMLA V19.S4, V7.S4, V3.S4
	SUBS $16, R2, R2
	BNE part

	// The assembler has no VFADD: a sum is a VFMLA with ones.
	FMOVS $1.0, F20
	VDUP V20.S[0], V20.S4
	VFMLA V20.S4, V1.S4, V0.S4
	VFMLA V20.S4, V3.S4, V2.S4
	VFMLA V20.S4, V2.S4, V0.S4
	VDUP V0.S[1], V1.S4
	VDUP V0.S[2], V2.S4
	VDUP V0.S[3], V3.S4
	FADDS F1, F0, F0
	FADDS F3, F2, F2
	FADDS F2, F0, F0
	FMOVS F0, ret+24(FP)
	RET

// func axpyNEON(dst, x *float32, n int, alpha float32)
TEXT ·axpyNEON(SB), NOSPLIT, $0-28
	MOVD dst+0(FP), R0
	MOVD x+8(FP), R1
	MOVD n+16(FP), R2
	FMOVS alpha+24(FP), F20
	VDUP V20.S[0], V20.S4

part:
	VLD1 (R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	VFMLA V20.S4, V4.S4, V0.S4
	VFMLA V20.S4, V5.S4, V1.S4
	VFMLA V20.S4, V6.S4, V2.S4
	VFMLA V20.S4, V7.S4, V3.S4
	VST1.P [V0.S4, V1.S4, V2.S4, V3.S4], 64(R0)
	SUBS $16, R2, R2
	BNE part
	RET
