//go:build !purego

package columns

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/words"
)

func round(lanes int, q, err, w, sum *kernels.Lane, inverse float32, scale, minimum *kernels.Lane, lo, hi float32) {
	if lanes == kernels.Lanes {
		roundLanesAVX512(&q[0], &err[0], &w[0], &sum[0], inverse, &scale[0], &minimum[0], lo, hi)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		roundLanesAVX2(&q[i], &err[i], &w[i], &sum[i], inverse, &scale[i], &minimum[i], lo, hi)
	}
}

func roundInTurn(lanes int, q, err, w, sum []kernels.Lane, inverse, u []float32, pitch int, scale, minimum []kernels.Lane,
	group *[8]int, lo, hi float32, down bool) {
	for i := 0; i < kernels.Lanes; i += lanes {
		switch {
		case lanes == kernels.Lanes && down:
			roundDownAVX512(&q[0][i], &err[0][i], &w[0][i], &sum[0][i], &u[0], 4*pitch, &inverse[0], &scale[0][i], &minimum[0][i], &group[0], lo, hi)
		case lanes == kernels.Lanes:
			roundUpAVX512(&q[0][i], &err[0][i], &w[0][i], &sum[0][i], &u[0], 4*pitch, &inverse[0], &scale[0][i], &minimum[0][i], &group[0], lo, hi)
		case down:
			roundDownAVX2(&q[0][i], &err[0][i], &w[0][i], &sum[0][i], &u[0], 4*pitch, &inverse[0], &scale[0][i], &minimum[0][i], &group[0], lo, hi)
		default:
			roundUpAVX2(&q[0][i], &err[0][i], &w[0][i], &sum[0][i], &u[0], 4*pitch, &inverse[0], &scale[0][i], &minimum[0][i], &group[0], lo, hi)
		}
	}
}

// updateDepth is how many vectors updateLanesAVX512 adds at a time.
const updateDepth = 8

func update(lanes int, dst []kernels.Lane, u []float32, pitch int, x []kernels.Lane) {
	if lanes < kernels.Lanes {
		updateTilesAVX2(&dst[0][0], &u[0], 4*pitch, &x[0][0], len(x), len(dst))
		return
	}
	for len(x) >= updateDepth {
		updateLanesAVX512(&dst[0][0], &u[0], 4*pitch, &x[0][0], len(dst))
		x = x[updateDepth:]
		u = u[min(updateDepth*pitch, len(u)):]
	}
	for k := range x {
		addLanesAVX512(&dst[0][0], &u[k*pitch], &x[k][0], len(dst))
	}
}

// updatePanels takes rows of panels, which have so many each, from the given one on.
func updatePanels(dst []kernels.Lane, u []float32, rows, row int, x []kernels.Lane, down bool) {
	first, turn := 0, panelRows
	if down {
		first, turn = len(x)-panelRows, -panelRows
	}
	updatePanelsAVX2(&dst[0][0], &u[0], rows, row+first, &x[first][0], turn, len(x), len(dst))
}

func decode(lanes int, dst, level []kernels.Lane, scale, minimum *kernels.Lane) {
	if lanes == kernels.Lanes {
		decodeLanesAVX512(&dst[0][0], &level[0][0], &scale[0], &minimum[0], len(level))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		decodeLanesAVX2(&dst[0][i], &level[0][i], &scale[i], &minimum[i], len(level))
	}
}

func shift(lanes int, dst, a []kernels.Lane, x *kernels.Lane, b []kernels.Lane, y *kernels.Lane) {
	if lanes == kernels.Lanes {
		shiftLanesAVX512(&dst[0][0], &a[0][0], &x[0], &b[0][0], &y[0], len(dst))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		shiftLanesAVX2(&dst[0][i], &a[0][i], &x[i], &b[0][i], &y[i], len(dst))
	}
}

func shiftBy(lanes int, dst, a []kernels.Lane, x *kernels.Lane, b []float32, y *kernels.Lane) {
	if lanes == kernels.Lanes {
		shiftLanesByAVX512(&dst[0][0], &a[0][0], &x[0], &b[0], &y[0], len(dst))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		shiftLanesByAVX2(&dst[0][i], &a[0][i], &x[i], &b[0], &y[i], len(dst))
	}
}

func subtract(lanes int, dst, x []kernels.Lane) {
	if lanes == kernels.Lanes {
		subtractLanesAVX512(&dst[0][0], &x[0][0], len(dst))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		subtractLanesAVX2(&dst[0][i], &x[0][i], len(dst))
	}
}

func differ(lanes int, mask []uint16, a, b []kernels.Lane) {
	if lanes == kernels.Lanes {
		differLanesAVX512(&mask[0], &a[0][0], &b[0][0], len(mask))
		return
	}
	differLanesAVX2(&mask[0], &a[0][0], &b[0][0], len(mask))
}

func fromCodes(dst []kernels.Lane, codes []int8, pitch int) {
	for i := 0; i < kernels.Lanes; i += 8 {
		fromCodesAVX2(&dst[0][i], &codes[i*pitch], pitch, len(dst)/8)
	}
}

func dot(lanes int, sum *kernels.Lane, x, y []kernels.Lane) {
	if lanes == kernels.Lanes {
		dotLanesAVX512(&sum[0], &x[0][0], &y[0][0], len(x))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		dotLanesAVX2(&sum[i], &x[0][i], &y[0][i], len(x))
	}
}

func toRows(lanes int, dst []float32, pitch int, src []kernels.Lane) {
	for j := 0; j < len(src); j += lanes {
		if lanes == kernels.Lanes {
			pack.TransposeAVX512(words.Of(&dst[j]), 4*pitch, words.Of(&src[j][0]), 4*kernels.Lanes, 1)
			continue
		}
		for i := 0; i < kernels.Lanes; i += lanes {
			pack.TransposeAVX2(words.Of(&dst[i*pitch+j]), 4*pitch, words.Of(&src[j][i]), 4*kernels.Lanes, 1)
		}
	}
}

func fromRows(lanes int, dst []kernels.Lane, src []float32, pitch int) {
	if lanes == kernels.Lanes {
		pack.TransposeAVX512(words.Of(&dst[0][0]), 4*kernels.Lanes, words.Of(&src[0]), 4*pitch, len(dst)/lanes)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		pack.TransposeAVX2(words.Of(&dst[0][i]), 4*kernels.Lanes, words.Of(&src[i*pitch]), 4*pitch, len(dst)/lanes)
	}
}
