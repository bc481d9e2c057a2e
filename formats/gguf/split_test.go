package gguf_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// writeSplit writes sample's tensors to the parts of a model.
func writeSplit(t *testing.T, path string, md gguf.Metadata, partBytes int64) (paths []string) {
	t.Helper()
	infos, data := sample()
	w := create(t, path, md, infos, gguf.Options{PartBytes: partBytes})
	for _, i := range rand.Perm(len(infos)) {
		if err := w.WriteTensor(infos[i].Name, data[infos[i].Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.Paths()
}

// TestSplit: what is read from parts is what was written, and each part is as llama-gguf-split has it.
func TestSplit(t *testing.T) {
	infos, data := sample() // 6912, 20, 84, 60 and 612 bytes: 6912, 32, 96, 64 and 640 with padding
	for _, c := range []struct {
		partBytes int64
		want      []int // tensors of each part
	}{
		{0, []int{5}}, {7744, []int{5}}, {7743, []int{4, 1}}, {7104, []int{4, 1}}, {7103, []int{3, 2}}, {832, []int{1, 4}},
		{831, []int{1, 3, 1}}, {160, []int{1, 2, 1, 1}}, {1, []int{1, 1, 1, 1, 1}},
	} {
		for _, alignment := range []int{32, 64} {
			if alignment == 64 && c.partBytes != 1 {
				continue
			}
			dir := t.TempDir()
			path := filepath.Join(dir, "x.gguf")
			md := everyValue()
			if alignment != 32 {
				md.Set("general.alignment", uint32(alignment))
			}
			paths := writeSplit(t, path, md, c.partBytes)
			var names []string
			for _, p := range paths {
				names = append(names, filepath.Base(p))
			}
			expectFiles(t, dir, names...)
			checkFile(t, paths[0], md, infos, data)
			f := open(t, paths[0])
			if !slices.Equal(f.Paths(), paths) || f.Alignment() != alignment {
				t.Errorf("paths %q, alignment %d; want %q, %d", f.Paths(), f.Alignment(), paths, alignment)
			}
			if len(paths) != len(c.want) {
				t.Errorf("%d bytes a part: %d parts, want %d", c.partBytes, len(paths), len(c.want))
			}
			plan, err := gguf.NewPlan(md, infos, c.partBytes)
			if err != nil {
				t.Fatal(err)
			}
			total := int64(0)
			for i, n := range plan.Parts() {
				if fi, err := os.Stat(paths[i]); err != nil || fi.Size() != n {
					t.Errorf("part %d has %d bytes, %v; planned %d", i, fi.Size(), err, n)
				}
				total += n
			}
			if total != plan.Size() {
				t.Errorf("the parts have %d bytes, the plan %d", total, plan.Size())
			}
			if len(paths) > 1 {
				checkPartsAlone(t, paths, md, infos, c.want)
			}
		}
	}
}

// checkPartsAlone reads each part as a file that is not split: its metadata, and its tensors' number.
func checkPartsAlone(t *testing.T, paths []string, md gguf.Metadata, infos []ggml.Info, tensors []int) {
	t.Helper()
	for i, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Another name for the key that makes a part of it.
		b = bytes.Replace(b, []byte("split.count"), []byte("split.COUNT"), 1)
		f, err := gguf.Parse(path, b)
		if err != nil {
			t.Fatal(err)
		}
		want := gguf.Metadata{{"split.no", uint16(i)}, {"split.tensors.count", int32(len(infos))}, {"split.COUNT", uint16(len(paths))}}
		if a, ok := md.Get("general.alignment"); ok && i > 0 {
			want = append(gguf.Metadata{{"general.alignment", a}}, want...)
		} else if i == 0 {
			want = append(slices.Clone(md), want...)
		}
		if !reflect.DeepEqual(f.Metadata(), want) {
			t.Errorf("%s: metadata\n%v\nwant\n%v", path, f.Metadata(), want)
		}
		if len(f.Tensors()) != tensors[i] {
			t.Errorf("%s: %d tensors, want %d", path, len(f.Tensors()), tensors[i])
		}
	}
}

// TestSplitNames: as llama_split_path has them.
func TestSplitNames(t *testing.T) {
	infos, _ := sample()
	plan, err := gguf.NewPlan(nil, infos, 832)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"a/x.gguf": "a/x-00001-of-00002.gguf a/x-00002-of-00002.gguf",
		"x-v1.5":   "x-v1.5-00001-of-00002.gguf x-v1.5-00002-of-00002.gguf",
	} {
		if got := strings.Join(plan.Paths(path), " "); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// TestSplitAgain: a model that is read from parts is written with other parts, or in one file, which says nothing of parts.
func TestSplitAgain(t *testing.T) {
	dir := t.TempDir()
	infos, data := sample()
	f := open(t, writeSplit(t, filepath.Join(dir, "x.gguf"), everyValue(), 1)[0])
	// As a file that llama-gguf-split has merged.
	merged := append(slices.Clone(f.Metadata()), gguf.KV{Key: "split.count", Value: uint16(0)}, gguf.KV{Key: "split.no", Value: uint16(0)})
	for _, md := range []gguf.Metadata{f.Metadata(), merged} {
		again := writeSplit(t, filepath.Join(t.TempDir(), "y.gguf"), md, 832)
		if len(again) != 2 {
			t.Fatalf("%q", again)
		}
		checkFile(t, again[0], everyValue(), infos, data)
	}
	checkFile(t, writeSplit(t, filepath.Join(t.TempDir(), "y.gguf"), f.Metadata(), 0)[0], everyValue(), infos, data)
}

func TestSplitRefused(t *testing.T) {
	dir := t.TempDir()
	stem := filepath.Join(dir, "x")
	name := func(no string) string { return stem + "-0000" + no + "-of-00003.gguf" }
	restore := func() {
		paths := writeSplit(t, filepath.Join(t.TempDir(), "x.gguf"), everyValue(), 704)
		if len(paths) != 3 {
			t.Fatal(paths)
		}
		for i, p := range paths {
			if err := os.Rename(p, name(fmt.Sprint(i+1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(no, old, new string) {
		b, err := os.ReadFile(name(no))
		if err != nil || bytes.Count(b, []byte(old)) != 1 || len(old) != len(new) {
			t.Fatalf("%v, %d times", err, bytes.Count(b, []byte(old)))
		}
		os.WriteFile(name(no), bytes.Replace(b, []byte(old), []byte(new), 1), 0o644)
	}
	for _, c := range []struct {
		name string
		do   func()
		path string
		want []string // in the error
	}{
		{"the second part", func() {}, name("2"), []string{"is part 2 of 3; give the first, " + name("1")}},
		{"the last under another name", func() { os.Rename(name("3"), stem) }, stem,
			[]string{"x: is part 3 of 3; give the first, whose name should end in -00001-of-00003.gguf"}},
		{"the first under another name", func() { os.Rename(name("1"), stem) }, stem,
			[]string{"x: is part 1 of 3, but its name does not end in -00001-of-00003.gguf"}},
		{"one missing", func() { os.Remove(name("2")) }, name("1"),
			[]string{name("1"), "1 of its 3 parts are missing: x-00002-of-00003.gguf"}},
		{"two missing", func() { os.Remove(name("2")); os.Remove(name("3")) }, name("1"),
			[]string{"2 of its 3 parts are missing: x-00002-of-00003.gguf, x-00003-of-00003.gguf"}},
		{"exchanged", func() { os.Rename(name("2"), stem); os.Rename(name("3"), name("2")); os.Rename(stem, name("3")) }, name("1"),
			[]string{name("2"), "is part 3 of 3 of a model with 5 tensors; want part 2 of 3 of one with 5, as x-00001-of-00003.gguf says"}},
		{"another model's", func() {
			edit("2", "split.tensors.count\x05\x00\x00\x00\x05", "split.tensors.count\x05\x00\x00\x00\x06")
		}, name("1"),
			[]string{name("2"), "is part 2 of 3 of a model with 6 tensors; want part 2 of 3 of one with 5"}},
		{"not a part", func() { edit("2", "split.count", "split.COUNT") }, name("1"), []string{name("2"), "is not a part of a model, want part 2 of 3"}},
		{"truncated", func() { os.Truncate(name("3"), 300) }, name("1"), []string{name("3"), "past the end of the file"}},
		{"not a GGUF file", func() { os.WriteFile(name("3"), []byte("version https://git-lfs"), 0o644) }, name("1"),
			[]string{name("3"), "not a GGUF file"}},
		{"a folder", func() { os.Remove(name("3")); os.Mkdir(name("3"), 0o755) }, name("1"), []string{name("3"), "not a regular file"}},
	} {
		os.RemoveAll(name("3"))
		restore()
		c.do()
		_, err := gguf.Open(c.path)
		_, listErr := gguf.List(c.path)
		for _, want := range c.want {
			if expectError(t, err, want); listErr == nil || err == nil || listErr.Error() != err.Error() {
				t.Errorf("%s: %v, List: %v", c.name, err, listErr)
			}
		}
	}
}

// TestSplitWriterRefuses: parts of which one cannot be written, or is not complete, leave nothing.
func TestSplitWriterRefuses(t *testing.T) {
	infos, data := sample()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.gguf")
	w := create(t, path, nil, infos, gguf.Options{PartBytes: 704})
	if err := w.WriteTensor(infos[0].Name, data[infos[0].Name]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Open(); err == nil {
		t.Error("an incomplete file can be opened")
	}
	expectError(t, w.SetMeta("split.count", uint16(1)), "the layout depends on it")
	expectError(t, w.Close(), "4 of 5 tensors were not written completely")
	expectFiles(t, dir)
	last := w.Paths()[2]
	if err := os.WriteFile(last, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := gguf.Create(path, nil, infos, gguf.Options{PartBytes: 704}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v, want that %s exists", err, last)
	}
	expectFiles(t, dir, filepath.Base(last))
	many := make([]ggml.Info, 65536)
	for i := range many {
		many[i] = ggml.Info{Name: fmt.Sprint(i), Type: ggml.F32, Shape: []int{1}}
	}
	_, err := gguf.NewPlan(nil, many, 1)
	expectError(t, err, "65536 parts, 65535 are possible")
}

// TestSplitOpenedEarly: before the parts have their names they can be read.
func TestSplitOpenedEarly(t *testing.T) {
	infos, data := sample()
	w := create(t, filepath.Join(t.TempDir(), "x.gguf"), everyValue(), infos, gguf.Options{PartBytes: 704})
	for name, b := range data {
		if err := w.WriteTensor(name, b); err != nil {
			t.Fatal(err)
		}
	}
	f, err := w.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, b := range data {
		x, err := f.Tensor(name)
		if err != nil || !bytes.Equal(x.Data, b) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRows(t *testing.T) {
	infos, data := sample()
	f := open(t, writeSplit(t, filepath.Join(t.TempDir(), "x.gguf"), nil, 704)[0])
	for _, info := range infos {
		n := len(data[info.Name]) / info.Rows()
		for lo := range info.Rows() + 1 {
			for _, hi := range []int{lo, lo + 1, info.Rows()} {
				x, err := f.Rows(info.Name, lo, hi)
				if hi > info.Rows() {
					expectError(t, err, "rows ")
					continue
				}
				if err != nil || !bytes.Equal(x.Data, data[info.Name][lo*n:hi*n]) || !slices.Equal(x.Shape, []int{hi - lo, info.Cols()}) ||
					x.Type != info.Type || x.Name != info.Name {
					t.Fatalf("%s: rows %d to %d: %v, %v", info.Name, lo, hi, x, err)
				}
				f.Release(x)
			}
		}
		_, err := f.Rows(info.Name, -1, 0)
		expectError(t, err, "rows -1 to 0")
		_, err = f.Rows(info.Name, 1, 0)
		expectError(t, err, "rows 1 to 0")
	}
	_, err := f.Rows("absent", 0, 0)
	expectError(t, err, `no tensor "absent"`)
}
