package ggml

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
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

// encodeRows encodes rows of cols weights with the same importance and returns the bytes and their values.
func encodeRows(typ *Type, w, importance []float32, cols int) (data []byte, values []float32) {
	n := typ.RowBytes(cols)
	data, values = make([]byte, len(w)/cols*n), make([]float32, len(w))
	for r := range len(w) / cols {
		typ.Encode(data[r*n:(r+1)*n], w[r*cols:(r+1)*cols], importance)
	}
	typ.Decode(values, data)
	return data, values
}

// TestEncodeAgainstGgml demands at most the error of llama-quantize's results on the same matrices, and logs the mean
// ratio over them, ffn_up left out, whose errors are those of its largest weights.
func TestEncodeAgainstGgml(t *testing.T) {
	r := openRefs(t)
	if r == nil {
		t.Skip("llama-quantize's results are in ../shared; TestEncodeGaussian needs none")
	}
	for _, typ := range goldenTypes() {
		line := fmt.Sprintf("%-7s error/ggml's", typ)
		for _, kind := range []string{"", "imatrix."} {
			var sum float64
			compared := 0
			for _, name := range refTensors {
				w := r.floats(t, "f32."+name)
				var imp []float32
				if kind != "" {
					imp = r.floats(t, "importance."+name)
				}
				data := r.bytes(typ.Name + "." + kind + name + ".bytes")
				if data == nil {
					continue // llama-quantize demands importances for it, or did not know it
				}
				compared++
				theirs := make([]float32, len(w))
				typ.Decode(theirs, data)
				got, ours := encodeRows(typ, w, imp, refCols)
				if typ.Grid == nil && !bytes.Equal(got, data) {
					t.Errorf("%s: %s: not the same bytes", typ, name)
				}
				e, ref := squaredError(w, ours, imp), squaredError(w, theirs, imp)
				if !(e <= ref) {
					t.Errorf("%s: %s%s: error %.6g, ggml's %.6g", typ, kind, name, e, ref)
				}
				if name != "ffn_up" {
					sum += math.Log(e / ref)
				}
			}
			if typ.Grid != nil && compared > 0 { // the others' bytes are equal
				line += fmt.Sprintf("  %s %.3f", map[string]string{"": "plain", "imatrix.": "imatrix"}[kind],
					math.Exp(sum/float64(len(refTensors)-1)))
			}
		}
		if typ.Grid != nil {
			t.Log(line)
		}
	}
}

// gaussian returns n normal weights and importances spread over three orders of magnitude.
func gaussian(n int) (w, importance []float32) {
	rng := rand.New(rand.NewPCG(1, 2))
	w, importance = make([]float32, n), make([]float32, n)
	for i := range w {
		w[i], importance[i] = float32(0.02*rng.NormFloat64()), float32(math.Exp(1.5*rng.NormFloat64()))
	}
	return w, importance
}

// TestEncodeGaussian holds the relative error of normal weights to what was measured when the searches were written.
func TestEncodeGaussian(t *testing.T) {
	w, importance := gaussian(32 * 1024)
	zero := make([]float32, len(w))
	for _, c := range []struct {
		typ             *Type
		plain, weighted float64
	}{
		{Q4_0, 0.006708, 0.004581},
		{Q4_1, 0.004777, 0.002755},
		{Q5_0, 0.001653, 0.001131},
		{Q5_1, 0.001106, 0.0006555},
		{Q8_0, 2.272e-05, 1.393e-05},
		{Q2_K, 0.06721, 0.0336},
		{Q3_K, 0.02065, 0.0132},
		{Q4_K, 0.004852, 0.002837},
		{Q5_K, 0.00116, 0.000714},
		{Q6_K, 0.0002724, 0.0001692},
		{IQ4_NL, 0.005345, 0.003464},
		{IQ4_XS, 0.00541, 0.003529},
		{MXFP4, 0.01228, 0.01246},
		{NVFP4, 0.008092, 0.005871},
		{TQ1_0, 0.1885, 0.1755},
		{TQ2_0, 0.138, 0.1196},
		{Q1_0, 0.3601, 0.3402},
		{IQ1_S, 0.1971, 0.1245},
		{IQ1_M, 0.1695, 0.08931},
		{IQ2_XXS, 0.1071, 0.0509},
		{IQ2_XS, 0.08143, 0.03735},
		{IQ2_S, 0.05689, 0.03169},
		{IQ3_XXS, 0.03117, 0.01267},
		{IQ3_S, 0.01679, 0.008261},
		{Q2_0, 0.1226, 0.09308},
	} {
		for _, imp := range [][]float32{nil, importance} {
			want := c.plain
			if imp != nil {
				want = c.weighted
			}
			_, q := encodeRows(c.typ, w, imp, len(w))
			got := squaredError(w, q, imp) / squaredError(w, zero, imp)
			if got > 1.005*want {
				t.Errorf("%s: weighted %v: relative error %.4g, was %.4g", c.typ, imp != nil, got, want)
			}
		}
	}
}

