package main

import "fmt"

// Micro-kernels of BFMMLA: of so many rows by 8 columns.
var bfmmlaRows = []int{12, 8, 4}

const (
	bfmmlaSteps   = 512 // that a call takes at most: their part of A fits its frame
	bfmmlaColumns = 8
	bfmmlaB       = 24 // registers of B's four vectors, 2 columns by 4 elements; sums are before them
	bfmmlaA       = 28 // and of four of A's, 2 rows by 4
)

// bfmmlaCount is what the loop of a kernel is: a pass takes four steps, eight elements of the summed dimension.
type bfmmlaCount struct{ rows, multiplyAdds, products, instructions int }

func (c bfmmlaCount) ratio() float64 { return float64(c.instructions) / float64(c.products) }

// bfmmlaTable returns the rows of the table in kernels/README.md.
func bfmmlaTable() (rows []string) {
	_, _, counts := bfmmla()
	for _, c := range counts {
		rows = append(rows, fmt.Sprintf("| BFMMLA | %d×%d | %d | %d | %.4f | %.4f | %.2f |", c.rows, bfmmlaColumns, c.products, c.instructions,
			float64(c.products)/float64(c.multiplyAdds), float64(c.instructions)/float64(c.multiplyAdds), c.ratio()))
	}
	return rows
}

// bfmmla writes micro-kernels for products of bfloat16 pairs. BFMMLA takes 2 rows of A by 2 columns of B, two steps each. B's strips come
// woven (WeaveNEON); A's rows, which all strips of a call share, are woven into the frame first.
func bfmmla() (assembly, declarations string, counts []bfmmlaCount) {
	a := &arm64{}
	for _, rows := range bfmmlaRows {
		name := fmt.Sprintf("gemmBFMMLAx%d", rows)
		const signature = "(strips, k int, a *uint32, rowA int, b *uint32, c *float32, rowC int, alpha float32, add bool, next *uint32, stepNext int)"
		declarations += fmt.Sprintf(`
// %s sets C = alpha·A·B, or C += alpha·A·B if add, for strips > 0 C's of %d×%d, side by side, whose strips of B follow each
// other. Words of A and B are bfloat16 pairs; k, from 1 to %d, is the number of steps. Steps of a row of A follow each other, rows are
// rowA bytes apart, and as many bytes as three words after their last may be read. B is woven. next and stepNext are as in gemmNEONx8.
//
//go:noescape
func %[1]s%[5]s
`, name, rows, bfmmlaColumns, bfmmlaSteps, signature)
		counts = append(counts, a.bfmmlaKernel(name, signature, rows))
	}
	return a.text.String(), declarations, counts
}

