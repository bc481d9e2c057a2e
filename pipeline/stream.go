package pipeline

import (
	"context"
	"errors"
	"slices"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

const (
	// batchBytes bounds what a layer may compute of a batch, unless that is leastTokens already. 4096 tokens stay below it up to a
	// stream of 8192 features with an MLP of 28672; DeepSeek-V3, whose 128 heads have queries of 576 features each, computes three
	// times as much for a token.
	batchBytes  = 2 << 30
	leastTokens = 512
)

// batchTokens is how many tokens pass through a stage together: enough for the matrix products to run at speed.
// Tests take fewer.
var batchTokens = 4096

// batchOf is how many tokens of a model pass through a stage together: batchTokens, or as many as batchBytes allow.
func batchOf(m *model.Model) int {
	var most int64 // features of a token
	for i := range m.Layers() {
		most = max(most, int64(m.Dim+m.Widest())+m.Computed(i))
	}
	n := batchTokens
	for n > leastTokens && 4*int64(n)*most > batchBytes {
		n /= 2
	}
	return n
}

// stream carries hidden states through the stages of one version of the model. Stages are taken in the order of the
// forward pass, each for all batches.
type stream struct {
	*workspace
	m      *model.Model
	seqLen int
	x      *states.Store // the residual stream, and what the layers keep beside it
	// carry is the input of a stage that is worth keeping until its linears are quantized; nil for the original model,
	// whose stages are applied at once.
	carry *states.Store
	// hidden is the input of a stage that adds what it makes of it to the residual stream, an MLP's inner activations: it is kept until
	// the linear is quantized, as products round it, so that what follows is the same bytes. nil: it is computed again then.
	hidden *states.Store
	// partial says that these are the sequences of one shard.
	partial bool
	batches batching
	at      int // the stage of the layer that x, and carry if that stage carries, are before
}

// workspace is what a batch needs on its way through a layer, and nobody afterwards: streams that do not move at the same time
// may have it in common.
type workspace struct {
	st          *model.State
	copy, lacks []float32
}

func newWorkspace(m *model.Model) *workspace { return &workspace{st: m.NewState()} }

// beside returns a workspace for a stream that computes nothing while that of w does: in what passes they are one.
func (w *workspace) beside(m *model.Model) *workspace { return &workspace{st: m.NewStateBeside(w.st)} }

// stateBudget is what is left of the memory for hidden states. A store of them is in memory, or in a file, as a whole.
type stateBudget struct {
	limited bool
	left    int64
}

// newStateBudget returns a budget of so many bytes; 0: no limit.
func newStateBudget(bytes int64) *stateBudget { return &stateBudget{bytes > 0, bytes} }

// fits says whether so many bytes may be taken, and takes them.
func (b *stateBudget) fits(bytes int64) bool {
	if b.limited && bytes > b.left {
		return false
	}
	b.left -= bytes
	return true
}

// newStream embeds the calibration sequences. keep says that the linears which a stage leads to are yet to be quantized.
// replace is model.Model.Embed's.
func newStream(m *model.Model, seqs [][]int32, seqLen int, keep bool, budget *stateBudget, tempDir string,
	replace model.ReplaceRows) (*stream, error) {
	if err := m.CheckLength(seqLen); err != nil {
		return nil, err
	}
	s, err := zeroStream(m, textBatches(m, len(seqs), seqLen), seqLen, keep, budget, tempDir)
	if err != nil {
		return nil, err
	}
	err = embed(m, s.x, seqs, seqLen, replace)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// embed fills x with the embeddings of sequences. replace is model.Model.Embed's.
func embed(m *model.Model, x *states.Store, seqs [][]int32, seqLen int, replace model.ReplaceRows) error {
	for i := range x.Batches() {
		rows, err := x.Get(i)
		if err != nil {
			return err
		}
		lo, hi := x.Sequences(i)
		for k := lo; k < hi; k++ {
			if err := m.Embed(rows.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Width), seqs[k], seqLen, replace); err != nil {
				return err
			}
		}
		if err := x.Put(i, rows); err != nil {
			return err
		}
	}
	return nil
}

// zeroStream is newStream before it has embedded anything, of all batches of a text or some that follow each other.
func zeroStream(m *model.Model, batches batching, seqLen int, keep bool, budget *stateBudget, tempDir string) (*stream, error) {
	store := func(dim int) (*states.Store, error) {
		limit := int64(1)
		if budget.fits(stateBytes(batches.seqs()*seqLen, dim)) {
			limit = 0
		}
		return states.New(batches, seqLen, dim, limit, tempDir)
	}
	s := &stream{workspace: newWorkspace(m), m: m, seqLen: seqLen, batches: batches}
	var err error
	if s.x, err = store(m.Width); err != nil {
		return nil, err
	}
	if dim := m.Carried(); keep && dim > 0 {
		if s.carry, err = store(dim); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// shardOf is the shard of batch i.
func (s *stream) shardOf(i int) int {
	if s.partial {
		return 0
	}
	return shardOf(i, s.x.Batches())
}

// stateBytes is the size of hidden states of dim features.
func stateBytes(tokens, dim int) int64 { return 4 * int64(tokens) * int64(dim) }

// keepHidden has the stream keep what hidden is for.
func (s *stream) keepHidden(budget *stateBudget, tempDir string) error {
	dim := s.m.Hidden()
	if dim == 0 {
		return nil
	}
	size, store := hiddenBytes(s.batches.seqs()*s.seqLen, s.seqLen, dim), states.New
	if hiddenRounds(s.seqLen) {
		store = states.NewBF16
	}
	limit := int64(1)
	if budget.fits(size) {
		limit = 0
	}
	var err error
	s.hidden, err = store(s.batches, s.seqLen, dim, limit, tempDir)
	return err
}

// hiddenRounds says whether hidden can be kept in bfloat16: products round it to that anyway, but those of the fewest tokens.
func hiddenRounds(seqLen int) bool { return kernels.Auto.Rounds() && seqLen > gemm.FewTokens }

// hiddenBytes is the size of what is kept of dim hidden features.
func hiddenBytes(tokens, seqLen, dim int) int64 {
	bytes := stateBytes(tokens, dim)
	if hiddenRounds(seqLen) {
		bytes /= 2
	}
	return bytes
}

func (s *stream) close() error {
	var err error
	for _, st := range s.stores() {
		err = errors.Join(err, st.Close())
	}
	return err
}

func (s *stream) stores() []*states.Store {
	return slices.DeleteFunc([]*states.Store{s.x, s.carry, s.hidden}, func(st *states.Store) bool { return st == nil })
}

// rest gives back the memory that the stream takes to compute a batch, until the next one.
func (s *stream) rest() {
	s.st.Rest()
	s.copy, s.lacks = nil, nil
	for _, st := range s.stores() {
		st.Rest()
	}
}

// each calls f for every batch of hidden states.
func (s *stream) each(f func(i int, x *tensor.Matrix) error) error {
	for i := range s.x.Batches() {
		x, err := s.x.Get(i)
		if err != nil {
			return err
		}
		if err := f(i, x); err != nil {
			return err
		}
	}
	return nil
}

func scratch(buf *[]float32, rows, cols int) *tensor.Matrix {
	if cap(*buf) < rows*cols {
		*buf = make([]float32, rows*cols)
	}
	return tensor.FromSlice(rows, cols, (*buf)[:rows*cols])
}

// keeps says whether the stream can stand before stage k of l: its input depends on x, or is kept. The end is such a
// place too.
func (s *stream) keeps(l *model.Layer, k int) bool {
	if k == len(l.Stages) {
		return true
	}
	stage := &l.Stages[k]
	return stage.Begins || stage.Carries && !stage.Inside && s.carry != nil || s.hides(l, k)
}

// hides says whether hidden keeps the input of stage k.
func (s *stream) hides(l *model.Layer, k int) bool {
	return s.hidden != nil && l.Stages[k].Hides()
}

// enter puts batch i, at the stage where the stream stands, into s.st. x may be changed where the stream goes on to a
// place where it can stand; it works on a copy otherwise.
func (s *stream) enter(l *model.Layer, i int, x *tensor.Matrix, goesOn bool) error {
	if !goesOn {
		c := scratch(&s.copy, x.Rows, x.Cols)
		copy(c.Data, x.Data)
		x = c
	}
	s.st.Enter(s.m, x, s.seqLen)
	if s.at == 0 || l.Stages[s.at].Begins {
		return nil
	}
	if s.hides(l, s.at) {
		s.st.In = s.st.Scratch("hidden", x.Rows, l.Stages[s.at].Width())
		return s.hidden.Read(i, s.st.In)
	}
	in, err := s.carry.Get(i)
	if err != nil {
		return err
	}
	s.st.In = in
	if width := l.Stages[s.at].Width(); width < in.Cols {
		s.st.In = in.View(0, in.Rows, 0, width)
	}
	return nil
}

// visit takes all batches to stage k of l, and calls see for each with the stage's input ready in s.st. The batch's
// hidden states are at s.st.X, to be left alone.
func (s *stream) visit(ctx context.Context, l *model.Layer, k int, see func(i int) error) error {
	goesOn := s.keeps(l, k)
	err := s.each(func(i int, x *tensor.Matrix) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.enter(l, i, x, goesOn); err != nil {
			return err
		}
		if err := l.Run(ctx, s.st, s.at, k, nil); err != nil {
			return err
		}
		if goesOn && k != s.at {
			if err := s.x.Put(i, x); err != nil {
				return err
			}
			if err := s.keep(l, k, i); err != nil {
				return err
			}
		}
		if k == len(l.Stages) {
			return nil
		}
		if err := l.Look(s.st, k, nil); err != nil {
			return err
		}
		return see(i)
	})
	if err == nil && goesOn {
		s.at = k
	}
	return err
}

// keep stores the input of stage k, if it is one that is kept.
func (s *stream) keep(l *model.Layer, k, i int) error {
	if k == len(l.Stages) || l.Stages[k].Begins {
		return nil
	}
	if s.hides(l, k) {
		return s.hidden.Write(i, s.st.In)
	}
	in, err := s.carry.Get(i)
	if err != nil {
		return err
	}
	for t := range in.Rows {
		copy(in.Row(t), s.st.In.Row(t))
	}
	return s.carry.Put(i, in)
}

// advance takes the hidden states through the rest of l: they are the next layer's input.
func (s *stream) advance(ctx context.Context, l *model.Layer) error {
	err := s.visit(ctx, l, len(l.Stages), nil)
	s.at = 0
	return err
}

// step takes batch i to stage k of l, whose linears stay as they are, and calls see with the stage's input ready in s.st.
// Then it applies the stage, if the stream can stand behind it and all of its sites have been seen.
func (s *stream) step(ctx context.Context, l *model.Layer, k, i int, last bool, see func() error) error {
	x, err := s.x.Get(i)
	if err != nil {
		return err
	}
	goesOn := last && s.keeps(l, k+1)
	if err := s.enter(l, i, x, goesOn); err != nil {
		return err
	}
	if err := l.Run(ctx, s.st, s.at, k, nil); err != nil {
		return err
	}
	if err := l.Look(s.st, k, nil); err != nil {
		return err
	}
	if err := see(); err != nil || !goesOn {
		return err
	}
	l.Stages[k].Apply(s.st)
	if err := l.Err(); err != nil {
		return err
	}
	return s.x.Put(i, x)
}

// lackSums are sums of what inputs lack: of *quant.Stats, which has ObserveDrift and ObserveShortfall, or of *gathered.
type lackSums interface {
	ObserveDrift(drift, x *tensor.Matrix)
	ObserveShortfall(missing, x *tensor.Matrix)
}

// alongside takes batch i of the original model, whose stream s is, a step to stage k of its layer ol, while q, the stream
// of the quantized one, stands there in its layer l. It adds to each of in that is not nil what q's inputs lack; in are of the stage's
// sites from first on. last says that no others of them are to come.
func (s *stream) alongside(ctx context.Context, ol *model.Layer, k, i int, q *stream, l *model.Layer, first int, in []lackSums,
	last bool) error {
	stage := &ol.Stages[k]
	var missing, own *tensor.Matrix
	err := s.step(ctx, ol, k, i, last, func() error {
		if !stage.Adds {
			for j, stats := range in {
				if stats != nil {
					s.observeDrift(stats, stage, q, &l.Stages[k], first+j)
				}
			}
			return nil
		}
		own = s.st.In
		missing = scratch(&s.lacks, s.st.X.Rows, s.st.X.Cols)
		for t := range missing.Rows {
			copy(missing.Row(t), s.st.X.Row(t))
		}
		subtract(missing, q.st.X)
		return nil
	})
	if err != nil || missing == nil {
		return err
	}
	subtract(own, q.st.In)
	s.st.AddProduct(missing, stage.Sites[0].Linears[0], own)
	if rests(s.m, stage.Width()) {
		ol.Rest() // a batch's sums take most
	}
	in[0].ObserveShortfall(missing, q.st.In)
	return nil
}

// passed says that all batches have been alongside at stage k.
func (s *stream) passed(ol *model.Layer, k int) {
	if s.keeps(ol, k+1) {
		s.at = k + 1
	}
	if s.at == len(ol.Stages) {
		s.at = 0
	}
}

// observeDrift adds to in what the inputs of site j, as q has them, lack: for experts, of the tokens that both models send
// there.
func (s *stream) observeDrift(in lackSums, stage *model.Stage, q *stream, qStage *model.Stage, j int) {
	own, ownTokens := stage.InputOf(s.st, j)
	h, tokens := qStage.InputOf(q.st, j)
	if tokens == nil {
		drift := scratch(&s.lacks, own.Rows, own.Cols)
		for t := range own.Rows {
			copy(drift.Row(t), own.Row(t))
		}
		subtract(drift, h)
		in.ObserveDrift(drift, h)
		return
	}
	// Both lists ascend. A token that the original sends elsewhere drifts by nothing that is known.
	drift := scratch(&s.lacks, h.Rows, h.Cols)
	drift.Zero()
	o := 0
	for t, token := range tokens {
		for o < len(ownTokens) && ownTokens[o] < token {
			o++
		}
		if o < len(ownTokens) && ownTokens[o] == token {
			row := drift.Row(t)
			copy(row, own.Row(o))
			vector.Axpy(row, -1, h.Row(t))
		}
	}
	if h.Rows > 0 {
		in.ObserveDrift(drift, h)
	}
}

// subtract sets a -= b.
func subtract(a, b *tensor.Matrix) {
	const grain = 64 // rows
	kernels.Parallel(a.Rows, grain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			vector.Axpy(a.Row(i), -1, b.Row(i))
		}
	})
}
