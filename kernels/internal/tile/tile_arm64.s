//go:build !purego

#include "textflag.h"

// Operands are in Go's order: VFMLA Vm, Vn, Vd is Vd += Vn·Vm. The assembler has no VFMUL, so a product is a VFMLA to zero.

// ROW adds to a row of the tile: the element of A at p, broadcast, times the step of B in V16 and V17.
#define ROW(p, t, c0, c1) \
	VLD1R.P (p)(R3), [t.S4]; \
	VFMLA V16.S4, t.S4, c0.S4; \
	VFMLA V17.S4, t.S4, c1.S4

// ADDROW and SETROW write a row of the tile to C.
#define ADDROW(c0, c1) \
	VLD1 (R5), [V24.S4, V25.S4]; \
	VFMLA V22.S4, c0.S4, V24.S4; \
	VFMLA V22.S4, c1.S4, V25.S4; \
	VST1 [V24.S4, V25.S4], (R5); \
	ADD R6, R5

#define SETROW(c0, c1) \
	VEOR V24.B16, V24.B16, V24.B16; \
	VEOR V25.B16, V25.B16, V25.B16; \
	VFMLA V22.S4, c0.S4, V24.S4; \
	VFMLA V22.S4, c1.S4, V25.S4; \
	VST1 [V24.S4, V25.S4], (R5); \
	ADD R6, R5

// func gemmNEONx8(k int, a *uint32, rowA int, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
//	next *uint32, stepNext int)
TEXT ·gemmNEONx8(SB), NOSPLIT, $0-80
	MOVD k+0(FP), R0
	MOVD a+8(FP), R8
	MOVD next+64(FP), R19
	MOVD stepNext+72(FP), R20
	MOVD rowA+16(FP), R2
	MOVD stepA+24(FP), R3
	MOVD b+32(FP), R4
	MOVD c+40(FP), R5
	MOVD rowC+48(FP), R6
	ADD R2, R8, R9
	ADD R2, R9, R10
	ADD R2, R10, R11
	ADD R2, R11, R12
	ADD R2, R12, R13
	ADD R2, R13, R14
	ADD R2, R14, R15
	VEOR V0.B16, V0.B16, V0.B16
	VEOR V1.B16, V1.B16, V1.B16
	VEOR V2.B16, V2.B16, V2.B16
	VEOR V3.B16, V3.B16, V3.B16
	VEOR V4.B16, V4.B16, V4.B16
	VEOR V5.B16, V5.B16, V5.B16
	VEOR V6.B16, V6.B16, V6.B16
	VEOR V7.B16, V7.B16, V7.B16
	VEOR V8.B16, V8.B16, V8.B16
	VEOR V9.B16, V9.B16, V9.B16
	VEOR V10.B16, V10.B16, V10.B16
	VEOR V11.B16, V11.B16, V11.B16
	VEOR V12.B16, V12.B16, V12.B16
	VEOR V13.B16, V13.B16, V13.B16
	VEOR V14.B16, V14.B16, V14.B16
	VEOR V15.B16, V15.B16, V15.B16

step:
	VLD1.P 32(R4), [V16.S4, V17.S4]
	PRFM (R19), PLDL2KEEP
	ADD R20, R19
	ROW(R8, V18, V0, V1)
	ROW(R9, V19, V2, V3)
	ROW(R10, V20, V4, V5)
	ROW(R11, V21, V6, V7)
	ROW(R12, V18, V8, V9)
	ROW(R13, V19, V10, V11)
	ROW(R14, V20, V12, V13)
	ROW(R15, V21, V14, V15)
	SUBS $1, R0, R0
	BNE step

	FMOVS alpha+56(FP), F22
	VDUP V22.S[0], V22.S4
	MOVBU add+60(FP), R7
	CBZ R7, store
	ADDROW(V0, V1)
	ADDROW(V2, V3)
	ADDROW(V4, V5)
	ADDROW(V6, V7)
	ADDROW(V8, V9)
	ADDROW(V10, V11)
	ADDROW(V12, V13)
	ADDROW(V14, V15)
	RET

store:
	SETROW(V0, V1)
	SETROW(V2, V3)
	SETROW(V4, V5)
	SETROW(V6, V7)
	SETROW(V8, V9)
	SETROW(V10, V11)
	SETROW(V12, V13)
	SETROW(V14, V15)
	RET

// func gemmNEONx4(k int, a *uint32, rowA int, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
//	next *uint32, stepNext int)
TEXT ·gemmNEONx4(SB), NOSPLIT, $0-80
	MOVD k+0(FP), R0
	MOVD a+8(FP), R8
	MOVD next+64(FP), R19
	MOVD stepNext+72(FP), R20
	MOVD rowA+16(FP), R2
	MOVD stepA+24(FP), R3
	MOVD b+32(FP), R4
	MOVD c+40(FP), R5
	MOVD rowC+48(FP), R6
	ADD R2, R8, R9
	ADD R2, R9, R10
	ADD R2, R10, R11
	VEOR V0.B16, V0.B16, V0.B16
	VEOR V1.B16, V1.B16, V1.B16
	VEOR V2.B16, V2.B16, V2.B16
	VEOR V3.B16, V3.B16, V3.B16
	VEOR V4.B16, V4.B16, V4.B16
	VEOR V5.B16, V5.B16, V5.B16
	VEOR V6.B16, V6.B16, V6.B16
	VEOR V7.B16, V7.B16, V7.B16

step:
	VLD1.P 32(R4), [V16.S4, V17.S4]
	PRFM (R19), PLDL2KEEP
	ADD R20, R19
	ROW(R8, V18, V0, V1)
	ROW(R9, V19, V2, V3)
	ROW(R10, V20, V4, V5)
	ROW(R11, V21, V6, V7)
	SUBS $1, R0, R0
	BNE step

	FMOVS alpha+56(FP), F22
	VDUP V22.S[0], V22.S4
	MOVBU add+60(FP), R7
	CBZ R7, store
	ADDROW(V0, V1)
	ADDROW(V2, V3)
	ADDROW(V4, V5)
	ADDROW(V6, V7)
	RET

store:
	SETROW(V0, V1)
	SETROW(V2, V3)
	SETROW(V4, V5)
	SETROW(V6, V7)
	RET
