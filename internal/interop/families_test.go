//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
	"github.com/llmq/llmq/tokenizer"
)

const (
	// familyContext is as long as all checkpoints of ../shared/archs are exact, familyChunks so many that the 8-bit
	// activations of llama.cpp move the perplexity of most of these random models by less than maxPerplexity.
	familyContext = 48
	familyChunks  = 64
	familyCalib   = 24 // sequences
)

// whole says whether every family is quantized in every way. Otherwise, they take turns at most of them.
var whole = os.Getenv("INTEROP") == "all"

// way is a file to make of a checkpoint.
type way struct {
	name   string
	recipe pipeline.Recipe
}

func ways() (always, inTurn []way) {
	make := func(m quant.Method, t *ggml.Type) way {
		return way{m.Name() + " " + t.Name, pipeline.Recipe{Method: m, Type: t}}
	}
	always = []way{
		make(pipeline.RTN, ggml.F32), make(pipeline.RTN, ggml.Q8_0), make(pipeline.GPTQ, ggml.Q4_0),
	}
	// Q4_K's block of 256 divides few rows here: most of them get another type.
	inTurn = []way{
		make(pipeline.AWQGPTQ, ggml.Q4_0), make(pipeline.Auto, ggml.Q4_K), make(pipeline.RTN, ggml.BF16), make(pipeline.GPTQ, ggml.Q4_K),
		make(pipeline.RTN, ggml.Q4_0), make(pipeline.AWQGPTQ, ggml.Q4_K), make(pipeline.Auto, ggml.Q4_0),
	}
	return always, inTurn
}

// subject is a model to quantize.
type subject struct {
	name string
	open func(t *testing.T) pipeline.Source
}

// subjects lists small seeded models and, where they are, the reference checkpoints.
func subjects(t *testing.T) []subject {
	list := []subject{
		{"testmodel-llama", func(*testing.T) pipeline.Source { return testmodel.New("llama").Source() }},
		{"testmodel-gemma3", func(*testing.T) pipeline.Source { return testmodel.Gemma() }},
		{"testmodel-qwen3moe", func(*testing.T) pipeline.Source { return testmodel.Experts() }},
	}
	archs, _ := shared.Lookup("archs")
	if dir := os.Getenv("ARCHS"); dir != "" {
		archs = dir
	}
	if archs == "" {
		return list
	}
	folders, err := filepath.Glob(filepath.Join(archs, "*", "config.json"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no checkpoints in %s: %v", archs, err)
	}
	for _, path := range folders {
		dir := filepath.Dir(path)
		list = append(list, subject{filepath.Base(dir), func(t *testing.T) pipeline.Source { return openArch(t, dir) }})
	}
	return list
}

// openArch opens a reference checkpoint with the pre-tokenizer that about.json names.
func openArch(t *testing.T, dir string) pipeline.Source {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "about.json"))
	if err != nil {
		t.Fatal(err)
	}
	var about struct {
		Pre string `json:"tokenizer_pre"`
	}
	if err := json.Unmarshal(data, &about); err != nil {
		t.Fatal(err)
	}
	opt := hf.Options{Pre: about.Pre}
	if about.Pre == "default" {
		opt.Pre = ""
	}
	src, err := hf.Open(dir, opt)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// TestFamilies: of every family, files of every method load in llama.cpp, which finds the perplexity in them that we do.
func TestFamilies(t *testing.T) {
	text := goText(t)
	always, inTurn := ways()
	for i, s := range subjects(t) {
		t.Run(s.name, func(t *testing.T) {
			list := append(slices.Clone(always), inTurn[i%len(inTurn)])
			if whole {
				list = append(slices.Clone(always), inTurn...)
			}
			compareFamily(t, s.open(t), list, text)
		})
	}
}

