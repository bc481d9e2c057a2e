//go:build !purego

package kernels

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

var q8Levels = map[string]func(level *byte, scale, minimum *float32, src *byte, n int){
	"Q8_0": levelsQ8_0, "Q4_0": levelsQ4_0, "Q4_1": levelsQ4_1, "Q5_0": levelsQ5_0, "Q5_1": levelsQ5_1,
	"IQ4_NL": levelsIQ4_NL, "Q2_K": levelsQ2_K, "Q3_K": levelsQ3_K, "Q4_K": levelsQ4_K, "Q5_K": levelsQ5_K,
	"Q6_K": levelsQ6_K, "IQ4_XS": levelsIQ4_XS,
}

var (
	q8VNNI = q8Kernels{
		tile:   [2][2]q8Tile{{q8Group32VNNI, q8Group32MinVNNI}, {q8Group16VNNI, q8Group16MinVNNI}},
		levels: q8Levels, largest: q8LargestAVX2, codes: q8RoundAVX2, lanes: 16, transpose: transposeAVX512,
	}
	q8AVX2 = q8Kernels{
		tile: [2][2]q8Tile{{quarters(q8Group32AVX2), quarters(q8Group32MinAVX2)},
			{quarters(q8Group16AVX2), quarters(q8Group16MinAVX2)}},
		levels: q8Levels, largest: q8LargestAVX2, codes: q8RoundAVX2, lanes: 8, transpose: transposeAVX2,
	}
)

// quarters makes a tile of four calls for half a panel by half a strip each.
func quarters(quarter q8Tile) q8Tile {
	const tokens, outputs = q8Tokens / 2, q8Outputs / 2
	return func(panels, groups int, x, sums, w *uint32, scale, c *float32, rowC int, step *float32, add bool) {
		for t := 0; t < q8Tokens; t += tokens {
			for o := 0; o < q8Outputs; o += outputs {
				quarter(panels, groups, after(x, t*q8Group/4), after(sums, t), after(w, o), after(scale, o),
					after(after(c, o), t*rowC/4), rowC, after(step, t), add)
			}
		}
	}
}

// q8Tier returns the kernels of the tier in use, nil in pure Go.
func q8Tier() *q8Kernels {
	switch t := CurrentTier(); {
	case t >= AVX512 && cpu.X86.HasAVX512VNNI:
		return &q8VNNI
	case t >= AVX2:
		return &q8AVX2
	}
	return nil
}

// after returns the address n words after p.
func after[T uint32 | float32](p *T, n int) *T { return (*T)(unsafe.Add(unsafe.Pointer(p), 4*n)) }