// edgeRows are rows of 256 weights that searches trip over.
func edgeRows() map[string][]float32 {
	rng := rand.New(rand.NewPCG(3, 4))
	row := func(f func(i int) float32) []float32 {
		w := make([]float32, 256)
		for i := range w {
			w[i] = f(i)
		}
		return w
	}
	norm := func(i int) float32 { return float32(rng.NormFloat64()) }
	return map[string][]float32{
		"zero":          row(func(i int) float32 { return 0 }),
		"negative zero": row(func(i int) float32 { return float32(math.Copysign(0, -1)) }),
		"constant":      row(func(i int) float32 { return 0.3 }),
		"negative":      row(func(i int) float32 { return -0.7 }),
		"one-hot":       row(func(i int) float32 { return float32(max(1-i, 0)) * 3 }),
		"two values":    row(func(i int) float32 { return float32(i%2)*2 - 1 }),
		"ramp":          row(func(i int) float32 { return float32(i) / 256 }),
		"normal":        row(norm),
		"positive":      row(func(i int) float32 { return abs(norm(i)) }),
		"offset":        row(func(i int) float32 { return 1000 + norm(i) }),
		"outlier":       row(func(i int) float32 { return norm(i) * float32(math.Pow(1000, float64(i%50/49))) }),
		"wild":          row(func(i int) float32 { return norm(i) * float32(math.Exp(40*rng.Float64()-20)) }),
		"f16 subnormal": row(func(i int) float32 { return norm(i) * 1e-7 }),
		"tiny":          row(func(i int) float32 { return norm(i) * 1e-30 }),
		"f32 subnormal": row(func(i int) float32 { return norm(i) * 1e-42 }),
		"smallest":      row(func(i int) float32 { return math.SmallestNonzeroFloat32 }),
		"f16 limit":     row(func(i int) float32 { return float32(i%3-1) * 65504 }),
		"large":         row(func(i int) float32 { return norm(i) * 1e9 }),
		"huge":          row(func(i int) float32 { return norm(i) * 1e37 }),
		"largest":       row(func(i int) float32 { return float32(1-i%2*2) * math.MaxFloat32 }),
		"mixed groups":  row(func(i int) float32 { return norm(i) * float32(math.Pow(10, float64(i/16-8))) }),
	}
}

// edgeImportances are importances of 256 columns.
func edgeImportances() map[string][]float32 {
	rng := rand.New(rand.NewPCG(5, 6))
	imp := map[string][]float32{"none": nil}
	for name, f := range map[string]func(i int) float32{
		"zero":       func(i int) float32 { return 0 },
		"wild":       func(i int) float32 { return float32(math.Pow(10, 18*rng.Float64()-12)) },
		"one column": func(i int) float32 { return float32(max(1-i, 0)) },
		"dead group": func(i int) float32 { return float32(i / 32 % 2) },
		"dead half":  func(i int) float32 { return float32(i % 2) },
		"tiny":       func(i int) float32 { return float32(1+i%3) * math.SmallestNonzeroFloat32 },
		"huge":       func(i int) float32 { return math.MaxFloat32 / float32(1+i%7) },
	} {
		imp[name] = make([]float32, 256)
		for i := range imp[name] {
			imp[name][i] = f(i)
		}
	}
	return imp
}

