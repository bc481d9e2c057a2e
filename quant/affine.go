package quant

import (
	"math"
	"math/bits"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/tensor"
)

// Affine is the grid of a block type whose columns have a code each. A weight in group k with code q decodes, in float32
// and in this order, to
//
//	scale := d·sc[k]        minimum := dmin·m[k]
//	value := scale·level(q) − minimum
//
// where level(q) is q, or Codebook[q] for the non-linear types; with floating-point scales of eight bits, scale is the value
// of sc[k] and there is no d. A block's D and DMin are d and dmin, float16 values (D of a grid with BF16 a bfloat16 value, DMin
// with a ZeroPoint a multiple of D); its Sc and M are sc and m, small integers.
type Affine struct {
	Name             string
	Block, Group     int
	CodeMin, CodeMax int       // codes are in [CodeMin, CodeMax]
	Codebook         []float32 // ascending levels of the codes from CodeMin on; nil where a code is its own level
	Scales           Scales
	Minimums         Minimums
	BF16             bool // D is a bfloat16 value, not a float16 one
	Fitter                // chooses scales
}

// Fitter chooses d, dmin, sc and m: see Grid.Fit.
type Fitter interface {
	Fit(b []Block, w, importance []float32, e Effort)
}

// Scales says what a group's scale can be. The zero value is the block's one scale, d itself: Sc is 1.
type Scales struct {
	Super bool // a super-block: each group has a sc in [Min, Max], which d multiplies
	// Floats, where not nil, are the values of floating-point scales of eight bits, by byte. Each group has one, of which Sc
	// is the FloatCode, and there is no d: what Floats say is the scale. Those from Min to Max ascend, and are chosen from.
	Floats   *[256]float32
	Min, Max int
}

// Bounds returns the smallest and the largest Sc.
func (s Scales) Bounds() (lo, hi int) {
	switch {
	case s.Floats != nil:
		return math.MinInt8, math.MaxInt8
	case s.Super:
		return s.Min, s.Max
	}
	return 1, 1
}

// OfGroups says whether each group has a scale of its own.
func (s Scales) OfGroups() bool { return s.Super || s.Floats != nil }

// FloatCode is a byte of eight bits' floating-point number as a Block's Sc holds it; FloatByte is the inverse.
func FloatCode(b byte) int8 { return int8(int(b) - 128) }

// FloatByte returns the byte behind a FloatCode.
func FloatByte(sc int8) byte { return byte(int(sc) + 128) }

// nearest returns the Sc of the one of Floats from Min to Max that is nearest to v.
func (s Scales) nearest(v float32) int8 {
	i := s.above(v)
	if i > s.Min && v-s.Floats[i-1] < s.Floats[i]-v {
		i--
	}
	return FloatCode(byte(i))
}

// above returns the first of Floats from Min to Max that is not below v, Max if all are.
func (s Scales) above(v float32) int {
	i, _ := slices.BinarySearch(s.Floats[s.Min:s.Max], v)
	return s.Min + i
}

// Minimums says what is subtracted. The zero value is nothing.
type Minimums struct {
	Kind MinimumKind
	Min  int // of ZeroPoint
	Max  int // of GroupMinimums and of ZeroPoint
}

// MinimumKind is where minimums are stored.
type MinimumKind int

const (
	NoMinimum     MinimumKind = iota
	BlockMinimum              // dmin alone, of either sign: M is 1
	GroupMinimums             // each group has an m in [0, Minimums.Max]
	ZeroPoint                 // dmin is d·z, z a whole number in [Minimums.Min, Minimums.Max]: value = d·(q − z). M is 1
)

// String returns the name.
func (g *Affine) String() string { return g.Name }

// Shape returns the grid's.
func (g *Affine) Shape() Shape {
	return Shape{Block: g.Block, Group: g.Group, Bits: bits.Len(uint(g.CodeMax - g.CodeMin))}
}

// Groups is the number of groups in a block.
func (g *Affine) Groups() int { return g.Block / g.Group }

// HasMinimum says whether anything is subtracted.
func (g *Affine) HasMinimum() bool { return g.Minimums.Kind != NoMinimum }

// RoundScale returns v rounded to what D can be: float16, or bfloat16.
func (g *Affine) RoundScale(v float32) float32 {
	if g.BF16 {
		return tensor.BF16(tensor.ToBF16(v))
	}
	return tensor.RoundF16(v)
}

// Zero returns the z of a block of a grid with a ZeroPoint.
func (g *Affine) Zero(b *Block) int {
	if b.D == 0 {
		return g.zeroNear((float64(g.CodeMin) + float64(g.CodeMax) + 1) / 2)
	}
	return g.zeroNear(float64(b.DMin) / float64(b.D))
}

func (g *Affine) zeroNear(z float64) int {
	return int(min(max(math.RoundToEven(z), float64(g.Minimums.Min)), float64(g.Minimums.Max)))
}

