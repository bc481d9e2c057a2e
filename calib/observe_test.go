package calib_test

import (
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/tensor"
)

// activations are Gaussian, each feature with a scale of its own, and two outlier features.
func activations(tokens, features int, seed uint64) *tensor.Matrix {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := tensor.New(tokens, features)
	for t := range tokens {
		for j, row := 0, x.Row(t); j < features; j++ {
			row[j] = float32(rng.NormFloat64() * math.Exp(float64(j%7)/3-1))
		}
		x.Row(t)[features/2] *= 40
		if t%10 == 0 { // at 10% of the tokens
			x.Row(t)[features-1] = 7
		}
	}
	return x
}

func observe(t *testing.T, x *tensor.Matrix, batch int) *calib.Observer {
	t.Helper()
	o := calib.NewObserver(x.Cols)
	for lo := 0; lo < x.Rows; lo += batch {
		if err := o.Observe(x.View(lo, min(lo+batch, x.Rows), 0, x.Cols)); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func close(a, b, tolerance float64) bool {
	return math.Abs(a-b) <= tolerance*math.Max(math.Abs(a), math.Abs(b))
}

// TestObserver compares with the definitions, in float64 over all values at once.
func TestObserver(t *testing.T) {
	for _, features := range []int{1, 5, 64, 65, 200} {
		x := activations(230, features, 3)
		o := observe(t, x, 32)
		least, most := math.Inf(1), math.Inf(-1)
		var all []float64
		mean := o.MeanAbs()
		for j := range features {
			absMax, sum := 0.0, 0.0
			for r := range x.Rows {
				v := float64(x.Row(r)[j])
				all = append(all, v)
				least, most = min(least, v), max(most, v)
				absMax = max(absMax, math.Abs(v))
				sum += math.Abs(v)
			}
			if float64(o.AbsMax[j]) != absMax || !close(float64(mean[j]), sum/230, 1e-6) {
				t.Errorf("%d features, %d: absmax %g, mean %g; want %g, %g", features, j, o.AbsMax[j], mean[j], absMax, sum/230)
			}
		}
		if o.Tokens != 230 || o.Min != least || o.Max != most || o.Histogram.AbsMax != max(-least, most) {
			t.Errorf("%d features: %d tokens in [%g, %g], want [%g, %g]", features, o.Tokens, o.Min, o.Max, least, most)
		}
		n, mu, m2, m4 := float64(len(all)), 0.0, 0.0, 0.0
		for _, v := range all {
			mu += v / n
		}
		for _, v := range all {
			m2 += (v - mu) * (v - mu) / n
			m4 += math.Pow(v-mu, 4) / n
		}
		if want := m4 / (m2 * m2); !close(o.Kurtosis(), want, 1e-9) {
			t.Errorf("%d features: kurtosis %g, want %g", features, o.Kurtosis(), want)
		}
		// Bins by the definition.
		h := o.Histogram
		if _, exp := math.Frexp(h.AbsMax); h.Range != math.Ldexp(1, exp) {
			t.Errorf("range %g for magnitudes up to %g", h.Range, h.AbsMax)
		}
		neg, pos := make([]int64, calib.HistogramBins), make([]int64, calib.HistogramBins)
		for _, v := range all {
			i := int(math.Floor(math.Abs(v) / h.Range * calib.HistogramBins))
			if v < 0 {
				neg[i]++
			} else {
				pos[i]++
			}
		}
		if !slices.Equal(h.Neg, neg) || !slices.Equal(h.Pos, pos) || h.Count() != int64(len(all)) {
			t.Errorf("%d features: the histogram differs", features)
		}
	}
}

// TestObserverOrder: neither threads nor batches, nor where the range had to grow, change what is counted.
func TestObserverOrder(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	x := activations(300, 130, 4)
	for i := range 10 { // ever larger, from zero on
		row := x.Row(i)
		for j := range row {
			row[j] *= float32(math.Ldexp(float64(min(i, 1)), 2*i-18))
		}
	}
	want := observe(t, x, 300)
	for threads := 1; threads <= 3; threads++ {
		runtime.GOMAXPROCS(threads)
		if got := observe(t, x, 300); !reflect.DeepEqual(got, want) {
			t.Errorf("%d threads: another result", threads)
		}
		for _, batch := range []int{1, 7, 64} {
			got := observe(t, x, batch)
			if !reflect.DeepEqual(got.Histogram, want.Histogram) || !slices.Equal(got.AbsMax, want.AbsMax) ||
				got.Min != want.Min || got.Max != want.Max {
				t.Errorf("batches of %d: another result", batch)
			}
		}
	}
}

func TestObserverEdges(t *testing.T) {
	o := calib.NewObserver(3)
	if o.Kurtosis() != 0 || o.Histogram.MinMax() != 0 {
		t.Error("an observer that has seen nothing")
	}
	for range 2 { // nothing but zeros, then values that no bin is fine enough for
		if err := o.Observe(tensor.New(4, 3)); err != nil {
			t.Fatal(err)
		}
	}
	h := o.Histogram
	for name, got := range map[string]float64{"min-max": h.MinMax(), "percentile": h.Percentile(99), "MSE": h.MSE(127), "entropy": h.Entropy(128)} {
		if got != 0 {
			t.Errorf("zeros: %s %g", name, got)
		}
	}
	tiny := tensor.New(1, 3)
	tiny.Data[1] = -math.SmallestNonzeroFloat32
	if err := o.Observe(tiny); err != nil || h.Count() != 27 || o.Min >= 0 {
		t.Errorf("%v, %d values from %g on", err, h.Count(), o.Min)
	}
	huge := tensor.New(1, 3)
	huge.Data[2] = math.MaxFloat32
	if err := o.Observe(huge); err != nil || h.Count() != 30 || h.AbsMax != math.MaxFloat32 {
		t.Errorf("%v, %d values up to %g", err, h.Count(), h.AbsMax)
	}
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		x := tensor.New(2, 3)
		x.Data[5], x.Data[1] = float32(v), float32(v)
		if err := o.Observe(x); err == nil || !strings.Contains(err.Error(), "feature 1 is not a finite number") {
			t.Errorf("%g: error %v", v, err)
		}
	}
}

func histogramOf(values []float64) *calib.Histogram {
	o := calib.NewObserver(1)
	x := tensor.New(len(values), 1)
	for i, v := range values {
		x.Data[i] = float32(v)
	}
	if err := o.Observe(x); err != nil {
		panic(err)
	}
	return o.Histogram
}

// distributions, each of 20000 values; it takes more to fill a tail.
func distributions() map[string][]float64 {
	rng := rand.New(rand.NewPCG(5, 5))
	d := map[string][]float64{}
	for range 20000 {
		g := rng.NormFloat64()
		d["Gaussian"] = append(d["Gaussian"], g)
		d["uniform"] = append(d["uniform"], 2*rng.Float64()-1)
		d["half-Gaussian"] = append(d["half-Gaussian"], math.Abs(g))
	}
	for range 200000 {
		d["heavy-tailed"] = append(d["heavy-tailed"], rng.ExpFloat64()*float64(2*rng.IntN(2)-1)) // Laplace's
	}
	d["two values"] = append(make([]float64, 19999), 3)
	return d
}

// TestClip compares each range with its definition, straight from the values.
func TestClip(t *testing.T) {
	for name, values := range distributions() {
		h := histogramOf(values)
		var abs []float64
		for _, v := range values {
			abs = append(abs, math.Abs(float64(float32(v))))
		}
		slices.Sort(abs)
		top := abs[len(abs)-1]
		if h.MinMax() != top {
			t.Errorf("%s: min-max %g, want %g", name, h.MinMax(), top)
		}
		for _, p := range []float64{1, 50, 99, 99.99, 100} {
			want := abs[int(math.Ceil(p/100*float64(len(abs))))-1]
			if got := h.Percentile(p); got < want || got > want+h.Width() {
				t.Errorf("%s: percentile %g is %g, want %g to %g", name, p, got, want, want+h.Width())
			}
		}
		// The range that MSE finds is nearly the best of many, judged on the values themselves.
		loss := func(r float64) float64 {
			sum := 0.0
			for _, v := range abs {
				q := math.Min(math.Round(v/(r/127)), 127) * (r / 127)
				sum += (v - q) * (v - q)
			}
			return sum
		}
		best := math.Inf(1)
		for i := 1; i <= 200; i++ {
			best = math.Min(best, loss(top*float64(i)/200))
		}
		if got := loss(h.MSE(127)); got > 1.03*best+1e-9 {
			t.Errorf("%s: MSE range %g has error %g, the best %g", name, h.MSE(127), got, best)
		}
		if got, want := h.Entropy(128), entropyReference(abs, h.Range); math.Abs(got-math.Min(want, top)) > 1e-9*top {
			t.Errorf("%s: entropy range %g, want %g", name, got, want)
		}
	}
	d := distributions()
	heavy := histogramOf(d["heavy-tailed"])
	if m := heavy.MinMax(); heavy.MSE(127) > 0.9*m || heavy.Entropy(128) > 0.9*m || heavy.Percentile(99.9) > 0.9*m {
		t.Errorf("heavy-tailed up to %g: MSE %g, entropy %g, percentile %g; all should clip", m, heavy.MSE(127), heavy.Entropy(128), heavy.Percentile(99.9))
	}
	uniform := histogramOf(d["uniform"])
	if m := uniform.MinMax(); uniform.MSE(127) < 0.99*m || uniform.Entropy(128) < 0.95*m {
		t.Errorf("uniform up to %g: MSE %g, entropy %g; none should clip", m, uniform.MSE(127), uniform.Entropy(128))
	}
}

// entropyReference is TensorRT's calibrator over magnitudes in 2048 bins, with every list written out.
func entropyReference(abs []float64, limit float64) float64 {
	const bins, levels = 2048, 128
	width := limit / bins
	hist := make([]float64, bins)
	used := 0
	for _, v := range abs {
		hist[int(v/width)]++
		used = max(used, int(v/width)+1)
	}
	if used <= levels {
		return abs[len(abs)-1]
	}
	best, at := math.Inf(1), 0
	for i := levels; i <= used; i++ {
		p := slices.Clone(hist[:i])
		for _, outlier := range hist[i:] {
			p[i-1] += outlier
		}
		q := make([]float64, i)
		for g := range levels {
			lo, hi := g*i/levels, (g+1)*i/levels
			sum, n := 0.0, 0.0
			for _, c := range hist[lo:hi] {
				sum += c
				if c != 0 {
					n++
				}
			}
			for j := lo; j < hi; j++ {
				if hist[j] != 0 {
					q[j] = sum / n
				}
			}
		}
		sumP, sumQ := 0.0, 0.0
		for j := range p {
			sumP += p[j]
			sumQ += q[j]
		}
		kl := 0.0
		for j := range p {
			if p[j] != 0 {
				kl += p[j] / sumP * math.Log(p[j]/sumP/(q[j]/sumQ))
			}
		}
		if kl < best {
			best, at = kl, i
		}
	}
	return float64(at) * width
}

func TestShrink(t *testing.T) {
	h := histogramOf(distributions()["Gaussian"])
	small := h.Shrink(32)
	var sum int64
	for i, n := range small {
		var want int64
		for _, c := range h.Abs()[i*64 : (i+1)*64] {
			want += c
		}
		if n != want {
			t.Errorf("bin %d: %d, want %d", i, n, want)
		}
		sum += n
	}
	if sum != 20000 || len(small) != 32 {
		t.Errorf("%d values in %d bins", sum, len(small))
	}
}

func TestStability(t *testing.T) {
	const features = 64
	run := func(scale func(batch int) float64, batches int) (*calib.Stability, *calib.Observer) {
		o, s := calib.NewObserver(features), &calib.Stability{}
		for b := range batches {
			x := activations(400, features, uint64(b))
			for i := range x.Data {
				x.Data[i] *= float32(scale(b))
			}
			if err := o.Observe(x); err != nil {
				t.Fatal(err)
			}
			s.Record(o, 5*(b+1))
		}
		return s, o
	}
	s, o := run(func(int) float64 { return 1 }, 16)
	if n, ok := s.Settled(); !ok || n > 40 || n < 5 {
		t.Errorf("the same distribution in each batch: settled after %d sequences, %v; %+v", n, ok, s.Changes)
	}
	if len(s.Changes) != 15 || s.Changes[14].Sequences != 80 || s.First != 5 {
		t.Errorf("%d changes, the last after %d sequences", len(s.Changes), s.Changes[14].Sequences)
	}
	product := 1.0
	for _, c := range s.Changes {
		product *= 1 + c.AbsMax
	}
	first := observe(t, activations(400, features, 0), 400)
	if got := first.Histogram.AbsMax * product; !close(got, o.Histogram.AbsMax, 1e-9) {
		t.Errorf("the changes lead to %g, the largest magnitude is %g", got, o.Histogram.AbsMax)
	}
	s, _ = run(func(b int) float64 { return math.Pow(1.2, float64(b)) }, 16)
	if n, ok := s.Settled(); ok || n != 80 {
		t.Errorf("growing ranges: settled after %d sequences, %v", n, ok)
	}
	s, _ = run(func(b int) float64 {
		if b == 7 {
			return 3
		}
		return 1
	}, 16)
	if n, ok := s.Settled(); !ok || n != 40 {
		t.Errorf("one wide batch: settled after %d sequences, %v", n, ok)
	}
	for batches := range 4 {
		s, _ = run(func(int) float64 { return 1 }, batches)
		if n, ok := s.Settled(); ok || n > 5*batches {
			t.Errorf("%d batches: settled after %d sequences, %v", batches, n, ok)
		}
	}
}
