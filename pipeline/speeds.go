package pipeline

import (
	"context"
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
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Sizes of what MeasureSpeeds does: large enough that a machine of many processors is busy, and a second in all on one of two.
const (
	speedMany  = 1024 // tokens, and columns: whole blocks of any type
	speedFew   = 256  // the same where products take fewer than speedSlow operations a second
	speedSlow  = 10e9
	speedRows  = 64   // of each processor
	speedPart  = 1024 // likewise, of what works on parts of a linear (passage.split) and packs a Hessian for all of their rows
	speedBytes = 16 << 20
	// Each thing is repeated until speedTime has passed and speedTries are done, or speedMost has passed.
	speedTime   = 200 * time.Millisecond
	speedTries  = 3
	speedMost   = 600 * time.Millisecond
	speedGlance = 8 * time.Millisecond
)

// MeasureSpeeds measures this machine at what the plan has it do, in about a second, or a few where products are slow; the output will be
// on dir's disk, whose speed is left 0 where nothing can be written. So is Link.
func (p *Plan) MeasureSpeeds(ctx context.Context, dir string) (Speeds, error) {
	var s Speeds
	n := speedMany
	if glance() < speedSlow {
		n = speedFew
	}
	size := float64(n)
	x, y := noise(n, n), tensor.New(n, n)
	multiply, ops := products(x, y, tensor.New(n, n))
	s.Products = ops / shortest(multiply)
	sums := quant.NewStats(n)
	sums.Observe(x)
	for i := range n {
		sums.H.Row(i)[i] += float32(n) // as many tokens as features leave H hardly definite
	}
	// One factor, and triangular systems and a product for as many rows as there are tokens.
	solving := (1./3 + 2 + 2) * size * size * size
	s.Float32 = solving / shortest(func() {
		l := sums.H.Clone()
		linalg.Cholesky(l)
		linalg.Solve(y, l)
		gemm.NN(y, 1, x, sums.H, kernels.F32)
	})
	if err := ctx.Err(); err != nil {
		return s, err
	}
	s.Feature = featureTime(x, y)
	rounded, exact := roundingOps(p.Recipe.Method)
	s.Column = rounded/s.Products + exact/s.Float32
	if t := p.mainType(); t != nil && t.Grid != nil {
		if t = p.typeFor(t, n); t != nil {
			weight, err := p.roundingTime(ctx, t, sums)
			if err != nil {
				return s, err
			}
			s.Weight = max(0, weight-size*s.Column)
		}
	}
	s.Disk = writeSpeed(dir)
	return s, nil
}

// products returns a function that multiplies square matrices, hidden states by weights and for one of each kind of sum, and how many
// operations it takes.
func products(x, y, h *tensor.Matrix) (multiply func(), ops float64) {
	n := x.Rows
	w := kernels.Weights{Rows: n, Cols: n, Format: &ggml.BF16.Format, Data: make([]byte, 2*n*n)}
	tensor.EncodeBF16(w.Data, x.Data)
	return func() {
		gemm.MatMul(y, x, &w, kernels.Auto)
		gemm.Syrk(h, x, kernels.Auto)
		gemm.TN(h, 1e-3, y, x, kernels.Auto)
	}, (2 + 1 + 2) * float64(n) * float64(n) * float64(n)
}

// glance is about how many operations a second products take: milliseconds tell, where they are not slow.
func glance() float64 {
	multiply, ops := products(noise(speedFew, speedFew), tensor.New(speedFew, speedFew), tensor.New(speedFew, speedFew))
	best := time.Duration(math.MaxInt64)
	for began := time.Now(); time.Since(began) < speedGlance; { // the first finds its code and memory
		best = min(best, undisturbed(multiply))
	}
	return ops / max(best, 1).Seconds()
}

// featureTime is how many seconds a feature of a token takes between products: it is computed and rounded.
func featureTime(x, y *tensor.Matrix) float64 {
	data := make([]byte, 2*len(x.Data))
	const grain = 16 // rows
	return shortest(func() {
		kernels.Parallel(x.Rows, grain, func(lo, hi int) {
			in, out := x.View(lo, hi, 0, x.Cols), y.View(lo, hi, 0, x.Cols)
			elementwise.SiLUMul(out, in, in)
			for i := range in.Rows {
				tensor.EncodeBF16(data[2*(lo+i)*x.Cols:2*(lo+i+1)*x.Cols], out.Row(i))
			}
		})
	}) / float64(len(x.Data))
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

// roundingTime is how many seconds a weight takes of rows whose inputs sums have seen, without what couples their outputs.
func (p *Plan) roundingTime(ctx context.Context, t *ggml.Type, in *quant.Stats) (float64, error) {
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
		return 0, err
	}
	few.Outputs = nil
	var err error
	seconds := undisturbed(func() { err = round(few) }).Seconds()
	if err != nil {
		return 0, err
	}
	if seconds*float64(rows/few.W.Rows) > speedMost.Seconds() {
		seconds = min(seconds, undisturbed(func() { err = round(few) }).Seconds())
		return seconds / float64(workers*few.W.Rows*cols), err
	}
	seconds = shortest(func() { err = round(all) })
	return seconds / float64(workers*rows*cols), err
}

// shortest is the time of f in a few tries, in seconds: that which other programs have disturbed least.
func shortest(f func()) float64 {
	best := time.Duration(math.MaxInt64)
	for i, began := 0, time.Now(); i < speedTries && time.Since(began) < speedMost || time.Since(began) < speedTime; i++ {
		best = min(best, undisturbed(f))
	}
	return max(best, 1).Seconds()
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
