package pipeline

import (
	"runtime"
	"slices"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// Needs estimates what a run takes, in bytes.
type Needs struct {
	Memory int64 // at its peak, mapped pages of the checkpoint aside: what Linux calls RssAnon
	Disk   int64 // the output, and the hidden states that the memory budget does not hold
	Work   int64 // in Options.Work, at most
}

// Needs estimates a run. With a model it is calibrated on so many tokens in sequences of seqLen, and holds the hidden states, as far as the
// budget (0: no limit) keeps them in memory, what a stage of the forward pass computes from a batch of them, and what
// the largest site, or as many experts as are taken together, needs. With nil it is not calibrated and holds a piece of a
// tensor.
func (p *Plan) Needs(m *model.Model, tokens, seqLen int, budget int64) (needs Needs) {
	var piece int64 // in weights
	for i := range p.Tensors {
		piece = max(piece, min(int64(p.Tensors[i].Elements()), batchWeights))
	}
	needs = Needs{Memory: piece * pieceBytes, Disk: p.Size()}
	if p.form != nil {
		defer func() { needs.Memory += p.form.Memory() }()
	}
	if m == nil {
		return needs
	}
	streams := int64(1)
	if p.Recipe.original() {
		streams = 2 // the quantized model's and the original's
	}
	batch := min(tokens, batchOf(m))
	var states, spilled int64
	left := newStateBudget(budget)
	for _, dim := range []int{m.Width, m.Carried(), m.Width}[:1+streams] { // in the order of layers
		bytes := stateBytes(tokens, dim)
		if !left.fits(bytes) {
			spilled += bytes
			bytes = stateBytes(batch, dim)
		}
		states += bytes
	}
	if bytes := hiddenBytes(tokens, seqLen, m.Hidden()); left.fits(bytes) {
		states += bytes
	} else {
		spilled += bytes
	}
	var sites, copied int64
	for i := range m.Layers() {
		held, fetched := m.Copied(i)
		copied = max(copied, held+fetched)
		sites = max(sites, p.layerNeeds(m, i, streams, tokens, batch)+p.rowsNeeds(m.Shape(i))+held+fetched)
	}
	if t := p.Lookup(outputName); t != nil && t.Type.Grid != nil { // quantized a part at a time
		rows := min(t.Rows(), max(1, batchWeights/m.Dim))
		sums := 4 * streams * int64(m.Dim) * int64(m.Dim)
		sites = max(sites, sums+max(sums, p.Recipe.Method.Memory(rows, m.Dim)))
	}
	needs.Work = (&task{plan: p, m: m}).workBytes(tokens)
	needs.Memory = max(needs.Memory, states+sites)
	if p.Recipe.wantsOutputs() {
		g := p.gradientNeeds(m, tokens, budget)
		needs.Memory = max(needs.Memory, g.memory+copied)
		spilled = max(spilled+g.sums, g.disk)
	}
	needs.Memory += needs.Memory/garbageShare + programBytes
	needs.Disk += spilled
	if p.Assignment != nil {
		needs.Memory = max(needs.Memory, p.Assignment.memory(m, budget))
	}
	return needs
}

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
func (p *Plan) gradientNeeds(m *model.Model, tokens int, budget int64) gradientNeeds {
	tokens = gradientTokens(tokens)
	batch := int64(min(tokens, backTokens(m)))
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
	there := g.disk
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
		if p.Recipe.OutputHessian == OutputHessianAuto {
			layer = min(2*layer, max(outputBudget, 2*largest)) + 3*largest // of the gradients that judge; gptq.OutputGain
		} else {
			layer = min(layer, max(outputBudget, largest))
		}
		sums, judging = max(sums, layer), max(judging, 3*largest)
		g.sums += kept
		g.disk = max(g.disk, there+g.sums)
		there -= spilled[i]
	}
	stage := backFeatures(m)
	// Logits come and go before the first sums are there.
	logits := 4 * min(int64(m.Vocab)*batch, headLogits)
	g.memory = states + max(sums+4*stage*batch, logits+4*int64(m.Dim)*2*batch)
	if n, held := p.tokensTogether(m, tokens); n > 0 {
		logits := 4 * min(int64(m.Vocab)*int64(n), headLogits)
		g.memory = max(g.memory, held+judging+logits+2*stateBytes(n, m.Width)+4*stage*int64(n))
	}
	return g
}

// headLogits bounds the logits that exist at a time on the way back through the head: model.Head.Backward.
const headLogits = 1 << 25

// rowsNeeds is the memory for the quantized rows of a layer's linears, which later stages are computed with.
func (p *Plan) rowsNeeds(shapes []model.SiteShape) int64 {
	var bytes int64
	for _, s := range shapes {
		for j, name := range s.Names {
			if t := p.Lookup(name); t != nil {
				bytes += int64(s.Out[j]) * int64(t.Type.RowBytes(s.In))
			}
		}
	}
	return bytes
}

