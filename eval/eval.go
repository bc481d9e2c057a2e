// Package eval measures a language model on a text: perplexity, and how far its predictions are from another model's,
// by the protocol of llama.cpp's llama-perplexity, so that figures can be compared.
//
// All chunks of the text pass through one layer before the next is loaded: each weight is read and unpacked once per
// evaluation, and a model larger than memory evaluates at nearly the speed of one that fits.
package eval

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// Options says how to evaluate. The zero value scores the second half of every 512-token chunk.
type Options struct {
	// Context is the tokens in a chunk; chunks follow each other without overlap, and each is read alone. 0: 512.
	Context int
	// Chunks limits how many are read, from the text's start. 0: all.
	Chunks int
	// ScoreAll scores every token of a chunk but the first. Otherwise the first half of a chunk is context, and the
	// predictions at positions Context/2 to Context-2 are scored.
	ScoreAll bool
	// BOS replaces the first token of each chunk. nil: none, for models that add none.
	BOS *int32
	// Base is the model from which the KL divergence is measured; nil: none. Both models' layers run in turn.
	Base *model.Model
	// Activations is how the inputs of the layers' linears are multiplied; the base's stay floating-point.
	Activations Activations
	// Outliers says which features LLMInt8 keeps in float16; the zero value is the paper's criteria.
	Outliers int8outlier.Criteria
	// BatchTokens is how many tokens go through a layer together, at least one chunk; two batches are on their way at the
	// same time, in one where there is one thread. 0: DefaultBatchTokens. It does not change the result of contexts from 11: see Perplexity.
	BatchTokens int
	// Memory bounds the bytes of hidden states kept in memory; more goes to a temporary file in TempDir ("": the
	// system's). 0: no bound.
	Memory  int64
	TempDir string
	// Progress may be nil.
	Progress Progress
	// Work keeps the hidden states behind each layer, so that Perplexity goes on there; nil: it keeps nothing.
	Work Work
	// Engine has Perplexity's shards of the text done by workers (NewWorker) of the same Work, which is a store.Shared then and
	// keeps what was scored of each instead; nil: Perplexity does it.
	Engine engine.Engine
}

// Defaults of Options.
const (
	DefaultContext     = 512 // llama-perplexity's
	DefaultBatchTokens = 512 // two such batches at a time; twice as many measured 0 to 3% faster, for twice the scratch memory
)

// GPTQ2048 is the protocol of the GPTQ paper (Frantar et al., arXiv:2210.17323): 2048-token chunks, every token scored.
func GPTQ2048() Options { return Options{Context: 2048, ScoreAll: true} }

