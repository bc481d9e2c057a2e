// Package bench measures kernels against what the machine can do: each figure comes with its share of the peak that
// bounds it, both from the same run.
package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/peak"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// Shape is the size of a linear.
type Shape struct {
	In  int `json:"in"`
	Out int `json:"out"`
}

func (s Shape) String() string { return fmt.Sprintf("%d×%d", s.In, s.Out) }

// The defaults are linears of 1B to 8B models.
var (
	Shapes = []Shape{{2048, 2048}, {4096, 4096}, {4096, 14336}, {14336, 4096}}
	Tokens = []int{1, 8, 64, 512, 2048}
)

// Result is one measurement.
type Result struct {
	Kernel  string  `json:"kernel"`
	Type    string  `json:"type"`
	Shape   Shape   `json:"shape"`
	Tokens  int     `json:"tokens"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"rate"`
	Unit    string  `json:"unit"` // of Rate: what the bound limits
	Bound   string  `json:"bound"`
	Share   float64 `json:"share"` // of the bound
}

// Machine is the machine's limits, with one thread and with all.
type Machine struct {
	Tier    string      `json:"tier"`
	Threads int         `json:"threads"`
	Peaks   []peak.Peak `json:"peaks"`
}

// Measure finds the machine's limits.
func Measure() *Machine {
	n := kernels.Processors()
	m := &Machine{Tier: kernels.CurrentTier().String(), Threads: n, Peaks: peak.Peaks(1)}
	if n > 1 {
		m.Peaks = append(m.Peaks, peak.Peaks(n)...)
	}
	return m
}

// peak returns the best rate among the peaks whose name starts with prefix, with all threads, and its full name.
func (m *Machine) peak(prefix string) (rate float64, name string) {
	for _, p := range m.Peaks {
		if p.Threads == m.Threads && strings.HasPrefix(p.Name, prefix) && p.Rate > rate {
			rate, name = p.Rate, p.Name
		}
	}
	return rate, name
}

// arithmetic is the peak that bounds matrix products of the given precision in the current tier.
func (m *Machine) arithmetic(p kernels.Precision) (rate float64, name string) {
	tier := kernels.CurrentTier()
	if p.Rounds() {
		return m.peak("bf16")
	}
	if tier == kernels.AVX2 || tier == kernels.AVXVNNI {
		return m.peak("f32 FMA, AVX2")
	}
	return m.peak("f32")
}

// least is the time that a peak is measured for. Tests that do not look at times lower it.
var least = 100 * time.Millisecond

// timeIt returns the shortest time of f in a few runs, which is the one least disturbed by other programs: five, or as many
// as take the least time, unless they take very long.
func timeIt(ctx context.Context, f func()) float64 {
	const runs, most = 5, 2 * time.Second
	best := time.Duration(1<<63 - 1)
	start := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		if spent := time.Since(start); i >= 2 && spent >= most || i >= runs && spent >= least {
			break
		}
		t := time.Now()
		f()
		best = min(best, time.Since(t))
	}
	return best.Seconds()
}

// bounded states a measurement as a share of whichever of arithmetic and memory takes longer.
func (m *Machine) bounded(r Result, flops, bytes float64, p kernels.Precision) Result {
	compute, name := m.arithmetic(p)
	return m.roofline(r, flops, "GFLOP/s", bytes, compute, name)
}

// roofline is bounded with the peak of arithmetic given, 0 if there is none: the roofline model (Williams, Waterman and
// Patterson, CACM 52(4), 2009).
func (m *Machine) roofline(r Result, ops float64, unit string, bytes, compute float64, name string) Result {
	bandwidth, memory := m.peak("memory read")
	if compute == 0 { // no vector instructions, so none measured
		r.Rate, r.Unit = ops/r.Seconds/1e9, unit
		return r
	}
	if ops/compute > bytes/bandwidth {
		r.Rate, r.Unit, r.Bound, r.Share = ops/r.Seconds/1e9, unit, name, ops/r.Seconds/1e9/compute
	} else {
		r.Rate, r.Unit, r.Bound, r.Share = bytes/r.Seconds/1e9, "GB/s", memory, bytes/r.Seconds/1e9/bandwidth
	}
	return r
}

func random(rows, cols int) *tensor.Matrix {
	m := tensor.New(rows, cols)
	kernels.Parallel(rows, 16, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(cols)))
			for j := range m.Row(i) {
				m.Row(i)[j] = float32(rng.NormFloat64())
			}
		}
	})
	return m
}

// weights encodes one block row and repeats it: speed does not depend on the values.
func weights(t *ggml.Type, s Shape) *kernels.Weights {
	row := make([]byte, t.RowBytes(s.In))
	t.Encode(row, random(1, s.In).Row(0), nil)
	w := &kernels.Weights{Rows: s.Out, Cols: s.In, Format: &t.Format}
	w.Data = make([]byte, 0, s.Out*len(row))
	for range s.Out {
		w.Data = append(w.Data, row...)
	}
	return w
}

