package gemm

import (
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// TestAddSums: a sum that is made by itself and then added is bit for bit what a matrix of zeros for it and an addition would give.
func TestAddSums(t *testing.T) {
	defer func(rows int) { sumRows = rows }(sumRows)
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(11, 12))
		for _, s := range append([][3]int{{70, 90, 2100}}, shapes...) {
			m, n, k := s[0], s[1], s[2]
			a, b := kerneltest.Random(rng, k, m), kerneltest.Random(rng, k, n)
			check := func(name string, was, sum *tensor.Matrix, run func(dst *tensor.Matrix)) {
				t.Helper()
				whole, dst := kerneltest.Guarded(was.Rows, was.Cols)
				for i := range was.Rows {
					copy(dst.Row(i), was.Row(i))
				}
				run(dst)
				kerneltest.CheckGuards(t, whole, was.Rows, was.Cols)
				for i := range was.Rows {
					for j, v := range was.Row(i) {
						if want := v + sum.Row(i)[j]; dst.Row(i)[j] != want {
							t.Fatalf("%s %v, %d rows: (%d,%d) is %v, want %v", name, s, sumRows, i, j, dst.Row(i)[j], want)
						}
					}
				}
			}
			for _, sumRows = range []int{32, 100, 1024} {
				for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
					was, sum := kerneltest.Random(rng, n, n), tensor.New(n, n)
					mirror(was)
					Syrk(sum, b, p)
					check("AddSyrkLower", was, sum, func(dst *tensor.Matrix) {
						AddSyrkLower(dst, b, p)
						Mirror(dst)
					})
					sum = tensor.New(m, n)
					TN(sum, 1, a, b, p)
					check("AddTN", kerneltest.Random(rng, m, n), sum, func(dst *tensor.Matrix) { AddTN(dst, a, b, p) })
				}
			}
		}
	})
}
