package pipeline

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/linalg"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Sizes of what MeasureSpeeds does: large enough that a machine of many processors is busy, and a round of a fraction of a second on one of two.
const (
	speedMany     = 1024 // rows and columns of what is solved, and columns whose weights are rounded: whole blocks of any type
	speedFew      = 256  // the same where products take fewer than speedSlow operations a second
	speedSlow     = 10e9
	speedWidest   = 2048 // columns of products, of speedOut times as many rows
	speedOut      = 3
	speedInputs   = 1 << 21 // of products: fewer tokens where these are wide, and speedTokens at most, as a batch has
	speedTokens   = 4096
	speedProducts = 0.2  // seconds, of products one after the other: fewer tokens where they take longer
	speedRows     = 64   // of each processor
	speedPart     = 1024 // likewise, of what works on parts of a linear (passage.split) and packs a Hessian for all of their rows
	speedBytes    = 16 << 20
	speedTime     = 200 * time.Millisecond // for the disk
	speedTry      = 30 * time.Millisecond  // for each other thing, in each round
	speedLong     = 150 * time.Millisecond // for products: a matrix unit that has rested is slower at first, and a run's goes on for seconds
	speedMost     = 600 * time.Millisecond
	speedGlance   = 8 * time.Millisecond
)

// MeasureSpeeds measures this machine at what the plan has it do with so many tokens in sequences of seqLen, in rounds of a fraction of a
// second, more where products are slow; m is nil if nothing is calibrated. The output will be on dir's disk, whose speed is left 0 where
// nothing can be written. So are Link, and Beside where no batches go side by side.
//
// Virtual machines share a processor: on one with a matrix unit products went at 355 or 870 GFLOP/s of a core, for times between 50 ms and half
// a minute. What counts for a run is the mean. total, where not nil, is how long the run takes at some
// speeds: as long as rounds tell different times, there are more of them (enough). Otherwise they end after a second. times are what total
// says of each round.
func (p *Plan) MeasureSpeeds(ctx context.Context, m *model.Model, tokens, seqLen int, dir string, total func(Speeds) float64) (s Speeds,
	times []float64, err error) {
	disk := writeSpeed(dir)
	side, batch := p.sideBySide(m, tokens, seqLen)
	round, err := p.rounds(ctx, side, batch)
	if err != nil {
		return s, nil, err
	}
	var sum rates
	began := time.Now()
	for n := 1.; ; n++ {
		r, err := round()
		if err != nil {
			return s, nil, err
		}
		sum = sum.plus(r)
		if total != nil {
			times = append(times, total(p.speeds(r, disk)))
		}
		if enough(time.Since(began), times) {
			return p.speeds(sum.over(n), disk), times, ctx.Err()
		}
	}
}

const (
	measuresLeast = 800 * time.Millisecond
	measuresMost  = 8 * time.Second
	measuresError = 0.02
)

// enough says whether rounds that took so long in all, and tell that a run takes these times, are enough: the standard error of their
// mean, as if rounds did not depend on each other, is small.
func enough(elapsed time.Duration, times []float64) bool {
	if elapsed < measuresLeast || elapsed >= measuresMost || len(times) == 0 {
		return elapsed >= measuresLeast
	}
	var sum, squares float64
	for _, t := range times {
		sum += t
	}
	n := float64(len(times))
	mean := sum / n
	for _, t := range times {
		squares += (t - mean) * (t - mean)
	}
	return n > 1 && math.Sqrt(squares/(n-1)/n) <= measuresError*mean
}

// rates are what a machine does in a second. A mean of rates at different times, unlike one of times, is that of all the time.
type rates struct {
	products, float32, beside, features float64 // as Speeds has them
	weights                             float64 // rounded, of so many columns; 0: the plan rounds none
	columns                             float64
}

func (r rates) plus(o rates) rates {
	return rates{r.products + o.products, r.float32 + o.float32, r.beside + o.beside, r.features + o.features, r.weights + o.weights, o.columns}
}

func (r rates) over(n float64) rates {
	return rates{r.products / n, r.float32 / n, r.beside / n, r.features / n, r.weights / n, r.columns}
}

// speeds are what the model of cost makes of rates.
func (p *Plan) speeds(r rates, disk float64) Speeds {
	rounded, exact := roundingOps(p.Recipe.Method)
	s := Speeds{Products: r.products, Float32: r.float32, Beside: r.beside, Feature: 1 / r.features, Disk: disk}
	s.Column = rounded/s.Products + exact/s.Float32
	if r.weights > 0 {
		s.Weight = max(0, 1/r.weights-r.columns*s.Column)
	}
	return s
}

