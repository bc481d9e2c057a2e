package kernels

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestRoundLanes(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			var x, scale, minimum Lane
			for i := range x {
				x[i], scale[i], minimum[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64()), rng.Float32()
			}
			scale[1], x[2], x[3], scale[4], scale[5], minimum[5] = 0, float32(math.NaN()), 1e30, 0.25, 1, 0
			x[5] = float32(rng.IntN(9)) - 4.5 // a tie
			q, err := RoundLanes(&x, &scale, &minimum, 3, -4, 3)
			for i := range x {
				v := float64((x[i] + minimum[i]) / scale[i])
				if scale[i] == 0 {
					v = 0
				}
				want := math.RoundToEven(math.Min(math.Max(v, -4), 3))
				if x[i] != x[i] {
					want = -4
				}
				wantErr := (x[i] - (float32(scale[i]*float32(want)) - minimum[i])) / 3
				if float64(q[i]) != want || math.Float32bits(err[i]) != math.Float32bits(wantErr) && wantErr == wantErr {
					t.Fatalf("%v with scale %v, minimum %v: level %v, error %v, want %v, %v", x[i], scale[i], minimum[i], q[i],
						err[i], want, wantErr)
				}
			}
		}
	})
}

func TestSubtractLanes(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for n := range 19 {
			guarded, u := make([]Lane, n+2), make([]float32, n)
			var x Lane
			for j := range guarded {
				for i := range x {
					guarded[j][i], x[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
				}
			}
			for j := range u {
				u[j] = float32(rng.NormFloat64())
			}
			before := append([]Lane(nil), guarded...)
			SubtractLanes(guarded[1:1+n], u, &x)
			for j := range guarded {
				for i, v := range guarded[j] {
					want := before[j][i]
					if j > 0 && j <= n {
						want -= u[j-1] * x[i]
					}
					if math.Abs(float64(v-want)) > 1e-6 {
						t.Fatalf("%d columns: column %d of row %d is %v, want %v", n, j-1, i, v, want)
					}
				}
			}
			if guarded[0] != before[0] || guarded[n+1] != before[n+1] {
				t.Fatalf("%d columns: written outside", n)
			}
		}
	})
}

func TestRowsFromLanes(t *testing.T) {
	eachTier(t, func(t *testing.T) {
		for _, n := range []int{16, 32, 128} {
			for _, pitch := range []int{n, n + 7} {
				src := make([]Lane, n)
				for j := range src {
					for i := range src[j] {
						src[j][i] = float32(1 + i*n + j)
					}
				}
				dst := make([]float32, 16*pitch)
				RowsFromLanes(dst, pitch, src)
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
