package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// testSet is a calibration set of random tokens.
func testSet(m *testmodel.Model) *calib.Set {
	const seqs, seqLen = 64, 64
	set := &calib.Set{SeqLen: seqLen}
	for i := range seqs {
		set.Sequences = append(set.Sequences, m.Tokens(seqLen, uint64(i)))
	}
	return set
}

func mustRun(t *testing.T, src Source, r Recipe, opt Options) (path string, rep *Report) {
	t.Helper()
	p, err := NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "out.gguf")
	if rep, err = Run(t.Context(), src, p, path, opt); err != nil {
		t.Fatal(err)
	}
	return path, rep
}

func open(t *testing.T, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// logits runs a whole model on some tokens.
func logits(t *testing.T, src model.Source, tokens []int32) *tensor.Matrix {
	t.Helper()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	return forward(t, m, tokens, nil)
}

// distance is ‖a−b‖²/‖a‖².
func distance(a, b *tensor.Matrix) float64 {
	var s errorSum
	s.add(a, b)
	return s.relative()
}

// TestEveryArchitecture quantizes each with each method, and holds the file to its plan, and the model in it to the
// original.
func TestEveryArchitecture(t *testing.T) {
	t.Parallel()
	logRatio := 0.0
	names := testmodel.Names()
	if testing.Short() {
		names = names[:3]
	}
	for _, name := range names {
		tm := testmodel.New(name)
		tokens := tm.Tokens(48, 99)
		want := logits(t, tm.Source(), tokens)
		off := map[quant.Method]float64{}
		for _, method := range []quant.Method{RTN, GPTQ} {
			src := tm.Source()
			r := Recipe{Method: method, Type: ggml.Q4_K}
			path, rep := mustRun(t, src, r, Options{Calib: testSet(tm)})
			f := open(t, path)
			p, err := NewPlan(src, r)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() != p.File.Size() || rep.Bytes != info.Size() {
				t.Errorf("%s %s: %d bytes, planned %d, reported %d", name, method.Name(), info.Size(), p.File.Size(), rep.Bytes)
			}
			if len(rep.Tensors) != len(src.List) {
				t.Fatalf("%s %s: %d tensors reported of %d", name, method.Name(), len(rep.Tensors), len(src.List))
			}
			for i, got := range f.Tensors() {
				in, tr := &src.List[i], &rep.Tensors[i]
				wantType := ggml.F32
				switch {
				case len(in.Shape) < 2:
				case in.Name == embeddingName || in.Name == outputName:
					wantType = ggml.F16
				default:
					wantType = ggml.Substitute(ggml.Q4_K, in.Cols())
				}
				if got.Name != in.Name || got.Type != wantType || tr.Name != in.Name || tr.Type != wantType.Name {
					t.Errorf("%s %s: tensor %d is %s %s, reported %s %s; want %s %s", name, method.Name(), i,
						got.Name, got.Type, tr.Name, tr.Type, in.Name, wantType)
				}
				quantized := wantType.Grid != nil
				if quantized != (tr.RelativeError > 1e-6) || tr.RelativeError > 0.05 {
					t.Errorf("%s %s: %s %s has relative error %v", name, method.Name(), tr.Name, tr.Type, tr.RelativeError)
				}
				if (quantized && method == GPTQ) != (tr.Damping > 0) {
					t.Errorf("%s %s: %s has damping %v", name, method.Name(), tr.Name, tr.Damping)
				}
				if wantFallback := len(in.Shape) == 2 && wantType != ggml.F16 && wantType != ggml.Q4_K; wantFallback !=
					(tr.Wanted == "Q4_K") && wantType != ggml.F16 {
					t.Errorf("%s %s: %s is %s, fallback from %q", name, method.Name(), tr.Name, tr.Type, tr.Wanted)
				}
			}
			off[method] = distance(want, logits(t, f, tokens))
		}
		t.Logf("%-12s logits off by %.3g with rtn, %.3g with gptq", name, off[RTN], off[GPTQ])
		if off[RTN] > 0.15 || off[GPTQ] > off[RTN] {
			t.Errorf("%s: logits are off by %v with rtn, %v with gptq", name, off[RTN], off[GPTQ])
		}
		logRatio += math.Log(off[GPTQ] / off[RTN])
	}
	// Single models this small vary with the rounding of sums.
	if mean := math.Exp(logRatio / float64(len(names))); mean > 0.8 {
		t.Errorf("logits with gptq are off by %.3g times as much as with rtn", mean)
	}
}

// TestEveryType writes each block type from one model.
func TestEveryType(t *testing.T) {
	t.Parallel()
	tm := testmodel.New("llama")
	tokens := tm.Tokens(32, 5)
	want := logits(t, tm.Source(), tokens)
	for _, typ := range ggml.Types {
		if _, ok := fileTypes[typ]; !ok {
			t.Errorf("%s has no file type", typ.Name)
		}
		r := Recipe{Method: RTN, Type: typ}
		if _, words := typ.Grid.(*quant.Lattice); words { // their encoding takes long: one stands for all, in some linears
			if typ != ggml.IQ3_XXS || testing.Short() {
				continue
			}
			r.Rules = rules(t, "attn|ffn_gate|ffn_down=f16")
		}
		path, rep := mustRun(t, tm.Source(), r, Options{})
		f := open(t, path)
		if got := f.Tensors()[1].Type; rep.Tensors[1].Type != got.Name {
			t.Errorf("%s: reported %s, is %s", typ.Name, rep.Tensors[1].Type, got.Name)
		}
		limit := 20 * math.Exp2(-1.5*typ.BitsPerWeight()) // each bit of a code quarters the squared error
		if typ == ggml.MXFP4 {
			limit *= 1.5 // its scales are powers of two
		}
		if d := distance(want, logits(t, f, tokens)); d > limit {
			t.Errorf("%s: logits are off by %v, more than %v", typ.Name, d, limit)
		}
		ft, _ := f.Meta("general.file_type")
		if id, ok := fileTypes[typ]; r.Rules == nil && (!ok || ft != id) {
			t.Errorf("%s: file type %v", typ.Name, ft)
		}
	}
}

// TestSameBytes: neither the number of threads nor where hidden states are kept shows in the file.
func TestSameBytes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	tm := testmodel.New("qwen3")
	var first []byte
	for _, c := range []struct {
		threads int
		memory  int64
	}{{1, 0}, {2, 0}, {3, 1}} {
		runtime.GOMAXPROCS(c.threads)
		path, _ := mustRun(t, tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0},
			Options{Calib: testSet(tm), Memory: c.memory})
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.Errorf("%d threads, %d bytes for hidden states: the file differs", c.threads, c.memory)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
			t.Errorf("%d files beside the output", len(left)-1)
		}
	}
}