// MatMul measures products of activations with weights of type t.
func (m *Machine) MatMul(ctx context.Context, t *ggml.Type, s Shape, tokens int, p kernels.Precision) Result {
	x, w, dst := random(tokens, s.In), weights(t, s), tensor.New(tokens, s.Out)
	r := Result{Kernel: "matmul", Type: t.Name, Shape: s, Tokens: tokens}
	r.Seconds = timeIt(ctx, func() { gemm.MatMul(dst, x, w, p) })
	return m.bounded(r, 2*float64(tokens)*float64(s.In)*float64(s.Out), float64(len(w.Data)), p)
}

// MatMulQ8 measures products in integers, of activations rounded to eight bits, rounding included; t has levels.
func (m *Machine) MatMulQ8(ctx context.Context, t *ggml.Type, s Shape, tokens int) Result {
	x, w, dst := random(tokens, s.In), weights(t, s), tensor.New(tokens, s.Out)
	r := Result{Kernel: "matmul q8", Type: t.Name, Shape: s, Tokens: tokens}
	r.Seconds = timeIt(ctx, func() { q8.MatMul(x, kernels.Product{Dst: dst, W: w}) })
	var compute float64
	var name string
	if kernels.CurrentTier() >= kernels.AVX512 {
		compute, name = m.peak("int8")
	}
	return m.roofline(r, 2*float64(tokens)*float64(s.In)*float64(s.Out), "Gop/s", float64(len(w.Data)), compute, name)
}

// Unpack measures the decoding of weights of type t to float32, against copying memory.
func (m *Machine) Unpack(ctx context.Context, t *ggml.Type, s Shape) Result {
	w := weights(t, s)
	r := Result{Kernel: "unpack", Type: t.Name, Shape: s, Unit: "GB/s"}
	r.Seconds = timeIt(ctx, func() {
		kernels.Parallel(s.Out, 16, func(lo, hi int) {
			row := make([]float32, s.In)
			for i := lo; i < hi; i++ {
				unpack.F32(w.Format, row, w.Row(i))
			}
		})
	})
	bandwidth, name := m.peak("memory read")
	r.Rate, r.Bound = float64(len(w.Data))/r.Seconds/1e9, name
	r.Share = r.Rate / bandwidth
	return r
}

// Encode measures rounding to nearest, scale search included, in weights.
func (m *Machine) Encode(ctx context.Context, t *ggml.Type, s Shape) Result {
	rows := max(1, min(s.Out, 1<<20/s.In))
	w := random(rows, s.In)
	data := make([]byte, rows*t.RowBytes(s.In))
	r := Result{Kernel: "encode", Type: t.Name, Shape: Shape{s.In, rows}, Unit: "Mweight/s"}
	r.Seconds = timeIt(ctx, func() {
		kernels.Parallel(rows, 1, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				n := t.RowBytes(s.In)
				t.Encode(data[i*n:(i+1)*n], w.Row(i), nil)
			}
		})
	})
	r.Rate = float64(rows*s.In) / r.Seconds / 1e6
	return r
}

// Syrk measures the update of a Hessian, counting tokens×in² operations.
func (m *Machine) Syrk(ctx context.Context, in, tokens int, p kernels.Precision) Result {
	x, h := random(tokens, in), tensor.New(in, in)
	r := Result{Kernel: "syrk", Type: "F32", Shape: Shape{in, in}, Tokens: tokens}
	if p.Rounds() {
		r.Type = "BF16"
	}
	r.Seconds = timeIt(ctx, func() { gemm.Syrk(h, x, p) })
	return m.bounded(r, float64(tokens)*float64(in)*float64(in), 0, p)
}

// GPTQ measures a linear from its Hessian to the bytes of type t, with so many passes of refinement. The operations
// counted are those of factoring and of the updates of GPTQ itself: in³/3 and out×in².
func (m *Machine) GPTQ(ctx context.Context, t *ggml.Type, s Shape, refine int) (Result, error) {
	h := tensor.New(s.In, s.In)
	gemm.Syrk(h, random(2*s.In, s.In), kernels.F32)
	w := random(s.Out, s.In)
	opt := gptq.Options{Refine: refine, NoRefine: refine == 0}
	r := Result{Kernel: fmt.Sprintf("gptq, refine %d", refine), Type: t.Name, Shape: s}
	var err error
	r.Seconds = timeIt(ctx, func() {
		var f *gptq.Factor
		if f, err = gptq.NewFactor(ctx, h, t.Grid, opt); err != nil {
			return
		}
		q, qerr := f.Quantize(ctx, w, t.Grid)
		if err = qerr; err == nil {
			t.PackWeight(q)
		}
	})
	in, out := float64(s.In), float64(s.Out)
	return m.bounded(r, in*in*in/3+out*in*in, 0, kernels.F32), err
}
