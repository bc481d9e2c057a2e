package eval

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
	"github.com/llmq/llmq/tokenizer"
)

// Tokenizer is what tasks need of a *tokenizer.Tokenizer.
type Tokenizer interface {
	Encode(text string, opt tokenizer.EncodeOptions) []int32
	// BOS returns the token that opens a text, and whether the model expects it there.
	BOS() (id int32, add bool)
}

// TaskOptions says how to run a task. The zero value is the default.
type TaskOptions struct {
	Limit       int // only the first examples; 0: all
	BatchTokens int // as in Options
	Memory      int64
	TempDir     string
	Progress    Progress // may be nil
}

// TaskResult is how well a model did. The JSON names are part of the command line's interface.
type TaskResult struct {
	Kind     TaskKind `json:"kind"`
	Examples int      `json:"examples"`
	// Accuracy is the share of examples with the right answer: the choice of the largest probability, or the last word
	// that greedy decoding would write.
	Accuracy *Measure `json:"accuracy"`
	// AccuracyNorm and AccuracyPerToken, for choices, compare log-probabilities per character of the choice, as
	// lm-evaluation-harness's acc_norm does, and per token, as llama.cpp's llama-perplexity --hellaswag does.
	AccuracyNorm     *Measure `json:"accuracy_norm,omitempty"`
	AccuracyPerToken *Measure `json:"accuracy_per_token,omitempty"`
	// Perplexity is that of the last word, as a whole.
	Perplexity *Measure `json:"perplexity,omitempty"`
	Seconds    float64  `json:"seconds"`
}

// Measure is a mean over the examples, or for a perplexity its exponential, with its standard error.
type Measure struct {
	Value  Figure `json:"value"`
	StdErr Figure `json:"stderr"`
	// Base is the other model's, after Compare, and Difference how much larger this one's is; its error is that of paired
	// examples.
	Base             *Figure `json:"base,omitempty"`
	Difference       *Figure `json:"difference,omitempty"`
	DifferenceStdErr *Figure `json:"difference_stderr,omitempty"`

	each []float64 // by example
	exp  bool      // Value is exp of the mean
}

func newMeasure(each []float64, exp bool) *Measure {
	m := &Measure{each: each, exp: exp}
	mean, stderr := meanAndError(each)
	if exp {
		mean = math.Exp(mean)
		stderr *= mean
	}
	m.Value, m.StdErr = Figure(mean), Figure(stderr)
	return m
}

// Compare sets r's measures beside those of a base model on the same task.
func (r *TaskResult) Compare(base *TaskResult) {
	pairs := [][2]*Measure{{r.Accuracy, base.Accuracy}, {r.AccuracyNorm, base.AccuracyNorm},
		{r.AccuracyPerToken, base.AccuracyPerToken}, {r.Perplexity, base.Perplexity}}
	for _, p := range pairs {
		m, b := p[0], p[1]
		if m == nil || b == nil {
			continue
		}
		// To first order an example moves exp of the mean by exp of the mean times its share.
		slope, baseSlope := 1.0, 1.0
		if m.exp {
			slope, baseSlope = float64(m.Value), float64(b.Value)
		}
		d := make([]float64, len(m.each))
		for i := range d {
			d[i] = slope*m.each[i] - baseSlope*b.each[i]
		}
		_, stderr := meanAndError(d)
		difference, differenceStdErr := m.Value-b.Value, Figure(stderr)
		m.Base, m.Difference, m.DifferenceStdErr = &b.Value, &difference, &differenceStdErr
	}
}

// RunTask runs a task. All sequences pass through one layer before the next is loaded, in batches of about the same
// length: what pads them stands on the right, where causal attention does not look.
func RunTask(ctx context.Context, m *model.Model, tok Tokenizer, task *Task, opt TaskOptions) (*TaskResult, error) {
	start := time.Now()
	examples := task.Examples
	if opt.Limit > 0 {
		examples = examples[:min(opt.Limit, len(examples))]
	}
	r := &taskRun{m: m, states: newRun(m).states, opt: opt}
	if r.opt.Progress == nil {
		r.opt.Progress = silent{}
	}
	if r.opt.BatchTokens <= 0 {
		r.opt.BatchTokens = DefaultBatchTokens
	}
	for i := range examples {
		if err := r.add(tok, task, &examples[i]); err != nil {
			return nil, task.fail(examples[i].Line, err)
		}
	}
	defer r.close()
	if err := r.forward(ctx); err != nil {
		return nil, err
	}
	if err := r.score(ctx); err != nil {
		return nil, err
	}
	res, err := r.result(task, examples)
	if err != nil {
		return nil, err
	}
	res.Seconds = time.Since(start).Seconds()
	return res, nil
}

