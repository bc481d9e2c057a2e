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
		for _, kind := range []string{".", ".imatrix."} {
			for _, name := range refTensors {
				if name = typ.Name + kind + name; r.bytes(name+".f32") != nil {
					check(typ, r.bytes(name+".bytes"), r.floats(t, name+".f32"))
				}
			}
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
	b := newBlock(typ.Grid)
	back, values := bytes.Repeat([]byte{0xa5}, typ.BlockBytes), make([]float32, typ.BlockLen)
	for i := range len(src) / typ.BlockBytes {
		block := src[i*typ.BlockBytes : (i+1)*typ.BlockBytes]
		typ.Parse(b, block)
		checkBounds(t, typ, b)
		typ.Pack(back, b)
		if want := canonical(typ, block); !bytes.Equal(back, want) {
			t.Fatalf("%s: block %d:\n%x packs as\n%x", typ, i, block, back)
		}
		typ.Grid.Decode(values, b)
		for j, v := range values {
			if math.Float32bits(v) != math.Float32bits(want[i*typ.BlockLen+j]) {
				t.Fatalf("%s: block %d: weight %d is %v on the grid, want %v", typ, i, j, v, want[i*typ.BlockLen+j])
			}
		}
	}
}

// checkBounds checks that b's scales, minimums and codes are such as typ can store.
func checkBounds(t *testing.T, typ *Type, b *quant.Block) {
	t.Helper()
	g := affine(typ)
	if g == nil {
		return // Pack refuses what is no word
	}
	scaleMin, scaleMax := g.Scales.Bounds()
	most := map[quant.MinimumKind]int{quant.BlockMinimum: 1, quant.GroupMinimums: g.Minimums.Max}[g.Minimums.Kind]
	for k := range b.Sc {
		if int(b.Sc[k]) < scaleMin || int(b.Sc[k]) > scaleMax || b.M[k] < 0 || int(b.M[k]) > most {
			t.Fatalf("%s: group %d has scale %d and minimum %d", typ, k, b.Sc[k], b.M[k])
		}
	}
	for j, q := range b.Codes {
		if int(q) < g.CodeMin || int(q) > g.CodeMax {
			t.Fatalf("%s: code %d is %d", typ, j, q)
		}
	}
}

// canonical returns a block as Pack writes what it holds, where several blocks hold the same.
func canonical(typ *Type, block []byte) []byte {
	switch typ {
	case MXFP4, NVFP4:
		return positiveZeros(typ, block)
	case TQ1_0:
		return canonicalDigits(block)
	}
	return block
}

// canonicalDigits returns a block of TQ1_0 with each byte the least of those with its digits.
func canonicalDigits(block []byte) []byte {
	block = slices.Clone(block)
	for i, v := range block[:52] {
		digits := int(v) * 243 / 256
		if i >= 48 {
			digits = digits / 3 * 3 // the fifth is not used
		}
		block[i] = byte((digits*256 + 242) / 243)
	}
	return block
}
