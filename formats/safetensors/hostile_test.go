package safetensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// file is a shard with any header and n bytes of data.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

// claim is a shard whose header's length is not what it says.
func claim(length uint64, rest string) []byte {
	return append(binary.LittleEndian.AppendUint64(nil, length), rest...)
}

// one is a shard with the tensor x.
func one(dtype, shape, offsets string, n int) []byte {
	return file(fmt.Sprintf(`{"x":{"dtype":"%s","shape":%s,"data_offsets":%s}}`, dtype, shape, offsets), n)
}

// octet is a tensor of one byte.
const octet = `{"dtype":"U8","shape":[1],"data_offsets":[0,1]}`

// two is a shard with the tensors a and b, which are bytes.
func two(shapeA, offsetsA, shapeB, offsetsB string, n int) []byte {
	const tensor = `{"dtype":"U8","shape":%s,"data_offsets":%s}`
	return file(fmt.Sprintf(`{"a":`+tensor+`,"b":`+tensor+`}`, shapeA, offsetsA, shapeB, offsetsB), n)
}

var hostile = []struct {
	name        string
	file        []byte
	want        string // "" where the file is valid
	unsupported bool
}{
	{name: "empty", want: "0 bytes are too few for a header's length"},
	{name: "short", file: make([]byte, 7), want: "7 bytes are too few for a header's length"},
	{name: "length negative", file: claim(math.MaxUint64, "{}"), want: "the header's length is -1, negative"},
	{name: "length that wraps", file: claim(math.MaxUint64-7, "{}"), want: "the header's length is -8, negative"},
	{name: "length huge", file: claim(1<<62, "{}"),
		want: "the header's length is 4611686018427387904, but 2 bytes follow"},
	{name: "length past the end", file: claim(3, "{}"), want: "the header's length is 3, but 2 bytes follow"},
	{name: "length zero", file: claim(0, "{}"), want: "the header of 0 bytes is not a JSON object"},
	{name: "no object", file: file("null", 0), want: "the header of 4 bytes is not a JSON object"},
	{name: "space first", file: file(" {}", 0), want: "the header of 3 bytes is not a JSON object"},
	{name: "cut", file: file(`{"x":`, 0), want: `tensor "x": invalid JSON after byte 5: unexpected EOF`},
	{name: "bad JSON", file: file(`{"x"}`, 0), want: `tensor "x": invalid JSON after byte 4`},
	{name: "no JSON after the object", file: file(`{}x`, 0), want: "after the object: invalid character 'x'"},
	{name: "more after the object", file: file(`{}{}`, 0), want: "unexpected { after the object"},
	{name: "nested", file: file(`{"x":`+strings.Repeat("[", 300), 0), want: `tensor "x": not an object`},
	{name: "nested dtype", file: file(`{"x":{"dtype":`+strings.Repeat(`{"a":`, 300), 0),
		want: `tensor "x": dtype: { is not a string`},

	{name: "tensor null", file: file(`{"x":null}`, 0), want: `tensor "x": not an object`},
	{name: "no dtype", file: file(`{"x":{"shape":[],"data_offsets":[0,0]}}`, 0), want: `tensor "x": no dtype`},
	{name: "no shape", file: file(`{"x":{"dtype":"U8","data_offsets":[0,0]}}`, 0), want: `tensor "x": no shape`},
	{name: "no offsets", file: file(`{"x":{"dtype":"U8","shape":[]}}`, 0), want: `tensor "x": no data_offsets`},
	{name: "unknown key", file: file(`{"x":{"dtype":"U8","Shape":[],"data_offsets":[0,1]}}`, 1),
		want: `tensor "x": unknown key "Shape"`},
	{name: "unknown dtype", file: one("F8_E9M9", "[4]", "[0,4]", 4),
		want: `tensor "x": dtype "F8_E9M9" is not supported`, unsupported: true},
	{name: "half a byte", file: one("F4", "[3]", "[0,2]", 2), want: `tensor "x": F4 [3]: 12 bits are no whole bytes`},
	{name: "dtype a number", file: file(`{"x":{"dtype":1}}`, 0), want: `tensor "x": dtype: 1 is not a string`},
	{name: "metadata not strings", file: file(`{"__metadata__":{"a":1}}`, 0),
		want: `__metadata__: "a": 1 is not a string`},
	{name: "metadata a number", file: file(`{"__metadata__":1}`, 0), want: `__metadata__: not an object`},

	{name: "tensor twice", file: file(`{"x":`+octet+`,"x":`+octet+`}`, 1),
		want: `"x" appears twice`},
	{name: "tensor twice, escaped", file: file(`{"x":`+octet+`,"\u0078":`+octet+`}`, 1),
		want: `"x" appears twice`},
	{name: "shape twice", file: file(`{"x":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,1]}}`, 1),
		want: `tensor "x": "shape" appears twice`},
	{name: "metadata twice", file: file(`{"__metadata__":{"a":"","a":""}}`, 0),
		want: `__metadata__: "a" appears twice`},

	{name: "dimension negative", file: one("F32", "[-1]", "[0,4]", 4),
		want: `tensor "x": shape: -1 is not a natural number of 64 bits`},
	{name: "dimension fractional", file: one("F32", "[1.5]", "[0,4]", 4),
		want: `tensor "x": shape: 1.5 is not a natural number`},
	{name: "dimension of 65 bits", file: one("F32", "[36893488147419103232]", "[0,4]", 4),
		want: `shape: 36893488147419103232 is not a natural number of 64 bits`},
	{name: "dimension of 64 bits", file: one("F32", "[9223372036854775808]", "[0,4]", 4),
		want: `tensor "x": shape: dimension 9223372036854775808 is too large`},
	{name: "dimension a string", file: one("F32", `["1"]`, "[0,4]", 4), want: `tensor "x": shape: 1 is not a number`},
	{name: "dimension a list", file: one("F32", `[[[1]]]`, "[0,4]", 4), want: `tensor "x": shape: [ is not a number`},
	{name: "shape a number", file: one("F32", `1`, "[0,4]", 4), want: `tensor "x": shape: not a list`},
	{name: "17 dimensions", file: one("F32", "[1"+strings.Repeat(",1", 16)+"]", "[0,4]", 4),
		want: `tensor "x": shape: more than 16 numbers`},
	{name: "shape that wraps", file: one("U8", "[4294967296,4294967296]", "[0,0]", 0),
		want: `tensor "x": U8 [4294967296 4294967296]: more bytes than fit 63 bits`},
	{name: "bytes that wrap", file: one("F32", "[4611686018427387904]", "[0,0]", 0),
		want: `tensor "x": F32 [4611686018427387904]: more bytes than fit 63 bits`},
	{name: "shape that wraps before a zero", file: one("F32", "[4611686018427387904,4,0]", "[0,0]", 0),
		want: `more bytes than fit 63 bits`},

	{name: "three offsets", file: one("F32", "[1]", "[0,4,8]", 4),
		want: `tensor "x": data_offsets: more than 2 numbers`},
	{name: "one offset", file: one("F32", "[1]", "[0]", 4), want: `tensor "x": data_offsets: 1 numbers, not 2`},
	{name: "offset negative", file: one("F32", "[1]", "[-4,0]", 4),
		want: `tensor "x": data_offsets: -4 is not a natural number`},
	{name: "offsets inverted", file: one("F32", "[1]", "[4,0]", 4), want: `tensor "x": offsets [4 0] are inverted`},
	{name: "offsets not the shape's", file: one("BF16", "[8,4]", "[0,60]", 64),
		want: `tensor "x": BF16 [8 4] needs 64 bytes, offsets give 60`},
	{name: "offsets past the end", file: one("F32", "[4]", "[0,16]", 15),
		want: `tensor "x": offsets [0 16] are past the end of the data, 15 bytes`},
	{name: "offsets far past the end", file: one("F32", "[1]", "[18446744073709551611,18446744073709551615]", 4),
		want: `offsets [18446744073709551611 18446744073709551615] are past the end of the data, 4 bytes`},
	{name: "overlap", file: two("[4]", "[0,4]", "[4]", "[3,7]", 7),
		want: `tensors "a" and "b" overlap: offsets [0 4] and [3 7]`},
	{name: "same place", file: two("[4]", "[0,4]", "[4]", "[0,4]", 4),
		want: `tensors "a" and "b" overlap: offsets [0 4] and [0 4]`},
	{name: "gap", file: two("[4]", "[0,4]", "[4]", "[5,9]", 9),
		want: `tensor "b": offsets [5 9] leave 1 bytes before it unused`},
	{name: "gap in front", file: one("U8", "[4]", "[2,6]", 6),
		want: `tensor "x": offsets [2 6] leave 2 bytes before it unused`},
	{name: "bytes left over", file: one("U8", "[4]", "[0,4]", 5),
		want: `the tensors need 4 bytes of data, the file has 5`},

	{name: "valid: metadata null", file: file(`{"__metadata__" : null,"x":`+octet+`}`, 1)},
	{name: "valid: narrow floats", file: file(`{"x":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]},`+
		`"y":{"dtype":"F4","shape":[3,2],"data_offsets":[3,6]}}`, 6)},
	{name: "valid: no tensors", file: file("{}", 0)},
	{name: "valid: empty tensors, out of order", file: two("[0,3]", "[4,4]", "[4]", "[0,4]", 4)},
	{name: "valid: spaces, scalar, metadata",
		file: file(`{"__metadata__":{"a":"b"}, "x":{"data_offsets":[0,8],"shape":[],"dtype":"I64"} }  `, 8)},
}

