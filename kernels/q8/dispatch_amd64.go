//go:build !purego

package q8

import (
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"golang.org/x/sys/cpu"
)

var (
	tierAMX = kernelSet{
		tile:   [2][2]q8Tiles{{every(q8Group32AMX), every(q8Group32MinAMX)}},
		tokens: 16, largest: q8LargestAVX2, codes: q8RoundAVX2x16, signed: true, lower: q8LowerAVX2, lanes: 16, transpose: pack.TransposeAVX512,
	}
	tierVNNI = kernelSet{
		tile:   [2][2]q8Tiles{{every(q8Group32VNNI), every(q8Group32MinVNNI)}, {every(q8Group16VNNI), every(q8Group16MinVNNI)}},
		tokens: q8Tokens, largest: q8LargestAVX2, codes: q8RoundAVX2, lanes: 16, transpose: pack.TransposeAVX512,
	}
	tierAVXVNNI = kernelSet{
		tile: [2][2]q8Tiles{{every(halves(q8Group32AVXVNNI)), every(halves(q8Group32MinAVXVNNI))},
			{every(halves(q8Group16AVXVNNI)), every(halves(q8Group16MinAVXVNNI))}},
		tokens: q8Tokens, largest: q8LargestAVX2, codes: q8RoundAVX2, lanes: 8, transpose: pack.TransposeAVX2,
	}
	tierAVX2 = kernelSet{
		tile: [2][2]q8Tiles{{
			{quarters(q8Group32Bits4AVX2), quarters(q8Group32Bits6AVX2), halves(q8Group32WideAVX2)},
			{quarters(q8Group32MinBits4AVX2), quarters(q8Group32MinBits6AVX2)},
		}, {
			{quarters(q8Group16Bits4AVX2), quarters(q8Group16Bits6AVX2), halves(q8Group16WideAVX2)},
			{quarters(q8Group16MinBits4AVX2)},
		}},
		tokens: q8Tokens, largest: q8LargestAVX2, codes: q8RoundAVX2, widen: q8WidenAVX2, lower: q8LowerAVX2, lanes: 8,
		transpose: pack.TransposeAVX2,
	}
)

// every makes the tiles of a tile for all levels.
func every(tile q8Tile) q8Tiles { return q8Tiles{tile, tile, tile} }

// halves makes a tile of two calls for half a strip each.
func halves(half q8Tile) q8Tile {
	const outputs = q8Outputs / 2
	return func(panels, groups int, x, sums, w *uint32, scale, c *float32, rowC int, step *float32, add bool) {
		half(panels, groups, x, sums, w, scale, c, rowC, step, add)
		half(panels, groups, x, sums, after(w, outputs), after(scale, outputs), after(c, outputs), rowC, step, add)
	}
}

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

// tier returns the kernels of the tier in use, nil in pure Go.
func tier() *kernelSet {
	switch t := kernels.CurrentTier(); {
	case t >= kernels.AVX512 && cpu.X86.HasAVX512VNNI:
		return &tierVNNI
	case t >= kernels.AVXVNNI && cpu.X86.HasAVXVNNI:
		return &tierAVXVNNI
	case t >= kernels.AVX2:
		return &tierAVX2
	}
	return nil
}

// tiles returns the kernels of AMX, whose results are tierVNNI's, where the tier in use has them and they are faster: with groups of
// 32 weights that share a scale, and so many tokens that the rows of a tile have some. nil otherwise.
func tiles(tokens int, lv *kernels.LevelFormat) *kernelSet {
	const least = 13 // tokens: three panels of tierVNNI's
	if kernels.CurrentTier() < kernels.AMX || !cpu.X86.HasAMXInt8 || tokens < least || lv.Group != q8Group {
		return nil
	}
	return &tierAMX
}

// after returns the address n words after p.
func after[T uint32 | float32](p *T, n int) *T { return (*T)(unsafe.Add(unsafe.Pointer(p), 4*n)) }
