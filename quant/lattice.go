package quant

import (
	"math"
	"math/bits"
)

// Lattice is the grid of a block type that stores the levels of several columns as one word of a codebook. A group's scale
// is an odd multiple of the block's: a weight of group k with code q, which is its level with its sign, decodes to
//
//	d·Step·sc[k]·q, sc odd from 1 to MaxScale
//
// which is exact in float32. A block's D is d, a float16 value; M is not used.
type Lattice struct {
	Name         string
	Block, Group int
	Codebook     *Codebook
	Signs        Signs
	Step         float32 // a power of two
	MaxScale     int
	Fitter       // chooses scales

	levels [3][]float32 // of the codebook: as they are, and shifted up and down
	noise  float64      // Σ(w−ŵ)² of a column to be expected, in squares of its scale
}

// Signs is how the columns of words get their signs.
type Signs int

const (
	// FreeSigns: each column has its own.
	FreeSigns Signs = iota
	// EvenSigns: of each 8 columns an even number are negative.
	EvenSigns
	// ShiftedWords: levels have signs of their own; all columns of a word are 1 above or below its levels.
	ShiftedWords
	// ShiftedGroups: the same, one shift for all words of a group.
	ShiftedGroups
)

const inf32 = float32(math.MaxFloat32)

// maxSpan is the largest group, and maxLattice the largest block.
const (
	maxSpan    = 32
	maxLattice = 256
)

// NewLattice completes a grid; its Fitter is set by whoever knows one.
func NewLattice(g Lattice) *Lattice {
	for _, l := range g.Codebook.Levels {
		for i, shift := range [3]float32{0, 1, -1} {
			g.levels[i] = append(g.levels[i], float32(l)+shift)
		}
	}
	g.noise = g.cell()
	return &g
}

// cell is 1/12 of the square of the width of a cubic cell, where there were as many of those as there are words. A column's
// levels would be some width apart if all combinations were words; as few are, cells are wider.
func (g *Lattice) cell() float64 {
	c := g.Codebook
	levels := float64(len(c.Levels))
	width := float64(c.Levels[len(c.Levels)-1]-c.Levels[0]) / (levels - 1)
	share := float64(c.Len()) / math.Pow(levels, float64(c.Width)) // of all combinations
	switch g.Signs {
	case EvenSigns:
		share /= math.Pow(2, float64(c.Width)/8)
	case ShiftedWords:
		share *= 2
	}
	width *= math.Pow(share, -1/float64(c.Width))
	return width * width / 12
}

// String returns the name.
func (g *Lattice) String() string { return g.Name }

// Shape returns the grid's. Bits are a column's share of the word and its sign, rounded.
func (g *Lattice) Shape() Shape {
	n := g.Codebook.Width
	word := bits.Len(uint(g.Codebook.Len() - 1))
	switch g.Signs {
	case FreeSigns:
		word += n
	case EvenSigns:
		word += n - n/8
	}
	return Shape{Block: g.Block, Group: g.Group, Bits: (2*word + n) / (2 * n)}
}

// Groups is the number of groups in a block.
func (g *Lattice) Groups() int { return g.Block / g.Group }

// Unit is how many columns are rounded together: a word's, or those whose signs or shift depend on each other.
func (g *Lattice) Unit() int {
	if g.Signs == ShiftedGroups {
		return g.Group
	}
	return 8
}

// Scale returns the scale of b's group k, which a code multiplies.
func (g *Lattice) Scale(b *Block, k int) float32 { return b.D * g.Step * float32(b.Sc[k]) }

// Decode sets dst, one block long, to b's values.
func (g *Lattice) Decode(dst []float32, b *Block) {
	for k := range g.Groups() {
		scale := g.Scale(b, k)
		codes := b.Codes[k*g.Group : (k+1)*g.Group]
		out := dst[k*g.Group : (k+1)*g.Group][:len(codes)]
		for j, q := range codes {
			out[j] = scale * float32(q)
		}
	}
}

// Noise is Weight.Noise for one block.
func (g *Lattice) Noise(b *Block) (sum float64) {
	for k := range g.Groups() {
		scale := float64(g.Scale(b, k))
		sum += scale * scale * g.noise * float64(g.Group)
	}
	return sum
}

