package arch_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestBackwardReference compares the gradients at the outputs of all linears, summed over tokens, with central differences of the
// forward pass by their biases, along a random direction, in every architecture. Differences of a float32 forward pass are good
// to a percent; package model's tests compare with float64.
func TestBackwardReference(t *testing.T) {
	for _, dir := range references(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			m, err := arch.Open(openReference(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			b := newBackward(t, m)
			if len(b.opaque) > 0 {
				t.Fatalf("no derivatives: %v", b.opaque)
			}
			for i, l := range b.layers {
				for _, lin := range l.Linears() {
					if lin.Expert > 0 || strings.Contains(lin.Name, "ffn_gate_inp.") {
						continue // a bias of the router changes which experts are chosen
					}
					if got := b.sums[lin.ID()]; got != nil {
						b.check(i, lin, got)
					} else if lin.Expert < 0 {
						t.Errorf("%s is not shown", lin.ID())
					}
				}
			}
		})
	}
}

// backward is a model with gradients on one sequence.
type backward struct {
	t      *testing.T
	m      *model.Model
	tokens []int32
	layers []*model.Layer
	head   *model.Head
	inputs []*tensor.Matrix
	sums   map[string][]float64
	opaque []string
}

func newBackward(t *testing.T, m *model.Model) *backward {
	m.Precision = kernels.F32
	b := &backward{t: t, m: m, sums: map[string][]float64{}}
	for i := range 20 {
		b.tokens = append(b.tokens, int32((i*29+7)%m.Vocab))
	}
	x := tensor.New(len(b.tokens), m.Width)
	if err := m.Embed(x, b.tokens, len(b.tokens), nil); err != nil {
		t.Fatal(err)
	}
	st := m.NewState()
	for i := range m.Layers() {
		b.inputs = append(b.inputs, x.Clone())
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Release)
		if err := l.Forward(t.Context(), st, x, len(b.tokens)); err != nil {
			t.Fatal(err)
		}
		b.layers = append(b.layers, l)
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Release)
	b.head = h
	dx := tensor.New(x.Rows, x.Cols)
	h.Backward(st, dx, x, func(t int, _ []float32) int { return b.label(t) })
	d := &model.Differential{See: func(lin *model.Linear, dy *tensor.Matrix, _ []int) error {
		if b.sums[lin.ID()] == nil {
			b.sums[lin.ID()] = make([]float64, lin.Out)
		}
		for t := range dy.Rows {
			for j, v := range dy.Row(t) {
				b.sums[lin.ID()][j] += float64(v)
			}
		}
		return nil
	}}
	for i := m.Layers() - 1; i >= 0; i-- {
		if err := b.layers[i].Backward(t.Context(), st, b.inputs[i], dx, len(b.tokens), d); err != nil {
			t.Fatal(err)
		}
	}
	b.opaque = d.Opaque
	return b
}

func (b *backward) label(t int) int { return (t*13 + 5) % b.m.Vocab }

// loss is Σ log p(labels), with the bias of a linear of layer i moved by step·direction, and which experts are chosen from there on.
func (b *backward) loss(i int, lin *model.Linear, direction []float32, step float32) (sum float64, chosen []int) {
	x := b.inputs[i].Clone()
	st := b.m.NewState()
	own := lin.Bias
	defer func() { lin.Bias = own }()
	moved := make([]float32, lin.Out)
	copy(moved, own)
	for j, v := range direction {
		moved[j] += step * v
	}
	lin.Bias = moved
	for _, l := range b.layers[i:] {
		st.Enter(b.m, x, len(b.tokens))
		err := l.Run(b.t.Context(), st, 0, len(l.Stages), func(s *model.Site, _ *tensor.Matrix, tokens []int) error {
			if s.Expert >= 0 && !s.Head {
				chosen = append(append(chosen, tokens...), -1)
			}
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	logits := tensor.New(x.Rows, b.m.Vocab)
	b.head.Logits(logits, x)
	for t := range logits.Rows {
		sum += float64(logits.Row(t)[b.label(t)]) - elementwise.LogSumExp(logits.Row(t))
	}
	return sum, chosen
}

// check compares with differences along a direction in which the gradient has most of its length, and noise.
func (b *backward) check(i int, lin *model.Linear, gradient []float64) {
	rng := rand.New(rand.NewPCG(1, uint64(len(gradient))))
	var length float64
	for _, v := range gradient {
		length += v * v
	}
	length = math.Sqrt(length)
	if length == 0 {
		return
	}
	direction := make([]float32, len(gradient))
	var want float64
	for j, v := range gradient {
		d := v/length + rng.NormFloat64()/math.Sqrt(float64(len(gradient)))
		direction[j] = float32(d)
		want += v * d
	}
	// Two steps cancel the error of second order. They are to stay where the same experts are chosen.
	_, chosen := b.loss(i, lin, direction, 0)
	same := true
	at := func(step float32) float64 {
		above, up := b.loss(i, lin, direction, step)
		below, down := b.loss(i, lin, direction, -step)
		same = same && slices.Equal(up, chosen) && slices.Equal(down, chosen)
		return (above - below) / float64(2*step)
	}
	for step := float32(0.02 / max(1, length)); step > 1e-4; step /= 4 {
		same = true
		got := (4*at(step) - at(2*step)) / 3
		if !same {
			continue
		}
		if math.Abs(got-want) > 0.01*math.Max(math.Abs(want), 0.3) {
			b.t.Errorf("%s: gradient %.6g along a direction, differences give %.6g", lin.ID(), want, got)
		}
		return
	}
	b.t.Logf("%s: the smallest step changes which experts are chosen", lin.ID())
}
