package checkpoint

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/sniff"
	"github.com/llmq/llmq/internal/text"
)

// Files of torch.save: a zip archive of STEM/data.pkl, a pickle, and STEM/data/KEY, the storages, which are not compressed
// and so can be mapped.
const (
	torchFile  = "pytorch_model.bin"
	torchIndex = "pytorch_model.bin.index.json"
	// maxPickleBytes is far beyond the pickle of any state dict, which has some 200 bytes a tensor.
	maxPickleBytes = 64 << 20
)

// torchFiles lists the files of a torch checkpoint; ok tells whether there is one.
func torchFiles(dir string) (files []string, ok bool, err error) {
	if _, err := os.Lstat(filepath.Join(dir, torchFile)); err == nil {
		return []string{torchFile}, true, nil
	}
	b, err := text.ReadFile(filepath.Join(dir, torchIndex), maxJSONBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, fmt.Errorf("checkpoint: %w", err)
	}
	if what := sniff.Impostor(b); what != "" {
		return nil, false, formatErrorf("%s: it is %s", filepath.Join(dir, torchIndex), what)
	}
	var index struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := unmarshal(b, &index); err != nil {
		return nil, false, formatErrorf("%s: %v", torchIndex, err)
	}
	set := make(map[string]bool)
	for name, file := range index.Map {
		if !filepath.IsLocal(filepath.FromSlash(file)) {
			return nil, false, formatErrorf("%s: tensor %q: its shard %.200q is not a path inside the folder", torchIndex, name, file)
		}
		set[file] = true
	}
	if len(set) == 0 {
		return nil, false, formatErrorf("%s: its weight_map names no tensor", torchIndex)
	}
	return sortedKeys(set), true, nil
}

// openTorch maps files and lists their tensors.
func openTorch(dir string, names []string) (parts []*part, files []file, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	homes := make(map[string]string)
	for _, name := range names {
		m, err := mmap.Open(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, files, fmt.Errorf("checkpoint: %w", err)
		}
		files = append(files, m)
		list, err := torchParts(name, m)
		if err != nil {
			return nil, files, err
		}
		for _, p := range list {
			if home, ok := homes[p.name]; ok {
				return nil, files, p.errorf("it is in %s too", home)
			}
			homes[p.name] = name
		}
		parts = append(parts, list...)
	}
	return parts, files, nil
}

