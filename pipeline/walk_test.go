package pipeline

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestWalk: of every family, a stream of several batches that stands where it can has at each stage the inputs that each batch has by
// itself, and takes it to the same hidden states, bit for bit.
func TestWalk(t *testing.T) {
	for _, src := range []*testmodel.Source{testmodel.New("llama3-tied").Source(), testmodel.Gemma(), testmodel.Experts(), testmodel.CommandR()} {
		t.Run(src.Name(), func(t *testing.T) { checkWalk(t, openModel(t, src)) })
	}
	archs, ok := shared.Lookup("archs")
	if !ok {
		return
	}
	entries, err := os.ReadDir(archs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		t.Run(e.Name(), func(t *testing.T) {
			src, err := hf.Open(filepath.Join(archs, e.Name()), hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			checkWalk(t, openModel(t, src))
		})
	}
}

func checkWalk(t *testing.T, m *model.Model) {
	const seqs, seqLen = 3, gemm.FewTokens // what is hidden is not rounded
	budget := newStateBudget(0)
	s, err := zeroStream(m, states.Fixed(seqs, 1), seqLen, true, budget, "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.keepHidden(budget, ""); err != nil {
		t.Fatal(err)
	}
	sequences := make([][]int32, seqs)
	for i := range seqs * seqLen {
		sequences[i/seqLen] = append(sequences[i/seqLen], int32((i*i*7+i*31+11)%(m.Vocab-1)))
	}
	if err := embed(m, s.x, sequences, seqLen, nil); err != nil {
		t.Fatal(err)
	}
	for index := range m.Layers() {
		l, err := m.LoadLayer(index)
		if err != nil {
			t.Fatal(err)
		}
		// Each batch by itself: what every site of a stage sees, and the layer's result.
		want := make([][][]float32, seqs)
		after := make([]*tensor.Matrix, seqs)
		err = s.each(func(i int, x *tensor.Matrix) error {
			after[i] = x.Clone()
			st := m.NewState()
			st.Enter(m, after[i], seqLen)
			return l.Run(t.Context(), st, 0, len(l.Stages), func(_ *model.Site, in *tensor.Matrix, _ []int) error {
				want[i] = append(want[i], slices.Concat(rowsOf(in)...))
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		seen := 0 // sites of the stages before
		for k := range l.Stages {
			stage := &l.Stages[k]
			err := s.visit(t.Context(), l, k, func(i int) error {
				for j, site := range stage.Sites {
					if in, _ := stage.InputOf(s.st, j); !slices.Equal(slices.Concat(rowsOf(in)...), want[i][seen+j]) {
						t.Fatalf("%s, batch %d: not the input that it has by itself", site.ID(), i)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			seen += len(stage.Sites)
		}
		if err := s.advance(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		err = s.each(func(i int, x *tensor.Matrix) error {
			if !slices.Equal(x.Data[:x.Rows*x.Cols], after[i].Data) {
				t.Fatalf("layer %d, batch %d: not the hidden states that it has by itself", index, i)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
}

func rowsOf(m *tensor.Matrix) [][]float32 {
	rows := make([][]float32, m.Rows)
	for i := range rows {
		rows[i] = m.Row(i)
	}
	return rows
}
