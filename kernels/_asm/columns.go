package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// columns writes the column-wise work of GPTQ on lanes of rows.
func columns(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		g.roundLanes(v)
		g.roundInTurn(v, false)
		g.roundInTurn(v, true)
		g.decodeLanes(v)
		g.shiftLanes(v, false)
		g.shiftLanes(v, true)
		g.dotLanes(v)
		g.subtractLanes(v)
		g.differLanes(v)
	}
	g.fromCodes()
	g.updateTiles()
	g.updatePanels()
	g.addLanes(avx512)
	g.updateLanes(avx512)
}

// roundLanes is columns.Round.
func (g *gen) roundLanes(v isa) {
	g.function("roundLanes"+v.name, "func(q, err, w, sum *float32, inverse float32, scale, minimum *float32, lo, hi float32)",
		"rounds a vector of weights.")
	level, zero, w, scale, minimum, t := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4), v.reg(5)
	g.zero(v, zero)
	load := func(name string, to reg.Register) { g.VMOVUPS(at(g.gp(name), 0), to) }
	load("w", w)
	load("scale", scale)
	load("minimum", minimum)
	g.VBROADCASTSS(g.param("inverse"), level)
	g.VMULPS(at(g.gp("sum"), 0), level, level)
	bound := func(name string) func() reg.Register {
		return func() reg.Register {
			g.VBROADCASTSS(g.param(name), t)
			return t
		}
	}
	g.round(v, level, zero, w, scale, minimum, t, bound("lo"), bound("hi"))
	g.VMOVUPS(level, at(g.gp("q"), 0))
	g.VMOVUPS(t, at(g.gp("err"), 0))
	g.VZEROUPPER()
	g.RET()
}

// round makes of level, which is inverse·sum, the level of w + inverse·sum, and sets t to w's error.
func (g *gen) round(v isa, level, zero, w, scale, minimum, t reg.VecPhysical, lo, hi func() reg.Register) {
	// Not fused, as in Go.
	g.VADDPS(w, level, level)
	g.VADDPS(minimum, level, level)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(4), zero, scale, reg.K1)
		g.VDIVPS_Z(scale, level, reg.K1, level)
	} else {
		g.VCMPPS(operand.U8(4), zero, scale, t)
		g.VDIVPS(scale, level, level)
		g.VANDPS(t, level, level)
	}
	// The second source, the first operand here, is what NaN leaves.
	g.VMAXPS(lo(), level, level)
	g.VMINPS(hi(), level, level)
	if v.bytes == 64 {
		g.VRNDSCALEPS(operand.U8(8), level, level)
	} else {
		g.VROUNDPS(operand.U8(8), level, level)
	}
	g.VMULPS(level, scale, t)
	g.VSUBPS(minimum, t, t)
	g.VSUBPS(t, w, t)
}

