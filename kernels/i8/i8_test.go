package i8

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// randomMatrix takes the extreme codes more often than others.
func randomMatrix(rng *rand.Rand, rows, cols, group int) *Matrix {
	m := New(rows, cols, group)
	for i := range rows {
		row := m.Row(i)
		for j := range row {
			switch row[j] = int8(rng.Uint32()); rng.IntN(8) {
			case 0:
				row[j] = -128
			case 1:
				row[j] = 127
			}
		}
	}
	for i := range m.Scale {
		m.Scale[i] = rng.Float32() - 0.5
	}
	return m
}

// TestMatMul compares every tier with sums in int64 and float64, at all numbers of columns about the vectors' lengths.
func TestMatMul(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		check := func(tokens, out, cols, group int) {
			t.Helper()
			x, w := randomMatrix(rng, tokens, cols, cols), randomMatrix(rng, out, cols, group)
			whole, dst := kerneltest.Guarded(tokens, out)
			MatMul(dst, x, w)
			kerneltest.CheckGuards(t, whole, tokens, out)
			for i := range tokens {
				for o := range out {
					var want, size float64
					for g, s := range w.Scales(o) {
						var dot int64
						for j := g * group; j < (g+1)*group; j++ {
							dot += int64(x.Row(i)[j]) * int64(w.Row(o)[j])
						}
						v := float64(dot) * float64(s) * float64(x.Scale[i])
						want += v
						// Lanes are rounded by themselves, where they may be as large as all products.
						size += 127 * 128 * float64(group) * math.Abs(float64(s)*float64(x.Scale[i]))
					}
					limit := float64(len(w.Scales(o))+8) * kerneltest.Epsilon * size
					if group == cols { // one integer, two products
						limit = 3 * kerneltest.Epsilon * math.Abs(want)
					}
					if got := dst.Row(i)[o]; math.Abs(float64(got)-want) > limit {
						t.Fatalf("%d×%d·%d in groups of %d: [%d %d] is %v, want %v", tokens, cols, out, group, i, o, got, want)
					}
				}
			}
		}
		for cols := range 100 {
			check(1+cols%6, 1+cols%3, cols, cols)
		}
		for groups := 1; groups < 12; groups++ {
			check(1+groups%9, 3, 32*groups, 32)
		}
		check(70, 33, 256, 256)
		check(70, 33, 256, 32)
		check(0, 3, 64, 64)
		check(3, 0, 64, 32)
		// The largest sum that a row can have: 2¹⁴·(2¹⁷−1) is just within an int32.
		x, w := New(1, maxCols, maxCols), New(1, maxCols, maxCols)
		for j := range maxCols {
			x.Row(0)[j], w.Row(0)[j] = -128, -128
		}
		x.Scale[0], w.Scale[0] = 1, 1
		dst := tensor.New(1, 1)
		if MatMul(dst, x, w); dst.Data[0] != 1<<14*maxCols {
			t.Errorf("the largest sum is %v, want %v", dst.Data[0], 1<<14*maxCols)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, c := range [][2]int{{64, 16}, {64, 64 * 2}, {48, 32}, {64, 0}, {1 << 17, 1 << 17}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d columns in groups of %d are accepted", c[0], c[1])
				}
			}()
			New(1, c[0], c[1])
		}()
	}
}

func BenchmarkMatMul(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name  string
		group int
	}{{"rows", 1024}, {"groups", 32}} {
		b.Run(c.name, func(b *testing.B) {
			x, w := randomMatrix(rng, 512, 1024, 1024), randomMatrix(rng, 1024, 1024, c.group)
			dst := tensor.New(512, 1024)
			kerneltest.Rate(b, 2*512*1024*1024, func() { MatMul(dst, x, w) })
		})
	}
}

// TestMatMulAlone: a token's results are the same bits whatever tokens are beside it.
func TestMatMulAlone(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		const tokens, out, cols = 40, 37, 192
		for _, group := range []int{32, cols} {
			x, w := randomMatrix(rng, tokens, cols, cols), randomMatrix(rng, out, cols, group)
			want := tensor.New(tokens, out)
			MatMul(want, x, w)
			for _, n := range []int{1, 3, 4, 5, 31, 32, 33} {
				some, got := New(n, cols, cols), tensor.New(n, out)
				first := tokens - n
				for i := range n {
					copy(some.Row(i), x.Row(first+i))
					some.Scale[i] = x.Scale[first+i]
				}
				MatMul(got, some, w)
				for i := range n {
					if !slices.Equal(got.Row(i), want.Row(first+i)) {
						t.Fatalf("groups of %d: the last %d of %d tokens: token %d differs", group, n, tokens, i)
					}
				}
			}
		}
	})
}
