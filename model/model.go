package model

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// Model is a language model whose layers are loaded one at a time. Loading is safe beside computing, so that the next
// layer can be read ahead; computing itself shares scratch memory and is for one goroutine at a time, or see Fork.
type Model struct {
	Config
	Source    Source
	Precision kernels.Precision // of the linears' inputs

	tensors  map[string]*ggml.Info
	cos, sin *tensor.Matrix // RoPE by position, as many as were needed so far
	scratch  [scratchSlots][]float32
}

// The intermediate results that live while a stage runs.
const (
	scratchQ = iota
	scratchK
	scratchV
	scratchGate
	scratchNorm // a norm's output, inside Forward and Logits
	scratchIn   // the input of attn_output or ffn_down, inside Forward
	scratchDelta
	scratchLast    // the hidden states and
	scratchQueries // normalised ones of the tokens that ForwardLast is for
	scratchSlots
)

// Open reads the hyperparameters and checks that the source's tensors are those of a supported architecture. It reads
// no weights but the RoPE factors.
func Open(src Source) (*Model, error) {
	c, tensors, err := readConfig(src)
	if err != nil {
		return nil, err
	}
	m := &Model{Config: *c, Source: src, tensors: tensors}
	if tensors[ropeFreqsName] != nil {
		if m.RoPE.Factors, err = m.vector(ropeFreqsName); err != nil {
			return nil, err
		}
		for i, f := range m.RoPE.Factors {
			if f <= 0 {
				return nil, fmt.Errorf("model: %s: tensor %q: element %d is %v, want a positive factor",
					src.Name(), ropeFreqsName, i, f)
			}
		}
	}
	return m, nil
}

// Fork returns m with scratch memory of its own: both can compute at the same time.
func (m *Model) Fork() *Model {
	f := *m
	f.scratch = [scratchSlots][]float32{}
	return &f
}

// Layers is the number of transformer layers.
func (m *Model) Layers() int { return m.Blocks }

// LayerWeights is the number of weights in a layer's linears: the multiplications that one token takes.
func (m *Model) LayerWeights() int64 {
	var n int64
	for _, l := range m.linears() {
		n += int64(l.shape[0]) * int64(l.shape[1])
	}
	return n
}

// Tensor returns the directory's entry for a tensor, nil if there is none.
func (m *Model) Tensor(name string) *ggml.Info { return m.tensors[name] }

// Embed sets row i of dst, len(tokens)×Dim, to the embedding of tokens[i]. Only the rows that are needed are decoded.
func (m *Model) Embed(dst *tensor.Matrix, tokens []int32) error {
	t, err := m.tensor(embedName)
	if err != nil {
		return err
	}
	defer m.Source.Release(t)
	w := kernels.Weights{Rows: t.Rows(), Cols: t.Cols(), Format: &t.Type.Format, Data: t.Data}
	for i, id := range tokens {
		if id < 0 || int(id) >= w.Rows {
			return fmt.Errorf("model: %s: token %d is %d, the vocabulary has %d", m.Source.Name(), i, id, w.Rows)
		}
		unpack.F32(w.Format, dst.Row(i), w.Row(int(id)))
	}
	return nil
}

// Head turns the last layer's output into logits.
type Head struct {
	Norm   []float32
	Linear *Linear // output.weight, or token_embd.weight where tied

	m *Model
}

// LoadHead fetches the final norm and the output weights.
func (m *Model) LoadHead() (*Head, error) {
	h := &Head{m: m}
	var err error
	if h.Norm, err = m.vector(outputNormName); err != nil {
		return nil, err
	}
	stem := "output"
	if m.Tied {
		stem = "token_embd"
	}
	if h.Linear, err = m.linear(stem); err != nil {
		return nil, err
	}
	return h, nil
}

// In sets dst, tokens×Dim, to the input of the output weights.
func (h *Head) In(dst, x *tensor.Matrix) { h.m.norm(dst, x, h.Norm) }

// Logits sets dst, tokens×Vocab, from the last layer's output x, tokens×Dim. x is left as it is.
func (h *Head) Logits(dst, x *tensor.Matrix) {
	in := h.m.buffer(scratchNorm, x.Rows, x.Cols)
	h.In(in, x)
	h.Linear.Apply(dst, in, h.m.Precision)
}

// Release gives the weights back to the source.
func (h *Head) Release() { h.m.Source.Release(h.Linear.tensor) }

// buffer returns a scratch matrix of unspecified content, valid until the slot is used again.
func (m *Model) buffer(slot, rows, cols int) *tensor.Matrix {
	if n := rows * cols; cap(m.scratch[slot]) < n {
		m.scratch[slot] = make([]float32, n)
	}
	return tensor.FromSlice(rows, cols, m.scratch[slot][:cap(m.scratch[slot])])
}

// norm sets dst to RMSNorm(x)·w.
func (m *Model) norm(dst, x *tensor.Matrix, w []float32) {
	byRows(x.Rows, func(lo, hi int) {
		elementwise.RMSNorm(dst.View(lo, hi, 0, dst.Cols), x.View(lo, hi, 0, x.Cols), w, m.Eps)
	})
}

// rope returns the RoPE table for sequences of n tokens.
func (m *Model) rope(n int) (cos, sin *tensor.Matrix) {
	if m.cos == nil || m.cos.Rows < n {
		m.cos, m.sin = m.RoPE.table(n)
	}
	return m.cos, m.sin
}
