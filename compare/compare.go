// Package compare says what differs between two models: their metadata, the types and shapes of their tensors, and by how much
// their weights.
package compare

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
)

// Source is a model with its metadata: a GGUF file, or a checkpoint folder as GGUF has it.
type Source interface {
	model.Source
	Metadata() gguf.Metadata
}

// Difference is what differs between models a and b. The JSON names are part of the command line's interface.
type Difference struct {
	Metadata []Key    `json:"metadata"` // that differ, in a's order, then those of b alone
	Tensors  []Tensor `json:"tensors"`  // that differ, likewise
	// Same is how many tensors have the same type, shape and bytes in both.
	Same int `json:"same_tensors"`
	// RelativeError is ‖A−B‖²/‖A‖² over the tensors of the same shape; nil where there is none, or a's are all 0.
	RelativeError *float64 `json:"relative_error"`
}

// None says that the models are the same.
func (d *Difference) None() bool { return len(d.Metadata) == 0 && len(d.Tensors) == 0 }

// Key is a metadata key, nil on the side that does not have it.
type Key struct {
	Key  string `json:"key"`
	A, B any    `json:"-"`
	// At is the first element that differs, of arrays of the same kind; −1 of other values.
	At int `json:"at"`
}

// Tensor is a tensor, nil on the side that does not have it.
type Tensor struct {
	Name string     `json:"name"`
	A    *ggml.Info `json:"-"`
	B    *ggml.Info `json:"-"`
	// RelativeError is ‖A−B‖²/‖A‖², and AbsMax the largest |a−b|; nil where the shapes differ, or a's weights are all 0.
	RelativeError *float64 `json:"relative_error"`
	AbsMax        float64  `json:"abs_max"`
	// NotFinite is how many weights differ that are infinite or no number in one of the models: they are in no sum.
	NotFinite int64 `json:"not_finite"`
}

// Progress is told how far a comparison is.
type Progress interface {
	Stage(name string, total int64) // total is in weights
	Item(name string)
	Add(n int64)
	Done()
}

// Models compares two models. Tensors are read in pieces, so that memory does not grow with them.
func Models(ctx context.Context, a, b Source, progress Progress) (*Difference, error) {
	defer progress.Done()
	d := &Difference{Metadata: keys(a.Metadata(), b.Metadata()), Tensors: []Tensor{}}
	inB := map[string]*ggml.Info{}
	list := b.Tensors()
	for i := range list {
		inB[list[i].Name] = &list[i]
	}
	var weights int64
	for _, t := range a.Tensors() {
		if o := inB[t.Name]; o != nil && slices.Equal(o.Shape, t.Shape) {
			weights += int64(t.Elements())
		}
	}
	progress.Stage("compare", weights)
	var all sums
	item := ""
	inA := map[string]bool{}
	for _, t := range a.Tensors() {
		inA[t.Name] = true
		o := inB[t.Name]
		if o == nil {
			d.Tensors = append(d.Tensors, Tensor{Name: t.Name, A: &t})
			continue
		}
		if !slices.Equal(o.Shape, t.Shape) {
			d.Tensors = append(d.Tensors, Tensor{Name: t.Name, A: &t, B: o})
			continue
		}
		if name := ggml.ItemName(t.Name); name != item {
			item = name
			progress.Item(item)
		}
		s, err := tensors(ctx, a, b, &t, o)
		if err != nil {
			return nil, err
		}
		progress.Add(int64(t.Elements()))
		all.add(&s)
		if s.same && t.Type == o.Type {
			d.Same++
			continue
		}
		d.Tensors = append(d.Tensors, Tensor{t.Name, &t, o, s.relative(), s.most, s.infinite})
	}
	for i := range list {
		if !inA[list[i].Name] {
			d.Tensors = append(d.Tensors, Tensor{Name: list[i].Name, B: &list[i]})
		}
	}
	d.RelativeError = all.relative()
	return d, nil
}

// keys lists the metadata that differ.
func keys(a, b gguf.Metadata) []Key {
	list := []Key{}
	for _, kv := range a {
		v, ok := b.Get(kv.Key)
		if !ok {
			list = append(list, Key{kv.Key, kv.Value, nil, -1})
		} else if !reflect.DeepEqual(kv.Value, v) {
			list = append(list, Key{kv.Key, kv.Value, v, firstDifference(kv.Value, v)})
		}
	}
	for _, kv := range b {
		if _, ok := a.Get(kv.Key); !ok {
			list = append(list, Key{kv.Key, nil, kv.Value, -1})
		}
	}
	return list
}