// sequence is a context with one continuation.
type sequence struct {
	tokens []int32
	first  int // the first token whose probability counts, at least 1

	logProb float64 // of the tokens from first on
	greedy  bool    // each of them was the likeliest
}

// bucket holds the sequences of about one length.
type bucket struct {
	length int // padded
	seqs   []*sequence
	hidden *states.Store
}

// bucketStep is what lengths are rounded up to.
const bucketStep = 8

type taskRun struct {
	m       *model.Model
	states  [2]*model.State // as in run
	opt     TaskOptions
	seqs    []*sequence // choice by choice, example by example
	buckets []*bucket   // by length
}

// add tokenizes an example.
func (r *taskRun) add(tok Tokenizer, task *Task, e *Example) error {
	encode := func(s string) []int32 {
		ids := tok.Encode(s, tokenizer.EncodeOptions{NoBOS: true})
		if id, add := tok.BOS(); add {
			ids = slices.Insert(ids, 0, id)
		}
		return ids
	}
	var seqs []*sequence
	for _, c := range e.Choices {
		s := &sequence{tokens: encode(e.Context + c)}
		switch n := len(s.tokens); {
		case n < 2:
			return fmt.Errorf("%.40q is %d tokens: nothing can be predicted", e.Context+c, n)
		case n > r.m.Context:
			return fmt.Errorf("%d tokens; the context of %s is %d", n, r.m.Source.Name(), r.m.Context)
		}
		seqs = append(seqs, s)
	}
	if task.Kind == HellaSwag {
		first := len(seqs[0].tokens)
		for _, s := range seqs[1:] {
			first = min(first, commonPrefix(seqs[0].tokens, s.tokens))
		}
		for _, s := range seqs {
			s.first = first
		}
	} else {
		// Where the context's last token and the continuation make one token, that one counts.
		alone := encode(e.Context)
		for _, s := range seqs {
			s.first = commonPrefix(alone, s.tokens)
		}
	}
	for _, s := range seqs {
		s.first = min(max(s.first, 1), len(s.tokens)-1)
	}
	r.seqs = append(r.seqs, seqs...)
	return nil
}