func (a *arm64) bfmmlaKernel(name, signature string, rows int) bfmmlaCount {
	pairs := rows / 2 // vectors of A for two steps
	acc := func(r, j int) int { return 4*r + j }
	frame := 4 * rows * bfmmlaSteps
	a.line("\n// func %s%s", name, signature)
	a.line("TEXT ·%s(SB), $%d-80", name, frame)
	a.op("MOVD k+8(FP), R1")
	a.op("MOVD a+16(FP), R2")
	a.op("MOVD rowA+24(FP), R3")
	a.op("ADD $3, R1, R4")
	a.op("LSR $2, R4, R4 // four steps, or what there is of them")
	a.op("MOVD $8(RSP), R5")
	a.line("\n\t// A: for each two steps, of each two rows both words.")
	for i := range pairs {
		// R6 and R7 pass two rows, R8 their places in the frame.
		a.op("MOVD R2, R6")
		a.op("ADD R3, R2, R7")
		a.op("ADD R3, R7, R2")
		a.op("ADD $%d, R5, R8", 16*i)
		a.op("MOVD R4, R9")
		a.line("\nweave%d:", i)
		a.op("VLD1.P 16(R6), [V0.D2]")
		a.op("VLD1.P 16(R7), [V1.D2]")
		a.op("VTRN1 V1.D2, V0.D2, V2.D2")
		a.op("VTRN2 V1.D2, V0.D2, V3.D2")
		a.op("VST1 [V2.D2], (R8)")
		a.op("ADD $%d, R8", 16*pairs)
		a.op("VST1 [V3.D2], (R8)")
		a.op("ADD $%d, R8", 16*pairs)
		a.op("SUBS $1, R9, R9")
		a.op("BNE weave%d", i)
	}
	a.op("MOVD b+32(FP), R10")
	a.op("MOVD c+40(FP), R11")
	a.op("MOVD rowC+48(FP), R12")
	a.op("MOVD next+64(FP), R13")
	a.op("MOVD stepNext+72(FP), R14")
	a.op("LSL $2, R14, R14")
	a.op("MOVD strips+0(FP), R15")
	a.op("MOVBU add+60(FP), R16")
	a.line("\nstrip:")
	for i := range 4 * pairs {
		a.op("VEOR V%d.B16, V%[1]d.B16, V%[1]d.B16", i)
	}
	a.op("MOVD R5, R6")
	a.op("LSR $2, R1, R4")
	a.op("CBZ R4, two")
	a.line("\nfour:")
	before := a.count
	a.op("PRFM (R13), PLDL2KEEP")
	a.op("ADD R14, R13")
	a.bfmmlaProducts(pairs, 2, acc)
	a.op("SUBS $1, R4, R4")
	a.op("BNE four")
	count := bfmmlaCount{rows: rows, multiplyAdds: rows * bfmmlaColumns * 8, products: 2 * 4 * pairs, instructions: a.count - before}
	a.line("\ntwo:")
	a.op("TBZ $1, R1, one")
	a.bfmmlaProducts(pairs, 1, acc)
	a.line("\none:")
	a.op("TBZ $0, R1, summed")
	a.line("\t// A step that is left over is not woven, and beside A's are other words.")
	a.op("VLD1.P 32(R10), [V%d.S4, V%d.S4]", bfmmlaA, bfmmlaA+1)
	a.op("VEOR V%d.B16, V%[1]d.B16, V%[1]d.B16", bfmmlaA+3)
	for j := range 4 {
		a.op("VZIP%d V%d.S4, V%d.S4, V%d.S4", 1+j%2, bfmmlaA+3, bfmmlaA+j/2, bfmmlaB+j)
	}
	for r := range pairs {
		a.op("VLD1.P 16(R6), [V%d.S4]", bfmmlaA)
		a.op("VTRN1 V%d.S4, V%d.S4, V%[2]d.S4", bfmmlaA+3, bfmmlaA)
		for j := range 4 {
			a.bfmmla(acc(r, j), bfmmlaA, bfmmlaB+j)
		}
	}
	a.line("\nsummed:")
	a.op("FMOVS alpha+56(FP), F%d", bfmmlaA+3)
	a.op("VDUP V%d.S[0], V%[1]d.S4", bfmmlaA+3)
	a.op("MOVD R11, R7")
	a.op("CBZ R16, store")
	row := func(r, i int, add bool) {
		for h := range 2 {
			a.op("VTRN%d V%d.D2, V%d.D2, V%d.D2", 1+i, acc(r, 2*h+1), acc(r, 2*h), bfmmlaB+h)
		}
		if add {
			a.op("VLD1 (R7), [V%d.S4, V%d.S4]", bfmmlaA, bfmmlaA+1)
		} else {
			a.op("VEOR V%d.B16, V%[1]d.B16, V%[1]d.B16", bfmmlaA)
			a.op("VEOR V%d.B16, V%[1]d.B16, V%[1]d.B16", bfmmlaA+1)
		}
		for h := range 2 {
			a.op("VFMLA V%d.S4, V%d.S4, V%d.S4", bfmmlaA+3, bfmmlaB+h, bfmmlaA+h)
		}
		a.op("VST1 [V%d.S4, V%d.S4], (R7)", bfmmlaA, bfmmlaA+1)
		a.op("ADD R12, R7")
	}
	for r := range rows {
		row(r/2, r%2, true)
	}
	a.op("B stored")
	a.line("\nstore:")
	for r := range rows {
		row(r/2, r%2, false)
	}
	a.line("\nstored:")
	a.op("ADD $%d, R11", 4*bfmmlaColumns)
	a.op("SUBS $1, R15, R15")
	a.op("BNE strip")
	a.op("RET")
	return count
}

