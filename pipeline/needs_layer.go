package pipeline

import (
	"slices"

	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// What a layer takes is followed stage by stage, as passage.stage goes: statistics of the stage's inputs are made while both streams
// hold what they have computed on the way there, then its linears are rounded beside these statistics. Scratch memory has a name in
// model.State, is as large as it ever was and stays until a stage so wide that place.rest gives it back.

// stageShape is a stage of a layer, by the first of its sites; experts or heads are as many others.
type stageShape struct {
	model.SiteShape
	sites []model.SiteShape
	outs  int64 // of linears that all tokens pass
	// Of the largest expert, where there are some.
	expertOuts int64
}

func stagesOf(shapes []model.SiteShape) []stageShape {
	var stages []stageShape
	for _, s := range shapes {
		if s.Stage == len(stages) {
			stages = append(stages, stageShape{SiteShape: s})
		}
		st := &stages[s.Stage]
		st.sites = append(st.sites, s)
		var out int64
		for _, n := range s.Out {
			out += int64(n)
		}
		switch {
		case s.Head:
			st.outs += out + int64(s.In)
		case s.Expert >= 0:
			st.expertOuts = max(st.expertOuts, out)
		default:
			st.outs += out
		}
	}
	return stages
}

// mixes says whether the stage is one of a mixture of experts.
func (s *stageShape) mixes() bool { return s.Expert >= 0 && !s.Head }

// passing are the gates of MLPs, which two streams have in common: see model.NewStateBeside.
const passing = "gate"

// gated says whether the stage, the k-th, is a gated MLP's first.
func (s *stageShape) gated(stages []stageShape, k int) bool {
	return !s.mixes() && len(s.sites) == 1 && len(s.Out) == 2 && k+1 < len(stages) && stages[k+1].Adds && s.outs == 2*int64(stages[k+1].In)
}

// crowding is how many times as many tokens as on average reach the expert that most reach: 2.8 times with random weights.
const crowding = 3

// reaching is how many of a token's features, in the mean, an expert with the most tokens sees of n.
func (s *stageShape) reaching(m *model.Model, n int64) int64 {
	return min(n, crowding*n*int64(m.ExpertsUsed())/int64(len(s.sites)))
}

// held are features of a token that a stream holds, by the names of model.State's scratch memory or others as good.
type held map[string]int64

func (h held) hold(name string, features int64) { h[name] = max(h[name], features) }

func (h held) features() (sum int64) {
	for _, n := range h {
		sum += n
	}
	return sum
}

// enters holds the input of stage k, which the stream has come to.
func (h held) enters(m *model.Model, stages []stageShape, k int) {
	h.hold("norm", int64(m.Dim))
	if s := &stages[k]; s.mixes() {
		h.hold("router", int64(len(s.sites)))
		if s.Begins {
			h.hold("expert in", s.reaching(m, int64(s.In)))
		}
	}
}

// applies holds what stage k computes; added: its linears' results have room of their own before they are added to the residual stream.
func (h held) applies(m *model.Model, stages []stageShape, k int, added bool) {
	s := &stages[k]
	switch {
	case s.Adds && added:
		h.hold("added product", int64(m.Dim))
	case !s.Adds && s.gated(stages, k):
		h.hold(passing, s.outs/2)
		h.hold(s.Name, s.outs/2)
	case !s.Adds:
		h.hold(s.Name, s.outs)
	}
	next := k + 1
	if s.mixes() {
		h.hold(s.Name+" of an expert", s.reaching(m, s.expertOuts))
		if next < len(stages) && stages[next].mixes() {
			h.hold("experts", int64(m.ExpertsUsed()*stages[next].In))
		} else {
			h.hold("mixture", int64(m.Dim))
		}
	}
	if next < len(stages) && stages[next].Carries {
		h.hold("result of "+s.Name, int64(stages[next].In))
	}
}

// layerNeeds is the memory for a layer, beside the hidden states in memory; buffers are those of a batch of the others.
func (p *Plan) layerNeeds(m *model.Model, layer int, streams int64, tokens, batch int, buffers int64) int64 {
	stages := stagesOf(m.Shape(layer))
	if len(stages) == 0 {
		return 0
	}
	var weights int64 // that a transform has decoded, which stay
	if len(p.Recipe.transforms()) > 0 || p.Recipe.Method.Needs().Decides {
		for _, s := range m.Shape(layer) {
			if s.Expert < 0 {
				for _, out := range s.Out {
					weights += 4 * int64(s.In) * int64(out)
				}
			}
		}
	}
	var most, rows int64 // rows that are quantized, which what follows is computed with
	q, original := held{}, held{}
	if layer > 0 && !rests(m, stages[len(stages)-1].In) { // of the way out of the layer before
		q.hold("hidden", int64(m.Hidden()))
	}
	at, began := 0, 0 // where the streams stand
	for k := range stages {
		s := &stages[k]
		for j := at; j < k; j++ {
			q.applies(m, stages, j, weights > 0)
		}
		q.enters(m, stages, k)
		if s.Stands() {
			at = k
		} else {
			q.hold("copy", int64(m.Width))
		}
		if streams > 1 {
			for j := began; j < k; j++ {
				original.applies(m, stages, j, weights > 0)
			}
			original.enters(m, stages, k)
			switch {
			case s.Adds:
				original.hold("lacks", int64(m.Dim))
			case s.mixes():
				original.hold("lacks", s.reaching(m, int64(s.In)))
			default:
				original.hold("lacks", int64(s.In))
			}
			if k+1 == len(stages) || stages[k+1].Begins {
				original.applies(m, stages, k, weights > 0)
				began = k + 1
			} else {
				original.hold("copy", int64(m.Width))
			}
		}
		sums, apart := p.sumsNeeds(s, streams > 1, tokens, batch)
		scratch := buffers + 4*(q.features()+original.features()-min(q[passing], original[passing]))*int64(batch)
		most = max(most, rows+sums+apart+scratch)
		own := p.rowsNeeds(s.sites)
		if s.Expert >= 0 {
			// Experts are taken some at a time, so that others' rows are there when the last ones' inputs are seen.
			others := own * int64(len(s.sites)-p.expertsTogether(s)) / int64(len(s.sites))
			if streams > 1 && !p.correctable(m, s, tokens) {
				sums = sums / 4 * 3 // without what inputs lack, of half as many more experts
			}
			most = max(most, rows+others+sums+apart+scratch)
		}
		if rests(m, s.In) {
			clear(q)
			clear(original)
			scratch, apart = 0, 0
		}
		most = max(most, rows+own+sums+apart+scratch+p.roundingNeeds(m, s, streams > 1, tokens))
		rows += own
	}
	if weights > 0 {
		most = max(most, buffers+p.transformNeeds(m, stages, tokens, batch))
	}
	if p.Recipe.Method.Needs().Trials {
		const trial = 3 // a scaled Hessian and its factor, and the next Hessian
		var hessians, largest int64
		for _, s := range stages {
			if s.Expert < 0 {
				hessians += 4 * int64(s.In) * int64(s.In)
				largest = max(largest, 4*int64(s.In)*int64(s.In))
			}
		}
		most = max(most, hessians+trial*largest)
	}
	return most + weights
}

// sumsNeeds is the memory for the statistics of a stage's inputs, and for what is there beside them while they are made.
func (p *Plan) sumsNeeds(s *stageShape, original bool, tokens, batch int) (sums, apart int64) {
	n, outs := int64(s.In), 0
	for _, out := range s.sites[0].Out {
		outs += out
	}
	sums = quant.StatsMemory(s.In, outs, original, s.Adds)
	if s.Expert >= 0 { // those that are taken together, and all experts' sum
		apart = 4 * n * n
		if bundled(s.In) && tokens > shardBundles*batch {
			apart += 4 * n * n
		}
		return int64(p.expertsTogether(s))*sums + 4*n*n, apart
	}
	if tokens > Shards*batch { // a shard's beside those of all
		apart = sums
	}
	if bundled(s.In) && tokens > shardBundles*batch { // a bundle's
		apart += sums
	}
	if tokens > Shards*batch {
		return sums, apart
	}
	// Inputs in pairs, and a part of the rows of a sum: gemm.AddSyrkLower.
	with := int64(0)
	switch {
	case original && s.Adds:
		with = int64(outs)
	case original:
		with = n
	}
	return sums, apart + 2*int64(batch)*(n+with) + 4*min(n, partRows)*n
}

// expertsTogether is how many experts of a stage are observed at a time: see passage.experts.
func (p *Plan) expertsTogether(s *stageShape) int {
	return int(min(int64(len(s.sites)), max(1, statsBytes/expertBytes(s.In))))
}

// correctable says whether the tokens that reach a stage's linears, or in the mean one of its experts, are enough for a correction of weights.
func (p *Plan) correctable(m *model.Model, s *stageShape, tokens int) bool {
	if s.mixes() {
		tokens = tokens * m.ExpertsUsed() / len(s.sites)
		if more, ok := shrinkBy(tokens, s.In); ok {
			tokens += more
		}
	}
	return gptq.Correctable(s.In, tokens)
}

// partRows is about how many rows of sums, or of weights on one processor, are worked on at a time.
const partRows = 1024

// roundingNeeds is the memory for the method's work on a site of a stage: on parts of its linears, as many at a time as there are
// processors, or where a method scales channels on all of them.
func (p *Plan) roundingNeeds(m *model.Model, s *stageShape, original bool, tokens int) int64 {
	var parts []int
	var outputs int64 // blocks of H_O
	for _, out := range s.sites[0].Out {
		var blocks []int
		if p.Recipe.wantsOutputs() {
			blocks = outputBlocks(out, m.Dim, s.mixes())
			outputs += outputBytes(out, m.Dim, s.mixes())
		}
		if p.Recipe.Divisible() == nil {
			parts = append(parts, unitRows(out, blocks)...)
		} else {
			parts = append(parts, out)
		}
	}
	// Jobs take their weights, which come again to be compared, and the shortfall, which is counted among the sums. When the last one's come
	// the factor has gone.
	takes := original && s.Adds && UsesGPTQ(p.Recipe.Method) && len(p.Recipe.transforms()) == 0 && !p.Recipe.Method.Needs().Decides
	last := takes && len(parts) == 1
	slices.Sort(parts)
	slices.Reverse(parts)
	parts = parts[:min(len(parts), max(len(s.sites[0].Out), kernels.Processors()))]
	corrects := original && p.correctable(m, s, tokens)
	method := p.Recipe.Method
	needs := outputs + method.Memory(0, s.In)
	if outputs > 0 {
		needs += gptq.PackedMemory(s.In)
	}
	for _, rows := range parts {
		switch weights := 4 * int64(rows) * int64(s.In); {
		case last:
			needs -= 2 * weights
		case takes || UsesGPTQ(method) && !corrects: // they are not corrected
			needs -= weights
		}
		if outputs > 0 {
			needs += gptq.CoupledMemory(rows, s.In)
		} else {
			needs += method.Memory(rows, s.In) - method.Memory(0, s.In)
		}
	}
	return needs
}

// transformNeeds is the memory for a transform of a layer whose weights are decoded, beside these: samples of the groups' inputs, and
// either what the stream has computed of a batch to show the inputs, or a group's weights rounded, what the sample makes of them and what
// it should be.
func (p *Plan) transformNeeds(m *model.Model, stages []stageShape, tokens, batch int) int64 {
	sample := int64(min(tokens, sampleTokens))
	stream := held{}
	stream.hold("copy", int64(m.Width))
	var samples, group int64
	for k := range stages {
		stream.enters(m, stages, k)
		stream.applies(m, stages, k, true)
		for _, s := range stages[k].sites {
			if s.Expert >= 0 {
				continue
			}
			samples += 4 * sample * int64(s.In)
			var weights int64
			for _, out := range s.Out {
				weights += 4 * int64(s.In) * int64(out)
			}
			group = max(group, weights)
		}
	}
	trying := group + 4*(stream.features()+int64(m.Dim))*sample
	showing := 4 * stream.features() * int64(batch)
	if !rests(m, m.Widest()) {
		return samples + showing + trying
	}
	return samples + max(showing, trying)
}