func commonPrefix(a, b []int32) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// forward takes all sequences through the layers.
func (r *taskRun) forward(ctx context.Context) error {
	if err := r.embed(); err != nil {
		return err
	}
	var tokens int64
	for _, b := range r.buckets {
		tokens += int64(b.length) * int64(len(b.seqs))
	}
	var scored int64
	for _, s := range r.seqs {
		scored += int64(len(s.tokens) - s.first)
	}
	var weights int64
	for i := range r.m.Layers() {
		weights += r.m.LayerWeights(i)
	}
	r.opt.Progress.Stage("evaluate", tokens*weights+scored*int64(r.m.Vocab)*int64(r.m.Dim))
	for i := range r.m.Layers() {
		r.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, r.m.Layers()))
		if err := r.layer(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// embed sorts the sequences into buckets and fills their hidden states.
func (r *taskRun) embed() error {
	byLength := map[int]*bucket{}
	var tokens int64
	for _, s := range r.seqs {
		n := (len(s.tokens) + bucketStep - 1) / bucketStep * bucketStep
		b := byLength[n]
		if b == nil {
			b = &bucket{length: n}
			byLength[n] = b
			r.buckets = append(r.buckets, b)
		}
		b.seqs = append(b.seqs, s)
		tokens += int64(n)
	}
	slices.SortFunc(r.buckets, func(a, b *bucket) int { return a.length - b.length })
	for _, b := range r.buckets {
		budget := int64(0)
		if r.opt.Memory > 0 {
			share := float64(b.length) * float64(len(b.seqs)) / float64(tokens)
			budget = max(1, int64(float64(r.opt.Memory)*share))
		}
		var err error
		b.hidden, err = states.New(states.Fixed(len(b.seqs), r.opt.BatchTokens/b.length), b.length, r.m.Width, budget, r.opt.TempDir)
		if err != nil {
			return fmt.Errorf("eval: %w", err)
		}
		err = b.each(func(lo, hi int, x *tensor.Matrix) error {
			for k := lo; k < hi; k++ {
				at := (k - lo) * b.length
				n := len(b.seqs[k].tokens)
				if err := r.m.Embed(x.View(at, at+n, 0, x.Cols), b.seqs[k].tokens, n, nil); err != nil {
					return err
				}
				for t := n; t < b.length; t++ { // a copy of the last token, so that nothing overflows
					copy(x.Row(at+t), x.Row(at+n-1))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *taskRun) layer(ctx context.Context, i int) error {
	l, err := r.m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	r.m.ReadAhead(i + 1)
	for _, b := range r.buckets {
		pass := &run{m: r.m, states: r.states, hidden: b.hidden}
		if err := pass.forward(ctx, l, b.length, b.length, r.opt.Progress); err != nil {
			return err
		}
	}
	return nil
}

// each calls f with every batch of sequences [lo,hi) and stores what f makes of their hidden states.
func (b *bucket) each(f func(lo, hi int, x *tensor.Matrix) error) error {
	return (&run{hidden: b.hidden}).each(f)
}

func (r *taskRun) close() {
	for _, b := range r.buckets {
		if b.hidden != nil {
			b.hidden.Close()
		}
	}
}

// score finds the log-probabilities of the continuations.
func (r *taskRun) score(ctx context.Context) error {
	r.opt.Progress.Item("head")
	defer r.opt.Progress.Done()
	head, err := r.m.LoadHead()
	if err != nil {
		return err
	}
	defer head.Release()
	for _, b := range r.buckets {
		err := b.each(func(lo, hi int, x *tensor.Matrix) error { return r.scoreBatch(ctx, head, b, lo, hi, x) })
		if err != nil {
			return err
		}
	}
	return nil
}

// scoreBatch scores the sequences [lo,hi) of a bucket.
func (r *taskRun) scoreBatch(ctx context.Context, head *model.Head, b *bucket, lo, hi int, x *tensor.Matrix) error {
	type prediction struct {
		row     int
		target  int32
		logProb float64
		top     bool
	}
	var ps []prediction
	for k := lo; k < hi; k++ {
		s := b.seqs[k]
		for t := s.first; t < len(s.tokens); t++ {
			ps = append(ps, prediction{row: (k-lo)*b.length + t - 1, target: s.tokens[t]})
		}
	}
	step := min(max(headValues/r.m.Vocab, 1), len(ps))
	rows, logits := tensor.New(step, x.Cols), tensor.New(step, r.m.Vocab)
	for at := 0; at < len(ps); at += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := ps[at:min(at+step, len(ps))]
		for i := range part {
			copy(rows.Row(i), x.Row(part[i].row))
		}
		head.Logits(logits.View(0, len(part), 0, logits.Cols), rows.View(0, len(part), 0, rows.Cols))
		kernels.Parallel(len(part), 1, func(from, to int) {
			for i := from; i < to; i++ {
				row := logits.Row(i)
				part[i].logProb = float64(row[part[i].target]) - elementwise.LogSumExp(row)
				part[i].top = argmax(row) == int(part[i].target)
			}
		})
		r.opt.Progress.Add(int64(len(part)) * int64(r.m.Vocab) * int64(r.m.Dim))
	}
	for k := lo; k < hi; k++ {
		s := b.seqs[k]
		s.greedy = true
		for _, p := range ps[:len(s.tokens)-s.first] {
			s.logProb += p.logProb
			s.greedy = s.greedy && p.top
		}
		ps = ps[len(s.tokens)-s.first:]
	}
	return nil
}

// result sums up.
func (r *taskRun) result(task *Task, examples []Example) (*TaskResult, error) {
	var accuracy, norm, perToken, nll []float64
	seqs := r.seqs
	for _, e := range examples {
		choices := seqs[:len(e.Choices)]
		seqs = seqs[len(e.Choices):]
		for _, s := range choices {
			if math.IsNaN(s.logProb) || math.IsInf(s.logProb, 0) {
				return nil, fmt.Errorf("eval: %w", task.fail(e.Line, errNotFinite))
			}
		}
		if task.Kind == LastWord {
			accuracy = append(accuracy, is(choices[0].greedy))
			nll = append(nll, -choices[0].logProb)
			continue
		}
		best := func(length func(i int) int) float64 {
			top := 0
			score := func(i int) float64 { return choices[i].logProb / float64(length(i)) }
			for i := range choices {
				if score(i) > score(top) {
					top = i
				}
			}
			return is(top == e.Answer)
		}
		accuracy = append(accuracy, best(func(int) int { return 1 }))
		norm = append(norm, best(func(i int) int { return utf8.RuneCountInString(strings.TrimSpace(e.Choices[i])) }))
		perToken = append(perToken, best(func(i int) int { return len(choices[i].tokens) - choices[i].first }))
	}
	res := &TaskResult{Kind: task.Kind, Examples: len(examples), Accuracy: newMeasure(accuracy, false)}
	if task.Kind == LastWord {
		res.Perplexity = newMeasure(nll, true)
	} else {
		res.AccuracyNorm, res.AccuracyPerToken = newMeasure(norm, false), newMeasure(perToken, false)
	}
	return res, nil
}

func is(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
