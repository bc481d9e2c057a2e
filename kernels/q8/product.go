package q8

import (
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// Shapes of the packed operands, which _asm/q8.go and _asm/q8_amx.go know too.
const (
	q8Tokens  = 6  // in a panel of inputs, for all tiers but AMX
	q8Outputs = 32 // in a strip of weights
)

// q8Depth is the number of groups that are summed in registers before they are added to the result: a strip of so many,
// 18 to 24 KiB, and the panel that meets it fit the L1 cache. It is a multiple of every block.
const q8Depth = 16

// q8Chunk is how many tokens a strip is multiplied with, before the next one is: their part of the result stays in L2.
const q8Chunk = 96

const q8LevelWords = q8Outputs * q8Group / 4 // of a strip's group

// q8Tile multiplies groups of panels with those of a strip.
type q8Tile func(panels, groups int, x, sums, w *uint32, scale, c *float32, rowC int, step *float32, add bool)

// q8Tiles multiply levels of 4, 6 and 8 bits; nil where no type has such.
type q8Tiles [3]q8Tile

// kernelSet are what a tier has.
type kernelSet struct {
	tokens  int           // in a panel of inputs
	tile    [2][2]q8Tiles // for groups of 32 or 16 weights, without and with minimums
	largest func(dst *uint32, x *float32, groups int)
	codes   func(codes, sums, halves *uint32, x *float32, inverse float32, e *int32, groups int, offset uint32)
	// widen, where not nil, makes codes, and levels of eight bits, numbers of 16, which the tile of such levels takes.
	widen func(dst, src *uint32, flip uint32, n int)
	// signed: levels without minimums are multiplied as signed bytes; others take those of fewer than eight bits without a sign.
	signed bool
	// lower, where not nil, takes a number off the bytes of levels without minimums, which decoders have made 128 too large.
	lower func(levels *uint32, by uint32, n int)

	lanes     int
	transpose func(dst *uint32, rowDst int, src *uint32, rowSrc, n int) // as in tile.Tiling
}

// q8Inputs are rounded inputs, by blocks of q8Depth groups of 32 columns, then panels, then groups. For each group there are
//
//	codes  [tokens][32]int8
//	sums   [1 + 2·parts][tokens]uint32
//
// in two versions of sums, whose parts of a group are 1 and 2: first, for each part, where sums of products with levels to
// which the offset has been added start; then where others start, 1.5·2^(23+e) (see _asm/q8.go); then, for each part, the sum of
// the codes times 2^e.
type q8Inputs struct {
	*kernelSet
	rows, groups int
	codes        []uint32
	wide         []uint32    // codes of 16 bits, empty if they are not needed
	sums         [2][]uint32 // the second one empty if it is not needed
	steps        []float32   // of each token, filled up with zeros to whole panels
	buf          []uint32
}

func (in *q8Inputs) panels() int { return (in.rows + in.tokens - 1) / in.tokens }

// at is how many groups of panels lie before panel p's in the block that starts at group g.
func (in *q8Inputs) at(p, g int) int { return g*in.panels() + p*min(q8Depth, in.groups-g) }

// codeWords and sumWords are the numbers of words of a panel's group.
func (k *kernelSet) codeWords() int           { return k.tokens * q8Group / 4 }
func (k *kernelSet) sumWords(version int) int { return k.tokens * (3 + 2*version) }

// wide says whether w is multiplied with codes of 16 bits.
func (k *kernelSet) wide(w *kernels.Weights) bool { return k.widen != nil && w.Format.Levels.Bits == 8 }

// offset is what w's levels are too large by when they are multiplied; any will do where it is 0.
func (k *kernelSet) offset(w *kernels.Weights) uint32 {
	switch lv := w.Format.Levels; {
	case lv.Minimums || k.signed || k.wide(w):
		return 0
	case k.lower != nil:
		return 1 << (lv.Bits - 1)
	}
	return 128
}

// round rounds x for products with weights of which some have groups of 16, if quarters, and some are wide, and whose levels have an offset.
func (k *kernelSet) round(x *tensor.Matrix, quarters, wide bool, offset uint32) *q8Inputs {
	in := &q8Inputs{kernelSet: k, rows: x.Rows, groups: x.Cols / q8Group}
	n := in.panels() * in.groups
	sizes := []int{n * k.codeWords(), n * k.sumWords(0), 0, in.panels() * k.tokens, 0}
	if quarters {
		sizes[2] = n * k.sumWords(1)
	}
	if wide {
		sizes[4] = 2 * n * k.codeWords()
	}
	in.buf = words.Get(sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4])
	rest := in.buf
	take := func(n int) []uint32 {
		part := rest[:n:n]
		rest = rest[n:]
		return part
	}
	in.codes, in.sums[0], in.sums[1], in.steps = take(sizes[0]), take(sizes[1]), take(sizes[2]), words.Floats(take(sizes[3]))
	in.wide = take(sizes[4])
	kernels.Parallel(in.panels(), 2, func(lo, hi int) {
		largest, e := make([]uint32, in.groups), make([]int32, in.groups)
		for i := lo * k.tokens; i < hi*k.tokens; i++ {
			p, t := i/k.tokens, i%k.tokens
			row := min(i, x.Rows-1) // those beyond have any codes, and steps of zero
			k.largest(&largest[0], &x.Data[row*x.Stride], in.groups)
			step, inverse := q8Steps(e, largest)
			if i >= x.Rows {
				step = 0
			}
			in.steps[i] = step
			for g := 0; g < in.groups; g += q8Depth {
				at := in.at(p, g)
				var halves *uint32
				if quarters {
					halves = &in.sums[1][at*k.sumWords(1)+t]
				}
				k.codes(&in.codes[at*k.codeWords()+t*q8Group/4], &in.sums[0][at*k.sumWords(0)+t], halves,
					&x.Data[row*x.Stride+g*q8Group], inverse, &e[g], min(q8Depth, in.groups-g), offset)
			}
			if !wide || t < k.tokens-1 {
				continue
			}
			for g := 0; g < in.groups; g += q8Depth {
				at := in.at(p, g) * k.codeWords()
				k.widen(&in.wide[2*at], &in.codes[at], 0, min(q8Depth, in.groups-g)*k.codeWords())
			}
		}
	})
	return in
}

