package main

import "fmt"

// The layouts of packed operands, which q8/dots.go describes.
const (
	dotTokens  = 6 // in a panel of inputs
	dotOutputs = 8 // in a strip of weights
)

// dotTier multiplies signed bytes by one instruction of arm64.
type dotTier struct {
	name     string
	products int // multiply-adds of an instruction
	emit     func(a *arm64, v q8Variant)
}

var dotTiers = []dotTier{{"SDOT", 16, (*arm64).sdotGroup}, {"SMMLA", 32, (*arm64).smmlaGroup}}

// dotCount is what a loop's instructions are.
type dotCount struct {
	tier, variant      string
	multiplyAdds       int // of one pass
	instructions       int // of one pass
	products, leastAll int // the least instructions: for the products, and with all other arithmetic
}

// ratio is how many times as many instructions the loop has as its arithmetic takes.
func (c dotCount) ratio() float64 { return float64(c.instructions) / float64(c.leastAll) }

// perProduct is instructions per multiply-add.
func (c dotCount) perProduct(instructions int) float64 {
	return float64(instructions) / float64(c.multiplyAdds)
}

// dotRows are the rows of the table in kernels/README.md.
func dotRows() (rows []string) {
	_, _, counts := dots()
	for _, c := range counts {
		rows = append(rows, fmt.Sprintf("| %s | %s | %d | %d | %d | %.4f | %.4f | %.4f | %.2f |", c.tier, c.variant, c.products, c.leastAll,
			c.instructions, c.perProduct(c.products), c.perProduct(c.leastAll), c.perProduct(c.instructions), c.ratio()))
	}
	return rows
}

// dots writes the products of a panel of 6 tokens and a strip of 8 outputs, whose sums stay in registers over all groups.
//
// As in q8, sums of a group start at the bits of 1.5·2^(23+e), and subtracting that number leaves the sum times 2^e, so that
// a group takes a copy, a subtraction and a multiply-add for each vector of sums beside its products. No group can do with
// less: an integer that starts at zero takes a conversion in place of the subtraction, and a multiplication by its step.
func dots() (assembly, declarations string, counts []dotCount) {
	a := &arm64{}
	for _, tier := range dotTiers {
		for _, v := range q8Variants {
			name := "q8" + v.name + tier.name
			declarations += fmt.Sprintf(`
// %s sets C, [6][8], to Σ_g 2^e·scale·Σ codes·levels, less minimum·total in formats that have them, for groups g of 32 columns.
// Operands lie as dots.go describes; groups is positive.
//
//go:noescape
func %[1]s(groups int, x, starts, totals, w *uint32, scale, c *float32)
`, name)
			a.line("\n// func %s(groups int, x, starts, totals, w *uint32, scale, c *float32)", name)
			a.line("TEXT ·%s(SB), NOSPLIT, $0-56", name)
			for i, p := range []string{"groups", "x", "starts", "totals", "w", "scale", "c"} {
				a.op("MOVD %s+%d(FP), R%d", p, 8*i, i)
			}
			for i := range dotSums {
				a.op("VEOR V%d.B16, V%[1]d.B16, V%[1]d.B16", i)
			}
			a.line("\ngroup:")
			before := a.count
			tier.emit(a, v)
			a.op("SUBS $1, R0, R0")
			a.op("BNE group")
			c := dotCount{tier: tier.name, variant: v.name, multiplyAdds: dotTokens * dotOutputs * q8Group, instructions: a.count - before}
			c.products = c.multiplyAdds / tier.products
			c.leastAll = c.products + v.parts*3*dotSums
			if v.minimums {
				c.leastAll += v.parts * dotSums
			}
			counts = append(counts, c)
			a.line("")
			if tier.name == "SMMLA" { // vectors are 2×2: to rows
				for j := 0; j < 4; j += 2 {
					for i := range 3 {
						left, right := 3*j+i, 3*(j+1)+i
						a.op("VTRN1 V%d.D2, V%d.D2, V%d.D2", right, left, dotSums+4*i+j/2)
						a.op("VTRN2 V%d.D2, V%d.D2, V%d.D2", right, left, dotSums+4*i+2+j/2)
					}
				}
			}
			first := 0
			if tier.name == "SMMLA" {
				first = dotSums
			}
			for i := first; i < first+dotSums; i += 4 {
				a.op("VST1.P [V%d.S4, V%d.S4, V%d.S4, V%d.S4], 64(R6)", i, i+1, i+2, i+3)
			}
			a.op("RET")
		}
	}
	return a.text.String(), declarations, counts
}

