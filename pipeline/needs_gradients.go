package pipeline

import (
	"fmt"

	"github.com/llmq/llmq/model"
)

// gradientNeeds are what the pass of gradients takes, in bytes.
type gradientNeeds struct {
	memory int64 // at its peak
	disk   int64 // at its peak: hidden states, and the sums so far
	sums   int64 // what stays on the disk until the linears are quantized
}

// gradientNeeds estimates the pass of gradients: the hidden states before every layer and the gradients, of which the budget keeps
// what fits in memory, the sums of one layer that are made together with the factors that judge one of them, and what a batch computes on its way forth
// and back; and on the disk the states that do not fit, which go as the sums of their layers come. Where layers may be taken together,
// which sequences longer than a batch forbid, there is room for either.
func (p *Plan) gradientNeeds(m *model.Model, tokens, seqLen int, budget int64) gradientNeeds {
	tokens = gradientTokens(tokens)
	of := evenly((tokens+seqLen-1)/seqLen, backTokens(m), seqLen)
	batch := int64(seqLen * of.largest())
	left := newStateBudget(budget)
	var g gradientNeeds
	spilled := make([]int64, m.Layers()+1)        // of the states before each layer, and of the gradients
	states := 2 * stateBytes(int(batch), m.Width) // what is read of two stores at a time
	for i := range spilled {
		bytes := stateBytes(tokens, m.Width)
		if i < m.Layers() {
			bytes /= 2 // bfloat16
		}
		if left.fits(bytes) {
			states += bytes
			continue
		}
		spilled[i] = bytes
		g.disk += bytes
	}
	var sums, judging int64
	there, file := g.disk, int64(0) // the file of the sums never gets shorter
	for i := m.Layers() - 1; i >= 0; i-- {
		var layer, kept, largest int64
		for _, s := range m.Shape(i) {
			for _, out := range s.Out {
				for _, n := range outputBlocks(out, m.Dim, s.Expert >= 0 && !s.Head) {
					layer += 4 * int64(n) * int64(n)
					kept += 4 * int64(n) * int64(n+1) / 2
					largest = max(largest, 4*int64(n)*int64(n))
				}
			}
		}
		copies := int64(1)
		if p.Recipe.OutputHessian == OutputHessianAuto {
			copies = 2 // of the gradients that judge
		}
		diagonals := copies * (2*kept - layer) / 2
		all := copies * layer
		layer = min(all, max(outputBudget, copies*largest))
		sums, judging = max(sums, layer), max(judging, largest)
		if of.halves() > 1 { // the sums over the first half wait behind those that are done: setAside
			done := g.sums
			if layer < all { // other groups of the layer's linears
				done += kept
			}
			file = max(file, done+layer/2+diagonals)
		}
		g.sums += kept
		file = max(file, g.sums)
		g.disk = max(g.disk, there+file)
		there -= spilled[i]
	}
	// Scratch memory goes before the sums are judged, and logits before the first sums are there.
	forth, back, weights := p.backHeld(m)
	const finishing = 3
	g.memory = states + max(forth*batch, sums+back*batch+weights, sums+finishing*judging, p.headNeeds(m, batch))
	if n, held := p.tokensTogether(m, tokens); n > 0 {
		more := int64(p.side(m, tokens, n) - 1) // batches that go beside the one that held counts
		each := p.travellerBytes(m, n)
		g.memory = max(g.memory, held+more*each+max(each-keptBytes(m)*int64(n), 2*stateBytes(n, m.Width)+finishing*judging))
	}
	return g
}

// headNeeds is the memory for the way of a batch through the head and back: hidden states before and behind the norm with their gradients,
// logits, and rows of the head that are decoded.
func (p *Plan) headNeeds(m *model.Model, batch int64) int64 {
	const decoded = 4096 // rows: model.Head.Backward
	return 4 * (min(int64(m.Vocab)*batch, max(headLogits, 16*int64(m.Vocab))) + int64(m.Dim)*(3*batch+min(decoded, int64(m.Vocab))))
}

// backHeld is the scratch memory of the way forth through a layer, and of the way forth and back again, in bytes for a token, and of the
// linear whose weights are decoded for that: see model.Layer.Backward.
func (p *Plan) backHeld(m *model.Model) (forth, back, weights int64) {
	dim := int64(m.Dim)
	for i := range m.Layers() {
		stages := stagesOf(m.Shape(i))
		there, again := held{}, held{"x": int64(m.Width), "normed": dim, "gradient": dim}
		spans := 0
		for k := range stages {
			if stages[k].Begins {
				spans++
			}
		}
		span := 0
		for k := range stages {
			s := &stages[k]
			if s.Begins {
				span++
			}
			there.enters(m, stages, k)
			there.applies(m, stages, k, false)
			own := held{}
			own.enters(m, stages, k)
			own.applies(m, stages, k, false)
			if span == spans { // computed on the way back alone
				delete(own, "norm")
			}
			for name, n := range own { // of each span its own
				again.hold(fmt.Sprint(span, name), n)
			}
			if s.Begins && span > 1 {
				again.hold(fmt.Sprint(span, "input"), dim)
			}
			switch {
			case s.mixes():
				again.hold("of an expert", s.reaching(m, s.expertOuts+int64(s.In)))
				again.hold("behind", dim)
			case s.Adds: // the gradient at the input of the branch's last linear
				again.hold("result", int64(s.In))
			case k+1 == len(stages) || stages[k+1].Begins: // a norm or a factor comes behind it
				again.hold("result", int64(s.In))
				again.hold("behind", 2*dim)
			case span < spans: // gradients at queries, keys and values
				again.hold(fmt.Sprint(span, "gradients"), s.outs)
			}
			for _, site := range s.sites {
				for _, out := range site.Out {
					weights = max(weights, 4*int64(site.In)*int64(out))
				}
			}
		}
		forth, back = max(forth, 4*there.features()), max(back, 4*again.features())
	}
	return forth, back, weights
}

// headLogits bounds the logits that exist at a time on the way back through the head: model.Head.Backward.
const headLogits = 1 << 25
