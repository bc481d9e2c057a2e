package model

import (
	"fmt"
	"math"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Spec is an architecture with the hyperparameters of one model: what package arch makes of its metadata.
type Spec struct {
	Arch    string // general.architecture
	Layers  int
	Dim     int // the width of the residual stream
	Vocab   int // rows of token_embd.weight
	Context int // what the model was trained for
	// Longest is the longest sequence for which what is computed here is the model's function; 0: any.
	Longest int
	// Width is the number of features that hidden states have between layers; 0: Dim. What there is beyond Dim the layers
	// keep in State.Aux.
	Width       int
	ExpertsUsed int // experts that a token reaches in a layer; 0: there are none
	// Layer composes layer i. It must ask b for the same tensors each time.
	Layer func(b *Loader, i int)
	// Outer names the tensors outside the layers, and says how embeddings and logits are computed.
	Outer func(b *Loader) Ends
}

// Ends is what comes before the first layer and after the last.
type Ends struct {
	// EmbedScale multiplies the embeddings; 0: 1. EmbedNorm normalises them; nil: does not.
	EmbedScale float32
	EmbedNorm  *Norm
	// Positions, where not nil, has a row for each position, which is added to the embedding there: positions×Dim.
	Positions *tensor.Matrix
	// EmbedAux fills in what hidden states have beside the embeddings x, tokens×Dim; nil: zeros. replace is Model.Embed's.
	EmbedAux func(aux, x *tensor.Matrix, tokens []int32, replace ReplaceRows) error
	// Norm is the final norm.
	Norm *Norm
	// HeadBias is added to the logits; nil: none. Then they are multiplied by LogitScale, 0 meaning 1, and become
	// c·tanh(logit/c) where the Softcap c is not 0.
	HeadBias            []float32
	LogitScale, Softcap float32
}

// Names of the tensors that every model has, or may have, outside its layers.
const (
	EmbedName = "token_embd.weight"
	HeadName  = "output.weight"
)

// Model is a language model whose layers are loaded one at a time. Layers and heads may be loaded, and states computed
// with, by several goroutines at a time.
type Model struct {
	Arch                        string
	Blocks, Dim, Vocab, Context int
	Width                       int  // features of a hidden state between layers, at least Dim
	Tied                        bool // no output.weight: the head is token_embd.weight
	Source                      Source
	Precision                   kernels.Precision // of the linears' inputs
	// TableGELU has GELU taken from a table over float16, as llama.cpp's CPU backend does, for comparisons with it.
	TableGELU bool

	spec    *Spec
	ends    Ends
	tensors map[string]*ggml.Info
	wants   map[string]want
	shapes  [][]SiteShape // by layer
}

// New checks that the source's tensors are those that the spec names. It reads no weights but what Spec.Outer asks for.
func New(src Source, spec *Spec) (*Model, error) {
	m := &Model{Arch: spec.Arch, Blocks: spec.Layers, Dim: spec.Dim, Vocab: spec.Vocab, Context: spec.Context,
		Width: max(spec.Width, spec.Dim), Source: src, spec: spec, wants: map[string]want{}}
	var err error
	if m.tensors, err = directory(src); err != nil {
		return nil, err
	}
	if t, ok := src.Meta("tokenizer.ggml.tokens"); ok {
		if t, ok := t.([]string); ok && len(t) > m.Vocab {
			return nil, fmt.Errorf("model: %s: tokenizer.ggml.tokens has %d tokens, %s only %d rows",
				src.Name(), len(t), EmbedName, m.Vocab)
		}
	}
	m.Tied = m.tensors[HeadName] == nil
	if err := m.declare(); err != nil {
		return nil, err
	}
	outer := &Loader{m: m, layer: &Layer{Index: -1, m: m, vectors: map[string][]float32{}}, load: true}
	m.ends = spec.Outer(outer)
	return m, outer.err
}

// directory returns the source's tensors by name. It refuses those of types that cannot be decoded, and of sizes that
// cannot be: from here on products of dimensions are right.
func directory(src Source) (map[string]*ggml.Info, error) {
	tensors := make(map[string]*ggml.Info)
	for _, t := range src.Tensors() {
		if tensors[t.Name] != nil {
			return nil, fmt.Errorf("model: %s: tensor %q appears twice", src.Name(), t.Name)
		}
		if t.Type == nil || t.Type.Unpack == nil {
			return nil, fmt.Errorf("model: %s: tensor %q: its type cannot be decoded", src.Name(), t.Name)
		}
		if _, err := t.Size(); err != nil {
			return nil, fmt.Errorf("model: %s: tensor %q: %w", src.Name(), t.Name, err)
		}
		tensors[t.Name] = &t
	}
	return tensors, nil
}

// declareOuter names the tensors outside the layers.
func (m *Model) declareOuter(b *Loader) {
	b.want(EmbedName, RoleEmbedding, Required, m.Vocab, m.Dim)
	b.want(HeadName, RoleHead, Optional, m.Vocab, m.Dim)
	m.spec.Outer(b)
}

// Layers is the number of layers.
func (m *Model) Layers() int { return m.Blocks }

// CheckLength refuses sequences for which the model's function is another one than is computed here.
func (m *Model) CheckLength(n int) error {
	if l := m.spec.Longest; l > 0 && n > l {
		return fmt.Errorf("model: %s: sequences of %d tokens: from %d on, %s models attend in a way that llmq does not compute",
			m.Source.Name(), n, l+1, m.Arch)
	}
	return nil
}

// Tensor returns the directory's entry for a tensor, nil if there is none.
func (m *Model) Tensor(name string) *ggml.Info { return m.tensors[name] }

// ReadAhead says that layer i, or past the last the head, will be needed next: the source may read it while others
// compute.
func (m *Model) ReadAhead(i int) {
	switch {
	case i < m.Blocks:
		for _, s := range m.shapes[i] {
			if s.Expert <= 0 {
				for _, name := range s.Names {
					m.Source.ReadAhead(name)
				}
			}
		}
	case m.Tied:
		m.Source.ReadAhead(EmbedName)
	default:
		m.Source.ReadAhead(HeadName)
	}
}

// ReplaceRows may change rows of a table of embeddings, one for each token, before anything is made of them. Where it is nil nobody does.
type ReplaceRows func(table string, rows *tensor.Matrix) error

// Embed sets the rows of dst, len(tokens)×Width, to the hidden states with which the tokens of sequences of seqLen
// tokens enter the first layer. Only the rows of the tables that are needed are decoded.
func (m *Model) Embed(dst *tensor.Matrix, tokens []int32, seqLen int, replace ReplaceRows) error {
	x := dst.View(0, dst.Rows, 0, m.Dim)
	if err := m.rows(x, EmbedName, tokens); err != nil {
		return err
	}
	if replace != nil {
		if err := replace(EmbedName, x); err != nil {
			return err
		}
	}
	e := &m.ends
	if s := e.EmbedScale; s != 0 && s != 1 {
		for t := range x.Rows {
			for j, v := range x.Row(t) {
				x.Row(t)[j] = v * s
			}
		}
	}
	if e.Positions != nil {
		if seqLen > e.Positions.Rows {
			return fmt.Errorf("model: %s: a sequence of %d tokens, the model has embeddings for %d positions",
				m.Source.Name(), seqLen, e.Positions.Rows)
		}
		for t := range x.Rows {
			vector.Axpy(x.Row(t), 1, e.Positions.Row(t%seqLen))
		}
	}
	if e.EmbedNorm != nil {
		e.EmbedNorm.apply(x, x)
	}
	if m.Width == m.Dim {
		return nil
	}
	aux := dst.View(0, dst.Rows, m.Dim, m.Width)
	aux.Zero()
	if e.EmbedAux == nil {
		return nil
	}
	return e.EmbedAux(aux, x, tokens, replace)
}

// EmbedRows sets the rows of dst, len(tokens)×Dim, to the embeddings of tokens as the table has them.
func (m *Model) EmbedRows(dst *tensor.Matrix, tokens []int32) error {
	return m.rows(dst, EmbedName, tokens)
}

// rows decodes the tokens' rows of a table.
func (m *Model) rows(dst *tensor.Matrix, name string, tokens []int32) error {
	t, err := m.tensor(name)
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
	Norm   *Norm
	Linear *Linear // output.weight, or token_embd.weight where tied

	m *Model
}

// LoadHead fetches the output weights.
func (m *Model) LoadHead() (*Head, error) {
	name := HeadName
	if m.Tied {
		name = EmbedName
	}
	b := &Loader{m: m}
	l := &Linear{Name: name, Out: m.Vocab, In: m.Dim, Expert: -1, Role: m.Role(name), Bias: m.ends.HeadBias}
	if b.fetch(l); b.err != nil {
		return nil, b.err
	}
	return &Head{Norm: m.ends.Norm, Linear: l, m: m}, nil
}

// In sets dst, tokens×Dim, to the input of the output weights for hidden states x, tokens×Width.
func (h *Head) In(dst, x *tensor.Matrix) { h.Norm.apply(dst, x.View(0, x.Rows, 0, h.m.Dim)) }

// Part sets dst, tokens×(hi−lo), to the logits of tokens lo to hi−1 of the vocabulary for the input in of the output
// weights. Every logit comes from here.
func (h *Head) Part(dst, in *tensor.Matrix, lo, hi int) {
	part := h.Linear
	if lo != 0 || hi != part.Out {
		part = part.Part(lo, hi)
	}
	h.With(part, dst, in)
}

// With is Part with other output weights, those of some tokens.
func (h *Head) With(part *Linear, dst, in *tensor.Matrix) {
	part.Apply(dst, in, h.m.Precision)
	scale, c := h.m.ends.LogitScale, float64(h.m.ends.Softcap)
	if (scale == 0 || scale == 1) && c == 0 {
		return
	}
	byRows(dst.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			row := dst.Row(t)
			if scale != 0 {
				for j := range row {
					row[j] *= scale
				}
			}
			if c != 0 {
				for j, v := range row {
					row[j] = float32(c * math.Tanh(float64(v)/c))
				}
			}
		}
	})
}

// Logits sets dst, tokens×Vocab, from the last layer's output x, tokens×Width. x is left as it is.
func (h *Head) Logits(dst, x *tensor.Matrix) {
	in := tensor.New(x.Rows, h.m.Dim)
	h.In(in, x)
	h.Part(dst, in, 0, h.m.Vocab)
}

// Release gives the weights back to the source.
func (h *Head) Release() { h.m.Source.Release(h.Linear.tensor) }