// dotSums is how many vectors of four sums a tile has: C's are registers from 0 on, integers from dotSums on.
const dotSums = dotTokens * dotOutputs / 4

// Parameters are in registers, in their order: 1 x, 2 starts, 3 totals, 4 w, 5 scale, 6 c.

// sdotGroup takes 16 columns of x at a time, a vector for each token, and four columns of w, two vectors of four outputs.
func (a *arm64) sdotGroup(v q8Variant) {
	const x, w = 24, 30 // 6 and 2 registers
	c := func(t, j int) int { return 2*t + j }
	acc := func(t, j int) int { return dotSums + 2*t + j }
	each := func(f func(t, j int)) {
		for t := range dotTokens {
			for j := range 2 {
				f(t, j)
			}
		}
	}
	for part := range v.parts {
		a.load("R2", x, 2, false)
		each(func(t, j int) { a.op("VDUP V%d.S[%d], V%d.S4", x+t/4, t%4, acc(t, j)) })
		for range 2 / v.parts {
			a.load("R1", x, 3, true)
			a.load("R1", x+3, 3, true)
			for s := range 4 {
				a.load("R4", w, 2, true)
				each(func(t, j int) { a.sdot(acc(t, j), w+j, x+t, s) })
			}
		}
		a.load("R2", x, 2, part == v.parts-1)
		a.one(w)
		each(func(t, j int) { a.fmlsElement(acc(t, j), w, x+t/4, t%4) })
		a.load("R5", x+2, 2, true)
		each(func(t, j int) { a.op("VFMLA V%d.S4, V%d.S4, V%d.S4", x+2+j, acc(t, j), c(t, j)) })
		if v.minimums {
			a.load("R5", x+4, 2, true)
			a.load("R3", x, 2, true)
			each(func(t, j int) { a.fmlsElement(c(t, j), x+4+j, x+t/4, t%4) })
		}
	}
}

// smmlaGroup takes eight columns at a time: three vectors of two tokens, four of two outputs.
func (a *arm64) smmlaGroup(v q8Variant) {
	const pairs, columns = dotTokens / 2, dotOutputs / 2
	const x, w = 24, 27
	c := func(i, j int) int { return pairs*j + i }
	acc := func(i, j int) int { return dotSums + pairs*j + i }
	each := func(f func(i, j int)) {
		for j := range columns {
			for i := range pairs {
				f(i, j)
			}
		}
	}
	for part := range v.parts {
		a.load("R2", acc(0, 0), pairs, false)
		each(func(i, j int) {
			if j > 0 {
				a.op("VMOV V%d.B16, V%d.B16", acc(i, 0), acc(i, j))
			}
		})
		for range 4 / v.parts {
			a.load("R1", x, pairs, true)
			a.load("R4", w, columns, true)
			each(func(i, j int) { a.smmla(acc(i, j), x+i, w+j) })
		}
		a.load("R2", x, pairs, part == v.parts-1)
		a.load("R5", w, columns, true)
		each(func(i, j int) { a.fsub(acc(i, j), acc(i, j), x+i) })
		each(func(i, j int) { a.op("VFMLA V%d.S4, V%d.S4, V%d.S4", w+j, acc(i, j), c(i, j)) })
		if v.minimums {
			a.load("R5", w, columns, true)
			a.load("R3", x, pairs, true)
			each(func(i, j int) { a.op("VFMLS V%d.S4, V%d.S4, V%d.S4", w+j, x+i, c(i, j)) })
		}
	}
}