// OneScale says whether a block has one scale and all else is codes that are their own levels: signed integers.
func (g *Affine) OneScale() bool { return !g.Scales.OfGroups() && !g.HasMinimum() && g.Codebook == nil }

// MakePositive makes the scale of b positive where d·q and (−d)(−q) are both blocks: where codes are signed integers of some
// bits and none is the least, whose opposite there is not. What is rounded to nearest, and what was and is found again, then
// agree.
func (g *Affine) MakePositive(b *Block) {
	if !g.OneScale() || g.CodeMin != -g.CodeMax-1 || !(b.D < 0) || slices.Contains(b.Codes, int8(g.CodeMin)) {
		return
	}
	b.D = -b.D
	for j, q := range b.Codes {
		b.Codes[j] = -q
	}
}

// Scale returns the scale and the minimum of b's group k as the decoder computes them.
func (g *Affine) Scale(b *Block, k int) (scale, minimum float32) {
	if f := g.Scales.Floats; f != nil {
		return f[FloatByte(b.Sc[k])], 0
	}
	return b.D * float32(b.Sc[k]), b.DMin * float32(b.M[k])
}

// Level returns the level of code q.
func (g *Affine) Level(q int8) float32 {
	if g.Codebook != nil {
		return g.Codebook[int(q)-g.CodeMin]
	}
	return float32(q)
}

// Decode sets dst, one block long, to b's values.
func (g *Affine) Decode(dst []float32, b *Block) {
	for k := range g.Groups() {
		scale, minimum := g.Scale(b, k)
		for j := k * g.Group; j < (k+1)*g.Group; j++ {
			// The conversion forbids a fused multiply-add, which other decoders do not use.
			dst[j] = float32(scale*g.Level(b.Codes[j])) - minimum
		}
	}
}

// Round sets b's codes to those nearest to w, one block.
func (g *Affine) Round(b *Block, w, _ []float32) {
	for k := range g.Groups() {
		scale, minimum := g.Scale(b, k)
		x, codes := w[k*g.Group:(k+1)*g.Group], b.Codes[k*g.Group:(k+1)*g.Group]
		if g.Codebook == nil && scale != 0 {
			search.NearestLevels(codes, x, scale, minimum, int8(g.CodeMin), int8(g.CodeMax))
			continue
		}
		for j, v := range x {
			codes[j] = g.Nearest(v, scale, minimum)
		}
	}
}

// Nearest returns the code whose value scale·level(q) − minimum is nearest to x. With a zero scale every code has the
// same value, and the one of level zero is returned.
func (g *Affine) Nearest(x, scale, minimum float32) int8 {
	if scale == 0 {
		return g.zeroCode()
	}
	return g.NearestLevel((x + minimum) / scale)
}

