package pipeline

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"unsafe"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// OutputHessian says whether linears are quantized with what errors of their outputs, together, do to the predictions
// (quant.Job.Outputs). That takes a pass of the calibration text through the original model and back.
type OutputHessian int

const (
	OutputHessianOff OutputHessian = iota
	OutputHessianOn
	// OutputHessianAuto takes it for the linears where, by gradients that it was not made of, it pays.
	OutputHessianAuto
)

var outputHessianNames = []string{"off", "on", "auto"}

func (o OutputHessian) String() string { return outputHessianNames[o] }

// OutputHessianNames lists what ParseOutputHessian takes.
func OutputHessianNames() []string { return slices.Clone(outputHessianNames) }

// ParseOutputHessian is String's inverse.
func ParseOutputHessian(s string) (OutputHessian, error) {
	if i := slices.Index(outputHessianNames, s); i >= 0 {
		return OutputHessian(i), nil
	}
	return 0, fmt.Errorf("%q: want on, off or auto", s)
}

const (
	// outputRows is the most rows of a block of H_O. Wider outputs have several, as equal as can be, and so have those of more than
	// wideOutputs times the residual stream's width, an MLP's: whole, they would take more time than all others, for the least gain.
	outputRows  = 4096
	wideOutputs = 2
	// expertRows is the same for experts, of which there are many.
	expertRows = 512
	// A layer of an 8B model computes 2.3 GB of 4096 tokens on its way forth and back, which would be half of all that its run takes.
	backBytes = 1 << 30
	backLeast = 1024
	// outputGain is the share of the error below which H_O pays, by gradients that it was not made of.
	outputGain = 0.99
	// fewTokens is the number of calibration tokens up to which gradients are taken of all: of more, half, which is as many at least.
	// Of gopher-4m's 65536 tokens half take two thirds of the time, and leave a KL divergence of 0.0614 instead of 0.0581 in Q2_K, of
	// 0.0151 instead of 0.0148 in Q3_K.
	fewTokens = 2*calib.DefaultTokens - 1
	// heldOutEvery: of so many sequences one judges whether the others' gradients pay.
	heldOutEvery = 8
)

// outputBudget bounds the sums of a layer's linears that are made together, one linear's aside. Layers of many experts, whose sums take
// more, are gone through again for the others. Tests take less.
var outputBudget = int64(4 << 30)

// OutputReport tells of the Hessians of outputs. The JSON names are part of the command line's interface.
type OutputReport struct {
	Tokens  int `json:"tokens"`
	Linears int `json:"linears"` // quantized with them
	Skipped int `json:"skipped"` // linears where they do not pay
	// Predicted is the mean share of the error, weighted by the effect of the outputs on the predictions, that is left by gradients
	// that the Hessians were not made of; 0 where nobody asked.
	Predicted float64 `json:"predicted"`
	// Opaque are the branches without a derivative. Their linears are quantized without, and gradients went around them.
	Opaque []string `json:"opaque"`
}

// outputs are the Hessians of linears' outputs, in a temporary file until the linears are quantized. Nil has none.
type outputs struct {
	file *os.File
	end  int64
	at   map[string][]outputBlock // by the linear's ID
	rep  OutputReport
	// Σ of predicted and present errors of the held-out gradients.
	predicted, present float64
}

// outputBlock is where a block's lower triangle is, row by row.
type outputBlock struct {
	rows   int
	offset int64
}

func newOutputs(dir string) (*outputs, error) {
	file, err := os.CreateTemp(dir, ".llmq-outputs-*")
	if err != nil {
		return nil, fmt.Errorf("output Hessians: %w", err)
	}
	os.Remove(file.Name()) // as in package states
	return &outputs{file: file, at: map[string][]outputBlock{}, rep: OutputReport{Opaque: []string{}}}, nil
}

func (o *outputs) close() {
	if o != nil {
		o.file.Close()
		os.Remove(o.file.Name())
	}
}

func (o *outputs) report() *OutputReport {
	if o == nil {
		return nil
	}
	rep := o.rep
	if o.present > 0 {
		rep.Predicted = o.predicted / o.present
	}
	return &rep
}

// put stores the blocks of a linear.
func (o *outputs) put(id string, blocks []*tensor.Matrix) error {
	for _, h := range blocks {
		packed := make([]float32, 0, h.Rows*(h.Rows+1)/2)
		for i := range h.Rows {
			packed = append(packed, h.Row(i)[:i+1]...)
		}
		if _, err := o.file.WriteAt(raw(packed), o.end); err != nil {
			return fmt.Errorf("output Hessians: writing %d bytes: %w", 4*len(packed), err)
		}
		o.at[id] = append(o.at[id], outputBlock{h.Rows, o.end})
		o.end += 4 * int64(len(packed))
	}
	return nil
}

// of returns the blocks of a linear whose outputs have been divided by scale, if any; nil if there are none.
func (o *outputs) of(lin *model.Linear, scale []float32) ([]*tensor.Matrix, error) {
	if o == nil {
		return nil, nil
	}
	var blocks []*tensor.Matrix
	first := 0
	for _, b := range o.at[lin.ID()] {
		packed := make([]float32, b.rows*(b.rows+1)/2)
		if _, err := o.file.ReadAt(raw(packed), b.offset); err != nil {
			return nil, fmt.Errorf("output Hessians: %s: %w", lin.ID(), err)
		}
		h := tensor.New(b.rows, b.rows)
		for i := range b.rows {
			for j, v := range packed[:i+1] {
				if scale != nil {
					v *= scale[first+i] * scale[first+j]
				}
				h.Row(i)[j], h.Row(j)[i] = v, v
			}
			packed = packed[i+1:]
		}
		blocks = append(blocks, h)
		first += b.rows
	}
	return blocks, nil
}

