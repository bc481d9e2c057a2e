//go:build interop

package interop

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tensor"
	"github.com/llmq/llmq/tokenizer"
)

const (
	gopher4m = "../../testdata/gopher-4m"
	// context is what the gopher models were trained on; chunks of it are read.
	context = 256
	chunks  = 12
	// maxPerplexity and minSameTop allow for llama.cpp's rounding of activations to 8 bits, which we do not do.
	maxPerplexity = 0.005 // relative
	minSameTop    = 0.97
)

// goText returns sources of the Go library that the gopher models have not seen.
func goText(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, pkg := range []string{"bufio", "text/template", "net/url"} {
		files, err := filepath.Glob(filepath.Join(runtime.GOROOT(), "src", pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources of %s in %s: %v", pkg, runtime.GOROOT(), err)
		}
		for _, f := range files {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(src)
		}
	}
	return b.String()
}

func openFolder(t *testing.T, dir string) *hf.Checkpoint {
	t.Helper()
	src, err := hf.Open(dir, hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// write quantizes a checkpoint to a temporary file.
func write(t *testing.T, src pipeline.Source, r pipeline.Recipe, opt pipeline.Options) string {
	t.Helper()
	plan, err := pipeline.NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	return writePlan(t, src, plan, opt)
}

func writePlan(t *testing.T, src pipeline.Source, plan *pipeline.Plan, opt pipeline.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	if _, err := pipeline.Run(t.Context(), src, plan, path, opt); err != nil {
		t.Fatal(err)
	}
	return path
}

// file is a GGUF file as llmq evaluates it.
type file struct {
	path string
	m    *model.Model
	tok  *tokenizer.Tokenizer
}

func openFile(t *testing.T, path string) *file {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var src pipeline.Source = f
	if scaled, err := gguf.Scales(f); err != nil {
		t.Fatal(err)
	} else if scaled != nil {
		src = scaled
	}
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	return &file{path, m, tok}
}

// cut divides tokens into chunks as eval does.
func (f *file) cut(tokens []int32) [][]int32 {
	var out [][]int32
	for c := range slices.Chunk(tokens, context) {
		if len(c) < context || len(out) == chunks {
			break
		}
		c = slices.Clone(c)
		if bos, add := f.tok.BOS(); add {
			c[0] = bos
		}
		out = append(out, c)
	}
	return out
}

// predict returns, for the positions of chunks from first on, the token that is the most probable there and the negative
// log-probability of the one that is there.
func (f *file) predict(t *testing.T, chunks [][]int32, first int) (top []int32, nll []float64) {
	t.Helper()
	tokens := slices.Concat(chunks...)
	length, at := len(chunks[0]), 0
	err := eval.Logits(t.Context(), f.m, chunks, eval.Options{}, func(logits *tensor.Matrix) error {
		for i := range logits.Rows {
			at++ // the place of the token that row i predicts
			if at%length == 0 || at%length < first {
				continue
			}
			row := logits.Row(i)
			highest := slices.Max(row)
			sum := 0.0
			for _, v := range row {
				sum += math.Exp(float64(v - highest))
			}
			top = append(top, int32(slices.Index(row, highest)))
			nll = append(nll, math.Log(sum)-float64(row[tokens[at]]-highest))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return top, nll
}

// compare evaluates a file here and in llama.cpp.
func compare(t *testing.T, path string, text string) {
	t.Helper()
	f := openFile(t, path)
	tokens := f.tok.Encode(text, tokenizer.EncodeOptions{})
	cs := f.cut(tokens)
	top, ours := f.predict(t, cs, context/2+1)
	theirs := askLlamaCpp(t, request{Model: path, Chunks: cs, First: context/2 + 1})
	if len(theirs.Top) != len(top) {
		t.Fatalf("the top tokens of %d places here, of %d in llama.cpp", len(top), len(theirs.Top))
	}
	difference, _ := increase(t, ours, theirs)
	same := 0
	for i := range top {
		if top[i] == theirs.Top[i] {
			same++
		}
	}
	share := float64(same) / float64(len(top))
	t.Logf("perplexity %.4f, llama.cpp's %.4f (%+.3f%%); same top token %.2f%% of %d", theirs.Perplexity*(1+difference), theirs.Perplexity,
		100*difference, 100*share, len(top))
	if math.Abs(difference) > maxPerplexity {
		t.Errorf("perplexity differs by %.2f%%, more than %.2f%%", 100*difference, 100*maxPerplexity)
	}
	if share < minSameTop {
		t.Errorf("the same top token for %.2f%% only, not %.0f%%", 100*share, 100*minSameTop)
	}
}

// TestBlockTypes: a file of every block type that we write.
func TestBlockTypes(t *testing.T) {
	text := goText(t)
	src := openFolder(t, gopher4m)
	for _, typ := range ggml.Types {
		t.Run(typ.Name, func(t *testing.T) {
			t.Parallel()
			compare(t, write(t, src, pipeline.Recipe{Method: pipeline.RTN, Type: typ}, pipeline.Options{}), text)
		})
	}
	t.Run("mixed", func(t *testing.T) {
		rule, err := pipeline.ParseRule(`ffn_down=q5_0`)
		if err != nil {
			t.Fatal(err)
		}
		r := pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q4_K, Embedding: ggml.Q8_0, Output: ggml.Q6_K,
			Rules: []pipeline.Rule{rule}}
		compare(t, write(t, src, r, pipeline.Options{}), text)
	})
}

// TestSplit: llama.cpp opens the parts that we write by their first, and finds the model in them that one file holds; and we
// open what it opens. Requantizing a quantized file gives one that both read.
func TestSplit(t *testing.T) {
	text := goText(t)
	r := pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q4_K, PartBytes: 1_000_000}
	src := openFolder(t, gopher4m)
	plan, err := pipeline.NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	first := plan.File.Paths(writePlan(t, src, plan, pipeline.Options{}))[0]
	f, err := gguf.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(f.Paths()) < 3 {
		t.Fatalf("%q are too few parts", f.Paths())
	}
	compare(t, first, text)
	again := write(t, f, pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q5_0, Requantize: true}, pipeline.Options{})
	compare(t, again, text)
}

// calibration returns some sequences of a text.
func calibration(t *testing.T, src pipeline.Source, text string) *calib.Set {
	t.Helper()
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	set := &calib.Set{SeqLen: context}
	for c := range slices.Chunk(tok.Encode(text, tokenizer.EncodeOptions{}), context) {
		if len(c) == context && len(set.Sequences) < 16 {
			set.Sequences = append(set.Sequences, c)
		}
	}
	return set
}

// TestMethods: a file of every method, with all that a method adds to it.
func TestMethods(t *testing.T) {
	text := goText(t)
	src := openFolder(t, gopher4m)
	set := calibration(t, src, text)
	half, auto := &smoothquant.Smoothing{Alpha: 0.5}, &smoothquant.Smoothing{Auto: true}
	for _, c := range []struct {
		name   string
		recipe pipeline.Recipe
		opt    pipeline.Options
	}{
		{name: "rtn smooth", recipe: pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q4_0, Smooth: half}},
		{name: "gptq", recipe: pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_K}},
		{name: "gptq bias correction", recipe: pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_0, BiasCorrection: true}},
		{name: "gptq int8 fallback", recipe: pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_0},
			opt: pipeline.Options{Fallback: pipeline.Fallback{MaxError: 0.004}}},
		{name: "awq", recipe: pipeline.Recipe{Method: pipeline.AWQ, Type: ggml.Q4_K}},
		{name: "awq+gptq smooth", recipe: pipeline.Recipe{Method: pipeline.AWQGPTQ, Type: ggml.Q4_0, Smooth: auto}},
		{name: "int8 smooth", recipe: pipeline.Recipe{Method: pipeline.Int8, Type: ggml.Q8_0, Smooth: half}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.opt.Calib = set
			path := write(t, src, c.recipe, c.opt)
			compare(t, path, text)
		})
	}
	t.Run("budget", func(t *testing.T) {
		opt := pipeline.Options{Calib: set}
		plan, err := pipeline.NewPlan(src, pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_K})
		if err != nil {
			t.Fatal(err)
		}
		if plan, err = pipeline.Assign(t.Context(), src, plan, pipeline.Budget{MaxBPW: 5}, t.TempDir(), opt); err != nil {
			t.Fatal(err)
		}
		compare(t, writePlan(t, src, plan, opt), text)
	})
}