// rounds returns what measures each rate once; Beside's of so many batches of so many tokens, if there are more than one.
func (p *Plan) rounds(ctx context.Context, side, batch int) (func() (rates, error), error) {
	n, width, rate := speedMany, p.width(), glance()
	switch {
	case rate < speedSlow:
		n, width = speedFew, min(width, speedFew)
	case rate < 10*speedSlow: // where width tells less, and products of wide ones take long
		width = min(width, speedMany)
	}
	size := float64(n)
	tokens := speedTokens
	for tokens > speedFew && (tokens*width > speedInputs || productOps(tokens, width) > speedProducts*rate) {
		tokens /= 2
	}
	multiply, ops := products(tokens, width)
	x, y := noise(n, n), tensor.New(n, n)
	sums := quant.NewStats(n)
	sums.Observe(x)
	for i := range n {
		sums.H.Row(i)[i] += float32(n) // as many tokens as features leave H hardly definite
	}
	// One factor, and triangular systems and a product for as many rows as there are tokens.
	solving := (1./3 + 2 + 2) * size * size * size
	solve := func() {
		l := sums.H.Clone()
		linalg.Cholesky(l)
		linalg.Solve(y, l)
		gemm.NN(y, 1, x, sums.H, kernels.F32)
	}
	var rounding func() error
	var weights float64
	if t := p.mainType(); t != nil && t.Grid != nil {
		if t = p.typeFor(t, n); t != nil {
			var err error
			if rounding, weights, err = p.rounding(ctx, t, sums); err != nil {
				return nil, err
			}
		}
	}
	compute := features(x, tensor.New(n, n))
	multiply() // finds its code and memory
	var beside func()
	var besideOps float64
	if side > 1 {
		for batch > speedFew && float64(side)*productOps(batch, width) > speedProducts*rate {
			batch /= 2
		}
		beside, besideOps = productsBeside(side, batch, width)
		beside()
	}
	return func() (r rates, err error) {
		r.products = ops * perSecond(multiply, speedLong)
		r.float32 = solving * perSecond(solve, speedTry)
		r.features = float64(len(x.Data)) * perSecond(compute, speedTry)
		if beside != nil {
			r.beside = besideOps * perSecond(beside, speedLong)
		}
		if rounding != nil && ctx.Err() == nil {
			r.weights, r.columns = weights*perSecond(func() { err = rounding() }, speedTry), size
		}
		return r, errors.Join(err, ctx.Err())
	}, nil
}

// width is how wide products are, of operations whose speed grows with width: the columns of the quantized linears, in the harmonic mean.
// Narrow ones take long for what goes before a product, their operands' packing, and with a matrix unit most of the time.
func (p *Plan) width() int {
	const step = 64
	var weights, rows int
	for i := range p.Tensors {
		if t := &p.Tensors[i]; t.Type.Grid != nil {
			weights, rows = weights+t.Elements(), rows+t.Elements()/t.Cols()
		}
	}
	if rows == 0 {
		return speedMany
	}
	return max(step, min(weights/rows/step*step, speedWidest))
}

// products returns a function that multiplies hidden states by weights, and for one of each kind of sum, and how many operations it takes:
// two thirds are of weights, as in a run. Sums of narrow inputs are slower, with a matrix unit by far.
func products(tokens, n int) (multiply func(), ops float64) {
	const out = speedOut
	x, y, h := noise(tokens, n), tensor.New(tokens, out*n), tensor.New(n, n)
	w := kernels.Weights{Rows: out * n, Cols: n, Format: &ggml.BF16.Format, Data: make([]byte, 2*out*n*n)}
	tensor.EncodeBF16(w.Data, noise(out*n, n).Data)
	return func() {
		gemm.MatMul(y, x, &w, kernels.Auto)
		gemm.Syrk(h, x, kernels.Auto)
		gemm.TN(h, 1e-3, y.View(0, tokens, 0, n), x, kernels.Auto)
	}, productOps(tokens, n)
}

// productsBeside returns a function that does what products' does for so many batches side by side.
func productsBeside(side, tokens, n int) (multiply func(), ops float64) {
	each := make([]func(), side)
	for i := range each {
		each[i], _ = products(tokens, n)
	}
	return func() {
		defer kernels.Divide(side)()
		kernels.Spread(side, side, func(i int) { each[i]() })
	}, float64(side) * productOps(tokens, n)
}

// productOps is how many operations products' function takes.
func productOps(tokens, n int) float64 {
	return (2*speedOut + 1 + 2) * float64(tokens) * float64(n) * float64(n)
}

// glance is about how many operations a second products take: milliseconds tell, where they are not slow.
func glance() float64 {
	multiply, ops := products(speedFew, speedFew)
	best := time.Duration(math.MaxInt64)
	for began := time.Now(); time.Since(began) < speedGlance; { // the first finds its code and memory
		best = min(best, undisturbed(multiply))
	}
	return ops / max(best, 1).Seconds()
}

