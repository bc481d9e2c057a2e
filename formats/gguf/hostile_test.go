package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
)

// raw builds files byte by byte, so that they can be wrong.
type raw []byte

func (b raw) u32(v uint32) raw { return binary.LittleEndian.AppendUint32(b, v) }
func (b raw) u64(v uint64) raw { return binary.LittleEndian.AppendUint64(b, v) }
func (b raw) str(s string) raw { return append(b.u64(uint64(len(s))), s...) }
func (b raw) zeros(n int) raw  { return append(b, make([]byte, n)...) }

// head is everything before the first entry.
func head(tensors, entries uint64) raw { return raw("GGUF").u32(3).u64(tensors).u64(entries) }

// entry is a file whose only entry has the given type, and a value that begins with the given bytes.
func entry(t valueType, value raw) raw { return append(head(0, 1).str("key").u32(uint32(t)), value...) }

// array is an entry that is an array.
func array(t valueType, n uint64, elements raw) raw {
	return entry(typeArray, append(raw{}.u32(uint32(t)).u64(n), elements...))
}

// aligned is a file with an alignment of any type.
func aligned(t valueType, value raw) raw {
	return append(head(0, 1).str("general.alignment").u32(uint32(t)), value...)
}

// tensor describes one; dims are in the file's order.
func (b raw) tensor(name string, id uint32, off uint64, dims ...uint64) raw {
	b = b.str(name).u32(uint32(len(dims)))
	for _, n := range dims {
		b = b.u64(n)
	}
	return b.u32(id).u64(off)
}

// data pads the directory to 32 bytes and adds n bytes of data.
func (b raw) data(n int) raw { return b.zeros((32 - len(b)%32) % 32).zeros(n) }

// splitHead is a part without tensors.
func splitHead(no, count uint16, tensors uint32) raw {
	le := binary.LittleEndian
	b := le.AppendUint16(head(0, 3).str("split.no").u32(uint32(typeUint16)), no)
	b = le.AppendUint16(raw(b).str("split.count").u32(uint32(typeUint16)), count)
	return raw(b).str("split.tensors.count").u32(uint32(typeInt32)).u32(tensors)
}

