package quant

import (
	"math"
	"math/bits"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/codebook"
	"github.com/llmq/llmq/tensor"
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

// maxUnit is the largest unit, a group of IQ1_S, and maxLattice the largest block.
const (
	maxUnit    = 32
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
	s := rounders.Get().(*Rounder)
	defer rounders.Put(s)
	// The block's units go to the lanes.
	n := g.Unit()
	var level, x, weight [maxUnit]kernels.Lane
	for first := 0; first < g.Block; first += n * kernels.Lanes {
		lanes := min(kernels.Lanes, (g.Block-first)/n)
		var inverse kernels.Lane
		for i := range lanes {
			at := first + i*n
			inverse[i] = inverseOf(g.Scale(b, at/g.Group))
			for j := range n {
				x[j][i], weight[j][i] = w[at+j], 1
				if largest > 0 {
					weight[j][i] = max(min(importance[at+j], largest)/largest, 0)
				}
			}
		}
		g.RoundLanes(s, level[:n], x[:n], weight[:n], &inverse)
		for i := range lanes {
			codes := b.Codes[first+i*n:][:n]
			for j := range codes {
				codes[j] = int8(level[j][i])
			}
		}
	}
}

// MoveGroup moves the scale of b's group k to that of the odd multiples beside the best with which e, in the scale alone, is
// least, and says whether it moved.
func (g *Lattice) MoveGroup(b *Block, k int, e *Quadratic) bool {
	unit := float64(b.D * g.Step)
	sc := float64(b.Sc[k])
	wanted := sc + e.P/e.A/unit
	if wanted-wanted != 0 {
		return false
	}
	least, best := -1e-9*math.Abs(e.A)*unit*unit, sc
	below := 2*math.Floor((wanted-1)/2) + 1
	for _, s := range [2]float64{below, below + 2} {
		s = min(max(s, 1), float64(g.MaxScale))
		if v := e.At((s-sc)*unit, 0); v < least {
			least, best = v, s
		}
	}
	b.Sc[k] = int8(best)
	return best != sc
}

// MoveBlock moves b's D to the float16 value with which e, in D alone, is least, and says whether it moved.
func (g *Lattice) MoveBlock(b *Block, e *Quadratic) bool {
	d := tensor.RoundF16(b.D + float32(e.P/e.A))
	if !(d > 0) || d-d != 0 || d == b.D || e.At(float64(d)-float64(b.D), 0) >= 0 {
		return false
	}
	b.D = d
	return true
}

// inverseOf returns 1/scale, and 0 for 0.
func inverseOf(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return 1 / scale
}

// Rounder is room for RoundLanes.
type Rounder struct {
	search codebook.Search
	target [maxUnit]kernels.Lane
}

var rounders = sync.Pool{New: func() any { return new(Rounder) }}

// farAway bounds targets, in levels: what is beyond is as near to each word, and its square must not overflow.
const farAway = 1 << 40

// RoundLanes rounds a unit, or several, in each lane: it sets level to the codes with which Σ weight·(x − scale·code)² is
// least, which are what a lane's scale multiplies. inverse is 1/scale, or 0; weight is from 0 to 1.
func (g *Lattice) RoundLanes(s *Rounder, level, x, weight []kernels.Lane, inverse *kernels.Lane) {
	n := g.Unit()
	for j := 0; j < len(x); j += n {
		if level, x, weight := level[j:j+n], x[j:j+n], weight[j:j+n]; g.Signs == ShiftedGroups || g.Signs == ShiftedWords {
			g.roundShifted(s, level, x, weight, inverse)
		} else {
			g.roundSigned(s, level, x, weight, inverse)
		}
	}
}

// roundShifted rounds words that share a shift.
func (g *Lattice) roundShifted(s *Rounder, level, x, weight []kernels.Lane, inverse *kernels.Lane) {
	c := g.Codebook
	t := s.target[:len(x)]
	for j := range t {
		for i, v := range x[j] {
			t[j][i] = min(max(v*inverse[i], -farAway), farAway)
		}
	}
	n := c.Width
	var words [2][maxUnit / 8][kernels.Lanes]int32
	var cost [2]kernels.Lane
	for shift := range cost {
		for k := range len(t) / n {
			var e kernels.Lane
			s.search.Nearest(&words[shift][k], &e, c.words, g.levels[1+shift], t[k*n:(k+1)*n], weight[k*n:(k+1)*n], nil)
			for i, v := range e {
				cost[shift][i] += v
			}
		}
	}
	for i := range kernels.Lanes {
		at, shift := 0, int8(1)
		if cost[1][i] < cost[0][i] {
			at, shift = 1, -1
		}
		for k := range len(t) / n {
			packed := c.packed[words[at][k][i]]
			for j := range n {
				level[k*n+j][i] = float32(int8(packed>>(8*j)) + shift)
			}
		}
	}
}

// roundSigned rounds eight columns to a word of eight, or two of four, and signs.
func (g *Lattice) roundSigned(s *Rounder, level, x, weight []kernels.Lane, inverse *kernels.Lane) {
	c := g.Codebook
	t := s.target[:8]
	var signs [kernels.Lanes]uint32
	for j := range t {
		for i, v := range x[j] {
			v *= inverse[i]
			bits := math.Float32bits(v)
			signs[i] |= bits >> 31 << j
			t[j][i] = min(math.Float32frombits(bits&^(1<<31)), farAway)
		}
	}
	// Where an even number must be negative and an odd one is, the sign of one column is turned.
	var turn [kernels.Lanes]int32
	turning := false
	if g.Signs == EvenSigns {
		for i, v := range signs {
			turn[i] = -int32(bits.OnesCount32(v) & 1)
			turning = turning || turn[i] != 0
		}
	}
	levels, n := g.levels[0], c.Width
	var words [2][kernels.Lanes]int32
	var cost kernels.Lane
	switch {
	case n == 8 && turning:
		s.search.Nearest(&words[0], &cost, c.words, levels, t, weight, &turn)
	case n == 8:
		s.search.Nearest(&words[0], &cost, c.words, levels, t, weight, nil)
	default:
		// Of two words either has a sign turned.
		var plain, turned [2]kernels.Lane
		var other [2][kernels.Lanes]int32
		for k := range words {
			t, weight := t[4*k:4*k+4], weight[4*k:4*k+4]
			s.search.Nearest(&words[k], &plain[k], c.words, levels, t, weight, nil)
			if turning {
				s.search.Nearest(&other[k], &turned[k], c.words, levels, t, weight, &turn)
			}
		}
		if turning {
			for i := range kernels.Lanes {
				if turn[i] == 0 {
					continue
				}
				k := 0
				if turned[1][i]-plain[1][i] < turned[0][i]-plain[0][i] {
					k = 1
				}
				words[k][i] = other[k][i]
				signs[i] ^= 1 << (4*k + c.cheapest(int(words[k][i]), i, t[4*k:4*k+4], weight[4*k:4*k+4]))
			}
		}
	}
	for i := range kernels.Lanes {
		if n == 8 && turn[i] != 0 {
			signs[i] ^= 1 << c.cheapest(int(words[0][i]), i, t, weight)
		}
		packed := c.signed(int(words[0][i]), byte(signs[i]))
		if n == 4 {
			packed = c.signed(int(words[0][i]), byte(signs[i]&15)) | c.signed(int(words[1][i]), byte(signs[i]>>4))<<32
		}
		for j := range 8 {
			level[j][i] = float32(int8(packed >> (8 * j)))
		}
	}
}

// cheapest returns the column of a word whose sign costs lane i least to turn.
func (c *Codebook) cheapest(word, i int, t, weight []kernels.Lane) (column int) {
	least := float32(math.Inf(1))
	for j := range t {
		if e := float32(weight[j][i]*t[j][i]) * float32(int8(c.packed[word]>>(8*j))); e < least {
			least, column = e, j
		}
	}
	return column
}
