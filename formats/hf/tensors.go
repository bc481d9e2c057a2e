package hf

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/checkpoint"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/tensor"
)

// stored are the weights of a checkpoint as tensors of GGUF's types.
type stored struct {
	*checkpoint.Checkpoint
	// codes: weights that have factors are shown without them, in NVFP4.
	codes bool
}

// Rows returns rows of a tensor in the type of its Info.
func (w stored) Rows(name string, lo, hi int) ([]byte, error) {
	if w.codes && w.Factors(name) != nil {
		return w.Codes(name, lo, hi)
	}
	return w.Checkpoint.Rows(name, lo, hi)
}

// Info describes a tensor; a scalar is a vector of one element.
func (w stored) Info(name string) (ggml.Info, bool) {
	info, ok := w.Lookup(name)
	if !ok {
		return ggml.Info{}, false
	}
	if len(info.Shape) == 0 {
		info.Shape = []int{1}
	}
	if w.codes && w.Factors(name) != nil {
		info.Type = ggml.NVFP4
	}
	return ggml.Info{Name: name, Type: info.Type, Shape: info.Shape}, true
}

// Shape is for package arch.
func (w stored) Shape(name string) ([]int, bool) {
	info, ok := w.Info(name)
	return info.Shape, ok
}

// Blocks says that experts are stored in blocks of four bits, which are always out×in.
func (w stored) Blocks(name string) bool {
	info, _ := w.Lookup(name)
	return info.Format == checkpoint.MXFP4
}

// Equal says whether two tensors have the same type, shape and bytes.
func (w stored) Equal(a, b string) bool {
	ia, aok := w.Info(a)
	ib, bok := w.Info(b)
	if !aok || !bok || ia.Type != ib.Type || !slices.Equal(ia.Shape, ib.Shape) {
		return false
	}
	const step = 1024 // rows
	for lo := 0; lo < ia.Rows(); lo += step {
		hi := min(lo+step, ia.Rows())
		x, xerr := w.Rows(a, lo, hi)
		y, yerr := w.Rows(b, lo, hi)
		if xerr != nil || yerr != nil || !bytes.Equal(x, y) {
			return false
		}
	}
	return true
}

// source is a tensor of the virtual GGUF.
type source struct {
	info ggml.Info
	*arch.Tensor
	values bool // its values change, or are of parts with several types
}

// newSource says what a tensor of a conversion looks like.
func newSource(w stored, t *arch.Tensor) (source, error) {
	s := source{info: ggml.Info{Name: t.Name, Type: ggml.F32, Shape: t.Shape}, Tensor: t}
	for i, p := range t.Parts {
		info, ok := w.Info(p.Name)
		if !ok {
			return s, fmt.Errorf("tensor %q is missing", p.Name)
		}
		if i == 0 {
			s.info.Type = info.Type
		}
		if info.Type != s.info.Type || info.Type.Grid != nil && (p.Transposed || t.Columns != nil) {
			s.values = true
		}
	}
	if t.Change != nil || s.values {
		s.values, s.info.Type = true, ggml.F32
	}
	return s, nil
}

// plain says that the tensor is one of the checkpoint's as it is there.
func (s *source) plain() bool {
	return len(s.Parts) == 1 && s.Parts[0].Row == nil && s.Parts[0].First == 0 && !s.Parts[0].Transposed && s.Columns == nil && !s.values
}

// rows returns rows [lo,hi) of the tensor: a view of the checkpoint, or a copy where anything about them changes.
func (s *source) rows(w stored, lo, hi int) ([]byte, error) {
	row := s.info.Type.RowBytes(s.info.Cols())
	if s.Values != nil {
		data := make([]byte, 4*len(s.Values))
		tensor.EncodeF32(data, s.Values)
		return data[lo*row : hi*row], nil
	}
	if s.plain() {
		return s.partRows(w, &s.Parts[0], lo, hi)
	}
	if p, first := s.whole(w, lo, hi); p != nil {
		return s.partRows(w, p, lo-first, hi-first)
	}
	data := make([]byte, 0, (hi-lo)*row)
	first := 0
	for i := range s.Parts {
		p := &s.Parts[i]
		if a, b := max(lo, first), min(hi, first+p.Count); a < b {
			part, err := s.partRows(w, p, a-first, b-first)
			if err != nil {
				return nil, err
			}
			info, _ := w.Info(p.Name)
			if info.Type != s.info.Type && !(p.Transposed && info.Type.Grid != nil) {
				part = decoded(&info, part)
			}
			data = append(data, part...)
		}
		first += p.Count
	}
	if s.Columns != nil {
		data = s.chosen(data, hi-lo)
	}
	if s.Change != nil {
		values := make([]float32, s.info.Cols())
		for r := range hi - lo {
			at := data[r*row : (r+1)*row]
			tensor.DecodeF32(values, at)
			s.Change(values, lo+r)
			tensor.EncodeF32(at, values)
		}
	}
	return data, nil
}

// decoded makes float32 values of rows.
func decoded(info *ggml.Info, data []byte) []byte {
	values := make([]float32, len(data)/info.Type.BlockBytes*info.Type.BlockLen)
	info.Type.Unpack(values, data)
	out := make([]byte, 4*len(values))
	tensor.EncodeF32(out, values)
	return out
}