// layerNeeds is the memory for a layer: at each of its stages what streams compute on the way there and the sums over its sites' inputs, then
// these sums and the method's work.
func (p *Plan) layerNeeds(m *model.Model, layer int, streams int64, tokens, batch int) int64 {
	method, shapes := p.Recipe.Method, m.Shape(layer)
	var most, hessians, largest, weights int64
	experts := map[string]int64{} // sums of a stage's experts
	for k, s := range shapes {
		n, out := int64(s.In), 0
		for _, o := range s.Out {
			out += o
		}
		sums := quant.StatsMemory(s.In, out, streams > 1, s.Adds)
		computed := streams*int64(m.Dim+m.Widest()) + m.Computed(layer)
		if s.Expert >= 0 {
			// What streams compute, as many as are taken together, the sums of all experts, and beside them either those of a shard or one expert's work.
			experts[s.Name] += sums
			sums = min(experts[s.Name], sums*max(1, statsBytes/expertBytes(s.In))) + 4*n*n
			most = max(most, 4*computed*int64(batch)+sums+max(4*n*n, method.Memory(out, s.In)))
			continue
		}
		hessians += 4 * n * n
		largest = max(largest, 4*n*n)
		weights += 4 * n * int64(out)
		observing := sums
		if tokens > Shards*batch {
			observing *= 2 // a shard's beside those of all
		} else { // inputs in pairs, and a part of the rows of a sum: gemm.AddSyrkLower
			with := int64(0)
			switch {
			case streams > 1 && s.Adds:
				with = int64(out)
			case streams > 1:
				with = n
			}
			observing += 2*int64(batch)*(n+with) + 4*min(n, partRows)*n
		}
		if len(shapes) == shapes[len(shapes)-1].Stage+1 {
			computed = computedBefore(m, shapes, k, streams > 1)
		}
		most = max(most, observing+4*computed*int64(batch), sums+p.roundingNeeds(m, &s))
	}
	const trial = 3 // a scaled Hessian and its factor, and the next Hessian
	switch {
	case method.Needs().Trials:
		return max(most, hessians+trial*largest) + weights
	case len(p.Recipe.transforms()) > 0: // the layer is decoded as a whole
		return most + weights
	}
	return most
}

// partRows is about how many rows of sums, or of weights on one processor, are worked on at a time.
const partRows = 1024

// computedBefore is how many features of a token both streams have computed when a site's inputs are observed: see passage.observe,
// stream.visit and stream.step.
func computedBefore(m *model.Model, shapes []model.SiteShape, k int, original bool) int64 {
	dim := int64(m.Dim)
	// way is what is computed from stage from on to the input of stage k.
	way := func(from int) int64 {
		features := dim // the norm's
		for j := from; j < k; j++ {
			if !shapes[j].Adds {
				for _, out := range shapes[j].Out {
					features += int64(out)
				}
			}
			if shapes[j+1].Carries {
				features += int64(shapes[j+1].In)
			}
		}
		return features
	}
	at, began := 0, 0 // where the streams stand
	for j := range k {
		if j > 0 && (shapes[j].Begins || shapes[j].Carries) {
			at = j
		}
		if shapes[j].Begins {
			began = j
		}
	}
	if shapes[k].Begins {
		began = k // the original has been applied up to here
	}
	features := way(at)
	if original {
		features += way(began)
		if shapes[k].Adds { // what the sum lacks
			features += dim
		} else { // what inputs do
			features += int64(shapes[k].In)
		}
		if k+1 < len(shapes) && !shapes[k+1].Begins {
			features += int64(m.Width) // a copy of x, as the stream does not go on
		}
	}
	return features
}

// roundingNeeds is the memory for the method's work on a site of dense linears.
func (p *Plan) roundingNeeds(m *model.Model, s *model.SiteShape) int64 {
	rows, outputs := 0, int64(0)
	var parts []int
	for _, out := range s.Out {
		rows += out
		var blocks []int
		if p.Recipe.wantsOutputs() {
			blocks = outputBlocks(out, m.Dim, false)
		}
		for _, b := range blocks {
			outputs += 4 * int64(b) * int64(b)
		}
		parts = append(parts, unitRows(out, blocks)...)
	}
	if p.Recipe.Divisible() == nil { // parts of all linears, as many at a time as there are processors
		slices.Sort(parts)
		slices.Reverse(parts)
		rows = 0
		for _, n := range parts[:min(len(parts), max(len(s.Out), runtime.GOMAXPROCS(0)))] {
			rows += n
			if outputs > 0 {
				outputs += 6 * int64(n) * int64(n) // a factor, and half of one
			}
		}
	}
	return outputs + p.Recipe.Method.Memory(rows, s.In)
}

// programBytes is what a run takes besides: what products pack, half of it, and the program.
const programBytes = 32 << 20

// garbageShare: beside what is in use there is such a part of it that is not collected yet.
const garbageShare = 10

const pieceBytes = 4 * (1 + pendingWrites) // a weight stored in four bytes, once being made and then on its way to the disk