// Round sets b's codes, for the scales that b has, to the words with which Σ importance·(w−ŵ)² is least.
func (g *Lattice) Round(b *Block, w, importance []float32) {
	var largest float32
	for _, v := range importance {
		largest = max(largest, v)
	}
	largest = min(largest, math.MaxFloat32)
	var weight [maxLattice]float32
	for j := range g.Block {
		weight[j] = 1
		if largest > 0 {
			weight[j] = max(min(importance[j], largest)/largest, 0)
		}
	}
	for k := range g.Groups() {
		lo, hi := k*g.Group, (k+1)*g.Group
		g.RoundGroup(b.Codes[lo:hi], w[lo:hi], weight[lo:hi], g.Scale(b, k))
	}
}

// RoundGroup sets the codes of a group, or of any of its units, to the words with which Σ weight·(w−ŵ)² is least under a
// scale. weight is from 0 to 1.
func (g *Lattice) RoundGroup(codes []int8, w, weight []float32, scale float32) {
	var inverse float32
	if scale != 0 {
		inverse = 1 / scale
	}
	var t [maxSpan]float32
	for j, v := range w {
		t[j] = v * inverse
	}
	switch g.Signs {
	case ShiftedGroups:
		g.roundShifted(codes, t[:len(w)], weight)
	case ShiftedWords:
		for j := 0; j < len(w); j += g.Codebook.Width {
			end := j + g.Codebook.Width
			g.roundShifted(codes[j:end], t[j:end], weight[j:end])
		}
	default:
		for j := 0; j < len(w); j += 8 {
			g.roundEight(codes[j:j+8], t[j:j+8], weight[j:j+8])
		}
	}
}

// roundShifted rounds words that share a shift.
func (g *Lattice) roundShifted(codes []int8, t, weight []float32) {
	c := g.Codebook
	n := c.Width
	var words [2][maxSpan / 8]int
	var cost [2]float32
	var low, high halfCosts
	for s := range cost {
		for i := range len(t) / n {
			t, weight := t[i*n:(i+1)*n], weight[i*n:(i+1)*n]
			low.fill(g.levels[1+s], t[:n/2], weight[:n/2], false)
			high.fill(g.levels[1+s], t[n/2:], weight[n/2:], false)
			word, e := c.nearest(&low, &high)
			words[s][i] = word
			cost[s] += e
		}
	}
	s, shift := 0, int8(1)
	if cost[1] < cost[0] {
		s, shift = 1, -1
	}
	for i, word := range words[s][:len(t)/n] {
		c.Put(codes[i*n:], word, 0)
	}
	for j := range codes {
		codes[j] += shift
	}
}

// roundEight rounds eight columns to a word of eight, or two of four, and signs.
func (g *Lattice) roundEight(codes []int8, signed, weight []float32) {
	c := g.Codebook
	var t [8]float32
	var signs byte
	for j, v := range signed {
		t[j] = v
		if v < 0 {
			t[j], signs = -v, signs|1<<j
		}
	}
	odd := g.Signs == EvenSigns && bits.OnesCount8(signs)%2 == 1
	levels := g.levels[0]
	var low, high halfCosts
	if c.Width == 8 {
		low.fill(levels, t[:4], weight[:4], odd)
		high.fill(levels, t[4:], weight[4:], odd)
		word, _ := 0, inf32
		if odd {
			word, _ = c.nearestFlipped(&low, &high)
			signs ^= 1 << c.cheapest(word, t[:], weight)
		} else {
			word, _ = c.nearest(&low, &high)
		}
		c.Put(codes, word, signs)
		return
	}
	var words [2]int
	extra, flipped, at := inf32, 0, 0 // what turning a sign costs, and the word and half where that is least
	for i := range words {
		t, weight := t[4*i:4*i+4], weight[4*i:4*i+4]
		low.fill(levels, t[:2], weight[:2], odd)
		high.fill(levels, t[2:], weight[2:], odd)
		word, e := c.nearest(&low, &high)
		words[i] = word
		if odd {
			if word, f := c.nearestFlipped(&low, &high); f-e < extra || i == 0 {
				extra, flipped, at = f-e, word, i
			}
		}
	}
	if odd {
		words[at] = flipped
		signs ^= 1 << (4*at + c.cheapest(flipped, t[4*at:4*at+4], weight[4*at:4*at+4]))
	}
	c.Put(codes, words[0], signs&15)
	c.Put(codes[4:], words[1], signs>>4)
}

// cheapest returns the column of a word whose sign costs least to turn.
func (c *Codebook) cheapest(word int, t, weight []float32) (column int) {
	least := inf32
	for j, v := range t {
		if e := float32(weight[j]*v) * float32(int8(c.packed[word]>>(8*j))); e < least {
			least, column = e, j
		}
	}
	return column
}
