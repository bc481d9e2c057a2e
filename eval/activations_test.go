package eval_test

import (
	"context"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
)

// withScales gives all linears of a source the same static scale.
func withScales(src *testmodel.Source, scale float32) *testmodel.Source {
	var names []string
	var scales []float32
	for _, t := range src.List {
		if strings.HasPrefix(t.Name, "blk.") && len(t.Shape) == 2 {
			names, scales = append(names, t.Name), append(scales, scale)
		}
	}
	src.KV.Set(model.StaticLinearsKey, names)
	src.KV.Set(model.StaticScalesKey, scales)
	return src
}

// TestActivations runs every mode on a model with biases and on one whose columns no block divides. Rounding must show,
// but little; it must not touch the base, nor depend on batches or threads.
func TestActivations(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, name := range []string{"llama", "qwen2"} {
		tm := testmodel.New(name)
		tokens := tm.Tokens(60, 3)
		// Inputs of about 1 and up to 5 lose little with codes 0.04 apart.
		src := withScales(tm.Source(), 0.04)
		exact := perplexity(t, open(t, src), tokens, eval.Options{Context: 12})
		for _, mode := range []eval.Activations{eval.Q8, eval.Int8Static, eval.Int8Dynamic, eval.LLMInt8} {
			opt := eval.Options{Context: 12, Activations: mode, Base: open(t, src)}
			r := perplexity(t, open(t, src), tokens, opt)
			if r.KL < 1e-8 || r.KL > 0.02 {
				t.Errorf("%s, %s: KL divergence %v", name, mode, r.KL)
			}
			if r.BasePerplexity != exact.Perplexity {
				t.Errorf("%s, %s: the base's perplexity is %v, want %v", name, mode, r.BasePerplexity, exact.Perplexity)
			}
			runtime.GOMAXPROCS(3)
			opt.BatchTokens, opt.Memory, opt.TempDir = 1, 1, t.TempDir()
			again := perplexity(t, open(t, src), tokens, opt)
			runtime.GOMAXPROCS(2)
			r.Seconds, r.TokensPerSecond, again.Seconds, again.TokensPerSecond = 0, 0, 0, 0
			if !reflect.DeepEqual(r, again) {
				t.Errorf("%s, %s: other batches and threads change %+v to %+v", name, mode, r.Divergence, again.Divergence)
			}
		}
		clipped := withScales(tm.Source(), 0.001) // at 0.127
		if r := perplexity(t, open(t, clipped), tokens, eval.Options{Context: 12, Activations: eval.Int8Static,
			Base: open(t, src)}); r.KL < 0.1 {
			t.Errorf("%s: clipped activations give a KL divergence of %v", name, r.KL)
		}
	}
}

// TestStoredQ8 wants the codes of Q8_0 weights used as they are: rounded ahead or on the fly, the result is the same.
func TestStoredQ8(t *testing.T) {
	for _, mode := range []eval.Activations{eval.Int8Dynamic, eval.Q8} {
		t.Run(string(mode), func(t *testing.T) { testStoredQ8(t, mode) })
	}
}

func testStoredQ8(t *testing.T, mode eval.Activations) {
	tm := testmodel.New("llama")
	tokens := tm.Tokens(60, 4)
	opt := eval.Options{Context: 12, Activations: mode}
	want := perplexity(t, open(t, tm.Source()), tokens, opt)
	src := tm.Source()
	rounded := 0
	for i := range src.List {
		w := &src.List[i]
		if !strings.HasPrefix(w.Name, "blk.") || len(w.Shape) != 2 || w.Cols()%32 != 0 {
			continue
		}
		values := make([]float32, w.Elements())
		w.Type.Unpack(values, w.Data)
		w.Type, w.Data = ggml.Q8_0, make([]byte, w.Rows()*ggml.Q8_0.RowBytes(w.Cols()))
		ggml.Q8_0.Encode(w.Data, values, nil)
		rounded++
	}
	if rounded == 0 {
		t.Fatal("no linear has whole blocks")
	}
	got := perplexity(t, open(t, src), tokens, opt)
	if got.Perplexity != want.Perplexity {
		t.Errorf("perplexity %v with Q8_0 weights, %v with their originals", got.Perplexity, want.Perplexity)
	}
}

