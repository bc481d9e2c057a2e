package pipeline

import (
	"errors"
	"fmt"
	"sync"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// A small model's layers are all held at once: batches then go through them and back, several side by side, and the way back takes what
// the way forth has computed. Layer by layer every layer would be computed twice, and the hidden states before each
// of them wait in memory or on disk. Both ways sum the same gradients, bit for bit, if batches are the same.

// togetherBytes bounds what is held of layers that are taken together. The hidden states that need not wait then bound it, too.
const togetherBytes = 256 << 20

// sideBytes bounds what batches take that go beside another one.
const sideBytes = 192 << 20

// tokensAtOnce is the most tokens that are taken together. Of 1024 a processor's cache still has much of what one derivative leaves to the
// next: gopher-4m's gradients take 6% less processor time than with 2048 (five runs each, 5.98 to 8.9 and 6.36 to 9.2 seconds).
const tokensAtOnce = 1024

// tokensTogether is how many tokens, of all that give gradients, pass through all layers and back together, and the bytes that are held
// meanwhile; 0: layers are taken one by one. Where hidden states would be does not matter, so that the Hessians do not depend on it.
func (p *Plan) tokensTogether(m *model.Model, tokens int) (batch int, bytes int64) {
	if m.Width != m.Dim { // what is kept beside the residual stream changes on the way
		return 0, 0
	}
	copies := int64(1)
	if p.Recipe.OutputHessian == OutputHessianAuto {
		copies = 2 // of the gradients that judge
	}
	var held, sums int64 // for all tokens
	for i := range m.Layers() {
		for _, s := range m.Shape(i) {
			if s.Expert >= 0 {
				return 0, 0
			}
			for _, out := range s.Out {
				held += 4 * int64(s.In) * int64(out)
				sums += copies * outputBytes(out, m.Dim, false)
			}
		}
	}
	kept := keptBytes(m)
	waiting := stateBytes(tokens, m.Width)/2*int64(m.Layers()) + stateBytes(tokens, m.Width)
	for batch = min(batchOf(m), tokensAtOnce); batch >= leastTokens; batch /= 2 {
		bytes = held + sums + kept*int64(batch)
		if tokens > batch {
			bytes += sums // of the second half of the batches
		}
		if bytes <= min(waiting, togetherBytes) {
			return batch, bytes
		}
	}
	return 0, 0
}

// gradientBatch is the most tokens of a batch, of all that give gradients, in sequences of seqLen, and whether all layers are held together.
func (p *Plan) gradientBatch(m *model.Model, tokens, seqLen int) (batch int, together bool) {
	if batch, _ = p.tokensTogether(m, tokens); batch >= seqLen {
		return batch, true
	}
	return backTokens(m), false
}

// keptBytes is what a token that passes through all layers leaves for its way back.
func keptBytes(m *model.Model) int64 {
	var kept int64
	for i := range m.Layers() {
		for _, s := range m.Shape(i) {
			kept += 4 * int64(s.In)
		}
		kept += 4 * (m.Computed(i) + 2*int64(m.Dim))
	}
	return kept
}

// travellerBytes is what a batch of so many tokens that goes through all layers takes beside what these take themselves: what it leaves for
// its way back, its hidden states and gradients, and what a layer or the head computes of it.
func (p *Plan) travellerBytes(m *model.Model, n int) int64 {
	_, back, weights := p.backHeld(m)
	return keptBytes(m)*int64(n) + 2*stateBytes(n, m.Width) + max(back*int64(n)+weights, p.headNeeds(m, int64(n)))
}

// side is how many batches of so many tokens go through all layers side by side, on as many processors: as many as there are, and as take
// no more than sideBytes beside the first. Small products leave processors waiting for each other.
func (p *Plan) side(m *model.Model, tokens, batch int) int {
	most := min(kernels.Processors(), (tokens+batch-1)/batch)
	return max(1, min(most, 1+int(sideBytes/p.travellerBytes(m, batch))))
}

// sideBySide is how many batches go side by side of the tokens that give gradients, of so many, and how large they are; 1 where layers are
// taken one by one, or none are.
func (p *Plan) sideBySide(m *model.Model, tokens, seqLen int) (side, batch int) {
	if m == nil || !p.Recipe.wantsOutputs() {
		return 1, 0
	}
	tokens = gradientTokens(tokens)
	batch, together := p.gradientBatch(m, tokens, seqLen)
	if !together {
		return 1, batch
	}
	return p.side(m, tokens, batch), batch
}

// turns has batches add to the sums of a layer in order, whichever comes there first.
type turns struct {
	mu      sync.Mutex
	changed sync.Cond
	next    []int // of each layer, the batch that may add
	err     error
}

func newTurns(layers int) *turns {
	t := &turns{next: make([]int, layers)}
	t.changed.L = &t.mu
	return t
}

// wait returns when all batches before this one have passed the layer, or end's error.
func (t *turns) wait(layer, batch int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.err == nil && t.next[layer] != batch {
		t.changed.Wait()
	}
	return t.err
}

// pass says that the batch has passed the layer, when all before it have.
func (t *turns) pass(layer, batch int) error {
	if err := t.wait(layer, batch); err != nil {
		return err
	}
	t.mu.Lock()
	t.next[layer]++
	t.mu.Unlock()
	t.changed.Broadcast()
	return nil
}

// end has all who wait return an error: the first one counts.
func (t *turns) end(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.mu.Unlock()
	t.changed.Broadcast()
}

// failed is the error of end.
func (t *turns) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// errBatch is what others hear of a batch that has panicked.
var errBatch = errors.New("a batch that goes through the layers beside this one has panicked")

// traveller is what a batch has on its way through all layers and back: a state for each, and scratch memory.
type traveller struct {
	forth []*model.State
	st    *model.State
	d     []model.Differential
}

// together stores the Hessians of all layers' outputs, all of them a batch at a time, so many batches side by side.
func (b *backwardPass) together(side int) error {
	if err := b.m.CheckLength(b.opt.Calib.SeqLen); err != nil {
		return err
	}
	n := b.m.Layers()
	layers, sums := make([]*model.Layer, n), make([][]map[string]*outputSums, n)
	for i := range n {
		l, err := b.m.LoadLayer(i)
		if err != nil {
			return err
		}
		defer l.Release()
		if err := l.Decode(); err != nil {
			return err
		}
		layers[i] = l
		for range b.of.halves() {
			sums[i] = append(sums[i], b.sums(b.linears(l)))
		}
	}
	h, err := b.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	free, all := make(chan *traveller, side), make([]*traveller, side)
	for k := range all {
		all[k] = &traveller{st: b.m.NewState(), d: make([]model.Differential, n)}
		for range n {
			all[k].forth = append(all[k].forth, b.m.NewState())
		}
		free <- all[k]
	}
	order := newTurns(n)
	b.sideBySide(side, func(batch int) {
		if order.failed() != nil {
			return
		}
		w, err := <-free, errBatch
		defer func() {
			if err != nil {
				order.end(err)
			}
			free <- w
		}()
		err = b.travel(w, batch, layers, h, sums, order)
		b.gradientsDone(1 / float64(b.of.batches()))
	})
	if err := order.failed(); err != nil {
		return err
	}
	for i := n - 1; i >= 0; i-- {
		for _, half := range sums[i][1:] {
			for id, s := range half {
				sums[i][0][id].join(s)
			}
		}
		if err := b.finishLayer(i, b.linears(layers[i]), sums[i][0], all[0].d[i].Opaque); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
	}
	return nil
}

// sideBySide calls f for all batches, in order, so many at a time.
func (b *backwardPass) sideBySide(side int, f func(batch int)) {
	defer kernels.Divide(side)()
	kernels.Spread(b.of.batches(), side, f)
}

// travel takes a batch through all layers and back, and adds its gradients to its half's sums.
func (b *backwardPass) travel(w *traveller, batch int, layers []*model.Layer, h *model.Head, sums [][]map[string]*outputSums, order *turns) error {
	seqLen := b.opt.Calib.SeqLen
	lo, hi := b.of.sequences(batch)
	b.opt.Progress.Item(fmt.Sprintf("gradients: sequence %d/%d", lo+1, len(b.seqs)))
	x := w.st.Scratch("states", (hi-lo)*seqLen, b.m.Width)
	for i, seq := range b.seqs[lo:hi] {
		if err := b.m.Embed(x.View(i*seqLen, (i+1)*seqLen, 0, x.Cols), seq, seqLen, nil); err != nil {
			return err
		}
	}
	for i, l := range layers {
		states.Round(x)
		if err := l.Forth(b.ctx, w.forth[i], x, seqLen); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
	}
	dx := w.st.Scratch("gradient", x.Rows, x.Cols)
	b.headBatch(h, w.st, lo*seqLen, dx, x)
	for i := len(layers) - 1; i >= 0; i-- {
		d, see := &w.d[i], b.see(sums[i][b.of.halfOf(batch)], b.of.heldFrom(batch))
		d.See = func(lin *model.Linear, dy *tensor.Matrix, tokens []int) error {
			if err := order.wait(i, batch); err != nil {
				return err
			}
			return see(lin, dy, tokens)
		}
		if i == 0 { // nobody wants the gradient at the embeddings
			d.Only = func(*model.Linear) bool { return true }
		}
		if err := layers[i].BackFrom(b.ctx, w.st, w.forth[i], dx, d); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
		if err := order.pass(i, batch); err != nil {
			return err
		}
	}
	return nil
}