// TestEncodePlain compares the shorter way of types with one scale to what it shortens: Fit, rounding and Pack, block by
// block.
func TestEncodePlain(t *testing.T) {
	const blocks = 37
	rng := rand.New(rand.NewPCG(9, 10))
	special := []float32{0, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.MaxFloat32, -1e30, 65504,
		1e-8, 1e-40}
	previous := kernels.CurrentTier()
	defer kernels.SetTier(previous)
	for _, typ := range Types {
		if typ.round == nil {
			continue
		}
		w := make([]float32, blocks*typ.BlockLen)
		for i := range w {
			w[i] = float32(rng.NormFloat64())
		}
		for k, v := range special {
			w[(3*k+1)*typ.BlockLen+k] = v
			for j := range typ.BlockLen {
				w[3*k*typ.BlockLen+j] = v
			}
		}
		for _, tier := range kernels.Tiers() {
			kernels.SetTier(tier)
			for n := range blocks + 1 {
				w := w[:n*typ.BlockLen]
				got, want := make([]byte, typ.RowBytes(len(w))), make([]byte, typ.RowBytes(len(w)))
				var wantNoise float64
				for i := range n {
					b := []quant.Block{*newBlock(typ.Grid)}
					quant.Round(typ.Grid, b, w[i*typ.BlockLen:(i+1)*typ.BlockLen], nil)
					typ.Pack(want[i*typ.BlockBytes:(i+1)*typ.BlockBytes], &b[0])
					wantNoise += typ.Grid.Noise(&b[0])
				}
				if noise := typ.Encode(got, w, nil); noise != wantNoise || !bytes.Equal(got, want) {
					t.Errorf("%s, %s, %d blocks: noise %g, want %g; bytes equal: %t", typ, tier, n, noise, wantNoise,
						bytes.Equal(got, want))
				}
			}
		}
	}
}

// TestEncodeEdges checks that whatever is finite is encoded as finite values, with scales in range that are float16
// values, and no worse than as zeros.
func TestEncodeEdges(t *testing.T) {
	zero := make([]float32, 256)
	for rowName, w := range edgeRows() {
		for impName, imp := range edgeImportances() {
			for _, typ := range Types {
				data, q := encodeRows(typ, w, imp, 256)
				for i, v := range q {
					if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
						t.Fatalf("%s: %s, importance %s: weight %d: %v became %v", typ, rowName, impName, i, w[i], v)
					}
				}
				e, worst := squaredError(w, q, imp), squaredError(w, zero, imp)
				if e > worst {
					t.Errorf("%s: %s, importance %s: error %g, of zeros %g", typ, rowName, impName, e, worst)
				}
				again, _ := encodeRows(typ, w, imp, 256)
				if !bytes.Equal(data, again) {
					t.Errorf("%s: %s, importance %s: different bytes the second time", typ, rowName, impName)
				}
				if typ.Grid != nil {
					checkParse(t, typ, data, q)
				}
			}
		}
	}
}

// TestFit checks what Fit promises beyond its choice: codes left alone, float16 scales, nothing allocated, and importances
// that count relative to each other only.
func TestFit(t *testing.T) {
	const blocks = 19 // more than are searched together
	w, importance := gaussian(blocks * maxBlock)
	for _, typ := range Types {
		g := typ.Grid
		if g == nil {
			continue
		}
		size := typ.BlockLen
		newBlocks := func() []quant.Block {
			b := make([]quant.Block, blocks)
			for i := range b {
				b[i] = *newBlock(g)
			}
			return b
		}
		b := newBlocks()
		for i := range b {
			for j := range b[i].Codes {
				b[i].Codes[j] = int8(j)
			}
		}
		n := blocks * size
		x, imp := w[:n], importance[:n]
		if n := testing.AllocsPerRun(3, func() { g.Fit(b, x, imp, quant.Full) }); n != 0 {
			t.Errorf("%s: Fit allocates %v times", typ, n)
		}
		scaled := make([]float32, len(imp))
		for i, v := range imp {
			scaled[i] = v / 1024
		}
		c := newBlocks()
		g.Fit(c, x, scaled, quant.Full)
		for i := range b {
			for j, q := range b[i].Codes {
				if q != int8(j) {
					t.Fatalf("%s: Fit sets codes", typ)
				}
			}
			if b[i].D != tensor.RoundF16(b[i].D) || b[i].DMin != tensor.RoundF16(b[i].DMin) {
				t.Errorf("%s: scales %v and %v are no float16 values", typ, b[i].D, b[i].DMin)
			}
			same := func(o *quant.Block) bool {
				return o.D == b[i].D && o.DMin == b[i].DMin && equal(o.Sc, b[i].Sc) && equal(o.M, b[i].M)
			}
			if !same(&c[i]) {
				t.Errorf("%s: importances divided by 1024 give other scales", typ)
			}
		}
		for _, imp := range [][]float32{nil, imp} {
			g.Fit(c, make([]float32, n), imp, quant.Full)
			for i := range c {
				if c[i].D != 0 || c[i].DMin != 0 {
					t.Errorf("%s: zeros give scales %v and %v", typ, c[i].D, c[i].DMin)
				}
			}
		}
	}
}