// roundInTurn is columns.RoundInTurn for one vector of eight lanes, 64 bytes apart. Their sums stay in registers, as each waits for those
// before it.
func (g *gen) roundInTurn(v isa, down bool) {
	const cols = 8
	name, order := "roundUp", "from the first to the last"
	if down {
		name, order = "roundDown", "from the last to the first"
	}
	g.function(name+v.name, "func(q, err, w, sum, u *float32, pitch int, inverse, scale, minimum *float32, group *int, lo, hi float32)",
		"rounds eight columns "+order+"; rows of u are pitch bytes apart.")
	q, err, w, sum := g.gp("q"), g.gp("err"), g.gp("w"), g.gp("sum")
	u, pitch, inverse := g.gp("u"), g.gp("pitch"), g.gp("inverse")
	scale, minimum, group := g.gp("scale"), g.gp("minimum"), g.gp("group")
	level, vecW, vecScale, vecMinimum, t, zero := v.reg(8), v.reg(9), v.reg(10), v.reg(11), v.reg(12), v.reg(13)
	lo, hi := v.reg(14), v.reg(15)
	g.VBROADCASTSS(g.param("lo"), lo)
	g.VBROADCASTSS(g.param("hi"), hi)
	if down {
		g.LEAQ(operand.Mem{Base: u, Index: pitch, Scale: 8}, u)
		g.SUBQ(pitch, u)
	}
	for i := range cols {
		g.VMOVUPS(at(sum, lane*i), v.reg(i))
	}
	k := g.GP64()
	for i := range cols {
		if down {
			i = cols - 1 - i
		}
		g.MOVQ(at(group, 8*i), k)
		g.SHLQ(operand.U8(6), k)
		g.VMOVUPS(operand.Mem{Base: scale, Index: k, Scale: 1}, vecScale)
		g.VMOVUPS(operand.Mem{Base: minimum, Index: k, Scale: 1}, vecMinimum)
		g.VMOVUPS(at(w, lane*i), vecW)
		g.VBROADCASTSS(at(inverse, 4*i), level)
		g.VMULPS(v.reg(i), level, level)
		g.zero(v, zero)
		g.round(v, level, zero, vecW, vecScale, vecMinimum, t, func() reg.Register { return lo }, func() reg.Register { return hi })
		g.VMOVUPS(level, at(q, lane*i))
		g.VMOVUPS(t, at(err, lane*i))
		add := func(j int) { g.multiplyAdd(v, at(u, 4*j), t, v.reg(j), zero) }
		if down { // the next one first
			for j := i; j >= 0; j-- {
				add(j)
			}
			g.SUBQ(pitch, u)
		} else {
			for j := i; j < cols; j++ {
				add(j)
			}
			g.ADDQ(pitch, u)
		}
	}
	for i := range cols {
		g.VMOVUPS(v.reg(i), at(sum, lane*i))
	}
	g.VZEROUPPER()
	g.RET()
}