// chosen returns rows with the columns that the tensor has of the checkpoint's.
func (s *source) chosen(data []byte, rows int) []byte {
	size, cols := s.info.Type.BlockBytes, s.info.Cols() // of floating-point types: a value
	chosen := make([]byte, 0, rows*cols*size)
	for r := range rows {
		row := data[r*len(data)/rows : (r+1)*len(data)/rows]
		for _, from := range s.Columns {
			chosen = append(chosen, row[from*size:(from+1)*size]...)
		}
	}
	return chosen
}

// reads calls f with the rows of the checkpoint's tensors that rows [lo,hi) are made of, and perhaps some between them.
func (s *source) reads(w stored, lo, hi int, f func(name string, lo, hi int)) {
	first := 0
	for i := range s.Parts {
		p := &s.Parts[i]
		a, b := max(lo, first)-first, min(hi, first+p.Count)-first
		first += p.Count
		info, _ := w.Info(p.Name)
		switch {
		case a >= b:
		case len(info.Shape) == 1:
			f(p.Name, 0, 1)
		case p.Row == nil && p.Transposed:
			f(p.Name, (p.First+a)/p.Out*p.In, ((p.First+b-1)/p.Out+1)*p.In)
		case p.Row == nil:
			f(p.Name, p.First+a, p.First+b)
		default:
			least, most := p.Row(a), p.Row(a)
			for r := a + 1; r < b; r++ {
				least, most = min(least, p.Row(r)), max(most, p.Row(r))
			}
			if p.Transposed {
				least, most = least/p.Out*p.In, (most/p.Out+1)*p.In-1
			}
			f(p.Name, least, most+1)
		}
	}
}

// whole returns the part that has all of the rows [lo,hi) as they are, such as an expert, and its first row; nil if they are to
// be put together or changed.
func (s *source) whole(w stored, lo, hi int) (part *arch.Part, first int) {
	if s.Columns != nil || s.Change != nil {
		return nil, 0
	}
	for i := range s.Parts {
		p := &s.Parts[i]
		if lo >= first && hi <= first+p.Count {
			if info, _ := w.Info(p.Name); p.Row != nil || p.Transposed || len(info.Shape) < 2 || info.Type != s.info.Type {
				return nil, 0
			}
			return p, first
		}
		first += p.Count
	}
	return nil, 0
}

// copies says that rows gives no view of the checkpoint for rows [lo,hi).
func (s *source) copies(w stored, lo, hi int) bool {
	if s.plain() {
		return !w.View(s.Parts[0].Name)
	}
	p, _ := s.whole(w, lo, hi)
	return p == nil || !w.View(p.Name)
}

// partRows returns rows [lo,hi) of a part in the checkpoint's type, of transposed blocks in float32.
func (s *source) partRows(w stored, p *arch.Part, lo, hi int) ([]byte, error) {
	info, _ := w.Info(p.Name)
	if p.Transposed {
		return s.transposed(w, p, &info, lo, hi)
	}
	// A vector's elements are the rows where the tensor is part of one.
	if len(info.Shape) == 1 && (p.Row != nil || p.First != 0 || p.Count > 1) {
		return s.elements(w, p, &info, lo, hi)
	}
	if p.Row == nil {
		return w.Rows(p.Name, p.First+lo, p.First+hi)
	}
	at, size := p.Row, info.Type.RowBytes(info.Cols())
	data := make([]byte, 0, (hi-lo)*size)
	for r := lo; r < hi; {
		n := 1 // rows that follow each other in the checkpoint too
		for r+n < hi && at(r+n) == at(r)+n {
			n++
		}
		part, err := w.Rows(p.Name, at(r), at(r)+n)
		if err != nil {
			return nil, err
		}
		data = append(data, part...)
		r += n
	}
	return data, nil
}

// elements returns rows of a part that is a vector in the checkpoint, cut into rows.
func (s *source) elements(w stored, p *arch.Part, info *ggml.Info, lo, hi int) ([]byte, error) {
	all, err := w.Rows(p.Name, 0, 1)
	if err != nil {
		return nil, err
	}
	size, cols := info.Type.BlockBytes, s.info.Cols()
	data := make([]byte, 0, (hi-lo)*cols*size)
	for i := lo * cols; i < hi*cols; i++ {
		from := p.First + i
		if p.Row != nil {
			from = p.Row(i)
		}
		data = append(data, all[from*size:(from+1)*size]...)
	}
	return data, nil
}

// transposed returns rows of a part that the checkpoint has as columns. Each index of the dimensions before the last two
// is read once.
func (s *source) transposed(w stored, p *arch.Part, info *ggml.Info, lo, hi int) ([]byte, error) {
	size := info.Type.BlockBytes
	if info.Type.Grid != nil {
		size = 4
	}
	data := make([]byte, (hi-lo)*p.In*size)
	var matrix []byte
	which := -1
	for r := lo; r < hi; r++ {
		from := p.First + r
		if p.Row != nil {
			from = p.Row(r)
		}
		if e := from / p.Out; e != which {
			var err error
			if matrix, err = w.Rows(p.Name, e*p.In, (e+1)*p.In); err != nil {
				return nil, err
			}
			if info.Type.Grid != nil {
				matrix = decoded(info, matrix)
			}
			which = e
		}
		col := from % p.Out
		for i := range p.In {
			copy(data[((r-lo)*p.In+i)*size:][:size], matrix[(i*p.Out+col)*size:])
		}
	}
	return data, nil
}