// raw is values in the machine's own byte order: the file never leaves the process.
func raw(v []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}

// roomForGradients refuses a disk on which the pass of gradients would run out of room after hours. To go on without the
// Hessians would make the file's bytes depend on the disk.
func roomForGradients(needed int64, free uint64, dir string) error {
	if needed > 0 && uint64(needed) > free {
		return fmt.Errorf("output Hessians need %d bytes of temporary files in %s, where %d are free: make room, let more stay in memory "+
			"(--memory), or do without (--output-hessian off)", needed, dir, free)
	}
	return nil
}

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
			return forgetGradients(p.opt.Work)
		}
	}
	if free, ok := atomicfile.Free(p.tempDir); ok {
		needs := p.plan.gradientNeeds(p.m, set.Tokens(), p.opt.Memory)
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
	batch, _ := p.plan.tokensTogether(p.m, gradientTokens(set.Tokens()))
	together := batch >= set.SeqLen
	if !together {
		batch = backTokens(p.m)
	}
	b := newBackwardPass(p.task, o, seqs, batching{len(seqs), max(1, batch/set.SeqLen)}, 0)
	switch {
	case p.opt.Engine != nil:
		err = b.byUnits(p)
	case together:
		err = b.together()
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
	if tokens <= fewTokens {
		return tokens
	}
	return tokens / 2
}

// gradientSequences returns the sequences that gradients are taken of: all, or of each two that follow one another one, chosen
// at random, so that texts which take turns in the set have their share.
func gradientSequences(set *calib.Set) [][]int32 {
	if gradientTokens(set.Tokens()) == set.Tokens() {
		return set.Sequences
	}
	rng := rand.New(rand.NewPCG(gradientSeed, 0))
	var seqs [][]int32
	for pair := range slices.Chunk(set.Sequences, 2) {
		seqs = append(seqs, pair[rng.IntN(len(pair))])
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
	first  int      // the batch, among those, that seqs begin with
	budget int64    // of sums that are made together, in bytes; one linear's are always
	room   *stateBudget
	// inputs are the hidden states before each layer, in bfloat16, then, last, those after all layers, which the gradients replace.
	inputs []*states.Store
}

// newBackwardPass returns the pass of sequences that begin with a batch of all.
func newBackwardPass(t *task, o *outputs, seqs [][]int32, of batching, first int) *backwardPass {
	return &backwardPass{task: t, outputs: o, st: t.m.NewState(), seqs: seqs, of: of, first: first, budget: outputBudget,
		room: newStateBudget(t.opt.Memory)}
}

// batching divides sequences into batches.
type batching struct{ seqs, perBatch int }

func (p batching) batches() int { return (p.seqs + p.perBatch - 1) / p.perBatch }

// sequences returns those of a batch.
func (p batching) sequences(batch int) (lo, hi int) {
	return batch * p.perBatch, min((batch+1)*p.perBatch, p.seqs)
}

// heldFrom returns how many sequences of a batch come before those that are held out, its last. Batches of few sequences are
// held out as a whole, or not at all.
func (p batching) heldFrom(batch int) int {
	lo, hi := p.sequences(batch)
	every := min(heldOutEvery, p.batches()) // of few batches the last one judges
	switch n := hi - lo; {
	case n >= heldOutEvery:
		return n - n/heldOutEvery
	case batch%every == every-1:
		return 0
	default:
		return n
	}
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
	x, err := newStore(len(b.seqs), seqLen, b.m.Width, b.of.perBatch, limit, b.tempDir)
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
		seq, _ := b.of.sequences(b.first + batch)
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
		opaque, err := b.observe(i, l, sums, last)
		if err != nil {
			return err
		}
		if !last {
			opaque = nil
		}
		b.rest()
		if err := b.finishLayer(i, linears, sums, opaque); err != nil {
			return err
		}
	}
	return b.drop(i)
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
// after it. It returns the branches without a derivative.
func (b *backwardPass) observe(i int, l *model.Layer, sums map[string]*outputSums, last bool) ([]string, error) {
	d := &model.Differential{}
	switch {
	case !last: // of the experts that others' sums are made of, whose weights may have to be decoded, nothing is computed
		d.Only = func(lin *model.Linear) bool { return sums[lin.ID()] != nil }
	case i == 0: // nobody wants the gradient at the embeddings
		d.Only = func(*model.Linear) bool { return true }
	}
	err := b.each(i, func(batch int, x, y *tensor.Matrix) error {
		d.See = b.see(sums, b.of.heldFrom(b.first+batch))
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
// Batches are summed by themselves and then added, so that they are the same sums whichever machine has which.
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

// noteOutputs notes that the outputs of what comes before a group have been divided by scale, channel by channel.
func (r *transformer) noteOutputs(g *quant.Group, scale []float32) {
	if g.Prev == nil || g.Before == nil {
		return
	}
	if r.outputs == nil {
		r.outputs = map[string][]float32{}
	}
	s := r.outputs[g.Prev.Name]
	if s == nil {
		s = slices.Repeat([]float32{1}, g.Before.W.Rows)
		r.outputs[g.Prev.Name] = s
	}
	done := make([]bool, len(s))
	for j, row := range g.Prev.Row {
		if !done[row] {
			done[row] = true
			s[row] *= scale[j]
		}
	}
}
