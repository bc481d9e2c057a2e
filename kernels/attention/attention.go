// Package attention is causal attention, a tile of queries and keys at a time, and its derivative.
package attention

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

// Shape says what attention is computed: token t of head h takes Σ_s p_s·v_s, p being the softmax of
// Scale·q_t·k_s over s ≤ t and, if Window > 0, s > t−Window.
type Shape struct {
	Heads, KVHeads   int // consecutive query heads share a key head
	KeyDim, ValueDim int // features of a head in q and k, and in v and the result
	Window           int
	Scale            float32
	Softcap          float32   // c: scores become c·tanh(score/c) (Bello et al., arXiv:1611.09940); 0: they do not
	Sinks            []float32 // by query head, a score that takes part in the softmax without a value; nil: none
}

// Scale is the usual scale of the scores: 1/√headDim.
func Scale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

// Of sets dst, rows×(Heads·ValueDim), to causal attention over one sequence: k is tokens×(KVHeads·KeyDim), v
// tokens×(KVHeads·ValueDim), q rows×(Heads·KeyDim), as many rows as tokens or fewer, for the last tokens alone. dst may
// be q.
//
// Scores exist for a panel of queries and keyTile keys at a time; what they have summed so far is rescaled when a
// larger maximum turns up (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). The error of an
// output is below 10⁻⁶·(1 + max|scale·q·k|)·max|v|. Where p allows bfloat16 and the machine multiplies it faster, q, k,
// v and the exponentials are rounded to it, as GPUs do; sums, maxima and exponentials stay in float32, and the error is
// below 2⁻⁷·(1 + max Σ|scale·q·k|)·max|v|.
func Of(shape *Shape, dst, q, k, v *tensor.Matrix, p kernels.Precision) {
	shape.check(dst, q, k, v)
	t := tile.For(p)
	if t == nil || q.Rows == 0 {
		shape.plain(dst, q, k, v)
		return
	}
	a := &attention{Tiling: t, Shape: shape, dst: dst, q: q, k: k, v: v, shared: shape.Heads / shape.KVHeads}
	a.dimSteps, a.keySteps = (a.KeyDim+t.Depth()-1)/t.Depth(), (k.Rows+t.Depth()-1)/t.Depth()
	a.keyStrips = (k.Rows + t.Strip() - 1) / t.Strip()
	a.dimStrips = (a.ValueDim + t.Strip() - 1) / t.Strip()
	workers := kernels.Processors()
	if q.Rows*k.Rows*q.Cols < 1<<18 {
		workers = 1
	}

	keys, values := (a.keyStrips*a.dimSteps+t.Lanes)*t.Strip(), a.dimStrips*a.keySteps*t.Strip()
	buf := words.Get(a.KVHeads * (keys + values))
	defer words.Put(buf)
	a.keys, a.values = make([][]uint32, a.KVHeads), make([][]uint32, a.KVHeads)
	kernels.Spread(a.KVHeads, workers, func(h int) {
		packed := buf[h*(keys+values):]
		a.keys[h], a.values[h] = packed[:keys], packed[keys:keys+values]
		a.pack(h)
	})
	const panelsPerTask = 8
	panels := (q.Rows + t.Panel() - 1) / t.Panel()
	tasks := (panels + panelsPerTask - 1) / panelsPerTask
	kernels.Spread(a.Heads*tasks, workers, func(i int) {
		// Late queries see more keys; they come first, so that short tasks fill up the end.
		h, task := i%a.Heads, tasks-1-i/a.Heads
		a.queries(h, task*panelsPerTask, min((task+1)*panelsPerTask, panels))
	})
}

// check panics where matrices are not what the shape says.
func (a *Shape) check(dst, q, k, v *tensor.Matrix) {
	if a.KVHeads <= 0 || a.Heads%a.KVHeads != 0 || q.Cols != a.Heads*a.KeyDim || k.Cols != a.KVHeads*a.KeyDim ||
		v.Cols != a.KVHeads*a.ValueDim || dst.Cols != a.Heads*a.ValueDim || dst.Rows != q.Rows || k.Rows < q.Rows ||
		v.Rows != k.Rows || a.Sinks != nil && len(a.Sinks) != a.Heads {
		panic("attention: shapes do not agree")
	}
}

// maxPanel is the most queries of a panel.
const maxPanel = 32

// keyTile is how many keys' scores of a panel of queries exist at a time: 12·256 float32 are 12 KiB of L1.
const keyTile = 256

// attention is one call's state: k and v packed for the micro-kernels, for each of their heads.
type attention struct {
	*tile.Tiling
	*Shape
	dst, q, k, v         *tensor.Matrix
	shared               int // query heads to a key head
	dimSteps, keySteps   int // a step is one dimension or key, or two
	keyStrips, dimStrips int
	keys, values         [][]uint32 // strips of keys, a step after the other; strips of dimensions likewise
}

