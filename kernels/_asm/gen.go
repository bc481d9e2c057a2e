package main

import (
	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// isa is a vector width.
type isa struct {
	name  string
	bytes int
	spec  reg.Spec
}

var (
	avx2   = isa{"AVX2", 32, reg.S256}
	avx512 = isa{"AVX512", 64, reg.S512}
)

// lanes is the number of 32-bit elements of a vector.
func (v isa) lanes() int { return v.bytes / 4 }

// reg returns vector register i. Kernels name their registers themselves, because the allocator does not see into
// instructions that are emitted as bytes, and because which value lives where is what a kernel is about.
func (v isa) reg(i int) reg.VecPhysical {
	return reg.LookupPhysical(reg.KindVector, reg.Index(i), v.spec).(reg.VecPhysical)
}

// gp loads a parameter into a general register.
func (g *gen) gp(name string) reg.GPVirtual {
	return g.Load(g.Param(name), g.GP64()).(reg.GPVirtual)
}

// at is the memory at base+disp.
func at(base reg.Register, disp int) operand.Mem { return operand.Mem{Base: base, Disp: disp} }

// countdown emits a loop that runs body while count ≥ step, taking step off each time. Labels are made from name.
func (g *gen) countdown(name string, count reg.Register, step int, body func()) {
	g.CMPQ(count, operand.I32(int32(step)))
	g.JL(operand.LabelRef(name + "_done"))
	g.Label(name)
	body()
	g.SUBQ(operand.I32(int32(step)), count)
	g.CMPQ(count, operand.I32(int32(step)))
	g.JGE(operand.LabelRef(name))
	g.Label(name + "_done")
}

// count is the number of vector registers.
func (v isa) count() int {
	if v.bytes == 64 {
		return 32
	}
	return 16
}

// param is a parameter's place in memory.
func (g *gen) param(name string) operand.Mem {
	basic, err := g.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return basic.Addr
}

// zero clears a vector register.
func (g *gen) zero(v isa, r reg.Register) {
	if v.bytes == 64 {
		g.VPXORD(r, r, r)
	} else {
		g.VXORPS(r, r, r)
	}
}

// sum adds up the lanes of vectors rs into the low lane of rs[0].
func (g *gen) sum(v isa, rs ...reg.VecPhysical) {
	for n := len(rs); n > 1; n /= 2 {
		for i := range n / 2 {
			g.VADDPS(rs[i+n/2], rs[i], rs[i])
		}
	}
	r, t := rs[0], rs[1]
	if v.bytes == 64 {
		g.VEXTRACTF64X4(operand.U8(1), r, t.AsY())
		g.VADDPS(t.AsY(), r.AsY(), r.AsY())
	}
	g.VEXTRACTF128(operand.U8(1), r.AsY(), t.AsX())
	g.VADDPS(t.AsX(), r.AsX(), r.AsX())
	g.VMOVHLPS(r.AsX(), t.AsX(), t.AsX())
	g.VADDPS(t.AsX(), r.AsX(), r.AsX())
	g.VMOVSHDUP(r.AsX(), t.AsX())
	g.VADDSS(t.AsX(), r.AsX(), r.AsX())
}

// function starts a function that keeps none of its pointers.
func (g *gen) function(name, signature string, doc ...string) {
	g.Function(name)
	g.SignatureExpr(signature)
	g.Attributes(attr.NOSPLIT)
	g.Pragma("noescape")
	doc[0] = name + " " + doc[0]
	g.Doc(doc...)
}

// rodata marks constants.
const rodata = attr.RODATA | attr.NOPTR