// decodeLanes is columns.Decode for one vector of the lanes, 64 bytes apart.
func (g *gen) decodeLanes(v isa) {
	g.function("decodeLanes"+v.name, "func(dst, level, scale, minimum *float32, n int)",
		"sets dst[j] = scale·level[j] − minimum for j < n.")
	dst, level, n := g.gp("dst"), g.gp("level"), g.gp("n")
	scale, minimum := v.reg(8), v.reg(9)
	g.VMOVUPS(at(g.gp("scale"), 0), scale)
	g.VMOVUPS(at(g.gp("minimum"), 0), minimum)
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				// Not fused, as in Go.
				g.VMULPS(at(level, lane*i), scale, v.reg(i))
				g.VSUBPS(minimum, v.reg(i), v.reg(i))
				g.VMOVUPS(v.reg(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst, level)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}

// shiftLanes is columns.Shift for one vector of the lanes, 64 bytes apart, and ShiftBy if b's elements are one for all lanes.
func (g *gen) shiftLanes(v isa, by bool) {
	name, pitch := "shiftLanes", lane
	if by {
		name, pitch = "shiftLanesBy", 4
	}
	g.function(name+v.name, "func(dst, a, x, b, y *float32, n int)",
		fmt.Sprintf("sets dst[j] += x·a[j] − y·b[j] for j < n; elements of b are %d bytes apart.", pitch))
	dst, a, b, n := g.gp("dst"), g.gp("a"), g.gp("b"), g.gp("n")
	x, y := v.reg(8), v.reg(9)
	g.VMOVUPS(at(g.gp("x"), 0), x)
	g.VMOVUPS(at(g.gp("y"), 0), y)
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				// Not fused, as in Go.
				g.VMULPS(at(a, lane*i), x, v.reg(i))
				if by {
					g.VBROADCASTSS(at(b, pitch*i), v.reg(4+i))
					g.VMULPS(v.reg(4+i), y, v.reg(4+i))
				} else {
					g.VMULPS(at(b, pitch*i), y, v.reg(4+i))
				}
				g.VSUBPS(v.reg(4+i), v.reg(i), v.reg(i))
				g.VADDPS(at(dst, lane*i), v.reg(i), v.reg(i))
				g.VMOVUPS(v.reg(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst, a)
			g.advance(pitch*count, b)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}

// subtractLanes is columns.Subtract for one vector of the lanes, 64 bytes apart.
func (g *gen) subtractLanes(v isa) {
	g.function("subtractLanes"+v.name, "func(dst, x *float32, n int)", "sets dst[j] −= x[j] for j < n.")
	dst, x, n := g.gp("dst"), g.gp("x"), g.gp("n")
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				g.VMOVUPS(at(dst, lane*i), v.reg(i))
				g.VSUBPS(at(x, lane*i), v.reg(i), v.reg(i))
				g.VMOVUPS(v.reg(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst, x)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}

// differLanes is columns.Differ.
func (g *gen) differLanes(v isa) {
	g.function("differLanes"+v.name, "func(mask *uint16, a, b *float32, n int)", "sets mask[j] to a bit for each lane in which a[j] is not b[j], for n > 0.")
	mask, a, b, n := g.gp("mask"), g.gp("a"), g.gp("b"), g.gp("n")
	low, high := g.GP32(), g.GP32()
	const notEqual = 4
	g.Label("column")
	if v.bytes == 64 {
		g.VMOVUPS(at(a, 0), v.reg(0))
		g.VCMPPS(operand.U8(notEqual), at(b, 0), v.reg(0), reg.K1)
		g.KMOVW(reg.K1, low)
	} else {
		for h, to := range []reg.Register{low, high} {
			g.VMOVUPS(at(a, 32*h), v.reg(h))
			g.VCMPPS(operand.U8(notEqual), at(b, 32*h), v.reg(h), v.reg(h))
			g.VMOVMSKPS(v.reg(h), to)
		}
		g.SHLL(operand.U8(8), high)
		g.ORL(high, low)
	}
	g.MOVW(low.As16(), at(mask, 0))
	g.advance(2, mask)
	g.advance(lane, a, b)
	g.DECQ(n)
	g.JNZ(operand.LabelRef("column"))
	g.VZEROUPPER()
	g.RET()
}

// fromCodes is columns.FromCodes for eight of the lanes, 64 bytes apart.
func (g *gen) fromCodes() {
	g.function("fromCodesAVX2", "func(dst *float32, codes *int8, pitch, n int)",
		"sets dst[j][i] to the code j of row i, for i < 8 and j < 8·n; rows are pitch bytes apart.")
	dst, src, pitch, n := g.gp("dst"), g.gp("codes"), g.gp("pitch"), g.gp("n")
	y := avx2.reg
	p := g.GP64()
	g.countdown("block", n, 1, func() {
		g.MOVQ(src, p)
		for i := range 8 {
			g.VPMOVSXBD(at(p, 0), y(i))
			g.VCVTDQ2PS(y(i), y(i))
			if i < 7 {
				g.ADDQ(pitch, p)
			}
		}
		g.exchange8()
		for j := range 8 {
			g.VMOVUPS(y(8+j), at(dst, lane*j))
		}
		g.advance(8*lane, dst)
		g.advance(8, src)
	})
	g.VZEROUPPER()
	g.RET()
}

// updateTiles is columns.Update for AVX2, where an element of u must be broadcast before it is multiplied: both vectors of
// a lane use it. Up to six columns are summed in registers, as in a micro-kernel, over all of x.
func (g *gen) updateTiles() {
	const tall, vecs, unroll = 6, lane / 32, 4
	v := avx2
	g.function("updateTilesAVX2", "func(dst, u *float32, pitch int, x *float32, depth, n int)",
		"sets dst[j] += Σ u[k][j]·x[k] over k < depth for j < n, both vectors of a lane; rows of u are pitch bytes apart.")
	dst, u, pitch, depth, n := g.gp("dst"), g.gp("u"), g.gp("pitch"), g.gp("depth"), g.gp("n")
	first := g.gp("x")
	pitch3, p, x, k := g.GP64(), g.GP64(), g.GP64(), g.GP64()
	g.LEAQ(operand.Mem{Base: pitch, Index: pitch, Scale: 2}, pitch3)
	sum := func(j, h int) reg.VecPhysical { return v.reg(vecs*j + h) }
	vecX := func(h int) reg.VecPhysical { return v.reg(vecs*tall + h) }
	element := func(row, j int) operand.Mem {
		switch m := at(p, 4*j); row {
		case 0:
			return m
		case 3:
			m.Index, m.Scale = pitch3, 1
			return m
		default:
			m.Index, m.Scale = pitch, uint8(row)
			return m
		}
	}
	for _, cols := range []int{tall, 4, 2, 1} {
		name := fmt.Sprintf("columns%d", cols)
		steps := func(count int) {
			for row := range count {
				for h := range vecs {
					g.VMOVUPS(at(x, lane*row+32*h), vecX(h))
				}
				if cols == tall {
					// Rows are too far apart for the processor to see the next columns coming.
					g.PREFETCHT0(element(row, 2*tall-1))
				}
				for j := range cols {
					t := v.reg(vecs*tall + vecs + j%2)
					g.VBROADCASTSS(element(row, j), t)
					for h := range vecs {
						g.VFMADD231PS(vecX(h), t, sum(j, h))
					}
				}
			}
			g.advance(lane*count, x)
			if count == unroll {
				g.LEAQ(operand.Mem{Base: p, Index: pitch, Scale: unroll}, p)
			} else {
				g.ADDQ(pitch, p)
			}
		}
		g.countdown(name, n, cols, func() {
			for j := range cols {
				for h := range vecs {
					g.VMOVUPS(at(dst, lane*j+32*h), sum(j, h))
				}
			}
			g.MOVQ(u, p)
			g.MOVQ(first, x)
			g.MOVQ(depth, k)
			g.countdown(name+"_four", k, unroll, func() { steps(unroll) })
			g.countdown(name+"_one", k, 1, func() { steps(1) })
			for j := range cols {
				for h := range vecs {
					g.VMOVUPS(sum(j, h), at(dst, lane*j+32*h))
				}
			}
			g.advance(lane*cols, dst)
			g.advance(4*cols, u)
		})
	}
	g.VZEROUPPER()
	g.RET()
}

// updatePanels is updateTiles for columns.Panels, where the elements that steps broadcast lie side by side.
func (g *gen) updatePanels() {
	const vecs, unroll, wide = lane / 32, 8, 16
	v := avx2
	g.function("updatePanelsAVX2", "func(dst, u *float32, rows, row int, x *float32, turn, depth, n int)",
		"sets dst[j] += Σ u[row+k][j]·x[k] over k < depth for j < n, both vectors of a lane. depth is a multiple of 8, n of 16. Of each",
		"16 columns u has panels of 6, 5 and 5, of so many rows each. The next eight rows of u and of x are turn rows after these.")
	dst, u, first := g.gp("dst"), g.gp("u"), g.gp("x")
	row, turn, depth, n := g.gp("row"), g.gp("turn"), g.gp("depth"), g.gp("n")
	p, x, k, turnX, turnP := g.GP64(), g.GP64(), g.GP64(), g.GP64(), g.GP64()
	g.IMUL3Q(operand.I32(lane), turn, turnX)
	g.Label("columns16")
	from := 0
	for i, cols := range []int{6, 5, 5} {
		sum := func(j, h int) reg.VecPhysical { return v.reg(vecs*j + h) }
		for j := range cols {
			for h := range vecs {
				g.VMOVUPS(at(dst, lane*(from+j)+32*h), sum(j, h))
			}
		}
		g.IMUL3Q(operand.I32(int32(4*cols)), row, p)
		g.ADDQ(u, p)
		g.IMUL3Q(operand.I32(int32(4*cols)), turn, turnP)
		g.MOVQ(first, x)
		g.MOVQ(depth, k)
		name := fmt.Sprintf("panel%d", i)
		g.Label(name)
		for step := range unroll {
			for h := range vecs {
				g.VMOVUPS(at(x, lane*step+32*h), v.reg(12+h))
			}
			for j := range cols {
				t := v.reg(14 + j%2)
				g.VBROADCASTSS(at(p, 4*(cols*step+j)), t)
				for h := range vecs {
					g.VFMADD231PS(v.reg(12+h), t, sum(j, h))
				}
			}
		}
		g.ADDQ(turnX, x)
		g.ADDQ(turnP, p)
		g.SUBQ(operand.I32(unroll), k)
		g.JNZ(operand.LabelRef(name))
		for j := range cols {
			for h := range vecs {
				g.VMOVUPS(sum(j, h), at(dst, lane*(from+j)+32*h))
			}
		}
		g.Comment("The next panel")
		g.MOVQ(g.param("rows"), k)
		g.IMUL3Q(operand.I32(int32(4*cols)), k, k)
		g.ADDQ(k, u)
		from += cols
	}
	g.advance(lane*wide, dst)
	g.SUBQ(operand.I32(wide), n)
	g.JNZ(operand.LabelRef("columns16"))
	g.VZEROUPPER()
	g.RET()
}

// addLanes is UpdateLanes for one vector.
func (g *gen) addLanes(v isa) {
	g.function("addLanes"+v.name, "func(dst, u, x *float32, n int)", "sets dst[j] += u[j]·x for j < n.")
	dst, u, n := g.gp("dst"), g.gp("u"), g.gp("n")
	x := v.reg(8)
	g.VMOVUPS(at(g.gp("x"), 0), x)
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				g.VMOVUPS(at(dst, lane*i), v.reg(i))
				g.multiplyAdd(v, at(u, 4*i), x, v.reg(i), v.reg(4+i))
				g.VMOVUPS(v.reg(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst)
			g.advance(4*count, u)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}

// multiplyAdd emits sum += element·x; t is spare.
func (g *gen) multiplyAdd(v isa, element operand.Mem, x, sum, t reg.Register) {
	if v.bytes == 64 {
		g.VFMADD231PS_BCST(element, x, sum)
		return
	}
	g.VBROADCASTSS(element, t)
	g.VFMADD231PS(t, x, sum)
}

// updateLanes is UpdateLanes for eight vectors, which stay in registers. Four sums at a time hide the latency of the
// multiply-add.
func (g *gen) updateLanes(v isa) {
	g.function("updateLanes"+v.name, "func(dst, u *float32, pitch int, x *float32, n int)",
		"sets dst[j] += Σ u[k][j]·x[k] over k < 8 for j < n; rows of u are pitch bytes apart.")
	const depth = 8
	dst, u, pitch, n := g.gp("dst"), g.gp("u"), g.gp("pitch"), g.gp("n")
	p := g.gp("x")
	x := func(k int) reg.VecPhysical { return v.reg(k) }
	for k := range depth {
		g.VMOVUPS(at(p, lane*k), x(k))
	}
	// Rows 0 to 3 are seen from u, 4 to 7 from u4.
	u4, pitch3 := g.GP64(), g.GP64()
	g.LEAQ(operand.Mem{Base: pitch, Index: pitch, Scale: 2}, pitch3)
	g.LEAQ(operand.Mem{Base: u, Index: pitch, Scale: 4}, u4)
	element := func(k, i int) operand.Mem {
		base := [...]reg.Register{u, u4}[k/4]
		switch k % 4 {
		case 0:
			return at(base, 4*i)
		case 3:
			return operand.Mem{Base: base, Index: pitch3, Scale: 1, Disp: 4 * i}
		default:
			return operand.Mem{Base: base, Index: pitch, Scale: uint8(k % 4), Disp: 4 * i}
		}
	}
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			sum := func(i int) reg.VecPhysical { return v.reg(depth + i) }
			for i := range count {
				g.VMOVUPS(at(dst, lane*i), sum(i))
			}
			for k := range depth {
				for i := range count {
					g.multiplyAdd(v, element(k, i), x(k), sum(i), v.reg(depth+4+i%2))
				}
			}
			for i := range count {
				g.VMOVUPS(sum(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst)
			g.advance(4*count, u, u4)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}

// dotLanes is DotLanes.
func (g *gen) dotLanes(v isa) {
	g.function("dotLanes"+v.name, "func(sum, x, y *float32, n int)", "sets sum to Σ x[j]·y[j] over j < n.")
	x, y, n := g.gp("x"), g.gp("y"), g.gp("n")
	for i := range 4 {
		g.zero(v, v.reg(i))
	}
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				g.VMOVUPS(at(x, lane*i), v.reg(4+i))
				g.VFMADD231PS(at(y, lane*i), v.reg(4+i), v.reg(i))
			}
			g.advance(lane*count, x, y)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VADDPS(v.reg(1), v.reg(0), v.reg(0))
	g.VADDPS(v.reg(3), v.reg(2), v.reg(2))
	g.VADDPS(v.reg(2), v.reg(0), v.reg(0))
	g.VMOVUPS(v.reg(0), at(g.gp("sum"), 0))
	g.VZEROUPPER()
	g.RET()
}