// firstDifference is the first element in which arrays of one kind differ; −1: they are none.
func firstDifference(a, b any) int {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	if x.Type() != y.Type() || x.Kind() != reflect.Slice {
		return -1
	}
	for i := range min(x.Len(), y.Len()) {
		if !reflect.DeepEqual(x.Index(i).Interface(), y.Index(i).Interface()) {
			return i
		}
	}
	return min(x.Len(), y.Len())
}

// sums are over weights a and b.
type sums struct {
	num, den float64 // Σ(a−b)², Σa²
	most     float64 // the largest |a−b|
	infinite int64   // weights that differ, one of them not finite
	same     bool    // the same bytes
}

func (s *sums) add(o *sums) {
	s.num += o.num
	s.den += o.den
	s.most = max(s.most, o.most)
	s.infinite += o.infinite
}

func (s *sums) relative() *float64 {
	if s.den == 0 {
		return nil
	}
	r := s.num / s.den
	return &r
}

// pieceWeights is how many weights are compared at a time.
const pieceWeights = 1 << 22

// tensors compares two tensors of one shape.
func tensors(ctx context.Context, a, b Source, ta, tb *ggml.Info) (sums, error) {
	total := sums{same: true}
	if ta.Elements() == 0 {
		return total, nil
	}
	cols := ta.Cols()
	step := max(1, pieceWeights/cols)
	for lo := 0; lo < ta.Rows(); lo += step {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		hi := min(lo+step, ta.Rows())
		pa, err := piece(a, ta, lo, hi)
		if err != nil {
			return total, err
		}
		pb, err := piece(b, tb, lo, hi)
		if err != nil {
			return total, err
		}
		rows := make([]sums, hi-lo)
		var mu sync.Mutex
		kernels.Parallel(hi-lo, max(1, (1<<15)/cols), func(from, to int) {
			x, y := make([]float32, cols), make([]float32, cols)
			same := true
			for r := from; r < to; r++ {
				da, db := pa.row(r), pb.row(r)
				same = same && string(da) == string(db)
				ta.Type.Decode(x, da)
				tb.Type.Decode(y, db)
				rows[r].of(x, y)
			}
			mu.Lock()
			total.same = total.same && same
			mu.Unlock()
		})
		for i := range rows {
			total.add(&rows[i])
		}
		pa.release()
		pb.release()
	}
	return total, nil
}

// of sums over a row.
func (s *sums) of(a, b []float32) {
	for i, x := range a {
		d := float64(x) - float64(b[i])
		if d-d != 0 || x-x != 0 {
			if math.Float32bits(x) != math.Float32bits(b[i]) {
				s.infinite++
			}
			continue
		}
		s.num += d * d
		s.den += float64(x) * float64(x)
		s.most = max(s.most, max(d, -d))
	}
}

// rows is some rows of a tensor.
type rows struct {
	data    []byte
	bytes   int // of a row
	release func()
}

func (r *rows) row(i int) []byte { return r.data[i*r.bytes : (i+1)*r.bytes] }

// piece fetches rows [lo,hi) of a tensor.
func piece(src Source, t *ggml.Info, lo, hi int) (*rows, error) {
	r := &rows{bytes: t.Type.RowBytes(t.Cols())}
	if s, ok := src.(model.RowSource); ok && len(t.Shape) > 1 {
		in, err := s.Rows(t.Name, lo, hi)
		if err != nil {
			return nil, err
		}
		r.data, r.release = in.Data, func() { src.Release(in) }
	} else {
		in, err := src.Tensor(t.Name)
		if err != nil {
			return nil, err
		}
		r.data = in.Data[min(lo*r.bytes, len(in.Data)):]
		r.release = func() {
			if hi == t.Rows() {
				src.Release(in)
			}
		}
	}
	if len(r.data) < (hi-lo)*r.bytes {
		return nil, fmt.Errorf("%s: tensor %q: rows %d to %d need %d bytes, there are %d", src.Name(), t.Name, lo, hi, (hi-lo)*r.bytes, len(r.data))
	}
	return r, nil
}
