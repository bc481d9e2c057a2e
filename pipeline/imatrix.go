package pipeline

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"path/filepath"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/imatrix"
	"github.com/llmq/llmq/model"
)

// WithImatrix returns the plan with what llama-quantize notes of an importance matrix, and how many of the tensors that it
// quantizes have no sums in m. It is an error if a tensor's are not of its shape, or if no tensor has any.
func (p *Plan) WithImatrix(m *imatrix.Matrix, path string) (next *Plan, lacking int, err error) {
	found := 0
	for i := range p.Tensors {
		t := &p.Tensors[i]
		if !t.goesByImatrix() {
			continue
		}
		e, err := m.Of(&t.Info)
		switch {
		case err != nil:
			return nil, 0, fmt.Errorf("%s: %w", path, err)
		case e == nil:
			lacking++
		default:
			found++
		}
	}
	if found == 0 {
		return nil, 0, fmt.Errorf("%s: has sums of %d tensors, %q the first: none of the tensors that are quantized", path, len(m.Entries), m.Entries[0].Name)
	}
	md := gguf.Metadata{{Key: "quantize.imatrix.file", Value: filepath.Base(path)}}
	if len(m.Datasets) > 0 {
		md.Set("quantize.imatrix.dataset", m.Datasets[0])
	}
	md.Set("quantize.imatrix.entries_count", uint32(len(m.Entries)))
	md.Set("quantize.imatrix.chunks_count", uint32(m.Chunks))
	next, err = p.With(md)
	return next, lacking, err
}

// goesByImatrix says whether the tensor's scales are searched by the importance of its inputs, where it is known.
func (t *Tensor) goesByImatrix() bool {
	return t.Type.Grid != nil && !t.coded && (t.Role == model.RoleLinear || t.Role == model.RoleHead)
}

// importance is the mean squares of the inputs of a tensor's rows: of all, or of each expert's. The zero value knows none.
type importance struct {
	rows int         // of each
	of   [][]float32 // one for all of the rows if there is one
}

func (o *Options) importance(t *Tensor) importance {
	if o.Imatrix == nil || !t.goesByImatrix() {
		return importance{}
	}
	e, err := o.Imatrix.Of(&t.Info)
	if e == nil || err != nil { // WithImatrix has refused it
		return importance{}
	}
	i := importance{rows: t.Rows() / len(e.Counts)}
	for x := range e.Counts {
		i.of = append(i.of, e.Importance(x))
	}
	return i
}

// row returns those of a row of the tensor; nil: they are not known.
func (i importance) row(r int) []float32 {
	if i.of == nil {
		return nil
	}
	return i.of[r/i.rows]
}

func digestImatrix(w io.Writer, m *imatrix.Matrix) {
	for i := range m.Entries {
		e := &m.Entries[i]
		fmt.Fprintf(w, "%q %d %d\n", e.Name, e.Counts, len(e.Sums))
		for _, s := range e.Sums {
			binary.Write(w, binary.LittleEndian, math.Float32bits(s))
		}
	}
}
