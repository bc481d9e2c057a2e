package kernels

import (
	"unsafe"

	"github.com/llmq/llmq/tensor"
)

// unpacker decodes n runs of weights; formats whose blocks are single weights come in runs of 32.
type unpacker func(dst, src *byte, n int)

// run is the number of weights that an unpacker decodes at a time.
func (f *Format) run() int {
	if f.BlockLen == 1 {
		return 32
	}
	return f.BlockLen
}

// Unpack is f.Unpack at the speed of the machine: the same values, bit for bit. len(dst) is a multiple of BlockLen.
func Unpack(f *Format, dst []float32, src []byte) {
	if f.Name == "F32" {
		copy(asBytes(dst), src)
		return
	}
	whole := 0
	if unpack := f.unpackerF32(); unpack != nil {
		if n := len(dst) / f.run(); n > 0 {
			_ = src[f.RowBytes(n*f.run())-1]
			unpack((*byte)(unsafe.Pointer(&dst[0])), &src[0], n)
			whole = n * f.run()
		}
	}
	if whole < len(dst) {
		f.Unpack(dst[whole:], src[f.RowBytes(whole):])
	}
}

// decodeBF16 sets dst to the weights of src in bfloat16, two to a word, the last half empty if cols is odd; unpack is
// what f.unpackerBF16 returns, looked up once for many rows. scratch holds cols values.
func (f *Format) decodeBF16(unpack unpacker, dst []uint32, src []byte, cols int, scratch []float32) {
	whole := 0
	switch f.Name {
	case "BF16":
		copy(asBytes(dst), src[:2*cols])
		if cols%2 == 1 {
			dst[cols/2] &= 0xffff
		}
		return
	case "F32":
		if whole = cols &^ 31; whole > 0 {
			_ = src[4*whole-1]
			roundBF16((*uint16)(unsafe.Pointer(&dst[0])), (*float32)(unsafe.Pointer(&src[0])), whole)
		}
	}
	if unpack != nil {
		if n := cols / f.run(); n > 0 {
			_ = src[f.RowBytes(n*f.run())-1]
			unpack((*byte)(unsafe.Pointer(&dst[0])), &src[0], n)
			whole = n * f.run()
		}
	}
	if whole < cols {
		rest := scratch[:cols-whole]
		Unpack(f, rest, src[f.RowBytes(whole):])
		toBF16Pairs(dst[whole/2:], rest)
	}
}

// readAhead asks memory for bytes [from,to) of the row that comes some rows after row i, if there is one. What is read of
// a row is short, and lies in pages of its own: the hardware sees it coming too late.
func (w *Weights) readAhead(i, from, to int) {
	const rows = 4 // some hundred nanoseconds of unpacking, the time that memory takes
	if i += rows; i < w.Rows {
		prefetch(&w.Row(i)[from], to-from)
	}
}

// toBF16Pairs sets dst to src rounded to bfloat16, two to a word.
func toBF16Pairs(dst []uint32, src []float32) {
	n := len(src) &^ 31
	if n > 0 {
		roundBF16((*uint16)(unsafe.Pointer(&dst[0])), &src[0], n)
	}
	for i := n; i < len(src); i += 2 {
		w := uint32(tensor.ToBF16(src[i]))
		if i+1 < len(src) {
			w |= uint32(tensor.ToBF16(src[i+1])) << 16
		}
		dst[i/2] = w
	}
}

// floats is w seen as float32 values.
func floats(w []uint32) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(w))), len(w))
}

// asBytes is v seen as bytes, little-endian as the machines that have assembly are.
func asBytes[T uint32 | float32](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}

// word is f seen as a word.
func word(f *float32) *uint32 { return (*uint32)(unsafe.Pointer(f)) }
