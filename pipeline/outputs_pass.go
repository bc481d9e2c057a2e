package pipeline

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// wantsOutputs says whether Hessians of outputs are made.
func (r *Recipe) wantsOutputs() bool {
	return r.OutputHessian != OutputHessianOff && r.Method.Needs().Outputs
}

// gradients takes calibration text through the original model and the gradients of its predictions back, and keeps the
// Hessians of the outputs of all linears that are to be quantized, unless an earlier attempt has done so. What is summed is the
// Fisher information of the predictions (sign), not how wrong the model is.
func (p *passage) gradients() error {
	set := p.opt.Calib
	if p.found.outputs != nil || !p.plan.Recipe.wantsOutputs() ||
		p.plan.Recipe.OutputHessian == OutputHessianAuto && len(set.Sequences) < heldOutEvery {
		p.withoutGradients()
		return nil
	}
	if err := p.kept.note(store.PhaseGradients); err != nil {
		return err
	}
	if p.kept != nil {
		var err error
		if p.found.outputs, err = recallOutputs(p.opt.Work, p.tempDir); err != nil {
			return err
		}
		if p.found.outputs != nil { // a run that was killed when it had them
			p.withoutGradients()
			return forgetGradients(p.opt.Work)
		}
	}
	if free, ok := atomicfile.Free(p.tempDir); ok {
		needs := p.plan.gradientNeeds(p.m, set.Tokens(), set.SeqLen, p.opt.Memory)
		if err := roomForGradients(needs.disk, free, p.tempDir); err != nil {
			return err
		}
	}
	o, err := newOutputs(p.tempDir)
	if err != nil {
		return err
	}
	p.found.outputs = o
	seqs := gradientSequences(set)
	o.rep.Tokens = len(seqs) * set.SeqLen
	batch, together := p.plan.gradientBatch(p.m, gradientTokens(set.Tokens()), set.SeqLen)
	of := evenly(len(seqs), batch, set.SeqLen)
	b := newBackwardPass(p.task, o, seqs, of, span{0, of.batches()})
	switch {
	case p.opt.Engine != nil:
		err = b.byUnits(p)
	case together:
		err = b.together(p.plan.side(p.m, gradientTokens(set.Tokens()), batch))
	default:
		err = b.byLayer()
	}
	if err != nil {
		return err
	}
	if p.kept != nil {
		if err := o.keep(p.opt.Work); err != nil {
			return err
		}
		return forgetGradients(p.opt.Work)
	}
	return nil
}

// byLayer stores the Hessians of all layers' outputs, a layer at a time.
func (b *backwardPass) byLayer() error {
	defer b.close()
	if err := b.forward(); err != nil {
		return err
	}
	for i := b.m.Layers() - 1; i >= 0; i-- {
		b.opt.Progress.Item(fmt.Sprintf("gradients of layer %d/%d", i+1, b.m.Layers()))
		if err := b.layer(i); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
		b.backDone()
	}
	return nil
}

// backTokens is how many tokens of a model go back through a layer together: as many as on the way forth, unless what is computed of them
// there, and on the way back again, takes more than backBytes; then down to backLeast.
func backTokens(m *model.Model) int {
	n := batchOf(m)
	for n > backLeast && 4*int64(n)*backFeatures(m) > backBytes {
		n /= 2
	}
	return n
}

// backFeatures is how many features of a token there are at a time on its way forth through a layer and back.
func backFeatures(m *model.Model) (most int64) {
	for i := range m.Layers() {
		most = max(most, 6*int64(m.Dim)+2*m.Computed(i))
	}
	return most
}

// gradientTokens is how many of the calibration tokens gradients are taken of.
func gradientTokens(tokens int) int {
	return max(min(tokens, gradientLeast), min(int(gradientShare*float64(tokens)), gradientEnough), tokens/2)
}

// gradientSequences returns the sequences that gradients are taken of: all, or of each stretch of them one, chosen at random, so that texts
// which take turns in the set have their share.
func gradientSequences(set *calib.Set) [][]int32 {
	all := len(set.Sequences)
	n := all
	if tokens := gradientTokens(set.Tokens()); tokens < set.Tokens() {
		n = (tokens + set.SeqLen - 1) / set.SeqLen
	}
	rng := rand.New(rand.NewPCG(gradientSeed, 0))
	seqs := make([][]int32, n)
	for i := range seqs {
		lo, hi := i*all/n, (i+1)*all/n
		seqs[i] = set.Sequences[lo+rng.IntN(hi-lo)]
	}
	return seqs
}

// backwardPass is the way of calibration text, or of some batches of it, through the original model and back.
type backwardPass struct {
	*task
	*outputs
	st     *model.State
	seqs   [][]int32
	of     batching // of all sequences that give gradients
	own    span     // the batches, of those, that seqs are
	budget int64    // of sums that are made together, in bytes; one linear's are always
	room   *stateBudget
	// inputs are the hidden states before each layer, in bfloat16, then, last, those after all layers, which the gradients replace.
	inputs []*states.Store
}

