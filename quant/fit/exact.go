package fit

import (
	"cmp"
	"math"
	"slices"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Storage is how a checkpoint's type rounds values: to Bits of fraction, in steps of at least 2^MinExponent.
type Storage struct {
	Round             func(float32) float32
	Bits, MinExponent int
}

// Exact sets b to the block on g that the weights w, one block, were before a checkpoint stored them as s: the one with
// s.Round(ŵ) = w for each. It says whether there is one; b's content is unspecified if not. Of several the one closest to w is
// taken, then the one that uses g's outermost codes. Where w = d·q and (−d)(−q) are both blocks, d is
// positive, as it is when weights are rounded to nearest. Grids with a
// super-block's scales have none.
//
// Checkpoints whose weights lie on a grid are those of quantization-aware training, and those that were quantized before and
// decoded. Weights that do not are told from the first few.
func Exact(g *quant.Affine, b *quant.Block, w []float32, s Storage) bool {
	e := exact{g: g, b: b, w: w, s: s}
	switch {
	case g.Scales.Super:
		return false
	case g.Scales.Floats != nil:
		return e.floats()
	case g.HasMinimum():
		return e.minimum()
	}
	return e.scale()
}

type exact struct {
	g     *quant.Affine
	b     *quant.Block
	w     []float32
	s     Storage
	codes [maxBlock]int8
}

// half is half the step between stored values around v: v may have been as far away.
func (e *exact) half(v float32) float64 {
	_, exp := math.Frexp(float64(v))
	return math.Ldexp(0.5, max(exp-1-e.s.Bits, e.s.MinExponent))
}

// byMagnitude lists the codes whose levels are not 0, those of the largest levels first.
func byMagnitude(g *quant.Affine) []int8 {
	var codes []int8
	for q := g.CodeMin; q <= g.CodeMax; q++ {
		if g.Level(int8(q)) != 0 {
			codes = append(codes, int8(q))
		}
	}
	slices.SortStableFunc(codes, func(a, b int8) int {
		return cmp.Compare(math.Abs(float64(g.Level(b))), math.Abs(float64(g.Level(a))))
	})
	return codes
}

func largest(w []float32) float32 {
	var top float32
	for _, v := range w {
		if math.Abs(float64(v)) > math.Abs(float64(top)) {
			top = v
		}
	}
	return top
}

// nearby: levels of the largest weight below this share of the first with which all match are not tried. Where a type's
// rounding leaves a choice, it is between neighbours.
const nearby = 0.95

// scale is Exact for blocks w = d·level: the largest weight has some level, which gives d and with it all codes.
func (e *exact) scale() bool {
	b, g := e.b, e.g
	b.DMin, b.Sc[0], b.M[0] = 0, 1, 0
	top := largest(e.w)
	if top == 0 {
		b.D = 0
		for j := range b.Codes {
			b.Codes[j] = g.NearestLevel(0)
		}
		return e.matches()
	}
	found, least, scale, first := false, 0.0, float32(0), 0.0
	var best [maxBlock]int8
	codes := g.Fitter.(*Search).lv.byMagnitude
	for _, q := range codes {
		level := float64(g.Level(q))
		h := e.half(top)
		from, to := (float64(top)-h)/level, (float64(top)+h)/level
		if found && math.Abs(level) < nearby*math.Abs(first) {
			break
		}
		// In parts of that range a weight is near one level alone, but for its own rounding.
		parts := math.Ceil(32 * math.Abs((to-from)/(to+from)*float64(g.Level(codes[0]))))
		for part := 0.0; part < parts; part++ {
			lo, hi, ok := e.scales(from+part/parts*(to-from), from+(part+1)/parts*(to-from))
			if !ok {
				continue
			}
			copy(b.Codes, e.codes[:])
			for _, b.D = range halves(lo, hi) {
				if !e.matches() {
					continue
				}
				if err := e.error(); !found || err < least {
					if !found {
						first = level
					}
					found, least, scale = true, err, b.D
					copy(best[:], b.Codes)
				}
			}
		}
	}
	b.D = scale
	copy(b.Codes, best[:])
	g.MakePositive(b)
	return found
}

// scales sets codes to those of the levels nearest to the weights for a scale between two, and returns the part of these
// scales with which all weights can have been these levels.
func (e *exact) scales(from, to float64) (lo, hi float64, ok bool) {
	d := float32((from + to) / 2)
	if d == 0 || d-d != 0 {
		return 0, 0, false
	}
	lo, hi = min(from, to), max(from, to)
	for j, v := range e.w {
		q := e.g.NearestLevel(v / d)
		e.codes[j] = q
		l := float64(e.g.Level(q))
		if l == 0 {
			if v != 0 {
				return 0, 0, false
			}
			continue
		}
		h := e.half(v)
		a, b := (float64(v)-h)/l, (float64(v)+h)/l
		lo, hi = max(lo, min(a, b)), min(hi, max(a, b))
		if lo > hi {
			return 0, 0, false
		}
	}
	return lo, hi, true
}

// minimum is Exact for blocks w = d·level − dmin: the least and the largest weight have some levels.
func (e *exact) minimum() bool {
	b, g := e.b, e.g
	b.Sc[0], b.M[0] = 1, 1
	lo, hi := slices.Min(e.w), slices.Max(e.w)
	if lo == hi {
		b.D, b.DMin = 0, -tensor.RoundF16(lo)
		for j := range b.Codes {
			b.Codes[j] = int8(g.CodeMin)
		}
		return e.matches()
	}
	found, least := false, 0.0
	var best quant.Block
	var codes [maxBlock]int8
	for span := g.CodeMax - g.CodeMin; span > 0; span-- {
		for first := g.CodeMin; first+span <= g.CodeMax; first++ {
			d := (hi - lo) / float32(span)
			if !e.assign(d, d*float32(first)-lo) {
				continue
			}
			copy(b.Codes, e.codes[:])
			slope, dmin := e.line()
			for _, d := range around(slope, 4) {
				for _, m := range around(dmin, 4) {
					b.D, b.DMin = d, m
					if !e.matches() {
						continue
					}
					if err := e.error(); !found || err < least {
						found, least, best.D, best.DMin = true, err, d, m
						copy(codes[:], b.Codes)
					}
				}
			}
		}
	}
	b.D, b.DMin = best.D, best.DMin
	copy(b.Codes, codes[:])
	return found
}

// line fits w = d·level − dmin by least squares.
func (e *exact) line() (d, dmin float64) {
	var l1, l2, x1, xl float64
	n := float64(len(e.w))
	for j, v := range e.w {
		l, x := float64(e.g.Level(e.codes[j])), float64(v)
		l1 += l
		l2 += l * l
		x1 += x
		xl += x * l
	}
	d = (n*xl - x1*l1) / (n*l2 - l1*l1)
	return d, (d*l1 - x1) / n
}

// floats is Exact for groups whose scales are floating-point numbers of eight bits.
func (e *exact) floats() bool {
	g, b := e.g, e.b
	b.D, b.DMin = 0, 0
	for k := range g.Groups() {
		w := e.w[k*g.Group : (k+1)*g.Group]
		codes := b.Codes[k*g.Group : (k+1)*g.Group]
		b.M[k] = 0
		if !e.floatGroup(&b.Sc[k], codes, w) {
			return false
		}
	}
	return e.matches()
}

func (e *exact) floatGroup(sc *int8, codes []int8, w []float32) bool {
	g, s := e.g, &e.g.Scales
	top := largest(w)
	if top == 0 {
		*sc = quant.FloatCode(byte(s.Min))
		for j := range codes {
			codes[j] = g.NearestLevel(0)
		}
		return true
	}
	for _, q := range g.Fitter.(*Search).lv.byMagnitude {
		wanted := top / g.Level(q)
		slack := float32(math.Ldexp(1, -e.s.Bits))
		i, _ := slices.BinarySearch(s.Floats[s.Min:s.Max], wanted*(1-slack))
		for i += s.Min; i <= s.Max && s.Floats[i] <= wanted*(1+slack); i++ {
			ok := true
			for j, v := range w {
				codes[j] = g.NearestLevel(v / s.Floats[i])
				if ok = e.s.Round(s.Floats[i]*g.Level(codes[j])) == v; !ok {
					break
				}
			}
			if ok {
				*sc = quant.FloatCode(byte(i))
				return true
			}
		}
	}
	return false
}

// assign sets codes to those of the nearest levels, and says whether all weights are about where these are: as far as d and
// dmin, computed from stored weights, can be off.
func (e *exact) assign(d, dmin float32) bool {
	offset := math.Abs(float64(dmin))
	for j, v := range e.w {
		q := e.g.NearestLevel((v + dmin) / d)
		off := math.Abs(float64(v - (d*e.g.Level(q) - dmin)))
		if off > 4*(e.half(v)+e.half(float32(offset))+e.half(d)) {
			return false
		}
		e.codes[j] = q
	}
	return true
}

// matches says whether a reader of b has w, but for how it was stored.
func (e *exact) matches() bool {
	var values [maxBlock]float32
	e.g.Decode(values[:len(e.w)], e.b)
	for j, v := range e.w {
		if e.s.Round(values[j]) != v {
			return false
		}
	}
	return true
}

// error is Σ(w−ŵ)².
func (e *exact) error() float64 {
	var values [maxBlock]float32
	e.g.Decode(values[:len(e.w)], e.b)
	var sum float64
	for j, v := range e.w {
		d := float64(v) - float64(values[j])
		sum += d * d
	}
	return sum
}

// halves lists the float16 numbers from lo to hi, which have one sign, and their neighbours.
func halves(lo, hi float64) []float32 {
	if math.Abs(lo) > math.Abs(hi) {
		lo, hi = hi, lo
	}
	const signBit, infinity, most = 0x8000, 0x7c00, 64
	a, b := int(tensor.ToF16(float32(lo))), int(tensor.ToF16(float32(hi)))
	sign := b & signBit
	a, b = max(a&^signBit-1, 0), min(b&^signBit+1, infinity-1)
	list := make([]float32, 0, most+1)
	for m := a; m <= min(b, a+most); m++ {
		list = append(list, tensor.F16(uint16(sign|m)))
	}
	return list
}

// around lists the float16 number nearest to v, and n on either side of it.
func around(v float64, n int) []float32 {
	const signBit, infinity = 0x8000, 0x7c00
	at := int(tensor.ToF16(float32(v)))
	sign, magnitude := at&signBit, at&^signBit
	var list []float32
	for m := max(magnitude-n, 0); m <= min(magnitude+n, infinity-1); m++ {
		list = append(list, tensor.F16(uint16(sign|m)))
	}
	return list
}
