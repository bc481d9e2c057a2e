package gguf_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/model"
)

var _ model.Source = (*gguf.File)(nil)

// everyValue has an entry of each metadata type and of an array of each.
func everyValue() gguf.Metadata {
	return gguf.Metadata{
		{"general.architecture", "llama"},
		{"u8", uint8(200)}, {"i8", int8(-100)}, {"u16", uint16(60000)}, {"i16", int16(-30000)},
		{"u32", uint32(4e9)}, {"i32", int32(-2e9)}, {"u64", uint64(math.MaxUint64)}, {"i64", int64(math.MinInt64)},
		{"f32", float32(1e-5)}, {"f64", 1e-300}, {"yes", true}, {"no", false}, {"empty", ""},
		{"a.u8", []uint8{1, 255}}, {"a.i8", []int8{-1, 1}}, {"a.u16", []uint16{1}}, {"a.i16", []int16{-7}},
		{"a.u32", []uint32{1, 2, 3}}, {"a.i32", []int32{-1}}, {"a.u64", []uint64{1 << 63}}, {"a.i64", []int64{-1 << 63}},
		{"a.f32", []float32{0, float32(math.Inf(-1))}}, {"a.f64", []float64{math.Pi}}, {"a.bool", []bool{true, false}},
		{"a.string", []string{"", "ĠGo", "\xff not UTF-8"}}, {"a.none", []string{}},
	}
}

// sample is tensors of several types and ranks with random bytes.
func sample() ([]ggml.Info, map[string][]byte) {
	infos := []ggml.Info{
		{Name: "token_embd.weight", Type: ggml.Q4_K, Shape: []int{48, 256}},
		{Name: "blk.0.attn_norm.weight", Type: ggml.F32, Shape: []int{5}},
		{Name: "cube", Type: ggml.F16, Shape: []int{2, 3, 7}},
		{Name: "hyper", Type: ggml.BF16, Shape: []int{2, 1, 3, 5}},
		{Name: "output.weight", Type: ggml.Q8_0, Shape: []int{9, 64}},
	}
	rng := rand.New(rand.NewPCG(1, 2))
	data := make(map[string][]byte)
	for i := range infos {
		b := make([]byte, infos[i].Bytes())
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		data[infos[i].Name] = b
	}
	return infos, data
}

func create(t *testing.T, path string, md gguf.Metadata, infos []ggml.Info, opt gguf.Options) *gguf.Writer {
	t.Helper()
	w, err := gguf.Create(path, md, infos, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Abort)
	return w
}

func open(t *testing.T, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// checkFile compares a file with what was written into it.
func checkFile(t *testing.T, path string, md gguf.Metadata, infos []ggml.Info, data map[string][]byte) {
	t.Helper()
	f := open(t, path)
	if f.Version() != 3 || f.Name() != path {
		t.Errorf("version %d, name %q", f.Version(), f.Name())
	}
	if !reflect.DeepEqual(f.Metadata(), md) {
		t.Errorf("metadata:\n%v\nwant\n%v", f.Metadata(), md)
	}
	if len(f.Tensors()) != len(infos) {
		t.Fatalf("%d tensors, want %d", len(f.Tensors()), len(infos))
	}
	for i, got := range f.Tensors() {
		if !reflect.DeepEqual(got.Shape, infos[i].Shape) || got.Name != infos[i].Name || got.Type != infos[i].Type {
			t.Errorf("tensor %d is %v, want %v", i, got, infos[i])
		}
		for range 2 { // the second time after Release
			x, err := f.Tensor(got.Name)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(x.Data, data[got.Name]) {
				t.Errorf("%s: data differs", got.Name)
			}
			f.Release(x)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	infos, data := sample()
	for _, alignment := range []int{0, 1, 8, 32, 64, 4096} {
		md := everyValue()
		if alignment > 0 {
			md.Set("general.alignment", uint32(alignment))
		}
		path := filepath.Join(t.TempDir(), "x.gguf")
		w := create(t, path, md, infos, gguf.Options{})
		for _, i := range rand.Perm(len(infos)) {
			if err := w.WriteTensor(infos[i].Name, data[infos[i].Name]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		checkFile(t, path, md, infos, data)
		if alignment == 0 {
			alignment = 32
		}
		f := open(t, path)
		fi, err := os.Stat(path)
		if err != nil || fi.Size() != w.Plan().Size() {
			t.Errorf("size %d, %v; planned %d", fi.Size(), err, w.Plan().Size())
		}
		if f.Alignment() != alignment || fi.Size()%int64(alignment) != 0 {
			t.Errorf("alignment %d, size %d, want multiples of %d", f.Alignment(), fi.Size(), alignment)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range infos {
			off := w.Plan().Offset(i)
			if off%int64(alignment) != 0 {
				t.Errorf("tensor %d: offset %d, alignment %d", i, off, alignment)
			}
			if want := data[infos[i].Name]; !bytes.Equal(raw[off:off+int64(len(want))], want) {
				t.Errorf("tensor %d is not at its planned offset %d", i, off)
			}
		}
	}
}

// TestConcurrent writes rows from many goroutines, and demands the bytes of a plain sequential run.
func TestConcurrent(t *testing.T) {
	infos, data := sample()
	dir := t.TempDir()
	var files [3][]byte
	for run := range files {
		path := filepath.Join(dir, fmt.Sprint(run))
		w := create(t, path, everyValue(), infos, gguf.Options{})
		var wg sync.WaitGroup
		for i := range infos {
			info, b := infos[i], data[infos[i].Name]
			if run == 0 {
				if err := w.WriteTensor(info.Name, b); err != nil {
					t.Error(err)
				}
				continue
			}
			n := len(b) / info.Rows()
			for _, row := range rand.Perm(info.Rows()) {
				wg.Go(func() {
					if err := w.WriteRows(info.Name, row, b[row*n:(row+1)*n]); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		checkFile(t, path, everyValue(), infos, data)
		files[run], _ = os.ReadFile(path)
	}
	if !bytes.Equal(files[0], files[1]) || !bytes.Equal(files[0], files[2]) {
		t.Error("the bytes depend on the order of writing")
	}
}

// TestVocabularyOnly reads a file without tensors.
func TestVocabularyOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vocab.gguf")
	if err := create(t, path, everyValue(), nil, gguf.Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, everyValue(), nil, nil)
}

// TestLlamaCppFiles demands that llama.cpp's own vocabulary files survive reading and writing unchanged.
func TestLlamaCppFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(shared.Path(t, "vocab"), "*.gguf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		f := open(t, name)
		if tokens, _ := f.Meta("tokenizer.ggml.tokens"); len(tokens.([]string)) < 30000 {
			t.Errorf("%s: %d tokens", name, len(tokens.([]string)))
		}
		path := filepath.Join(t.TempDir(), "copy.gguf")
		if err := create(t, path, f.Metadata(), f.Tensors(), gguf.Options{}).Close(); err != nil {
			t.Fatal(err)
		}
		want, _ := os.ReadFile(name)
		got, _ := os.ReadFile(path)
		copy(want[4:8], got[4:8]) // the version, which may be 2
		if !bytes.HasPrefix(got, bytes.TrimRight(want, "\x00")) || len(got) > len(want)+31 {
			t.Errorf("%s: the copy differs", name)
		}
	}
}
