package eval_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
)

func open(t testing.TB, src model.Source) *model.Model {
	t.Helper()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	return m
}

func perplexity(t testing.TB, m *model.Model, tokens []int32, opt eval.Options) *eval.Result {
	t.Helper()
	r, err := eval.Perplexity(context.Background(), m, tokens, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reference evaluates by the definition: every chunk through the float64 forward pass, every scored position's
// log-probabilities in full. With a base it returns the KL divergences too, over the tokens that both models have.
func reference(m, base *testmodel.Model, tokens []int32, chunks, size, first int, bos *int32) (nll, kl []float64, same int) {
	for c := range chunks {
		chunk := slices.Clone(tokens[c*size : (c+1)*size])
		if bos != nil {
			chunk[0] = *bos
		}
		logits := m.Forward(chunk).Logits
		var baseLogits [][]float64
		if base != nil {
			baseLogits = base.Forward(chunk).Logits
		}
		for i := first; i+1 < size; i++ {
			q := logSoftmax(logits[i])
			nll = append(nll, -q[chunk[i+1]])
			if base != nil {
				common := min(len(logits[i]), len(baseLogits[i]))
				p, q := logSoftmax(baseLogits[i][:common]), logSoftmax(logits[i][:common])
				sum := 0.0
				for j := range p {
					sum += math.Exp(p[j]) * (p[j] - q[j])
				}
				kl = append(kl, sum)
				if slices.Index(p, slices.Max(p)) == slices.Index(q, slices.Max(q)) {
					same++
				}
			}
		}
	}
	return nll, kl, same
}

func logSoftmax(x []float64) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(v)
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v - math.Log(sum)
	}
	return y
}

// moments are the mean and the standard error of the mean, with Bessel's correction as llama-perplexity has it.
func moments(x []float64) (mean, stderr float64) {
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		stderr += (v - mean) * (v - mean) / float64(len(x))
	}
	return mean, math.Sqrt(stderr / float64(len(x)-1))
}

func near[F ~float64](t *testing.T, what string, got F, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(float64(got)-want) <= tolerance*math.Abs(want)) {
		t.Errorf("%s: %.9g, want %.9g", what, got, want)
	}
}

func TestPerplexity(t *testing.T) {
	bos := int32(3)
	for _, c := range []struct {
		name           string
		model          string
		opt            eval.Options
		tokens         int
		chunks, scored int
	}{
		{"second half", "llama3-tied", eval.Options{Context: 16}, 50, 3, 21},
		{"odd context", "qwen2", eval.Options{Context: 9}, 27, 3, 12},
		{"BOS", "llama", eval.Options{Context: 8, BOS: &bos}, 26, 3, 9},
		{"limit", "mistral", eval.Options{Context: 10, Chunks: 2}, 60, 2, 8},
		{"limit above what is there", "qwen3", eval.Options{Context: 10, Chunks: 9}, 39, 3, 12},
		{"every token", "qwen3", eval.Options{Context: 12, ScoreAll: true}, 25, 2, 22},
		{"least context", "qwen2-yarn", eval.Options{Context: 4}, 31, 7, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			tm := testmodel.New(c.model)
			tokens := tm.Tokens(c.tokens, 5)
			before := slices.Clone(tokens)
			r := perplexity(t, open(t, tm.Source()), tokens, c.opt)
			first := c.opt.Context / 2
			if c.opt.ScoreAll {
				first = 0
			}
			nll, _, _ := reference(tm, nil, tokens, c.chunks, c.opt.Context, first, c.opt.BOS)
			if len(nll) != c.scored {
				t.Fatalf("the reference scores %d tokens, want %d", len(nll), c.scored)
			}
			mean, stderr := moments(nll)
			near(t, "perplexity", r.Perplexity, math.Exp(mean), 1e-5)
			near(t, "standard error", r.StdErr, math.Exp(mean)*stderr, 1e-4)
			if r.TokensScored != c.scored || r.Chunks != c.chunks || r.Context != c.opt.Context || r.BOS != (c.opt.BOS != nil) {
				t.Errorf("%d tokens scored, %d chunks, context %d, BOS %v", r.TokensScored, r.Chunks, r.Context, r.BOS)
			}
			if r.Divergence != nil || r.Seconds <= 0 || r.TokensPerSecond <= 0 {
				t.Errorf("divergence %v, %g s, %g tokens/s", r.Divergence, r.Seconds, r.TokensPerSecond)
			}
			if !slices.Equal(tokens, before) {
				t.Error("the caller's tokens were changed")
			}
		})
	}
}