func TestActivationErrors(t *testing.T) {
	tm := testmodel.New("qwen2")
	tokens := tm.Tokens(40, 8)
	set := func(key string, v any) *testmodel.Source {
		src := withScales(tm.Source(), 0.1)
		src.KV.Set(key, v)
		return src
	}
	const linear = "blk.1.ffn_down.weight"
	for _, c := range []struct {
		src  *testmodel.Source
		mode eval.Activations
		want string
	}{
		{tm.Source(), "int4", `eval: unknown activations "int4"; known: q8, int8-static, int8-dynamic, llm.int8`},
		{tm.Source(), eval.Int8Static, "eval: testmodel/qwen2 has no static scales of activations (llmq.int8.input_scales)"},
		{set(model.StaticScalesKey, []float32{1}), eval.Int8Static, "are not as many float32 values and strings: 1 and 14"},
		{set(model.StaticScalesKey, "x"), eval.Int8Static, "are not as many float32 values and strings: 0 and 14"},
		{withScales(tm.Source(), -1), eval.Int8Static, `gives "blk.0.attn_q.weight" a scale of -1`},
		{withScales(tm.Source(), float32(math.NaN())), eval.Int8Static, "a scale of NaN"},
		{set(model.StaticLinearsKey, make([]string, 14)), eval.Int8Static,
			`tensor "blk.0.attn_q.weight": the metadata has no scale for its input`},
		{set(model.OutliersPrefix+linear, "x"), eval.LLMInt8, "llmq.outliers." + linear + " is of type string, not []uint32"},
		{set(model.OutliersPrefix+linear, []uint32{1 << 31}), eval.LLMInt8, "names column 2147483648 of "},
	} {
		_, err := eval.Perplexity(context.Background(), open(t, c.src), tokens, eval.Options{Context: 10, Activations: c.mode})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.mode, err, c.want)
		}
	}
	for _, mode := range []eval.Activations{eval.Q8, eval.Int8Dynamic, eval.LLMInt8} {
		src := tm.Source()
		w := src.Find(linear)
		w.Data[0], w.Data[1] = 0x80, 0x7f // infinity
		_, err := eval.Perplexity(context.Background(), open(t, src), tokens, eval.Options{Context: 10, Activations: mode})
		if err == nil || !strings.Contains(err.Error(), `tensor "`+linear+`": element [0 0] is +Inf`) &&
			!strings.Contains(err.Error(), "not a finite number") {
			t.Errorf("%s: an infinite weight: error %v", mode, err)
		}
	}
}

// TestRecordedOutliers wants the features that a file records kept in float16, with those that are found.
func TestRecordedOutliers(t *testing.T) {
	tm := testmodel.New("llama")
	tokens := tm.Tokens(60, 5)
	kl := func(record bool) float64 {
		src := tm.Source()
		if record { // every feature of every linear
			for _, w := range src.List {
				if strings.HasPrefix(w.Name, "blk.") && len(w.Shape) == 2 {
					all := make([]uint32, w.Cols())
					for j := range all {
						all[j] = uint32(j)
					}
					src.KV.Set(model.OutliersPrefix+w.Name, all)
				}
			}
		}
		return perplexity(t, open(t, src), tokens, eval.Options{Context: 12, Activations: eval.LLMInt8,
			Base: open(t, tm.Source())}).KL
	}
	if plain, recorded := kl(false), kl(true); recorded > plain/20 {
		t.Errorf("KL divergence %v with every feature in float16, %v with those found", recorded, plain)
	}
}
