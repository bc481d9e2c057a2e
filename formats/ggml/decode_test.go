package ggml

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// goldenTypes are those of which ggml's results are at hand: all but F32, and the four-bit floats, which TestFP4 holds to
// their specification.
func goldenTypes() []*Type {
	return slices.DeleteFunc(slices.Clone(Types), func(t *Type) bool { return t == F32 || t == MXFP4 || t == NVFP4 })
}

// goldenBlocks calls f for every block of testdata/blocks.json with its decoded values.
func goldenBlocks(t testing.TB, f func(typ *Type, src []byte, want []float32)) {
	file, err := os.ReadFile("testdata/blocks.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(file, &all); err != nil {
		t.Fatal(err)
	}
	for _, typ := range goldenTypes() {
		var blocks []struct{ Bytes, F32 string }
		if err := json.Unmarshal(all[typ.Name], &blocks); err != nil || len(blocks) == 0 {
			t.Fatalf("%s: %d blocks, %v", typ, len(blocks), err)
		}
		for _, b := range blocks {
			src, err := hex.DecodeString(b.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			values, err := hex.DecodeString(b.F32)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]float32, len(values)/4)
			tensor.DecodeF32(want, values)
			f(typ, src, want)
		}
	}
}

func TestDecode(t *testing.T) {
	check := func(typ *Type, src []byte, want []float32) {
		t.Helper()
		got := make([]float32, len(want))
		typ.Decode(got, src)
		for i := range got {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
				t.Fatalf("%s: weight %d is %v, want %v", typ, i, got[i], want[i])
			}
		}
		checkParse(t, typ, src, want)
	}
	goldenBlocks(t, check)
	r := openRefs(t)
	if r == nil {
		return
	}
	for _, typ := range goldenTypes() {
		for _, name := range refTensors {
			check(typ, r.bytes(typ.Name+"."+name+".bytes"), r.floats(t, typ.Name+"."+name+".f32"))
		}
	}
}

// newBlock returns a block with room for g's scales and codes.
func newBlock(g quant.Grid) *quant.Block {
	s := g.Shape()
	n := s.Groups()
	return &quant.Block{Sc: make([]int8, n), M: make([]int8, n), Codes: make([]int8, s.Block)}
}

// affine returns typ's grid, nil if it has none of one code a column.
func affine(typ *Type) *quant.Affine {
	g, _ := typ.Grid.(*quant.Affine)
	return g
}

// checkParse checks that Parse finds what decodes to want, and Pack restores the bytes.
func checkParse(t *testing.T, typ *Type, src []byte, want []float32) {
	t.Helper()
	if typ.Grid == nil {
		return
	}
	g := affine(typ)
	b := newBlock(g)
	scaleMin, scaleMax := g.Scales.Bounds()
	most := map[quant.MinimumKind]int{quant.BlockMinimum: 1, quant.GroupMinimums: g.Minimums.Max}[g.Minimums.Kind]
	back, values := bytes.Repeat([]byte{0xa5}, typ.BlockBytes), make([]float32, g.Block)
	for i := range len(src) / typ.BlockBytes {
		block := src[i*typ.BlockBytes : (i+1)*typ.BlockBytes]
		typ.Parse(b, block)
		for k := range b.Sc {
			if int(b.Sc[k]) < scaleMin || int(b.Sc[k]) > scaleMax || b.M[k] < 0 || int(b.M[k]) > most {
				t.Fatalf("%s: block %d: group %d has scale %d and minimum %d", typ, i, k, b.Sc[k], b.M[k])
			}
		}
		for j, q := range b.Codes {
			if int(q) < g.CodeMin || int(q) > g.CodeMax {
				t.Fatalf("%s: block %d: code %d is %d", typ, i, j, q)
			}
		}
		typ.Pack(back, b)
		if typ == MXFP4 || typ == NVFP4 {
			block = positiveZeros(typ, block)
		}
		if !bytes.Equal(back, block) {
			t.Fatalf("%s: block %d:\n%x packs as\n%x", typ, i, block, back)
		}
		g.Decode(values, b)
		for j, v := range values {
			if math.Float32bits(v) != math.Float32bits(want[i*g.Block+j]) {
				t.Fatalf("%s: block %d: weight %d is %v on the grid, want %v", typ, i, j, v, want[i*g.Block+j])
			}
		}
	}
}
