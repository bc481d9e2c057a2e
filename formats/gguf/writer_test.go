package gguf_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// expectFiles demands that a folder holds the named files and nothing else.
func expectFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("the folder holds %q, want %q", got, names)
	}
}

func expectError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.HasPrefix(err.Error(), "gguf: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestPlanRefuses(t *testing.T) {
	long := strings.Repeat("n", 64)
	for _, test := range []struct {
		md      gguf.Metadata
		tensors []ggml.Info
		want    string
	}{
		{gguf.Metadata{{"", uint8(1)}}, nil, `metadata key "" has 0 bytes, 1 to 65535 are possible`},
		{gguf.Metadata{{strings.Repeat("k", 65536), uint8(1)}}, nil, "has 65536 bytes, 1 to 65535 are possible"},
		{gguf.Metadata{{"a", uint8(1)}, {"a", ""}}, nil, `two metadata entries are named "a"`},
		{gguf.Metadata{{"a", nil}}, nil, `metadata "a": no value`},
		{gguf.Metadata{{"a", 1}}, nil, `metadata "a": a value of type int cannot be stored`},
		{gguf.Metadata{{"a", []any{"x"}}}, nil, `metadata "a": a value of type []interface {} cannot be stored`},
		{gguf.Metadata{{"a", [][]string{{"x"}}}}, nil, `metadata "a": a value of type [][]string cannot be stored`},
		{gguf.Metadata{{"general.alignment", uint32(0)}}, nil, "general.alignment is 0, not a power of two"},
		{gguf.Metadata{{"general.alignment", uint32(48)}}, nil, "general.alignment is 48, not a power of two"},
		{gguf.Metadata{{"general.alignment", int32(32)}}, nil, "general.alignment is of type int32, not uint32"},
		{nil, []ggml.Info{{Type: ggml.F32, Shape: []int{1}}}, "the name has 0 bytes, 1 to 63 are possible"},
		{nil, []ggml.Info{{Name: long, Type: ggml.F32, Shape: []int{1}}}, "the name has 64 bytes, 1 to 63 are possible"},
		{nil, []ggml.Info{{Name: "x", Shape: []int{1}}}, `tensor "x": no type`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32}}, `tensor "x": 0 dimensions, 1 to 4 are possible`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: make([]int, 5)}},
			`tensor "x": 5 dimensions, 1 to 4 are possible`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{3, 0}}},
			`tensor "x": dimension 1 of [3 0] is not positive`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{-1}}}, `tensor "x": dimension 0 of [-1] is not positive`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.Q4_K, Shape: []int{2, 300}}},
			`tensor "x": Q4_K [2 300]: rows of 300 are not whole blocks of 256`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1 << 40, 1 << 40}}}, "more elements than fit 63 bits"},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1 << 59}},
			{Name: "y", Type: ggml.F32, Shape: []int{1 << 59}}},
			`tensor "y": F32 [576460752303423488]: the file grows past 62 bits`},
		{nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1}}, {Name: "x", Type: ggml.F16, Shape: []int{2}}},
			`two tensors are named "x"`},
	} {
		dir := t.TempDir()
		_, err := gguf.Create(filepath.Join(dir, "x.gguf"), test.md, test.tensors, gguf.Options{})
		expectError(t, err, test.want)
		expectFiles(t, dir)
	}
}

// TestPlanSize computes a large model's size from shapes alone.
func TestPlanSize(t *testing.T) {
	infos := []ggml.Info{
		{Name: "a", Type: ggml.Q4_K, Shape: []int{1 << 20, 1 << 14}},
		{Name: "b", Type: ggml.F32, Shape: []int{3}},
		{Name: "c", Type: ggml.F16, Shape: []int{1}},
	}
	p, err := gguf.NewPlan(nil, infos, 0)
	if err != nil {
		t.Fatal(err)
	}
	const directory = 24 + 3*(8+1+4+4+8) + 5*8 - 8 // 131 bytes: 160 with padding
	a := int64(160)
	b := a + 1<<34/256*144
	c := b + 32
	if directory != 131 || p.Offset(0) != a || p.Offset(1) != b || p.Offset(2) != c || p.Size() != c+32 {
		t.Errorf("offsets %d %d %d, size %d; want %d %d %d, %d",
			p.Offset(0), p.Offset(1), p.Offset(2), p.Size(), a, b, c, c+32)
	}
}

func TestWriterRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.gguf")
	infos, data := sample()
	w := create(t, path, nil, infos, gguf.Options{})
	expectError(t, w.WriteTensor("absent", nil), `x.gguf: tensor "absent": not in the plan`)
	expectError(t, w.WriteTensor("output.weight", make([]byte, 10)),
		`x.gguf: tensor "output.weight": Q8_0 [9 64] needs 612 bytes, got 10`)
	expectError(t, w.WriteRows("output.weight", 0, make([]byte, 69)), `69 bytes are not whole rows of 68`)
	expectError(t, w.WriteRows("output.weight", 8, make([]byte, 136)), `rows 8 to 10 of 9`)
	expectError(t, w.WriteRows("output.weight", -1, make([]byte, 68)), `rows -1 to 0 of 9`)
	expectError(t, w.WriteRows("output.weight", 1<<62, make([]byte, 68)), `of 9`)
	for _, row := range []int{2, 6, 4, 5} {
		if err := w.WriteRows("output.weight", row, make([]byte, 68)); err != nil {
			t.Fatal(err)
		}
	}
	expectError(t, w.WriteRows("output.weight", 0, make([]byte, 3*68)), `rows 2 to 3 were written already`)
	expectError(t, w.WriteRows("output.weight", 6, make([]byte, 2*68)), `rows 6 to 7 were written already`)
	expectError(t, w.WriteTensor("output.weight", data["output.weight"]), `were written already`)
	if err := w.WriteTensor("cube", data["cube"]); err != nil {
		t.Fatal(err)
	}
	expectError(t, w.WriteTensor("cube", data["cube"]), `rows 0 to 6 were written already`)
	expectError(t, w.Close(), `x.gguf: 4 of 5 tensors were not written completely, the first is "token_embd.weight"`)
	expectFiles(t, dir)
	expectError(t, w.Close(), "")
	w.Abort()
	expectFiles(t, dir)
}

