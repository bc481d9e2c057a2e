package eval

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// scores holds one value per scored token, in the text's order, so that sums do not depend on who computed what when.
type scores struct {
	nll     []float64 // −log p(next token)
	baseNLL []float64 // with a base only, as are:
	kl      []float64
	same    []bool
}

// headValues bounds the logits that are held at once, per model: 32 MB, or headTokens of them, which repay unpacking the
// weights of the head. Tests make it smaller.
var headValues = 8 << 20

const headTokens = 128

// score puts the hidden states through the final norm and the head, scored positions only.
func score(ctx context.Context, p *plan, runs []*run) (*scores, error) {
	n := p.chunks * p.scored()
	s := &scores{nll: make([]float64, n)}
	if len(runs) > 1 {
		s.baseNLL, s.kl, s.same = make([]float64, n), make([]float64, n), make([]bool, n)
	}
	heads := make([]*model.Head, len(runs))
	rows := make([]*tensor.Matrix, len(runs))   // hidden states of a batch's scored positions
	logits := make([]*tensor.Matrix, len(runs)) // of a part of them
	step := min(max(headValues/runs[0].m.Vocab, min(headValues, headTokens), 16), p.batch*p.scored())
	for i, r := range runs {
		var err error
		if heads[i], err = r.m.LoadHead(); err != nil {
			return nil, err
		}
		defer heads[i].Release()
		rows[i] = tensor.New(p.batch*p.scored(), r.m.Dim)
		logits[i] = tensor.New(step, r.m.Vocab)
	}
	for b := range runs[0].hidden.Batches() {
		lo, hi := runs[0].hidden.Sequences(b)
		for i, r := range runs {
			x, err := r.hidden.Get(b)
			if err != nil {
				return nil, fmt.Errorf("eval: %w", err)
			}
			for c := range hi - lo {
				for j := range p.scored() {
					copy(rows[i].Row(c*p.scored()+j), x.Row(c*p.context+p.first+j))
				}
			}
		}
		count := (hi - lo) * p.scored()
		// Even pieces: a few tokens left over would be multiplied in another way than many, with other roundings.
		pieces := (count + step - 1) / step
		for piece := range pieces {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			t := piece * count / pieces
			k := (piece+1)*count/pieces - t
			for i := range runs {
				heads[i].Logits(logits[i].View(0, k, 0, logits[i].Cols), rows[i].View(t, t+k, 0, rows[i].Cols))
			}
			kernels.Parallel(k, 1, func(from, to int) {
				for j := from; j < to; j++ {
					at := lo*p.scored() + t + j
					s.token(at, p.target(at), logits, j)
				}
			})
		}
		for _, r := range runs {
			p.progress.Add(p.headWork(r.m) * int64(hi-lo))
		}
	}
	for i, v := range s.nll {
		if math.IsNaN(v) || math.IsInf(v, 0) || s.kl != nil && math.IsNaN(s.kl[i]) {
			for _, r := range runs {
				if err := r.m.CheckWeights(ctx); err != nil {
					return nil, fmt.Errorf("eval: %w", err)
				}
			}
			return nil, fmt.Errorf("eval: chunk %d, position %d: %w", i/p.scored(), p.first+i%p.scored(), errNotFinite)
		}
	}
	return s, nil
}

// target is the token that scored prediction i should have given.
func (p *plan) target(i int) int32 {
	return p.tokens[i/p.scored()*p.context+p.first+i%p.scored()+1]
}

// token scores row j of the logits as prediction i.
func (s *scores) token(i int, target int32, logits []*tensor.Matrix, j int) {
	row := logits[0].Row(j)
	lse := kernels.LogSumExp(row)
	s.nll[i] = lse - float64(row[target])
	if s.kl == nil {
		return
	}
	base := logits[1].Row(j)
	baseLSE := kernels.LogSumExp(base)
	s.baseNLL[i] = baseLSE - float64(base[target])
	s.kl[i] = divergence(base, row, baseLSE, lse)
	s.same[i] = argmax(base) == argmax(row)
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
	r.Perplexity = math.Exp(mean)
	r.StdErr = r.Perplexity * stderr
	if s.kl == nil {
		return r
	}
	d := &Divergence{}
	d.KL, d.KLStdErr = meanAndError(s.kl)
	same := 0
	for _, ok := range s.same {
		if ok {
			same++
		}
	}
	d.SameTop = float64(same) / float64(len(s.same))
	base, _ := meanAndError(s.baseNLL)
	d.BasePerplexity = math.Exp(base)
	more := make([]float64, len(s.nll))
	for i, v := range s.nll {
		more[i] = v - s.baseNLL[i]
	}
	mean, stderr = meanAndError(more)
	d.Increase = math.Expm1(mean)
	d.IncreaseStdErr = (1 + d.Increase) * stderr
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
