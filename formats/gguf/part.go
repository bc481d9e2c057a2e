package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/mmap"
)

// A model may be split into several files (llama.cpp's llama-gguf-split and convert_hf_to_gguf.py), each of which is a
// GGUF file of its own:
//
//	NAME-00001-of-00003.gguf  all metadata, and some of the tensors
//	NAME-00002-of-00003.gguf  more tensors
//	NAME-00003-of-00003.gguf
//
// The metadata of every part says which one it is: split.no, from 0, and split.count, both uint16; and split.tensors.count,
// int32, how many tensors all parts have together.
const (
	splitNoKey      = "split.no"
	splitCountKey   = "split.count"
	splitTensorsKey = "split.tensors.count"
	maxParts        = 65535 // a uint16
)

// partName is what part no, from 0, of so many is called.
func partName(stem string, no, count int) string {
	return stem + partSuffix(no, count)
}

func partSuffix(no, count int) string { return fmt.Sprintf("-%05d-of-%05d.gguf", no+1, count) }

// part is one file: a model, or a part of one.
type part struct {
	name      string
	version   int
	alignment int64
	md        Metadata
	infos     []ggml.Info // of types that need not be in ggml.Types: see decoder.tensor
	extents   []extent    // of infos
	start     int64       // where the data begins
	data      []byte      // the whole file; nil after close
	m         *mmap.Map   // nil if the file was in memory already
	split     split
}

// split is what a part says of its place. The zero value is a file that is not split.
type split struct{ no, count, tensors int }

// parsePart reads the directory of a file. Tensors are views of data; metadata is copied. Whatever the data claims, memory
// is taken only in proportion to its length.
func parsePart(name string, data []byte) (*part, error) {
	d := &decoder{name: name, data: data}
	version, tensors, entries := d.header()
	md := d.metadata(entries)
	if d.err != nil {
		return nil, d.err
	}
	alignment, err := alignmentOf(md)
	if err != nil {
		return nil, FormatError(name + ": " + err.Error())
	}
	infos, extents := d.tensors(tensors, alignment)
	start := alignUp(int64(d.off), alignment)
	d.checkExtents(start, infos, extents)
	if d.err != nil {
		return nil, d.err
	}
	p := &part{name: name, version: int(version), alignment: alignment, md: md, infos: infos, extents: extents,
		start: start, data: data}
	if p.split, err = splitOf(md); err != nil {
		return nil, FormatError(name + ": " + err.Error())
	}
	return p, nil
}

// splitOf reads the place of a part. A file with a count of 0 or 1 is not split: llama-gguf-split --merge writes 0.
func splitOf(md Metadata) (s split, err error) {
	number := func(key string, most int) int {
		v, ok := md.Get(key)
		n, isInt := integer(v)
		switch {
		case err != nil:
		case !ok:
			err = fmt.Errorf("%s is missing, but there is %s", key, splitCountKey)
		case !isInt || n < 0 || n > most:
			err = fmt.Errorf("%s is %.40q, want 0 to %d", key, fmt.Sprint(v), most)
		default:
			return n
		}
		return 0
	}
	if _, ok := md.Get(splitCountKey); !ok {
		return split{}, nil
	}
	if s.count = number(splitCountKey, maxParts); s.count <= 1 {
		return split{}, err
	}
	s.no = number(splitNoKey, s.count-1)
	s.tensors = number(splitTensorsKey, 1<<31-1)
	return s, err
}

// integer returns a metadata value of any integer type that an int can hold.
func integer(v any) (n int, ok bool) {
	switch rv := reflect.ValueOf(v); {
	case rv.CanInt():
		return int(rv.Int()), true
	case rv.CanUint():
		return int(rv.Uint()), rv.Uint() <= 1<<62
	}
	return 0, false
}

// openPart maps a file and reads its directory.
func openPart(path string) (*part, error) {
	m, err := mmap.Open(path)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	p, err := parsePart(path, m.Data)
	if err != nil {
		m.Close()
		return nil, err
	}
	p.m = m
	return p, nil
}