// TestAbortWhileWriting is what an interrupt does: writers that are under way fail or succeed, and nothing is left.
func TestAbortWhileWriting(t *testing.T) {
	dir := t.TempDir()
	infos, data := sample()
	w := create(t, filepath.Join(dir, "x.gguf"), nil, infos, gguf.Options{})
	name, rows := infos[0].Name, infos[0].Rows()
	n := len(data[name]) / rows
	var wg sync.WaitGroup
	for row := range rows {
		wg.Go(func() {
			if row == rows/2 {
				w.Abort()
			}
			if err := w.WriteRows(name, row, data[name][row*n:(row+1)*n]); err != nil && !errors.Is(err, fs.ErrClosed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	expectFiles(t, dir)
	if err := w.Close(); err == nil {
		t.Error("Close after Abort succeeds")
	}
	expectFiles(t, dir)
}

// TestSetMeta demands the bytes of a file that had the values from the start.
func TestSetMeta(t *testing.T) {
	dir := t.TempDir()
	meta := func(scales []float32, n uint16) gguf.Metadata {
		return gguf.Metadata{{"general.name", "x"}, {"scales", scales}, {"n", n}, {"names", []string{"ab", "c"}}}
	}
	infos := []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1}}}
	write := func(name string, md gguf.Metadata, set func(w *gguf.Writer)) string {
		path := filepath.Join(dir, name)
		w := create(t, path, md, infos, gguf.Options{})
		if err := w.WriteTensor("x", make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		set(w)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := write("want.gguf", meta([]float32{1, 2.5, -3}, 7), func(*gguf.Writer) {})
	md := meta(make([]float32, 3), 0)
	got := write("got.gguf", md, func(w *gguf.Writer) {
		for _, kv := range []gguf.KV{{"scales", []float32{9, 9, 9}}, {"n", uint16(7)}, {"scales", []float32{1, 2.5, -3}}} {
			if err := w.SetMeta(kv.Key, kv.Value); err != nil {
				t.Fatal(err)
			}
		}
		expectError(t, w.SetMeta("absent", uint16(7)), `got.gguf: metadata "absent": not in the plan`)
		expectError(t, w.SetMeta("n", uint32(7)), `metadata "n": planned as uint16, not uint32`)
		expectError(t, w.SetMeta("n", nil), `metadata "n": planned as uint16, not <nil>`)
		expectError(t, w.SetMeta("scales", make([]float32, 4)), `metadata "scales": planned with 28 bytes, not 32`)
		expectError(t, w.SetMeta("names", []string{"ab", "cd"}), `planned with`)
	})
	if got != want {
		t.Error("the file differs from one planned with the values")
	}
	if v, _ := md.Get("scales"); v.([]float32)[0] != 0 {
		t.Error("the caller's metadata was changed")
	}
	w := create(t, filepath.Join(dir, "a.gguf"), gguf.Metadata{{"general.alignment", uint32(64)}}, infos, gguf.Options{})
	expectError(t, w.SetMeta("general.alignment", uint32(32)), "the layout depends on it")
	w.Abort()
	if err := w.SetMeta("general.alignment", uint32(64)); err == nil {
		t.Error("SetMeta after Abort succeeds")
	}
}

func TestOutputPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.gguf")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := gguf.Create(path, nil, nil, gguf.Options{})
	expectError(t, err, path)
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v is not fs.ErrExist", err)
	}
	_, err = gguf.Create(dir, nil, nil, gguf.Options{Overwrite: true})
	expectError(t, err, "is a folder")
	huge := []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1 << 50}}}
	_, err = gguf.Create(path, nil, huge, gguf.Options{Overwrite: true})
	expectError(t, err, "needs 4503599627370560 bytes of disk, ")
	expectFiles(t, dir, "x.gguf")

	w := create(t, path, nil, nil, gguf.Options{Overwrite: true})
	w.Abort()
	expectFiles(t, dir, "x.gguf")
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("Abort changed the file to %q", b)
	}
	w = create(t, path, nil, nil, gguf.Options{Overwrite: true})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	expectFiles(t, dir, "x.gguf")
	open(t, path)
}

func TestReaderMisuse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.gguf")
	w := create(t, path, nil, []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{1}}}, gguf.Options{})
	if err := w.WriteTensor("x", make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	_, err := f.Tensor("y")
	expectError(t, err, `x.gguf: no tensor "y"`)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err = f.Tensor("x")
	expectError(t, err, "closed")
	_, err = gguf.Open(filepath.Join(t.TempDir(), "absent"))
	if expectError(t, err, "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
	_, err = gguf.Open(t.TempDir())
	expectError(t, err, "not a regular file")
}
