package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// Plan is where everything in a file, or in the parts of a split one, goes. It depends on the metadata and the tensors'
// shapes alone.
type Plan struct {
	md        Metadata // of the first part
	infos     []ggml.Info
	index     map[string]int
	parts     []planned
	slots     []slot // of each tensor
	size      int64  // of all parts
	alignment int64
}

// planned is one file of a plan.
type planned struct {
	header []byte // the directory, without padding
	size   int64
}

// slot is where a tensor goes: a part, the offset in its file, and the size.
type slot struct {
	part         int
	offset, size int64
}

// NewPlan lays out a file of version 3 with its tensors in the given order. It refuses what llama.cpp would not load. The
// model is split where it is larger than partBytes; 0 does not split. A part is full,
// as llama-gguf-split has it, when the next tensor would make the data with its padding larger; a tensor that is larger by
// itself gets a part of its own. Neither the directory of a part counts, nor the metadata, which the first part holds.
func NewPlan(md Metadata, tensors []ggml.Info, partBytes int64) (*Plan, error) {
	alignment, err := alignmentOf(md)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	p := &Plan{
		infos: slices.Clone(tensors), index: make(map[string]int, len(tensors)), slots: make([]slot, len(tensors)),
		alignment: alignment,
	}
	ends := []int64{0} // of each part's data so far
	var total int64
	for i := range tensors {
		t := &tensors[i]
		size, err := checkTensor(t)
		if err != nil {
			return nil, fmt.Errorf("gguf: tensor %q: %w", t.Name, err)
		}
		if _, ok := p.index[t.Name]; ok {
			return nil, fmt.Errorf("gguf: two tensors are named %q", t.Name)
		}
		if size > math.MaxInt64/2-total {
			return nil, fmt.Errorf("gguf: tensor %q: %s: the file grows past 62 bits", t.Name, describe(t))
		}
		end := ends[len(ends)-1]
		if partBytes > 0 && end > 0 && alignUp(end+size, alignment) > partBytes {
			end, ends = 0, append(ends, 0)
		}
		p.index[t.Name] = i
		p.slots[i] = slot{len(ends) - 1, end, size}
		ends[len(ends)-1] = alignUp(end+size, alignment)
		total += ends[len(ends)-1] - end
	}
	if len(ends) > maxParts {
		return nil, fmt.Errorf("gguf: parts of %d bytes are %d parts, %d are possible", partBytes, len(ends), maxParts)
	}
	lo := 0
	for no, end := range ends {
		hi := lo
		for hi < len(tensors) && p.slots[hi].part == no {
			hi++
		}
		own := partMetadata(md, no, len(ends), len(tensors))
		header, err := encodeHeader(own, tensors[lo:hi], p.slots[lo:hi])
		if err != nil {
			return nil, fmt.Errorf("gguf: %w", err)
		}
		if no == 0 {
			p.md = own
		}
		start := alignUp(int64(len(header)), alignment)
		for i := lo; i < hi; i++ {
			p.slots[i].offset += start
		}
		p.parts = append(p.parts, planned{header, start + end})
		p.size += start + end
		lo = hi
	}
	return p, nil
}

// partDirectoryBytes is what partMetadata takes in a part after the first, and the header, at most: 139 bytes.
const partDirectoryBytes = headerBytes + 4*(8+4) + len(splitNoKey) + 2 + len(splitCountKey) + 2 + len(splitTensorsKey) + 4 +
	len(alignmentKey) + 4

// partMetadata is the metadata of part no of so many: all of it in the first, and its place in every one, in the order in
// which llama-gguf-split writes it.
func partMetadata(md Metadata, no, count, tensors int) Metadata {
	if count == 1 {
		return slices.Clone(md)
	}
	var own Metadata
	if no == 0 {
		own = md.without(splitNoKey, splitCountKey, splitTensorsKey)
	} else if a, ok := md.Get(alignmentKey); ok {
		own = Metadata{{alignmentKey, a}}
	}
	return append(own, KV{splitNoKey, uint16(no)}, KV{splitTensorsKey, int32(tensors)}, KV{splitCountKey, uint16(count)})
}

// Size is the size in bytes of all files.
func (p *Plan) Size() int64 { return p.size }

// Parts are the sizes in bytes of the files: one, but for a split model.
func (p *Plan) Parts() []int64 {
	sizes := make([]int64, len(p.parts))
	for i := range p.parts {
		sizes[i] = p.parts[i].size
	}
	return sizes
}

// Paths are the names of the files where path is that of the model: NAME-00001-of-00003.gguf and so on instead of
// NAME.gguf if it is split.
func (p *Plan) Paths(path string) []string {
	if len(p.parts) == 1 {
		return []string{path}
	}
	stem := strings.TrimSuffix(path, ".gguf")
	names := make([]string, len(p.parts))
	for no := range names {
		names[no] = partName(stem, no, len(names))
	}
	return names
}

// Padded is the room that a tensor of so many bytes takes: files align their tensors.
func (p *Plan) Padded(size int64) int64 { return alignUp(size, p.alignment) }

// PartOverhead is more than what one part more adds to the size: a directory, and padding.
func (p *Plan) PartOverhead() int64 {
	return alignUp(int64(partDirectoryBytes), p.alignment) + p.alignment
}

// Tensors lists the tensors in file order.
func (p *Plan) Tensors() []ggml.Info { return p.infos }

// Offset is where tensor i's data begins, from the start of its file.
func (p *Plan) Offset(i int) int64 { return p.slots[i].offset }

func checkTensor(t *ggml.Info) (size int64, err error) {
	switch {
	case t.Name == "" || len(t.Name) > maxNameBytes:
		return 0, fmt.Errorf("the name has %d bytes, 1 to %d are possible", len(t.Name), maxNameBytes)
	case t.Type == nil:
		return 0, fmt.Errorf("no type")
	case len(t.Shape) == 0 || len(t.Shape) > maxDims:
		return 0, fmt.Errorf("%d dimensions, 1 to %d are possible", len(t.Shape), maxDims)
	}
	return t.Size()
}

// encodeHeader returns everything before the data, without padding. Offsets count from the start of the data.
func encodeHeader(md Metadata, tensors []ggml.Info, slots []slot) ([]byte, error) {
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
		b = le.AppendUint64(b, uint64(slots[i].offset))
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
