package pipeline

import (
	"math"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
)

// A model of what a run costs, from headers alone: floating-point operations over the speeds of a machine, and bytes over its
// link. With T tokens, a linear of out×in weights and T' of the tokens at it (all, or T·k/E at one of E experts of which a
// token reaches k):
//
//	forward       2T'·in·out     each time that a stream passes: see stageRuns
//	attention     2L·in a token  QKᵀ and PV over half of L places, in being the width of what comes out
//	between       in + out       features of a token, likewise, and L/2 of each 64 of attention's: half of them as an activation that is
//	              computed and rounded, as much as norms, copies and sums take (gopher-4m, profiled)
//	H             T'·in²         half of a product of 2T'·in²; experts' once more, for the sum over all
//	D             2T'·in²        where the original model is compared and no residual connection joined
//	S             2T'·in·out     in its place, where one is
//	factor        in³/3          Cholesky, in float32
//	correction    2in²·out       of the triangular systems, in float32, and as much for W·D
//	errors        2in²·out       tr(ΔW·H·ΔWᵀ) and tr(W·H·Wᵀ)
//	coupling      b³/3 + b²·in   of a block of b rows in H_O: its factor, and the errors of rows that are done, in float32
//	rounding      out·in·(a + b·in) seconds, GPTQ's sweep and descent: a is measured, b is that of the products among them, for descent's
//	              four passes in²·out·2 operations in float32, its gradient, and in²·out·(1 + 7) in bfloat16 (roundingOps)
//	H_O           T'·Σ b²        of the tokens that gradients are taken of, over the blocks of outputs, behind a pass forward and one back that computes 3 products, or 2 of layers that are held together;
//	              where it is judged 2⅓·b³ in float32
//
// N machines split a layer by calibration shards (observe, advance), by rows of a linear, blocks of H_O or a large one's batches (quantize), and
// by whole experts. What every machine does for itself is the factor of a dense linear, and where batches are divided that of H_O. Bytes that a machine gets and gives for a layer,
// with S shards, x in four bytes, and M the sums of the dense linears (2in² of H, packed; 4in² of D; 4in·out of S):
//
//	sums          S·M/N in and out        a shard's sums to those who add its rows, in the order of shards (a bundle's: bundled)
//	needs         H and D in, S/N in      what rows need
//	  of two      M in, 2M/N out          in place of both: a half's sums to the other machine (halved)
//	rows          all rows' bytes in      a machine's own out; and their targets, 4in·out, where batches are divided
//	experts       2T·dim in a stream      inputs in bfloat16 to all; results 4T·k·dim/N a stream, in and out
//	states        4T·width/N a stream out what a lost machine's shards go on from
//	weights       dense in, experts' /N   of the checkpoint
//
// H_O's sums, packed, of both kinds where it is judged, go as sums do: those of two halves of the text's batches to N = 2 machines, of each
// batch else; then H_O to all.
//
// A machine sends while it receives, and computes when that is done: the longer of both directions counts.

// Speeds are those of a machine, of all its processors together.
type Speeds struct {
	Products float64 `json:"products"` // FLOP/s of products whose factors are rounded to bfloat16, where that is faster
	Float32  float64 `json:"float32"`  // FLOP/s of float32's
	// Beside is what Products is of batches that go through the layers side by side, on a processor each: narrow products that are divided
	// wait for each other. 0: as Products.
	Beside float64 `json:"beside"`
	// Rounding a weight, by the recipe's method to its type, takes Weight seconds, and Column more for each column of its row.
	Weight float64 `json:"weight"`
	Column float64 `json:"column"`
	// Feature is how many seconds a feature of a token takes to be computed and rounded between products.
	Feature float64 `json:"feature"`
	Disk    float64 `json:"disk"` // bytes/s; 0: not known
	Link    float64 `json:"link"` // bytes/s in each direction between a machine and the store of all; nothing passes it for one machine
}

