package pipeline

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/linalg"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Sizes of what MeasureSpeeds does: large enough that a machine of many processors is busy, and a second in all on one of two.
const (
	speedTokens = 1024
	speedMany   = 1024 // columns, whole blocks of any type
	speedRows   = 64   // of each processor
	speedPart   = 256  // likewise, of what works on parts of a linear (passage.split) and packs a Hessian for all of their rows
	speedBytes  = 16 << 20
	// Each thing is done until this has passed, but at least so often.
	speedTime  = 200 * time.Millisecond
	speedTries = 3
)

// MeasureSpeeds measures this machine at what the plan has it do, in about a second; the output will be on dir's disk. Link is left 0.
func (p *Plan) MeasureSpeeds(ctx context.Context, dir string) (Speeds, error) {
	var s Speeds
	x := noise(speedTokens, speedMany)
	w := kernels.Weights{Rows: speedMany, Cols: speedMany, Format: &ggml.BF16.Format, Data: make([]byte, 2*speedMany*speedMany)}
	tensor.EncodeBF16(w.Data, noise(speedMany, speedMany).Data)
	y, h := tensor.New(speedTokens, speedMany), tensor.New(speedMany, speedMany)
	// One product of hidden states and weights, and one of each kind of sum.
	const products = (2 + 1 + 2) * speedTokens * speedMany * speedMany
	s.Products = products / shortest(func() {
		gemm.MatMul(y, x, &w, kernels.Auto)
		gemm.Syrk(h, x, kernels.Auto)
		gemm.TN(h, 1e-3, y, x, kernels.Auto)
	})
	sums := quant.NewStats(speedMany)
	sums.Observe(x)
	for i := range speedMany {
		sums.H.Row(i)[i] += speedTokens // as many tokens as features leave H hardly definite
	}
	// One factor, and triangular systems and a product for as many rows as there are tokens.
	const solving = speedMany*speedMany*speedMany/3 + (2+2)*speedTokens*speedMany*speedMany
	s.Float32 = solving / shortest(func() {
		l := sums.H.Clone()
		linalg.Cholesky(l)
		linalg.Solve(y, l)
		gemm.NN(y, 1, x, sums.H, kernels.F32)
	})
	if err := ctx.Err(); err != nil {
		return s, err
	}
	rounded, exact := roundingOps(p.Recipe.Method)
	s.Column = rounded/s.Products + exact/s.Float32
	if t := p.mainType(); t.Grid != nil {
		weight, err := p.roundingTime(ctx, t, sums)
		if err != nil {
			return s, err
		}
		s.Weight = max(0, weight-speedMany*s.Column)
	}
	var err error
	s.Disk, err = writeSpeed(dir)
	return s, err
}

// roundingTime is how many seconds a weight takes of rows whose inputs sums have seen.
func (p *Plan) roundingTime(ctx context.Context, t *ggml.Type, in *quant.Stats) (float64, error) {
	solver := p.Recipe.Method.Open(in)
	rows := speedRows
	if p.Recipe.Divisible() == nil {
		rows = speedPart
	}
	if p.Recipe.wantsOutputs() {
		rows = kernels.Lanes // of a batch of rows whose outputs go together: gptq.BatchRows
	}
	round := func(w *tensor.Matrix) error {
		res, err := solver.Quantize(ctx, quant.Job{W: w, Grid: t.Grid})
		if err == nil {
			t.PackWeight(res.Weight)
		}
		return err
	}
	w := noise(rows, speedMany)
	if err := round(w); err != nil { // finds what the solver computes once
		return 0, err
	}
	workers := kernels.Processors()
	var err error
	seconds := shortest(func() {
		var eg errgroup.Group
		for range workers {
			eg.Go(func() error { return round(w) })
		}
		err = eg.Wait()
	})
	return seconds / float64(workers*rows*speedMany), err
}

// shortest is the time of f in a few tries, in seconds: that which other programs have disturbed least.
func shortest(f func()) float64 {
	best := time.Duration(math.MaxInt64)
	for i, began := 0, time.Now(); i < speedTries || time.Since(began) < speedTime; i++ {
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

// writeSpeed writes a file that has no name by then, and returns in bytes/s how fast that was on the disk.
func writeSpeed(dir string) (float64, error) {
	f, err := os.CreateTemp(dir, ".llmq-speed-*")
	if err != nil {
		return 0, fmt.Errorf("measuring the disk: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	os.Remove(f.Name()) // as in package states
	data := make([]byte, speedBytes)
	start := time.Now()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return 0, fmt.Errorf("measuring the disk: %w", err)
	}
	return speedBytes / max(time.Since(start), 1).Seconds(), nil
}
