package gguf

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/sniff"
)

// decoder reads a file's directory. The first error stays; everything after it reads as zero.
type decoder struct {
	name string // of the file
	at   string // the entry or tensor being read, for messages
	data []byte // the whole file
	off  int
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = FormatError(d.name + ": " + d.at + fmt.Sprintf(format, args...))
	}
}

func (d *decoder) unsupported(format string, args ...any) {
	if d.err == nil {
		d.err = UnsupportedError(d.name + ": " + d.at + fmt.Sprintf(format, args...))
	}
}

func (d *decoder) remaining() int { return len(d.data) - d.off }

// next returns the following n bytes, or nil after an error.
func (d *decoder) next(n int, what string) []byte {
	if d.err == nil && n > d.remaining() {
		d.fail("%s: truncated at byte %d: needs %d bytes, %d remain", what, d.off, n, d.remaining())
	}
	if d.err != nil {
		return nil
	}
	b := d.data[d.off : d.off+n : d.off+n]
	d.off += n
	return b
}

func (d *decoder) uint32(what string) uint32 {
	if b := d.next(4, what); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) uint64(what string) uint64 {
	if b := d.next(8, what); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// string reads a length and as many bytes, of which there may be at most limit.
func (d *decoder) string(what string, limit uint64) string {
	start := d.off
	n := d.uint64(what)
	if d.err == nil && n > uint64(d.remaining()) {
		d.fail("%s: string of %d bytes at byte %d, but %d bytes remain", what, n, start, d.remaining())
	} else if n > limit {
		d.fail("%s: string of %d bytes, more than %d", what, n, limit)
	}
	if d.err != nil {
		return ""
	}
	return string(d.next(int(n), what))
}

// header reads the version and the counts, which are bounded by what the file can hold.
func (d *decoder) header() (version uint32, tensors, entries int) {
	if len(d.data) < len(magic) || string(d.data[:len(magic)]) != magic {
		if what := sniff.Impostor(d.data); what != "" {
			d.fail("it is %s", what)
			return
		}
		d.fail("not a GGUF file: it begins with %q", d.data[:min(len(d.data), len(magic))])
		return
	}
	d.off = len(magic)
	version = d.uint32("version")
	switch {
	case d.err != nil:
		return
	case version&0xffff == 0 && version != 0:
		d.unsupported("big-endian (version %d) is not supported", bits.ReverseBytes32(version))
	case version < oldestVersion || version > lastVersion:
		d.unsupported("version %d is not supported: versions %d and %d are", version, oldestVersion, lastVersion)
	}
	nt, ne := d.uint64("tensor count"), d.uint64("metadata count")
	if most := uint64(d.remaining() / minTensorBytes); d.err == nil && nt > most {
		d.fail("claims %d tensors; its %d bytes cannot describe more than %d", nt, len(d.data), most)
	}
	if most := uint64(d.remaining() / minEntryBytes); d.err == nil && ne > most {
		d.fail("claims %d metadata entries; its %d bytes cannot hold more than %d", ne, len(d.data), most)
	}
	return version, int(nt), int(ne)
}

// metadata reads n entries.
func (d *decoder) metadata(n int) Metadata {
	var md Metadata
	seen := make(map[string]bool)
	for i := 0; i < n && d.err == nil; i++ {
		d.at = fmt.Sprintf("metadata entry %d of %d: ", i+1, n)
		key := d.string("key", maxKeyBytes)
		if d.err == nil && key == "" {
			d.fail("it has no key")
		} else if seen[key] {
			d.fail("key %.200q appears twice", key)
		}
		seen[key] = true
		d.at = fmt.Sprintf("metadata %.200q: ", key)
		if v := d.value(); d.err == nil {
			md = append(md, KV{key, v})
		}
	}
	d.at = ""
	return md
}

func (d *decoder) value() any {
	t := valueType(d.uint32("type"))
	switch {
	case d.err != nil:
		return nil
	case t == typeArray:
		return d.array()
	case t == typeString:
		return d.string("value", math.MaxUint64)
	case goTypes[t] == nil:
		d.fail("unknown value type %d", t)
		return nil
	}
	v := reflect.New(goTypes[t])
	d.numbers(v.Interface(), t, 1)
	return v.Elem().Interface()
}

func (d *decoder) array() any {
	t := valueType(d.uint32("element type"))
	n := d.uint64("array length")
	elem := goTypes[t]
	switch {
	case d.err != nil:
		return nil
	case t == typeArray:
		d.unsupported("an array of arrays is not supported")
		return nil
	case elem == nil:
		d.fail("unknown array element type %d", t)
		return nil
	}
	size := uint64(elem.Size())
	if t == typeString {
		size = 8 // its length
	}
	if n > uint64(d.remaining())/size {
		d.fail("array of %d %ss, but %d bytes remain", n, elem, d.remaining())
		return nil
	}
	if t == typeString {
		return d.strings(int(n))
	}
	v := reflect.MakeSlice(reflect.SliceOf(elem), int(n), int(n))
	d.numbers(v.Interface(), t, int(n))
	return v.Interface()
}

// numbers reads n values of a fixed size into v, a pointer or a slice.
func (d *decoder) numbers(v any, t valueType, n int) {
	b := d.next(n*int(goTypes[t].Size()), "value")
	if d.err != nil {
		return
	}
	if t == typeBool {
		if i := slices.IndexFunc(b, func(c byte) bool { return c > 1 }); i >= 0 {
			d.fail("a boolean is %d, neither 0 nor 1", b[i])
			return
		}
	}
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		panic(err) // the size and the types are ours
	}
}

