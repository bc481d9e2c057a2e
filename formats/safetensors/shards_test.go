package safetensors

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestShards: tensors that are written in pieces and in any order are what a reader of the shards finds, which are as large as they
// may be.
func TestShards(t *testing.T) {
	infos := []Info{{Name: "a", DType: F32, Shape: []int{4, 5}}, {Name: "b", DType: BF16, Shape: []int{7}}, {Name: "c", DType: I8, Shape: []int{300}},
		{Name: "d", DType: I64, Shape: []int{2}}, {Name: "e", DType: F16, Shape: []int{}}}
	for _, test := range []struct {
		max    int64
		shards string
	}{
		{1 << 30, SingleFile},
		{100, "model-00001-of-00003.safetensors model-00002-of-00003.safetensors model-00003-of-00003.safetensors"}, // a b, c, d e
		{1, strings.TrimSuffix(strings.Repeat("x ", 5), " ")},
	} {
		l, err := NewLayout(infos, test.max)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(l.Shards(), " "); len(l.Shards()) != len(strings.Fields(test.shards)) || test.max > 1 && got != test.shards {
			t.Errorf("shards of %d bytes: %s", test.max, got)
		}
		dir := t.TempDir()
		w, err := l.Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		rng := rand.New(rand.NewPCG(5, 6))
		want := map[string][]byte{}
		for _, i := range rng.Perm(len(infos)) {
			data := make([]byte, infos[i].Bytes())
			for j := range data {
				data[j] = byte(rng.Uint32())
			}
			want[infos[i].Name] = data
			half := len(data) / 2
			for _, err := range []error{w.WriteAt(infos[i].Name, data[half:], int64(half)), w.WriteAt(infos[i].Name, data[:half], 0)} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(dir); err != nil {
			t.Fatal(err)
		}
		var size int64
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		if size != l.Size() {
			t.Errorf("%d bytes planned, %d written", l.Size(), size)
		}
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range want {
			if got, _, ok := c.Raw(name); !ok || !bytes.Equal(got, data) {
				t.Errorf("%s is another", name)
			}
		}
		c.Close()
	}
}

// TestShardsIncomplete: what is not there, too much or too little is an error, and leaves no shard.
func TestShardsIncomplete(t *testing.T) {
	infos := []Info{{Name: "a", DType: F32, Shape: []int{2}}, {Name: "b", DType: F32, Shape: []int{2}}}
	if _, err := NewLayout(slices.Concat(infos, infos), 8); err == nil {
		t.Error("a name twice")
	}
	l, err := NewLayout(infos, 8)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w, err := l.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.WriteAt("c", nil, 0), w.WriteAt("a", make([]byte, 9), 0), w.WriteAt("a", make([]byte, 4), 5),
		w.WriteAt("a", make([]byte, 1), -1)} {
		if err == nil {
			t.Error("written past a tensor's end, or to none")
		}
	}
	if err := w.WriteAt("a", make([]byte, 8), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(dir); err == nil || !strings.Contains(err.Error(), `tensor "b": 0 bytes of 8`) {
		t.Errorf("Close: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("%q left", left)
	}
}
