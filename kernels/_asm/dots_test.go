package main

import (
	"os"
	"strings"
	"testing"
)

// The words are what llvm-mc writes for the instructions named.
func TestARM64(t *testing.T) {
	for _, c := range []struct {
		text string
		code uint32
		want uint32
	}{
		{"sdot v0.4s, v1.16b, v2.4b[0]", arm64Element(opSDOT, 0, 1, 2, 0), 0x4f82e020},
		{"sdot v23.4s, v31.16b, v29.4b[3]", arm64Element(opSDOT, 23, 31, 29, 3), 0x4fbdebf7},
		{"sdot v12.4s, v30.16b, v24.4b[2]", arm64Element(opSDOT, 12, 30, 24, 2), 0x4f98ebcc},
		{"smmla v0.4s, v1.16b, v2.16b", arm64Vector(opSMMLA, 0, 1, 2), 0x4e82a420},
		{"smmla v23.4s, v26.16b, v30.16b", arm64Vector(opSMMLA, 23, 26, 30), 0x4e9ea757},
		{"fmls v12.4s, v30.4s, v24.s[3]", arm64Element(opFMLSElt, 12, 30, 24, 3), 0x4fb85bcc},
		{"fmls v23.4s, v30.4s, v25.s[1]", arm64Element(opFMLSElt, 23, 30, 25, 1), 0x4fb953d7},
		{"fsub v0.4s, v1.4s, v2.4s", arm64Vector(opFSUB, 0, 1, 2), 0x4ea2d420},
		{"fsub v23.4s, v23.4s, v26.4s", arm64Vector(opFSUB, 23, 23, 26), 0x4ebad6f7},
		{"bfmmla v0.4s, v1.8h, v2.8h", arm64Vector(opBFMMLA, 0, 1, 2), 0x6e42ec20},
		{"bfmmla v23.4s, v31.8h, v27.8h", arm64Vector(opBFMMLA, 23, 31, 27), 0x6e5beff7},
		{"bfcvtn v1.4h, v2.4s", arm64Vector(opBFCVTN, 1, 2, 0), 0x0ea16841},
		{"bfcvtn2 v17.8h, v31.4s", arm64Vector(opBFCVTN|1<<30, 17, 31, 0), 0x4ea16bf1},
		{"fmov v30.4s, #1.0", opFMOVOne | 30, 0x4f03f61e},
	} {
		if c.code != c.want {
			t.Errorf("%s: %08x, want %08x", c.text, c.code, c.want)
		}
	}
}

// TestDots counts the instructions of the generated loops, in the assembly that is there: at most 1.2 × those of its arithmetic.
func TestDots(t *testing.T) {
	assembly, _, counts := dots()
	file, err := os.ReadFile("../q8/dots_arm64.s")
	if err != nil || !strings.HasSuffix(string(file), assembly) {
		t.Errorf("q8/dots_arm64.s is not what is generated (%v)", err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range dotRows() {
		c := counts[i]
		_, body, _ := strings.Cut(string(file), "·q8"+c.variant+c.tier+"(SB)")
		_, body, _ = strings.Cut(body, "\ngroup:\n")
		body, _, _ = strings.Cut(body, "\n\n")
		lines := len(strings.Split(body, "\n"))
		if lines != c.instructions || c.ratio() > 1.2 {
			t.Errorf("%s %s: %d instructions, counted %d, for arithmetic of %d", c.tier, c.variant, lines, c.instructions, c.leastAll)
		}
		if !strings.Contains(string(readme), row+"\n") {
			t.Errorf("kernels/README.md lacks the row\n%s", row)
		}
	}
}