// TestQwen2BiasCorrection: biases that a model has already, corrected.
func TestQwen2BiasCorrection(t *testing.T) {
	m := testmodel.New("qwen2")
	dir := t.TempDir()
	if err := m.WriteFolder(dir); err != nil {
		t.Fatal(err)
	}
	const length = 48
	set := &calib.Set{SeqLen: length}
	for i := range 16 {
		set.Sequences = append(set.Sequences, m.Tokens(length, uint64(i)))
	}
	path := write(t, openFolder(t, dir), pipeline.Recipe{Method: pipeline.AWQ, Type: ggml.Q4_0, BiasCorrection: true},
		pipeline.Options{Calib: set})
	f := openFile(t, path)
	chunk := [][]int32{m.Tokens(length, 99)}
	_, ours := f.predict(t, chunk, 1)
	theirs := askLlamaCpp(t, request{Model: path, Chunks: chunk, First: 1})
	if len(theirs.NLL) != len(ours) || len(ours) != length-1 {
		t.Fatalf("%d tokens scored here, %d by llama.cpp", len(ours), len(theirs.NLL))
	}
	mean := 0.0
	for i := range ours {
		mean += (ours[i] - theirs.NLL[i]) / float64(len(ours))
	}
	t.Logf("perplexity differs by %+.3f%%", 100*math.Expm1(mean))
	if math.Abs(math.Expm1(mean)) > maxPerplexity {
		t.Errorf("perplexity differs by %.2f%%, more than %.2f%%", 100*math.Expm1(mean), 100*maxPerplexity)
	}
}