// TestFitAlone checks that a block has the same scales alone and among others, some of which need a search of their own:
// zeros, scales below float16's normal values and above all of them, equal weights, and weights of no importance.
func TestFitAlone(t *testing.T) {
	const blocks = 19 // more than are searched together
	w, importance := gaussian(blocks * maxBlock)
	for _, typ := range Types {
		g := typ.Grid
		if g == nil {
			continue
		}
		n := typ.BlockLen
		x, imp := slices.Clone(w[:blocks*n]), slices.Clone(importance[:blocks*n])
		for j := range n {
			x[2*n+j] = 0
			x[4*n+j] *= 1e-6
			x[6*n+j] *= 1e9
			x[8*n+j] = 0.3
			imp[10*n+j] = 0
			if j < n/2 {
				imp[12*n+j] = 0
			}
		}
		check := func(name string, e quant.Effort, imp []float32) {
			b := make([]quant.Block, blocks)
			for i := range b {
				b[i] = *newBlock(g)
			}
			g.Fit(b, x, imp, e)
			for i := range b {
				lo, hi := i*n, (i+1)*n
				one := []quant.Block{*newBlock(g)}
				var its []float32
				if imp != nil {
					its = imp[lo:hi]
				}
				g.Fit(one, x[lo:hi], its, e)
				if a := &one[0]; a.D != b[i].D || a.DMin != b[i].DMin || !equal(a.Sc, b[i].Sc) || !equal(a.M, b[i].M) {
					t.Errorf("%s: %s, importances %t: block %d alone has other scales than among %d", typ, name, imp != nil, i,
						blocks)
				}
			}
		}
		for _, imp := range [][]float32{nil, imp} {
			check("full", quant.Full, imp)
			check("coarse", quant.Coarse, imp)
		}
	}
}

func equal(a, b []int8) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestEncodeAgain checks that what a type with one scale per block holds is encoded without error, however few of its
// codes occur.
func TestEncodeAgain(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, typ := range Types {
		g := affine(typ)
		if typ.Grid != nil && typ.Grid.Shape().Groups() > 1 {
			continue
		}
		check := func(w []float32) {
			t.Helper()
			_, q := encodeRows(typ, w, nil, len(w))
			if e := squaredError(w, q, nil); e != 0 {
				t.Errorf("%s: error %g on\n%v\n%v", typ, e, w, q)
			}
		}
		if g == nil {
			_, w := encodeRows(typ, edgeRows()["normal"], nil, 256)
			check(w)
			continue
		}
		b, w := newBlock(g), make([]float32, g.Block)
		for range 200 {
			b.D = tensor.RoundF16(float32(math.Exp(min(4*rng.NormFloat64()-3, 9))))
			b.Sc[0] = 1
			if dmin := tensor.RoundF16(b.D * float32(10*rng.NormFloat64())); g.HasMinimum() {
				b.DMin, b.M[0] = dmin, 1
			}
			lo := g.CodeMin + rng.IntN(g.CodeMax-g.CodeMin)
			hi := lo + 1 + rng.IntN(g.CodeMax-lo)
			for i := range b.Codes {
				b.Codes[i] = int8(lo + rng.IntN(hi-lo+1))
			}
			g.Decode(w, b)
			check(w)
		}
	}
	goldenBlocks(t, func(typ *Type, src []byte, want []float32) {
		if g := affine(typ); g == nil || g.Scales.Super {
			return
		}
		if _, q := encodeRows(typ, want, nil, len(want)); squaredError(want, q, nil) != 0 {
			t.Errorf("%s: error %g on ggml's values", typ, squaredError(want, q, nil))
		}
	})
}

