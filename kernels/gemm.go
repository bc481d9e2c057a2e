package kernels

import (
	"math"
	"runtime"

	"github.com/llmq/llmq/tensor"
)

// microKernel computes a tile of rows×(2 vectors): see _asm/gemm.go.
type microKernel struct {
	rows int
	run  func(k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
		next *uint32, stepNext int)
}

// tiling is what the blocked product needs to know of a tier. Packed operands are 32-bit words: a float32, or with
// pairs two bfloat16 values that are neighbours in the summed dimension, so that a step is one word deep.
type tiling struct {
	lanes   int           // words of a vector; a strip of B is two vectors wide, a tile of C as wide as a strip
	kc      int           // steps that are summed in registers before they are added to C
	nc      int           // columns of B that are packed at a time, a multiple of a strip
	pairs   bool          //
	kernels []microKernel // ascending rows; the last is the height of a panel of A

	// transpose sets dst[j][i] = src[i][j] for i < lanes, j < lanes·n.
	transpose func(dst *uint32, rowDst int, src *uint32, rowSrc, n int)
	// copyStrip copies two vectors of n steps: of a row each, or of two rows rounded to pairs.
	copyStrip func(dst *uint32, src *uint32, rowSrc, n int)
	// copyWords is copyStrip, with pairs, of rows that are pairs already.
	copyWords func(dst *uint32, src *uint32, rowSrc, n int)
}

// panel is the height of a panel of A, strip the width of a strip of B.
func (t *tiling) panel() int { return t.kernels[len(t.kernels)-1].rows }
func (t *tiling) strip() int { return 2 * t.lanes }

// depth is how many elements of the summed dimension a word holds.
func (t *tiling) depth() int {
	if t.pairs {
		return 2
	}
	return 1
}

// weights is the number of elements of the summed dimension in a block.
func (t *tiling) weights() int { return t.kc * t.depth() }

// takes says whether blocks of w's format divide the blocks of a product; t may be nil, which takes nothing.
func (t *tiling) takes(w *Weights) bool { return t != nil && t.weights()%w.Format.BlockLen == 0 }

// kernel returns the smallest micro-kernel of at least rows rows.
func (t *tiling) kernel(rows int) microKernel {
	for _, k := range t.kernels {
		if k.rows >= rows {
			return k
		}
	}
	panic("kernels: more rows than a panel has")
}

// pitch is the distance in words of the rows of a panel of n steps. A power of two would put all of them into the same
// few lines of the L1 cache.
func pitch(n int) int {
	n = (n+15)&^15 + 16
	if n%128 == 0 {
		n += 16
	}
	return n
}

// mode is what a product does with its result.
type mode int

const (
	store    mode = iota // C = result
	add                  // C += result
	addLower             // C += result on and below the diagonal; above it C becomes undefined
)

// operand is a factor of a product: one of a matrix whose rows run along the summed dimension, a matrix whose columns
// do, or quantized weights, whose rows do.
type operand struct {
	rows    *tensor.Matrix
	cols    *tensor.Matrix
	weights *Weights
	bf16    unpacker // of weights, nil if there is none
}

func rowsOperand(m *tensor.Matrix) operand { return operand{rows: m} }
func colsOperand(m *tensor.Matrix) operand { return operand{cols: m} }
func weightsOperand(w *Weights) operand {
	return operand{weights: w, bf16: w.Format.unpackerBF16()}
}

// packedWords bounds what is packed of A at a time, in words: half of a common L3 cache.
const packedWords = 4 << 20

// result is one of the C's of a product, and its B.
type result struct {
	c *tensor.Matrix
	b operand
}