// newBackwardPass returns the pass of sequences that are some batches of all.
func newBackwardPass(t *task, o *outputs, seqs [][]int32, of batching, own span) *backwardPass {
	return &backwardPass{task: t, outputs: o, st: t.m.NewState(), seqs: seqs, of: of, own: own, budget: outputBudget,
		room: newStateBudget(t.opt.Memory)}
}

func (b *backwardPass) close() error {
	var err error
	for i := range b.inputs {
		err = errors.Join(err, b.drop(i))
	}
	return err
}

// rest gives back the memory that batches took on their way, before the sums are judged and others made: as place.rest.
func (b *backwardPass) rest() {
	b.st.Rest()
	gemm.Release()
	debug.FreeOSMemory()
}

// drop lets go of the states before layer i, which nobody needs any more.
func (b *backwardPass) drop(i int) error {
	s := b.inputs[i]
	if s == nil {
		return nil
	}
	b.inputs[i] = nil
	if !s.Spilled() {
		b.room.left += s.Bytes()
	}
	return s.Close()
}

// forward fills b.inputs, and replaces the last by the gradients there.
func (b *backwardPass) forward() error {
	if err := b.embed(); err != nil {
		return err
	}
	for i := range b.m.Layers() {
		b.opt.Progress.Item(fmt.Sprintf("predictions: layer %d/%d", i+1, b.m.Layers()))
		l, err := b.m.LoadLayer(i)
		if err != nil {
			return err
		}
		err = b.forth(l)
		l.Release()
		if err != nil {
			return err
		}
		b.forthDone()
	}
	b.rest()
	h, err := b.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	return b.head(h)
}

// add makes room for the hidden states before the next layer.
func (b *backwardPass) add() error {
	i, seqLen := len(b.inputs), b.opt.Calib.SeqLen
	// A layer begins by rounding what it makes of its input, so bfloat16 does. Gradients take the place of the last states.
	newStore, bytes := states.NewBF16, stateBytes(len(b.seqs)*seqLen, b.m.Width)/2
	if i == b.m.Layers() {
		newStore, bytes = states.New, 2*bytes
	}
	limit := int64(1)
	if b.room.fits(bytes) {
		limit = 0
	}
	x, err := newStore(b.of.part(b.own.first, b.own.last), seqLen, b.m.Width, limit, b.tempDir)
	if err == nil {
		b.inputs = append(b.inputs, x)
	}
	return err
}

// embed makes the hidden states before the first layer.
func (b *backwardPass) embed() error {
	seqLen := b.opt.Calib.SeqLen
	if err := b.m.CheckLength(seqLen); err != nil {
		return err
	}
	if err := b.add(); err != nil {
		return err
	}
	return embed(b.m, b.inputs[0], b.seqs, seqLen, nil)
}

// forth makes the hidden states behind a layer.
func (b *backwardPass) forth(l *model.Layer) error {
	if err := b.add(); err != nil {
		return err
	}
	return b.each(l.Index, func(_ int, x, y *tensor.Matrix) error {
		copy(y.Data, x.Data)
		return l.Forward(b.ctx, b.st, y, b.opt.Calib.SeqLen)
	})
}

// each calls f with every batch of the hidden states before layer i and of what comes after it, which f changes.
func (b *backwardPass) each(i int, f func(batch int, x, y *tensor.Matrix) error) error {
	from, to := b.inputs[i], b.inputs[len(b.inputs)-1]
	defer from.Rest() // there is a store for every layer
	defer to.Rest()
	for batch := range from.Batches() {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		x, err := from.Get(batch)
		if err != nil {
			return err
		}
		y, err := to.Get(batch)
		if err != nil {
			return err
		}
		if err := f(batch, x, y); err != nil {
			return err
		}
		if err := to.Put(batch, y); err != nil {
			return err
		}
	}
	return nil
}

// gradientSeed is that of the sequences and signs. Each token has a generator of its own, so that signs do not depend on how
// tokens are divided among processors.
const gradientSeed = 0x6f757470757473

// head replaces the hidden states after all layers by the gradients there.
func (b *backwardPass) head(h *model.Head) error {
	st := b.m.NewState() // logits are many: their memory goes with it
	return b.each(len(b.inputs)-1, func(batch int, x, y *tensor.Matrix) error {
		seq, _ := b.of.sequences(b.own.first + batch)
		b.headBatch(h, st, seq*b.opt.Calib.SeqLen, y, x.Clone())
		return nil
	})
}

// headBatch sets dx to the gradient at x, the hidden states after all layers, the first of which is of that token.
func (b *backwardPass) headBatch(h *model.Head, st *model.State, first int, dx, x *tensor.Matrix) {
	h.Backward(st, dx, x, func(t int, a, p []float32) {
		sign(a, p, rand.NewPCG(gradientSeed, uint64(first+t)))
	})
}

