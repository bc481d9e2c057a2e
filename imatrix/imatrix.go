// Package imatrix holds llama.cpp's importance matrices: for each linear the sums of the squares of its input's features over some
// text, by which the scales of block types are searched. Both of the forms that llama.cpp reads and writes are here: GGUF, and the
// older .dat (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp in github.com/ggml-org/llama.cpp).
package imatrix

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// Matrix is what some text has made of the linears of a model.
type Matrix struct {
	Entries  []Entry  // ascending by name
	Datasets []string // names of the text
	// Chunks is how many sequences of ChunkSize tokens there were.
	Chunks, ChunkSize int
}

// Entry is a tensor's: one matrix, or one of each expert.
type Entry struct {
	Name string // of the weight: "blk.0.attn_q.weight"
	// Sums are Σ x² of each input feature, matrices×in.
	Sums []float32
	// Counts are how many tokens each matrix has seen.
	Counts []int64
}

// In is the number of input features.
func (e *Entry) In() int { return len(e.Sums) / len(e.Counts) }

// Importance returns the mean squares of a matrix's input features. Of an expert that no token reached they are ones, as
// llama-quantize has them; of a tensor with one count for all of its experts, that of all.
func (e *Entry) Importance(expert int) []float32 {
	if len(e.Counts) == 1 {
		expert = 0
	}
	in := e.In()
	mean := make([]float32, in)
	for i, s := range e.Sums[expert*in : (expert+1)*in] {
		if mean[i] = 1; e.Counts[expert] > 0 {
			mean[i] = s / float32(e.Counts[expert])
		}
	}
	return mean
}

// Find returns the entry of a tensor, nil if there is none.
func (m *Matrix) Find(name string) *Entry {
	i, ok := slices.BinarySearchFunc(m.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return nil
	}
	return &m.Entries[i]
}

// Split returns the entry of a tensor of n matrices of in features with a count for each matrix: the older form has one for all of them.
func (e *Entry) Split(n, in int) *Entry {
	if n <= 1 || len(e.Counts) != 1 || len(e.Sums) != n*in {
		return e
	}
	return &Entry{Name: e.Name, Sums: e.Sums, Counts: slices.Repeat(e.Counts, n)}
}

// Of returns a tensor's entry, nil if there is none. It is an error if it is of another shape.
func (m *Matrix) Of(t *ggml.Info) (*Entry, error) {
	e := m.Find(t.Name)
	if e == nil {
		return nil, nil
	}
	if len(t.Shape) > 2 {
		e = e.Split(t.Shape[len(t.Shape)-3], t.Cols())
	}
	return e, e.Fits(t)
}

// Fits says what is wrong with an entry for a tensor: nil where the numbers of features and of experts agree.
func (e *Entry) Fits(t *ggml.Info) error {
	matrices := 1
	if len(t.Shape) > 2 {
		matrices = t.Shape[len(t.Shape)-3]
	}
	if e.In() != t.Cols() || len(e.Counts) != 1 && len(e.Counts) != matrices {
		return fmt.Errorf("%q has sums of %d × %d features, the tensor is %v", e.Name, len(e.Counts), e.In(), t.Shape)
	}
	return nil
}

// Read reads a file of either form.
func Read(path string) (*Matrix, error) {
	m, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("imatrix: %s: %w", path, err)
	}
	if len(m.Entries) == 0 {
		return nil, fmt.Errorf("imatrix: %s: holds no sums", path)
	}
	slices.SortFunc(m.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	for i := range m.Entries {
		if err := m.Entries[i].check(); err != nil {
			return nil, fmt.Errorf("imatrix: %s: %w", path, err)
		}
		if i > 0 && m.Entries[i].Name == m.Entries[i-1].Name {
			return nil, fmt.Errorf("imatrix: %s: %q appears twice", path, m.Entries[i].Name)
		}
	}
	return m, nil
}

func read(path string) (*Matrix, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unwrapped(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, unwrapped(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err == nil && string(magic[:]) == "GGUF" {
		return readGGUF(path)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return readLegacy(f, info.Size())
}

// unwrapped is an error of a file without its path, which is said already.
func unwrapped(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// check refuses sums that are no sums of squares, and counts that are none.
func (e *Entry) check() error {
	if len(e.Counts) == 0 || len(e.Sums) == 0 || len(e.Sums)%len(e.Counts) != 0 {
		return fmt.Errorf("%q has %d sums for %d counts", e.Name, len(e.Sums), len(e.Counts))
	}
	for i, s := range e.Sums {
		if !(s >= 0) || s-s != 0 {
			return fmt.Errorf("%q: sum %d is %v, want a sum of squares", e.Name, i, s)
		}
	}
	for i, n := range e.Counts {
		if n < 0 {
			return fmt.Errorf("%q: matrix %d has seen %d tokens", e.Name, i, n)
		}
	}
	return nil
}

// Unseen is how many of a tensor's matrices no token reached.
func (e *Entry) Unseen() int {
	n := 0
	for _, c := range e.Counts {
		if c == 0 {
			n++
		}
	}
	return n
}
