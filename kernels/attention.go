package kernels

import (
	"math"
	"runtime"

	"github.com/llmq/llmq/tensor"
)

// Attention sets dst to causal attention over one sequence: token t of head h takes
// Σ_s softmax_s(scale·q_t·k_s)·v_s over s ≤ t and, if window > 0, s > t−window. q and dst are tokens×(heads·headDim),
// k and v tokens×(kvHeads·headDim); kvHeads divides heads, and consecutive query heads share a key head.
// dst may be q.
//
// Scores exist for a panel of queries and keyTile keys at a time; what they have summed so far is rescaled when a
// larger maximum turns up (Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135). The error of an
// output is below 10⁻⁶·(1 + max|scale·q·k|)·max|v|.
func Attention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32) {
	checkAttention(dst, q, k, v, heads, kvHeads, headDim)
	t := tiles(F32)
	if t == nil || headDim > t.kc || q.Rows == 0 {
		attentionGo(dst, q, k, v, heads, kvHeads, headDim, window, scale)
		return
	}
	a := &attention{tiling: t, dst: dst, q: q, k: k, v: v, headDim: headDim, window: window, scale: scale,
		shared: heads / kvHeads}
	a.keyStrips = (k.Rows + t.strip() - 1) / t.strip()
	a.dimStrips = (headDim + t.strip() - 1) / t.strip()
	workers := runtime.GOMAXPROCS(0)
	if q.Rows*q.Rows*q.Cols < 1<<18 {
		workers = 1
	}

	perHead := (a.keyStrips*headDim + t.lanes + a.dimStrips*k.Rows) * t.strip()
	buf := getWords(kvHeads * perHead)
	defer words.Put(buf)
	a.keys, a.values = make([][]uint32, kvHeads), make([][]uint32, kvHeads)
	spread(kvHeads, workers, func(h int) {
		packed := (*buf)[h*perHead : (h+1)*perHead]
		a.keys[h], a.values[h] = packed[:perHead-a.dimStrips*k.Rows*t.strip()], packed[perHead-a.dimStrips*k.Rows*t.strip():]
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
	keyStrips, dimStrips    int
	keys, values            [][]uint32 // strips of keys, a step for each dimension; strips of dimensions, a step for each key
}

func (a *attention) pack(h int) {
	d0, d1 := h*a.headDim, (h+1)*a.headDim
	n := a.k.Rows
	staging := getWords(a.stagingWords())
	defer words.Put(staging)
	r := &pass{tiling: a.tiling, b: rowsOperand(a.k.View(0, n, d0, d1)), k: a.headDim}
	for s := range a.keyStrips {
		r.packB(a.keys[h][s*a.headDim*a.strip():], *staging, s*a.strip(), min((s+1)*a.strip(), n), 0, a.headDim)
	}
	r.b = colsOperand(a.v.View(0, n, d0, d1))
	for s := range a.dimStrips {
		r.packB(a.values[h][s*n*a.strip():], nil, s*a.strip(), min((s+1)*a.strip(), a.headDim), 0, n)
	}
}

// queries computes panels [p0,p1) of query head h.
func (a *attention) queries(h, p0, p1 int) {
	strip, headDim := a.strip(), a.headDim
	keys, values := a.keys[h/a.shared], a.values[h/a.shared]
	pitchQ, pitchS, pitchO := pitch(headDim), pitch(keyTile), a.dimStrips*strip
	buf := getWords(a.panel() * (pitchQ + pitchS + pitchO))
	defer words.Put(buf)
	q, s := (*buf)[:a.panel()*pitchQ], (*buf)[a.panel()*pitchQ:][:a.panel()*pitchS]
	out := floats((*buf)[a.panel()*(pitchQ+pitchS):])
	var largest, sum [16]float32
	for p := p0; p < p1; p++ {
		t0 := p * a.panel()
		rows := min(a.panel(), a.q.Rows-t0)
		kernel := a.kernel(rows)
		for i := range kernel.rows {
			row := floats(q[i*pitchQ:][:headDim])
			if i < rows {
				copy(row, a.q.Row(t0 + i)[h*headDim:])
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
				kernel.run(headDim, &q[0], 4*pitchQ, 4, &keys[(k0/strip+j)*headDim*strip], &floats(s)[j*strip], 4*pitchS,
					a.scale, false)
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
			}
			for d := range a.dimStrips {
				kernel.run(n, &s[0], 4*pitchS, 4, &values[(d*a.k.Rows+k0)*strip], &out[d*strip], 4*pitchO, 1, true)
			}
		}
		for i := range rows {
			o := out[i*pitchO:][:headDim]
			scale(o, 1/sum[i])
			copy(a.dst.Row(t0 + i)[h*headDim:], o)
		}
	}
}

// AttentionScale is the usual scale of the scores: 1/√headDim.
func AttentionScale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

func checkAttention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim int) {
	if kvHeads <= 0 || heads%kvHeads != 0 || q.Cols != heads*headDim || k.Cols != kvHeads*headDim ||
		v.Cols != k.Cols || k.Rows != q.Rows || v.Rows != q.Rows {
		panic("kernels: attention shapes do not agree")
	}
	checkSame(dst, q)
}