// torchParts lists the tensors of a file.
func torchParts(file string, m *mmap.Map) ([]*part, error) {
	if what := sniff.Impostor(m.Data); what != "" {
		return nil, formatErrorf("%s: it is %s", file, what)
	}
	if !bytes.HasPrefix(m.Data, []byte("PK\x03\x04")) {
		if bytes.HasPrefix(m.Data, []byte{0x80}) {
			return nil, unsupportedf("%s: it is in torch's format from before version 1.6; load it and save it again", file)
		}
		return nil, formatErrorf("%s: it is no zip archive, as torch.save writes: it begins with %.8q", file, m.Data[:min(8, len(m.Data))])
	}
	z, err := zip.NewReader(bytes.NewReader(m.Data), int64(len(m.Data)))
	if err != nil {
		return nil, formatErrorf("%s: %v", file, err)
	}
	entries := make(map[string]*zip.File, len(z.File))
	var pickle *zip.File
	for _, f := range z.File {
		if entries[f.Name] != nil {
			return nil, formatErrorf("%s: two entries are named %q", file, f.Name)
		}
		entries[f.Name] = f
		if path.Base(f.Name) == "data.pkl" && pickle == nil {
			pickle = f
		}
	}
	if pickle == nil {
		return nil, formatErrorf("%s: the archive has no data.pkl", file)
	}
	stem := strings.TrimSuffix(pickle.Name, "data.pkl")
	if b, err := entryText(m, entries[stem+"byteorder"], 16); err == nil && strings.TrimSpace(string(b)) == "big" {
		return nil, unsupportedf("%s: it is big-endian", file)
	}
	text, err := entryText(m, pickle, maxPickleBytes)
	if err != nil {
		return nil, formatErrorf("%s: %s: %v", file, pickle.Name, err)
	}
	v, err := unpickle(text)
	if err != nil {
		return nil, formatErrorf("%s: %s: %v", file, pickle.Name, err)
	}
	dict, err := stateDict(v)
	if err != nil {
		return nil, formatErrorf("%s: %s: %v", file, pickle.Name, err)
	}
	var parts []*part
	for i, key := range dict.keys {
		name, ok1 := key.(string)
		t, ok2 := dict.values[i].(*rebuilt)
		if !ok1 || !ok2 {
			continue // such as the number of an epoch
		}
		p := &part{name: name, file: file, m: m}
		entry := entries[stem+"data/"+t.storage.key]
		if entry == nil {
			return nil, p.errorf("the archive has no storage %.200q", t.storage.key)
		}
		data, err := view(m, entry)
		if err != nil {
			return nil, p.errorf("%s: %v", entry.Name, err)
		}
		if err := p.of(t, data); err != nil {
			return nil, p.errorf("%v", err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// stateDict finds the dict of tensors: the whole pickle, or a member of it as trainers nest it.
func stateDict(v any) (*pickleDict, error) {
	dict, ok := v.(*pickleDict)
	if !ok {
		return nil, fmt.Errorf("it holds %s, not a dict of tensors", describe(v))
	}
	holds := func(d *pickleDict) bool {
		for _, v := range d.values {
			if _, ok := v.(*rebuilt); ok {
				return true
			}
		}
		return false
	}
	if holds(dict) {
		return dict, nil
	}
	for i, key := range dict.keys {
		if d, ok := dict.values[i].(*pickleDict); ok && (key == "state_dict" || key == "model" || key == "module") && holds(d) {
			return d, nil
		}
	}
	return nil, fmt.Errorf("its dict of %d holds no tensors", len(dict.keys))
}

// view returns an entry's bytes in the map.
func view(m *mmap.Map, f *zip.File) ([]byte, error) {
	at, err := f.DataOffset()
	if err != nil {
		return nil, err
	}
	n := f.UncompressedSize64
	switch {
	case f.Method != zip.Store || n != f.CompressedSize64:
		return nil, errors.New("it is compressed; torch.save stores plainly")
	case at < 0 || at > int64(len(m.Data)) || n > uint64(int64(len(m.Data))-at):
		return nil, fmt.Errorf("its %d bytes at %d are past the end of the file, %d bytes", n, at, len(m.Data))
	}
	return m.Data[at : at+int64(n) : at+int64(n)], nil
}

// entryText returns a small entry's bytes, which may be compressed.
func entryText(m *mmap.Map, f *zip.File, limit int64) ([]byte, error) {
	if f == nil {
		return nil, fs.ErrNotExist
	}
	if b, err := view(m, f); err == nil && int64(len(b)) <= limit {
		return b, nil
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// torchTypes are the element types of torch's storages.
var torchTypes = map[global]safetensors.DType{
	"torch FloatStorage": safetensors.F32, "torch HalfStorage": safetensors.F16, "torch BFloat16Storage": safetensors.BF16,
	"torch DoubleStorage": safetensors.F64, "torch LongStorage": safetensors.I64, "torch IntStorage": safetensors.I32,
	"torch ShortStorage": safetensors.I16, "torch CharStorage": safetensors.I8, "torch ByteStorage": safetensors.U8,
	"torch BoolStorage": safetensors.Bool,
}

// of makes the part a view of a storage.
func (p *part) of(t *rebuilt, data []byte) error {
	var ok bool
	if p.dtype, ok = torchTypes[t.storage.kind]; !ok {
		return fmt.Errorf("its storage is a %s, which is not supported", describe(t.storage.kind))
	}
	size := int64(p.dtype.Bits() / 8)
	room := int64(len(data)) / size
	if t.storage.elements != room || int64(len(data))%size != 0 {
		return fmt.Errorf("its storage of %d %s has %d bytes", t.storage.elements, p.dtype, len(data))
	}
	empty := false
	for _, n := range t.shape {
		p.shape = append(p.shape, int(n))
		empty = empty || n == 0
	}
	if err := checkShape(p.shape); err != nil {
		return err
	}
	if empty {
		return nil
	}
	// The last element must lie in the storage: offset + Σ (n−1)·stride.
	last, dense := uint64(t.offset), uint64(1)
	contiguous := true
	if t.offset < 0 {
		return fmt.Errorf("its offset is %d", t.offset)
	}
	for d := len(t.shape) - 1; d >= 0; d-- {
		n, stride := uint64(t.shape[d]), uint64(t.stride[d])
		if t.stride[d] < 0 {
			return fmt.Errorf("its strides are %d", t.stride)
		}
		hi, step := bits.Mul64(n-1, stride)
		if last += step; hi != 0 || last < step || last >= uint64(room) {
			return fmt.Errorf("offset %d, shape %d, strides %d: past the end of its storage of %d", t.offset, t.shape, t.stride, room)
		}
		contiguous = contiguous && (n == 1 || stride == dense)
		dense *= n
	}
	if last >= uint64(room) { // a scalar
		return fmt.Errorf("offset %d is past the end of its storage of %d", t.offset, room)
	}
	data = data[t.offset*size:]
	if contiguous {
		p.data = data[:int64(dense)*size]
		return nil
	}
	// A view may show an element many times: bound what its rows decode to by the file, but for a few.
	p.data = data
	for _, s := range t.stride {
		p.strides = append(p.strides, int(s))
	}
	if dense > uint64(room) {
		return fmt.Errorf("shape %d, strides %d: it shows the %d elements of its storage more than once", t.shape, t.stride, room)
	}
	return nil
}
