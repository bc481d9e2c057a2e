package pipeline

import (
	"slices"

	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// finish stores the Hessian of a linear's output, if it pays.
func (b *backwardPass) finish(lin *model.Linear, s *outputSums) error {
	v, err := s.judge()
	if err != nil {
		return err
	}
	b.take(v)
	if !v.Pays {
		return nil
	}
	return b.put(lin.ID(), s.fit)
}

// verdict is what the held-out gradients say of a linear's Hessian.
type verdict struct {
	Seen  bool // there are gradients
	Pays  bool
	Share float64   // of the error that it leaves
	Held  []float32 // how much the outputs matter to the held-out gradients
}

// judge says whether the sums pay, and if they do adds those that have judged to the others. Sums that are not judged pay.
func (s *outputSums) judge() (v verdict, err error) {
	if s.held == nil {
		return verdict{Seen: true, Pays: true}, nil
	}
	v.Seen = true
	if v.Share, err = gptq.OutputGain(s.fit, s.held); err != nil || !(v.Share < outputGain) {
		return v, err
	}
	v.Pays = true
	for k, h := range s.fit {
		for i := range h.Rows {
			for j, x := range s.held[k].Row(i)[:i+1] {
				h.Row(i)[j] += x
			}
			v.Held = append(v.Held, s.held[k].Row(i)[i])
		}
	}
	return v, nil
}

// take counts a linear in the report.
func (o *outputs) take(v verdict) {
	if !v.Pays {
		o.rep.Skipped++
		return
	}
	o.rep.Linears++
	for _, x := range v.Held {
		o.present += float64(x)
		o.predicted += v.Share * float64(x)
	}
}

// outputSums are Σ ggᵀ, on and below the diagonal, over the gradients at a linear's output: of most sequences, and of those that judge them.
// Batches are summed by themselves and then added, those of either half of them and then the halves, so that they are the same sums whichever
// machine has which.
type outputSums struct {
	fit, held          []*tensor.Matrix
	tokens, heldTokens int // whose gradients they are of
}

func (s *outputSums) empty() bool { return s.tokens+s.heldTokens == 0 }

func (s *outputSums) observe(g *tensor.Matrix, held bool) {
	if g.Rows == 0 {
		return
	}
	blocks, tokens := s.fit, &s.tokens
	if held {
		blocks, tokens = s.held, &s.heldTokens
	}
	*tokens += g.Rows
	at := 0
	for _, h := range blocks {
		gemm.AddSyrkLower(h, g.View(0, g.Rows, at, at+h.Rows), kernels.Auto)
		at += h.Rows
	}
}

// join adds o to the sums, and empties it.
func (s *outputSums) join(o *outputSums) {
	s.tokens += o.tokens
	s.heldTokens += o.heldTokens
	for which, blocks := range [][]*tensor.Matrix{s.fit, s.held} {
		others := [][]*tensor.Matrix{o.fit, o.held}[which]
		for k, h := range blocks {
			for i := range h.Rows {
				vector.Axpy(h.Row(i)[:i+1], 1, others[k].Row(i)[:i+1])
			}
		}
	}
	o.reset()
}

// reset empties the sums.
func (s *outputSums) reset() {
	s.tokens, s.heldTokens = 0, 0
	for _, blocks := range [][]*tensor.Matrix{s.fit, s.held} {
		for _, h := range blocks {
			clear(h.Data)
		}
	}
}

// linears are those of a layer that are to be quantized.
func (b *backwardPass) linears(l *model.Layer) []*model.Linear {
	return slices.DeleteFunc(slices.Clone(l.Linears()), func(lin *model.Linear) bool {
		t := b.plan.Lookup(lin.Name)
		return t.Role != model.RoleLinear || t.Type.Grid == nil
	})
}

// groups divides the layer's linears that are to be quantized into those whose sums are made together; there is at least one group.
// Experts come first: but for the last group, the way back is then no longer than to them.
func (b *backwardPass) groups(l *model.Layer) [][]*model.Linear {
	groups := [][]*model.Linear{nil}
	var bytes int64
	all := b.linears(l)
	isExpert := map[*model.Linear]bool{}
	for _, site := range l.Sites() {
		for _, lin := range site.Linears {
			isExpert[lin] = site.Expert >= 0 && !site.Head
		}
	}
	for _, experts := range []bool{true, false} {
		for _, lin := range all {
			if isExpert[lin] != experts {
				continue
			}
			n := 2 * outputBytes(lin.Out, b.m.Dim, lin.Expert >= 0)
			if last := len(groups) - 1; bytes+n > b.budget && len(groups[last]) > 0 {
				groups, bytes = append(groups, nil), 0
			}
			last := len(groups) - 1
			groups[last] = append(groups[last], lin)
			bytes += n
		}
	}
	// In a group the order is the layer's, in which errors are added up for the report.
	at := map[*model.Linear]int{}
	for i, lin := range all {
		at[lin] = i
	}
	for _, g := range groups {
		slices.SortFunc(g, func(a, b *model.Linear) int { return at[a] - at[b] })
	}
	return groups
}

// sums makes room for the sums of linears.
func (b *backwardPass) sums(linears []*model.Linear) map[string]*outputSums {
	sums := map[string]*outputSums{}
	for _, lin := range linears {
		s := &outputSums{}
		s.fit = b.newBlocks(lin)
		if b.plan.Recipe.OutputHessian == OutputHessianAuto {
			s.held = b.newBlocks(lin)
		}
		sums[lin.ID()] = s
	}
	return sums
}

// newBlocks makes room for the blocks of a linear's H_O.
func (b *backwardPass) newBlocks(lin *model.Linear) (blocks []*tensor.Matrix) {
	for _, n := range outputBlocks(lin.Out, b.m.Dim, lin.Expert >= 0) {
		blocks = append(blocks, tensor.New(n, n))
	}
	return blocks
}

// outputBytes is the size of the sums over a linear's output.
func outputBytes(rows, dim int, expert bool) int64 {
	var bytes int64
	for _, n := range outputBlocks(rows, dim, expert) {
		bytes += 4 * int64(n) * int64(n)
	}
	return bytes
}

// outputBlocks divides the rows of a linear of a model whose residual stream is dim wide.
func outputBlocks(rows, dim int, expert bool) []int {
	most := outputRows
	switch {
	case expert:
		most = expertRows
	case rows > wideOutputs*dim:
		most = min(most, dim)
	}
	var blocks []int
	for left, n := rows, (rows+most-1)/most; n > 0; n-- {
		size := (left + n - 1) / n
		blocks = append(blocks, size)
		left -= size
	}
	return blocks
}
