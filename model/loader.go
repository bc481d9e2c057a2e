package model

import (
	"fmt"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Role is what a tensor is for, which decides what may become of it.
type Role int

const (
	RoleVector    Role = iota // a norm, a bias, a scale: small, and float32 in files
	RoleKept                  // a matrix that readers demand in float32: a router, a convolution
	RoleLinear                // a linear of a layer, or the experts' linears in one tensor
	RoleEmbedding             // token_embd.weight, and other tables of which tokens choose rows
	RoleHead                  // output.weight
	RoleUnused                // nothing that llmq computes: carried over as it is
)

// Presence says whether a tensor has to be there.
type Presence int

const (
	Absent Presence = iota
	Optional
	Required
)

// want is a tensor that a model has, or may have.
type want struct {
	shape    []int
	role     Role
	optional bool
}

// Loader gives the stages of a layer, or what is outside the layers, its tensors by name and shape. It does so twice:
// when a model is opened, to check what the source has, with linears and vectors that have no values, and when a layer
// is loaded. What it is asked for must not depend on which of the two it is.
type Loader struct {
	m      *Model
	prefix string // "blk.0.", "" outside the layers
	layer  *Layer
	load   bool
	// shared are the linears of the layer that is loaded again, by ID.
	shared map[string]*Linear
	// missing: the source lacks a required tensor.
	missing bool
	err     error
}

// Layer is the layer's number.
func (b *Loader) Layer() int { return b.layer.Index }

// Has says whether the source has a tensor of the layer.
func (b *Loader) Has(name string) bool { return b.m.tensors[b.prefix+name] != nil }

// Full is the full name of a tensor of the layer.
func (b *Loader) Full(name string) string { return b.prefix + name }

// Shape is a tensor's shape in the source, nil if it is not there.
func (b *Loader) Shape(name string) []int {
	if t := b.m.tensors[b.prefix+name]; t != nil {
		return t.Shape
	}
	return nil
}

// want notes a tensor, and says whether it is to be fetched.
func (b *Loader) want(name string, role Role, p Presence, shape ...int) bool {
	if p == Absent {
		return false
	}
	name = b.prefix + name
	if !b.load {
		b.m.wants[name] = want{shape, role, p == Optional}
		b.missing = b.missing || p == Required && b.m.tensors[name] == nil
	}
	return b.load && b.err == nil && b.m.tensors[name] != nil
}

// Vector returns the n values of a norm, a bias or the like; nil if it is not there, which Open allows only where it is
// Optional.
func (b *Loader) Vector(name string, n int, p Presence) []float32 {
	return b.Values(name, RoleVector, p, n)
}

// Values returns the values of a tensor of any shape in float32.
func (b *Loader) Values(name string, role Role, p Presence, shape ...int) []float32 {
	if !b.want(name, role, p, shape...) {
		return nil
	}
	v, err := b.m.vector(b.prefix + name)
	if err != nil {
		b.err = err
	}
	b.layer.vectors[b.prefix+name] = v
	return v
}

// Norm returns an RMSNorm over n features, the weights of which are name+".weight".
func (b *Loader) Norm(name string, n int, eps float32) *Norm {
	name += ".weight"
	return &Norm{Name: b.prefix + name, W: b.Vector(name, n, Required), Eps: eps}
}

// OptionalNorm is Norm, or nil if the source has none.
func (b *Loader) OptionalNorm(name string, n int, eps float32) *Norm {
	if !b.Has(name + ".weight") {
		b.want(name+".weight", RoleVector, Optional, n)
		return nil
	}
	return b.Norm(name, n, eps)
}

// LayerNorm returns a LayerNorm over n features with an optional bias.
func (b *Loader) LayerNorm(name string, n int, eps float32) *Norm {
	norm := b.Norm(name, n, eps)
	norm.Layer, norm.B = true, b.Vector(name+".bias", n, Optional)
	return norm
}

// HeadNorm returns a LayerNorm without a bias of each of several heads, whose weights are name+".weight", heads×headDim.
func (b *Loader) HeadNorm(name string, heads, headDim int, eps float32) *Norm {
	name += ".weight"
	return &Norm{Name: b.prefix + name, W: b.Values(name, RoleVector, Required, heads, headDim), Eps: eps, Layer: true, PerHead: true}
}

// Linear returns the linear of stem+".weight", out×in, with the bias of stem+".bias" if there is one.
func (b *Loader) Linear(stem string, out, in int, bias Presence) *Linear {
	return b.linear(stem, RoleLinear, out, in, bias)
}

// Kept is Linear for a matrix that is never quantized.
func (b *Loader) Kept(stem string, out, in int, bias Presence) *Linear {
	return b.linear(stem, RoleKept, out, in, bias)
}

// Row is Kept for a linear with one output, without a bias, which files have as a matrix of one row or as a vector.
func (b *Loader) Row(stem string, in int) *Linear {
	name := stem + ".weight"
	if len(b.Shape(name)) != 1 {
		return b.Kept(stem, 1, in, Absent)
	}
	l := &Linear{Name: b.prefix + name, Out: 1, In: in, Expert: -1, Role: RoleKept}
	if v := b.Values(name, RoleKept, Required, in); v != nil {
		l.F32 = tensor.FromSlice(1, in, v)
	}
	b.layer.linears = append(b.layer.linears, l)
	return l
}

func (b *Loader) linear(stem string, role Role, out, in int, bias Presence) *Linear {
	l := &Linear{Name: b.prefix + stem + ".weight", Out: out, In: in, Expert: -1, Role: role}
	fetch := b.want(stem+".weight", role, Required, out, in)
	l.Bias = b.Vector(stem+".bias", out, bias)
	if fetch && b.err == nil {
		b.fetch(l)
	}
	b.layer.linears = append(b.layer.linears, l)
	return l
}

// fetch gives a linear its weights: those of the whole tensor.
func (b *Loader) fetch(l *Linear) {
	if b.takes(l) {
		return
	}
	t, err := b.m.tensor(l.Name)
	if err != nil {
		b.err = err
		return
	}
	l.tensor = t
	l.W = kernels.Weights{Rows: t.Rows(), Cols: t.Cols(), Format: &t.Type.Format, Data: t.Data}
}

// fetchRows gives a linear its weights: rows of a tensor, which is released with it if it owns it. Those of streams that the
// source would copy are left for Linear.Weights.
func (b *Loader) fetchRows(l *Linear, owns, streams bool) {
	if b.takes(l) {
		return
	}
	if _, ok := b.m.Source.(RowSource); !ok {
		whole := &Linear{Name: l.Name}
		if b.fetch(whole); b.err == nil {
			l.tensor = whole.tensor
			n := l.Out * whole.W.Format.RowBytes(l.In)
			l.W = kernels.Weights{Rows: l.Out, Cols: l.In, Format: whole.W.Format, Data: whole.W.Data[l.Expert*n : (l.Expert+1)*n]}
		}
	} else if info := b.m.tensors[l.Name]; streams && b.m.copies(l.Name, l.first, l.first+l.Out) {
		l.layer = b.layer
		l.tensor = &ggml.Tensor{Info: *info} // to be released, without data
		l.W = kernels.Weights{Rows: l.Out, Cols: l.In, Format: &info.Type.Format}
	} else {
		t, err := b.m.someRows(l)
		if err != nil {
			b.err = err
			return
		}
		l.tensor = t
		l.W = kernels.Weights{Rows: l.Out, Cols: l.In, Format: &t.Type.Format, Data: t.Data}
	}
	if !owns {
		l.tensor = nil
	}
}

// takes gives a linear the copy of its weights that the layer has which is loaded again, if there is one.
func (b *Loader) takes(l *Linear) bool {
	from := b.shared[l.ID()]
	if from == nil || from.W.Data == nil || !b.m.copies(l.Name, l.first, l.first+l.Out) {
		return false
	}
	l.W, l.tensor = from.W, from.tensor
	return true
}

// copies says whether the source makes rows of a tensor anew each time: RowCopier.
func (m *Model) copies(name string, lo, hi int) bool {
	c, ok := m.Source.(RowCopier)
	return ok && c.Copies(name, lo, hi)
}

// Experts returns n linears, out×in each, that stem+".weight" has one after the other. Their biases, if there are any,
// are in stem+".bias", n×out. The layer does not hold weights that the source would copy.
func (b *Loader) Experts(stem string, n, out, in int, bias Presence) []*Linear {
	return b.several(stem, n, out, in, bias, true)
}

// Heads is Experts for linears of attention heads, without biases: they are small and all used for every token, and held.
func (b *Loader) Heads(stem string, n, out, in int) []*Linear {
	return b.several(stem, n, out, in, Absent, false)
}

func (b *Loader) several(stem string, n, out, in int, bias Presence, streams bool) []*Linear {
	whole := &Linear{Name: b.prefix + stem + ".weight", Out: n * out, In: in, Expert: -1, Role: RoleLinear}
	fetch := b.want(stem+".weight", RoleLinear, Required, n, out, in)
	whole.Bias = b.Values(stem+".bias", RoleVector, bias, n, out)
	experts := make([]*Linear, n)
	for e := range experts {
		x := &Linear{Name: whole.Name, Expert: e, Out: out, In: in, first: e * out, Role: RoleLinear}
		if whole.Bias != nil {
			x.Bias = whole.Bias[e*out : (e+1)*out]
		}
		if fetch && b.err == nil {
			b.fetchRows(x, e == 0, streams)
		}
		experts[e] = x
	}
	b.layer.linears = append(b.layer.linears, experts...)
	return experts
}

// LayerScale returns the factor of name+".weight".
func (b *Loader) LayerScale(name string) *LayerScale {
	return &LayerScale{b.Vector(name+".weight", 1, Optional)}
}

// Table names a table of which tokens choose rows, and returns what decodes those of some tokens into dst,
// len(tokens)×cols.
func (b *Loader) Table(name string, rows, cols int) func(dst *tensor.Matrix, tokens []int32) error {
	b.want(name, RoleEmbedding, Required, rows, cols)
	name = b.prefix + name
	return func(dst *tensor.Matrix, tokens []int32) error { return b.m.rows(dst, name, tokens) }
}

// Unused notes a tensor that a file has and that nothing here computes with. kept: readers keep it in float32, as they do
// in layers that are computed.
func (b *Loader) Unused(name string, kept bool) {
	role := RoleUnused
	if kept {
		role = RoleKept
	}
	if s := b.Shape(name); s != nil {
		b.want(name, role, Optional, s...)
	}
}

// Fail notes why a layer cannot be.
func (b *Loader) Fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf("model: %s: layer %d: %s", b.m.Source.Name(), b.layer.Index, fmt.Sprintf(format, args...))
	}
}

