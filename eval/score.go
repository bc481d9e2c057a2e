package eval

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// scores holds one value per scored token, in the text's order, so that sums do not depend on who computed what when.
type scores struct {
	nll     []float64 // −log p(next token)
	baseNLL []float64 // with a base only, as are:
	kl      []float64
	same    []bool
	top     []float64 // share of the base's likeliest tokens that are the model's
	noise   []float64 // float16Noise of the base's logits
}

// headColumns is how many logits of a prediction exist at a time. Every weight of the head is unpacked once for each
// batch, and read once for all of them that are in memory. Tests make it smaller.
var headColumns = 4096

// headTokens bounds the predictions of which they exist: 32 MB of logits, per model.
const headTokens = 2048

// headValues bounds the logits that are held at once where whole rows of them are, per model: 32 MB. Tests make it
// smaller.
var headValues = 8 << 20

// prediction is what a model's logits for one position say, as far as they have been seen.
type prediction struct {
	lse    float64 // log Σ exp(logit)
	common float64 // the same over the tokens that all models have
	target float64 // the next token's logit
	top    int     // the likeliest of the common tokens
	best   float32 // its logit
	most   likeliest
}

// add takes the logits from token first on. Either all of these tokens are common, or none; without a second model, whose
// likeliest tokens could be compared, none are.
func (d *prediction) add(logits []float32, first, target int, common bool) {
	d.lse = logAddExp(d.lse, elementwise.LogSumExp(logits))
	if i := target - first; 0 <= i && i < len(logits) {
		d.target = float64(logits[i])
	}
	if !common {
		return
	}
	d.common = d.lse
	if i := argmax(logits); first == 0 || logits[i] > d.best {
		d.top, d.best = first+i, logits[i]
	}
	d.most.add(logits, first)
}