var hostile = []struct {
	name        string
	file        raw
	want        string
	unsupported bool
}{
	{name: "empty", want: `not a GGUF file: it begins with ""`},
	{name: "other magic", file: raw("PK\x03\x04").zeros(20), want: `not a GGUF file: it begins with "PK\x03\x04"`},
	{name: "magic only", file: raw("GGUF"), want: "version: truncated at byte 4: needs 4 bytes, 0 remain"},
	{name: "version 0", file: raw("GGUF").u32(0).zeros(16), want: "version 0 is not supported", unsupported: true},
	{name: "version 1", file: raw("GGUF").u32(1).zeros(16),
		want: "version 1 is not supported: versions 2 and 3 are", unsupported: true},
	{name: "version 4", file: raw("GGUF").u32(4).zeros(16), want: "version 4 is not supported", unsupported: true},
	{name: "big-endian", file: raw("GGUF\x00\x00\x00\x03").zeros(16),
		want: "big-endian (version 3) is not supported", unsupported: true},
	{name: "tensor count", file: head(1<<60, 0),
		want: "claims 1152921504606846976 tensors; its 24 bytes cannot describe more than 0"},
	{name: "tensor count of all ones", file: head(math.MaxUint64, 0).zeros(330),
		want: "claims 18446744073709551615 tensors; its 354 bytes cannot describe more than 10"},
	{name: "entry count", file: head(0, 1<<40).zeros(28),
		want: "claims 1099511627776 metadata entries; its 52 bytes cannot hold more than 2"},
	{name: "valid, with bytes to spare", file: append(entry(typeUint64, raw{}.u64(1)), 1, 2, 3), want: ""},

	{name: "key length", file: head(0, 1).u64(1 << 62).zeros(10),
		want: "metadata entry 1 of 1: key: string of 4611686018427387904 bytes at byte 24, but 10 bytes remain"},
	{name: "key over the limit", file: head(0, 1).str(strings.Repeat("k", 65536)).zeros(16),
		want: "key: string of 65536 bytes, more than 65535"},
	{name: "no key", file: head(0, 1).str("").u32(0).zeros(10), want: "metadata entry 1 of 1: it has no key"},
	{name: "key twice", file: head(0, 2).str("a").u32(0).zeros(1).str("a").u32(0).zeros(1),
		want: `metadata entry 2 of 2: key "a" appears twice`},
	{name: "string length", file: entry(typeString, raw{}.u64(math.MaxUint64)),
		want: `metadata "key": value: string of 18446744073709551615 bytes at byte 39, but 0 bytes remain`},
	{name: "value type", file: entry(13, raw{}.zeros(8)), want: `metadata "key": unknown value type 13`},
	{name: "boolean", file: entry(typeBool, raw{2}), want: `metadata "key": a boolean is 2, neither 0 nor 1`},
	{name: "short value", file: entry(typeUint64, raw{1, 2, 3}),
		want: `metadata "key": value: truncated at byte 39: needs 8 bytes, 3 remain`},
	{name: "array length", file: array(typeUint32, 1<<62, raw{}.zeros(100)),
		want: `metadata "key": array of 4611686018427387904 uint32s, but 100 bytes remain`},
	{name: "array length that wraps", file: array(typeUint64, 1<<61, nil),
		want: "array of 2305843009213693952 uint64s, but 0 bytes remain"},
	{name: "array one too long", file: array(typeUint16, 6, raw{}.zeros(11)),
		want: "array of 6 uint16s, but 11 bytes remain"},
	{name: "array of strings", file: array(typeString, 13, raw{}.zeros(103)),
		want: "array of 13 strings, but 103 bytes remain"},
	{name: "array string length", file: array(typeString, 2, raw{}.str("x").u64(1<<63)),
		want: "string 2 of 2 has 9223372036854775808 bytes, but 0 bytes remain"},
	{name: "array element type", file: array(99, 0, nil), want: `metadata "key": unknown array element type 99`},
	{name: "array of booleans", file: array(typeBool, 2, raw{1, 255}), want: "a boolean is 255"},
	{name: "nested array", file: array(typeArray, 1, raw{}.u32(4).u64(0)),
		want: `metadata "key": an array of arrays is not supported`, unsupported: true},

	{name: "alignment 0", file: aligned(typeUint32, raw{}.u32(0)), want: "general.alignment is 0, not a power of two"},
	{name: "alignment 24", file: aligned(typeUint32, raw{}.u32(24)),
		want: "general.alignment is 24, not a power of two"},
	{name: "alignment of another type", file: aligned(typeUint64, raw{}.u64(32)),
		want: "general.alignment is of type uint64, not uint32"},

	{name: "tensor without name", file: head(1, 0).tensor("", 0, 0, 1).data(4), want: "tensor 1 of 1: it has no name"},
	{name: "tensor name", file: head(1, 0).tensor(strings.Repeat("n", 64), 0, 0, 1).data(4),
		want: "the name has 64 bytes, more than 63", unsupported: true},
	{name: "tensor name over any limit", file: head(1, 0).tensor(strings.Repeat("n", 65536), 0, 0, 1).data(4),
		want: "tensor 1 of 1: name: string of 65536 bytes, more than 65535"},
	{name: "tensor twice", file: head(2, 0).tensor("x", 0, 0, 1).tensor("x", 0, 32, 1).data(64),
		want: `tensor 2 of 2: name "x" appears twice`},
	{name: "no dimensions", file: head(1, 0).tensor("x", 0, 0).data(99),
		want: `tensor "x": 0 dimensions: 1 to 4 are possible`},
	{name: "5 dimensions", file: head(1, 0).tensor("x", 0, 0, 1, 1, 1, 1, 1).data(4),
		want: `tensor "x": 5 dimensions: 1 to 4 are possible`},
	{name: "4 billion dimensions", file: head(1, 0).str("x").u32(math.MaxUint32).zeros(99),
		want: `tensor "x": 4294967295 dimensions`},
	{name: "zero dimension", file: head(1, 0).tensor("x", 0, 0, 4, 0).data(4), want: `tensor "x": dimension 1 is 0`},
	{name: "negative dimension", file: head(1, 0).tensor("x", 0, 0, math.MaxUint64).data(4),
		want: `tensor "x": dimension 0 is -1`},
	{name: "elements that wrap", file: head(1, 0).tensor("x", 0, 0, 1<<32, 1<<32).data(4),
		want: `tensor "x": F32 [4294967296 4294967296]: more elements than fit 63 bits`},
	{name: "bytes that wrap", file: head(1, 0).tensor("x", 0, 0, 1<<62).data(4),
		want: `tensor "x": F32 [4611686018427387904]: more elements than fit 63 bits`},
	{name: "elements of blocks that wrap", file: head(1, 0).tensor("x", 12, 0, 1<<56, 1<<8).data(4),
		want: `tensor "x": Q4_K [256 72057594037927936]: more elements than fit 63 bits`},
	{name: "partial block", file: head(1, 0).tensor("x", 8, 0, 33, 2).data(99),
		want: `tensor "x": Q8_0 [2 33]: rows of 33 are not whole blocks of 32`},
	{name: "unsupported type", file: head(1, 0).tensor("x", 15, 0, 256).data(292),
		want: `tensor "x": type Q8_K (15) is not supported`, unsupported: true},
	{name: "unknown type", file: head(1, 0).tensor("x", 1000, 0, 256).data(99),
		want: `tensor "x": unknown type 1000`, unsupported: true},
	{name: "unaligned", file: head(1, 0).tensor("x", 0, 4, 1).data(36),
		want: `tensor "x": offset 4 is not a multiple of the alignment 32`},
	{name: "past the end", file: head(1, 0).tensor("x", 0, 0, 3, 3).data(35),
		want: `tensor "x": F32 [3 3] ends at byte 132, past the end of the file of 131 bytes`},
	{name: "far past the end", file: head(1, 0).tensor("x", 0, 1<<63, 1).data(4),
		want: `tensor "x": F32 [1] needs 4 bytes from offset 9223372036854775808, past the end of the file of 68 bytes`},
	{name: "larger than the file", file: head(1, 0).tensor("x", 0, 0, 1<<40).data(4),
		want: `tensor "x": F32 [1099511627776] needs 4398046511104 bytes from offset 0`},
	{name: "overlap", file: head(2, 0).tensor("b", 0, 32, 9).tensor("a", 0, 0, 9).data(99),
		want: `tensors "a" and "b" overlap: bytes 0 to 36 and 32 to 68 of the data`},
	{name: "same place", file: head(2, 0).tensor("a", 0, 0, 9).tensor("b", 0, 0, 1).data(99),
		want: `overlap: bytes 0 to 36 and 0 to 4`},
	{name: "unknown type at the end of the file", file: head(1, 0).tensor("x", 137, 0, 256).data(0),
		want: `tensor "x": unknown type 137`, unsupported: true},
	{name: "unknown type past the end", file: head(1, 0).tensor("x", 137, 64, 256).data(32),
		want: `tensor "x": type 137 [256] ends at byte 128, past the end of the file of 96 bytes`},
	{name: "unknown type in another's place", file: head(2, 0).tensor("a", 0, 0, 9).tensor("b", 137, 32, 9).data(99),
		want: `overlap: bytes 0 to 36 and 32 to 99`},
	{name: "unknown type with elements that wrap", file: head(1, 0).tensor("x", 137, 0, 1<<32, 1<<32).data(4),
		want: `tensor "x": type 137 [4294967296 4294967296]: more elements than fit 63 bits`},

	{name: "a part", file: splitHead(0, 3, 9), want: "is part 1 of 3", unsupported: true},
	{name: "part of none", file: splitHead(0, 0, 9)},
	{name: "part of one", file: splitHead(0, 1, 9)},
	{name: "part beyond the last", file: splitHead(3, 3, 9), want: `split.no is "3", want 0 to 2`},
	{name: "part whose count is a string", file: head(0, 1).str("split.count").u32(uint32(typeString)).str("3"),
		want: `split.count is "3", want 0 to 65535`},
	{name: "part whose count is negative", file: head(0, 1).str("split.count").u32(uint32(typeInt32)).u32(math.MaxUint32),
		want: `split.count is "-1", want 0 to 65535`},
	{name: "part whose count is huge", file: head(0, 1).str("split.count").u32(uint32(typeUint64)).u64(math.MaxUint64),
		want: `split.count is "18446744073709551615", want 0 to 65535`},
	{name: "part that does not say which", file: append(head(0, 1).str("split.count").u32(uint32(typeUint8)), 3),
		want: "split.no is missing, but there is split.count"},

	{name: "more tensors than there are", file: head(2, 0).tensor("x", 0, 0, 1).data(64),
		want: `tensor 2 of 2: it has no name`},
}

