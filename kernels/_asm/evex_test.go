package main

import (
	"encoding/hex"
	"testing"
)

// The bytes are what GNU as writes for the instructions named.
func TestEVEX(t *testing.T) {
	for _, c := range []struct {
		text       string
		op         opcode
		reg, v, rm uint8
		want       string
	}{
		{"vdpbf16ps %zmm3,%zmm2,%zmm1", opVDPBF16PS, 1, 2, 3, "62f26e4852cb"},
		{"vdpbf16ps %zmm31,%zmm30,%zmm29", opVDPBF16PS, 29, 30, 31, "62020e4052ef"},
		{"vdpbf16ps %zmm9,%zmm24,%zmm10", opVDPBF16PS, 10, 24, 9, "62523e4052d1"},
		{"vcvtneps2bf16 %zmm1,%ymm2", opVCVTNEPS2BF16, 2, 0, 1, "62f27e4872d1"},
		{"vcvtneps2bf16 %zmm30,%ymm17", opVCVTNEPS2BF16, 17, 0, 30, "62827e4872ce"},
		{"vcvtne2ps2bf16 %zmm3,%zmm2,%zmm1", opVCVTNE2PS2BF16, 1, 2, 3, "62f26f4872cb"},
		{"vcvtne2ps2bf16 %zmm31,%zmm30,%zmm29", opVCVTNE2PS2BF16, 29, 30, 31, "62020f4072ef"},
	} {
		code := evex(c.op, c.reg, c.v, c.rm)
		if got := hex.EncodeToString(code[:]); got != c.want {
			t.Errorf("%s: %s, want %s", c.text, got, c.want)
		}
	}
}