// TestNothingLeft: a run that fails leaves no file, and what was there before.
func TestNothingLeft(t *testing.T) {
	tm := testmodel.New("llama")
	gptqRecipe := Recipe{Method: GPTQ, Type: ggml.Q4_K}
	poison := func(name string, at int, v float32) *testmodel.Source {
		src := tm.Source()
		w := src.Find(name)
		w.Data = bytes.Clone(w.Data)
		if w.Type == ggml.BF16 {
			binary.LittleEndian.PutUint16(w.Data[2*at:], tensor.ToBF16(v))
		} else {
			binary.LittleEndian.PutUint32(w.Data[4*at:], math.Float32bits(v))
		}
		return src
	}
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		src    *testmodel.Source
		recipe Recipe
		opt    Options
		ctx    context.Context
		want   string
	}{
		{"NaN in a linear", poison("blk.1.ffn_up.weight", 3*256+7, nan), gptqRecipe,
			Options{Calib: fewSequences(tm)}, t.Context(), `tensor "blk.1.ffn_up.weight": element [3 7] is NaN`},
		{"NaN without calibration", poison("blk.1.ffn_up.weight", 3*256+7, nan), Recipe{Method: RTN, Type: ggml.Q4_K},
			Options{}, t.Context(), `tensor "blk.1.ffn_up.weight": element [3 7] is NaN`},
		{"Inf in the embedding", poison(embeddingName, 256+1, inf), gptqRecipe,
			Options{Calib: fewSequences(tm)}, t.Context(), `tensor "token_embd.weight": element [1 1] is -Inf`},
		{"Inf in a norm", poison("blk.0.ffn_norm.weight", 5, inf), gptqRecipe,
			Options{Calib: fewSequences(tm)}, t.Context(), `tensor "blk.0.ffn_norm.weight": element 5 is -Inf`},
		{"beyond F16", poison(outputName, 9, 1e6), gptqRecipe,
			Options{Calib: fewSequences(tm)}, t.Context(), `choose bf16 or f32`},
		{"no text", tm.Source(), gptqRecipe, Options{}, t.Context(), "--calib FILE"},
		{"cancelled", tm.Source(), gptqRecipe, Options{Calib: fewSequences(tm)}, cancelled, context.Canceled.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := NewPlan(c.src, c.recipe)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "out.gguf")
			if _, err := Run(c.ctx, c.src, p, path, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s is left", left[0].Name())
			}
			if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			c.opt.Overwrite = true
			if _, err := Run(c.ctx, c.src, p, path, c.opt); err == nil {
				t.Error("no error over an existing file")
			}
			if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
				t.Errorf("the existing file has %q, %v", data, err)
			}
		})
	}
	t.Run("exists", func(t *testing.T) {
		p, err := NewPlan(tm.Source(), Recipe{Method: RTN, Type: ggml.Q8_0})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), tm.Source(), p, path, Options{}); !errors.Is(err, os.ErrExist) {
			t.Errorf("error %v, want that the file exists", err)
		}
	})
}

