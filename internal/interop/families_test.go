//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tokenizer"
)

const (
	familyContext = 48 // at which no checkpoint of ../shared/archs is beyond what llama.cpp computes exactly
	familyChunks  = 24
	familyCalib   = 24 // sequences
	// maxFloat bounds the difference where llama.cpp computes in float32 as we do. It is 1e-6, but for GELU, which llama.cpp
	// takes from a table over float16: that moves Gemma 4's perplexity by up to 7e-4.
	maxFloat = 1e-3 // relative
	// maxErrors bounds what is beyond maxPerplexity, in standard errors. In models of random weights a rounding to 8 bits
	// sends tokens to other experts, and single log-probabilities move by 1: see compareFile.
	maxErrors = 4
)

// way is a file to make of a checkpoint.
type way struct {
	method quant.Method
	typ    *ggml.Type
}

func (w way) String() string { return w.method.Name() + " " + w.typ.Name }

// The first checkpoint of an architecture is quantized in all of always and one of inTurn, the others in one of inTurn;
// with INTEROP=all, each in all. Q4_K's block of 256 divides few of the rows here: most of them get a type of 32.
var (
	always = []way{{pipeline.RTN, ggml.F32}, {pipeline.RTN, ggml.Q8_0}, {pipeline.GPTQ, ggml.Q4_0}}
	inTurn = []way{{pipeline.AWQGPTQ, ggml.Q4_0}, {pipeline.Auto, ggml.Q4_K}, {pipeline.RTN, ggml.BF16}, {pipeline.GPTQ, ggml.Q4_K},
		{pipeline.RTN, ggml.Q4_0}}
)

// subject is a model to quantize.
type subject struct {
	name string
	open func(t *testing.T) pipeline.Source
}

// subjects lists small seeded models and, where they are, the reference checkpoints of ../shared/archs, or of ARCHS.
func subjects(t *testing.T) []subject {
	list := []subject{
		{"testmodel-llama", func(*testing.T) pipeline.Source { return testmodel.New("llama").Source() }},
		{"testmodel-gemma3", func(*testing.T) pipeline.Source { return testmodel.Gemma() }},
		{"testmodel-qwen3moe", func(*testing.T) pipeline.Source { return testmodel.Experts() }},
	}
	archs := os.Getenv("ARCHS")
	if archs == "" {
		var ok bool
		if archs, ok = shared.Lookup("archs"); !ok {
			return list
		}
	}
	configs, err := filepath.Glob(filepath.Join(archs, "*", "config.json"))
	if err != nil || len(configs) == 0 {
		t.Fatalf("no checkpoints in %s: %v", archs, err)
	}
	for _, path := range configs {
		dir := filepath.Dir(path)
		list = append(list, subject{filepath.Base(dir), func(t *testing.T) pipeline.Source { return openReference(t, dir) }})
	}
	return list
}

