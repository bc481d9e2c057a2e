package packed

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

func eachType(t *testing.T, cols int, do func(t *testing.T, typ *Type)) {
	for _, s := range []Scheme{{Bits: 4, Group: 32}, {Bits: 4, Group: 64}, {Bits: 4, Group: 128}, {Bits: 4, Group: 32, ZeroPoint: true},
		{Bits: 4, Group: 128, ZeroPoint: true, MinZero: 1}, {Bits: 8}} {
		for _, bf16 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bf16=%v", s.Name(), bf16), func(t *testing.T) {
				if err := s.Check(); err != nil {
					t.Fatal(err)
				}
				do(t, s.TypeFor(cols, bf16))
			})
		}
	}
}

func row(rng *rand.Rand, n int, shift float64) []float32 {
	w := make([]float32, n)
	for i := range w {
		w[i] = float32((rng.NormFloat64() + shift) * 0.02)
	}
	return w
}

// TestTypes: blocks are stored and found again without rounding, decode to what the grid says, bit for bit, and a row's error is that
// of the best scale of its size, or nearly.
func TestTypes(t *testing.T) {
	const cols = 640
	eachType(t, cols, func(t *testing.T, typ *Type) {
		if Of(typ.Type) != typ || typ.Scheme.TypeFor(cols, typ.BF16) != typ || Of(ggml.Q4_0) != nil {
			t.Fatal("a type is not its scheme's")
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for _, shift := range []float64{0, 1, -4} {
			w := row(rng, cols, shift)
			data, got, grid := make([]byte, typ.RowBytes(cols)), make([]float32, cols), make([]float32, cols)
			typ.Encode(data, w, nil)
			typ.Decode(got, data)
			q := typ.ParseWeight(data, 1, cols)
			q.DecodeTo(tensor.FromSlice(1, cols, grid))
			for j := range got {
				if math.Float32bits(got[j]) != math.Float32bits(grid[j]) {
					t.Fatalf("column %d: %v is read, the grid has %v", j, got[j], grid[j])
				}
			}
			if again := typ.PackWeight(q); string(again) != string(data) {
				t.Fatal("packed again it is another")
			}
			for i := range cols / typ.BlockLen {
				b := data[i*typ.BlockBytes:]
				if z := int(typ.Zero(b)); z > 15 || z < typ.MinZero || !typ.ZeroPoint && z != 8 {
					t.Fatalf("a zero point of %d", z)
				}
			}
			if got, most := relative(w, got), relative(w, plain(typ, w)); got > most*1.0001 {
				t.Errorf("shift %g: error %.4g, the range's ends leave %.4g", shift, got, most)
			}
		}
	})
}

// plain rounds each block between its smallest and its largest weight, as minmax observers do.
func plain(t *Type, w []float32) []float32 {
	out := make([]float32, len(w))
	for i := 0; i < len(w); i += t.BlockLen {
		lo, hi := 0.0, 0.0
		for _, v := range w[i : i+t.BlockLen] {
			lo, hi = min(lo, float64(v)), max(hi, float64(v))
		}
		least, most := float64(t.grid.CodeMin), float64(t.grid.CodeMax)
		d := max(-lo, hi) / most
		zero := 0.0
		if t.ZeroPoint {
			d = (hi - lo) / (most - least)
			zero = max(math.Round(-lo/d), float64(t.MinZero))
		}
		d = float64(t.grid.RoundScale(float32(d)))
		for j, v := range w[i : i+t.BlockLen] {
			q := min(max(math.Round(float64(v)/d+zero), least), most)
			out[i+j] = float32((q - zero) * d)
		}
	}
	return out
}

func relative(w, got []float32) float64 {
	var num, den float64
	for i, v := range w {
		num += (float64(v) - float64(got[i])) * (float64(v) - float64(got[i]))
		den += float64(v) * float64(v)
	}
	return num / den
}

// TestSpecialRows: zeros, single values and constants that are on the grid are what they were.
func TestSpecialRows(t *testing.T) {
	eachType(t, 128, func(t *testing.T, typ *Type) {
		for name, fill := range map[string]func(j int) float32{
			"zeros":    func(int) float32 { return 0 },
			"constant": func(int) float32 { return 0.375 },
			"negative": func(int) float32 { return -0.375 },
			"one":      func(j int) float32 { return float32(1 / (1 + j) * 3) },
		} {
			w, got := make([]float32, 128), make([]float32, 128)
			for j := range w {
				w[j] = fill(j)
			}
			data := make([]byte, typ.RowBytes(128))
			typ.Encode(data, w, nil)
			typ.Decode(got, data)
			if e := relative(w, got); !(name == "zeros" && e != e || e < 3e-5) {
				t.Errorf("%s: error %g", name, e)
			}
		}
	})
}

// TestQ4_0: with float16 and groups of 32 the symmetric grid finds what ggml's type finds.
func TestQ4_0(t *testing.T) {
	typ := Scheme{Bits: 4, Group: 32}.TypeFor(256, false)
	rng := rand.New(rand.NewPCG(7, 8))
	importance := make([]float32, 256)
	for i := range importance {
		importance[i] = rng.Float32()
	}
	for _, imp := range [][]float32{nil, importance} {
		w := row(rng, 256, 0)
		a, b := make([]byte, typ.RowBytes(256)), make([]byte, ggml.Q4_0.RowBytes(256))
		typ.Encode(a, w, imp)
		ggml.Q4_0.Encode(b, w, imp)
		x, y := make([]float32, 256), make([]float32, 256)
		typ.Decode(x, a)
		ggml.Q4_0.Decode(y, b)
		for j := range x {
			if x[j] != y[j] {
				t.Fatalf("column %d: %v, Q4_0 has %v", j, x[j], y[j])
			}
		}
	}
}

// TestMoveBlock: a step that coordinate descent takes lowers the error by what it says, and stays on the grid.
func TestMoveBlock(t *testing.T) {
	eachType(t, 128, func(t *testing.T, typ *Type) {
		rng := rand.New(rand.NewPCG(9, 10))
		moved := 0
		for range 200 {
			w := row(rng, typ.BlockLen, 2*rng.Float64()-1)
			q := quant.NewWeight(typ.Grid, 1, typ.BlockLen)
			b := q.Block(0, 0)
			bs := []quant.Block{b}
			quant.Round(typ.Grid, bs, w, nil)
			b = bs[0]
			b.D = typ.grid.RoundScale(b.D * (0.8 + 0.4*rng.Float32())) // off the best
			if typ.ZeroPoint {
				b.DMin = b.D * float32(rng.IntN(16-typ.MinZero)+typ.MinZero)
			}
			loss := func() (sum float64, e quant.Quadratic) {
				x := make([]float32, len(w))
				typ.Grid.Decode(x, &b)
				for j, v := range w {
					r, l := float64(v)-float64(x[j]), float64(b.Codes[j])
					sum += r * r
					e.P, e.Q = e.P+r*l, e.Q-r
					e.A, e.B, e.C = e.A+l*l, e.B-l, e.C+1
				}
				if !typ.ZeroPoint {
					e.Q, e.B, e.C = 0, 0, 0
				}
				return sum, e
			}
			before, e := loss()
			d, dmin := b.D, b.DMin
			if !typ.grid.MoveBlock(&b, &e) {
				continue
			}
			moved++
			after, _ := loss()
			predicted := before + e.At(float64(b.D)-float64(d), float64(b.DMin)-float64(dmin))
			if !(after < before) || math.Abs(after-predicted) > 1e-4*before {
				t.Fatalf("error %g was to become %g, and is %g", before, predicted, after)
			}
			if typ.grid.RoundScale(b.D) != b.D || typ.ZeroPoint && b.DMin != b.D*float32(typ.grid.Zero(&b)) {
				t.Fatalf("scale %v, minimum %v are not on the grid", b.D, b.DMin)
			}
		}
		if moved < 150 {
			t.Errorf("%d of 200 moved", moved)
		}
	})
}