func TestDivergence(t *testing.T) {
	// Two models with nothing in common but the vocabulary; not even the number of layers.
	tm, tb := testmodel.New("qwen3"), testmodel.New("llama3-tied")
	m, base := open(t, tm.Source()), open(t, tb.Source())
	tokens := tm.Tokens(70, 6)
	r := perplexity(t, m, tokens, eval.Options{Context: 14, Base: base, BatchTokens: 30})
	nll, kl, same := reference(tm, tb, tokens, 5, 14, 7, nil)
	mean, _ := moments(nll)
	near(t, "perplexity", r.Perplexity, math.Exp(mean), 1e-5)
	mean, stderr := moments(kl)
	near(t, "KL", r.KL, mean, 1e-5)
	near(t, "KL's standard error", r.KLStdErr, stderr, 1e-4)
	near(t, "same top", r.SameTop, float64(same)/30, 1e-9)
	more := slices.Clone(nll)
	slices.Sort(kl)
	near(t, "KL's median", r.KLMedian, (kl[14]+kl[15])/2, 1e-5)
	near(t, "KL's 99th percentile", r.KLP99, kl[28]*0.29+kl[29]*0.71, 1e-5)
	near(t, "KL's maximum", r.KLMax, kl[29], 1e-5)
	nll, _, _ = reference(tb, nil, tokens, 5, 14, 7, nil)
	mean, _ = moments(nll)
	near(t, "the base's perplexity", r.BasePerplexity, math.Exp(mean), 1e-5)
	for i, v := range nll {
		more[i] -= v
	}
	mean, stderr = moments(more)
	near(t, "increase", r.Increase, math.Expm1(mean), 1e-5)
	near(t, "increase's standard error", r.IncreaseStdErr, math.Exp(mean)*stderr, 1e-4)

	self := perplexity(t, m, tokens, eval.Options{Context: 14, Base: open(t, tm.Source())})
	if self.KL != 0 || self.KLMax != 0 || self.SameTop != 1 || self.BasePerplexity != self.Perplexity {
		t.Errorf("a model against itself: %+v", *self.Divergence)
	}
}

