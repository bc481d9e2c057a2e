package model_test

import (
	"context"
	"math"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// linearSums runs a model forward and backward on one sequence and returns, for each linear of a layer, the sum over tokens of
// the gradient of Σ log p(labels) at its output: the derivative by its bias.
func linearSums(t *testing.T, m *model.Model, tokens []int32, labels []int) (map[string][]float64, *model.Differential) {
	t.Helper()
	ctx := context.Background()
	m.Precision = kernels.F32
	st := m.NewState()
	x := tensor.New(len(tokens), m.Width)
	if err := m.Embed(x, tokens, len(tokens), nil); err != nil {
		t.Fatal(err)
	}
	inputs := []*tensor.Matrix{}
	for i := range m.Layers() {
		inputs = append(inputs, x.Clone())
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Forward(ctx, st, x, len(tokens)); err != nil {
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
		a[labels[t]] = 1
	})
	sums := map[string][]float64{}
	d := &model.Differential{See: func(lin *model.Linear, dy *tensor.Matrix, _ []int) error {
		if sums[lin.ID()] == nil {
			sums[lin.ID()] = make([]float64, lin.Out)
		}
		for t := range dy.Rows {
			for j, v := range dy.Row(t) {
				sums[lin.ID()][j] += float64(v)
			}
		}
		return nil
	}}
	for i := m.Layers() - 1; i >= 0; i-- {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Backward(ctx, st, inputs[i], dx, len(tokens), d); err != nil {
			t.Fatal(err)
		}
	}
	return sums, d
}

// labelsFor gives each token some label.
func labelsFor(n, vocab int) []int {
	labels := make([]int, n)
	for t := range labels {
		labels[t] = (t*7919 + 13) % vocab
	}
	return labels
}

// referenceLoss is Σ log p(labels) in float64.
func referenceLoss(logits [][]float64, labels []int) float64 {
	var sum float64
	for t, row := range logits {
		largest := math.Inf(-1)
		for _, v := range row {
			largest = max(largest, v)
		}
		var e float64
		for _, v := range row {
			e += math.Exp(v - largest)
		}
		sum += row[labels[t]] - largest - math.Log(e)
	}
	return sum
}

// TestBackwardReference compares gradients at the outputs of linears with central differences of the float64 forward pass, by
// biases that are added to it.
func TestBackwardReference(t *testing.T) {
	names := map[string]string{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
		"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
	for _, name := range testmodel.Names() {
		t.Run(name, func(t *testing.T) {
			ref := testmodel.New(name)
			m, err := arch.Open(ref.Source())
			if err != nil {
				t.Fatal(err)
			}
			tokens := ref.Tokens(9, 5)
			labels := labelsFor(len(tokens), m.Vocab)
			sums, d := linearSums(t, m, tokens, labels)
			if len(d.Opaque) > 0 {
				t.Errorf("no derivative: %v", d.Opaque)
			}
			for hf, gg := range names {
				checkBias(t, ref, "model.layers.0."+hf, sums["blk.0."+gg+".weight"], tokens, labels,
					rowOf(ref, gg))
			}
		})
	}
}

// rowOf maps a row of our weights to the checkpoint's: llama's queries and keys lie in another order.
func rowOf(ref *testmodel.Model, name string) func(int) int {
	if ref.Config.ModelType != "llama" && ref.Config.ModelType != "mistral" || name != "attn_q" && name != "attn_k" {
		return func(i int) int { return i }
	}
	d := ref.Config.HeadDim
	if d == 0 {
		d = ref.Config.HiddenSize / ref.Config.NumAttentionHeads
	}
	return func(i int) int { return i/d*d + i%d/2 + i%2*(d/2) }
}

func checkBias(t *testing.T, ref *testmodel.Model, name string, got []float64, tokens []int32, labels []int, row func(int) int) {
	t.Helper()
	if got == nil {
		t.Errorf("%s: not shown", name)
		return
	}
	bias := biasOf(ref, name, len(got))
	var scale float64
	for _, v := range got {
		scale += v * v
	}
	scale = math.Sqrt(scale / float64(len(got)))
	for i := 0; i < len(got); i += max(1, len(got)/2-1) {
		const step = 1. / 1024 // exact beside the biases, which are bfloat16
		b := &bias[row(i)]
		at := *b
		*b = at + step
		above := referenceLoss(ref.Forward(tokens).Logits, labels)
		*b = at - step
		below := referenceLoss(ref.Forward(tokens).Logits, labels)
		*b = at
		if want := (above - below) / (2 * step); !(math.Abs(got[i]-want) <= 1e-4*scale) {
			t.Errorf("%s[%d]: gradient %.7g, differences give %.7g (root mean square %.3g)", name, i, got[i], want, scale)
		}
	}
}

// biasOf returns the bias of a linear, which it adds where there is none.
func biasOf(ref *testmodel.Model, name string, n int) []float32 {
	for i := range ref.Tensors {
		if ref.Tensors[i].Name == name+".bias" {
			return ref.Tensors[i].Data
		}
	}
	ref.Tensors = append(ref.Tensors, testmodel.Tensor{Name: name + ".bias", Shape: []int{n}, Data: make([]float32, n)})
	return ref.Tensors[len(ref.Tensors)-1].Data
}