// TestEncodeConstant checks that rounding the scale to float16 is nearly all that constant rows lose: with several
// products of scale and level to choose from, less than half a step of float16.
func TestEncodeConstant(t *testing.T) {
	w := make([]float32, 256)
	for _, v := range []float32{0.3, -0.7, 0.05, 123.4} {
		for i := range w {
			w[i] = v
		}
		for _, typ := range Types {
			if g := affine(typ); g == nil || g.Codebook != nil {
				continue
			}
			_, q := encodeRows(typ, w, nil, len(w))
			for i, x := range q {
				if abs(x-v) > abs(v)/2048 {
					t.Fatalf("%s: weight %d: %v became %v", typ, i, v, x)
				}
			}
		}
	}
}

// TestEncodeFloat checks rounding and saturation of the floating-point types.
func TestEncodeFloat(t *testing.T) {
	w := []float32{1, -0.1, 65519, 65520, -1e6, math.MaxFloat32, -math.MaxFloat32, 1e-8, 0}
	for _, c := range []struct {
		typ  *Type
		want []float32
	}{
		{F32, w},
		{F16, []float32{1, -0.0999755859375, 65504, 65504, -65504, 65504, -65504, 0, 0}},
		{BF16, []float32{1, -0.10009765625, 65536, 65536, -999424, encode.MaxBF16, -encode.MaxBF16, 1.0011718e-08, 0}},
	} {
		_, got := encodeRows(c.typ, w, nil, len(w))
		for i, v := range got {
			if v != c.want[i] {
				t.Errorf("%s: %v became %v, want %v", c.typ, w[i], v, c.want[i])
			}
		}
	}
}

// TestEncodeNotFinite checks that NaN and infinities, which callers should refuse, do no worse than give bad values.
func TestEncodeNotFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		w, imp := gaussian(maxBlock)
		w[100] = float32(bad)
		for _, typ := range Types {
			_, q := encodeRows(typ, w, imp, len(w))
			if e := squaredError(w[128:], q[128:], nil); typ.BlockLen <= 32 && !(e < 0.01) {
				t.Errorf("%s: a %v spoils another block: error %g", typ, bad, e)
			}
			w, imp := gaussian(maxBlock)
			imp[100] = float32(bad)
			if _, q := encodeRows(typ, w, imp, len(w)); math.IsNaN(squaredError(w, q, nil)) {
				t.Errorf("%s: an importance of %v gives NaN", typ, bad)
			}
		}
	}
}

func TestEncodePanics(t *testing.T) {
	for name, f := range map[string]func(){
		"part of a block": func() { Q4_0.Encode(make([]byte, 18), make([]float32, 31), nil) },
		"short dst":       func() { Q4_K.Encode(make([]byte, 143), make([]float32, 256), nil) },
		"importance":      func() { Q4_K.Encode(make([]byte, 144), make([]float32, 256), make([]float32, 255)) },
		"short src":       func() { Q4_K.Decode(make([]float32, 256), make([]byte, 143)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func BenchmarkEncodePlain(b *testing.B) {
	w, _ := gaussian(4096)
	for _, typ := range Types {
		b.Run(typ.Name, func(b *testing.B) {
			dst := make([]byte, typ.RowBytes(len(w)))
			for b.Loop() {
				typ.Encode(dst, w, nil)
			}
			b.ReportMetric(float64(len(w))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	w, imp := gaussian(4096)
	for _, typ := range Types {
		b.Run(typ.Name, func(b *testing.B) {
			dst := make([]byte, typ.RowBytes(len(w)))
			for b.Loop() {
				typ.Encode(dst, w, imp)
			}
			b.ReportMetric(float64(len(w))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	w, _ := gaussian(4096)
	for _, typ := range Types {
		b.Run(typ.Name, func(b *testing.B) {
			src := make([]byte, typ.RowBytes(len(w)))
			typ.Encode(src, w, nil)
			for b.Loop() {
				typ.Decode(w, src)
			}
			b.ReportMetric(float64(len(w))*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
		})
	}
}

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }
