package pipeline

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// passage takes the calibration text through the layers and quantizes each before it goes on. Its work is cut into units,
// values in and values out:
//
//	observe       a stage, and the hidden states before it: statistics of its sites' inputs
//	quantizeRows  rows of a linear, and a solver that knows the statistics: their bytes, and what to report of them
//	advance       the hidden states before a layer, and its quantized linears: those before the next
//
// A layer begins with nothing but the hidden states of both models, and what the units before have put out: the rows that
// are written, found, scaled and seen.
type passage struct {
	*task
	out    *writer
	seen   *observer // nil if nobody asks
	scaled *transformer
	found  *findings
}

// layers quantizes the linears of all layers in the order of the forward pass. Every linear is calibrated on inputs
// that come from everything quantized before it; a second stream of hidden states shows what the original model has in
// their place.
func (p *passage) layers() error {
	if p.opt.Engine != nil {
		return p.layersByUnits()
	}
	if err := p.gradients(); err != nil {
		return err
	}
	if p.kept != nil {
		p.kept.done.Expected = p.work.layers
	}
	set := p.opt.Calib
	budget := newStateBudget(p.opt.Memory)
	if err := p.m.CheckLength(set.SeqLen); err != nil {
		return err
	}
	text := textBatches(p.m, len(set.Sequences), set.SeqLen)
	s, err := zeroStream(p.m, text, set.SeqLen, true, budget, p.tempDir)
	if err != nil {
		return err
	}
	defer s.close()
	var original *stream
	if p.plan.Recipe.original() && !p.opt.NoCorrection {
		if original, err = zeroStream(p.m, text, set.SeqLen, false, budget, p.tempDir); err != nil {
			return err
		}
		original.workspace = s.workspace.beside(p.m)
		defer original.close()
	}
	if err := s.keepHidden(budget, p.tempDir); err != nil {
		return err
	}
	for i := 0; ; {
		from := i
		if i, err = p.recall(i, func(i int) (bool, error) { return p.recallStates(s, original, i) }); err != nil {
			return err
		}
		for ; from < i; from++ {
			if err := p.spendLayer(from); err != nil {
				return err
			}
		}
		if i == p.m.Layers() {
			break
		}
		if i == 0 { // a run that goes on may have lost the embeddings that its checkpoint had
			if err := p.embed(s, original); err != nil {
				return err
			}
		}
		p.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, p.m.Layers()))
		err := p.keep(s, original, i, func() error { return p.layer(s, original, i) })
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if err := p.spendLayer(i); err != nil {
			return err
		}
		i++
	}
	if p.calibratesHead() {
		var states []string
		if p.kept != nil {
			states = p.kept.pieceNames(p.m.Layers(), p.textPieces(text))
		}
		return p.keepHead(states, func() error { return p.head(s, original) })
	}
	return nil
}

// embed fills the streams with the calibration text's embeddings.
func (p *passage) embed(s, original *stream) error {
	set := p.opt.Calib
	err := embed(p.m, s.x, set.Sequences, set.SeqLen, p.roundEmbeddings())
	if err == nil && original != nil {
		err = embed(p.m, original.x, set.Sequences, set.SeqLen, nil)
	}
	return err
}

// layer quantizes one layer and takes the hidden states through it.
func (p *passage) layer(s, original *stream, index int) error {
	l, err := p.m.LoadLayer(index)
	if err != nil {
		return err
	}
	defer l.Release()
	if p.goesOn(index) {
		p.m.ReadAhead(index + 1)
	}
	at := place{s: s, l: l}
	if original != nil {
		at.original = original
		if at.ol, err = p.m.LoadAgain(l); err != nil {
			return err
		}
		defer at.ol.Release()
	}
	if err := p.out.convertHeadHere(); err != nil {
		return err
	}
	switch needs := p.plan.Recipe.Method.Needs(); {
	case needs.Decides:
		c := &chooser{task: p.task, scaled: p.scaled, found: p.found}
		err = c.choose(s, l, at.ol)
	case len(p.plan.Recipe.transforms()) > 0:
		err = p.scaled.transform(s, l, at.ol)
	}
	if err != nil {
		return err
	}
	for at.k = range l.Stages {
		if err := p.stage(&at); err != nil {
			return err
		}
	}
	if p.changesVectors() {
		if err := p.out.vectors(l); err != nil {
			return err
		}
	}
	if !p.goesOn(index) {
		return nil
	}
	if err := s.advance(p.ctx, l); err != nil {
		return err
	}
	at.rest()
	return nil
}

// place is a stage of the forward pass, with the hidden states on their way to it.
type place struct {
	s, original *stream      // of the model quantized so far, and of the original one; nil if nobody compares
	l, ol       *model.Layer // the layer of each
	k           int          // the stage
	// stays says that the original's stream is not taken behind the stage.
	stays bool
	// into is what the inputs of the stage's one site are added to, each batch apart; nil: new sums.
	into *quant.Stats
	// reached is how many tokens each of the stage's sites has seen, once all experts were observed together; nil before.
	reached []int
}

func (at *place) stage() *model.Stage { return &at.l.Stages[at.k] }

// stage quantizes the linears of a stage. Of a stage with many sites some are taken at a time, each time in a pass of
// their own through the calibration text.
func (p *passage) stage(at *place) error {
	sites := at.stage().Sites
	if len(sites) > 1 {
		return p.experts(at)
	}
	in, _, err := p.observe(at, 0, 1, false)
	if err != nil {
		return err
	}
	if at.original != nil {
		at.original.passed(at.ol, at.k)
	}
	at.rest()
	stats := in[0]
	in = nil
	if err := p.site(at.l, sites[0], stats, nil); err != nil {
		return err
	}
	stats = nil
	at.rest()
	return nil
}

// rest gives back the memory that both streams took to compute, and the pages of the layer's weights, where there is so much of it that what follows should not find it taken.
func (at *place) rest() {
	if !rests(at.s.m, at.stage().Width()) {
		return
	}
	at.s.rest()
	at.l.Rest()
	if at.original != nil {
		at.original.rest()
		at.ol.Rest()
	}
	gemm.Release()
	debug.FreeOSMemory()
}

// rests says whether the memory to compute a stage of that width is given back before its linears are quantized, and before what comes
// next: to have all of it cleared again takes longer than a small layer has.
func rests(m *model.Model, width int) bool {
	const much = 1 << 22 // features of a batch
	return batchOf(m)*width >= much
}

// observe takes the calibration text to a stage and returns statistics of the inputs of its sites [first,last), and, if
// asked for, of those of all experts together.
func (p *passage) observe(at *place, first, last int, pool bool) (in []*quant.Stats, pooled *quant.Stats, err error) {
	stage := at.stage()
	sums := make([]*shardedStats, last-first) // nil of an expert
	experts := make([]*gathered, last-first)  // nil of others
	in = make([]*quant.Stats, last-first)
	for j, site := range stage.Sites[first:last] {
		if site.Expert >= 0 && !site.Head {
			in[j] = quant.NewStats(site.In())
			experts[j] = &gathered{Stats: in[j]}
		} else {
			sums[j] = at.s.newShardedStats(site.In(), at.into, p.tempDir)
			defer sums[j].close()
		}
	}
	var all *shardedStats // of all experts together
	var together gathered // what one batch has for all, whose room the next one takes
	var reached []int
	if pool {
		all = at.s.newShardedStats(stage.Sites[0].In(), nil, p.tempDir)
		defer all.close()
		all.sums.Apart = false // a batch is seen expert by expert
		reached = make([]int, len(stage.Sites))
	}
	goesOn := !at.stays && last == len(stage.Sites) // the original's stream
	compares := goesOn
	for j := first; j < last; j++ {
		compares = compares || !p.uncorrected(at, j)
	}
	err = at.s.visit(p.ctx, at.l, at.k, func(i int) error {
		for j, s := range sums {
			if s == nil {
				continue
			}
			var err error
			if in[j], err = s.of(i); err != nil {
				return err
			}
		}
		for j, stats := range in {
			site := stage.Sites[first+j]
			h, _ := stage.InputOf(at.s.st, first+j)
			if h.Rows == 0 {
				continue
			}
			if experts[j] != nil {
				experts[j].Observe(h)
			} else {
				stats.Observe(h)
			}
			if p.seen != nil {
				p.seen.observe(site, h, p.scaled.scales[site.Linears[0].ID()])
			}
		}
		if pool {
			var err error
			if together.Stats, err = all.of(i); err != nil {
				return err
			}
			for j := range stage.Sites {
				h, _ := stage.InputOf(at.s.st, j)
				reached[j] += h.Rows
				if h.Rows > 0 && stage.Sites[j].Expert >= 0 {
					together.Observe(h)
				}
			}
			together.flush() // the next batch may be another shard's
		}
		if at.original == nil || !compares {
			return nil
		}
		lacking := make([]lackSums, len(in))
		for j := range in {
			switch {
			case p.uncorrected(at, first+j): // nil
			case experts[j] != nil:
				lacking[j] = experts[j]
			default:
				lacking[j] = in[j]
			}
		}
		return at.original.alongside(p.ctx, at.ol, at.k, i, at.s, at.l, first, lacking, goesOn)
	})
	for _, l := range []*model.Layer{at.l, at.ol} {
		if err == nil && l != nil {
			err = l.Err() // weights that could not be fetched
		}
	}
	if err != nil {
		return nil, nil, err
	}
	for j, s := range sums {
		if s == nil {
			experts[j].flush()
			continue
		}
		if in[j], err = s.all(); err != nil {
			return nil, nil, err
		}
	}
	if pool {
		if pooled, err = all.all(); err != nil {
			return nil, nil, err
		}
		at.reached = reached
	}
	for j, stats := range in {
		if err := checkInputs(stage.Sites[first+j].Name, stats.Importance()); err != nil {
			return nil, nil, err
		}
	}
	return in, pooled, nil
}

// checkInputs refuses a group's inputs if the mean square of a feature is not finite: every choice that goes by them would
// mean nothing.
func checkInputs(group string, meanSquares []float32) error {
	for j, v := range meanSquares {
		if v-v != 0 {
			return model.WeightsErrorf("the mean square of feature %d of %s's input is %v: the hidden states overflow float32", j, group, v)
		}
	}
	return nil
}

// site quantizes linears that share an input, in goroutines, and writes them. From then on the forward
// pass sees what a reader of the file will see. tokens is what the report says of an expert.
func (p *passage) site(l *model.Layer, site *model.Site, in *quant.Stats, tokens []int) error {
	solver := p.found.method(site.Linears[0].Name, p.plan).Open(in)
	running, cancel := context.WithCancel(p.ctx)
	defer cancel()
	eg, ctx := errgroup.WithContext(running)
	eg.SetLimit(max(len(site.Linears), kernels.Processors()))
	shifts := make([][]float32, len(site.Linears)) // of the biases that are corrected
	start := func(i int, lin *model.Linear) error {
		t := p.plan.Lookup(lin.Name)
		outputs, err := p.found.outputs.of(lin, p.scaled.outputs[lin.Name])
		if err != nil {
			return err
		}
		parts, err := p.split(lin, &rowsJob{tensor: t, product: lin.Product, solver: solver, in: in, outputs: outputs})
		if err != nil {
			return err
		}
		if in.Shortfall != nil && lin.F32 == nil && lin.W.Data != nil {
			for k := range parts {
				parts[k].job.again = parts[k].lin.Matrix
			}
			parts[0].job.last = len(parts) == 1 // a residual connection's linear is its site's only one
		}
		results := make([]rows, len(parts))
		var done atomic.Int64
		finish := func() error {
			q := results[0]
			for _, part := range results[1:] {
				q.data = append(q.data, part.data...)
				q.shift = append(q.shift, part.shift...)
				q.add(&part.rowsReport)
			}
			shifts[i] = q.shift
			q.tokens = tokens
			if err := p.out.rows(t, lin.First(), &q); err != nil {
				return err
			}
			lin.F32 = nil
			lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &t.Type.Format, Data: q.data}
			return nil
		}
		for k := range parts {
			quantize := func() error {
				q, err := p.linear(ctx, parts[k].lin, &parts[k].job)
				if err != nil {
					return err
				}
				parts[k].job, q.decoded = rowsJob{}, nil // they are large
				results[k] = q
				if done.Add(1) < int64(len(parts)) {
					return nil
				}
				return finish()
			}
			eg.Go(func() error { return mmap.Guard(quantize) })
		}
		return nil
	}
	for i, lin := range site.Linears {
		// It reads weights here, while linears before it run: whatever it finds, those come to an end first.
		if err := mmap.Guard(func() error { return start(i, lin) }); err != nil {
			cancel()
			eg.Wait() // err is why they end
			return err
		}
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	for i, bias := range shifts {
		if bias == nil {
			continue
		}
		shiftBias(l, site.Linears[i], bias)
	}
	return nil
}

// linearPart is rows of a linear, and what is to be done with them.
type linearPart struct {
	lin *model.Linear
	job rowsJob
}

// split divides a linear into parts whose rows do not need each other, as units of work have them, so that only as many are decoded at
// a time as there are processors.
func (p *passage) split(lin *model.Linear, job *rowsJob) ([]linearPart, error) {
	whole := []linearPart{{lin, *job}}
	var blocks []int
	for _, h := range job.outputs {
		blocks = append(blocks, h.Rows)
	}
	division := unitRows(lin.Out, blocks)
	if len(division) == 1 || lin.F32 != nil || p.plan.Recipe.Divisible() != nil {
		return whole, nil
	}
	inexact, err := offGrid(job.tensor, lin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.src.Name(), err)
	}
	if !inexact {
		return whole, nil
	}
	var parts []linearPart
	first := 0
	for _, n := range division {
		part := *job
		part.first, part.inexact = first, true
		if blocks != nil {
			part.outputs = job.outputs[len(parts) : len(parts)+1]
		}
		parts = append(parts, linearPart{lin.Part(first, first+n), part})
		first += n
	}
	return parts, nil
}

// linear quantizes a linear, or rows of one from job.first on, whose weights it adds to the job.
func (p *passage) linear(ctx context.Context, lin *model.Linear, job *rowsJob) (rows, error) {
	var err error
	if job.w, err = lin.Matrix(); err != nil {
		return rows{}, fmt.Errorf("%s: %w", p.src.Name(), err)
	}
	if err := p.check(job.tensor, job.first, job.w); err != nil {
		return rows{}, err
	}
	job.rounding = p.mayFallBack()
	if stores(job.tensor, lin) {
		stored, err := lin.Weights()
		if err != nil {
			return rows{}, err
		}
		job.stored = stored.Data
	}
	q, err := quantizeRows(ctx, job)
	if err == nil {
		p.shifts(&q, job)
	}
	return q, err
}

// shifts finds out how the job's rows shift the outputs' means, where the bias is corrected.
func (p *passage) shifts(q *rows, job *rowsJob) {
	if p.plan.corrects(job.tensor) {
		q.shift = job.in.ForRows(job.first, job.first+job.w.Rows).MeanShift(job.w, q.decoded)
	}
}

// stores says whether the checkpoint has a linear in the type that it is to get.
func stores(t *Tensor, lin *model.Linear) bool {
	return lin.F32 == nil && t.Type.Grid != nil && lin.W.Format.Name == t.Type.Name
}