// TestQwen3 is TestBlockTypes on a trained model with q/k norms and a tied embedding.
func TestQwen3(t *testing.T) {
	src := openFolder(t, shared.Path(t, "models/gopher-6m-qwen3"))
	for _, typ := range []*ggml.Type{ggml.F16, ggml.Q4_K} {
		t.Run(typ.Name, func(t *testing.T) {
			compare(t, write(t, src, pipeline.Recipe{Method: pipeline.RTN, Type: typ}, pipeline.Options{}), goText(t))
		})
	}
}

// TestArchitectures: on small models with random weights, llama.cpp assigns every token the probability that we do.
func TestArchitectures(t *testing.T) {
	const length = 48
	for _, name := range testmodel.Names() {
		t.Run(name, func(t *testing.T) {
			m := testmodel.New(name)
			dir := t.TempDir()
			if err := m.WriteFolder(dir); err != nil {
				t.Fatal(err)
			}
			path := write(t, openFolder(t, dir), pipeline.Recipe{Method: pipeline.RTN, Type: ggml.F32}, pipeline.Options{})
			f := openFile(t, path)
			f.m.Precision = kernels.F32
			n := length
			if w := m.Config.SlidingWindow; w > 0 {
				n = min(n, w) // llama.cpp ignores the window
			}
			chunk := [][]int32{m.Tokens(n, 1)}
			_, ours := f.predict(t, chunk, 1)
			theirs := askLlamaCpp(t, request{Model: path, Chunks: chunk, First: 1})
			if len(theirs.NLL) != len(ours) || len(ours) != n-1 {
				t.Fatalf("%d tokens scored here, %d by llama.cpp", len(ours), len(theirs.NLL))
			}
			worst := 0.0
			for i := range ours {
				worst = max(worst, math.Abs(ours[i]-theirs.NLL[i]))
			}
			t.Logf("log-probabilities differ by %.2g at most", worst)
			if !(worst < 1e-4) {
				t.Errorf("log-probabilities differ by %g", worst)
			}
		})
	}
}

// TestMetadata: what we write beside the tensors arrives in llama.cpp.
func TestMetadata(t *testing.T) {
	const template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(gopher4m)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(template), 0o644); err != nil {
		t.Fatal(err)
	}
	path := write(t, openFolder(t, dir), pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q4_K}, pipeline.Options{})
	got := askLlamaCpp(t, request{Model: path})
	for _, c := range []struct {
		key  string
		want any
	}{
		{"general.architecture", "llama"},
		{"general.name", "Gopher 4M"},
		{"general.license", "apache-2.0"},
		{"general.file_type", 14.0}, // llama.h: LLAMA_FTYPE_MOSTLY_Q4_K_S, of which Q4_K is the main type
		{"llama.block_count", 4.0},
		{"llama.rope.freq_base", 500000.0},
		{"tokenizer.ggml.pre", "llama-bpe"},
		{"tokenizer.ggml.bos_token_id", 2046.0},
		{"tokenizer.chat_template", template},
	} {
		if v := got.metadata(strings.Split(c.key, ".")...); v != c.want {
			t.Errorf("%s: llama.cpp has %v, want %v", c.key, v, c.want)
		}
	}
}