func (a *attention) pack(h int) {
	n := a.k.Rows
	staging := words.Get(a.StagingWords())
	defer words.Put(staging)
	keys, values := tile.RowsOf(a.k.View(0, n, h*a.KeyDim, (h+1)*a.KeyDim)),
		tile.ColsOf(a.v.View(0, n, h*a.ValueDim, (h+1)*a.ValueDim))
	for s := range a.keyStrips {
		for from := 0; from < a.dimSteps; from += a.KC { // as many steps as the staging holds
			a.PackB(&keys, a.KeyDim, a.keys[h][(s*a.dimSteps+from)*a.Strip():], staging,
				s*a.Strip(), min((s+1)*a.Strip(), n), from, min(from+a.KC, a.dimSteps))
		}
	}
	for s := range a.dimStrips {
		a.PackB(&values, n, a.values[h][s*a.keySteps*a.Strip():], nil,
			s*a.Strip(), min((s+1)*a.Strip(), a.ValueDim), 0, a.keySteps)
	}
}

// queries computes panels [p0,p1) of query head h.
func (a *attention) queries(h, p0, p1 int) {
	strip := a.Strip()
	keys, values := a.keys[h/a.shared], a.values[h/a.shared]
	pitchQ, pitchS, pitchO := pack.Pitch(a.dimSteps), pack.Pitch(keyTile), a.dimStrips*strip
	buf := words.Get(a.Panel() * (pitchQ + pitchS + pitchO))
	defer words.Put(buf)
	q, s := buf[:a.Panel()*pitchQ], buf[a.Panel()*pitchQ:][:a.Panel()*pitchS]
	out := words.Floats(buf[a.Panel()*(pitchQ+pitchS):])
	scale := a.Scale
	if a.Softcap != 0 {
		scale /= a.Softcap
	}
	var largest, sum [maxPanel]float32
	for p := p0; p < p1; p++ {
		i0 := p * a.Panel()
		rows := min(a.Panel(), a.q.Rows-i0)
		t0 := a.k.Rows - a.q.Rows + i0 // the first query's token
		kernel := a.Kernel(rows)
		for i := range kernel.Rows {
			row := q[i*pitchQ:][:a.dimSteps]
			if i < rows {
				a.ToWords(row, a.q.Row(i0 + i)[h*a.KeyDim:][:a.KeyDim])
			} else {
				clear(row)
			}
			largest[i], sum[i] = float32(math.Inf(-1)), 0
			if a.Sinks != nil {
				largest[i], sum[i] = a.Sinks[h], 1
			}
		}
		clear(s)
		clear(out)
		first := 0
		if a.Window > 0 {
			first = max(0, t0-a.Window+1)
		}
		for k0 := first / keyTile * keyTile; k0 < t0+rows; k0 += keyTile {
			n := min(keyTile, t0+rows-k0)
			j := max(0, first-k0) / strip
			kernel.RunMany((n+strip-1)/strip-j, strip, a.dimSteps, &q[0], 4*pitchQ, 4, keys[(k0/strip+j)*a.dimSteps*strip:], words.Floats(s)[j*strip:],
				4*pitchS, scale, false, q, 0, 0)
			for i := range rows {
				row := words.Floats(s[i*pitchS:][:n])
				lo, hi := 0, min(n, t0+i+1-k0)
				if a.Window > 0 {
					lo = max(0, t0+i-a.Window+1-k0)
				}
				if lo >= hi {
					clear(row)
					continue
				}
				if a.Softcap != 0 {
					softcap(row[lo:hi], a.Softcap)
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
			if a.Weave != nil && steps%2 == 1 && k0/a.Depth()+steps < a.keySteps { // it is woven with the one after it
				for i := range rows {
					s[i*pitchS+steps] = 0
				}
				steps++
			}
			for d := range a.dimStrips {
				kernel.Run(steps, &s[0], 4*pitchS, 4, &values[(d*a.keySteps+k0/a.Depth())*strip], &out[d*strip], 4*pitchO, 1, true,
					&s[0], 0)
			}
		}
		for i := range rows {
			o := out[i*pitchO:][:a.ValueDim]
			elementwise.Scale(o, 1/sum[i])
			copy(a.dst.Row(i0 + i)[h*a.ValueDim:], o)
		}
	}
}

// softcap makes each x into c·tanh(x), which is c·(1 − 2/(1+exp(2x))) and, where that cancels, its series.
func softcap(row []float32, c float32) {
	var e [keyTile]float32
	for i, x := range row {
		e[i] = 2 * x
	}
	elementwise.ExpSum(e[:len(row)], e[:len(row)], 0)
	for i, x := range row {
		if x > -0.125 && x < 0.125 {
			s := x * x
			row[i] = c * x * (1 + s*(-1./3+s*(2./15-s*17/315)))
		} else {
			row[i] = c * (1 - 2/(1+e[i]))
		}
	}
}
