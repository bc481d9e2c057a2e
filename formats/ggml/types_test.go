package ggml

import (
	"errors"
	"strings"
	"testing"
)

func TestTypes(t *testing.T) {
	for _, c := range []struct {
		name                 string
		id                   uint32
		blockLen, blockBytes int
		bits                 float64
	}{
		{"F32", 0, 1, 4, 32}, {"F16", 1, 1, 2, 16}, {"BF16", 30, 1, 2, 16},
		{"Q4_0", 2, 32, 18, 4.5}, {"Q4_1", 3, 32, 20, 5}, {"Q5_0", 6, 32, 22, 5.5}, {"Q5_1", 7, 32, 24, 6},
		{"Q8_0", 8, 32, 34, 8.5}, {"Q2_K", 10, 256, 84, 2.625}, {"Q3_K", 11, 256, 110, 3.4375},
		{"Q4_K", 12, 256, 144, 4.5}, {"Q5_K", 13, 256, 176, 5.5}, {"Q6_K", 14, 256, 210, 6.5625},
		{"MXFP4", 39, 32, 17, 4.25}, {"NVFP4", 40, 64, 36, 4.5},
		{"TQ1_0", 34, 256, 54, 1.6875}, {"TQ2_0", 35, 256, 66, 2.0625}, {"Q1_0", 41, 128, 18, 1.125}, {"Q2_0", 42, 64, 18, 2.25},
		{"IQ1_S", 19, 256, 50, 1.5625}, {"IQ1_M", 29, 256, 56, 1.75}, {"IQ2_XXS", 16, 256, 66, 2.0625}, {"IQ2_XS", 17, 256, 74, 2.3125},
		{"IQ2_S", 22, 256, 82, 2.5625}, {"IQ3_XXS", 18, 256, 98, 3.0625}, {"IQ3_S", 21, 256, 110, 3.4375},
		{"IQ4_NL", 20, 32, 18, 4.5}, {"IQ4_XS", 23, 256, 136, 4.25},
	} {
		typ, err := ByName(strings.ToLower(c.name))
		if err != nil {
			t.Error(err)
			continue
		}
		if byID, err := ByID(c.id); byID != typ || err != nil {
			t.Errorf("ByID(%d) = %v, %v", c.id, byID, err)
		}
		if typ.Name != c.name || typ.BlockLen != c.blockLen || typ.BlockBytes != c.blockBytes || typ.BitsPerWeight() != c.bits {
			t.Errorf("%s: %d weights in %d bytes, %v bits, want %+v", typ, typ.BlockLen, typ.BlockBytes, typ.BitsPerWeight(), c)
		}
		if got := typ.RowBytes(512); got != 512/c.blockLen*c.blockBytes {
			t.Errorf("%s: 512 weights take %d bytes", typ, got)
		}
		if g := typ.Grid; g != nil {
			s := g.Shape()
			if g.String() != c.name || s.Block != c.blockLen || s.Block > maxBlock || s.Groups() > maxGroups {
				t.Errorf("%s: grid %s of %+v", typ, g, s)
			}
		}
	}
	for i, typ := range Types[1:] {
		if typ.ID <= Types[i].ID {
			t.Errorf("%s is listed after %s", typ, Types[i])
		}
	}
}

func TestUnsupported(t *testing.T) {
	for _, c := range []struct {
		err  func() error
		want string
	}{
		{func() error { _, err := ByID(9); return err }, "type Q8_1 (9) is not supported"},
		{func() error { _, err := ByName("q8_k"); return err }, "type Q8_K (15) is not supported"},
		{func() error { _, err := ByID(1 << 31); return err }, "unknown type 2147483648"},
		{func() error { _, err := ByName("q4"); return err }, `no type is named "q4"`},
	} {
		err := c.err()
		var u *UnsupportedError
		if !errors.As(err, &u) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "IQ4_XS, IQ1_M, BF16") {
			t.Errorf("%v, want %q and the supported types", err, c.want)
		}
	}
	for id, f := range unsupported {
		for _, typ := range Types {
			if typ.ID == id || typ.Name == f.Name {
				t.Errorf("%s (%d) is both supported and not", f.Name, id)
			}
		}
	}
}

func TestSubstitute(t *testing.T) {
	for _, c := range []struct {
		typ  *Type
		cols int
		want *Type
	}{
		{Q4_K, 512, Q4_K}, {Q4_K, 320, Q5_0}, {Q4_K, 100, F16}, {Q5_K, 288, Q5_1}, {Q6_K, 32, Q8_0}, {Q2_K, 96, IQ4_NL},
		{Q3_K, 96, IQ4_NL}, {IQ4_XS, 96, IQ4_NL}, {IQ2_S, 896, IQ4_NL}, {IQ1_M, 320, IQ4_NL}, {IQ3_XXS, 2880, IQ4_NL}, {IQ3_S, 100, F16},
		{TQ2_0, 896, Q4_0}, {Q2_0, 96, Q4_0}, {Q2_0, 320, Q2_0}, {Q1_0, 64, Q4_0}, {Q4_0, 48, F16}, {Q8_0, 31, F16}, {F32, 3, F32}, {BF16, 1, BF16},
	} {
		if got := Substitute(c.typ, c.cols); got != c.want {
			t.Errorf("Fallback(%s, %d) = %s, want %s", c.typ, c.cols, got, c.want)
		}
	}
}

// TestLayout compares with what ggml_blck_size and ggml_type_size of llama.cpp's ggml 0.5.0 return for each id; of a type
// that it has removed they return 0.
func TestLayout(t *testing.T) {
	layouts := [][2]int{
		{1, 4}, {1, 2}, {32, 18}, {32, 20}, {}, {}, {32, 22}, {32, 24}, {32, 34}, {32, 36}, {256, 84}, {256, 110},
		{256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74}, {256, 98}, {256, 50}, {32, 18}, {256, 110},
		{256, 82}, {256, 136}, {1, 1}, {1, 2}, {1, 4}, {1, 8}, {1, 8}, {256, 56}, {1, 2}, {}, {}, {}, {256, 54}, {256, 66},
		{}, {}, {}, {32, 17}, {64, 36}, {128, 18}, {64, 18},
	}
	for id, want := range layouts {
		f := Layout(uint32(id))
		if f.BlockLen != want[0] || f.BlockBytes != want[1] || strings.HasPrefix(f.Name, "type") {
			t.Errorf("%d: %s has blocks of %d weights in %d bytes, want %d", id, f.Name, f.BlockLen, f.BlockBytes, want)
		}
	}
	if f := Layout(137); f.Name != "type 137" || f.BlockLen != 0 {
		t.Errorf("an unknown type: %+v", f)
	}
}