func (in *q8Inputs) release() { words.Put(in.buf) }

// product computes all results. Each task takes some columns of one: it packs their weights, which stay in its L2 cache,
// and runs the panels over them, some panels at a time, whose results stay in L2 until they are complete, and whose inputs
// stay there while one strip after the other is in L1.
func (in *q8Inputs) product(add bool, results []kernels.Product) {
	const width = 2 * q8Outputs
	type task struct{ result, column int }
	var tasks []task
	for i, r := range results {
		for j := 0; j < r.W.Rows; j += width {
			tasks = append(tasks, task{i, j})
		}
	}
	workers := kernels.Processors()
	if in.rows*in.groups*q8Group*len(tasks)*width < 1<<19 { // some ten microseconds: not worth waking others
		workers = 1
	}
	// Split the panels too if there are few columns; every part then packs weights for itself, which a chunk of tokens repays.
	parts := 1
	if workers > 1 {
		parts = max(1, min(in.panels()*in.tokens/q8Chunk, (6*workers+len(tasks)-1)/len(tasks)))
	}
	kernels.Spread(len(tasks)*parts, workers, func(i int) {
		t, part := tasks[i/parts], i%parts
		r, n := &results[t.result], in.panels()
		in.columns(add, r, t.column, min(t.column+width, r.W.Rows), n*part/parts, n*(part+1)/parts)
	})
}

// q8Strip is a strip's packed weights: for each group of 32 columns, four columns at a time, four bytes for each output, or two columns of 16 bits;
// and for each group that shares a scale the scales of all outputs, and then their minimums, if there are any.
type q8Strip struct {
	levels []uint32
	scales []float32
}

// columns computes columns [j0,j1) of panels [p0,p1) of a result.
func (in *q8Inputs) columns(add bool, r *kernels.Product, j0, j1, p0, p1 int) {
	lv := r.W.Format.Levels
	parts, kinds := q8Group/lv.Group, 1
	if lv.Minimums {
		kinds = 2
	}
	tile := in.tile[parts-1][kinds-1][(lv.Bits-4)/2]
	wide := in.kernelSet.wide(r.W)
	levelWords, scaleWords := q8Depth*q8LevelWords, q8Depth*parts*kinds*q8Outputs
	if wide {
		levelWords *= 2
	}
	n, blocks := (j1-j0+q8Outputs-1)/q8Outputs, (in.groups+q8Depth-1)/q8Depth
	staging := newQ8Staging(parts, wide)
	buf := words.Get(blocks*n*(levelWords+scaleWords) + staging.words() + in.tokens*q8Outputs)
	defer words.Put(buf)
	scratch := words.Floats(buf[:in.tokens*q8Outputs])
	staging.buf = buf[len(scratch):][:staging.words()]
	packed := buf[len(scratch)+len(staging.buf):]
	strip := func(g0, i int) q8Strip {
		s := packed[(g0/q8Depth*n+i)*(levelWords+scaleWords):][:levelWords+scaleWords]
		return q8Strip{s[:levelWords], words.Floats(s[levelWords:])}
	}
	for g0 := 0; g0 < in.groups; g0 += q8Depth {
		for i := range n {
			j := j0 + i*q8Outputs
			in.pack(strip(g0, i), r.W, &staging, j, min(j+q8Outputs, j1), g0, min(g0+q8Depth, in.groups))
		}
	}
	chunk := q8Chunk / in.tokens // panels
	for c0 := p0; c0 < p1; c0 += chunk {
		for g0 := 0; g0 < in.groups; g0 += q8Depth {
			for i := range n {
				j, s := j0+i*q8Outputs, strip(g0, i)
				in.multiply(tile, parts-1, wide, r.Dst, &s, c0, min(c0+chunk, p1), j, min(j+q8Outputs, j1), g0, add || g0 > 0,
					scratch)
			}
		}
	}
}

