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
	goldenBlocks(f, func(_ *Type, src []byte, _ []float32) { f.Add(src) })
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

// FuzzEncode encodes arbitrary finite weights with arbitrary importances, the input's pairs of four bytes, over and over, in
// the type of which its first byte is the number. Codebooks take milliseconds: all types for each input would take minutes.
func FuzzEncode(f *testing.F) {
	w, imp := gaussian(32)
	seed := make([]byte, 256)
	for i := range w {
		F32.Encode(seed[8*i:][:8], []float32{w[i], imp[i]}, nil)
	}
	for i := range Types {
		f.Add(append([]byte{byte(i)}, seed...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 9 {
			return
		}
		typ := Types[int(data[0])%len(Types)]
		data = data[1:]
		const n = 256
		w, imp := make([]float32, n), make([]float32, n)
		for i := range n {
			var pair [2]float32
			F32.Decode(pair[:], data[8*i%(len(data)-7):][:8])
			if w[i], imp[i] = pair[0], pair[1]; w[i]-w[i] != 0 {
				w[i] = 0
			}
		}
		_, q := encodeRows(typ, w, imp, n)
		for i, v := range q {
			if v-v != 0 {
				t.Fatalf("%s: weight %d: %v became %v", typ, i, w[i], v)
			}
		}
	})
}