// product computes C = alpha·A·B for every result, summed over k elements, in the given mode.
//
// A is packed into panels, for the whole of C's rows and as many blocks of the summed dimension as packedWords allows.
// Then each task takes nc columns of a C: it packs one block of B's columns after the other into a buffer that stays in
// its L2 cache, and runs all panels of A over it.
func (t *tiling) product(alpha float32, a *operand, k int, mode mode, results ...result) {
	rows, cols := results[0].c.Rows, 0
	for _, r := range results {
		cols += r.c.Cols
		if k == 0 && mode == store {
			r.c.Zero()
		}
	}
	if rows == 0 || cols == 0 || k == 0 {
		return
	}
	steps := (k + t.depth() - 1) / t.depth()
	panels := (rows + t.panel() - 1) / t.panel()
	// Many rows come in chunks, so that even one block of them is bounded; so many rows repay packing B again.
	maxPanels := max(1, packedWords/t.kc/t.panel())
	workers := runtime.GOMAXPROCS(0)
	if rows*cols*k < 1<<18 { // some ten microseconds: not worth waking others
		workers = 1
	}
	for p0 := 0; p0 < panels; p0 += maxPanels {
		p1 := min(p0+maxPanels, panels)
		blocks := max(1, packedWords/(t.kc*t.panel()*(p1-p0)))
		for s0 := 0; s0 < steps; s0 += blocks * t.kc {
			s1 := min(s0+blocks*t.kc, steps)
			r := &pass{tiling: t, rows: rows, alpha: alpha, a: a, k: k, mode: mode, p0: p0, p1: p1, s0: s0, s1: s1}
			r.run(workers, results)
		}
	}
}

// pass is the part of a product that one packing of A serves: panels [p0,p1), steps [s0,s1).
type pass struct {
	*tiling
	rows           int // of A and of every C
	alpha          float32
	a              *operand
	k              int
	mode           mode
	p0, p1, s0, s1 int
	packed         []uint32 // block after block, panel after panel
}

func (r *pass) run(workers int, results []result) {
	whole, rest := (r.s1-r.s0)/r.kc, (r.s1-r.s0)%r.kc
	r.packed = words.get((r.p1 - r.p0) * r.panel() * (whole*pitch(r.kc) + pitch(rest)))
	defer words.put(r.packed)
	// Packing a panel is short; a few at a time.
	const packing = 4
	spread((r.p1-r.p0+packing-1)/packing, workers, func(i int) {
		for p := r.p0 + i*packing; p < min(r.p0+(i+1)*packing, r.p1); p++ {
			for s := r.s0; s < r.s1; s += r.kc {
				r.packA(r.panelAt(p, s), p*r.panel(), s, min(s+r.kc, r.s1))
			}
		}
	})

	type task struct{ result, column int }
	var tasks []task
	width := r.taskWidth(workers, results)
	for i := range results {
		for j := 0; j < results[i].c.Cols; j += width {
			tasks = append(tasks, task{i, j})
		}
	}
	// Split the panels too if there are few columns; every part then packs B for itself, which 16 panels repay.
	parts := 1
	if workers > 1 {
		parts = max(1, min((r.p1-r.p0)/16, (tasksPerWorker*workers+len(tasks)-1)/len(tasks)))
	}
	if r.mode == addLower {
		parts = max(parts, min((r.p1-r.p0)/16, 4))
	}
	spread(len(tasks)*parts, workers, func(i int) {
		t, part := tasks[i/parts], i%parts
		c, n := &results[t.result], r.p1-r.p0
		r.columns(c, t.column, min(t.column+width, c.c.Cols), r.p0+n*part/parts, r.p0+n*(part+1)/parts)
	})
}

// tasksPerWorker is how many tasks a processor should find, so that none waits long for the last one to end.
const tasksPerWorker = 6

// taskWidth is how many columns a task takes: nc, or less where there would be too few tasks. A's panels then come from
// L3 more often, which two strips' arithmetic still hides.
func (r *pass) taskWidth(workers int, results []result) int {
	width := r.nc
	for ; workers > 1 && width > 2*r.strip(); width /= 2 {
		tasks := 0
		for _, res := range results {
			tasks += (res.c.Cols + width - 1) / width
		}
		if tasks >= tasksPerWorker*workers {
			break
		}
	}
	return width
}

// panelAt is where the block of panel p that starts at step s is packed.
func (r *pass) panelAt(p, s int) []uint32 {
	n := r.panel() * pitch(min(s+r.kc, r.s1)-s)
	start := (r.p1-r.p0)*r.panel()*((s-r.s0)/r.kc*pitch(r.kc)) + (p-r.p0)*n
	return r.packed[start : start+n]
}

