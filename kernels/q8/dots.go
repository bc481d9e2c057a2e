package q8

import (
	"encoding/binary"
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

// Shapes of the operands of arm64's kernels, which _asm/dots.go knows too.
const (
	dotTokens  = 6 // in a panel of inputs
	dotOutputs = 8 // in a strip of weights
)

// dotWidth is how many outputs a task packs: a panel of inputs stays in L1 while their strips pass, which stay in L2.
const dotWidth = 4 * dotOutputs

// dotTile computes the unscaled sums of a panel and a strip over all groups: c is [dotTokens][dotOutputs]float32.
type dotTile func(groups int, x, starts, totals, w *uint32, scale, c *float32)

// dotKernels are what a tier of arm64 has. Its products sum as matMulGo does, operation by operation, and have its results.
//
// Codes of a panel lie a run of columns at a time: [in/runX][dotTokens][runX]int8; levels of a strip likewise:
// [in/runW][dotOutputs][runW]int8. What belongs to a token or to an output is a word for each, or, where vectors of
// sums are of two tokens by two outputs, in pairs, what meets each of the four: t t t' t', and s s' s s'. A group of 32
// columns has, in this form,
//
//	starts  of a panel: the bits of 1.5·2^(23+e), which sums of products start at
//	totals  of a panel: for each part of it that shares a scale, the sum of the codes times 2^e, in formats with minimums
//	scales  of a strip: for each part, the scales, and the minimums, if there are any
type dotKernels struct {
	tile       [2][2]dotTile // for groups of 32 or 16 weights, without and with minimums
	runX, runW int
	pairs      bool
}

// tokenWords and outputWords are how many words a value of each token of a panel, or of each output of a strip, takes.
func (k *dotKernels) tokenWords() int {
	if k.pairs {
		return 2 * dotTokens
	}
	return (dotTokens + 3) / 4 * 4
}

func (k *dotKernels) outputWords() int {
	if k.pairs {
		return 2 * dotOutputs
	}
	return dotOutputs
}

// putToken and putOutput set what belongs to token t, or output o.
func (k *dotKernels) putToken(dst []uint32, t int, v uint32) {
	if k.pairs {
		dst[2*t], dst[2*t+1] = v, v
		return
	}
	dst[t] = v
}

func (k *dotKernels) putOutput(dst []uint32, o int, v float32) {
	bits := math.Float32bits(v)
	if k.pairs {
		i := o/2*4 + o%2
		dst[i], dst[i+2] = bits, bits
		return
	}
	dst[o] = bits
}

// interleave sets rows i of dst, [len(row)/run][rows][run]byte.
func interleave(dst []byte, row []int8, i, rows, run int) {
	dst = dst[i*run:]
	if run == 4 {
		for j := 0; j < len(row); j += 4 {
			r := row[j : j+4 : j+4]
			binary.LittleEndian.PutUint32(dst[j*rows:],
				uint32(uint8(r[0]))|uint32(uint8(r[1]))<<8|uint32(uint8(r[2]))<<16|uint32(uint8(r[3]))<<24)
		}
		return
	}
	for j := 0; j < len(row); j += run {
		d := dst[j*rows:][:run]
		for b, v := range row[j : j+run] {
			d[b] = byte(v)
		}
	}
}

// dotInputs are rounded inputs, one panel after the other. totals are those of groups of 32 and of 16 weights; either is empty if
// it is not needed.
type dotInputs struct {
	*dotKernels
	rows, groups  int
	codes, starts []uint32
	totals        [2][]uint32
	steps         []float32
	buf           []uint32
}

func (in *dotInputs) panels() int { return (in.rows + dotTokens - 1) / dotTokens }

func (k *dotKernels) round(x *tensor.Matrix, products []kernels.Product) *dotInputs {
	in := &dotInputs{dotKernels: k, rows: x.Rows, groups: x.Cols / q8Group, steps: make([]float32, x.Rows)}
	n := in.panels() * in.groups
	sizes := [4]int{n * dotTokens * q8Group / 4, n * k.tokenWords()}
	for _, p := range products {
		if lv := p.W.Format.Levels; lv.Minimums {
			parts := q8Group / lv.Group
			sizes[1+parts] = n * parts * k.tokenWords()
		}
	}
	in.buf = words.Get(sizes[0] + sizes[1] + sizes[2] + sizes[3])
	rest := in.buf
	for i, dst := range []*[]uint32{&in.codes, &in.starts, &in.totals[0], &in.totals[1]} {
		*dst, rest = rest[:sizes[i]:sizes[i]], rest[sizes[i]:]
	}
	kernels.Parallel(in.panels(), 1, func(lo, hi int) {
		codes, e := make([]int8, x.Cols), make([]int32, in.groups)
		for i := lo * dotTokens; i < hi*dotTokens; i++ {
			p, t := i/dotTokens, i%dotTokens
			if i < x.Rows {
				in.steps[i] = roundGo(codes, e, x.Row(i))
			} else { // any finite sums do
				clear(codes)
				clear(e)
			}
			in.token(p, t, codes, e)
		}
	})
	return in
}

// token fills in token t of panel p.
func (in *dotInputs) token(p, t int, codes []int8, e []int32) {
	at, step := p*in.groups, in.tokenWords()
	interleave(words.Bytes(in.codes[at*dotTokens*q8Group/4:]), codes, t, dotTokens, in.runX)
	for g, exponent := range e {
		const magic = 0x4b400000 // 1.5·2²³
		in.putToken(in.starts[(at+g)*step:], t, uint32(magic+exponent<<23))
		for i, totals := range in.totals {
			if len(totals) == 0 {
				continue
			}
			parts := 1 + i
			for part := range parts {
				var total int32
				for _, c := range codes[g*q8Group+part*q8Group/parts:][:q8Group/parts] {
					total += int32(c)
				}
				in.putToken(totals[((at+g)*parts+part)*step:], t, math.Float32bits(float32(total)*power2(exponent)))
			}
		}
	}
}

func (in *dotInputs) release() { words.Put(in.buf) }

// product computes all results. Each task packs dotWidth columns of one and runs the panels over them.
func (in *dotInputs) product(add bool, results []kernels.Product) {
	type task struct{ result, column int }
	var tasks []task
	for i, r := range results {
		for j := 0; j < r.W.Rows; j += dotWidth {
			tasks = append(tasks, task{i, j})
		}
	}
	kernels.Spread(len(tasks), kernels.Processors(), func(i int) {
		r := &results[tasks[i].result]
		in.columns(add, r, tasks[i].column, min(tasks[i].column+dotWidth, r.W.Rows))
	})
}

// columns computes columns [j0,j1) of a result.
func (in *dotInputs) columns(add bool, r *kernels.Product, j0, j1 int) {
	lv := r.W.Format.Levels
	parts, kinds := q8Group/lv.Group, 1
	if lv.Minimums {
		kinds = 2
	}
	tile := in.tile[parts-1][kinds-1]
	levelWords, scaleWords := in.groups*dotOutputs*q8Group/4, in.groups*parts*kinds*in.outputWords()
	n := (j1 - j0 + dotOutputs - 1) / dotOutputs
	buf := words.Get(n * (levelWords + scaleWords))
	defer words.Put(buf)
	strip := func(i int) (levels, scales []uint32) {
		s := buf[i*(levelWords+scaleWords):][:levelWords+scaleWords]
		return s[:levelWords], s[levelWords:]
	}
	level := make([]int8, r.W.Cols)
	scale, minimum := make([]float32, r.W.Cols/lv.Group), make([]float32, r.W.Cols/lv.Group)
	for o := range n * dotOutputs {
		if j0+o < j1 {
			lv.Unpack(level, scale, minimum, r.W.Row(j0+o))
		} else {
			clear(level)
			clear(scale)
			clear(minimum)
		}
		levels, scales := strip(o / dotOutputs)
		o %= dotOutputs
		interleave(words.Bytes(levels), level, o, dotOutputs, in.runW)
		for g, s := range scale {
			at := scales[g*kinds*in.outputWords():]
			in.putOutput(at, o, s)
			if kinds == 2 {
				in.putOutput(at[in.outputWords():], o, minimum[g])
			}
		}
	}
	var c [dotTokens * dotOutputs]float32
	for p := range in.panels() {
		at := p * in.groups
		totals := &in.starts[0] // unused
		if kinds == 2 {
			totals = &in.totals[parts-1][at*parts*in.tokenWords()]
		}
		for i := range n {
			levels, scales := strip(i)
			tile(in.groups, &in.codes[at*dotTokens*q8Group/4], &in.starts[at*in.tokenWords()], totals, &levels[0],
				&words.Floats(scales)[0], &c[0])
			j := j0 + i*dotOutputs
			for t := p * dotTokens; t < min(p*dotTokens+dotTokens, in.rows); t++ {
				row, step := r.Dst.Row(t)[j:min(j+dotOutputs, j1)], in.steps[t]
				for o, sum := range c[t%dotTokens*dotOutputs:][:len(row)] {
					if sum = float32(sum * step); add {
						sum += row[o]
					}
					row[o] = sum
				}
			}
		}
	}
}