// LoadLayer fetches layer i. It refuses a source that has changed since it was opened.
func (m *Model) LoadLayer(i int) (*Layer, error) { return m.loadLayer(i, nil) }

// LoadAgain fetches the layer of l, which nothing has been changed in yet, once more. Weights that the source had to copy are held once
// for both: nobody writes to a linear's stored weights, only puts others in their place.
func (m *Model) LoadAgain(l *Layer) (*Layer, error) {
	shared := map[string]*Linear{}
	for _, lin := range l.linears {
		shared[lin.ID()] = lin
	}
	return m.loadLayer(l.Index, shared)
}

func (m *Model) loadLayer(i int, shared map[string]*Linear) (*Layer, error) {
	if err := Unchanged(m.Source); err != nil {
		return nil, err
	}
	l := &Layer{Index: i, m: m, vectors: map[string][]float32{}}
	b := &Loader{m: m, prefix: layerPrefix(i), layer: l, load: true, shared: shared}
	m.spec.Layer(b, i)
	if b.err != nil {
		l.Release()
		return nil, b.err
	}
	for _, s := range l.Sites() {
		s.Layer = i
	}
	return l, nil
}

func layerPrefix(i int) string { return ggml.LayerName(i) + "." }

// declare has the spec name all tensors, and keeps for each layer what its linears are.
func (m *Model) declare() error {
	outer := &Loader{m: m, layer: &Layer{Index: -1, m: m, vectors: map[string][]float32{}}}
	m.declareOuter(outer)
	if outer.err != nil {
		return outer.err
	}
	for i := range m.Blocks {
		l := &Layer{Index: i, m: m, vectors: map[string][]float32{}}
		b := &Loader{m: m, prefix: layerPrefix(i), layer: l}
		m.spec.Layer(b, i)
		if b.err != nil {
			return b.err
		}
		m.shapes = append(m.shapes, l.shape())
		// Metadata may claim thousands of layers of thousands of experts: no more of them are listed than the source has.
		if b.missing {
			return m.check(i)
		}
	}
	return m.check(m.Blocks)
}

