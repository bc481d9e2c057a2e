package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

// mode is what a product does with its result.
type mode int

const (
	store      mode = iota // C = result
	add                    // C += result
	addLower               // C += result on and below the diagonal; above it C becomes undefined
	storeLower             // C = result, where B's rows, lower triangular, are zero after the diagonal
)

// packedWords bounds what is packed of A at a time, in words: half of a common L3 cache.
const packedWords = 4 << 20

// result is one of the C's of a product, and its B.
type result struct {
	c *tensor.Matrix
	b tile.Operand
	// packed, where not nil, has B's strips, from its column from on.
	packed *Packed
	from   int
}

// product computes C = alpha·A·B for every result, summed over k elements, in the given mode.
//
// A is packed into panels, for the whole of C's rows and as many blocks of the summed dimension as packedWords allows.
// Then each task takes nc columns of a C: it packs one block of B's columns after the other into a buffer that stays in
// its L2 cache, and runs all panels of A over it.
func product(t *tile.Tiling, alpha float32, a *tile.Operand, k int, mode mode, results ...result) {
	productOn(kernels.Processors(), t, alpha, a, k, mode, results...)
}

// productOn is product on up to the given number of goroutines.
func productOn(workers int, t *tile.Tiling, alpha float32, a *tile.Operand, k int, mode mode, results ...result) {
	rows, cols := results[0].c.Rows, 0
	for _, r := range results {
		cols += r.c.Cols
		if k == 0 && (mode == store || mode == storeLower) {
			r.c.Zero()
		}
	}
	if rows == 0 || cols == 0 || k == 0 {
		return
	}
	steps := (k + t.Depth() - 1) / t.Depth()
	panels := (rows + t.Panel() - 1) / t.Panel()
	// Many rows come in chunks, so that even one block of them is bounded; so many rows repay packing B again.
	maxPanels := max(1, packedWords/t.KC/t.Panel())
	if rows*cols*k < 1<<18 { // some ten microseconds: not worth waking others
		workers = 1
	}
	for p0 := 0; p0 < panels; p0 += maxPanels {
		p1 := min(p0+maxPanels, panels)
		blocks := max(1, packedWords/(t.KC*t.Panel()*(p1-p0)))
		for s0 := 0; s0 < steps; s0 += blocks * t.KC {
			s1 := min(s0+blocks*t.KC, steps)
			r := &pass{Tiling: t, rows: rows, alpha: alpha, a: a, k: k, mode: mode, p0: p0, p1: p1, s0: s0, s1: s1}
			r.run(workers, results)
		}
	}
}

// pass is the part of a product that one packing of A serves: panels [p0,p1), steps [s0,s1).
type pass struct {
	*tile.Tiling
	rows           int // of A and of every C
	alpha          float32
	a              *tile.Operand
	k              int
	mode           mode
	p0, p1, s0, s1 int
	packed         []uint32 // block after block, panel after panel
}

