package gguf_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// TestPartial: a file, or the parts of one, that several writers have filled in, over whatever was there, is the one that a single writer makes.
func TestPartial(t *testing.T) {
	md := gguf.Metadata{{Key: "general.architecture", Value: "llama"}, {Key: "a", Value: []float32{0, 0}}}
	tensors := []ggml.Info{{Name: "x", Type: ggml.F32, Shape: []int{2, 3}}, {Name: "y", Type: ggml.F16, Shape: []int{1}},
		{Name: "z", Type: ggml.Q4_0, Shape: []int{3, 32}}}
	row := func(name string, i int) []byte {
		n := map[string]int{"x": 12, "y": 2, "z": 18}[name]
		return bytes.Repeat([]byte{name[0] + byte(i)}, n)
	}
	rows := map[string]int{"x": 2, "y": 1, "z": 3}
	for _, partBytes := range []int64{0, 64} {
		opt := gguf.Options{PartBytes: partBytes}
		dir, work := t.TempDir(), t.TempDir()
		whole, err := gguf.Create(filepath.Join(dir, "whole.gguf"), md, tensors, opt)
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range rows {
			for i := range n {
				if err := whole.WriteRows(name, i, row(name, i)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := whole.SetMeta("a", []float32{1, 2}); err != nil {
			t.Fatal(err)
		}
		if err := whole.Close(); err != nil {
			t.Fatal(err)
		}
		opt.Partial = filepath.Join(work, "out.partial")
		for _, name := range []string{"", "-00002"} {
			if name != "" && partBytes == 0 {
				continue
			}
			if err := os.WriteFile(opt.Partial+name, bytes.Repeat([]byte{0xff}, 5000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		create := func() *gguf.Writer {
			t.Helper()
			w, err := gguf.Create(filepath.Join(dir, "out.gguf"), md, tensors, opt)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		w := create()
		for _, name := range []string{"x", "z"} {
			if err := w.WriteRows(name, 1, row(name, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.SetMeta("a", []float32{3, 4}); err != nil { // as of a writer that came further
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		w = create()
		for _, name := range []string{"x", "z"} {
			b := make([]byte, len(row(name, 1)))
			if err := w.ReadRows(name, 1, b); err != nil || !bytes.Equal(b, row(name, 1)) {
				t.Errorf("row 1 of %s reads %x, %v", name, b, err)
			}
			if err := w.HaveRows(name, 1, 1); err != nil {
				t.Fatal(err)
			}
			expectError(t, w.WriteRows(name, 1, row(name, 1)), "were written already")
			expectError(t, w.HaveRows(name, 1, 3), "rows 1 to 4 of")
			expectError(t, w.ReadRows(name, 0, b[:len(b)-1]), "are not whole rows")
		}
		if _, err := w.Open(); err == nil {
			t.Error("a file that lacks rows is opened")
		}
		for name, n := range rows {
			for i := range n {
				if name == "y" || i != 1 {
					if err := w.WriteRows(name, i, row(name, i)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if err := w.SetMeta("a", []float32{1, 2}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		expectFiles(t, work)
		for i, path := range w.Paths() {
			got, err := os.ReadFile(path)
			want, errWant := os.ReadFile(whole.Paths()[i])
			if err != nil || errWant != nil || !bytes.Equal(got, want) {
				t.Errorf("parts of %d bytes: %s is another file, %v, %v", partBytes, filepath.Base(path), err, errWant)
			}
		}
	}
}
