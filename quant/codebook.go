package quant

import "fmt"

// Codebook is a set of words: runs of columns whose levels are stored as one number. It is searched by halves: the cost of
// a word is the sum of its halves' costs, of which there are few.
type Codebook struct {
	Width  int    // columns of a word: 4 or 8
	Levels []int8 // what a column can be, ascending

	numbers []uint16 // of each word: Σ place of its column's level in Levels · len(Levels)^column
	index   []int16  // of each number: the word, or −1
	packed  []uint64 // of each word: its levels, a byte each

	half  int      // how many halves there are: len(Levels)^(Width/2)
	first []uint16 // the words with upper half h are first[h] to first[h+1]
	lower []uint8  // of each word: its lower half

	place [256]int8 // of each level as a byte: its place, or −1
}

// maxHalf is the largest number of halves: 3⁴, for words of eight columns and three levels.
const maxHalf = 81

// NewCodebook returns the codebook of the words whose bits are set in bitmap, in order of their numbers: bit n%8 of byte
// ⌊n/8⌋ is word number n's.
func NewCodebook(width int, levels []int8, bitmap []byte) *Codebook {
	c := &Codebook{Width: width, Levels: levels, half: 1}
	for range width / 2 {
		c.half *= len(levels)
	}
	for i := range c.place {
		c.place[i] = -1
	}
	for p, l := range levels {
		c.place[byte(l)] = int8(p)
	}
	c.index = make([]int16, c.half*c.half)
	c.first = make([]uint16, c.half+1)
	for n := range c.index {
		if n%c.half == 0 {
			c.first[n/c.half] = uint16(len(c.numbers))
		}
		c.index[n] = -1
		if bitmap[n/8]>>(n%8)&1 == 0 {
			continue
		}
		c.index[n] = int16(len(c.numbers))
		c.numbers = append(c.numbers, uint16(n))
		c.lower = append(c.lower, uint8(n%c.half))
		var packed uint64
		for j, rest := 0, n; j < width; j, rest = j+1, rest/len(levels) {
			packed |= uint64(byte(levels[rest%len(levels)])) << (8 * j)
		}
		c.packed = append(c.packed, packed)
	}
	c.first[c.half] = uint16(len(c.numbers))
	return c
}

// Len is the number of words.
func (c *Codebook) Len() int { return len(c.numbers) }

// signMasks have a byte of ones for each bit of a number.
var signMasks = func() (m [256]uint64) {
	for i := range m {
		for j := range 8 {
			m[i] |= uint64(i>>j&1) * 0xff << (8 * j)
		}
	}
	return m
}()

// Put sets codes, Width long, to a word's levels, negative where signs has a bit.
func (c *Codebook) Put(codes []int8, word int, signs byte) {
	// −v is ^v + 1 in each byte. As no level with a sign of its own is 0, nothing is carried to the next byte.
	mask := signMasks[signs]
	v := c.packed[word] ^ mask + mask&0x0101010101010101
	codes = codes[:c.Width]
	for j := range codes {
		codes[j] = int8(v >> (8 * j))
	}
}

// Find is Put's inverse, of codes less shift. It panics if they are no word: who writes codes has them from a grid.
func (c *Codebook) Find(codes []int8, shift int8) (word int, signs byte) {
	number := 0
	for j := c.Width - 1; j >= 0; j-- {
		l := codes[j] - shift
		if l < 0 && c.Levels[0] > 0 {
			l, signs = -l, signs|1<<j
		}
		p := c.place[byte(l)]
		if p < 0 {
			panic(fmt.Sprintf("quant: code %d is no level", codes[j]))
		}
		number = number*len(c.Levels) + int(p)
	}
	if word = int(c.index[number]); word < 0 {
		panic(fmt.Sprintf("quant: %d is no word", codes[:c.Width]))
	}
	return word, signs
}

// halfCosts are what the halves of words cost in the place of some columns.
type halfCosts struct {
	cost      [maxHalf]float32 // Σ weight·(target − level)²
	flip      [maxHalf]float32 // the same with one sign turned, the cheapest
	least     float32          // of cost
	leastFlip float32
	best      int // the half of least cost
	bestFlip  int
}

// fill computes the costs of halves for targets t, which are not negative if flips are asked for.
func (h *halfCosts) fill(levels []float32, t, weight []float32, flips bool) {
	h.cost[0], h.flip[0] = 0, inf32
	n := 1
	for j, v := range t {
		w := weight[j]
		for l := len(levels) - 1; l >= 0; l-- {
			d := v - levels[l]
			e := float32(w*d) * d
			cost := h.cost[l*n : l*n+n]
			for i, c := range h.cost[:n] {
				cost[i] = c + e
			}
			if flips {
				e := 4 * float32(w*v) * levels[l]
				flip := h.flip[l*n : l*n+n]
				for i, c := range h.flip[:n] {
					flip[i] = min(c, e)
				}
			}
		}
		n *= len(levels)
	}
	h.least, h.best = inf32, 0
	h.leastFlip, h.bestFlip = inf32, 0
	for i, c := range h.cost[:n] {
		if c < h.least {
			h.least, h.best = c, i
		}
	}
	if flips {
		for i, c := range h.cost[:n] {
			h.flip[i] += c
			if h.flip[i] < h.leastFlip {
				h.leastFlip, h.bestFlip = h.flip[i], i
			}
		}
	}
}

// search returns the word whose halves cost least together, if that is less than most, else what it was given. leastLow is
// the least of low, and bestHigh where that of high is.
func (c *Codebook) search(low, high *[maxHalf]float32, leastLow float32, bestHigh, word int, most float32) (int, float32) {
	row := func(h int) {
		base := high[h]
		if !(base+leastLow < most) {
			return
		}
		for k := int(c.first[h]); k < int(c.first[h+1]); k++ {
			if v := base + low[c.lower[k]]; v < most {
				word, most = k, v
			}
		}
	}
	row(bestHigh)
	for h := range c.half {
		row(h)
	}
	return word, most
}

// nearest is the word that costs least for targets t.
func (c *Codebook) nearest(low, high *halfCosts) (word int, cost float32) {
	return c.search(&low.cost, &high.cost, low.least, high.best, 0, inf32)
}

// nearestFlipped is the word that costs least with one sign turned.
func (c *Codebook) nearestFlipped(low, high *halfCosts) (word int, cost float32) {
	word, cost = c.search(&low.cost, &high.flip, low.least, high.bestFlip, 0, inf32)
	return c.search(&low.flip, &high.cost, low.leastFlip, high.best, word, cost)
}