// allocated is what f allocates in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func checkError(t *testing.T, err error, unsupported bool) {
	t.Helper()
	var fe FormatError
	var ue UnsupportedError
	if errors.As(err, &ue) != unsupported || errors.As(err, &fe) == unsupported {
		t.Errorf("%v is a %T", err, err)
	}
}

func TestHostile(t *testing.T) {
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			var err error
			n := allocated(func() { _, err = parseShard("x.safetensors", test.file) })
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
			if err == nil || !strings.HasPrefix(err.Error(), "safetensors: x.safetensors: ") ||
				!strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestTruncated(t *testing.T) {
	whole := two("[4]", "[0,4]", "[2,3]", "[4,10]", 10)
	if _, err := parseShard("x", whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		_, err := parseShard("x", whole[:n:n])
		checkError(t, err, false)
	}
}

// TestEveryByte changes each byte: nothing may panic, or take memory that the file does not justify.
func TestEveryByte(t *testing.T) {
	whole := two("[4]", "[0,4]", "[2,3]", "[4,10]", 10)
	for i, old := range whole {
		for _, b := range []byte{0, 1, old - 1, old + 1, old ^ 0x80, '"', '{', '9', 0xff} {
			whole[i] = b
			checkParsed(t, whole)
		}
		whole[i] = old
	}
}

// checkParsed demands what must hold of any input: an error of one of our types, or tensors that fill the data; and
// in either case memory in proportion.
func checkParsed(t *testing.T, data []byte) {
	t.Helper()
	var err error
	n := allocated(func() {
		entries, e := parseShard("x", data)
		for _, x := range entries {
			if e == nil && uint64(len(x.data)) != x.hi-x.lo {
				t.Errorf("tensor %q: %d bytes, not %d", x.name, len(x.data), x.hi-x.lo)
			}
		}
		err = e
	})
	if n > uint64(1<<20+64*len(data)) {
		t.Errorf("allocated %d bytes for a file of %d", n, len(data))
	}
	var fe FormatError
	var ue UnsupportedError
	if err != nil && !errors.As(err, &fe) && !errors.As(err, &ue) {
		t.Errorf("%v is a %T", err, err)
	}
	if _, e := readHeader("x", data); e == nil && err != nil {
		t.Errorf("the library found what our own checks did not: %v", err)
	}
}

// TestProportionalMemory opens a header that is as dense as it can be.
func TestProportionalMemory(t *testing.T) {
	var b strings.Builder
	b.WriteString("{")
	for i := range 10000 {
		fmt.Fprintf(&b, `"%04x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},`, i)
	}
	data := file(strings.TrimSuffix(b.String(), ",")+"}", 0)
	path := filepath.Join(t.TempDir(), SingleFile)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	n := allocated(func() {
		c, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	if limit := 80 * uint64(len(data)); n > limit {
		t.Errorf("allocated %d bytes for a file of %d", n, len(data))
	}
	t.Logf("%.1f bytes allocated for a byte of the file", float64(n)/float64(len(data)))
}

// x and y are shards with one tensor of that name.
var (
	shardX = file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4)
	shardY = file(`{"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4)
)

func TestHostileFolders(t *testing.T) {
	deep := strings.Repeat("[", 20000)
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string // NAME stands for the folder
	}{
		{"nothing", nil, "NAME: holds neither model.safetensors nor model.safetensors.index.json"},
		{"missing shard", map[string]string{
			IndexFile: `{"weight_map":{"x":"a","y":"b"}}`, "a": string(shardX),
		}, "NAME/b: missing shard: the index places 1 tensors in it"},
		{"absent tensor", map[string]string{
			IndexFile: `{"weight_map":{"x":"a","y":"a"}}`, "a": string(shardX),
		}, `a: no tensor "y", which the index places there`},
		{"misplaced tensor", map[string]string{
			IndexFile: `{"weight_map":{"x":"b","y":"a"}}`, "a": string(shardX), "b": string(shardY),
		}, `a: tensor "x" is here, but the index places it in b`},
		{"unnamed tensor", map[string]string{
			IndexFile: `{"weight_map":{"x":"a"}}`, "a": string(two("[1]", "[0,1]", "[1]", "[1,2]", 2)),
		}, `a: tensor "a" is here, but the index does not name it`},
		{"name in two shards", map[string]string{
			IndexFile: `{"weight_map":{"x":"a","y":"b"}}`, "a": string(shardX), "b": string(shardX),
		}, `b: tensor "x" is here, but the index places it in a`},
		{"broken shard", map[string]string{
			IndexFile: `{"weight_map":{"x":"a"}}`, "a": string(shardX[:len(shardX)-1]),
		}, `a: tensor "x": offsets [0 4] are past the end of the data, 3 bytes`},
		{"climbs out", map[string]string{IndexFile: `{"weight_map":{"x":"../a"}}`},
			`weight_map: tensor "x": its shard "../a" is not a path inside the folder`},
		{"climbs out later", map[string]string{IndexFile: `{"weight_map":{"x":"b/../../a"}}`},
			`its shard "b/../../a" is not a path inside the folder`},
		{"absolute", map[string]string{IndexFile: `{"weight_map":{"x":"/etc/passwd"}}`},
			`its shard "/etc/passwd" is not a path inside the folder`},
		{"shard without name", map[string]string{IndexFile: `{"weight_map":{"x":""}}`},
			`its shard "" is not a path inside the folder`},
		{"shard is the folder", map[string]string{IndexFile: `{"weight_map":{"x":"."}}`}, "not a regular file"},
		{"shard of zero bytes", map[string]string{IndexFile: `{"weight_map":{"x":"a"}}`, "a": ""},
			"a: 0 bytes are too few for a header's length"},
		{"index names a tensor twice", map[string]string{IndexFile: `{"weight_map":{"x":"a","x":"b"}}`},
			`model.safetensors.index.json: weight_map: "x" appears twice`},
		{"index with two maps", map[string]string{IndexFile: `{"weight_map":{"x":"a"},"weight_map":{}}`},
			`"weight_map" appears twice`},
		{"index without map", map[string]string{IndexFile: `{"metadata":{"total_size":1}}`},
			"its weight_map names no tensor"},
		{"index with an empty map", map[string]string{IndexFile: `{"weight_map":{}}`}, "its weight_map names no tensor"},
		{"index with a list", map[string]string{IndexFile: `{"weight_map":[]}`}, "weight_map: not an object"},
		{"index with a number", map[string]string{IndexFile: `{"weight_map":{"x":1}}`},
			`weight_map: tensor "x": 1 is not a string`},
		{"index nested", map[string]string{IndexFile: `{"metadata":` + deep}, `"metadata": `},
		{"index empty", map[string]string{IndexFile: ""}, "invalid JSON after byte 0"},
		{"index cut", map[string]string{IndexFile: `{"weight_map":{"x":"a"`}, "model.safetensors.index.json: weight_map: "},
		{"index with more", map[string]string{IndexFile: `{"weight_map":{"x":"a"}} 1`}, "unexpected 1 after the object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c, err := Open(dir)
			if err == nil {
				c.Close()
				t.Fatal("it opens")
			}
			want := strings.ReplaceAll(filepath.FromSlash(test.want), "NAME", dir)
			if !strings.HasPrefix(err.Error(), "safetensors: ") || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// TestOtherTypes opens a checkpoint with a buffer that is no weight: only asking for it is an error.
func TestOtherTypes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, one("I16", "[8]", "[0,16]", 16), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if info, ok := c.Lookup("x"); !ok || info.DType.String() != "I16" {
		t.Errorf("%v %v", info, ok)
	}
	_, _, err = c.Tensor("x")
	checkError(t, err, true)
	want := `x.safetensors: tensor "x": its type I16 is none of F32, F16, BF16, I32 and I64`
	if !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestMisuse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, shardX, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Tensor("y"); err == nil || !strings.Contains(err.Error(), `no tensor "y"`) {
		t.Errorf("absent tensor: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := c.Tensor("x"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("closed: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, test := range hostile {
		f.Add(test.file)
	}
	f.Fuzz(checkParsed)
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":8},"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"x":"../a"}}`))
	f.Add([]byte(`{"weight_map":{"x":1},"weight_map":[[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var places map[string]string
		var err error
		n := allocated(func() { places, err = parseIndex(data) })
		if n > uint64(1<<20+64*len(data)) {
			t.Errorf("allocated %d bytes for an index of %d", n, len(data))
		}
		for tensor, file := range places {
			if err == nil && !filepath.IsLocal(file) {
				t.Errorf("%q is placed in %q", tensor, file)
			}
		}
	})
}

// TestNumberedShards opens shards without an index, all of which must be there, and hold different tensors.
func TestNumberedShards(t *testing.T) {
	const first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	for _, test := range []struct {
		files map[string][]byte
		want  string // of the error; "" where x and y are there
	}{
		{map[string][]byte{first: shardX, second: shardY}, ""},
		{map[string][]byte{"model-00001-of-00001.safetensors": file(`{"x":`+octet+`,"y":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}`, 1)}, ""},
		{map[string][]byte{second: shardY}, "shard 1 of 2 is missing, and there is no model.safetensors.index.json"},
		{map[string][]byte{first: shardX, second: shardX}, second + `: tensor "x" is in ` + first + " too"},
		{map[string][]byte{first: []byte("version https://git-lfs.github.com/spec/v1\nsize 7\n"), second: shardY}, "a Git LFS pointer"},
	} {
		dir := t.TempDir()
		for name, content := range test.files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Open(dir)
		switch {
		case test.want != "":
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		case err != nil:
			t.Error(err)
		default:
			if names := c.Names(); len(names) != 2 {
				t.Errorf("%q", names)
			}
			c.Close()
		}
	}
}