// NearestLevel returns the code whose level is nearest to v.
func (g *Affine) NearestLevel(v float32) int8 {
	if g.Codebook == nil {
		// Clamp before converting: an integer conversion of a huge value is not defined.
		v = min(max(v, float32(g.CodeMin)), float32(g.CodeMax))
		return int8(math.RoundToEven(float64(v)))
	}
	lo, hi := 0, len(g.Codebook)-1
	for lo < hi { // the first level whose midpoint with the next is at or above v
		mid := (lo + hi) / 2
		if v <= (g.Codebook[mid]+g.Codebook[mid+1])/2 {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return int8(lo + g.CodeMin)
}

func (g *Affine) zeroCode() int8 {
	if g.Codebook != nil {
		return g.NearestLevel(0)
	}
	return int8(min(max(0, g.CodeMin), g.CodeMax))
}

// Noise is Weight.Noise for one block.
func (g *Affine) Noise(b *Block) float64 {
	var sum float64
	for k := range g.Groups() {
		scale, _ := g.Scale(b, k)
		cells := float64(g.Group)
		if g.Codebook != nil {
			cells = 0
			for _, q := range b.Codes[k*g.Group : (k+1)*g.Group] {
				c := g.cell(q)
				cells += c * c
			}
		}
		sum += float64(scale) * float64(scale) * cells / 12
	}
	return sum
}

// cell is the width of code q's cell in levels of a codebook. An outermost cell is as wide as its inner half says.
func (g *Affine) cell(q int8) float64 {
	i := int(q) - g.CodeMin
	lo, hi := max(i-1, 0), min(i+1, len(g.Codebook)-1)
	return float64(g.Codebook[hi]-g.Codebook[lo]) / float64(hi-lo)
}

// Quadratic is the change of an error when a scale rises by x and a minimum by y: −2(Px+Qy) + Ax² + 2Bxy + Cy².
type Quadratic struct{ P, Q, A, B, C float64 }

// At returns the change.
func (e *Quadratic) At(x, y float64) float64 {
	return -2*(e.P*x+e.Q*y) + e.A*x*x + 2*e.B*x*y + e.C*y*y
}

// MoveGroups moves the scales and the minimums of 16 groups, which have their own, to those of the neighbouring values with which errors are
// least, and returns a bit for each that moved: see search.Moves, whose multiples are Sc and M, and whose steps D and DMin.
func (g *Affine) MoveGroups(s *search.Moves, c float64) uint16 {
	if !g.HasMinimum() {
		s.StepMinimum = kernels.Lane{}
	}
	return s.Move(c, g.Scales.Min, g.Scales.Max, g.Minimums.Max)
}

// MoveFloat moves the floating-point scale of b's group k to that of the values beside the best with which e is least, and says whether
// it moved.
func (g *Affine) MoveFloat(b *Block, k int, e *Quadratic) bool {
	now, _ := g.Scale(b, k)
	wanted := float64(now) + e.P/e.A
	if wanted != wanted {
		return false
	}
	best, old := -1e-9*math.Abs(e.A)*float64(now)*float64(now), b.Sc[k]
	above := g.Scales.above(float32(wanted))
	for i := max(above-1, g.Scales.Min); i <= above; i++ {
		if v := e.At(float64(g.Scales.Floats[i])-float64(now), 0); v < best {
			best, b.Sc[k] = v, FloatCode(byte(i))
		}
	}
	return b.Sc[k] != old
}

// MoveBlock moves b's D and DMin to the float16 values with which e, of these two, is least, and says whether they moved.
func (g *Affine) MoveBlock(b *Block, e *Quadratic) bool {
	if g.Scales.Floats != nil {
		return false // there is neither
	}
	if g.Minimums.Kind == ZeroPoint {
		return g.moveZero(b, e)
	}
	x, y := e.P/e.A, 0.0
	if e.C > 0 {
		if det := e.A*e.C - e.B*e.B; det > 1e-9*e.A*e.C {
			x, y = (e.P*e.C-e.Q*e.B)/det, (e.A*e.Q-e.B*e.P)/det
		}
	}
	d := g.RoundScale(b.D + float32(x))
	dmin := tensor.RoundF16(b.DMin + float32(y))
	if d-d != 0 || dmin-dmin != 0 || d == b.D && dmin == b.DMin || e.At(float64(d)-float64(b.D), float64(dmin)-float64(b.DMin)) >= 0 {
		return false
	}
	b.D, b.DMin = d, dmin
	return true
}

// moveZero is MoveBlock for a zero point: of the whole numbers around the best minimum over the best scale, each with the scale
// that then is best, it takes the one with the least e.
func (g *Affine) moveZero(b *Block, e *Quadratic) bool {
	det := e.A*e.C - e.B*e.B
	if b.D == 0 || !(det > 1e-9*e.A*e.C) {
		return false
	}
	d, dmin := float64(b.D), float64(b.DMin)
	near := (dmin + (e.A*e.Q-e.B*e.P)/det) / (d + (e.P*e.C-e.Q*e.B)/det)
	if near-near != 0 {
		return false
	}
	var best float64
	bestD, bestZ := b.D, g.Zero(b)
	for _, z := range [...]int{bestZ, g.zeroNear(math.Floor(near)), g.zeroNear(math.Ceil(near))} {
		// With the minimum t·z, e is least at this scale t.
		f := float64(z)
		t := g.RoundScale(float32((e.P + e.Q*f + e.A*d + e.B*(dmin+d*f) + e.C*dmin*f) / (e.A + 2*e.B*f + e.C*f*f)))
		if t-t != 0 || t == 0 {
			continue
		}
		if v := e.At(float64(t)-d, float64(t)*f-dmin); v < best {
			best, bestD, bestZ = v, t, z
		}
	}
	if best == 0 {
		return false
	}
	b.D, b.DMin = bestD, bestD*float32(bestZ)
	return true
}

// Shrink multiplies what group k's scale and minimum are by share, rounded to what b can store: its own integers where
// b is a super-block, else D and DMin, which are the group's alone.
func (g *Affine) Shrink(b *Block, k int, share float64) {
	if g.Scales.Floats != nil {
		scale, _ := g.Scale(b, k)
		b.Sc[k] = g.Scales.nearest(scale * float32(share))
		return
	}
	if !g.Scales.Super {
		if g.Minimums.Kind == ZeroPoint {
			z := g.Zero(b)
			b.D = g.RoundScale(b.D * float32(share))
			b.DMin = b.D * float32(z)
			return
		}
		b.D, b.DMin = g.RoundScale(b.D*float32(share)), tensor.RoundF16(b.DMin*float32(share))
		return
	}
	b.Sc[k] = int8(min(max(math.RoundToEven(float64(b.Sc[k])*share), float64(g.Scales.Min)), float64(g.Scales.Max)))
	if g.HasMinimum() {
		b.M[k] = int8(min(math.RoundToEven(float64(b.M[k])*share), float64(g.Minimums.Max)))
	}
}