// TestTokens: llama.cpp splits texts as we do, with the tokenizer that we wrote and with vocabularies of its own.
func TestTokens(t *testing.T) {
	texts := []string{
		"", " ", "  two  spaces", "\n\n\t\ttabs\r\n", "Hello, world!", "func (t *Tokenizer) Encode(text string) []int32 {",
		"it's they'll WE'VE", "3.14159 1234567 1e-9", "naïve café Ünïcödé", "日本語 한국어 ไทย العربية", "🙂👍🏽 👨‍👩‍👧",
		"a\u00a0b\u2003c", "<|begin_of_text|>", "x\u0301\u0302y", strings.Repeat("=", 70), strings.Repeat("ab ", 40),
	}
	texts = append(texts, goText(t)[:100_000])
	path := write(t, openFolder(t, gopher4m), pipeline.Recipe{Method: pipeline.RTN, Type: ggml.Q8_0}, pipeline.Options{})
	paths := []string{path}
	if dir, ok := shared.Lookup("vocab"); ok {
		files, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no vocabularies in %s: %v", dir, err)
		}
		paths = append(paths, files...)
	}
	if dir, ok := shared.Lookup("archs"); ok { // SentencePiece without a space before the text, and BPE of characters
		for _, name := range []string{"gemma", "gemma3", "gemma4", "ernie4_5", "phi3", "internlm2"} {
			paths = append(paths, filepath.Join(dir, name, "expected.gguf"))
		}
	}
	compareTokens(t, paths, texts)
}

// TestPreTokenizers: llama.cpp splits texts as we do, whatever pre-tokenizer is named. Where the original splits otherwise
// than llama.cpp, we do as the original: kimi-k2, tiny_aya, gpt-4o and tekken at combining marks and cased words, afmoe at
// spaces before digits, superbpe and others at digits that are not ASCII.
func TestPreTokenizers(t *testing.T) {
	texts := []string{
		"Hello, world!  It's they'LL\n\n\tx = 1234567.89e-10;\r\n", "日本語 한국어 ไทย العربية", "a  b   c    d\n \n  \n", "//--==>>",
	}
	src := openFolder(t, gopher4m)
	var paths []string
	for _, p := range tokenizer.PreNames() {
		pre, _ := tokenizer.PreByName(p)
		if pre.Characters || p != pre.Names[0] {
			continue // gopher's vocabulary is of bytes; other names stand for the same
		}
		var md gguf.Metadata
		for _, kv := range src.Metadata() {
			md.Set(kv.Key, kv.Value)
		}
		md.Set("tokenizer.ggml.pre", p)
		path := filepath.Join(t.TempDir(), p+".gguf")
		w, err := gguf.Create(path, md, nil, gguf.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	compareTokens(t, paths, texts)
}

// compareTokens compares how files' tokenizers split texts.
func compareTokens(t *testing.T, paths []string, texts []string) {
	var requests []request
	for _, path := range paths {
		requests = append(requests, request{Model: path, VocabOnly: true, Texts: texts})
	}
	for k, theirs := range askLlamaCppAll(t, requests) {
		t.Run(filepath.Base(paths[k]), func(t *testing.T) {
			if theirs.Error != "" {
				t.Fatalf("llama.cpp: %s", theirs.Error)
			}
			src, err := gguf.Open(paths[k])
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			tok, err := tokenizer.New(src)
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range texts {
				ours := tok.Encode(text, tokenizer.EncodeOptions{NoBOS: true})
				if !slices.Equal(ours, theirs.Tokens[i]) {
					t.Errorf("%.80q: %d tokens %v, llama.cpp's %d %v", text, len(ours), head(ours), len(theirs.Tokens[i]),
						head(theirs.Tokens[i]))
				}
			}
		})
	}
}

func head(ids []int32) []int32 { return ids[:min(len(ids), 32)] }