// TestInvariance demands the same bits whatever the threads, the batches and where the hidden states are kept.
func TestInvariance(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	tm := testmodel.New("llama")
	tokens := tm.Tokens(130, 7)
	dir := t.TempDir()
	for _, context := range []int{12, 32} { // chunks of 32 go through a layer two batches at a time where there is one thread
		var first *eval.Result
		for _, threads := range []int{1, 2, 3} {
			for _, opt := range []eval.Options{{}, {BatchTokens: 1}, {BatchTokens: 40}, {Memory: 1}, {Memory: 1, BatchTokens: 50}} {
				runtime.GOMAXPROCS(threads)
				opt.Context, opt.TempDir, opt.Base = context, dir, open(t, testmodel.New("mistral").Source())
				m := open(t, tm.Source())
				m.Precision = kernels.Auto
				r := perplexity(t, m, tokens, opt)
				r.Seconds, r.TokensPerSecond = 0, 0
				if first == nil {
					first = r
				}
				if !reflect.DeepEqual(r, first) {
					t.Errorf("context %d, %d threads, %+v: %+v %+v, want %+v %+v", context, threads, opt, r, r.Divergence, first, first.Divergence)
				}
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}

// TestHeadColumns compares logits that exist a few at a time with all of them at once.
func TestHeadColumns(t *testing.T) {
	tm := testmodel.New("llama")
	tokens := tm.Tokens(130, 7)
	run := func(columns int, memory int64) *eval.Result {
		defer eval.SetHeadColumns(columns)()
		opt := eval.Options{Context: 12, BatchTokens: 40, Base: open(t, testmodel.New("mistral").Source()),
			Memory: memory, TempDir: t.TempDir()}
		r := perplexity(t, open(t, tm.Source()), tokens, opt)
		r.Seconds, r.TokensPerSecond = 0, 0
		return r
	}
	want := run(1<<20, 0)
	for _, columns := range []int{1, 7, 64, 100} {
		got := run(columns, 0)
		if spilled := run(columns, 1); !reflect.DeepEqual(spilled, got) {
			t.Errorf("%d columns, hidden states in a file: %+v, in memory %+v", columns, spilled, got)
		}
		for _, v := range [][2]float64{{float64(got.Perplexity), float64(want.Perplexity)}, {float64(got.BasePerplexity), float64(want.BasePerplexity)},
			{got.KL, want.KL}, {got.KLMax, want.KLMax}, {float64(got.Increase), float64(want.Increase)}, {got.SameTop, want.SameTop}} {
			if math.Abs(v[0]-v[1]) > 1e-6*(1+math.Abs(v[1])) {
				t.Errorf("%d columns: %v, all at once %v\n%+v\n%+v", columns, v[0], v[1], got, want)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	tm := testmodel.New("qwen2")
	m := open(t, tm.Source())
	tokens := tm.Tokens(40, 8)
	far := int32(m.Vocab)
	other := tm.Source()
	names, _ := other.Meta("tokenizer.ggml.tokens")
	renamed := slices.Clone(names.([]string))
	renamed[77] = "elsewhere"
	other.KV.Set("tokenizer.ggml.tokens", renamed)
	fewer := tm.Source()
	fewer.KV.Set("tokenizer.ggml.tokens", 7)
	fewer.KV.Set("qwen2.vocab_size", uint32(100))
	for _, name := range []string{"token_embd.weight", "output.weight"} {
		w := fewer.Find(name)
		w.Shape = []int{100, m.Dim}
		w.Data = w.Data[:2*100*m.Dim]
	}
	for _, c := range []struct {
		opt  eval.Options
		want string
	}{
		{eval.Options{Context: 41}, "the text has 40 tokens, a context of 41 needs at least as many"},
		{eval.Options{}, "the text has 40 tokens, a context of 512"},
		{eval.GPTQ2048(), "a context of 2048"},
		{eval.Options{Context: 3}, "a context of 3 tokens leaves nothing to score; the least is 4"},
		{eval.Options{Context: -1}, "a context of -1"},
		{eval.Options{Context: 10, Chunks: -1}, "-1 chunks"},
		{eval.Options{Context: 10, BOS: &far}, "token 0 is 279, the vocabulary has 279"},
		{eval.Options{Context: 10, Base: open(t, fewer)}, "a vocabulary of 279 tokens, the base testmodel/qwen2 one of 100, and not both list them"},
		{eval.Options{Context: 10, Base: open(t, other)}, `in testmodel/qwen2 and "elsewhere" in the base`},
		{eval.Options{Context: 10, Memory: 1, TempDir: "/nonexistent"}, "hidden states:"},
		{eval.Options{Context: 10, Memory: 1, TempDir: "/nonexistent", Base: m}, "hidden states:"},
	} {
		if _, err := eval.Perplexity(context.Background(), m, tokens, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.opt, err, c.want)
		}
	}

	src := tm.Source()
	up := src.Find("blk.1.ffn_up.weight")
	binary.LittleEndian.PutUint16(up.Data, 0x7f80) // infinity
	_, err := eval.Perplexity(context.Background(), open(t, src), tokens, eval.Options{Context: 10})
	if err == nil || !strings.Contains(err.Error(), `testmodel/qwen2: tensor "blk.1.ffn_up.weight": element [0 0] is +Inf`) {
		t.Errorf("an infinite weight: error %v", err)
	}
	binary.LittleEndian.PutUint16(up.Data, 0x7f7f) // the largest number
	for _, name := range []string{"blk.1.ffn_gate.weight", "blk.1.ffn_down.weight"} {
		for data := src.Find(name).Data; len(data) > 0; data = data[2:] {
			binary.LittleEndian.PutUint16(data, 0x7f7f)
		}
	}
	_, err = eval.Perplexity(context.Background(), open(t, src), tokens, eval.Options{Context: 10})
	if err == nil || !strings.Contains(err.Error(), "not a finite number") {
		t.Errorf("weights that overflow: error %v", err)
	}
}

// progress counts, and cancels when told to.
type progress struct {
	total    int64
	done     atomic.Int64 // batches run at the same time
	items    []string
	cancelAt string
	cancel   func()
}

func (p *progress) Stage(_ string, total int64) { p.total = total }
func (p *progress) Item(name string) {
	p.items = append(p.items, name)
	if name == p.cancelAt {
		p.cancel()
	}
}
func (p *progress) Add(n int64) { p.done.Add(n) }
func (p *progress) Done()       {}

func TestProgress(t *testing.T) {
	tm := testmodel.New("qwen3")
	tokens := tm.Tokens(100, 9)
	p := &progress{}
	perplexity(t, open(t, tm.Source()), tokens, eval.Options{Context: 10, BatchTokens: 30, Progress: p,
		Base: open(t, testmodel.New("llama3-tied").Source())})
	if done := p.done.Load(); done != p.total || p.total == 0 {
		t.Errorf("%d of %d units were reported done", done, p.total)
	}
	if want := []string{"layer 1/3", "layer 2/3", "layer 3/3", "head"}; !slices.Equal(p.items, want) {
		t.Errorf("items %q, want %q", p.items, want)
	}
	for _, at := range []string{"layer 2/2", "head"} {
		ctx, cancel := context.WithCancel(context.Background())
		p = &progress{cancelAt: at, cancel: cancel}
		_, err := eval.Perplexity(ctx, open(t, tm.Source()), tokens, eval.Options{Context: 10, Progress: p})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %s: error %v", at, err)
		}
	}
}

// TestJSON holds the names that the command line promises.
func TestJSON(t *testing.T) {
	b, err := json.Marshal(eval.Result{Divergence: &eval.Divergence{}})
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"perplexity", "perplexity_stderr", "tokens_scored", "context", "seconds",
		"tokens_per_second", "kl_divergence", "kl_divergence_p99", "same_top"} {
		if _, ok := keys[k]; !ok {
			t.Errorf("%s has no %q", b, k)
		}
	}
	if b, err = json.Marshal(eval.Result{}); err != nil || strings.Contains(string(b), "kl_divergence") {
		t.Errorf("without a base: %s, %v", b, err)
	}
}