// Cost is what a run takes on some machines.
type Cost struct {
	Machines int         `json:"machines"`
	Shards   int         `json:"shards"`
	Speeds   Speeds      `json:"speeds"`
	Phases   []PhaseCost `json:"phases"`
	// Transfers are what a machine gets and gives in the whole run; none for one machine.
	Transfers []Transfer `json:"transfers"`
	Seconds   float64    `json:"seconds"`
	// Fastest and Slowest are what Seconds is at the speeds that the machine has at different times: see Vary.
	Fastest float64 `json:"fastest"`
	Slowest float64 `json:"slowest"`
	// Efficiency is the time of one machine over that of all machines' together.
	Efficiency float64 `json:"efficiency"`
	// LeftOut is what the run does besides.
	LeftOut []string `json:"left_out"`

	gradients float64   // seconds of the pass of gradients
	layers    []float64 // of each layer behind it
	head      float64
}

// Vary sets Fastest and Slowest by how long the run takes at speeds of different times: a tenth of these are faster, and a tenth slower.
func (c *Cost) Vary(times []float64) {
	if len(times) == 0 {
		return
	}
	times = slices.Sorted(slices.Values(times))
	tenth := len(times) / 10
	c.Fastest, c.Slowest = min(c.Seconds, times[tenth]), max(c.Seconds, times[len(times)-1-tenth])
}

// PhaseCost is the time of a kind of units, or of moving bytes.
type PhaseCost struct {
	Name    string  `json:"phase"`
	Seconds float64 `json:"seconds"`
}

// Transfer is bytes of a kind, of one machine.
type Transfer struct {
	Name string `json:"what"`
	In   int64  `json:"in"`
	Out  int64  `json:"out"`
}

// Phases of a Cost.
const (
	costOutputs = "output Hessians"
	costObserve = "observe"
	costRows    = "quantize rows"
	costExperts = "quantize experts"
	costAdvance = "advance"
	costStore   = "store" // bytes between machines
	costDisk    = "disk"
)

// Kinds of Transfer.
const (
	movedSums    = "sums"
	movedNeeds   = "what rows need"
	movedRows    = "quantized rows"
	movedExperts = "experts' inputs and results"
	movedStates  = "hidden states"
	movedWeights = "weights"
)

// Cost estimates a run that is calibrated on so many tokens in sequences of seqLen, by machines of the same speed. With nil it is not
// calibrated. What methods try out before they decide is left out, and what an attempt is followed by: a validation, or another.
func (p *Plan) Cost(m *model.Model, tokens, seqLen, machines int, s Speeds) *Cost {
	if m == nil {
		machines = 1 // nothing is divided
	}
	c := p.cost(m, tokens, seqLen, machines, s)
	c.Efficiency, c.LeftOut = 1, []string{}
	c.Fastest, c.Slowest = c.Seconds, c.Seconds
	if p.Recipe.Method.Needs().Trials || len(p.Recipe.transforms()) > 0 {
		c.LeftOut = append(c.LeftOut, "the scales and ways that are tried out before a layer is quantized")
	}
	if machines > 1 {
		c.Efficiency = p.cost(m, tokens, seqLen, 1, s).Seconds / (float64(machines) * c.Seconds)
	}
	return c
}

func (p *Plan) cost(m *model.Model, tokens, seqLen, machines int, s Speeds) *Cost {
	e := &estimate{
		plan: p, m: m, speeds: s, machines: float64(machines), tokens: float64(tokens), seqLen: float64(seqLen),
		streams: 1,
		tensors: map[string]*Tensor{}, seconds: map[string]float64{}, in: map[string]float64{}, out: map[string]float64{},
	}
	if p.Recipe.original() {
		e.streams = 2
	}
	// More machines than shards are counted as if there were a shard for each, but a shard is a batch at least.
	e.shards = float64(max(Shards, machines))
	if m != nil {
		e.shards = min(e.shards, float64(textBatches(m, max(1, (tokens+seqLen-1)/seqLen), seqLen).batches()))
	}
	if e.outputs = m != nil && p.Recipe.wantsOutputs(); e.outputs {
		e.sample()
	}
	var from float64 // bytes of the checkpoint
	for i := range p.Tensors {
		t := &p.Tensors[i]
		e.tensors[t.Name] = t
		from += stored(t.From, float64(t.Elements()))
	}
	var layers []float64
	var ofHead float64
	if m == nil {
		e.uncalibrated()
	} else {
		head := (&task{plan: p, m: m}).calibratesHead()
		behind := func() float64 { // the pass of gradients, so far
			return e.seconds[costObserve] + e.seconds[costRows] + e.seconds[costExperts] + e.seconds[costAdvance]
		}
		for i := range m.Layers() {
			before := behind()
			e.layer(m.Shape(i), i == m.Layers()-1 && !head)
			layers = append(layers, behind()-before)
		}
		before := behind()
		e.head()
		ofHead = behind() - before
	}
	cost := &Cost{Machines: machines, Shards: int(e.shards), Speeds: s, Phases: []PhaseCost{}, Transfers: []Transfer{},
		gradients: e.seconds[costOutputs], layers: layers, head: ofHead}
	if machines == 1 && s.Disk > 0 {
		e.seconds[costDisk] = (from + float64(p.Size())) / s.Disk
	}
	for _, name := range []string{costOutputs, costObserve, costRows, costExperts, costAdvance, costStore, costDisk} {
		if t := e.seconds[name]; t > 0 {
			cost.Phases = append(cost.Phases, PhaseCost{name, t})
			cost.Seconds += t
		}
	}
	for _, name := range []string{movedSums, movedNeeds, movedRows, movedExperts, movedStates, movedWeights} {
		if in, out := e.in[name], e.out[name]; in+out > 0 {
			cost.Transfers = append(cost.Transfers, Transfer{name, int64(in), int64(out)})
		}
	}
	return cost
}

