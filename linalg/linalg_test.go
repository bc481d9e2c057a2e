package linalg

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/llmq/llmq/tensor"
)

// sizes cross the recursion's boundaries: one block, a full one, one past it, several levels.
var sizes = []int{1, 2, 3, 17, 63, 64, 65, 100, 128, 129, 200, 257}

// spd returns a random n×n symmetric positive definite matrix whose eigenvalues spread evenly in logarithm from
// 1/condition to 1, inside a matrix with padding.
func spd(rng *rand.Rand, n int, condition float64) (*tensor.Matrix, *mat.SymDense) {
	g := mat.NewDense(n, n, nil)
	for i := range n {
		for j := range n {
			g.Set(i, j, rng.NormFloat64())
		}
	}
	var qr mat.QR
	qr.Factorize(g)
	var q, qd, h mat.Dense
	qr.QTo(&q)
	d := mat.NewDiagDense(n, nil)
	for i := range n {
		d.SetDiag(i, math.Pow(condition, -float64(i)/float64(max(1, n-1))))
	}
	qd.Mul(&q, d)
	h.Mul(&qd, q.T())
	a := tensor.New(n+2, n+3).View(1, n+1, 1, n+1)
	sym := mat.NewSymDense(n, nil)
	for i := range n {
		for j := range i + 1 {
			v := float32(h.At(i, j))
			a.Row(i)[j], a.Row(j)[i] = v, v
			sym.SetSym(i, j, float64(v))
		}
	}
	return a, sym
}

// distance is ‖a−b‖/‖b‖ in the Frobenius norm.
func distance(a *tensor.Matrix, b mat.Matrix) float64 {
	var num, den float64
	for i := range a.Rows {
		for j, v := range a.Row(i) {
			w := b.At(i, j)
			num += (float64(v) - w) * (float64(v) - w)
			den += w * w
		}
	}
	return math.Sqrt(num / den)
}

// bound is on the relative error. Theory gives a small multiple of n·ε·condition (Higham, "Accuracy and Stability of
// Numerical Algorithms", theorem 10.8); random matrices stay ten times under this.
func bound(n int, condition float64) float64 {
	const epsilon = 0x1p-24
	return epsilon * (4*math.Sqrt(float64(n)) + condition)
}

func TestCholesky(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range sizes {
		for _, condition := range []float64{10, 1e4} {
			a, sym := spd(rng, n, condition)
			var c mat.Cholesky
			if !c.Factorize(sym) {
				t.Fatal("the oracle failed")
			}
			var l mat.TriDense
			c.LTo(&l)
			// Only the lower triangle may be read.
			for i := range n {
				for j := i + 1; j < n; j++ {
					a.Row(i)[j] = float32(math.NaN())
				}
			}
			if ok, pivot := Cholesky(a); !ok {
				t.Fatalf("n=%d condition=%g: failed at pivot %d", n, condition, pivot)
			}
			for i := range n {
				clear(a.Row(i)[i+1:])
			}
			if d := distance(a, &l); !(d <= bound(n, condition)) {
				t.Errorf("n=%d condition=%g: relative error %.3g, bound %.3g", n, condition, d, bound(n, condition))
			}
		}
	}
}

func TestCholeskyNotPositive(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range sizes {
		good, _ := spd(rng, n, 10)
		for _, bad := range []int{0, n / 2, n - 1} {
			for _, v := range []float32{-1, 0, float32(math.NaN()), float32(math.Inf(1))} {
				a := tensor.New(n, n)
				for i := range n {
					copy(a.Row(i), good.Row(i))
				}
				for i := range n {
					a.Row(i)[bad], a.Row(bad)[i] = 0, 0
				}
				a.Row(bad)[bad] = v
				if ok, pivot := Cholesky(a); ok || pivot != bad {
					t.Errorf("n=%d, %v at %d: ok=%v pivot=%d", n, v, bad, ok, pivot)
				}
			}
		}
	}
}

