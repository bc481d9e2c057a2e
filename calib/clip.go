package calib

import "math"

// A clipping range is the magnitude T that is mapped to the largest integer of a symmetric quantization; what is beyond
// it is cut off. Each method below returns one, at most the largest magnitude seen, and 0 if all values are zero.

// DefaultPercentile keeps all but one value in ten thousand.
const DefaultPercentile = 99.99

// MinMax cuts nothing off.
func (h *Histogram) MinMax() float64 { return h.AbsMax }

// Percentile returns the upper edge of the bin in which the p-th percentile (0 < p ≤ 100) of the magnitudes lies.
func (h *Histogram) Percentile(p float64) float64 {
	abs := h.Abs()
	need := int64(math.Ceil(float64(h.Count()) * p / 100))
	var n int64
	for i, c := range abs {
		if n += c; n >= need && n > 0 {
			return h.edge(i + 1)
		}
	}
	return h.AbsMax
}

// edge is the lower edge of bin i, or the largest magnitude if that is less.
func (h *Histogram) edge(i int) float64 { return min(float64(i)*h.Width(), h.AbsMax) }

// MSE returns the range for which rounding to 2·levels+1 evenly spaced values (127 levels for eight bits) leaves the
// least mean squared error, all values of a bin taken as its middle.
func (h *Histogram) MSE(levels int) float64 {
	abs, w := h.Abs(), h.Width()
	best, least := h.AbsMax, math.Inf(1)
	last := h.lastBin(abs)
	// Few bins for many levels would judge the bins' own coarseness.
	for i := min(levels, last+1); i <= last+1; i++ {
		t := h.edge(i)
		step := t / float64(levels)
		var sum float64
		for j, n := range abs[:last+1] {
			if n == 0 {
				continue
			}
			x := (float64(j) + 0.5) * w
			q := min(math.RoundToEven(x/step)*step, t)
			sum += float64(n) * (x - q) * (x - q)
		}
		if sum < least {
			best, least = t, sum
		}
	}
	return best
}

// lastBin is the last bin that is not empty.
func (h *Histogram) lastBin(abs []int64) int {
	for i := len(abs) - 1; i > 0; i-- {
		if abs[i] > 0 {
			return i
		}
	}
	return 0
}

// Entropy returns the range that loses the least information, as TensorRT's calibrator finds it (Migacz, "8-bit
// Inference with TensorRT", GTC 2017): for every number of bins i from levels on, P is the first i bins with all that is
// cut off added to the last; Q is those bins without it, joined into levels groups of equal width, each group's count
// spread evenly over its bins that are not empty; the i with the least KL(P‖Q) wins. 128 levels for eight bits.
func (h *Histogram) Entropy(levels int) float64 {
	abs := h.Abs()
	last := h.lastBin(abs)
	if last < levels {
		return h.AbsMax // no more bins than levels: nothing is lost
	}
	var total, inside float64
	for _, n := range abs {
		total += float64(n)
	}
	for _, n := range abs[:levels-1] {
		inside += float64(n)
	}
	best, least := h.AbsMax, math.Inf(1)
	q := make([]float64, last+1)
	for i := levels; i <= last+1; i++ {
		inside += float64(abs[i-1])
		if inside == 0 {
			continue
		}
		spread(q[:i], abs[:i], levels)
		var kl float64
		for j, n := range abs[:i] {
			p := float64(n)
			if j == i-1 {
				p += total - inside
			}
			if p > 0 {
				// +Inf where Q has nothing and P has: that i is out.
				kl += p / total * math.Log((p/total)/(q[j]/inside))
			}
		}
		if kl < least {
			best, least = h.edge(i), kl
		}
	}
	return best
}

// spread sets q to the counts joined into groups and spread over each group's bins that are not empty.
func spread(q []float64, counts []int64, groups int) {
	n := len(counts)
	for g := range groups {
		lo, hi := g*n/groups, (g+1)*n/groups
		sum, full := 0.0, 0
		for _, c := range counts[lo:hi] {
			sum += float64(c)
			if c > 0 {
				full++
			}
		}
		for j := lo; j < hi; j++ {
			q[j] = 0
			if counts[j] > 0 {
				q[j] = sum / float64(full)
			}
		}
	}
}