// allocated is what f allocates in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestHostile(t *testing.T) {
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			var f *File
			var err error
			n := allocated(func() { f, err = Parse("x.gguf", test.file) })
			if limit := uint64(64<<10 + 4*len(test.file)); n > limit {
				t.Errorf("allocated %d bytes for a file of %d", n, len(test.file))
			}
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			checkError(t, err, test.unsupported)
			if f != nil || err == nil || !strings.HasPrefix(err.Error(), "gguf: x.gguf: ") ||
				!strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func checkError(t *testing.T, err error, unsupported bool) {
	t.Helper()
	var fe FormatError
	var ue UnsupportedError
	if errors.As(err, &ue) != unsupported || errors.As(err, &fe) == unsupported {
		t.Errorf("%v is a %T", err, err)
	}
}

// small is a file with entries and tensors of several kinds, and the size up to its last tensor's end.
func small(t testing.TB) (file []byte, used int) {
	p, err := NewPlan(Metadata{
		{"general.architecture", "llama"}, {"ratio", float32(0.5)}, {"yes", true}, {"tokens", []string{"a", "", "bc"}},
		{"scores", []float32{1, 2}}, {"flags", []bool{true}}, {"general.alignment", uint32(16)},
	}, []ggml.Info{
		{Name: "a", Type: ggml.Q8_0, Shape: []int{2, 32}},
		{Name: "b", Type: ggml.F32, Shape: []int{1, 1, 1, 3}},
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	file = append(bytes.Clone(p.parts[0].header), make([]byte, p.Size()-int64(len(p.parts[0].header)))...)
	return file, int(p.slots[1].offset + p.slots[1].size)
}

func TestTruncated(t *testing.T) {
	file, used := small(t)
	if len(file) <= used {
		t.Fatalf("no padding after %d bytes: the test needs some", used)
	}
	for n := range len(file) + 1 {
		f, err := Parse("x.gguf", file[:n:n])
		if n >= used {
			if err != nil || len(f.Tensors()) != 2 {
				t.Errorf("%d of %d bytes: %v", n, len(file), err)
			}
			continue
		}
		checkError(t, err, false)
	}
}

// TestEveryByte changes each byte of the directory: nothing may panic, or take memory that the file does not justify.
func TestEveryByte(t *testing.T) {
	file, used := small(t)
	for i := range used {
		old := file[i]
		for _, b := range []byte{0, 1, old - 1, old + 1, old ^ 0x80, 0x7f, 0xff} {
			file[i] = b
			var f *File
			var err error
			if n := allocated(func() { f, err = Parse("x.gguf", file) }); n > 64<<10 {
				t.Fatalf("byte %d = %d: allocated %d bytes", i, b, n)
			}
			checkParsed(t, f, err)
		}
		file[i] = old
	}
}

// checkParsed demands what must hold of any input: an error of one of our types, or a file whose tensors are all
// there and whose directory the writer reproduces.
func checkParsed(t *testing.T, f *File, err error) {
	if err != nil {
		var fe FormatError
		var ue UnsupportedError
		if !errors.As(err, &fe) && !errors.As(err, &ue) {
			t.Errorf("%v is a %T", err, err)
		}
		return
	}
	for _, info := range f.Tensors() {
		x, err := f.Tensor(info.Name)
		if err != nil || int64(len(x.Data)) != info.Bytes() {
			t.Fatalf("%s: %d bytes, %v", info.Name, len(x.Data), err)
		}
	}
	p, err := NewPlan(f.Metadata(), f.Tensors(), 0)
	if err != nil {
		t.Fatalf("cannot be written: %v", err)
	}
	if p.Size() > 1<<20 {
		return
	}
	again, err := Parse("again", append(bytes.Clone(p.parts[0].header), make([]byte, p.Size()-int64(len(p.parts[0].header)))...))
	if err != nil {
		t.Fatalf("cannot be read again: %v", err)
	}
	// Headers are compared, not values: NaN is not equal to itself.
	q, err := NewPlan(again.Metadata(), again.Tensors(), 0)
	if err != nil || !bytes.Equal(p.parts[0].header, q.parts[0].header) || !reflect.DeepEqual(f.Tensors(), again.Tensors()) {
		t.Fatalf("reading what was written gives something else: %v", err)
	}
}

// TestProportionalMemory reads files that are as dense as they can be: the memory they take stays a small multiple of
// their size.
func TestProportionalMemory(t *testing.T) {
	const n = 10000
	entries, tensors, words := head(0, n), head(n, 0), array(typeString, n, raw{}.zeros(8*n))
	for i := range uint64(n) {
		entries = append(entries.str(fmt.Sprintf("%04x", i)).u32(uint32(typeUint8)), 1)
		tensors = tensors.tensor(fmt.Sprintf("%04x", i), 0, 32*i, 1)
	}
	tensors = tensors.data(32 * n)
	for name, file := range map[string]raw{"entries": entries, "tensors": tensors, "strings": words} {
		var f *File
		var err error
		got := allocated(func() { f, err = Parse(name, file) })
		if err != nil || f == nil {
			t.Fatal(err)
		}
		if limit := 48 * uint64(len(file)); got > limit {
			t.Errorf("%s: allocated %d bytes for a file of %d", name, got, len(file))
		}
		t.Logf("%s: %.1f bytes allocated for a byte of the file", name, float64(got)/float64(len(file)))
	}
}

func TestVersion2(t *testing.T) {
	file, _ := small(t)
	file[4] = 2
	f, err := Parse("x.gguf", file)
	if err != nil || f.Version() != 2 || len(f.Tensors()) != 2 {
		t.Errorf("%v", err)
	}
}

func FuzzOpen(f *testing.F) {
	file, _ := small(f)
	f.Add(file)
	for _, test := range hostile {
		f.Add([]byte(test.file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var file *File
		var err error
		if n := allocated(func() { file, err = Parse("fuzz", data) }); n > uint64(1<<20+64*len(data)) {
			t.Errorf("allocated %d bytes for a file of %d", n, len(data))
		}
		checkParsed(t, file, err)
	})
}

// inPlace is a part in its place, with a tensor of each name and one more entry.
func inPlace(no, count uint16, tensors uint32, key, value string, names ...string) raw {
	b := splitHead(no, count, tensors)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(names)))
	binary.LittleEndian.PutUint64(b[16:], 4)
	b = b.str(key).u32(uint32(typeString)).str(value)
	for i, n := range names {
		b = b.tensor(n, 0, 32*uint64(i), 1)
	}
	return b.data(32 * len(names))
}

func TestCheckParts(t *testing.T) {
	first := inPlace(0, 2, 3, "general.architecture", "llama", "a", "b")
	for _, test := range []struct {
		name   string
		second raw
		want   string
	}{
		{"good", inPlace(1, 2, 3, "general.architecture", "llama", "c"), ""},
		{"more metadata", inPlace(1, 2, 3, "other", "gemma3", "c"), ""},
		{"other metadata", inPlace(1, 2, 3, "general.architecture", "gemma3", "c"),
			`2: metadata "general.architecture" contradicts that of 1: they are not parts of one model`},
		{"a tensor twice", inPlace(1, 2, 3, "other", "", "b"), `2: tensor "b" is in 1 too`},
		{"too many tensors", inPlace(1, 2, 3, "other", "", "c", "d"), "1: the 2 parts hold 4 tensors, but split.tensors.count is 3"},
		{"too few tensors", inPlace(1, 2, 3, "other", ""), "1: the 2 parts hold 2 tensors, but split.tensors.count is 3"},
		{"the first again", first, "2: is part 1 of 2 of a model with 3 tensors; want part 2 of 2 of one with 3, as 1 says"},
		{"of another count", inPlace(1, 3, 3, "other", "", "c"), "2: is part 2 of 3 of a model with 3 tensors; want part 2 of 2"},
		{"not a part", head(0, 0), "2: is not a part of a model, want part 2 of 2"},
	} {
		a, err := parsePart("1", first)
		if err != nil {
			t.Fatal(err)
		}
		b, err := parsePart("2", test.second)
		if err != nil {
			t.Fatal(err)
		}
		err = checkParts([]*part{a, b})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "gguf: "+test.want)) {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
}

// TestListing: tensors of types that Open refuses, and of one that nobody knows.
func TestListing(t *testing.T) {
	long := strings.Repeat("n", 75)
	file := head(5, 0).tensor("a", 39, 32, 64, 2).tensor("b", 137, 128, 1000).tensor("c", 0, 0, 3).tensor("d", 41, 192, 128).tensor(long, 0, 224, 1).data(228)
	p, err := parsePart("x", file)
	if err != nil {
		t.Fatal(err)
	}
	want := []Listed{{"a", "MXFP4", []int{2, 64}, 68}, {"b", "type 137", []int{1000}, 64}, {"c", "F32", []int{3}, 12},
		{"d", "Q1_0", []int{128}, 18}, {long, "F32", []int{1}, 4}}
	if got := newListing([]*part{p}); !reflect.DeepEqual(got.Tensors, want) || got.Paths[0] != "x" {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// FuzzParts reads two parts, which may be of one model, as List and Open do.
func FuzzParts(f *testing.F) {
	md := Metadata{{"general.architecture", "llama"}, {"nan", float32(math.NaN())}}
	p, err := NewPlan(md, []ggml.Info{
		{Name: "a", Type: ggml.Q8_0, Shape: []int{2, 32}}, {Name: "b", Type: ggml.F32, Shape: []int{1, 1, 1, 3}},
	}, 1)
	if err != nil || len(p.parts) != 2 {
		f.Fatal(err)
	}
	var files [2][]byte
	for i, part := range p.parts {
		files[i] = append(bytes.Clone(part.header), make([]byte, part.size-int64(len(part.header)))...)
	}
	f.Add(files[0], files[1])
	f.Add(files[1], files[0])
	f.Add(files[0], files[0])
	f.Add(files[0], []byte(splitHead(1, 2, 2)))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		first, err := parsePart("a", a)
		if err != nil || first.split.count == 0 {
			return
		}
		second, err := parsePart("b", b)
		if err != nil {
			return
		}
		parts := []*part{first, second}
		if checkParts(parts) != nil {
			return
		}
		l := newListing(parts)
		file, err := newFile(parts)
		if err != nil {
			return
		}
		if len(l.Tensors) != first.split.tensors || len(file.Tensors()) != len(l.Tensors) {
			t.Fatalf("%d tensors listed, %d read, %d promised", len(l.Tensors), len(file.Tensors()), first.split.tensors)
		}
		for i, info := range file.Tensors() {
			x, err := file.Tensor(info.Name)
			if err != nil || int64(len(x.Data)) != info.Bytes() || l.Tensors[i].Bytes != info.Bytes() {
				t.Fatalf("%s: %d bytes, %v", info.Name, len(x.Data), err)
			}
		}
	})
}
