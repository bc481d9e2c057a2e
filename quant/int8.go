package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/tensor"
)

// Int8Scale is the scale with which values from −absmax to absmax have codes from −127 to 127. −128 is left out, so that −x
// has the code of x with its sign changed.
func Int8Scale(absmax float32) float32 { return absmax / 127 }

// Int8Rows sets dst, of x's shape with one scale for each row, to x rounded to −127..127 where a row's largest magnitude
// has the code 127. Columns for which skip, if not nil, is true count for nothing and get the code 0.
func Int8Rows(dst *i8.Matrix, x *tensor.Matrix, skip []bool) {
	checkInt8(dst, x)
	kernels.Parallel(x.Rows, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row := x.Row(r)
			var absmax float32
			for j, v := range row {
				if skip == nil || !skip[j] {
					absmax = max(absmax, v, -v)
				}
			}
			dst.Scale[r] = Int8Scale(absmax)
			codes := dst.Row(r)
			int8Codes(codes, row, dst.Scale[r])
			for j, s := range skip {
				if s {
					codes[j] = 0
				}
			}
		}
	})
}

// Int8Static sets dst, of x's shape with one scale for each row, to x rounded with the same scale everywhere. What is
// beyond 127 times the scale is clipped.
func Int8Static(dst *i8.Matrix, x *tensor.Matrix, scale float32) {
	checkInt8(dst, x)
	kernels.Parallel(x.Rows, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			dst.Scale[r] = scale
			int8Codes(dst.Row(r), x.Row(r), scale)
		}
	})
}

func checkInt8(dst *i8.Matrix, x *tensor.Matrix) {
	if dst.Rows != x.Rows || dst.Cols != x.Cols || dst.Group != dst.Cols {
		panic("quant: int8 rows do not have the shape of their values")
	}
}

// int8Codes sets codes[j] to x[j]/scale rounded, ties away from 0, and brought to −127..127; with a zero scale to 0.
func int8Codes(codes []int8, x []float32, scale float32) {
	if scale == 0 {
		clear(codes)
		return
	}
	codes = codes[:len(x)]
	for j, v := range x {
		v = min(max(v/scale, -127), 127)
		// Half a step more and the conversion, which drops the fraction, round ties away from 0.
		if v < 0 {
			codes[j] = int8(int32(float64(v) - 0.5))
		} else {
			codes[j] = int8(int32(float64(v) + 0.5))
		}
	}
}

// Int8 returns a weight as signed bytes with a scale for each block. Its grid must have blocks of 32 with one scale and
// no minimum, and codes that are their own levels: Q8_0's.
func (w *Weight) Int8() *i8.Matrix {
	g, ok := w.Grid.(*Affine)
	if !ok || !g.OneScale() {
		panic("quant: " + w.Grid.String() + " is not a scale for each block of signed bytes")
	}
	m := i8.New(w.Rows, w.Cols, g.Block)
	for r := range w.Rows {
		copy(m.Row(r), w.Codes[r*w.Cols:(r+1)*w.Cols])
	}
	copy(m.Scale, w.D)
	return m
}
