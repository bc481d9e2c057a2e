package imatrix

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// Keys and names of the GGUF form: NAME.in_sum2 holds matrices×in sums, NAME.counts matrices×1 counts, both F32.
const (
	keyType      = "general.type"
	keyDatasets  = "imatrix.datasets"
	keyChunks    = "imatrix.chunk_count"
	keyChunkSize = "imatrix.chunk_size"
	sumsSuffix   = ".in_sum2"
	countsSuffix = ".counts"
)

func readGGUF(path string) (*Matrix, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if v, ok := f.Meta(keyType); ok && v != "imatrix" {
		return nil, fmt.Errorf("%s is %v, want imatrix: this GGUF is a model", keyType, v)
	}
	m := &Matrix{}
	if v, ok := f.Meta(keyDatasets); ok {
		if m.Datasets, ok = v.([]string); !ok {
			return nil, fmt.Errorf("%s is %T, want strings", keyDatasets, v)
		}
	}
	for key, to := range map[string]*int{keyChunks: &m.Chunks, keyChunkSize: &m.ChunkSize} {
		if v, ok := f.Meta(key); ok {
			n, ok := v.(uint32)
			if !ok || n > math.MaxInt32 {
				return nil, fmt.Errorf("%s is %v, want a number", key, v)
			}
			*to = int(n)
		}
	}
	counts := 0
	for _, t := range f.Tensors() {
		name, ok := strings.CutSuffix(t.Name, sumsSuffix)
		if !ok {
			if strings.HasSuffix(t.Name, countsSuffix) {
				counts++
				continue
			}
			return nil, fmt.Errorf("tensor %q is none of an importance matrix", t.Name)
		}
		e := Entry{Name: name}
		if e.Sums, err = values(f, t.Name); err != nil {
			return nil, err
		}
		list, err := values(f, name+countsSuffix)
		if err != nil {
			return nil, err
		}
		for i, v := range list {
			if !(v >= 0 && v <= 1<<62) {
				return nil, fmt.Errorf("tensor %q: count %d is %v", name+countsSuffix, i, v)
			}
			e.Counts = append(e.Counts, int64(math.Round(float64(v))))
		}
		m.Entries = append(m.Entries, e)
	}
	if counts != len(m.Entries) {
		return nil, fmt.Errorf("there are %d tensors of sums and %d of counts", len(m.Entries), counts)
	}
	return m, nil
}

// values returns the values of an F32 tensor.
func values(f *gguf.File, name string) ([]float32, error) {
	t, err := f.Tensor(name)
	if err != nil {
		return nil, err
	}
	if t.Type != ggml.F32 {
		return nil, fmt.Errorf("tensor %q is %s, want F32", name, t.Type.Name)
	}
	v := make([]float32, len(t.Data)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
	}
	return v, nil
}

// WriteGGUF writes the matrix as GGUF.
func (m *Matrix) WriteGGUF(path string, overwrite bool) error {
	md := gguf.Metadata{{Key: keyType, Value: "imatrix"}, {Key: keyDatasets, Value: append([]string{}, m.Datasets...)},
		{Key: keyChunks, Value: uint32(m.Chunks)}, {Key: keyChunkSize, Value: uint32(m.ChunkSize)}}
	var infos []ggml.Info
	for i := range m.Entries {
		e := &m.Entries[i]
		infos = append(infos, ggml.Info{Name: e.Name + sumsSuffix, Type: ggml.F32, Shape: []int{len(e.Counts), e.In()}},
			ggml.Info{Name: e.Name + countsSuffix, Type: ggml.F32, Shape: []int{len(e.Counts), 1}})
	}
	w, err := gguf.Create(path, md, infos, gguf.Options{Overwrite: overwrite})
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Close
	for i := range m.Entries {
		e := &m.Entries[i]
		counts := make([]float32, len(e.Counts))
		for j, n := range e.Counts {
			counts[j] = float32(n)
		}
		for suffix, v := range map[string][]float32{sumsSuffix: e.Sums, countsSuffix: counts} {
			data := make([]byte, 4*len(v))
			for j, x := range v {
				binary.LittleEndian.PutUint32(data[4*j:], math.Float32bits(x))
			}
			if err := w.WriteTensor(e.Name+suffix, data); err != nil {
				return err
			}
		}
	}
	return w.Close()
}
