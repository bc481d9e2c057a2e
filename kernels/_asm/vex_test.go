package main

import (
	"encoding/hex"
	"testing"
)

// The bytes are what GNU as writes for the instructions named.
func TestVEX(t *testing.T) {
	const rax, rdx, rbx, rsi, rdi, r9, r12, r13 = 0, 2, 3, 6, 7, 9, 12, 13
	for _, c := range []struct {
		text string
		code []byte
		want string
	}{
		{"ldtilecfg (%rax)", vexConfig(rax), "c4e2784900"},
		{"ldtilecfg (%rbx)", vexConfig(rbx), "c4e2784903"},
		{"tileloadd 64(%rsi,%rdi,1),%tmm4", vexMem(opLDTILE, 4, rsi, rdi, 64), "c4e27b4b643e40"},
		{"tileloadd 64(%rdx,%r12,1),%tmm7", vexMem(opLDTILE, 7, rdx, r12, 64), "c4a27b4b7c2240"},
		{"tileloadd 64(%r13,%rdi,1),%tmm5", vexMem(opLDTILE, 5, r13, rdi, 64), "c4c27b4b6c3d40"},
		{"tileloadd 64(%r9,%r12,1),%tmm1", vexMem(opLDTILE, 1, r9, r12, 64), "c4827b4b4c2140"},
		{"tilestored %tmm3,64(%rbx,%r12,1)", vexMem(opSTTILE, 3, rbx, r12, 64), "c4a27a4b5c2340"},
		{"tilezero %tmm6", vex(opTILEZERO, 6, 0, 0), "c4e27b49f0"},
		{"tilerelease", opTILERELEASE[:], "c4e27849c0"},
		{"tdpbf16ps %tmm6,%tmm4,%tmm0", vex(opTDPBF16PS, 0, 6, 4), "c4e24a5cc4"},
		{"tdpbf16ps %tmm7,%tmm5,%tmm3", vex(opTDPBF16PS, 3, 7, 5), "c4e2425cdd"},
		{"tdpbssd %tmm2,%tmm1,%tmm0", vex(opTDPBSSD, 0, 2, 1), "c4e26b5ec1"},
		{"tdpbssd %tmm7,%tmm5,%tmm3", vex(opTDPBSSD, 3, 7, 5), "c4e2435edd"},
		{"{vex} vpdpbusd %ymm14,%ymm12,%ymm3", vexYMM(opVPDPBUSD, 3, 12, 14), "c4c21d50de"},
		{"{vex} vpdpbusd %ymm2,%ymm13,%ymm11", vexYMM(opVPDPBUSD, 11, 13, 2), "c4621550da"},
	} {
		if got := hex.EncodeToString(c.code); got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
	}
}
