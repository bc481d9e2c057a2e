package ggml

import (
	"bytes"
	"math"
	"testing"
)

// FuzzBlock reads arbitrary bytes as a block of each type: nothing panics, Pack restores what Parse read, and both
// decoders agree.
func FuzzBlock(f *testing.F) {
	f.Add(make([]byte, 256))
	f.Add(bytes.Repeat([]byte{0xff}, 256))
	f.Add(bytes.Repeat([]byte{0x3c, 0x81}, 128))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, typ := range Types {
			if len(data) < typ.BlockBytes {
				continue
			}
			src := data[:typ.BlockBytes]
			want := make([]float32, typ.BlockLen)
			typ.Unpack(want, src)
			for _, v := range want {
				if math.IsNaN(float64(v)) {
					return // from an infinite or NaN scale; a NaN's payload need not survive
				}
			}
			checkParse(t, typ, src, want)
		}
	})
}

// FuzzEncode encodes arbitrary finite weights with arbitrary importances.
func FuzzEncode(f *testing.F) {
	w, imp := gaussian(32)
	seed := make([]byte, 256)
	F32.Encode(seed[:128], w, nil)
	F32.Encode(seed[128:], imp, nil)
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		const n = 256
		w, imp := make([]float32, n), make([]float32, n)
		if len(data) < 256 {
			return
		}
		for i := range n { // the input's two halves, over and over
			var v [2]float32
			F32.Decode(v[:1], data[i%32*4:][:4])
			F32.Decode(v[1:], data[128+i%32*4:][:4])
			w[i], imp[i] = v[0]*float32(1+i/32), v[1]
			if w[i]-w[i] != 0 {
				w[i] = 0
			}
		}
		for _, typ := range Types {
			_, q := encodeRows(typ, w, imp, n)
			for i, v := range q {
				if v-v != 0 {
					t.Fatalf("%s: weight %d: %v became %v", typ, i, w[i], v)
				}
			}
		}
	})
}
