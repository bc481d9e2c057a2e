package kernels

import (
	"math"
	"runtime"

	"github.com/llmq/llmq/tensor"
)

// Attention sets dst to causal attention over one sequence: token t of head h takes
// Σ_s softmax_s(scale·q_t·k_s)·v_s over s ≤ t and, if window > 0, s > t−window. k and v are tokens×(kvHeads·headDim), q
// and dst as many rows×(heads·headDim), or fewer, for the last tokens alone; kvHeads divides heads, and consecutive query
// heads share a key head. dst may be q.
//
// Scores exist for a panel of queries and keyTile keys at a time; what they have summed so far is rescaled when a
// larger maximum turns up (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). The error of an
// output is below 10⁻⁶·(1 + max|scale·q·k|)·max|v|. Where p allows bfloat16 and the machine multiplies it faster, q, k,
// v and the exponentials are rounded to it, as GPUs do; sums, maxima and exponentials stay in float32, and the error is
// below 2⁻⁷·(1 + max Σ|scale·q·k|)·max|v|.
func Attention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32, p Precision) {
	checkAttention(dst, q, k, v, heads, kvHeads, headDim)
	t := tiles(p)
	if t == nil || headDim > t.weights() || q.Rows == 0 {
		attentionGo(dst, q, k, v, heads, kvHeads, headDim, window, scale)
		return
	}
	a := &attention{tiling: t, dst: dst, q: q, k: k, v: v, headDim: headDim, window: window, scale: scale,
		shared: heads / kvHeads}
	a.dimSteps, a.keySteps = (headDim+t.depth()-1)/t.depth(), (k.Rows+t.depth()-1)/t.depth()
	a.keyStrips = (k.Rows + t.strip() - 1) / t.strip()
	a.dimStrips = (headDim + t.strip() - 1) / t.strip()
	workers := runtime.GOMAXPROCS(0)
	if q.Rows*k.Rows*q.Cols < 1<<18 {
		workers = 1
	}

	keys, values := (a.keyStrips*a.dimSteps+t.lanes)*t.strip(), a.dimStrips*a.keySteps*t.strip()
	buf := words.get(kvHeads * (keys + values))
	defer words.put(buf)
	a.keys, a.values = make([][]uint32, kvHeads), make([][]uint32, kvHeads)
	spread(kvHeads, workers, func(h int) {
		packed := buf[h*(keys+values):]
		a.keys[h], a.values[h] = packed[:keys], packed[keys:keys+values]
		a.pack(h)
	})
	const panelsPerTask = 8
	panels := (q.Rows + t.panel() - 1) / t.panel()
	tasks := (panels + panelsPerTask - 1) / panelsPerTask
	spread(heads*tasks, workers, func(i int) {
		// Late queries see more keys; they come first, so that short tasks fill up the end.
		h, task := i%heads, tasks-1-i/heads
		a.queries(h, task*panelsPerTask, min((task+1)*panelsPerTask, panels))
	})
}

// keyTile is how many keys' scores of a panel of queries exist at a time: 12·256 float32 are 12 KiB of L1.
const keyTile = 256

// attention is one call's state: k and v packed for the micro-kernels, for each of their heads.
type attention struct {
	*tiling
	dst, q, k, v            *tensor.Matrix
	headDim, window, shared int // shared: query heads to a key head
	scale                   float32
	dimSteps, keySteps      int // a step is one dimension or key, or two
	keyStrips, dimStrips    int
	keys, values            [][]uint32 // strips of keys, a step after the other; strips of dimensions likewise
}

func (a *attention) pack(h int) {
	d0, d1 := h*a.headDim, (h+1)*a.headDim
	n := a.k.Rows
	staging := words.get(a.stagingWords())
	defer words.put(staging)
	keys, values := rowsOperand(a.k.View(0, n, d0, d1)), colsOperand(a.v.View(0, n, d0, d1))
	for s := range a.keyStrips {
		a.packB(&keys, a.headDim, a.keys[h][s*a.dimSteps*a.strip():], staging,
			s*a.strip(), min((s+1)*a.strip(), n), 0, a.dimSteps)
	}
	for s := range a.dimStrips {
		a.packB(&values, n, a.values[h][s*a.keySteps*a.strip():], nil,
			s*a.strip(), min((s+1)*a.strip(), a.headDim), 0, a.keySteps)
	}
}

