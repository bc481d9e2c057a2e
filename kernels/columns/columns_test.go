package columns

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

func TestRound(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			const inverse = 0.3
			var q, err, w, sum, scale, minimum kernels.Lane
			for i := range w {
				w[i], sum[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
				scale[i], minimum[i] = float32(rng.NormFloat64()), rng.Float32()
			}
			scale[1], sum[2], w[3], scale[4], scale[5], minimum[5] = 0, float32(math.NaN()), 1e30, 0.25, 1, 0
			w[5], sum[5] = float32(rng.IntN(9))-4.5, 0 // a tie
			Round(&q, &err, &w, &sum, inverse, &scale, &minimum, -4, 3)
			for i := range w {
				x := w[i] + float32(sum[i]*inverse)
				v := float64((x + minimum[i]) / scale[i])
				if scale[i] == 0 {
					v = 0
				}
				want := math.RoundToEven(math.Min(math.Max(v, -4), 3))
				if x != x {
					want = -4
				}
				wantErr := w[i] - (float32(scale[i]*float32(want)) - minimum[i])
				if float64(q[i]) != want || math.Float32bits(err[i]) != math.Float32bits(wantErr) {
					t.Fatalf("%v with scale %v, minimum %v: level %v, error %v, want %v, %v", x, scale[i], minimum[i], q[i],
						err[i], want, wantErr)
				}
			}
		}
	})
}

// TestRoundInTurn compares columns that are rounded together, to the last bit, with one after the other.
func TestRoundInTurn(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 9 {
			for _, down := range []bool{false, true} {
				const pitch = 11
				q, err, w, sum := fill(rng, n), fill(rng, n), fill(rng, n), fill(rng, n)
				scale, minimum := fill(rng, 0), fill(rng, 0) // two groups
				scale[1][2], w[min(n, 3)][4], sum[min(n, 2)][5] = 0, 1e30, float32(math.NaN())
				u, inverse := make([]float32, 8*pitch), [8]float32{1, 2, 3, 4, 5, 6, 7, 8}
				for i := range u {
					u[i] = 1 + rng.Float32()
				}
				group := [8]int{0, 1, 1, 0, 1, 0, 0, 1}
				wantQ, wantErr, wantSum := slices.Clone(q), slices.Clone(err), slices.Clone(sum)
				for i := range n {
					j, first, end := i, i, n
					if down {
						j, first, end = n-1-i, 0, n-i
					}
					k := group[j]
					Round(&wantQ[1+j], &wantErr[1+j], &w[1+j], &wantSum[1+j], inverse[j], &scale[k], &minimum[k], -4, 3)
					Update(wantSum[1+first:1+end], u[j*pitch+first:], 0, wantErr[1+j:2+j])
				}
				RoundInTurn(q[1:1+n], err[1:1+n], w[1:1+n], sum[1:1+n], inverse[:], u, pitch, scale, minimum, &group, -4, 3, down)
				for j := range q {
					for i := range q[j] {
						same := func(a, b []kernels.Lane) bool { return math.Float32bits(a[j][i]) == math.Float32bits(b[j][i]) }
						if !same(q, wantQ) || !same(err, wantErr) || !same(sum, wantSum) {
							t.Fatalf("%d columns, down %v: column %d of row %d is %v with error %v, sum %v, want %v, %v, %v", n, down, j-1, i,
								q[j][i], err[j][i], sum[j][i], wantQ[j][i], wantErr[j][i], wantSum[j][i])
						}
					}
				}
			}
		}
	})
}

func TestUpdate(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		lanes := func(n int) []kernels.Lane {
			l := make([]kernels.Lane, n)
			for j := range l {
				for i := range l[j] {
					l[j][i] = float32(rng.NormFloat64())
				}
			}
			return l
		}
		for n := range 11 {
			for depth := range 19 {
				guarded, x := lanes(n+2), lanes(depth)
				pitch := n + depth%3
				u := make([]float32, max(0, depth-1)*pitch+n)
				for i := range u {
					u[i] = float32(rng.NormFloat64())
				}
				before := append([]kernels.Lane(nil), guarded...)
				Update(guarded[1:1+n], u, pitch, x)
				for j := range guarded {
					for i, v := range guarded[j] {
						want := float64(before[j][i])
						if j > 0 && j <= n {
							for k := range x {
								want += float64(u[k*pitch+j-1]) * float64(x[k][i])
							}
						}
						if math.Abs(float64(v)-want) > 1e-5 {
							t.Fatalf("%d columns, %d deep: column %d of row %d is %v, want %v", n, depth, j-1, i, v, want)
						}
					}
				}
				if guarded[0] != before[0] || guarded[n+1] != before[n+1] {
					t.Fatalf("%d columns, %d deep: written outside", n, depth)
				}
			}
		}
	})
}

// fill returns n lanes between two guards.
func fill(rng *rand.Rand, n int) []kernels.Lane {
	l := make([]kernels.Lane, n+2)
	for j := range l {
		for i := range l[j] {
			l[j][i] = float32(rng.NormFloat64())
		}
	}
	return l
}

func TestDecode(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			dst, level, s := fill(rng, n), fill(rng, n), fill(rng, 0)
			level[1][3] = float32(math.Copysign(0, -1))
			want := slices.Clone(dst)
			for j := 1; j <= n; j++ {
				for i := range want[j] {
					want[j][i] = float32(s[0][i]*level[j][i]) - s[1][i]
				}
			}
			if Decode(dst[1:1+n], level[1:1+n], &s[0], &s[1]); !slices.Equal(dst, want) {
				t.Fatalf("%d columns: %v, want %v", n, dst, want)
			}
		}
	})
}

