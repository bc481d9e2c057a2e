// Package unpack decodes blocks of quantized weights: to float32, to bfloat16, and to their whole numbers and scales.
package unpack

import (
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/words"
)

// Decoder decodes n runs of weights; formats whose blocks are single weights come in runs of 32.
type Decoder func(dst, src *byte, n int)

// Run is the number of weights that f's Decoder decodes at a time.
func Run(f *kernels.Format) int {
	if f.BlockLen == 1 {
		return 32
	}
	return f.BlockLen
}

// F32 is f.Unpack at the speed of the machine: the same values, bit for bit. len(dst) is a multiple of BlockLen.
func F32(f *kernels.Format, dst []float32, src []byte) { F32By(f, DecoderF32(f), dst, src) }

// F32By is F32 by what DecoderF32 returns, looked up once for many rows.
func F32By(f *kernels.Format, unpack Decoder, dst []float32, src []byte) {
	if f.Name == "F32" {
		copy(words.Bytes(dst), src)
		return
	}
	whole := 0
	if unpack != nil {
		if n := len(dst) / Run(f); n > 0 {
			_ = src[f.RowBytes(n*Run(f))-1]
			unpack((*byte)(unsafe.Pointer(&dst[0])), &src[0], n)
			whole = n * Run(f)
		}
	}
	if whole < len(dst) {
		f.Unpack(dst[whole:], src[f.RowBytes(whole):])
	}
}

// BF16 sets dst to the weights of src in bfloat16, two to a word, the last half empty if cols is odd; unpack is
// what DecoderBF16 returns, looked up once for many rows. scratch holds cols values.
func BF16(f *kernels.Format, unpack Decoder, dst []uint32, src []byte, cols int, scratch []float32) {
	whole := 0
	switch f.Name {
	case "BF16":
		copy(words.Bytes(dst), src[:2*cols])
		if cols%2 == 1 {
			dst[cols/2] &= 0xffff
		}
		return
	case "F32":
		if whole = cols &^ 31; whole > 0 {
			_ = src[4*whole-1]
			pack.RoundBF16((*uint16)(unsafe.Pointer(&dst[0])), (*float32)(unsafe.Pointer(&src[0])), whole)
		}
	}
	if unpack != nil {
		if n := cols / Run(f); n > 0 {
			_ = src[f.RowBytes(n*Run(f))-1]
			unpack((*byte)(unsafe.Pointer(&dst[0])), &src[0], n)
			whole = n * Run(f)
		}
	}
	if whole < cols {
		rest := scratch[:cols-whole]
		F32(f, rest, src[f.RowBytes(whole):])
		pack.BF16(dst[whole/2:], rest)
	}
}

// ReadAhead asks memory for bytes [from,to) of the row of w that comes some rows after row i, if there is one. What is read of
// a row is short, and lies in pages of its own: the hardware sees it coming too late.
func ReadAhead(w *kernels.Weights, i, from, to int) {
	const rows = 4 // some hundred nanoseconds of unpacking, the time that memory takes
	if i += rows; i < w.Rows {
		pack.Prefetch(&w.Row(i)[from], to-from)
	}
}
