package arch_test

import (
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// through takes tokens, sequences of seqLen, through all layers, the last of them for the last tokens of each sequence
// alone.
func through(t *testing.T, m *model.Model, tokens []int32, seqLen, last int) *tensor.Matrix {
	t.Helper()
	x := tensor.New(len(tokens), m.Width)
	if err := m.Embed(x, tokens, seqLen, nil); err != nil {
		t.Fatal(err)
	}
	st := m.NewState()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		wanted := seqLen
		if i == m.Layers()-1 {
			wanted = last
		}
		if err := l.ForwardLast(t.Context(), st, x, seqLen, wanted); err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
	return x
}

// TestSequences demands of every family the same results for sequences run together or alone, and for all of their tokens
// or their last ones: products of few rows are summed in another order. With several goroutines they are the same bits.
func TestSequences(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, dir := range references(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			src, err := hf.Open(dir, hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			m, err := arch.Open(src)
			if err != nil {
				t.Fatal(err)
			}
			m.Precision = kernels.F32
			const seqs, seqLen = 3, 21
			tokens := make([]int32, seqs*seqLen)
			for i := range tokens {
				tokens[i] = int32((i*i*7 + i*31 + 11) % (m.Vocab - 1))
			}
			runtime.GOMAXPROCS(1)
			want := through(t, m, tokens, seqLen, seqLen)
			runtime.GOMAXPROCS(3)
			if got := through(t, m, tokens, seqLen, seqLen); !slices.Equal(got.Data, want.Data) {
				t.Fatal("three goroutines: other bits")
			}
			same := func(what string, got *tensor.Matrix, at, from int) {
				t.Helper()
				for i := range got.Rows {
					for j, v := range got.Row(i)[:m.Dim] {
						w := want.Row(at + i)[j]
						if d := math.Abs(float64(v - w)); i%seqLen >= from && !(d <= 1e-3*(1+math.Abs(float64(w)))) {
							t.Fatalf("%s: token %d: %v, want %v", what, i, v, w)
						}
					}
				}
			}
			for i := range seqs {
				same("a sequence alone", through(t, m, tokens[i*seqLen:(i+1)*seqLen], seqLen, seqLen), i*seqLen, 0)
			}
			for _, last := range []int{1, 8} {
				same("the last tokens alone", through(t, m, tokens, seqLen, last), 0, seqLen-last)
			}
		})
	}
}