// check reports the first tensor that is missing, has another shape than the hyperparameters say, or does not belong to
// the architecture: such a tensor would change the result, were it understood. Layers after last are not declared.
func (m *Model) check(last int) error {
	for _, t := range m.Source.Tensors() {
		w, ok := m.wants[t.Name]
		if n := ggml.ParseName(t.Name).Layer; !ok && n > last && n < m.Blocks {
			continue
		}
		if !ok {
			return fmt.Errorf("model: %s: tensor %q does not belong to a %s model of %d layers",
				m.Source.Name(), t.Name, m.Arch, m.Blocks)
		}
		if !slices.Equal(t.Shape, w.shape) {
			return fmt.Errorf("model: %s: tensor %q is %v, the metadata say %v", m.Source.Name(), t.Name, t.Shape, w.shape)
		}
	}
	for name, w := range m.wants {
		if m.tensors[name] == nil && !w.optional {
			return fmt.Errorf("model: %s: tensor %q is missing", m.Source.Name(), m.firstMissing())
		}
	}
	return nil
}

// firstMissing is the first by name, so that the same file gives the same message.
func (m *Model) firstMissing() string {
	first := ""
	for name, w := range m.wants {
		if m.tensors[name] == nil && !w.optional && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

// Role says what a tensor is for.
func (m *Model) Role(name string) Role { return m.wants[name].role }

// LoadsBias says whether readers of the architecture load a bias beside a weight, given by its name.
func (m *Model) LoadsBias(weight string) bool {
	_, ok := m.wants[biasName(weight)]
	return ok
}