// multiply computes the tiles of c at panels [p,p1) and column j from the block of groups at g0; scratch serves tiles that c
// cuts off.
func (in *q8Inputs) multiply(tile q8Tile, version int, wide bool, c *tensor.Matrix, s *q8Strip, p, p1, j, j1, g0 int, add bool,
	scratch []float32) {
	groups, cols := min(q8Depth, in.groups-g0), j1-j
	run := func(panels int, dst *float32, stride int, add bool) {
		at := in.at(p, g0)
		codes := &in.codes[at*in.codeWords()]
		if wide {
			codes = &in.wide[2*at*in.codeWords()]
		}
		tile(panels, groups, codes, &in.sums[version][at*in.sumWords(version)], &s.levels[0], &s.scales[0],
			dst, 4*stride, &in.steps[p*in.tokens], add)
		p += panels
	}
	if whole := min(p1, c.Rows/in.tokens) - p; whole > 0 && cols == q8Outputs {
		run(whole, &c.Data[p*in.tokens*c.Stride+j], c.Stride, add)
	}
	for p < p1 {
		i := p * in.tokens
		run(1, &scratch[0], q8Outputs, false)
		for y := i; y < min(i+in.tokens, c.Rows); y++ {
			row, part := c.Row(y)[j:j1], scratch[(y-i)*q8Outputs:]
			if !add {
				copy(row, part)
				continue
			}
			for x := range row {
				row[x] += part[x]
			}
		}
	}
}

// q8Staging is where rows of weights await transposition: the levels of each, its scales and its minimums.
type q8Staging struct {
	wide                 bool // levels are of 16 bits
	rowLevels, rowScales int  // words between rows
	buf                  []uint32
}

func newQ8Staging(parts int, wide bool) q8Staging {
	levels := q8Depth * q8Group / 4
	if wide {
		levels *= 2
	}
	return q8Staging{wide: wide, rowLevels: pack.Pitch(levels), rowScales: pack.Pitch(q8Depth * parts)}
}

func (s *q8Staging) words() int { return q8Outputs * (s.rowLevels + 2*s.rowScales) }

func (s *q8Staging) levels(y int) *uint32  { return &s.buf[y*s.rowLevels] }
func (s *q8Staging) scales(y int) *float32 { return s.float(q8Outputs*s.rowLevels + y*s.rowScales) }
func (s *q8Staging) minimums(y int) *float32 {
	return s.float(q8Outputs*(s.rowLevels+s.rowScales) + y*s.rowScales)
}
func (s *q8Staging) float(i int) *float32 { return (*float32)(unsafe.Pointer(&s.buf[i])) }

// pack packs groups [g0,g1) of outputs [j0,j1); outputs beyond have levels and scales of zero.
func (k *kernelSet) pack(dst q8Strip, w *kernels.Weights, s *q8Staging, j0, j1, g0, g1 int) {
	f := w.Format
	decode := unpack.DecoderLevels(f)
	from, to := f.RowBytes(g0*q8Group), f.RowBytes(g1*q8Group)
	n := (g1 - g0) * q8Group / 4 // words of a row's levels
	for y := range q8Outputs {
		if j0+y >= j1 {
			clear(s.buf[y*s.rowLevels:][:s.rowLevels])
			clear(s.buf[q8Outputs*s.rowLevels+y*s.rowScales:][:s.rowScales])
			clear(s.buf[q8Outputs*(s.rowLevels+s.rowScales)+y*s.rowScales:][:s.rowScales])
			continue
		}
		unpack.ReadAhead(w, j0+y, from, to)
		levels := s.levels(y)
		if s.wide { // bytes begin in the middle of where they become twice as long
			levels = &s.buf[y*s.rowLevels+n]
		}
		decode((*byte)(unsafe.Pointer(levels)), s.scales(y), s.minimums(y), &w.Row(j0 + y)[from], (g1-g0)*q8Group/f.BlockLen)
		if s.wide {
			k.widen(s.levels(y), levels, 0x80808080, n)
		}
	}
	if s.wide {
		n *= 2
	}
	kinds := 1
	if f.Levels.Minimums {
		kinds = 2
	}
	// Transposition may read, and write, up to a vector's length of words past the last group.
	blocks := func(n int) int { return (n + k.lanes - 1) / k.lanes }
	for y := 0; y < q8Outputs; y += k.lanes {
		k.transpose(&dst.levels[y], 4*q8Outputs, s.levels(y), 4*s.rowLevels, blocks(n))
		n := blocks((g1 - g0) * q8Group / f.Levels.Group)
		k.transpose(words.Of(&dst.scales[y]), 4*q8Outputs*kinds, words.Of(s.scales(y)), 4*s.rowScales, n)
		if kinds == 2 {
			k.transpose(words.Of(&dst.scales[q8Outputs+y]), 4*q8Outputs*kinds, words.Of(s.minimums(y)), 4*s.rowScales, n)
		}
	}
	if by := 128 - k.offset(w); k.lower != nil && !f.Levels.Minimums && !k.wide(w) && by > 0 {
		k.lower(&dst.levels[0], by*0x01010101, n*q8Outputs)
	}
}