// columns computes columns [j0,j1) of panels [p0,p1) of a result.
func (r *pass) columns(res *result, j0, j1, p0, p1 int) {
	if r.mode == addLower {
		p0, j1 = max(p0, j0/r.panel()), min(j1, r.rows)
	}
	if p0 >= p1 || j0 >= j1 {
		return
	}
	strips := (j1 - j0 + r.strip() - 1) / r.strip()
	// Transposition may write up to a vector's length of steps past the end of a strip.
	n := (strips*r.kc + r.lanes) * r.strip()
	scratch := r.panel() * r.strip()
	buf := words.get(n + r.stagingWords() + scratch)
	defer words.put(buf)
	packed, staging, tile := buf[:n], buf[n:n+r.stagingWords()], floats(buf[n+r.stagingWords():])
	for s0 := r.s0; s0 < r.s1; s0 += r.kc {
		s1 := min(s0+r.kc, r.s1)
		for i := range strips {
			j := j0 + i*r.strip()
			r.packB(&res.b, r.k, packed[i*(s1-s0)*r.strip():], staging, j, min(j+r.strip(), j1), s0, s1)
		}
		for p := p0; p < p1; p++ {
			next := r.panelAt(p, s0)[:1]
			if p+1 < p1 {
				next = r.panelAt(p+1, s0)
			}
			r.tiles(res.c, packed, tile, next, p, j0, j1, s0, s1)
		}
	}
}

// tiles computes columns [j0,j1) of c at panel p over steps [s0,s1), a tile for each strip that is packed. The panel
// after this one comes from L3: each strip asks for a part of it. scratch serves tiles that c cuts off.
func (r *pass) tiles(c *tensor.Matrix, packed []uint32, scratch []float32, next []uint32, p, j0, j1, s0, s1 int) {
	i, n, a := p*r.panel(), s1-s0, &r.panelAt(p, s0)[0]
	rows := min(r.panel(), c.Rows-i)
	if r.mode == addLower {
		j1 = min(j1, i+rows)
	}
	rowA, stepA := 4*pitch(n), 4
	if r.a.cols != nil {
		rowA, stepA = 4, 4*r.panel()
	}
	kernel := r.kernel(rows)
	adding := r.mode != store || s0 > 0
	strips := (j1 - j0 + r.strip() - 1) / r.strip()
	part, stepNext := len(next)/strips, 0
	if len(next) > 1 {
		stepNext = 4 * ((part + n - 1) / n)
	}
	for strip := range strips {
		b, ahead, j := &packed[strip*n*r.strip()], &next[strip*part], j0+strip*r.strip()
		cols := min(r.strip(), c.Cols-j)
		if rows == kernel.rows && cols == r.strip() {
			kernel.run(n, a, rowA, stepA, b, &c.Data[i*c.Stride+j], 4*c.Stride, r.alpha, adding, ahead, stepNext)
			continue
		}
		kernel.run(n, a, rowA, stepA, b, &scratch[0], 4*r.strip(), r.alpha, false, ahead, stepNext)
		for y := range rows {
			row, result := c.Row(i + y)[j:j+cols], scratch[y*r.strip():]
			if !adding {
				copy(row, result)
				continue
			}
			for x := range row {
				row[x] += result[x]
			}
		}
	}
}

// packA packs steps [s0,s1) of rows i, i+1, ... of A: row after row, or step after step if that is how A lies.
func (r *pass) packA(dst []uint32, i, s0, s1 int) {
	rows := min(r.panel(), r.rows-i)
	if m := r.a.cols; m != nil {
		for s := s0; s < s1; s++ {
			row := dst[:r.panel()]
			dst = dst[r.panel():]
			copy(floats(row), m.Row(s)[i:i+rows])
			clear(row[rows:])
		}
		return
	}
	n := s1 - s0
	for y := range r.panel() {
		row := dst[y*pitch(n):][:n]
		if y >= rows {
			clear(row)
			continue
		}
		r.toWords(row, r.a.rows.Row(i + y)[s0*r.depth():min(s1*r.depth(), r.k)])
	}
}

// toWords sets dst to src, as it is or in bfloat16 pairs.
func (t *tiling) toWords(dst []uint32, src []float32) {
	if t.pairs {
		toBF16Pairs(dst, src)
	} else {
		copy(floats(dst), src)
	}
}