// bfmmlaProducts multiplies the next pairs of steps: B's vectors are at R10, and A's at R6.
func (a *arm64) bfmmlaProducts(pairs, steps int, acc func(r, j int) int) {
	for v := range steps * pairs {
		r := v % pairs
		if r == 0 {
			a.load("R10", bfmmlaB, 4, true)
		}
		if v%4 == 0 {
			a.load("R6", bfmmlaA, min(4, steps*pairs-v), true)
		}
		for j := range 4 {
			a.bfmmla(acc(r, j), bfmmlaA+v%4, bfmmlaB+j)
		}
	}
}

// bfmmlaPacking writes what packs operands for BFMMLA.
func bfmmlaPacking() (assembly, declarations string) {
	declarations = `
// WeaveNEON weaves n > 0 pairs of steps of a strip of 8 columns, in place: of each pair of columns, the words of both steps.
//
//go:noescape
func WeaveNEON(strip *uint32, n int)

// PairStripNEON makes bfloat16 pairs of the first 8 columns of n > 0 times two rows, rowSrc bytes apart in src, contiguous in dst.
//
//go:noescape
func PairStripNEON(dst *uint32, src *uint32, rowSrc int, n int)

// RoundBF16 sets dst[i] to src[i] rounded to the nearest bfloat16, ties to even; n is a multiple of 32.
//
//go:noescape
func RoundBF16(dst *uint16, src *float32, n int)
`
	a := &arm64{}
	a.line(`
// func WeaveNEON(strip *uint32, n int)
TEXT ·WeaveNEON(SB), NOSPLIT, $0-16
	MOVD strip+0(FP), R0
	MOVD n+8(FP), R1

pair:
	VLD1 (R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VZIP1 V2.S4, V0.S4, V4.S4
	VZIP2 V2.S4, V0.S4, V5.S4
	VZIP1 V3.S4, V1.S4, V6.S4
	VZIP2 V3.S4, V1.S4, V7.S4
	VST1.P [V4.S4, V5.S4, V6.S4, V7.S4], 64(R0)
	SUBS $1, R1, R1
	BNE pair
	RET

// func PairStripNEON(dst *uint32, src *uint32, rowSrc int, n int)
TEXT ·PairStripNEON(SB), NOSPLIT, $0-32
	MOVD dst+0(FP), R0
	MOVD src+8(FP), R1
	MOVD rowSrc+16(FP), R2
	MOVD n+24(FP), R3

rows:
	VLD1 (R1), [V0.S4, V1.S4]
	ADD R2, R1
	VLD1 (R1), [V2.S4, V3.S4]
	ADD R2, R1`)
	a.bfcvtn(4, 0, false)
	a.bfcvtn(4, 1, true)
	a.bfcvtn(5, 2, false)
	a.bfcvtn(5, 3, true)
	a.line(`	VZIP1 V5.H8, V4.H8, V0.H8
	VZIP2 V5.H8, V4.H8, V1.H8
	VST1.P [V0.S4, V1.S4], 32(R0)
	SUBS $1, R3, R3
	BNE rows
	RET

// func RoundBF16(dst *uint16, src *float32, n int)
TEXT ·RoundBF16(SB), NOSPLIT, $0-24
	MOVD dst+0(FP), R0
	MOVD src+8(FP), R1
	MOVD n+16(FP), R2

values:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]`)
	for i := range 8 {
		a.bfcvtn(16+i/2, i, i%2 > 0)
	}
	a.line(`	VST1.P [V16.S4, V17.S4, V18.S4, V19.S4], 64(R0)
	SUBS $32, R2, R2
	BNE values
	RET`)
	return a.text.String(), declarations
}