func TestShift(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			dst, a, b, s := fill(rng, n), fill(rng, n), fill(rng, n), fill(rng, 0)
			want := slices.Clone(dst)
			for j := 1; j <= n; j++ {
				for i := range want[j] {
					want[j][i] += float32(float32(s[0][i]*a[j][i]) - float32(s[1][i]*b[j][i]))
				}
			}
			Shift(dst[1:1+n], a[1:1+n], &s[0], b[1:1+n], &s[1])
			for j := range dst {
				for i, v := range dst[j] {
					// Plain Go may fuse, where the machine can: all that one rounding leaves is 2⁻²⁴ of a product.
					if d := math.Abs(float64(v - want[j][i])); d > 1e-6 || d > 0 && (j == 0 || j > n || runtime.GOARCH == "amd64") {
						t.Fatalf("%d columns: column %d of row %d is %v, want %v", n, j-1, i, v, want[j][i])
					}
				}
			}
		}
	})
}

func TestShiftBy(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			dst, a, b, s := fill(rng, n), fill(rng, n), fill(rng, n), fill(rng, 0)
			same, one := slices.Clone(b), make([]float32, n+2)
			for j := range same {
				one[j] = b[j][0]
				for i := range same[j] {
					same[j][i] = one[j]
				}
			}
			want := slices.Clone(dst)
			Shift(want[1:1+n], a[1:1+n], &s[0], same[1:1+n], &s[1])
			if ShiftBy(dst[1:1+n], a[1:1+n], &s[0], one[1:1+n], &s[1]); !slices.Equal(dst, want) {
				t.Fatalf("%d columns: %v, want %v", n, dst, want)
			}
		}
	})
}

func TestSubtract(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			dst, x := fill(rng, n), fill(rng, n)
			want := slices.Clone(dst)
			for j := 1; j <= n; j++ {
				for i := range want[j] {
					want[j][i] -= x[j][i]
				}
			}
			if Subtract(dst[1:1+n], x[1:1+n]); !slices.Equal(dst, want) {
				t.Fatalf("%d columns: %v, want %v", n, dst, want)
			}
		}
	})
}

func TestDiffer(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			a, got := fill(rng, n), make([]uint16, n+2)
			b, want := slices.Clone(a), make([]uint16, n+2)
			for j := 1; j <= n; j++ {
				a[j][3], b[j][3] = 0, float32(math.Copysign(0, -1)) // the same level
				for i := range b[j] {
					if i != 3 && rng.IntN(3) == 0 {
						b[j][i]++
						want[j] |= 1 << i
					}
				}
			}
			if Differ(got[1:1+n], a[1:1+n], b[1:1+n]); !slices.Equal(got, want) {
				t.Fatalf("%d columns: %x, want %x", n, got, want)
			}
		}
	})
}

func TestFromCodes(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 35 {
			for rows := range kernels.Lanes + 1 {
				pitch := n + rows%3
				codes := make([]int8, kernels.Lanes*pitch)
				for i := range codes {
					codes[i] = int8(rng.IntN(256) - 128)
				}
				dst := fill(rng, n)
				want := slices.Clone(dst)
				for j := range n {
					for i := range rows {
						want[1+j][i] = float32(codes[i*pitch+j])
					}
				}
				if FromCodes(dst[1:1+n], codes, pitch, rows); !slices.Equal(dst, want) {
					t.Fatalf("%d columns of %d rows, %d apart: %v, want %v", n, rows, pitch, dst, want)
				}
			}
		}
	})
}

func TestDot(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			x, y := make([]kernels.Lane, n), make([]kernels.Lane, n)
			var want [kernels.Lanes]float64
			for j := range x {
				for i := range want {
					x[j][i], y[j][i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
					want[i] += float64(x[j][i]) * float64(y[j][i])
				}
			}
			for i, v := range Dot(x, y) {
				if math.Abs(float64(v)-want[i]) > 1e-5 {
					t.Fatalf("%d columns: row %d is %v, want %v", n, i, v, want[i])
				}
			}
		}
	})
}

func TestToRows(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		for _, n := range []int{16, 32, 128} {
			for _, pitch := range []int{n, n + 7} {
				src := make([]kernels.Lane, n)
				for j := range src {
					for i := range src[j] {
						src[j][i] = float32(1 + i*n + j)
					}
				}
				dst := make([]float32, 16*pitch)
				ToRows(dst, pitch, src)
				for i, v := range dst {
					var want float32
					if i%pitch < n {
						want = float32(1 + i/pitch*n + i%pitch)
					}
					if v != want {
						t.Fatalf("%d columns, rows %d apart: element %d is %v, want %v", n, pitch, i, v, want)
					}
				}
			}
		}
	})
}

func TestFromRows(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		for _, length := range []int{16, 32, 256} {
			for _, pitch := range []int{length, length + 5} {
				src := make([]float32, 15*pitch+length)
				for i := range src {
					src[i] = float32(i)
				}
				guarded := make([]kernels.Lane, length+2)
				FromRows(guarded[1:1+length], src, pitch)
				for i := range kernels.Lanes {
					for j := range length {
						if got := guarded[1+j][i]; got != float32(i*pitch+j) {
							t.Fatalf("%d weights %d apart: weight %d of group %d is %v", length, pitch, j, i, got)
						}
					}
				}
				if guarded[0] != (kernels.Lane{}) || guarded[length+1] != (kernels.Lane{}) {
					t.Fatalf("%d weights: written outside", length)
				}
			}
		}
	})
}