// openParts opens the file at path and, if it is the first part of a split one, the others.
func openParts(path string) (parts []*part, err error) {
	defer func() {
		if err != nil {
			closeParts(parts)
			parts = nil
		}
	}()
	first, err := openPart(path)
	if err != nil {
		return nil, err
	}
	parts = append(parts, first)
	s := first.split
	if s.count == 0 {
		return parts, nil
	}
	stem, ok := strings.CutSuffix(path, partSuffix(s.no, s.count))
	switch {
	case !ok && s.no > 0:
		return parts, fmt.Errorf("gguf: %s: is part %d of %d; give the first, whose name should end in %s", path, s.no+1, s.count,
			partSuffix(0, s.count))
	case s.no > 0:
		return parts, fmt.Errorf("gguf: %s: is part %d of %d; give the first, %s", path, s.no+1, s.count, partName(stem, 0, s.count))
	case !ok:
		return parts, fmt.Errorf("gguf: %s: is part 1 of %d, but its name does not end in %s: those of the other parts are not known",
			path, s.count, partSuffix(0, s.count))
	}
	if err := expectParts(stem, s.count); err != nil {
		return parts, err
	}
	for no := 1; no < s.count; no++ {
		p, err := openPart(partName(stem, no, s.count))
		if err != nil {
			return parts, err
		}
		parts = append(parts, p)
	}
	return parts, checkParts(parts)
}

// expectParts names the parts that are missing.
func expectParts(stem string, count int) error {
	const shown = 5
	var missing []string
	n := 0
	for no := 1; no < count; no++ {
		name := partName(stem, no, count)
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if n++; n <= shown {
			missing = append(missing, filepath.Base(name))
		}
	}
	if n == 0 {
		return nil
	}
	if n > shown {
		missing = append(missing, "…")
	}
	return fmt.Errorf("gguf: %s: %d of its %d parts are missing: %s", partName(stem, 0, count), n, count, strings.Join(missing, ", "))
}

// checkParts demands that the parts, the first of which is split, are one model: each in its place, with no metadata that
// contradicts the first part's, and together with as many tensors as all of them say, under names of their own.
func checkParts(parts []*part) error {
	first := parts[0]
	owner := map[string]*part{}
	tensors := 0
	for no, p := range parts {
		fail := func(format string, args ...any) error {
			return FormatError(p.name + ": " + fmt.Sprintf(format, args...))
		}
		if want := (split{no, first.split.count, first.split.tensors}); p.split != want {
			if p.split.count == 0 {
				return fail("is not a part of a model, want part %d of %d", no+1, want.count)
			}
			return fail("is part %d of %d of a model with %d tensors; want part %d of %d of one with %d, as %s says",
				p.split.no+1, p.split.count, p.split.tensors, no+1, want.count, want.tensors, filepath.Base(first.name))
		}
		for _, kv := range p.md {
			if kv.Key == splitNoKey || kv.Key == alignmentKey || no == 0 {
				continue
			}
			v, ok := first.md.Get(kv.Key)
			if !ok {
				continue // llama.cpp reads the first part's metadata alone
			}
			if !sameValue(v, kv.Value) {
				return fail("metadata %.200q contradicts that of %s: they are not parts of one model", kv.Key, filepath.Base(first.name))
			}
		}
		for i := range p.infos {
			name := p.infos[i].Name
			if o := owner[name]; o != nil {
				return fail("tensor %.200q is in %s too", name, filepath.Base(o.name))
			}
			owner[name] = p
		}
		tensors += len(p.infos)
	}
	if tensors != first.split.tensors {
		return FormatError(fmt.Sprintf("%s: the %d parts hold %d tensors, but %s is %d", first.name, len(parts), tensors,
			splitTensorsKey, first.split.tensors))
	}
	return nil
}

// sameValue compares values as they are stored: NaN is equal to itself.
func sameValue(a, b any) bool {
	x, errX := appendValue(nil, a)
	y, errY := appendValue(nil, b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// modelMetadata is the metadata of the model that parts make up: what the first says, but for what it says of itself.
func modelMetadata(parts []*part) Metadata {
	md := parts[0].md
	if parts[0].split.count == 0 {
		return md
	}
	return md.without(splitNoKey, splitCountKey, splitTensorsKey)
}

func (p *part) close() error {
	p.data = nil
	if p.m == nil {
		return nil
	}
	return p.m.Close()
}

func closeParts(parts []*part) error {
	var errs []error
	for _, p := range parts {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}
