// Package kerneltest helps to test and to measure kernels: on every tier, within guards, per second of processor time.
package kerneltest

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// SetThreads sets GOMAXPROCS for the rest of the test.
func SetThreads(t *testing.T, n int) {
	t.Helper()
	was := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

// Rate runs f until b is done and reports flops per second of the clock, and per second of processor time, which other
// processes on the machine disturb less.
func Rate(b *testing.B, flops float64, f func()) {
	b.Helper()
	f()
	start := cpuTime()
	for b.Loop() {
		f()
	}
	flops *= float64(b.N) / 1e9
	b.ReportMetric(flops/b.Elapsed().Seconds(), "GFLOP/s")
	b.ReportMetric(flops/(cpuTime()-start).Seconds(), "GFLOP/cpu-s")
	b.ReportMetric(0, "ns/op")
}

// guard surrounds the data of test matrices; kernels must neither read it into results nor write it.
const guard = float32(1e30)

// Guarded returns a rows×cols view inside a larger matrix of guards, at an offset that no vector is aligned to.
func Guarded(rows, cols int) (whole, view *tensor.Matrix) {
	whole = tensor.New(rows+2, cols+5)
	for i := range whole.Data {
		whole.Data[i] = guard
	}
	return whole, whole.View(1, rows+1, 1, cols+1)
}

// CheckGuards fails if anything outside the rows×cols view of whole was written.
func CheckGuards(t *testing.T, whole *tensor.Matrix, rows, cols int) {
	t.Helper()
	for i := range whole.Rows {
		for j, v := range whole.Row(i) {
			inside := i >= 1 && i <= rows && j >= 1 && j <= cols
			if !inside && v != guard {
				t.Fatalf("guard at (%d,%d) became %v", i-1, j-1, v)
			}
		}
	}
}

// Random returns normal values within guards.
func Random(rng *rand.Rand, rows, cols int) *tensor.Matrix {
	_, m := Guarded(rows, cols)
	for i := range rows {
		row := m.Row(i)
		for j := range row {
			row[j] = float32(rng.NormFloat64())
		}
	}
	return m
}

// EachTier runs f on every tier of this machine but AVXVNNI, DotProd and I8MM, which package q8 alone has code for: see OnTiers.
func EachTier(t *testing.T, f func(t *testing.T)) {
	OnTiers(t, []kernels.Tier{kernels.PureGo, kernels.NEON, kernels.BF16, kernels.AVX2, kernels.AVX512, kernels.AVX512BF16, kernels.AMX}, f)
}

// OnTiers runs f on those of the tiers that this machine has, which ascend; in short runs, as the race detector's are, on the highest
// alone: all share the goroutines, and the references that they are compared with take minutes there.
func OnTiers(t *testing.T, tiers []kernels.Tier, f func(t *testing.T)) {
	has := kernels.Tiers()
	tiers = slices.DeleteFunc(slices.Clone(tiers), func(tier kernels.Tier) bool { return !slices.Contains(has, tier) })
	if testing.Short() {
		tiers = tiers[len(tiers)-1:]
	}
	defer kernels.SetTier(kernels.SetTier(kernels.PureGo))
	for _, tier := range tiers {
		kernels.SetTier(tier)
		t.Run(tier.String(), f)
	}
}

// Epsilon and EpsilonBF16 are float32's and bfloat16's unit roundoffs.
const (
	Epsilon     = 0x1p-24
	EpsilonBF16 = 0x1p-8
)
