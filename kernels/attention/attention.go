// Package attention is causal attention, a tile of queries and keys at a time.
package attention

import (
	"math"
	"runtime"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

// Causal sets dst to causal attention over one sequence: token t of head h takes
// Σ_s softmax_s(scale·q_t·k_s)·v_s over s ≤ t and, if window > 0, s > t−window. k and v are tokens×(kvHeads·headDim), q
// and dst as many rows×(heads·headDim), or fewer, for the last tokens alone; kvHeads divides heads, and consecutive query
// heads share a key head. dst may be q.
//
// Scores exist for a panel of queries and keyTile keys at a time; what they have summed so far is rescaled when a
// larger maximum turns up (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). The error of an
// output is below 10⁻⁶·(1 + max|scale·q·k|)·max|v|. Where p allows bfloat16 and the machine multiplies it faster, q, k,
// v and the exponentials are rounded to it, as GPUs do; sums, maxima and exponentials stay in float32, and the error is
// below 2⁻⁷·(1 + max Σ|scale·q·k|)·max|v|.
func Causal(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32, p kernels.Precision) {
	checkAttention(dst, q, k, v, heads, kvHeads, headDim)
	t := tile.For(p)
	if t == nil || headDim > t.Weights() || q.Rows == 0 {
		causalGo(dst, q, k, v, heads, kvHeads, headDim, window, scale)
		return
	}
	a := &attention{Tiling: t, dst: dst, q: q, k: k, v: v, headDim: headDim, window: window, scale: scale,
		shared: heads / kvHeads}
	a.dimSteps, a.keySteps = (headDim+t.Depth()-1)/t.Depth(), (k.Rows+t.Depth()-1)/t.Depth()
	a.keyStrips = (k.Rows + t.Strip() - 1) / t.Strip()
	a.dimStrips = (headDim + t.Strip() - 1) / t.Strip()
	workers := runtime.GOMAXPROCS(0)
	if q.Rows*k.Rows*q.Cols < 1<<18 {
		workers = 1
	}

	keys, values := (a.keyStrips*a.dimSteps+t.Lanes)*t.Strip(), a.dimStrips*a.keySteps*t.Strip()
	buf := words.Get(kvHeads * (keys + values))
	defer words.Put(buf)
	a.keys, a.values = make([][]uint32, kvHeads), make([][]uint32, kvHeads)
	kernels.Spread(kvHeads, workers, func(h int) {
		packed := buf[h*(keys+values):]
		a.keys[h], a.values[h] = packed[:keys], packed[keys:keys+values]
		a.pack(h)
	})
	const panelsPerTask = 8
	panels := (q.Rows + t.Panel() - 1) / t.Panel()
	tasks := (panels + panelsPerTask - 1) / panelsPerTask
	kernels.Spread(heads*tasks, workers, func(i int) {
		// Late queries see more keys; they come first, so that short tasks fill up the end.
		h, task := i%heads, tasks-1-i/heads
		a.queries(h, task*panelsPerTask, min((task+1)*panelsPerTask, panels))
	})
}

// keyTile is how many keys' scores of a panel of queries exist at a time: 12·256 float32 are 12 KiB of L1.
const keyTile = 256

// attention is one call's state: k and v packed for the micro-kernels, for each of their heads.
type attention struct {
	*tile.Tiling
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
	staging := words.Get(a.StagingWords())
	defer words.Put(staging)
	keys, values := tile.RowsOf(a.k.View(0, n, d0, d1)), tile.ColsOf(a.v.View(0, n, d0, d1))
	for s := range a.keyStrips {
		a.PackB(&keys, a.headDim, a.keys[h][s*a.dimSteps*a.Strip():], staging,
			s*a.Strip(), min((s+1)*a.Strip(), n), 0, a.dimSteps)
	}
	for s := range a.dimStrips {
		a.PackB(&values, n, a.values[h][s*a.keySteps*a.Strip():], nil,
			s*a.Strip(), min((s+1)*a.Strip(), a.headDim), 0, a.keySteps)
	}
}

// queries computes panels [p0,p1) of query head h.
func (a *attention) queries(h, p0, p1 int) {
	strip, headDim := a.Strip(), a.headDim
	keys, values := a.keys[h/a.shared], a.values[h/a.shared]
	pitchQ, pitchS, pitchO := pack.Pitch(a.dimSteps), pack.Pitch(keyTile), a.dimStrips*strip
	buf := words.Get(a.Panel() * (pitchQ + pitchS + pitchO))
	defer words.Put(buf)
	q, s := buf[:a.Panel()*pitchQ], buf[a.Panel()*pitchQ:][:a.Panel()*pitchS]
	out := words.Floats(buf[a.Panel()*(pitchQ+pitchS):])
	var largest, sum [16]float32
	for p := p0; p < p1; p++ {
		i0 := p * a.Panel()
		rows := min(a.Panel(), a.q.Rows-i0)
		t0 := a.k.Rows - a.q.Rows + i0 // the first query's token
		kernel := a.Kernel(rows)
		for i := range kernel.Rows {
			row := q[i*pitchQ:][:a.dimSteps]
			if i < rows {
				a.ToWords(row, a.q.Row(i0 + i)[h*headDim:][:headDim])
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
				kernel.Run(a.dimSteps, &q[0], 4*pitchQ, 4, &keys[(k0/strip+j)*a.dimSteps*strip], &words.Floats(s)[j*strip],
					4*pitchS, a.scale, false, &q[0], 0)
			}
			for i := range rows {
				row := words.Floats(s[i*pitchS:][:n])
				lo, hi := 0, min(n, t0+i+1-k0)
				if a.window > 0 {
					lo = max(0, t0+i-a.window+1-k0)
				}
				if lo >= hi {
					clear(row)
					continue
				}
				o := out[i*pitchO:][:pitchO]
				if m := elementwise.Max(row[lo:hi]); m > largest[i] {
					rescale := float32(math.Exp(float64(largest[i] - m)))
					elementwise.Scale(o, rescale)
					sum[i] *= rescale
					largest[i] = m
				}
				sum[i] += elementwise.ExpSum(row[lo:hi], row[lo:hi], largest[i])
				clear(row[:lo])
				clear(row[hi:])
				if a.Pairs { // in place: words are written where values were read before
					pack.BF16(s[i*pitchS:], row)
				}
			}
			steps := (n + a.Depth() - 1) / a.Depth()
			for d := range a.dimStrips {
				kernel.Run(steps, &s[0], 4*pitchS, 4, &values[(d*a.keySteps+k0/a.Depth())*strip], &out[d*strip], 4*pitchO, 1, true,
					&s[0], 0)
			}
		}
		for i := range rows {
			o := out[i*pitchO:][:headDim]
			elementwise.Scale(o, 1/sum[i])
			copy(a.dst.Row(i0 + i)[h*headDim:], o)
		}
	}
}

// Scale is the usual scale of the scores: 1/√headDim.
func Scale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

func checkAttention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim int) {
	if kvHeads <= 0 || heads%kvHeads != 0 || q.Cols != heads*headDim || k.Cols != kvHeads*headDim ||
		v.Cols != k.Cols || k.Rows < q.Rows || v.Rows != k.Rows || dst.Rows != q.Rows || dst.Cols != q.Cols {
		panic("attention: attention shapes do not agree")
	}
}
