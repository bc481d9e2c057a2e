package safetensors_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
)

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
	if err == nil || !strings.HasPrefix(err.Error(), "safetensors: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestBytes compares a file with what the format's description asks for, byte by byte.
func TestBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	write(t, path, []safetensors.Info{{Name: "b", DType: safetensors.U8, Shape: []int{3}}, {Name: "a", DType: safetensors.F16}}, 5)
	header := `{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},` +
		`"a":{"dtype":"F16","shape":[],"data_offsets":[3,5]}}`
	for len(header)%8 != 0 {
		header += " "
	}
	want := append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header...)
	want = append(append(want, random(3)...), random(2)...)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, test := range []struct {
		infos []safetensors.Info
		want  string
	}{
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8}, {Name: "x"}}, `the name "x" is taken`},
		{[]safetensors.Info{{Name: "x"}}, `tensor "x": no type is named ""`},
		{[]safetensors.Info{{Name: "__metadata__"}}, `the name "__metadata__" is taken`},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: make([]int, 17)}}, `tensor "x": 17 dimensions, more than 16`},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: []int{2, 0}}}, `tensor "x": its shape [2 0] is impossible`},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: []int{-1}}}, `tensor "x": its shape [-1] is impossible`},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: []int{1 << 40, 1 << 40}}}, "is impossible"},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: []int{1 << 61}},
			{Name: "y", DType: safetensors.U8, Shape: []int{math.MaxInt64 / 2}}}, `tensor "y": the file grows past 62 bits`},
		{[]safetensors.Info{{Name: "x", DType: safetensors.U8, Shape: []int{1 << 60}}}, "bytes of disk, "},
	} {
		dir := t.TempDir()
		_, err := safetensors.Create(filepath.Join(dir, "x"), test.infos, nil, safetensors.Options{})
		expectError(t, err, test.want)
		expectFiles(t, dir)
	}
}

func TestWriterRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	infos := []safetensors.Info{
		{Name: "a", DType: safetensors.BF16, Shape: []int{2, 3}}, {Name: "b", DType: safetensors.F32, Shape: []int{1}},
	}
	begin := func() *safetensors.Writer {
		w, err := safetensors.Create(path, infos, nil, safetensors.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Abort)
		return w
	}
	w := begin()
	if n, err := w.Write(make([]byte, 5)); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	_, err := w.Write(make([]byte, 12))
	expectError(t, err, "more data than the tensors need")
	if n, err := w.Write(make([]byte, 10)); n != 10 || err != nil { // the end of a, and most of b
		t.Fatal(n, err)
	}
	expectError(t, w.Close(), `x: tensor "b": 1 bytes are missing`)
	expectFiles(t, dir)

	w = begin()
	if _, err := w.Write(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 1))
	expectError(t, err, "more data than the tensors need")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	expectFiles(t, dir, "x")

	_, err = safetensors.Create(path, infos, nil, safetensors.Options{})
	if expectError(t, err, path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v is not fs.ErrExist", err)
	}
	w, err = safetensors.Create(path, infos[:1], nil, safetensors.Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	expectFiles(t, dir, "x")
	if names := open(t, path).Names(); len(names) != 2 {
		t.Errorf("Abort changed the file: it holds %q", names)
	}
}