// logAddExp returns log(exp(a)+exp(b)).
func logAddExp(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	if math.IsInf(b, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// tally is what has been seen of all scored predictions.
type tally struct {
	predictions [][]prediction // the model's, then the base's, if there is one
	difference  []float64      // with a base: the mean over the common tokens of its logits minus the model's, weighted by its probabilities
}

func newTally(models, n int) *tally {
	t := &tally{predictions: make([][]prediction, models)}
	for i := range t.predictions {
		t.predictions[i] = make([]prediction, n)
		for j := range t.predictions[i] {
			t.predictions[i][j].lse = math.Inf(-1)
		}
	}
	if models > 1 {
		t.difference = make([]float64, n)
	}
	return t
}

// add takes row j of the models' logits for prediction i: parts of them, from token first on. Beyond the common tokens a
// model that has fewer has an empty part.
func (t *tally) add(i int, p *plan, logits []*tensor.Matrix, j, first int, parts []int) {
	target, common := int(p.target(i)), len(logits) > 1 && first < p.common
	if common {
		base, row, d := logits[1].Row(j)[:parts[1]], logits[0].Row(j)[:parts[0]], &t.predictions[1][i]
		before, lse := d.lse, elementwise.LogSumExp(base)
		d.add(base, first, target, true)
		t.difference[i] = t.difference[i]*math.Exp(before-d.lse) + meanDifference(base, row, lse)*math.Exp(lse-d.lse)
	} else if len(logits) > 1 && parts[1] > 0 {
		t.predictions[1][i].add(logits[1].Row(j)[:parts[1]], first, target, false)
	}
	if parts[0] > 0 {
		t.predictions[0][i].add(logits[0].Row(j)[:parts[0]], first, target, common)
	}
}

// scores sums up what the models predict.
func (t *tally) scores() *scores {
	nll := func(ds []prediction) []float64 {
		v := make([]float64, len(ds))
		for i, d := range ds {
			v[i] = d.lse - d.target
		}
		return v
	}
	s := &scores{nll: nll(t.predictions[0])}
	if len(t.predictions) == 1 {
		return s
	}
	s.baseNLL = nll(t.predictions[1])
	s.kl, s.same = make([]float64, len(s.nll)), make([]bool, len(s.nll))
	s.top, s.noise = make([]float64, len(s.nll)), make([]float64, len(s.nll))
	for i := range s.kl {
		d, base := &t.predictions[0][i], &t.predictions[1][i]
		s.kl[i] = max(0, t.difference[i]-base.common+d.common) // below zero by rounding only
		s.same[i] = d.top == base.top
		s.top[i], s.noise[i] = base.most.common(&d.most), float16Noise(base.best)
	}
	return s
}

// score puts the hidden states through the final norm and the head, scored positions only. The hidden states are used
// up: what was scored of a batch, normalised, takes the place of its first rows.
func score(ctx context.Context, p *plan, runs []*run) (*scores, error) {
	seen := newTally(len(runs), p.chunks*p.scored())
	heads := make([]*model.Head, len(runs))
	logits := make([]*tensor.Matrix, len(runs))
	columns := min(headColumns, p.largest)
	step := min(min(p.batch, p.chunks)*p.scored(), headTokens)
	for i, r := range runs {
		var err error
		if heads[i], err = r.m.LoadHead(); err != nil {
			return nil, err
		}
		defer heads[i].Release()
		logits[i] = tensor.New(step, columns)
		if err := r.normalise(p, heads[i]); err != nil {
			return nil, err
		}
	}
	batches := runs[0].hidden.Batches()
	// Hidden states in memory pass again for each part of the head, so that its weights are read once. Those in a file are
	// read once themselves, and the head for each batch of them.
	together := batches
	if slices.ContainsFunc(runs, func(r *run) bool { return r.hidden.Spilled() }) {
		together = 1
	}
	in := make([][]*tensor.Matrix, together) // by batch, then run
	for b0 := 0; b0 < batches; b0 += together {
		for b := range in {
			in[b] = make([]*tensor.Matrix, len(runs))
			for i, r := range runs {
				var err error
				if in[b][i], err = r.hidden.Get(b0 + b); err != nil {
					return nil, fmt.Errorf("eval: %w", err)
				}
			}
		}
		parts := make([]int, len(runs)) // tokens that each model has of those from first to last
		for first, last := 0, 0; first < p.largest; first = last {
			last = min(first+columns, p.largest)
			if first < p.common { // tokens that all models have do not mix with others
				last = min(last, p.common)
			}
			for i, r := range runs {
				parts[i] = max(0, min(last, r.m.Vocab)-first)
			}
			for b := range in {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				lo, hi := runs[0].hidden.Sequences(b0 + b)
				start, count := lo*p.scored(), (hi-lo)*p.scored()
				// Even pieces: a few tokens left over would be multiplied in another way than many, with other roundings.
				pieces := (count + step - 1) / step
				for piece := range pieces {
					from, to := piece*count/pieces, (piece+1)*count/pieces
					for i, r := range runs {
						if parts[i] > 0 {
							heads[i].Part(logits[i].View(0, to-from, 0, parts[i]), in[b][i].View(from, to, 0, r.m.Dim), first, first+parts[i])
						}
					}
					kernels.Parallel(to-from, 1, func(lo, hi int) {
						for j := lo; j < hi; j++ {
							seen.add(start+from+j, p, logits, j, first, parts)
						}
					})
				}
				for i, r := range runs {
					p.progress.Add(int64(count) * int64(parts[i]) * int64(r.m.Dim))
				}
			}
		}
	}
	s := seen.scores()
	for i, v := range s.nll {
		if math.IsNaN(v) || math.IsInf(v, 0) || s.kl != nil && math.IsNaN(s.kl[i]) {
			for _, r := range runs {
				if err := r.m.CheckWeights(ctx); err != nil {
					return nil, fmt.Errorf("eval: %w", err)
				}
			}
			return nil, fmt.Errorf("eval: chunk %d, position %d: %w", p.before+i/p.scored(), p.first+i%p.scored(), errNotFinite)
		}
	}
	return s, nil
}

// normalise replaces the first rows of every batch by the head's input for its scored positions.
func (r *run) normalise(p *plan, head *model.Head) error {
	return r.each(func(lo, hi int, x *tensor.Matrix) error {
		for c := range hi - lo { // rows only move forward
			for j := range p.scored() {
				copy(x.Row(c*p.scored()+j), x.Row(c*p.context+p.first+j))
			}
		}
		scored := x.View(0, (hi-lo)*p.scored(), 0, x.Cols)
		head.In(scored.View(0, scored.Rows, 0, r.m.Dim), scored)
		return nil
	})
}

// target is the token that scored prediction i should have given.
func (p *plan) target(i int) int32 {
	return p.tokens[i/p.scored()*p.context+p.first+i%p.scored()+1]
}

// meanDifference returns the mean of p−q, two rows of logits, weighted by exp(p); lse is p's LogSumExp.
func meanDifference(p, q []float32, lse float64) float64 {
	var sum, weights float64 // the latter is 1 but for lse's error, which would count as often as p and q are apart
	for i, v := range p {
		w := math.Exp(float64(v) - lse)
		weights += w
		sum += w * (float64(v) - float64(q[i]))
	}
	return sum / weights
}

// divergence returns KL(p‖q) = Σ p·log(p/q) of two rows of logits and their LogSumExp.
func divergence(p, q []float32, pLSE, qLSE float64) float64 {
	var sum float64
	for i, v := range p {
		logp := float64(v) - pLSE
		sum += math.Exp(logp) * (logp - (float64(q[i]) - qLSE))
	}
	return max(0, sum) // below zero by rounding only
}

func argmax(row []float32) int {
	best := 0
	for i, v := range row {
		if v > row[best] {
			best = i
		}
	}
	return best
}

func (s *scores) result(p *plan) *Result {
	r := &Result{TokensScored: len(s.nll), Context: p.context, Chunks: p.chunks, BOS: p.bos}
	mean, stderr := meanAndError(s.nll)
	r.Perplexity = Figure(math.Exp(mean))
	r.StdErr = r.Perplexity * Figure(stderr)
	if s.kl == nil {
		return r
	}
	d := &Divergence{}
	if p.common < p.largest {
		d.CommonTokens = p.common
	}
	d.KL, d.KLStdErr = meanAndError(s.kl)
	same, shift := make([]float64, len(s.same)), make([]float64, len(s.same))
	for i, ok := range s.same {
		if ok {
			same[i] = 1
		}
		shift[i] = math.Exp(-s.nll[i]) - math.Exp(-s.baseNLL[i])
	}
	d.SameTop, d.SameTopStdErr = estimate(same, p.chunks, meanOf)
	d.SameTop5, d.SameTop5StdErr = estimate(s.top, p.chunks, meanOf)
	d.RMSShift, d.RMSShiftStdErr = estimate(shift, p.chunks, rootMeanSquare)
	d.KLP999, d.KLP999StdErr = estimate(s.kl, p.chunks, percentile999)
	d.Float16 = meanOf(s.noise)
	base, _ := meanAndError(s.baseNLL)
	d.BasePerplexity = Figure(math.Exp(base))
	more := make([]float64, len(s.nll))
	for i, v := range s.nll {
		more[i] = v - s.baseNLL[i]
	}
	mean, stderr = meanAndError(more)
	d.Increase = Figure(math.Expm1(mean))
	d.IncreaseStdErr = (1 + d.Increase) * Figure(stderr)
	slices.Sort(s.kl)
	d.KLMedian, d.KLP99, d.KLMax = quantile(s.kl, 0.5), quantile(s.kl, 0.99), s.kl[len(s.kl)-1]
	r.Divergence = d
	return r
}

// quantile interpolates between the two nearest of the sorted values.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	j := min(i+1, len(sorted)-1)
	f := at - float64(i)
	return (1-f)*sorted[i] + f*sorted[j]
}