// packB packs a strip, columns [j0,j1) of b, which has k elements in the summed dimension: steps [s0,s1) one after the
// other, zero where the strip is cut off.
func (t *tiling) packB(b *operand, k int, dst, staging []uint32, j0, j1, s0, s1 int) {
	n := s1 - s0
	if m := b.cols; m != nil {
		k0, k1 := s0*t.depth(), min(s1*t.depth(), k)
		whole := (k1 - k0) / t.depth() // steps that are there in full
		if j1-j0 < t.strip() {
			whole = 0
		}
		if whole > 0 {
			t.copyStrip(&dst[0], word(&m.Data[k0*m.Stride+j0]), 4*m.Stride, whole)
			dst, k0 = dst[whole*t.strip():], k0+whole*t.depth()
		}
		if t.pairs {
			t.packPairs(m.View(k0, k1, j0, j1), dst)
			return
		}
		for ; k0 < k1; k0++ {
			row := dst[:t.strip()]
			dst = dst[t.strip():]
			copy(floats(row), m.Row(k0)[j0:j1])
			clear(row[j1-j0:])
		}
		return
	}
	// Rows of B become columns of the strip, a vector's width of them at a time.
	for half := range 2 {
		j := j0 + half*t.lanes
		rows := max(0, min(t.lanes, j1-j))
		to := dst[half*t.lanes:]
		if m := b.rows; m != nil && rows == t.lanes && !t.pairs {
			whole := n / t.lanes
			if whole > 0 {
				t.transpose(&to[0], 4*t.strip(), word(&m.Data[j*m.Stride+s0]), 4*m.Stride, whole)
			}
			for s := whole * t.lanes; s < n; s++ {
				for y := range rows {
					to[s*t.strip()+y] = math.Float32bits(m.Data[(j+y)*m.Stride+s0+s])
				}
			}
			continue
		}
		pitch := pitch(t.kc)
		for y := range t.lanes {
			row := staging[y*pitch:][:n]
			if y >= rows {
				clear(row)
				continue
			}
			if w := b.weights; w != nil {
				w.readAhead(j+y, w.Format.RowBytes(s0*t.depth()), w.Format.RowBytes(min(s1*t.depth(), k)))
			}
			t.rowB(b, row, staging[t.lanes*pitch:], j+y, s0*t.depth(), min(s1*t.depth(), k))
		}
		t.transpose(&to[0], 4*t.strip(), &staging[0], 4*pitch, (n+t.lanes-1)/t.lanes)
	}
}

// packPairs packs a strip whose columns are m's: a step holds two rows, the last with zeros if there is one alone.
func (t *tiling) packPairs(m *tensor.Matrix, dst []uint32) {
	var even, odd [16]uint32 // a strip's width of bfloat16 values
	for y := 0; y < m.Rows; y += 2 {
		row := dst[:t.strip()]
		dst = dst[t.strip():]
		clear(row[m.Cols:])
		clear(odd[:])
		toBF16Pairs(even[:], m.Row(y))
		if y+1 < m.Rows {
			toBF16Pairs(odd[:], m.Row(y+1))
		}
		for x := range (m.Cols + 1) / 2 {
			row[2*x] = even[x]&0xffff | odd[x]<<16
			row[2*x+1] = even[x]>>16 | odd[x]&0xffff0000
		}
	}
}

// stagingWords is the size of the buffer in which rows of B await transposition: a vector's width of rows, and one
// row unpacked.
func (t *tiling) stagingWords() int { return t.lanes*pitch(t.kc) + t.weights() }

// rowB sets dst to elements [k0,k1) of row j of B.
func (t *tiling) rowB(b *operand, dst, row []uint32, j, k0, k1 int) {
	if m := b.rows; m != nil {
		t.toWords(dst, m.Row(j)[k0:k1])
		return
	}
	f := b.weights.Format
	src := b.weights.Row(j)[f.RowBytes(k0):f.RowBytes(k1)]
	if t.pairs {
		f.decodeBF16(b.bf16, dst, src, k1-k0, floats(row))
	} else {
		Unpack(f, floats(dst[:k1-k0]), src)
	}
}
