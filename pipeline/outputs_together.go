package pipeline

import (
	"fmt"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/model"
)

// A small model's layers are all held at once: a batch then goes through them and back before the next one comes, and the way back
// takes what the way forth has computed. Layer by layer every layer would be computed twice, and the hidden states before each
// of them wait in memory or on disk. Both ways sum the same gradients, bit for bit, in batches of the same size.

// togetherBytes bounds what is held of layers that are taken together. The hidden states that need not wait then bound it, too.
const togetherBytes = 256 << 20

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
	var held, kept int64 // for all tokens, and for each
	for i := range m.Layers() {
		for _, s := range m.Shape(i) {
			if s.Expert >= 0 {
				return 0, 0
			}
			for _, out := range s.Out {
				held += 4*int64(s.In)*int64(out) + copies*outputBytes(out, m.Dim, false)
			}
			kept += 4 * int64(s.In)
		}
		kept += 4 * (m.Computed(i) + 2*int64(m.Dim))
	}
	waiting := stateBytes(tokens, m.Width)/2*int64(m.Layers()) + stateBytes(tokens, m.Width)
	for batch = min(batchOf(m), tokensAtOnce); batch >= leastTokens; batch /= 2 {
		if bytes = held + kept*int64(batch); bytes <= min(waiting, togetherBytes) {
			return batch, bytes
		}
	}
	return 0, 0
}

// together stores the Hessians of all layers' outputs, all of them a batch at a time.
func (b *backwardPass) together() error {
	seqLen := b.opt.Calib.SeqLen
	if err := b.m.CheckLength(seqLen); err != nil {
		return err
	}
	n := b.m.Layers()
	layers, forth, sums := make([]*model.Layer, n), make([]*model.State, n), make([]map[string]*outputSums, n)
	for i := range n {
		l, err := b.m.LoadLayer(i)
		if err != nil {
			return err
		}
		defer l.Release()
		if err := l.Decode(); err != nil {
			return err
		}
		layers[i], forth[i], sums[i] = l, b.m.NewState(), b.sums(b.linears(l))
	}
	h, err := b.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	d := make([]model.Differential, n)
	for batch := range b.of.batches() {
		lo, hi := b.of.sequences(batch)
		b.opt.Progress.Item(fmt.Sprintf("gradients: sequence %d/%d", lo+1, len(b.seqs)))
		x := b.st.Scratch("states", (hi-lo)*seqLen, b.m.Width)
		for i, seq := range b.seqs[lo:hi] {
			if err := b.m.Embed(x.View(i*seqLen, (i+1)*seqLen, 0, x.Cols), seq, seqLen, nil); err != nil {
				return err
			}
		}
		for i, l := range layers {
			states.Round(x)
			if err := l.Forth(b.ctx, forth[i], x, seqLen); err != nil {
				return fmt.Errorf("gradients: layer %d: %w", i, err)
			}
		}
		dx := b.st.Scratch("gradient", x.Rows, x.Cols)
		b.headBatch(h, b.st, lo*seqLen, dx, x)
		for i := n - 1; i >= 0; i-- {
			d[i].See = b.see(sums[i], b.of.heldFrom(batch))
			if i == 0 { // nobody wants the gradient at the embeddings
				d[i].Only = func(*model.Linear) bool { return true }
			}
			if err := layers[i].BackFrom(b.ctx, b.st, forth[i], dx, &d[i]); err != nil {
				return fmt.Errorf("gradients: layer %d: %w", i, err)
			}
		}
	}
	for i := n - 1; i >= 0; i-- {
		if err := b.finishLayer(i, b.linears(layers[i]), sums[i], d[i].Opaque); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
	}
	return nil
}