// openReference opens a reference checkpoint with the pre-tokenizer that about.json names.
func openReference(t *testing.T, dir string) pipeline.Source {
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
	if about.Pre == "default" {
		about.Pre = ""
	}
	src, err := hf.Open(dir, hf.Options{Pre: about.Pre})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// TestFamilies: of every family, files of every method load in llama.cpp, which finds the perplexity in them that we do.
func TestFamilies(t *testing.T) {
	text := goText(t)
	seen := map[any]bool{}
	for i, s := range subjects(t) {
		t.Run(s.name, func(t *testing.T) {
			src := s.open(t)
			ways := inTurn[i%len(inTurn):][:1]
			arch, _ := src.Meta("general.architecture")
			if !seen[arch] {
				ways = append(slices.Clone(always), ways...)
			}
			if os.Getenv("INTEROP") == "all" {
				ways = append(slices.Clone(always), inTurn...)
			}
			seen[arch] = true
			t.Parallel()
			compareFamily(t, src, ways, text)
		})
	}
}

// TestKeptCodes: NVIDIA's NVFP4, kept code by code with its factors, loads in llama.cpp, which finds the perplexity in it that we do.
func TestKeptCodes(t *testing.T) {
	archs, ok := shared.Lookup("archs")
	if !ok {
		t.Skip("no ../shared")
	}
	for _, name := range []string{"nvfp4-modelopt", "nvfp4-ct"} {
		src := openReference(t, filepath.Join(archs, name))
		tok, err := tokenizer.New(src)
		if err != nil {
			t.Fatal(err)
		}
		tokens := tok.Encode(goText(t), tokenizer.EncodeOptions{NoBOS: true})[:familyChunks*familyContext]
		path := write(t, src, pipeline.Recipe{Method: pipeline.RTN, Type: ggml.NVFP4, KeepCodes: true}, pipeline.Options{})
		req := request{Model: path, Chunks: slices.Collect(slices.Chunk(tokens, familyContext)), First: 1}
		theirs := askLlamaCpp(t, req)
		if theirs.Error != "" {
			t.Fatal(theirs.Error)
		}
		compareFile(t, way{pipeline.RTN, ggml.NVFP4}, req, theirs)
	}
}

// compareFamily makes files of a checkpoint and evaluates them here and in llama.cpp.
func compareFamily(t *testing.T, src pipeline.Source, ways []way, text string) {
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	tokens := tok.Encode(text, tokenizer.EncodeOptions{NoBOS: true})
	length, n := familyContext, familyChunks
	if w := ignoredWindow(src); w > 0 {
		length, n = w, familyChunks*familyContext/w
	}
	chunks := slices.Collect(slices.Chunk(tokens[:n*length], length))
	tokens = tokens[n*length:]
	set := &calib.Set{SeqLen: length, Sequences: slices.Collect(slices.Chunk(tokens[:familyCalib*length], length))}
	held := tokens[familyCalib*length:][:familyCalib/4*length]

	var requests []request
	for _, w := range ways {
		opt := pipeline.Options{Calib: set}
		if w.method.Needs().Decides {
			opt.Validate.Tokens = held
		}
		path := write(t, src, pipeline.Recipe{Method: w.method, Type: w.typ}, opt)
		requests = append(requests, request{Model: path, Chunks: chunks, First: 1})
	}
	for i, theirs := range askLlamaCppAll(t, requests) {
		if theirs.Error != "" {
			t.Errorf("%v: llama.cpp: %s", ways[i], theirs.Error)
			continue
		}
		compareFile(t, ways[i], requests[i], &theirs)
	}
}

// compareFile holds our log-probabilities against llama.cpp's. It rounds the inputs of quantized linears to 8 bits, of
// BF16 ones to 8 bits of mantissa, which we do not do. What is beyond maxPerplexity has to be the noise of that: within
// maxErrors standard errors, and absent from the same weights stored in F32.
func compareFile(t *testing.T, w way, req request, theirs *response) {
	f := openFile(t, req.Model)
	f.m.Precision = kernels.F32
	_, ours := f.predict(t, req.Chunks, req.First)
	difference, stderr := increase(t, ours, theirs)
	line := ""
	if w.typ.Grid != nil {
		r, err := eval.Perplexity(t.Context(), f.m, slices.Concat(req.Chunks...),
			eval.Options{Context: len(req.Chunks[0]), ScoreAll: true, Activations: eval.Q8})
		if err != nil {
			t.Fatal(err)
		}
		line = fmt.Sprintf("; with our 8-bit activations %+.3f%%", 100*(float64(r.Perplexity)/theirs.Perplexity-1))
	}
	t.Logf("%-13v perplexity %.4g, llama.cpp's %.4g: %+.3f%% ± %.3f%%%s", w, theirs.Perplexity*(1+difference), theirs.Perplexity,
		100*difference, 100*stderr, line)
	switch {
	case w.typ == ggml.F32 && floats(f.m.Source) && !(math.Abs(difference) <= maxFloat), !(math.Abs(difference) <= max(maxPerplexity, maxErrors*stderr)):
		t.Errorf("%v: perplexity differs by %.3f%% ± %.3f%%", w, 100*difference, 100*stderr)
	case math.Abs(difference) > maxPerplexity:
		req.Model = write(t, f.m.Source.(pipeline.Source), pipeline.Recipe{Method: pipeline.RTN, Type: ggml.F32, Embedding: ggml.F32, Output: ggml.F32,
			Requantize: true}, pipeline.Options{})
		difference, _ := increase(t, ours, askLlamaCpp(t, req))
		t.Logf("%-13v the same weights in F32: %+.4f%%", w, 100*difference)
		if !(math.Abs(difference) <= maxFloat) {
			t.Errorf("%v: perplexity of the same weights in F32 differs by %.4f%%", w, 100*difference)
		}
	}
}

// increase returns by how much our perplexity is above llama.cpp's, relatively, and the standard error of that.
func increase(t *testing.T, ours []float64, theirs *response) (difference, stderr float64) {
	t.Helper()
	if len(ours) != len(theirs.NLL) || len(ours) < 1000 {
		t.Fatalf("%d tokens scored, %d by llama.cpp", len(ours), len(theirs.NLL))
	}
	mean, square, n := 0.0, 0.0, float64(len(ours))
	for i, nll := range ours {
		d := nll - theirs.NLL[i]
		mean += d / n
		square += d * d / n
	}
	return math.Expm1(mean), math.Sqrt(max(0, square-mean*mean) / n)
}

// floats says whether none of a file's tensors is of a block type. MXFP4 stays MXFP4 even where F32 is asked for.
func floats(src model.Source) bool {
	return !slices.ContainsFunc(src.Tensors(), func(info ggml.Info) bool { return info.Type.BlockLen > 1 })
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