// Progress is told what an evaluation does; internal/ui shows it. Add may be called from several goroutines.
type Progress interface {
	Stage(name string, total int64) // total is in multiplications
	Item(name string)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

// Result is what an evaluation found. The JSON names are part of the command line's interface.
type Result struct {
	Perplexity Figure `json:"perplexity"`        // exp of the mean negative log-likelihood
	StdErr     Figure `json:"perplexity_stderr"` // of Perplexity, taking the scored tokens as independent

	TokensScored int  `json:"tokens_scored"`
	Context      int  `json:"context"`
	Chunks       int  `json:"chunks"`
	BOS          bool `json:"bos"` // the first token of each chunk was replaced

	Seconds         float64 `json:"seconds"`
	TokensPerSecond float64 `json:"tokens_per_second"` // all tokens read, scored or not

	*Divergence // nil without a base
}

// Divergence compares a model's predictions to the base model's, over the scored tokens.
type Divergence struct {
	KL             float64 `json:"kl_divergence"` // mean of KL(base‖model), in nats
	KLStdErr       float64 `json:"kl_divergence_stderr"`
	KLMedian       float64 `json:"kl_divergence_median"`
	KLP99          float64 `json:"kl_divergence_p99"`
	KLP999         float64 `json:"kl_divergence_p999"`
	KLMax          float64 `json:"kl_divergence_max"`
	SameTop        float64 `json:"same_top"` // share of tokens for which both models think the same token likeliest
	BasePerplexity Figure  `json:"base_perplexity"`
	SameTop5       float64 `json:"same_top5"`   // share of the base's five likeliest tokens that are among the model's
	RMSShift       float64 `json:"rms_delta_p"` // root mean square of the change of the next token's probability
	// Standard errors go by chunks; both models have read the same.
	KLP999StdErr   float64 `json:"kl_divergence_p999_stderr"`
	SameTopStdErr  float64 `json:"same_top_stderr"`
	SameTop5StdErr float64 `json:"same_top5_stderr"`
	RMSShiftStdErr float64 `json:"rms_delta_p_stderr"`
	// Float16 is the KL divergence that rounding the base's logits to float16 would make. What is measured from such logits
	// cannot tell less; see BelowFloat16.
	Float16 float64 `json:"kl_divergence_float16"`
	// CommonTokens is the vocabulary that KL and SameTop compare, where one model's is larger than the other's, each model's
	// probabilities taken relative to their sum over it; 0 where both have as many tokens. Perplexities are over all tokens.
	CommonTokens int `json:"common_tokens,omitempty"`
	// Increase is Perplexity/BasePerplexity − 1. Its standard error is far smaller than those of the two: it comes from
	// the differences, token by token, of what both models make of the same text.
	Increase       Figure `json:"perplexity_increase"`
	IncreaseStdErr Figure `json:"perplexity_increase_stderr"`
}

// BelowFloat16 says whether the divergence is below what logits in float16 can tell.
func (d *Divergence) BelowFloat16() bool { return d.KL < d.Float16 }

// Perplexity evaluates m on tokens, a whole text. The result does not depend on the number of threads, nor on batches as
// long as no product of a batch is of four tokens or fewer, whose inputs gemm.MatMul rounds in another way: contexts
// below 11 score so few.
func Perplexity(ctx context.Context, m *model.Model, tokens []int32, opt Options) (*Result, error) {
	start := time.Now()
	p, err := newPlan(m, tokens, opt)
	if err != nil {
		return nil, err
	}
	models := []*model.Model{m}
	if opt.Base != nil {
		models = append(models, opt.Base)
	}
	for _, m := range models {
		p.perChunk += p.work(m)
	}
	p.progress.Stage("evaluate", p.perChunk*int64(p.chunks))
	defer p.progress.Done()
	var s *scores
	if opt.Engine != nil {
		s, err = byUnits(ctx, m, p, &opt)
	} else {
		var a *activations
		if a, err = newActivations(ctx, m, p, opt); err == nil {
			s, err = pass(ctx, p, models, a, opt.Work)
		}
	}
	if err != nil {
		return nil, err
	}
	res := s.result(p)
	res.Seconds = time.Since(start).Seconds()
	res.TokensPerSecond = float64(p.chunks*p.context) / res.Seconds
	return res, nil
}

// pass takes the text through all models and scores it; a is the first one's. work keeps how far it is, if it is not nil.
func pass(ctx context.Context, p *plan, models []*model.Model, a *activations, work Work) (*scores, error) {
	var runs []*run
	defer func() {
		for _, r := range runs {
			r.close()
		}
	}()
	deepest := 0
	for _, m := range models {
		r := newRun(m)
		runs = append(runs, r)
		if err := r.embed(p); err != nil {
			return nil, err
		}
		deepest = max(deepest, m.Layers())
	}
	runs[0].activations = a
	standing := &store.Standing{Model: models[0].Source.Name(), Phase: store.PhaseEvaluate, Run: 1, Layers: deepest}
	first, err := resume(work, runs, standing)
	if err != nil {
		return nil, err
	}
	for i := first; i < deepest; i++ {
		began := time.Now()
		p.progress.Item(fmt.Sprintf("layer %d/%d", i+1, deepest))
		for _, r := range runs {
			if i < r.m.Layers() {
				if err := r.layer(ctx, p, i); err != nil {
					return nil, err
				}
			}
		}
		if err := keep(work, runs, i+1, time.Since(began), standing); err != nil {
			return nil, err
		}
	}
	p.progress.Item("head")
	s, err := score(ctx, p, runs)
	if err != nil {
		return nil, err
	}
	return s, finish(work, standing)
}

// plan is what all models of an evaluation share.
type plan struct {
	context, chunks int
	before          int   // chunks of the text before these
	perChunk        int64 // work of all models
	first           int   // position of the first prediction that is scored in a chunk
	bos             bool
	tokens          []int32 // chunks×context, first tokens replaced
	batch           int     // chunks
	common, largest int     // tokens that all models have, and that the largest vocabulary has
	memory          int64   // per model
	tempDir         string
	progress        Progress
}

// minContext gives the second half one prediction to score.
const minContext = 4

func newPlan(m *model.Model, tokens []int32, opt Options) (*plan, error) {
	p := &plan{context: opt.Context, tempDir: opt.TempDir, memory: opt.Memory, progress: opt.Progress}
	if p.context == 0 {
		p.context = DefaultContext
	}
	if err := m.CheckLength(p.context); err != nil {
		return nil, fmt.Errorf("eval: %w", err)
	}
	if p.context < minContext {
		return nil, fmt.Errorf("eval: a context of %d tokens leaves nothing to score; the least is %d", p.context, minContext)
	}
	if opt.Chunks < 0 {
		return nil, fmt.Errorf("eval: %d chunks", opt.Chunks)
	}
	if !opt.ScoreAll {
		p.first = p.context / 2
	}
	if p.progress == nil {
		p.progress = silent{}
	}
	p.common, p.largest = m.Vocab, m.Vocab
	p.chunks = len(tokens) / p.context
	if p.chunks == 0 {
		return nil, fmt.Errorf("eval: the text has %d tokens, a context of %d needs at least as many", len(tokens), p.context)
	}
	if opt.Chunks > 0 {
		p.chunks = min(p.chunks, opt.Chunks)
	}
	if b := opt.Base; b != nil {
		if err := sameVocabulary(m, b); err != nil {
			return nil, err
		}
		p.common, p.largest = min(m.Vocab, b.Vocab), max(m.Vocab, b.Vocab)
		p.memory /= 2
		if opt.Memory > 0 {
			p.memory = max(p.memory, 1)
		}
	}
	p.tokens = slices.Clone(tokens[:p.chunks*p.context])
	if opt.BOS != nil {
		p.bos = true
		for i := 0; i < len(p.tokens); i += p.context {
			p.tokens[i] = *opt.BOS
		}
	}
	batch := opt.BatchTokens
	if batch <= 0 {
		batch = DefaultBatchTokens
	}
	p.batch = max(1, batch/p.context)
	return p, nil
}

// sameVocabulary refuses two models whose token ids do not mean the same. One may have more tokens than the other, such as
// those that pad a vocabulary to a round number.
func sameVocabulary(m, base *model.Model) error {
	const key = "tokenizer.ggml.tokens"
	a, _ := m.Source.Meta(key)
	b, _ := base.Source.Meta(key)
	at, aok := a.([]string)
	bt, bok := b.([]string)
	if !aok || !bok {
		if m.Vocab != base.Vocab {
			return fmt.Errorf("eval: %s has a vocabulary of %d tokens, the base %s one of %d, and not both list them: "+
				"their predictions cannot be compared", m.Source.Name(), m.Vocab, base.Source.Name(), base.Vocab)
		}
		return nil
	}
	for i := range min(len(at), len(bt), m.Vocab, base.Vocab) {
		if at[i] != bt[i] {
			return fmt.Errorf("eval: token %d is %.40q in %s and %.40q in the base %s: their predictions cannot be compared",
				i, at[i], m.Source.Name(), bt[i], base.Source.Name())
		}
	}
	return nil
}

// scored is the number of predictions scored in a chunk: each but the last position has a next token.
func (p *plan) scored() int { return p.context - 1 - p.first }

// work estimates the multiplications that m's evaluation takes, for one chunk, as the two below do.
func (p *plan) work(m *model.Model) int64 {
	var layers int64
	for i := range m.Layers() {
		layers += p.layerWork(m, i)
	}
	return layers + p.headWork(m)
}

func (p *plan) layerWork(m *model.Model, i int) int64 { return m.LayerWeights(i) * int64(p.context) }

func (p *plan) headWork(m *model.Model) int64 {
	return int64(m.Vocab) * int64(m.Dim) * int64(p.scored())
}

// run is one model's way through an evaluation.
type run struct {
	m           *model.Model
	states      [2]*model.State // for two batches at the same time
	activations *activations    // nil: floating-point
	hidden      *states.Store
}

func newRun(m *model.Model) *run {
	return &run{m: m, states: [2]*model.State{m.NewState(), m.NewState()}}
}

// together is how many chunks pass through a layer together: a batch, or, where one processor takes one batch after the other, two, which
// weights are then unpacked once for, in the scratch memory of two. Short chunks stay apart: see few in layer.
func (p *plan) together() int {
	if kernels.Processors() == 1 && p.context >= 32 {
		return 2 * p.batch
	}
	return p.batch
}

// embed fills the hidden states with the tokens' embeddings.
func (r *run) embed(p *plan) error { return r.embedWith(p, nil) }

// embedWith is embed with other rows of the table: see model.Model.Embed.
func (r *run) embedWith(p *plan, replace model.ReplaceRows) error {
	var err error
	if r.hidden, err = states.New(states.Fixed(p.chunks, p.together()), p.context, r.m.Width, p.memory, p.tempDir); err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	return r.each(func(lo, hi int, x *tensor.Matrix) error {
		return r.m.Embed(x, p.tokens[lo*p.context:hi*p.context], p.context, replace)
	})
}

// layer takes the hidden states through layer i.
func (r *run) layer(ctx context.Context, p *plan, i int) error {
	l, err := r.m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	r.m.ReadAhead(i + 1)
	if r.activations != nil {
		if err := r.activations.install(l); err != nil {
			return err
		}
	}
	// After the last layer only the scored positions matter. A few rows would be multiplied in another way, with other
	// roundings.
	const few = 16
	last := p.context
	if n := p.context - p.first; i == r.m.Layers()-1 && n >= few {
		last = n
	}
	return r.forward(ctx, l, p.context, last, p.progress)
}

// forward takes all batches through l, two at a time: where one's operation ends on some processors before it does on
// others, they work on the other batch.
func (r *run) forward(ctx context.Context, l *model.Layer, seqLen, last int, progress Progress) error {
	var next atomic.Int64
	weights := r.m.LayerWeights(l.Index)
	work := func(ctx context.Context, st *model.State, hidden *states.Store) error {
		for b := int(next.Add(1)) - 1; b < hidden.Batches(); b = int(next.Add(1)) - 1 {
			x, err := hidden.Get(b)
			if err != nil {
				return fmt.Errorf("eval: %w", err)
			}
			if err := l.ForwardLast(ctx, st, x, seqLen, last); err != nil {
				return err
			}
			if err := hidden.Put(b, x); err != nil {
				return fmt.Errorf("eval: %w", err)
			}
			lo, hi := hidden.Sequences(b)
			progress.Add(int64(hi-lo) * int64(seqLen) * weights)
		}
		return nil
	}
	// A long sequence has work for all processors in each of its operations, and much scratch memory.
	const long = 4096
	if r.hidden.Batches() == 1 || seqLen >= long || kernels.Processors() == 1 {
		return work(ctx, r.states[0], r.hidden)
	}
	g, ctx := errgroup.WithContext(ctx)
	start := func(st *model.State, hidden *states.Store) {
		g.Go(func() error { return mmap.Guard(func() error { return work(ctx, st, hidden) }) })
	}
	start(r.states[0], r.hidden)
	start(r.states[1], r.hidden.Fork())
	return g.Wait()
}

// each calls f with every batch of chunks [lo,hi) and stores what f makes of x.
func (r *run) each(f func(lo, hi int, x *tensor.Matrix) error) error {
	for b := range r.hidden.Batches() {
		x, err := r.hidden.Get(b)
		if err != nil {
			return fmt.Errorf("eval: %w", err)
		}
		lo, hi := r.hidden.Sequences(b)
		if err := f(lo, hi, x); err != nil {
			return err
		}
		if err := r.hidden.Put(b, x); err != nil {
			return fmt.Errorf("eval: %w", err)
		}
	}
	return nil
}

func (r *run) close() {
	if r.hidden != nil {
		r.hidden.Close()
	}
}

// errNotFinite is wrapped by the error for a model whose logits are NaN or infinite.
var errNotFinite = errors.New("the prediction is not a finite number: the model's weights or its hidden states overflow")

// meanAndError returns the mean of x and its standard error, as llama-perplexity computes it.
func meanAndError(x []float64) (mean, stderr float64) {
	var sum, sum2 float64
	for _, v := range x {
		sum += v
		sum2 += v * v
	}
	n := float64(len(x))
	mean = sum / n
	if n > 1 {
		stderr = math.Sqrt(max(0, sum2/n-mean*mean) / (n - 1))
	}
	return mean, stderr
}