func (r *pass) run(workers int, results []result) {
	whole, rest := (r.s1-r.s0)/r.KC, (r.s1-r.s0)%r.KC
	r.packed = words.Get((r.p1 - r.p0) * r.Panel() * (whole*pack.Pitch(r.KC) + pack.Pitch(rest)))
	defer words.Put(r.packed)
	// Packing a panel is short; a few at a time.
	const packing = 4
	kernels.Spread((r.p1-r.p0+packing-1)/packing, workers, func(i int) {
		for p := r.p0 + i*packing; p < min(r.p0+(i+1)*packing, r.p1); p++ {
			r.packA(p)
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
	kernels.Spread(len(tasks)*parts, workers, func(i int) {
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
	width := r.NC
	for ; workers > 1 && width > 2*r.Strip(); width /= 2 {
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
	n := r.Panel() * pack.Pitch(min(s+r.KC, r.s1)-s)
	start := (r.p1-r.p0)*r.Panel()*((s-r.s0)/r.KC*pack.Pitch(r.KC)) + (p-r.p0)*n
	return r.packed[start : start+n]
}

// columns computes columns [j0,j1) of panels [p0,p1) of a result.
func (r *pass) columns(res *result, j0, j1, p0, p1 int) {
	if r.mode == addLower {
		p0, j1 = max(p0, j0/r.Panel()), min(j1, r.rows)
	}
	if p0 >= p1 || j0 >= j1 {
		return
	}
	strips := (j1 - j0 + r.Strip() - 1) / r.Strip()
	// Transposition may write up to a vector's length of steps past the end of a strip.
	n := (strips*r.KC + r.Lanes) * r.Strip()
	scratch := r.Panel() * r.Strip()
	if res.packed != nil {
		n = 0
	}
	buf := words.Get(n + r.StagingWords() + scratch)
	defer words.Put(buf)
	packed, staging, tile := buf[:n], buf[n:n+r.StagingWords()], words.Floats(buf[n+r.StagingWords():])
	end := r.s1
	if r.mode == storeLower {
		end = min(end, (j1+r.Depth()-1)/r.Depth())
	}
	for s0 := r.s0; s0 < end; s0 += r.KC {
		s1 := min(s0+r.KC, end)
		if res.packed != nil {
			packed, strips = res.packed.block(res.from+j0, s0), 0
		}
		for i := range strips {
			j := j0 + i*r.Strip()
			r.PackB(&res.b, r.k, packed[i*(s1-s0)*r.Strip():], staging, j, min(j+r.Strip(), j1), s0, s1)
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
	i, n, a := p*r.Panel(), s1-s0, &r.panelAt(p, s0)[0]
	rows := min(r.Panel(), c.Rows-i)
	if r.mode == addLower {
		j1 = min(j1, i+rows)
	}
	rowA, stepA := 4*pack.Pitch(min(s0+r.KC, r.s1)-s0), 4
	if r.a.Cols != nil && !r.RowsOnly {
		rowA, stepA = 4, 4*r.Panel()
	}
	kernel := r.Kernel(rows)
	adding := r.mode == add || r.mode == addLower || s0 > 0
	strips := (j1 - j0 + r.Strip() - 1) / r.Strip()
	part, stepNext := len(next)/strips, 0
	if len(next) > 1 {
		stepNext = 4 * ((part + n - 1) / n)
	}
	zeros := r.mode == storeLower && s1 > (j0+r.Strip())/r.Depth() // at the ends of strips
	whole := 0                                                     // strips of tiles that c does not cut off
	if rows == kernel.Rows && !zeros {
		if whole = min(j1-j0, c.Cols-j0) / r.Strip(); whole > 0 {
			kernel.RunMany(whole, r.Strip(), n, a, rowA, stepA, packed, c.Data[i*c.Stride+j0:], 4*c.Stride, r.alpha, adding, next, part, stepNext)
		}
	}
	for strip := whole; strip < strips; strip++ {
		b, ahead, j := &packed[strip*n*r.Strip()], &next[strip*part], j0+strip*r.Strip()
		cols, n := min(r.Strip(), c.Cols-j), n
		if zeros {
			if n = min(n, (j+cols+r.Depth()-1)/r.Depth()-s0); n <= 0 {
				continue
			}
		}
		if rows == kernel.Rows && cols == r.Strip() { // past j1, above the diagonal
			kernel.Run(n, a, rowA, stepA, b, &c.Data[i*c.Stride+j], 4*c.Stride, r.alpha, adding, ahead, stepNext)
			continue
		}
		kernel.Run(n, a, rowA, stepA, b, &scratch[0], 4*r.Strip(), r.alpha, false, ahead, stepNext)
		for y := range rows {
			row, result := c.Row(i + y)[j:j+cols], scratch[y*r.Strip():]
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

// packA packs panel p of A, block after block: row after row, or step after step if that is how A lies.
func (r *pass) packA(p int) {
	i := p * r.Panel()
	rows := min(r.Panel(), r.rows-i)
	if m := r.a.Rows; m != nil {
		// A row at a time, all blocks of it: reading on is what memory does best.
		for y := range r.Panel() {
			for s := r.s0; s < r.s1; s += r.KC {
				s1 := min(s+r.KC, r.s1)
				row := r.panelAt(p, s)[y*pack.Pitch(s1-s):][:s1-s]
				if y >= rows {
					clear(row)
					continue
				}
				r.ToWords(row, m.Row(i + y)[s*r.Depth():min(s1*r.Depth(), r.k)])
			}
		}
		return
	}
	for s0 := r.s0; s0 < r.s1; s0 += r.KC {
		dst, s1 := r.panelAt(p, s0), min(s0+r.KC, r.s1)
		if r.RowsOnly {
			r.transposeA(dst, r.a.Cols, i, rows, s0, s1)
			continue
		}
		for s := s0; s < s1; s++ {
			row := dst[:r.Panel()]
			dst = dst[r.Panel():]
			copy(words.Floats(row), r.a.Cols.Row(s)[i:i+rows])
			clear(row[rows:])
		}
	}
}

// transposeA packs steps [s0,s1) of columns i, i+1, ... of m, which are A's rows, row after row.
func (r *pass) transposeA(dst []uint32, m *tensor.Matrix, i, rows, s0, s1 int) {
	pitch := pack.Pitch(s1 - s0)
	s := s0
	if rows == r.Panel() {
		for ; s+r.Lanes <= s1; s += r.Lanes {
			r.Transpose(&dst[s-s0], 4*pitch, words.Of(&m.Data[s*m.Stride+i]), 4*m.Stride, rows/r.Lanes)
		}
	}
	for y := range r.Panel() {
		row := words.Floats(dst[y*pitch:][:s1-s0])
		if y >= rows {
			clear(row)
			continue
		}
		for t := s; t < s1; t++ {
			row[t-s0] = m.Data[t*m.Stride+i+y]
		}
	}
}
