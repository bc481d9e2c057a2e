package columns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

// TestPanels compares all parts of a packed matrix, to the last bit, with Update of the matrix itself.
func TestPanels(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, shape := range [][2]int{{48, 32}, {32, 64}, {36, 16}, {16, 40}} {
			rows, cols := shape[0], shape[1]
			pitch := cols + 3
			u := make([]float32, rows*pitch)
			for i := range u {
				u[i] = float32(rng.NormFloat64())
			}
			p := NewPanels(u, pitch, rows, cols)
			x := fill(rng, rows)[:rows]
			for row := 0; row < rows; row += 4 {
				for depth := 0; row+depth <= rows; depth += 4 {
					for col := 0; col < cols; col += 4 {
						for n := 0; col+n <= cols; n += 4 {
							got := fill(rng, n)
							want := slices.Clone(got)
							p.Update(got[1:1+n], row, col, x[:depth], false)
							if depth > 0 && n > 0 {
								Update(want[1:1+n], u[row*pitch+col:], pitch, x[:depth])
							}
							part := fmt.Sprintf("%d×%d: %d rows from %d on, %d columns from %d on", rows, cols, depth, row, n, col)
							if !slices.Equal(got, want) {
								t.Fatalf("%s: %v, want %v", part, got, want)
							}
							p.Update(got[1:1+n], row, col, x[:depth], true)
							for end := depth; end > 0 && n > 0; end -= 8 {
								k := max(0, end-8)
								Update(want[1:1+n], u[(row+k)*pitch+col:], pitch, x[k:end])
							}
							if !slices.Equal(got, want) {
								t.Fatalf("%s, down: %v, want %v", part, got, want)
							}
						}
					}
				}
			}
		}
	})
}

func BenchmarkPanels(b *testing.B) {
	const rows = 512
	u := make([]float32, rows*(rows+16))
	p := NewPanels(u, rows+16, rows, rows)
	dst, x := make([]kernels.Lane, rows), make([]kernels.Lane, rows)
	for _, s := range [][2]int{{256, 256}, {224, 32}, {32, 32}} {
		n, depth := s[0], s[1]
		b.Run(fmt.Sprintf("%d×%d", n, depth), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				p.Update(dst[:n], i%2*256, i/2%2*256, x[:depth], false)
			}
			b.ReportMetric(float64(2*kernels.Lanes*n*depth)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
