package pipeline

import (
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// Needs estimates what a run takes, in bytes.
type Needs struct {
	// Memory is in use at the run's peak, mapped pages of the checkpoint aside: Linux's RssAnon, less what the garbage collector has not
	// come to.
	Memory int64
	// Mapped is how much of the checkpoint is in memory at that time, at most, if files are mapped: a layer, or a tensor without a model and
	// where layers are so large that their pages rest meanwhile.
	Mapped int64
	Disk   int64 // the output, and the hidden states that the memory budget does not hold, or sums that wait
	Work   int64 // in Options.Work, at most, beside an output that is made there
	// Fetched is how much more of the disk is in use at a time, at most, for weights that come and go. Needs leaves it to PassingDisk.
	Fetched int64
}

// Needs estimates a run. With a model it is calibrated on so many tokens in sequences of seqLen, and holds the hidden states, as far as the
// budget (0: no limit) keeps them in memory, what a stage of the forward pass computes from a batch of them, and what
// the largest site, or as many experts as are taken together, needs. With nil it is not calibrated and holds a piece of a
// tensor.
func (p *Plan) Needs(m *model.Model, tokens, seqLen int, budget int64) (needs Needs) {
	needs = Needs{Memory: p.writerNeeds(), Mapped: p.mapped(m), Disk: p.Size()}
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
	// The largest batch: the text is longer than k of these if there are more than k batches.
	batch := seqLen * textBatches(m, (tokens+seqLen-1)/seqLen, seqLen).largest()
	var states, buffers, spilled int64 // buffers are of a batch of what is spilled
	left := newStateBudget(budget)
	for _, dim := range []int{m.Width, m.Carried(), m.Width}[:1+streams] { // in the order of layers
		if bytes := stateBytes(tokens, dim); left.fits(bytes) {
			states += bytes
		} else {
			spilled += bytes
			buffers += stateBytes(batch, dim)
		}
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
		sites = max(sites, p.layerNeeds(m, i, streams, tokens, batch, buffers)+held+fetched)
	}
	if t := p.Lookup(outputName); t != nil && t.Type.Grid != nil { // quantized a part at a time
		rows := min(t.Rows(), max(1, batchWeights/m.Dim))
		sums := 4 * streams * int64(m.Dim) * int64(m.Dim)
		apart := sums // of a shard
		if bundled(m.Dim) && tokens > shardBundles*batch {
			apart += sums
		}
		sites = max(sites, buffers+sums+max(apart, p.Recipe.Method.Memory(rows, m.Dim)))
	}
	needs.Work = (&task{plan: p, m: m}).workBytes(tokens, seqLen)
	peak := states + sites
	if p.Recipe.wantsOutputs() {
		g := p.gradientNeeds(m, tokens, seqLen, budget)
		peak = max(peak, g.memory+copied)
		spilled = max(spilled+g.sums, g.disk)
	}
	needs.Memory += peak + packedNeeds(m, batch)
	needs.Disk += spilled + p.waiting(m, streams, tokens, batch)
	if p.Assignment != nil {
		needs.Memory = max(needs.Memory, p.Assignment.memory(m, budget))
	}
	return needs
}

// waiting is the size of the most statistics of which a half waits in files until the other is made: those of a stage that all tokens pass, and
// of all its experts together.
func (p *Plan) waiting(m *model.Model, streams int64, tokens, batch int) (most int64) {
	if tokens <= batch {
		return 0
	}
	for i := range m.Layers() {
		for _, s := range stagesOf(m.Shape(i)) {
			var stage int64
			if s.mixes() && halved(s.In) {
				stage = 2 * int64(s.In) * int64(s.In)
			}
			for _, site := range s.sites {
				if !halved(site.In) || site.Expert >= 0 && !site.Head {
					continue
				}
				outs := 0
				for _, out := range site.Out {
					outs += out
				}
				n := int64(site.In)
				stage += quant.StatsMemory(site.In, outs, streams > 1, site.Adds) - 2*n*n // of H the lower triangle
			}
			most = max(most, stage)
		}
	}
	if t := p.Lookup(outputName); t != nil && t.Type.Grid != nil && halved(m.Dim) {
		n := int64(m.Dim)
		most = max(most, quant.StatsMemory(m.Dim, 0, streams > 1, false)-2*n*n)
	}
	return most
}

// restsWhole says whether a layer's pages rest before most is in use, while rows are rounded or sums made, so that they are those of a tensor
// at most.
func restsWhole(m *model.Model) bool {
	for i := range m.Layers() {
		for _, s := range m.Shape(i) {
			if s.Expert >= 0 || !rests(m, s.In) {
				return false
			}
		}
	}
	return true
}

// mapped is the size in the checkpoint of the largest layer or tensor of another kind, of a layer's largest tensor where its pages rest, or
// of the largest tensor without a model.
func (p *Plan) mapped(m *model.Model) (most int64) {
	rest := m != nil && restsWhole(m)
	of := map[int]int64{} // by layer
	for i := range p.Tensors {
		t := &p.Tensors[i]
		bytes := int64(t.Rows()) * int64(t.From.RowBytes(t.Cols()))
		switch layer := ggml.ParseName(t.Name).Layer; {
		case rest && layer < 0:
			continue
		case !rest && m != nil && layer >= 0:
			of[layer] += bytes
			bytes = of[layer]
		}
		most = max(most, bytes)
	}
	return most
}

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

// writerNeeds is the memory for rows on their way to the disk, which the writer keeps for the next ones.
func (p *Plan) writerNeeds() int64 {
	var largest int
	for i := range p.Tensors {
		t := &p.Tensors[i]
		largest = max(largest, min(t.Rows(), batchRows(t))*t.Type.RowBytes(t.Cols()))
	}
	return (1 + pendingWrites) * int64(largest)
}

// packedNeeds is the memory for what products pack: of one factor as much as gemm packs at a time or a batch has, and blocks of the
// other on each processor.
func packedNeeds(m *model.Model, batch int) int64 {
	const most, block = 16 << 20, 2 << 20
	return min(most, 4*int64(batch)*int64(m.Widest())) + block*int64(kernels.Processors())
}