// compareFamily makes files of a checkpoint and evaluates them here and in llama.cpp.
func compareFamily(t *testing.T, src pipeline.Source, ways []way, text string) {
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	tokens := tok.Encode(text, tokenizer.EncodeOptions{})
	opt := eval.Options{Context: familyContext, Chunks: familyChunks, ScoreAll: true}
	if w := ignoredWindow(src); w > 0 {
		opt.Context, opt.Chunks = w, familyChunks*familyContext/w
	}
	var chunks [][]int32
	for c := range slices.Chunk(tokens[:opt.Context*opt.Chunks], opt.Context) {
		chunks = append(chunks, slices.Clone(c))
	}
	if os.Getenv("SAMPLE") != "" {
		start := time.Now()
		sampleText(t, src, chunks)
		t.Log("sampled in", time.Since(start))
	}
	set := &calib.Set{SeqLen: opt.Context}
	for c := range slices.Chunk(tokens[opt.Context*opt.Chunks:], opt.Context) {
		if set.Sequences = append(set.Sequences, c); len(set.Sequences) == familyCalib*5/4 {
			break
		}
	}
	held := set.HoldOut(familyCalib / 4)

	var requests []request
	for _, w := range ways {
		o := pipeline.Options{Calib: set}
		if w.recipe.Method.Needs().Decides {
			o.Validate.Tokens = held
		}
		requests = append(requests, request{Model: write(t, src, w.recipe, o), Chunks: chunks, First: 1})
	}
	for i, theirs := range askLlamaCppAll(t, requests) {
		if theirs.Error != "" {
			t.Errorf("%s: llama.cpp: %s", ways[i].name, theirs.Error)
			continue
		}
		compareFile(t, ways[i], requests[i], &theirs, opt)
	}
}

func compareFile(t *testing.T, w way, req request, theirs *response, opt eval.Options) {
	f := openFile(t, req.Model)
	if w.recipe.Type == ggml.F32 {
		f.m.Precision = kernels.F32
	}
	_, ours := f.predict(t, req.Chunks, req.First)
	if len(ours) != len(theirs.NLL) {
		t.Fatalf("%s: %d tokens scored, %d by llama.cpp", w.name, len(ours), len(theirs.NLL))
	}
	mean, square, own := 0.0, 0.0, 0.0
	for i, nll := range ours {
		d := nll - theirs.NLL[i]
		mean += d
		square += d * d
		own += nll
	}
	n := float64(len(ours))
	mean, own = mean/n, own/n
	stderr := math.Sqrt(max(0, square/n-mean*mean) / n)
	line := fmt.Sprintf("%-15s perplexity %9.3f, llama.cpp's %9.3f (%+.4f%% ± %.4f%%)", w.name, math.Exp(own), theirs.Perplexity, 100*math.Expm1(mean), 100*stderr)
	if w.recipe.Type.Grid != nil {
		opt.Activations = eval.Q8
		r, err := eval.Perplexity(t.Context(), f.m, slices.Concat(req.Chunks...), opt)
		if err != nil {
			t.Fatal(err)
		}
		line += fmt.Sprintf("; with 8-bit activations (%+.4f%%)", 100*(float64(r.Perplexity)/theirs.Perplexity-1))
	}
	t.Log(line)
	if difference := math.Expm1(mean); !(math.Abs(difference) <= maxPerplexity) {
		t.Errorf("%s: perplexity differs by %.2f%%, more than %.2f%%", w.name, 100*difference, 100*maxPerplexity)
	}
}

// sampleText draws sequences from the model.
func sampleText(t *testing.T, src pipeline.Source, starts [][]int32) {
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	length := len(starts[0])
	for n := 1; n < length; n++ {
		var prefixes [][]int32
		for _, c := range starts {
			prefixes = append(prefixes, c[:n])
		}
		at := 0
		err = eval.Logits(t.Context(), m, prefixes, eval.Options{}, func(logits *tensor.Matrix) error {
			for i := range logits.Rows {
				if at++; at%n != 0 {
					continue
				}
				row := logits.Row(i)
				best, choice := math.Inf(-1), 0
				for v, l := range row {
					if g := float64(l) - math.Log(-math.Log(rng.Float64())); g > best {
						best, choice = g, v
					}
				}
				starts[at/n-1][n] = int32(choice)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ignoredWindow is the window of a model of llama's architecture, for llama.cpp ignores it; 0: there is none.
func ignoredWindow(src pipeline.Source) int {
	arch, _ := src.Meta("general.architecture")
	window, _ := src.Meta("llama.attention.sliding_window")
	if n, ok := window.(uint32); ok && arch == "llama" && n < familyContext {
		return int(n)
	}
	return 0
}