// features returns a function that does with all of x what is done between products: each feature is computed and rounded.
func features(x, y *tensor.Matrix) func() {
	data := make([]byte, 2*len(x.Data))
	const grain = 16 // rows
	return func() {
		kernels.Parallel(x.Rows, grain, func(lo, hi int) {
			in, out := x.View(lo, hi, 0, x.Cols), y.View(lo, hi, 0, x.Cols)
			elementwise.SiLUMul(out, in, in)
			for i := range in.Rows {
				tensor.EncodeBF16(data[2*(lo+i)*x.Cols:2*(lo+i+1)*x.Cols], out.Row(i))
			}
		})
	}
}

// typeFor is a type that has t's blocks in rows of n columns; nil if none has.
func (p *Plan) typeFor(t *ggml.Type, n int) *ggml.Type {
	if n%t.Grid.Shape().Block == 0 {
		return t
	}
	if p.Recipe.Container == nil {
		return nil
	}
	for i := range p.Tensors { // a row of another length is a block of another type
		if linear := &p.Tensors[i]; linear.Type == t {
			of := p.Recipe.Container.Type(&ggml.Info{Name: linear.Name, Type: linear.From, Shape: []int{linear.Rows(), n}})
			if of != nil && of.Grid != nil {
				return of
			}
		}
	}
	return nil
}

// rounding returns a function that rounds weights of rows whose inputs sums have seen, without what couples their outputs, and how many.
func (p *Plan) rounding(ctx context.Context, t *ggml.Type, in *quant.Stats) (func() error, float64, error) {
	cols, workers := in.H.Rows, kernels.Processors()
	rows := speedRows
	if p.Recipe.Divisible() == nil {
		rows = speedPart
	}
	few := quant.Job{Grid: t.Grid}
	switch {
	case p.Recipe.KeepCodes: // and nothing was calibrated
		in = nil
	case p.Recipe.wantsOutputs():
		rows = kernels.Lanes // of a batch of rows whose outputs go together: gptq.BatchRows
		few.Outputs = []*tensor.Matrix{tensor.New(rows, rows)}
	}
	solver := p.Recipe.Method.Open(in)
	round := func(job quant.Job) error {
		var eg errgroup.Group
		for range workers {
			eg.Go(func() error {
				res, err := solver.Quantize(ctx, job)
				if err == nil {
					t.PackWeight(res.Weight)
				}
				return err
			})
		}
		return eg.Wait()
	}
	all := quant.Job{Grid: t.Grid, W: noise(rows, cols)}
	// A few rows find what the solver computes once and, where their outputs are said to go together, packs for all batches. Others tell
	// whether all rows would take too long.
	few.W = all.W.View(0, min(rows, kernels.Lanes), 0, cols)
	if err := round(few); err != nil {
		return nil, 0, err
	}
	few.Outputs = nil
	var err error
	seconds := undisturbed(func() { err = round(few) }).Seconds()
	if seconds*float64(rows/few.W.Rows) > speedMost.Seconds() {
		all = few
	}
	return func() error { return round(all) }, float64(workers * all.W.Rows * cols), err
}

// perSecond is how often f is done in a second, but for what other programs take, in so long a time.
func perSecond(f func(), d time.Duration) float64 {
	var took time.Duration
	n := 0.
	for began := time.Now(); n == 0 || time.Since(began) < d; n++ {
		took += undisturbed(f)
	}
	return n / max(took, 1).Seconds()
}

// undisturbed is how long f would have taken if no other program had been given a processor: less by what the process's threads have
// waited for one, but as long as they have run on all processors at once.
func undisturbed(f func()) time.Duration {
	ran, waited := processorTime()
	start := time.Now()
	f()
	elapsed := time.Since(start)
	ran2, waited2 := processorTime()
	return min(elapsed, max(elapsed-(waited2-waited), (ran2-ran)/time.Duration(kernels.Processors())))
}

// noise is a matrix of Gaussian values, the same each time.
func noise(rows, cols int) *tensor.Matrix {
	m := tensor.New(rows, cols)
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(cols)))
	for i := range m.Data {
		m.Data[i] = float32(rng.NormFloat64())
	}
	return m
}

// writeSpeed writes a file that has no name by then, and returns in bytes/s how fast that was on the disk; 0 where it cannot be.
func writeSpeed(dir string) float64 {
	f, err := os.CreateTemp(dir, ".llmq-speed-*")
	if err != nil {
		return 0
	}
	defer os.Remove(f.Name())
	defer f.Close()
	os.Remove(f.Name()) // as in package states
	data := make([]byte, speedBytes/4)
	written := 0
	start := time.Now()
	for written < speedBytes && time.Since(start) < speedTime {
		if _, err := f.Write(data); err != nil {
			return 0
		}
		if err := f.Sync(); err != nil {
			return 0
		}
		written += len(data)
	}
	return float64(written) / max(time.Since(start), 1).Seconds()
}