// stored is how many bytes so many weights take.
func stored(t *ggml.Type, weights float64) float64 {
	return weights * float64(t.BlockBytes) / float64(t.BlockLen)
}

// estimate adds up a Cost.
type estimate struct {
	plan     *Plan
	m        *model.Model
	speeds   Speeds
	machines float64
	shards   float64
	tokens   float64
	seqLen   float64
	streams  float64 // of hidden states: the quantized model's, and perhaps the original's
	outputs  bool    // Hessians of outputs are made
	// Of the tokens that give gradients: their batches, whether one machine takes these through all layers, and its FLOP/s of products then.
	sampledBatches batching
	together       bool
	sideProducts   float64
	tensors        map[string]*Tensor
	seconds        map[string]float64
	in, out        map[string]float64 // bytes of a machine
}

// sample finds how the tokens that give gradients are taken.
func (e *estimate) sample() {
	tokens, seqLen := gradientTokens(int(e.tokens)), int(e.seqLen)
	batch, together := e.plan.gradientBatch(e.m, tokens, seqLen)
	side, _ := e.plan.sideBySide(e.m, int(e.tokens), seqLen)
	seqs := max(1, (tokens+seqLen-1)/seqLen)
	e.sampledBatches = evenly(seqs, batch, seqLen)
	e.together = together && e.machines == 1
	e.sideProducts = e.speeds.Products
	if e.together && e.speeds.Beside > 0 && side > 1 {
		e.sideProducts = e.speeds.Beside
	}
}

// share is the part of so many shards, or batches, that the busiest machine has.
func (e *estimate) share(shards float64) float64 { return math.Ceil(shards/e.machines) / shards }

// siteCost is a site of a layer, and what its linears become.
type siteCost struct {
	model.SiteShape
	experts         float64 // in its stage; 0: it is none
	tokens          float64 // that pass it
	weights         float64 // of its linears
	attention       float64 // operations between its outputs and the next stage
	features        float64 // of tokens, between products
	quantized       float64 // rows that are quantized
	blocks          []int   // rows of H_O's blocks
	stored, written float64 // bytes of the checkpoint and of the file
	// The original model is compared: by D, in place of S, and enough tokens pass for its correction.
	drift, correction bool
}

func (e *estimate) site(s model.SiteShape, experts map[int]int) siteCost {
	c := siteCost{SiteShape: s, tokens: e.tokens}
	if s.Expert >= 0 && !s.Head {
		c.experts = float64(experts[s.Stage])
		c.tokens *= float64(e.m.ExpertsUsed()) / c.experts
	}
	for i, out := range s.Out {
		n := float64(out) * float64(s.In)
		c.weights += n
		t := e.tensors[s.Names[i]]
		c.stored += stored(t.From, n)
		c.written += stored(t.Type, n)
		if t.Type.Grid == nil {
			continue
		}
		c.quantized += float64(out)
		if e.outputs {
			c.blocks = append(c.blocks, outputBlocks(out, e.m.Dim, c.experts > 0)...)
		}
	}
	c.drift = e.streams > 1 && !s.Adds
	c.correction = e.streams > 1 && c.tokens > float64(s.In) // gptq.Factor.Correct shrinks it to nothing otherwise
	return c
}