// queries computes panels [p0,p1) of query head h.
func (a *attention) queries(h, p0, p1 int) {
	strip, headDim := a.strip(), a.headDim
	keys, values := a.keys[h/a.shared], a.values[h/a.shared]
	pitchQ, pitchS, pitchO := pitch(a.dimSteps), pitch(keyTile), a.dimStrips*strip
	buf := words.get(a.panel() * (pitchQ + pitchS + pitchO))
	defer words.put(buf)
	q, s := buf[:a.panel()*pitchQ], buf[a.panel()*pitchQ:][:a.panel()*pitchS]
	out := floats(buf[a.panel()*(pitchQ+pitchS):])
	var largest, sum [16]float32
	for p := p0; p < p1; p++ {
		i0 := p * a.panel()
		rows := min(a.panel(), a.q.Rows-i0)
		t0 := a.k.Rows - a.q.Rows + i0 // the first query's token
		kernel := a.kernel(rows)
		for i := range kernel.rows {
			row := q[i*pitchQ:][:a.dimSteps]
			if i < rows {
				a.toWords(row, a.q.Row(i0 + i)[h*headDim:][:headDim])
			} else {
				clear(row)
			}
			largest[i], sum[i] = float32(math.Inf(-1)), 0
		}
		clear(s)
		clear(out)
		first := 0
		if a.window > 0 {
			first = max(0, t0-a.window+1)
		}
		for k0 := first / keyTile * keyTile; k0 < t0+rows; k0 += keyTile {
			n := min(keyTile, t0+rows-k0)
			for j := max(0, first-k0) / strip; j*strip < n; j++ {
				kernel.run(a.dimSteps, &q[0], 4*pitchQ, 4, &keys[(k0/strip+j)*a.dimSteps*strip], &floats(s)[j*strip],
					4*pitchS, a.scale, false, &q[0], 0)
			}
			for i := range rows {
				row := floats(s[i*pitchS:][:n])
				lo, hi := 0, min(n, t0+i+1-k0)
				if a.window > 0 {
					lo = max(0, t0+i-a.window+1-k0)
				}
				if lo >= hi {
					clear(row)
					continue
				}
				o := out[i*pitchO:][:pitchO]
				if m := maxOf(row[lo:hi]); m > largest[i] {
					rescale := exp32(largest[i] - m)
					scale(o, rescale)
					sum[i] *= rescale
					largest[i] = m
				}
				sum[i] += expSum(row[lo:hi], row[lo:hi], largest[i])
				clear(row[:lo])
				clear(row[hi:])
				if a.pairs { // in place: words are written where values were read before
					toBF16Pairs(s[i*pitchS:], row)
				}
			}
			steps := (n + a.depth() - 1) / a.depth()
			for d := range a.dimStrips {
				kernel.run(steps, &s[0], 4*pitchS, 4, &values[(d*a.keySteps+k0/a.depth())*strip], &out[d*strip], 4*pitchO, 1, true,
					&s[0], 0)
			}
		}
		for i := range rows {
			o := out[i*pitchO:][:headDim]
			scale(o, 1/sum[i])
			copy(a.dst.Row(i0 + i)[h*headDim:], o)
		}
	}
}

// AttentionScale is the usual scale of the scores: 1/√headDim.
func AttentionScale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

func checkAttention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim int) {
	if kvHeads <= 0 || heads%kvHeads != 0 || q.Cols != heads*headDim || k.Cols != kvHeads*headDim ||
		v.Cols != k.Cols || k.Rows < q.Rows || v.Rows != k.Rows {
		panic("kernels: attention shapes do not agree")
	}
	checkSame(dst, q)
}
