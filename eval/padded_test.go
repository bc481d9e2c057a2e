package eval_test

import (
	"math"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
)

// without returns the test model of that name without its last n tokens.
func without(t *testing.T, name string, n int) (*testmodel.Model, *model.Model) {
	t.Helper()
	tm := testmodel.New(name)
	vocab := tm.Config.VocabSize - n
	tm.Config.VocabSize = vocab
	for i := range tm.Tensors {
		if w := &tm.Tensors[i]; w.Name == "model.embed_tokens.weight" || w.Name == "lm_head.weight" {
			w.Data = w.Data[:vocab*w.Shape[1]]
			w.Shape = []int{vocab, w.Shape[1]}
		}
	}
	src := tm.Source()
	names, _ := src.Meta("tokenizer.ggml.tokens")
	src.KV.Set("tokenizer.ggml.tokens", names.([]string)[:vocab])
	arch, _ := src.Meta("general.architecture")
	src.KV.Set(arch.(string)+".vocab_size", uint32(vocab))
	return tm, open(t, src)
}

// TestPaddedVocabulary: models of one vocabulary, to which one of them has added tokens, are compared over the tokens that
// both have, whichever has more and however many logits are held at a time. Their perplexities are their own.
func TestPaddedVocabulary(t *testing.T) {
	long, more := without(t, "qwen3", 0)
	short, fewer := without(t, "llama", 3)
	tokens := long.Tokens(70, 6)
	for _, c := range []struct {
		name       string
		tm, tb     *testmodel.Model
		m, base    *model.Model
		vocabulary int
	}{{"the model has more", long, short, more, fewer, short.Config.VocabSize}, {"the base has more", short, long, fewer, more, short.Config.VocabSize}} {
		opt := eval.Options{Context: 14, Base: c.base, BatchTokens: 30}
		r := perplexity(t, c.m, tokens, opt)
		nll, kl, same := reference(c.tm, c.tb, tokens, 5, 14, 7, nil)
		baseNLL, _, _ := reference(c.tb, nil, tokens, 5, 14, 7, nil)
		mean, _ := moments(nll)
		near(t, c.name+": perplexity", r.Perplexity, math.Exp(mean), 1e-5)
		mean, _ = moments(baseNLL)
		near(t, c.name+": the base's perplexity", r.BasePerplexity, math.Exp(mean), 1e-5)
		mean, stderr := moments(kl)
		near(t, c.name+": KL", r.KL, mean, 1e-5)
		near(t, c.name+": KL's standard error", r.KLStdErr, stderr, 1e-4)
		near(t, c.name+": same top", r.SameTop, float64(same)/30, 1e-9)
		if r.CommonTokens != c.vocabulary {
			t.Errorf("%s: %d common tokens, want %d", c.name, r.CommonTokens, c.vocabulary)
		}
		alone := perplexity(t, c.m, tokens, eval.Options{Context: 14, BatchTokens: 30})
		near(t, c.name+": perplexity alone", alone.Perplexity, float64(r.Perplexity), 1e-7) // summed in other parts
		restore := eval.SetHeadColumns(64)
		pieces := perplexity(t, c.m, tokens, opt)
		restore()
		near(t, c.name+": KL in pieces", pieces.KL, r.KL, 1e-6)
	}
	same := perplexity(t, more, tokens, eval.Options{Context: 14, Base: more})
	if same.CommonTokens != 0 || same.KL != 0 {
		t.Errorf("a model against itself: %+v", *same.Divergence)
	}
}
