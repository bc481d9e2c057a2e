package ggml

import (
	"math"
	"math/rand/v2"
	"testing"
)

// squaredError returns Σ importance·(w−ŵ)² over rows of len(importance) columns.
func squaredError(w, q, importance []float32) float64 {
	var sum float64
	for i, v := range w {
		d := float64(v) - float64(q[i])
		e := d * d
		if importance != nil {
			e *= float64(importance[i%len(importance)])
		}
		sum += e
	}
	return sum
}

// encodeRows encodes rows of cols weights with the same importance and returns the bytes.
func encodeRows(typ *Type, w, importance []float32, cols int) []byte {
	n := typ.RowBytes(cols)
	dst := make([]byte, len(w)/cols*n)
	for r := range len(w) / cols {
		typ.Encode(dst[r*n:(r+1)*n], w[r*cols:(r+1)*cols], importance)
	}
	return dst
}

// TestEncode compares with llama-quantize's results on the same tensors.
func TestEncode(t *testing.T) {
	r := openRefs(t)
	if r == nil {
		t.Skip("llama-quantize's results are in ../shared")
	}
	for _, typ := range Types {
		if typ.Grid == nil {
			continue
		}
		for _, kind := range []string{"", "imatrix."} {
			var geo float64
			for _, name := range refTensors {
				w := r.floats(t, "f32."+name)
				var imp []float32
				if kind != "" {
					imp = r.floats(t, "importance."+name)
				}
				theirs, ours := make([]float32, len(w)), make([]float32, len(w))
				typ.Decode(theirs, r.bytes(typ.Name+"."+kind+name+".bytes"))
				typ.Decode(ours, encodeRows(typ, w, imp, refCols))
				e, ref := squaredError(w, ours, imp), squaredError(w, theirs, imp)
				if !(e <= ref) {
					t.Errorf("%s: %s%s: error %.6g, ggml's %.6g", typ, kind, name, e, ref)
				}
				if name != "ffn_up" {
					geo += math.Log(e/ref) / float64(len(refTensors)-1)
				}
			}
			t.Logf("%-7s %-8s error / ggml's: %.4f", typ, kind, math.Exp(geo))
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	w, imp := make([]float32, 4096), make([]float32, 4096)
	for i := range w {
		w[i], imp[i] = float32(rng.NormFloat64()), float32(rng.ExpFloat64())
	}
	for _, typ := range Types {
		if typ.Grid == nil {
			continue
		}
		b.Run(typ.Name, func(b *testing.B) {
			dst := make([]byte, typ.RowBytes(len(w)))
			for b.Loop() {
				typ.Encode(dst, w, imp)
			}
			b.ReportMetric(float64(len(w))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
		})
	}
}