// uncalibrated adds a run that rounds tensors as they are.
func (e *estimate) uncalibrated() {
	for i := range e.plan.Tensors {
		t := &e.plan.Tensors[i]
		if t.Type.Grid != nil {
			e.seconds[costRows] += float64(t.Elements()) * (e.speeds.Weight + float64(t.Cols())*e.speeds.Column) / e.machines
		}
	}
}

// layer adds a layer of these sites, in the order of the forward pass. Nothing is advanced behind the last.
func (e *estimate) layer(shapes []model.SiteShape, last bool) {
	experts := map[int]int{}
	for _, s := range shapes {
		if s.Expert >= 0 && !s.Head {
			experts[s.Stage]++
		}
	}
	var sites []siteCost
	for _, s := range shapes {
		sites = append(sites, e.site(s, experts))
	}
	runs := stageRuns(shapes, e.streams > 1)
	in, out := map[string]float64{}, map[string]float64{}
	add := func(name string, i, o float64) { in[name] += i; out[name] += o }
	var dense, expertWeights float64 // bytes of the checkpoint
	for k := range sites {
		s := &sites[k]
		n := float64(s.In)
		s.features = s.tokens * n / 2
		for _, out := range s.Out {
			s.features += s.tokens * float64(out) / 2
		}
		if k+1 < len(sites) && sites[k+1].Stage != s.Stage && sites[k+1].Carries {
			s.attention = 2 * e.seqLen * float64(sites[k+1].In) * e.tokens
			s.features += e.seqLen / 4 * float64(sites[k+1].In) / attentionWidth * e.tokens
		}
		forward := (2*s.tokens*s.weights+s.attention)/e.speeds.Products + s.features*e.speeds.Feature
		share := e.share(e.shards)
		if s.experts > 0 {
			share = math.Ceil(s.experts/e.machines) / s.experts
			expertWeights += s.stored
		} else {
			dense += s.stored
		}
		e.seconds[costObserve] += runs[s.Stage].observe * forward * share
		if !last {
			e.seconds[costAdvance] += runs[s.Stage].advance * forward * share
		}
		if s.quantized == 0 {
			continue
		}
		sums := s.tokens * n * n
		if s.experts > 0 {
			sums *= 2 // into the sum over all experts too
		}
		switch {
		case e.streams > 1 && s.drift:
			sums += 2 * s.tokens * n * n
		case e.streams > 1:
			sums += 2 * s.tokens * n * s.quantized
		}
		e.seconds[costObserve] += sums / e.speeds.Products * share
		factor, rows := e.rounding(s)
		if s.experts > 0 {
			e.seconds[costExperts] += (factor + rows) * share
			continue
		}
		e.seconds[costRows] += factor + rows*e.rowShare(s)
		moved := 2 * n * n
		needed := 2 * n * n
		switch {
		case s.drift:
			moved += 4 * n * n
			needed += 4 * n * n
		case e.streams > 1:
			moved += 4 * n * s.quantized
			needed += 4 * n * s.quantized / e.machines
		}
		switch machines := int(e.machines); {
		case halved(s.In) && machines <= shardHalves && e.shards >= shardHalves: // task.halvesTogether
			add(movedSums, moved, shardHalves*moved/e.machines)
		default:
			values := e.shards
			if bundled(s.In) && shardBundles%machines == 0 { // task.bundlesTogether
				values = min(values, shardBundles)
			}
			add(movedSums, values*moved/e.machines, values*moved/e.machines)
			add(movedNeeds, needed, 0)
		}
		add(movedRows, s.written, s.written/e.machines)
		if s.batched() {
			add(movedRows, 4*n*s.quantized, 4*n*s.quantized/e.machines) // targets
		}
	}
	add(movedWeights, dense+expertWeights/e.machines, 0)
	if expertWeights > 0 {
		state := e.streams * e.tokens * float64(e.m.Dim)
		results := 4 * state * float64(e.m.ExpertsUsed()) / e.machines
		add(movedExperts, 2*state+results, results)
	}
	add(movedStates, 0, 4*e.streams*e.tokens*float64(e.m.Width)/e.machines)
	e.move(in, out)
	if e.outputs {
		e.gradients(sites, dense, expertWeights)
	}
}