// Guard values around a view must survive.
func TestGuards(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, n := range sizes {
		a, _ := spd(rng, n, 10)
		whole := tensor.New(n+2, n+3)
		for i := range whole.Data {
			whole.Data[i] = 5
		}
		in := whole.View(1, n+1, 1, n+1)
		for i := range n {
			copy(in.Row(i), a.Row(i))
		}
		Cholesky(in)
		for i := range whole.Rows {
			for j, v := range whole.Row(i) {
				inside := i >= 1 && i <= n && j >= 1 && j <= n
				if !inside && v != 5 {
					t.Fatalf("n=%d: guard (%d,%d) overwritten", n, i, j)
				}
			}
		}
	}
}

func TestSolve(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, n := range sizes {
		const rows, condition = 5, 100
		a, sym := spd(rng, n, condition)
		var c mat.Cholesky
		c.Factorize(sym)
		b, right, want := tensor.New(rows, n), mat.NewDense(n, rows, nil), mat.NewDense(n, rows, nil)
		for i := range rows {
			for j := range n {
				b.Row(i)[j] = float32(rng.NormFloat64())
				right.Set(j, i, float64(b.Row(i)[j]))
			}
		}
		if err := c.SolveTo(want, right); err != nil {
			t.Fatal(err)
		}
		if ok, _ := Cholesky(a); !ok {
			t.Fatal("not positive definite")
		}
		for i := range n {
			for j := i + 1; j < n; j++ {
				a.Row(i)[j] = float32(math.NaN())
			}
		}
		Solve(b, a)
		if d := distance(b, want.T()); !(d <= bound(n, condition)) {
			t.Errorf("n=%d: relative error %.3g, bound %.3g", n, d, bound(n, condition))
		}
	}
}

// TestThreads checks that results do not depend on how many parts the rows of a system are solved in.
func TestThreads(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	const n, rows = 450, 203
	rng := rand.New(rand.NewPCG(13, 14))
	h, b := tensor.New(n, n), tensor.New(rows, n)
	for i := range n {
		for j := range i {
			h.Row(i)[j] = float32(rng.NormFloat64()) / n
		}
		h.Row(i)[i] = 2
	}
	for i := range b.Data {
		b.Data[i] = float32(rng.NormFloat64())
	}
	var wantL, want *tensor.Matrix
	for _, threads := range []int{1, 2, 3, 8} {
		runtime.GOMAXPROCS(threads)
		l, x := h.Clone(), b.Clone()
		if ok, _ := Cholesky(l); !ok {
			t.Fatal("not positive definite")
		}
		Solve(x, l)
		if threads == 1 {
			wantL, want = l, x
			continue
		}
		for i := range n {
			for j, v := range l.Row(i)[:i+1] {
				if v != wantL.Row(i)[j] {
					t.Fatalf("%d threads: L[%d][%d] is %v, with one %v", threads, i, j, v, wantL.Row(i)[j])
				}
			}
		}
		for i, v := range x.Data {
			if v != want.Data[i] {
				t.Fatalf("%d threads: solution %d is %v, with one %v", threads, i, v, want.Data[i])
			}
		}
	}
}

func BenchmarkCholesky(b *testing.B) {
	for _, n := range []int{512, 2048, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := tensor.New(n, n)
			rng := rand.New(rand.NewPCG(1, 1))
			for i := range n {
				for j := range i {
					v := float32(rng.NormFloat64()) / float32(n)
					h.Row(i)[j], h.Row(j)[i] = v, v
				}
				h.Row(i)[i] = 2
			}
			l := tensor.New(n, n)
			for b.Loop() {
				b.StopTimer()
				copy(l.Data, h.Data)
				b.StartTimer()
				if ok, _ := Cholesky(l); !ok {
					b.Fatal("not positive definite")
				}
			}
			b.ReportMetric(float64(n)*float64(n)*float64(n)/3/1e9*float64(b.N)/b.Elapsed().Seconds(), "GFLOP/s")
		})
	}
}
