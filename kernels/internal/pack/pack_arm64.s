//go:build !purego

#include "textflag.h"

// func TransposeNEON(dst *uint32, rowDst int, src *uint32, rowSrc int, n int)
TEXT ·TransposeNEON(SB), NOSPLIT, $0-40
	MOVD dst+0(FP), R0
	MOVD rowDst+8(FP), R1
	MOVD src+16(FP), R8
	MOVD rowSrc+24(FP), R3
	MOVD n+32(FP), R4
	ADD R3, R8, R9
	ADD R3, R9, R10
	ADD R3, R10, R11

block:
	VLD1.P 16(R8), [V0.S4]
	VLD1.P 16(R9), [V1.S4]
	VLD1.P 16(R10), [V2.S4]
	VLD1.P 16(R11), [V3.S4]
	VTRN1 V1.S4, V0.S4, V4.S4
	VTRN2 V1.S4, V0.S4, V5.S4
	VTRN1 V3.S4, V2.S4, V6.S4
	VTRN2 V3.S4, V2.S4, V7.S4
	VTRN1 V6.D2, V4.D2, V0.D2
	VTRN1 V7.D2, V5.D2, V1.D2
	VTRN2 V6.D2, V4.D2, V2.D2
	VTRN2 V7.D2, V5.D2, V3.D2
	VST1 [V0.S4], (R0)
	ADD R1, R0
	VST1 [V1.S4], (R0)
	ADD R1, R0
	VST1 [V2.S4], (R0)
	ADD R1, R0
	VST1 [V3.S4], (R0)
	ADD R1, R0
	SUBS $1, R4, R4
	BNE block
	RET

// func CopyStripNEON(dst *uint32, src *uint32, rowSrc int, n int)
TEXT ·CopyStripNEON(SB), NOSPLIT, $0-32
	MOVD dst+0(FP), R0
	MOVD src+8(FP), R1
	MOVD rowSrc+16(FP), R2
	MOVD n+24(FP), R3

row:
	VLD1 (R1), [V0.S4, V1.S4]
	VST1.P [V0.S4, V1.S4], 32(R0)
	ADD R2, R1
	SUBS $1, R3, R3
	BNE row
	RET
