package vector

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

func TestDotAxpy(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(13, 14))
		for n := range 200 {
			for offset := range 3 {
				a, b := kerneltest.Random(rng, 1, n+offset).Row(0)[offset:], kerneltest.Random(rng, 1, n+offset).Row(0)[offset:]
				var sum, size float64
				for i := range a {
					sum += float64(a[i]) * float64(b[i])
					size += math.Abs(float64(a[i]) * float64(b[i]))
				}
				if got := float64(Dot(a, b)); math.Abs(got-sum) > float64(n)*kerneltest.Epsilon*size {
					t.Fatalf("n=%d: dot %v, want %v", n, got, sum)
				}
				whole, view := kerneltest.Guarded(1, n)
				dst := view.Row(0)
				copy(dst, b)
				Axpy(dst, 0.7, a)
				kerneltest.CheckGuards(t, whole, 1, n)
				for i := range a {
					want := float64(b[i]) + float64(float32(0.7))*float64(a[i])
					if math.Abs(float64(dst[i])-want) > 2*kerneltest.Epsilon*(math.Abs(want)+math.Abs(float64(a[i]))) {
						t.Fatalf("n=%d: axpy[%d] = %v, want %v", n, i, dst[i], want)
					}
				}
			}
		}
	})
}
