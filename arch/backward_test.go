package arch_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
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
			if len(b.opaque) > 0 { // gradients that went around them are not the function's
				t.Skipf("no derivatives: %v", b.opaque)
			}
			for i := range m.Layers() {
				for _, lin := range b.load(i).Linears() {
					if lin.Expert > 0 || strings.Contains(lin.Name, "ffn_gate_inp.") {
						continue // a bias of the router changes which experts are chosen
					}
					if got := b.sums[lin.ID()]; got != nil {
						b.check(i, lin.ID(), got)
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
	inputs []*tensor.Matrix
	sums   map[string][]float64
	opaque []string
}

func (b *backward) load(i int) *model.Layer {
	l, err := b.m.LoadLayer(i)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(l.Release)
	return l
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
		if err := b.load(i).Forward(t.Context(), st, x, len(b.tokens)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	dx := tensor.New(x.Rows, x.Cols)
	h.Backward(st, dx, x, func(t int, a, _ []float32) {
		clear(a)
		a[b.label(t)] = 1
	})
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
		if err := b.load(i).Backward(t.Context(), st, b.inputs[i], dx, len(b.tokens), d); err != nil {
			t.Fatal(err)
		}
	}
	b.opaque = d.Opaque
	return b
}

func (b *backward) label(t int) int { return (t*13 + 5) % b.m.Vocab }

// loss is Σ log p(labels), with the bias of a linear of layer i moved by step·direction.
func (b *backward) loss(i int, id string, direction []float32, step float32) float64 {
	x := b.inputs[i].Clone()
	st := b.m.NewState()
	for k := i; k < b.m.Layers(); k++ {
		l := b.load(k)
		if k == i {
			for _, lin := range l.Linears() {
				if lin.ID() != id {
					continue
				}
				moved := make([]float32, lin.Out)
				copy(moved, lin.Bias)
				for j, v := range direction {
					moved[j] += step * v
				}
				lin.Bias = moved
			}
		}
		if err := l.Forward(b.t.Context(), st, x, len(b.tokens)); err != nil {
			b.t.Fatal(err)
		}
	}
	h, err := b.m.LoadHead()
	if err != nil {
		b.t.Fatal(err)
	}
	defer h.Release()
	logits := tensor.New(x.Rows, b.m.Vocab)
	h.Logits(logits, x)
	var sum float64
	for t := range logits.Rows {
		sum += float64(logits.Row(t)[b.label(t)]) - elementwise.LogSumExp(logits.Row(t))
	}
	return sum
}

// check compares with differences along a direction in which the gradient has most of its length, and noise.
func (b *backward) check(i int, id string, gradient []float64) {
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
	at := func(step float32) float64 {
		return (b.loss(i, id, direction, step) - b.loss(i, id, direction, -step)) / float64(2*step)
	}
	// Two steps cancel the error of second order.
	step := float32(0.02 / max(1, length))
	got := (4*at(step) - at(2*step)) / 3
	if math.Abs(got-want) > 0.01*math.Max(math.Abs(want), 0.3) {
		b.t.Errorf("%s: gradient %.6g along a direction, differences give %.6g", id, want, got)
	}
}