// rounding is how long a site's linears take: for the factor and whatever else all machines do each, and for all their rows.
func (e *estimate) rounding(s *siteCost) (factor, rows float64) {
	n := float64(s.In)
	each := n * (e.speeds.Weight + n*e.speeds.Column)
	rows = s.quantized * each
	if len(s.blocks) > 0 {
		// Batches of fewer rows than there are lanes take as long, but for those that are quantized together.
		joined := 0
		for _, b := range s.blocks {
			if size := gptq.BatchRows(b); size%kernels.Lanes != 0 {
				joined += size
			}
		}
		full := (joined + kernels.Lanes - 1) / kernels.Lanes * kernels.Lanes
		rows = 0
		for _, b := range s.blocks {
			lanes := 1.
			if gptq.BatchRows(b)%kernels.Lanes != 0 {
				lanes = float64(full) / float64(joined)
			}
			rows += float64(b) * each * lanes
		}
	}
	products := 2 * n * n * s.quantized / e.speeds.Products
	var before, coupling, ops float64 // seconds until rows are rounded: to correct them, for factors of H_O; and operations then
	if solves := UsesGPTQ(e.plan.Recipe.Method); solves {
		factor = n * n * n / 3 / e.speeds.Float32
		if s.correction {
			before += 2 * n * n * s.quantized / e.speeds.Float32
			if s.drift {
				before += 2 * n * n * s.quantized / e.speeds.Products
			}
		}
		for _, b := range s.blocks {
			rows := float64(b) // the factor of H_O, and the errors of rows that are done for those to come
			coupling += rows * rows * rows / 3 / e.speeds.Float32
			ops += rows * rows * n
		}
	}
	if s.batched() { // gptq.CouplingSolver.Couple is for all rows
		factor += coupling
		coupling = 0
	}
	return factor, rows + before + coupling + products + ops/e.speeds.Float32
}

// batched says whether the site's rows are divided batch by batch: see task.batched.
func (s *siteCost) batched() bool {
	return len(s.Out) == 1 && len(s.blocks) == 1 && gptq.BatchRows(s.blocks[0]) >= 2*leastBatchPart
}

// attentionWidth is the number of features of an attention head, for each of which the rows of QKᵀ are computed once between products.
const attentionWidth = 64

// rowShare is the part of a dense site's rows that the busiest machine has: rows do not meet, but those of a block of H_O do. Of a single
// block batches are divided.
func (e *estimate) rowShare(s *siteCost) float64 {
	if len(s.blocks) == 0 {
		return 1 / e.machines
	}
	if s.batched() {
		return 1 / min(e.machines, float64(gptq.BatchRows(s.blocks[0])/leastBatchPart))
	}
	each := math.Ceil(float64(len(s.blocks)) / e.machines)
	var most float64
	for _, b := range s.blocks {
		most = max(most, float64(b))
	}
	return min(1, each*most/s.quantized)
}

// gradients adds a layer's part of the pass that makes Hessians of outputs.
func (e *estimate) gradients(sites []siteCost, dense, experts float64) {
	var shared, own float64 // seconds: by shards, by experts
	var blocks float64      // bytes of the dense linears'
	var judged float64      // seconds
	for i := range sites {
		s := &sites[i]
		// Forward, forward again for what derivatives need unless layers are held together, and back: one product of a linear, four of
		// attention's two.
		passes := 3.
		if e.together {
			passes = 2
		}
		ops := 2*passes*s.tokens*s.weights + (passes+1)*s.attention
		for _, b := range s.blocks {
			ops += s.tokens * float64(b) * float64(b)
			if s.experts == 0 {
				blocks += 2 * float64(b) * float64(b)
			}
		}
		seconds := ops/e.sideProducts + passes*s.features*e.speeds.Feature
		if s.experts > 0 {
			own += seconds * math.Ceil(s.experts/e.machines) / s.experts
		} else {
			shared += seconds * e.share(float64(e.sampledBatches.batches()))
		}
		if e.plan.Recipe.OutputHessian == OutputHessianAuto {
			for _, b := range s.blocks {
				judged += (2 + 1./3) * float64(b) * float64(b) * float64(b) / e.speeds.Float32
			}
		}
	}
	e.seconds[costOutputs] += e.sampled()*(shared+own) + judged/e.machines
	in, out := map[string]float64{}, map[string]float64{}
	sums := e.gradientSums() * blocks
	if e.plan.Recipe.OutputHessian == OutputHessianAuto {
		sums *= 2 // of the gradients that judge, too
	}
	in[movedSums] = sums/e.machines + blocks
	out[movedSums] = (sums + blocks) / e.machines
	in[movedWeights] = 2 * (dense + experts/e.machines)
	if experts > 0 {
		state := e.sampled() * e.tokens * float64(e.m.Dim)
		in[movedExperts] = 4*state + 4*state*float64(e.m.ExpertsUsed())/e.machines
		out[movedExperts] = 4 * state * float64(e.m.ExpertsUsed()) / e.machines
	}
	e.move(in, out)
}