// strings reads n strings. They share one copy of their part of the file: a vocabulary has hundreds of thousands.
func (d *decoder) strings(n int) []string {
	start := d.off
	for i := range n {
		size := d.uint64("array")
		if d.err == nil && size > uint64(d.remaining()) {
			d.fail("string %d of %d has %d bytes, but %d bytes remain", i+1, n, size, d.remaining())
		}
		if d.err != nil {
			return nil
		}
		d.off += int(size)
	}
	raw := d.data[start:d.off]
	all := string(raw)
	list := make([]string, n)
	at := 0
	for i := range list {
		size := int(binary.LittleEndian.Uint64(raw[at:]))
		list[i] = all[at+8 : at+8+size]
		at += 8 + size
	}
	return list
}

// extent is where a tensor's data lies, from the start of the data.
type extent struct {
	lo, hi int64
	tensor int
}

// tensors reads n descriptions, of tensors of any type, and returns with each where its data lies, from the start of the
// data. That of a type whose blocks are not known ends where it begins: checkExtents says where really.
func (d *decoder) tensors(n int, alignment int64) ([]ggml.Info, []extent) {
	var infos []ggml.Info
	var extents []extent
	seen := make(map[string]bool)
	for i := 0; i < n && d.err == nil; i++ {
		d.at = fmt.Sprintf("tensor %d of %d: ", i+1, n)
		name := d.string("name", maxAnyNameBytes)
		if d.err == nil && name == "" {
			d.fail("it has no name")
		} else if seen[name] {
			d.fail("name %.200q appears twice", name)
		}
		seen[name] = true
		d.at = fmt.Sprintf("tensor %.200q: ", name)
		info, size := d.tensor(name)
		off := d.uint64("offset")
		switch {
		case d.err != nil:
		case off%uint64(alignment) != 0:
			d.fail("offset %d is not a multiple of the alignment %d", off, alignment)
		case off > uint64(len(d.data)) || size > int64(len(d.data))-int64(off):
			d.fail("%s needs %d bytes from offset %d, past the end of the file of %d bytes",
				describe(&info), size, off, len(d.data))
		default:
			infos = append(infos, info)
			extents = append(extents, extent{int64(off), int64(off) + size, i})
		}
	}
	d.at = ""
	return infos, extents
}

// tensor reads one description up to its type, and returns with it the size of its data.
func (d *decoder) tensor(name string) (info ggml.Info, size int64) {
	dims := d.uint32("dimension count")
	if d.err == nil && (dims == 0 || dims > maxDims) {
		d.fail("%d dimensions: 1 to %d are possible", dims, maxDims)
		return
	}
	shape := make([]int, dims)
	for i := range shape {
		n := d.uint64("dimension")
		if d.err == nil && (n == 0 || n > math.MaxInt) {
			d.fail("dimension %d is %d", i, int64(n))
		}
		shape[len(shape)-1-i] = int(n)
	}
	id := d.uint32("type")
	if d.err != nil {
		return
	}
	typ, err := ggml.ByID(id)
	if err != nil {
		typ = &ggml.Type{Format: ggml.Layout(id), ID: id}
	}
	info = ggml.Info{Name: name, Type: typ, Shape: shape}
	size, err = info.Size()
	if err != nil {
		d.fail("%v", err)
	}
	return info, size
}

// checkExtents demands that the data, which begins at byte start of the file, lies inside the file and that no two
// tensors share a byte. Where the type's blocks are not known, a tensor is taken to reach up to the next one, or to the
// end of the file.
func (d *decoder) checkExtents(start int64, infos []ggml.Info, extents []extent) {
	sorted := slices.SortedFunc(slices.Values(extents), func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.tensor, b.tensor))
	})
	last := int64(len(d.data)) - start
	for i, e := range sorted {
		t := &infos[e.tensor]
		if t.Type.BlockLen == 0 {
			e.hi = max(e.lo, last)
			if i+1 < len(sorted) {
				e.hi = sorted[i+1].lo
			}
			sorted[i], extents[e.tensor] = e, e
		}
		if e.hi > last {
			d.fail("tensor %.200q: %s ends at byte %d, past the end of the file of %d bytes",
				t.Name, describe(t), start+e.hi, len(d.data))
		}
		if i > 0 && e.lo < sorted[i-1].hi {
			d.fail("tensors %.200q and %.200q overlap: bytes %d to %d and %d to %d of the data",
				infos[sorted[i-1].tensor].Name, t.Name, sorted[i-1].lo, sorted[i-1].hi, e.lo, e.hi)
		}
	}
}
