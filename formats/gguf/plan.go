package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
)

// Plan is where everything in a file goes. It depends on the metadata and the tensors' shapes alone.
type Plan struct {
	md        Metadata
	infos     []ggml.Info
	index     map[string]int
	header    []byte  // the directory, padded to the alignment
	offsets   []int64 // of each tensor in the file
	sizes     []int64
	size      int64
	alignment int64
}

// NewPlan lays out a file of version 3 with its tensors in the given order. It refuses what llama.cpp would not load.
func NewPlan(md Metadata, tensors []ggml.Info) (*Plan, error) {
	alignment, err := alignmentOf(md)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	p := &Plan{
		md: slices.Clone(md), infos: slices.Clone(tensors), index: make(map[string]int, len(tensors)), alignment: alignment,
		offsets: make([]int64, len(tensors)), sizes: make([]int64, len(tensors)),
	}
	end := int64(0) // of the data so far
	for i := range tensors {
		t := &tensors[i]
		size, err := checkTensor(t)
		if err != nil {
			return nil, fmt.Errorf("gguf: tensor %q: %w", t.Name, err)
		}
		if _, ok := p.index[t.Name]; ok {
			return nil, fmt.Errorf("gguf: two tensors are named %q", t.Name)
		}
		if size > math.MaxInt64/2-end {
			return nil, fmt.Errorf("gguf: tensor %q: %s: the file grows past 62 bits", t.Name, describe(t))
		}
		p.index[t.Name] = i
		p.offsets[i], p.sizes[i] = end, size
		end = alignUp(end+size, alignment)
	}
	if p.header, err = encodeHeader(md, tensors, p.offsets); err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	start := alignUp(int64(len(p.header)), alignment)
	for i := range p.offsets {
		p.offsets[i] += start
	}
	p.size = start + end
	return p, nil
}

// Size is the file's size in bytes.
func (p *Plan) Size() int64 { return p.size }

// Padded is the room that a tensor of so many bytes takes: files align their tensors.
func (p *Plan) Padded(size int64) int64 { return alignUp(size, p.alignment) }

// Tensors lists the tensors in file order.
func (p *Plan) Tensors() []ggml.Info { return p.infos }

// Offset is where tensor i's data begins, from the start of the file.
func (p *Plan) Offset(i int) int64 { return p.offsets[i] }

func checkTensor(t *ggml.Info) (size int64, err error) {
	switch {
	case t.Name == "" || len(t.Name) > maxNameBytes:
		return 0, fmt.Errorf("the name has %d bytes, 1 to %d are possible", len(t.Name), maxNameBytes)
	case t.Type == nil:
		return 0, fmt.Errorf("no type")
	case len(t.Shape) == 0 || len(t.Shape) > maxDims:
		return 0, fmt.Errorf("%d dimensions, 1 to %d are possible", len(t.Shape), maxDims)
	}
	return dataBytes(t)
}

// encodeHeader returns everything before the data, without padding. Offsets count from the start of the data.
func encodeHeader(md Metadata, tensors []ggml.Info, offsets []int64) ([]byte, error) {
	le := binary.LittleEndian
	b := append(make([]byte, 0, headerBytes), magic...)
	b = le.AppendUint32(b, lastVersion)
	b = le.AppendUint64(b, uint64(len(tensors)))
	b = le.AppendUint64(b, uint64(len(md)))
	seen := make(map[string]bool, len(md))
	for _, kv := range md {
		if kv.Key == "" || len(kv.Key) > maxKeyBytes {
			return nil, fmt.Errorf("metadata key %.80q has %d bytes, 1 to %d are possible",
				kv.Key, len(kv.Key), maxKeyBytes)
		}
		if seen[kv.Key] {
			return nil, fmt.Errorf("two metadata entries are named %q", kv.Key)
		}
		seen[kv.Key] = true
		b = appendString(b, kv.Key)
		var err error
		if b, err = appendValue(b, kv.Value); err != nil {
			return nil, fmt.Errorf("metadata %q: %w", kv.Key, err)
		}
	}
	for i := range tensors {
		t := &tensors[i]
		b = appendString(b, t.Name)
		b = le.AppendUint32(b, uint32(len(t.Shape)))
		for j := len(t.Shape) - 1; j >= 0; j-- { // the fastest dimension comes first
			b = le.AppendUint64(b, uint64(t.Shape[j]))
		}
		b = le.AppendUint32(b, t.Type.ID)
		b = le.AppendUint64(b, uint64(offsets[i]))
	}
	return b, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// appendValue stores a value's type and the value.
func appendValue(b []byte, v any) ([]byte, error) {
	le := binary.LittleEndian
	if v == nil {
		return nil, fmt.Errorf("no value")
	}
	typ := reflect.TypeOf(v)
	if typ.Kind() == reflect.Slice {
		typ = typ.Elem()
		t, ok := valueTypes[typ]
		if !ok {
			return nil, fmt.Errorf("a value of type %T cannot be stored", v)
		}
		b = le.AppendUint32(b, uint32(typeArray))
		b = le.AppendUint32(b, uint32(t))
		b = le.AppendUint64(b, uint64(reflect.ValueOf(v).Len()))
	} else {
		t, ok := valueTypes[typ]
		if !ok {
			return nil, fmt.Errorf("a value of type %T cannot be stored", v)
		}
		b = le.AppendUint32(b, uint32(t))
	}
	switch v := v.(type) {
	case string:
		return appendString(b, v), nil
	case []string:
		for _, s := range v {
			b = appendString(b, s)
		}
		return b, nil
	}
	return binary.Append(b, le, v)
}
