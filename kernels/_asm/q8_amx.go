package main

import (
	"encoding/binary"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// byteTokens is the height of a panel of inputs for AMX: the rows of a tile.
const byteTokens = 16

// q8AMX writes the products of q8 for AMX, 16 tokens by 32 outputs, for groups of 32 that share a scale. Levels are signed, and no
// sums of codes are needed but for minimums.
func q8AMX(g *gen) {
	p := g.groupProducts("q8Config")
	for _, v := range q8Variants {
		if v.parts == 1 {
			g.q8TileAMX(v, p)
		}
	}
	g.q8Round("q8RoundAVX2x16", byteTokens)
}

// groupProducts is the part of a kernel that multiplies a group of 32 columns: 16 rows of x by 16 columns of w, signed bytes both. The
// integer sums, a tile, go to memory, which vectors read. A product, and the write of its tile, take 16 cycles each, and the vectors have
// to wait for both: so products are groupsAhead groups ahead, and their sums lie in a ring of four tiles.
type groupProducts struct {
	config                 operand.Mem
	x, rowX, w, rowW, rowC reg.GPPhysical // rowX, rowW and rowC are bytes between rows
	put, get, left, cfg    reg.GPPhysical // what is written and read of the ring; the groups that are not yet multiplied
}

const (
	groupsAhead = 2
	ringTiles   = 4
)

// groupProducts returns the registers that kernels share, and writes the configuration of tiles: C, A and B.
func (g *gen) groupProducts(name string) *groupProducts {
	return &groupProducts{config: g.tileShapes(name, [][2]byte{{16, 64}, {16, q8Group}, {q8Group / 4, 64}}), x: reg.RSI, rowX: reg.R14,
		w: reg.RDX, rowW: reg.R12, rowC: reg.R13, put: reg.RBX, get: reg.R11, left: reg.RCX, cfg: reg.RAX}
}

// tileShapes returns LDTILECFG's operand: of each tile its rows, and the bytes of one.
func (g *gen) tileShapes(name string, shapes [][2]byte) operand.Mem {
	var c [64]byte
	c[0] = 1 // palette
	for t, shape := range shapes {
		c[48+t], c[16+2*t] = shape[0], shape[1]
	}
	config := g.StaticGlobal(name)
	g.DataAttributes(rodata)
	for i := 0; i < 64; i += 8 {
		g.AddDatum(i, operand.U64(binary.LittleEndian.Uint64(c[i:])))
	}
	return config
}

// begin makes room for the ring, whose address is a multiple of twice its length, and configures the tiles.
func (p *groupProducts) begin(g *gen) {
	const ring = ringTiles * 1024
	g.LEAQ(g.AllocLocal(3*ring), p.put)
	g.ADDQ(operand.I32(2*ring-1), p.put)
	g.ANDQ(operand.I32(-2*ring), p.put)
	g.MOVQ(p.put, p.get)
	g.MOVQ(operand.I32(4*q8Outputs), p.rowW)
	g.MOVQ(operand.I32(64), p.rowC)
	g.LEAQ(p.config, p.cfg)
	g.tileConfig(p.cfg)
}

// multiply multiplies the next group, if there is one; x is step bytes after this one there. Labels are made from name.
func (p *groupProducts) multiply(g *gen, name string, step int) {
	g.TESTQ(p.left, p.left)
	g.JZ(operand.LabelRef(name))
	g.tileZero(0)
	g.tileLoad(1, p.x, p.rowX, 0)
	g.tileLoad(2, p.w, p.rowW, 0)
	g.tdpbssd(0, 1, 2)
	g.tileStore(0, p.put, p.rowC, 0)
	g.advance(step, p.x)
	g.advance(q8Group*q8Outputs, p.w)
	p.turn(g, p.put)
	g.DECQ(p.left)
	g.Label(name)
}

// turn goes on to the next tile of the ring.
func (p *groupProducts) turn(g *gen, r reg.Register) {
	g.ADDQ(operand.I32(1024), r)
	g.ANDQ(operand.I32(^(ringTiles * 1024)), r)
}

// q8TileAMX keeps half of C, 16 vectors, in registers. As in q8, the bits of 1.5·2^(23+e) make a number of a sum: added here, since a tile of them,
// to start at, would take as long to load as two tiles of inputs.
func (g *gen) q8TileAMX(v q8Variant, p *groupProducts) {
	g.Function("q8" + v.name + "AMX") // its frame is large: the stack is checked
	g.SignatureExpr(q8Signature)
	g.Pragma("noescape")
	doc := q8Doc(byteTokens, q8Outputs)
	doc[0] = "q8" + v.name + "AMX " + doc[0]
	doc[len(doc)-1] = "from this one's; panels and groups are positive. Levels are signed, without an offset."
	g.Doc(doc...)
	z := avx512.reg
	c := z
	scale, minimum := z(byteTokens), z(byteTokens+1)
	start := func(t int) reg.VecPhysical { return z(byteTokens + 2 + 2*(t%6)) }
	sum := func(t int) reg.VecPhysical { return z(byteTokens + 3 + 2*(t%6)) }
	sums, scales, groups, dst, rowC, half := reg.RDI, reg.R8, reg.RAX, reg.R9, reg.R10, reg.R15
	word := func(i, t int) operand.Mem { return at(sums, 4*(byteTokens*i+t)) }
	p.begin(g)
	g.Load(g.Param("c"), dst)
	g.Load(g.Param("rowC"), rowC)
	g.MOVQ(operand.I32(q8Group), p.rowX)
	g.Label("panel")
	g.Comment("Bring C near while the sums run.")
	g.MOVQ(dst, scales)
	for range byteTokens {
		g.PREFETCHT0(at(scales, 0))
		g.PREFETCHT0(at(scales, 4*q8Outputs-1))
		g.ADDQ(rowC, scales)
	}
	g.XORQ(half, half)
	g.Label("half")
	g.Load(g.Param("x"), p.x)
	g.Load(g.Param("sums"), sums)
	g.Load(g.Param("w"), p.w)
	g.Load(g.Param("scale"), scales)
	g.ADDQ(half, p.w)
	g.ADDQ(half, scales)
	g.Load(g.Param("groups"), groups)
	g.MOVQ(groups, p.left)
	for t := range byteTokens {
		g.zero(avx512, c(t))
	}
	for _, name := range []string{"first", "second"} {
		p.multiply(g, name, byteTokens*q8Group)
	}
	g.Label("group")
	p.multiply(g, "scale", byteTokens*q8Group)
	g.VMOVUPS(at(scales, 0), scale)
	if v.minimums {
		g.VMOVUPS(at(scales, 4*q8Outputs), minimum)
	}
	for t := range byteTokens {
		g.VPBROADCASTD(word(v.parts, t), start(t))
		g.VPADDD(at(p.get, 64*t), start(t), sum(t))
		g.VSUBPS(start(t), sum(t), sum(t))
		g.VFMADD231PS(scale, sum(t), c(t))
		if v.minimums {
			g.VFNMADD231PS_BCST(word(v.parts+1, t), minimum, c(t))
		}
	}
	g.advance(4*byteTokens*v.words(), sums)
	rowScale := 4 * q8Outputs
	if v.minimums {
		rowScale *= 2
	}
	g.advance(rowScale, scales)
	p.turn(g, p.get)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	step, add, row := groups, reg.RCX, scales
	g.Load(g.Param("step"), step)
	for t := range byteTokens {
		g.VMULPS_BCST(at(step, 4*t), c(t), c(t))
	}
	g.MOVBQZX(g.param("add"), add)
	g.LEAQ(operand.Mem{Base: dst, Index: half, Scale: 1}, row)
	g.TESTQ(add, add)
	g.JZ(operand.LabelRef("store"))
	for t := range byteTokens {
		g.VADDPS(at(row, 0), c(t), c(t))
		g.ADDQ(rowC, row)
	}
	g.LEAQ(operand.Mem{Base: dst, Index: half, Scale: 1}, row)
	g.Label("store")
	for t := range byteTokens {
		g.VMOVUPS(c(t), at(row, 0))
		g.ADDQ(rowC, row)
	}
	g.XORQ(operand.I32(64), half)
	g.JNZ(operand.LabelRef("half"))
	g.Comment("The next panel follows this one.")
	g.MOVQ(p.x, g.param("x"))
	g.MOVQ(sums, g.param("sums"))
	g.ADDQ(operand.I32(4*byteTokens), step)
	g.MOVQ(step, g.param("step"))
	g.MOVQ(row, dst)
	g.SUBQ(operand.I32(64), dst)
	g.DECQ(g.param("panels"))
	g.JNZ(operand.LabelRef("panel"))
	g.tileRelease()
	g.VZEROUPPER()
	g.RET()
}
