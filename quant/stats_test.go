package quant

import (
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/llmq/llmq/tensor"
)

// TestAddRows compares with sums in float64, at any number of threads.
func TestAddRows(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	rng := rand.New(rand.NewPCG(3, 1))
	for _, shape := range [][2]int{{1, 1}, {3, 5}, {32, 40}, {33, 300}, {100, 257}} {
		x := tensor.New(shape[0], shape[1])
		want, scale := make([]float64, x.Cols), make([]float64, x.Cols)
		for i := range x.Rows {
			for j := range x.Row(i) {
				x.Row(i)[j] = float32(rng.NormFloat64()) + 3
				want[j] += float64(x.Row(i)[j])
				scale[j] += math.Abs(float64(x.Row(i)[j]))
			}
		}
		var first []float64
		for _, threads := range []int{1, 3} {
			runtime.GOMAXPROCS(threads)
			sum := make([]float64, x.Cols)
			sum[0] = 7
			addRows(sum, x)
			sum[0] -= 7
			for j := range sum {
				if math.Abs(sum[j]-want[j]) > 32*0x1p-24*scale[j] {
					t.Errorf("%v: column %d: %v, want %v", shape, j, sum[j], want[j])
				}
				if first != nil && sum[j] != first[j] {
					t.Errorf("%v: column %d depends on the number of threads", shape, j)
				}
			}
			first = sum
		}
	}
}