// sign sets a to √p with random signs. The gradient of Σ a_j·log p_j at the logits, a − p·Σ a_j, has the mean 0 and the
// covariance diag(p) − ppᵀ, the Fisher information, as that of log p(y) has if y is drawn from p. But its squares vary less: a
// token that is all but certain tells each time what it might be instead, and not at length once in a hundred times. On
// gopher-4m in Q3_K signs on half of the tokens leave a KL divergence of 0.0147, labels 0.0151, and labels on all 0.0146.
func sign(a, p []float32, rng *rand.PCG) {
	var bits [64]uint64
	for lo := 0; lo < len(p); lo += 64 * len(bits) {
		hi := min(lo+64*len(bits), len(p))
		for k := range (hi - lo + 63) / 64 {
			bits[k] = rng.Uint64()
		}
		elementwise.SignedRoots(a[lo:hi], p[lo:hi], bits[:])
	}
}

// layer stores the Hessians of the outputs of a layer's linears, and takes the gradients back through it.
func (b *backwardPass) layer(i int) error {
	l, err := b.m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	groups := b.groups(l)
	for k, linears := range groups {
		sums, last := b.sums(linears), k == len(groups)-1
		_, middle := b.of.half(0)
		opaque, err := b.observe(i, l, sums, last, func(batch int) error {
			if batch != middle {
				return nil
			}
			return b.setAside(linears, sums)
		})
		if err == nil && b.of.halves() > 1 {
			err = b.addAside(linears, sums)
		}
		if err != nil {
			return err
		}
		if !last {
			opaque = nil
		}
		b.rest()
		l.Rest()
		if err := b.finishLayer(i, linears, sums, opaque); err != nil {
			return err
		}
	}
	return b.drop(i)
}

// setAside writes the sums over the first half of the batches behind the Hessians that are in the file, and empties them: a second set in
// memory would be as much as all else that the pass takes.
func (b *backwardPass) setAside(linears []*model.Linear, sums map[string]*outputSums) error {
	w := bufio.NewWriterSize(io.NewOffsetWriter(b.file, b.end), 1<<18)
	err := saveSums(w, linears, sums, nil, nil)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return fmt.Errorf("output Hessians: sums of half of the text: %w", err)
	}
	for _, s := range sums {
		s.reset()
	}
	return nil
}

// addAside adds what setAside has written to the sums over the second half, which are the same as the second's added to the first's.
func (b *backwardPass) addAside(linears []*model.Linear, sums map[string]*outputSums) error {
	if _, err := addSums(io.NewSectionReader(b.file, b.end, math.MaxInt64-b.end), linears, sums); err != nil {
		return fmt.Errorf("output Hessians: sums of half of the text: %w", err)
	}
	return nil
}

// finishLayer stores the Hessians of linears of layer i, and notes its branches without a derivative.
func (b *backwardPass) finishLayer(i int, linears []*model.Linear, sums map[string]*outputSums, opaque []string) error {
	b.noteOpaque(i, opaque)
	for _, lin := range linears {
		s := sums[lin.ID()]
		if s.empty() {
			continue
		}
		if err := b.finish(lin, s); err != nil {
			return fmt.Errorf("%s: %w", lin.ID(), err)
		}
	}
	return nil
}

// noteOpaque notes branches of layer i without a derivative.
func (o *outputs) noteOpaque(i int, branches []string) {
	for _, name := range branches {
		o.rep.Opaque = append(o.rep.Opaque, ggml.LayerName(i)+"."+name)
	}
}

// observe adds to the sums the gradients at the outputs of layer i's linears. last: the gradients before the layer replace those
// after it. Before, if not nil, is called before each batch of all. It returns the branches without a derivative.
func (b *backwardPass) observe(i int, l *model.Layer, sums map[string]*outputSums, last bool, before func(batch int) error) ([]string, error) {
	d := &model.Differential{}
	switch {
	case !last: // of the experts that others' sums are made of, whose weights may have to be decoded, nothing is computed
		d.Only = func(lin *model.Linear) bool { return sums[lin.ID()] != nil }
	case i == 0: // nobody wants the gradient at the embeddings
		d.Only = func(*model.Linear) bool { return true }
	}
	err := b.each(i, func(batch int, x, y *tensor.Matrix) error {
		if before != nil {
			if err := before(b.own.first + batch); err != nil {
				return err
			}
		}
		d.See = b.see(sums, b.of.heldFrom(b.own.first+batch))
		if !last { // y is what the next group begins from, too
			y = y.Clone()
		}
		return l.Backward(b.ctx, b.st, x, y, b.opt.Calib.SeqLen, d)
	})
	return d.Opaque, err
}

// see returns what adds a batch's gradients to the sums; its sequences from held on judge.
func (b *backwardPass) see(sums map[string]*outputSums, held int) func(lin *model.Linear, dy *tensor.Matrix, tokens []int) error {
	seqLen := b.opt.Calib.SeqLen
	return func(lin *model.Linear, dy *tensor.Matrix, tokens []int) error {
		s := sums[lin.ID()]
		if s == nil {
			return nil
		}
		from := dy.Rows // the first of dy's rows that is of such a sequence
		switch {
		case b.plan.Recipe.OutputHessian != OutputHessianAuto:
		case tokens == nil:
			from = held * seqLen
		default:
			from, _ = slices.BinarySearch(tokens, held*seqLen)
		}
		s.observe(dy.View(0, from, 0, dy.Cols), false)
		s.observe(dy.View(from, dy.Rows, 0, dy.Cols), true)
		return nil
	}
}
