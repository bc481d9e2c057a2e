package quant

import (
	"fmt"

	"github.com/llmq/llmq/kernels/codebook"
)

// Codebook is a set of words: runs of columns whose levels are stored as one number.
type Codebook struct {
	Width  int    // columns of a word: 4 or 8
	Levels []int8 // what a column can be, ascending

	numbers []uint16 // of each word: Σ place of its column's level in Levels · len(Levels)^column
	index   []int16  // of each number: the word, or −1
	packed  []uint64 // of each word: its levels, a byte each
	words   *codebook.Words

	place [256]int8 // of each level as a byte: its place, or −1
}

// NewCodebook returns the codebook of the words whose bits are set in bitmap, in order of their numbers: bit n%8 of byte
// ⌊n/8⌋ is word number n's.
func NewCodebook(width int, levels []int8, bitmap []byte) *Codebook {
	c := &Codebook{Width: width, Levels: levels}
	halves := 1
	for range width / 2 {
		halves *= len(levels)
	}
	for i := range c.place {
		c.place[i] = -1
	}
	for p, l := range levels {
		c.place[byte(l)] = int8(p)
	}
	c.index = make([]int16, halves*halves)
	var lower, upper []uint8
	for n := range c.index {
		c.index[n] = -1
		if bitmap[n/8]>>(n%8)&1 == 0 {
			continue
		}
		c.index[n] = int16(len(c.numbers))
		c.numbers = append(c.numbers, uint16(n))
		lower, upper = append(lower, uint8(n%halves)), append(upper, uint8(n/halves))
		var packed uint64
		for j, rest := 0, n; j < width; j, rest = j+1, rest/len(levels) {
			packed |= uint64(byte(levels[rest%len(levels)])) << (8 * j)
		}
		c.packed = append(c.packed, packed)
	}
	c.words = codebook.NewWords(width, len(levels), lower, upper)
	return c
}

// Len is the number of words.
func (c *Codebook) Len() int { return len(c.numbers) }

// Table returns the levels of each word, a byte each.
func (c *Codebook) Table() []byte {
	table := make([]byte, 0, c.Len()*c.Width)
	for _, v := range c.packed {
		for j := range c.Width {
			table = append(table, byte(v>>(8*j)))
		}
	}
	return table
}

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
	v := c.signed(word, signs)
	codes = codes[:c.Width]
	for j := range codes {
		codes[j] = int8(v >> (8 * j))
	}
}

// signed returns a word's levels, a byte each, negative where signs has a bit.
func (c *Codebook) signed(word int, signs byte) uint64 {
	// −v is ^v + 1 in each byte. As no level with a sign of its own is 0, nothing is carried to the next byte.
	mask := signMasks[signs]
	return c.packed[word] ^ mask + mask&0x0101010101010101
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
