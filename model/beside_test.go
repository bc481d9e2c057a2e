package model_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestStateBeside: two states that have the room for gates in common compute, stage by stage in turns, what states of their own do.
func TestStateBeside(t *testing.T) {
	m, err := arch.Open(testmodel.New("llama").Source())
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.LoadLayer(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	const seqLen = 8
	rng := rand.New(rand.NewPCG(1, 0))
	var x [2]*tensor.Matrix
	for i := range x {
		x[i] = tensor.New(seqLen, m.Width)
		for j := range x[i].Data {
			x[i].Data[j] = float32(rng.NormFloat64())
		}
	}
	one := m.NewState()
	other := m.NewStateBeside(one)
	want, got := [2]*tensor.Matrix{}, [2]*tensor.Matrix{}
	for i := range x {
		want[i], got[i] = x[i].Clone(), x[i].Clone()
		if err := l.Forward(t.Context(), m.NewState(), want[i], seqLen); err != nil {
			t.Fatal(err)
		}
	}
	one.Enter(m, got[0], seqLen)
	other.Enter(m, got[1], seqLen)
	for k := range l.Stages {
		for _, st := range []*model.State{one, other} {
			if err := l.Run(t.Context(), st, k, k+1, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range x {
		if !slices.Equal(got[i].Data, want[i].Data) {
			t.Errorf("state %d has come to something else", i)
		}
	}
}