// TestPlan: rules, outer types, fallbacks and their refusal.
func TestPlan(t *testing.T) {
	rule := func(s string) Rule {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	llama, tied, odd := testmodel.New("llama").Source(), testmodel.New("qwen3").Source(), testmodel.New("qwen2").Source()
	p, err := NewPlan(llama, Recipe{Method: RTN,
		Type:  ggml.Q4_K,
		Rules: []Rule{rule(`ffn_down=q6_k`), rule(`blk\.0\.=q5_k`), rule("output=bf16")}, Embedding: ggml.Q8_0,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]*ggml.Type{
		"blk.0.ffn_down.weight":    ggml.Q6_K, // the first rule that matches
		"blk.0.attn_output.weight": ggml.Q5_K,
		"blk.1.attn_output.weight": ggml.BF16,
		"blk.1.ffn_up.weight":      ggml.Q4_K,
		"blk.0.attn_norm.weight":   ggml.F32, // rules do not reach norms
		embeddingName:              ggml.Q8_0,
		outputName:                 ggml.BF16, // a rule goes before --output-type
		"output_norm.weight":       ggml.F32,
	} {
		if got := p.Lookup(name); got == nil || got.Type != want {
			t.Errorf("%s: planned as %v, want %s", name, got, want)
		}
	}
	if p, err = NewPlan(tied, Recipe{Method: RTN, Type: ggml.BF16}); err != nil {
		t.Fatal(err)
	}
	if got := p.Lookup(embeddingName).Type; got != ggml.BF16 || p.Lookup(outputName) != nil {
		t.Errorf("tied embedding is %s in a BF16 file", got)
	}
	if p, err = NewPlan(odd, Recipe{Method: RTN, Type: ggml.Q4_K}); err != nil {
		t.Fatal(err)
	}
	if got := p.Lookup("blk.0.ffn_down.weight"); got.Type != ggml.F16 || got.Wanted != ggml.Q4_K {
		t.Errorf("176 columns of Q4_K became %s", got.Type)
	}
	if got := p.Lookup("blk.0.ffn_up.weight"); got.Type != ggml.Q5_0 || got.Wanted != ggml.Q4_K {
		t.Errorf("64 columns of Q4_K became %s", got.Type)
	}
	quantized := testmodel.New("llama").Source()
	w := quantized.Find("blk.1.ffn_up.weight")
	w.Type = ggml.Q8_0
	w.Data = make([]byte, w.Bytes())
	phi, part := testmodel.New("llama").Source(), testmodel.New("llama").Source()
	phi.KV.Set("general.architecture", "nosuch")
	part.List = part.List[:5]
	for _, c := range []struct {
		src    Source
		recipe Recipe
		want   string
	}{
		{phi, Recipe{Method: RTN, Type: ggml.Q8_0}, `general.architecture is "nosuch", supported are `},
		{part, Recipe{Method: RTN, Type: ggml.Q8_0}, "is missing"},
		{odd, Recipe{Method: RTN, Type: ggml.Q4_K, NoFallback: true}, `columns are not a multiple of Q4_K's block of 256`},
		{llama, Recipe{Method: RTN, Type: ggml.Q4_K, Rules: []Rule{rule("attn_qkv=q8_0")}}, `"attn_qkv" matches no tensor`},
		{quantized, Recipe{Method: RTN, Type: ggml.Q4_K}, `"blk.1.ffn_up.weight" is Q8_0, already quantized`},
	} {
		if _, err := NewPlan(c.src, c.recipe); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %q", err, c.want)
		}
	}
	for _, s := range []string{"", "=q4_k", "ffn", "ffn=", "ffn=q9", "(=q4_k"} {
		if _, err := ParseRule(s); err == nil {
			t.Errorf("rule %q is accepted", s)
		}
	}
}