// gradientSums is how many sums over a linear's outputs machines put out before the last ones, all of which are read once: of halves of the
// batches where no more than two take part, else of batches and of those before each span but the first.
func (e *estimate) gradientSums() float64 {
	if e.machines <= shardHalves {
		return float64(e.sampledBatches.halves())
	}
	return float64(e.sampledBatches.batches() + len(e.sampledBatches.spans()) - 1)
}

// sampled is the share of the calibration tokens that gradients are taken of.
func (e *estimate) sampled() float64 { return float64(gradientTokens(int(e.tokens))) / e.tokens }

// head adds the output head: where it is quantized, and for the predictions of the pass of gradients.
func (e *estimate) head() {
	dim, vocab := float64(e.m.Dim), float64(e.m.Vocab)
	if e.outputs {
		e.seconds[costOutputs] += 4 * e.sampled() * e.tokens * dim * vocab / e.sideProducts * e.share(float64(e.sampledBatches.batches()))
	}
	t := e.tensors[outputName]
	if t == nil || t.Type.Grid == nil {
		return
	}
	s := &siteCost{SiteShape: model.SiteShape{In: e.m.Dim}, tokens: e.tokens, quantized: vocab, drift: e.streams > 1,
		correction: e.streams > 1 && e.tokens > dim}
	e.seconds[costObserve] += (1 + 2*(e.streams-1)) * e.tokens * dim * dim / e.speeds.Products * e.share(e.shards)
	factor, rows := e.rounding(s)
	e.seconds[costRows] += factor + rows/e.machines
}

// move has a machine get and give bytes, if there are others.
func (e *estimate) move(in, out map[string]float64) {
	if e.machines == 1 {
		return
	}
	var allIn, allOut float64
	for name, n := range in {
		e.in[name] += n
		allIn += n
	}
	for name, n := range out {
		e.out[name] += n
		allOut += n
	}
	e.seconds[costStore] += max(allIn, allOut) / e.speeds.Link
}

// stageRun is how often a stage's linears are applied to all tokens, by both streams: on the way to the inputs that are observed, and
// then on the way to the next layer.
type stageRun struct{ observe, advance float64 }

// stageRuns follows the streams through a layer. The quantized model's stands wherever it can (model.SiteShape.Stands); from there it
// goes to each stage's input, and in the end on to the next layer. The original's stands before stages that begin; it applies a
// stage at once if it can stand behind it, and where that adds to the residual stream, the difference of both inputs passes it too
// (passage.observe, stream.visit and stream.alongside).
func stageRuns(shapes []model.SiteShape, original bool) []stageRun {
	var begins, stands, adds []bool
	for _, s := range shapes {
		if s.Stage == len(begins) {
			begins, stands, adds = append(begins, s.Begins), append(stands, s.Stands()), append(adds, s.Adds)
		}
	}
	n := len(begins)
	runs := make([]stageRun, n)
	at, originalAt := 0, 0
	for k := range n {
		for j := at; j < k; j++ {
			runs[j].observe++
		}
		if stands[k] {
			at = k
		}
		if !original {
			continue
		}
		for j := originalAt; j < k; j++ {
			runs[j].observe++
		}
		if adds[k] {
			runs[k].observe++
		}
		if k+1 == n || begins[k+1] {
			runs[k].observe++
			originalAt = k + 1
		}
	}
	for j := at; j < n; j++ {
		runs[j].advance++
	}
	return runs
}
