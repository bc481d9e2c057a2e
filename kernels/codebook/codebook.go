// Package codebook finds the words of a codebook that are nearest to targets, those of 16 rows at a time. A word's cost
// Σ weight·(target − level)² is the sum of its halves' costs, of which there are few: they are tabled, and words look them up.
package codebook

import (
	"math"

	"github.com/llmq/llmq/kernels"
)

// MaxHalves is the largest number of halves: 3⁴, for words of eight columns and three levels.
const MaxHalves = 81

// Words are a codebook's words in ascending order of their upper halves. A half's number has a digit for each of its columns,
// the first the least: the place of the column's level.
type Words struct {
	Width  int // columns: twice those of a half
	Levels int // how many
	lower  []uint16
	runs   []run
}

// run are words with one upper half, which follow each other.
type run struct{ upper, count uint32 }

// NewWords returns the words that consist of these halves; upper is in ascending order.
func NewWords(width, levels int, lower, upper []uint8) *Words {
	w := &Words{Width: width, Levels: levels}
	for k, h := range upper {
		if k == 0 || h != upper[k-1] {
			w.runs = append(w.runs, run{upper: uint32(h) * entryBytes})
		}
		w.runs[len(w.runs)-1].count++
		w.lower = append(w.lower, uint16(lower[k])*entryBytes)
	}
	return w
}

// entry is what a half costs each row, and what it costs with one sign turned, the cheapest, where rows ask for that.
type entry struct{ cost, turned kernels.Lane }

const entryBytes = 2 * 4 * kernels.Lanes

// Search holds a search's tables.
type Search struct{ low, high [MaxHalves]entry }

// Most is the cost above which no word is found.
const Most = float32(math.MaxFloat32)

// Nearest sets word to the first of the words that cost a row least, and cost to what it costs. target and weight are of a
// word's columns.
//
// If turn is not nil, targets are not negative, and the rows whose value in turn is −1, all bits set, pay for the sign of one
// column, the cheapest: 4·weight·target·level. Those whose value is 0 do not.
func (s *Search) Nearest(word *[kernels.Lanes]int32, cost *kernels.Lane, w *Words, levels []float32, target, weight []kernels.Lane,
	turn *[kernels.Lanes]int32) {
	n := w.Width / 2
	_, _, _ = levels[w.Levels-1], target[w.Width-1], weight[w.Width-1]
	if lanes := kernels.CurrentTier().Lanes(); lanes > 0 {
		fill(lanes, &s.low, levels, target[:n], weight[:n], turn)
		fill(lanes, &s.high, levels, target[n:], weight[n:], turn)
		s.nearest(lanes, word, cost, w, turn != nil)
		return
	}
	fillGo(&s.low, levels, target[:n], weight[:n], turn)
	fillGo(&s.high, levels, target[n:w.Width], weight[n:w.Width], turn)
	s.nearestGo(word, cost, w, turn != nil)
}

// fillGo fills the table of a half.
func fillGo(table *[MaxHalves]entry, levels []float32, target, weight []kernels.Lane, turn *[kernels.Lanes]int32) {
	for i := range kernels.Lanes {
		table[0].cost[i], table[0].turned[i] = 0, Most
		n := 1
		for j := range target {
			t, wt := target[j][i], weight[j][i]
			for l := len(levels) - 1; l >= 0; l-- {
				d := t - levels[l]
				e := float32(wt*d) * d
				for k := range n {
					table[l*n+k].cost[i] = table[k].cost[i] + e
				}
				if turn == nil {
					continue
				}
				e = 0
				if turn[i] != 0 {
					e = float32(float32(wt*t)*levels[l]) * 4
				}
				for k := range n {
					table[l*n+k].turned[i] = min(table[k].turned[i], e)
				}
			}
			n *= len(levels)
		}
		if turn != nil {
			for k := range n {
				table[k].turned[i] += table[k].cost[i]
			}
		}
	}
}

// nearestGo looks at the words whose upper half costs least first, and then only at those that may cost less.
func (s *Search) nearestGo(word *[kernels.Lanes]int32, cost *kernels.Lane, w *Words, turned bool) {
	halves := 1
	for range w.Width / 2 {
		halves *= w.Levels
	}
	for i := range kernels.Lanes {
		leastLow, leastTurned := Most, Most
		for h := range s.low[:halves] {
			leastLow = min(leastLow, s.low[h].cost[i])
			leastTurned = min(leastTurned, s.low[h].turned[i])
		}
		leastOf := func(high *entry) float32 { // of the words with this half
			if turned {
				return min(high.turned[i]+leastLow, leastTurned+high.cost[i])
			}
			return high.cost[i] + leastLow
		}
		first, firstWord, promise := 0, 0, Most
		k := 0
		for r, run := range w.runs {
			if e := leastOf(&s.high[run.upper/entryBytes]); e < promise {
				first, firstWord, promise = r, k, e
			}
			k += int(run.count)
		}
		best, least := 0, Most
		look := func(r run, k int) {
			high := &s.high[r.upper/entryBytes]
			if !(leastOf(high) <= least) {
				return
			}
			for _, offset := range w.lower[k : k+int(r.count)] {
				low := &s.low[offset/entryBytes]
				e := high.cost[i] + low.cost[i]
				if turned {
					e = min(high.turned[i]+low.cost[i], low.turned[i]+high.cost[i])
				}
				if e < least || e == least && k < best {
					best, least = k, e
				}
				k++
			}
		}
		look(w.runs[first], firstWord)
		k = 0
		for _, r := range w.runs {
			look(r, k)
			k += int(r.count)
		}
		if least == Most {
			best = 0
		}
		word[i], cost[i] = int32(best), least
	}
}
