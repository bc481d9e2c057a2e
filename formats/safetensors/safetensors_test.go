package safetensors_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/shared"
)

func random(n int64) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

var sample = []safetensors.Info{
	{Name: "model.embed_tokens.weight", DType: safetensors.BF16, Shape: []int{300, 100}},
	{Name: "odd <&> \"name\" Ġ", DType: safetensors.F16, Shape: []int{3, 1, 5}},
	{Name: "scalar", DType: safetensors.F32},
	{Name: "norm", DType: safetensors.F32, Shape: []int{9}},
}

func open(t *testing.T, path string) *safetensors.Checkpoint {
	t.Helper()
	c, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// write stores the sample in pieces of the given size.
func write(t *testing.T, path string, infos []safetensors.Info, piece int) {
	t.Helper()
	w, err := safetensors.Create(path, infos, map[string]string{"format": "pt"}, safetensors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var all []byte
	for _, info := range infos {
		all = append(all, random(info.Bytes())...)
	}
	for p := range slices.Chunk(all, piece) {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, c *safetensors.Checkpoint, want []safetensors.Info, shard string) {
	t.Helper()
	for _, info := range want {
		info.Shard = shard
		data, got, err := c.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, info) {
			t.Errorf("got %v, want %v", got, info)
		}
		if !bytes.Equal(data, random(info.Bytes())) {
			t.Errorf("%s: data differs", info.Name)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, piece := range []int{1, 7, 4096, 1 << 20} {
		dir := t.TempDir()
		path := filepath.Join(dir, "model.safetensors")
		write(t, path, sample, piece)
		for _, arg := range []string{dir, path} {
			c := open(t, arg)
			check(t, c, sample, "model.safetensors")
			if names := c.Names(); len(names) != len(sample) || names[1] != sample[1].Name {
				t.Errorf("names %q", names)
			}
		}
	}
}

func TestSharded(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.safetensors"), sample[:1], 1<<20)
	// Hugging Face's cache keeps the files elsewhere, and links to them.
	blob := filepath.Join(t.TempDir(), "blob")
	write(t, blob, sample[1:], 1<<20)
	if err := os.Symlink(blob, filepath.Join(dir, "b.safetensors")); err != nil {
		t.Fatal(err)
	}
	places := map[string]string{}
	for i, info := range sample {
		places[info.Name] = map[bool]string{true: "a.safetensors", false: "b.safetensors"}[i < 1]
	}
	if err := safetensors.WriteIndex(dir, places, 1, safetensors.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{dir, filepath.Join(dir, safetensors.IndexFile)} {
		c := open(t, arg)
		check(t, c, sample[:1], "a.safetensors")
		check(t, c, sample[1:], "b.safetensors")
		if len(c.Names()) != len(sample) {
			t.Errorf("names %q", c.Names())
		}
	}
}

// TestTrainedModels opens the checkpoints that the project was developed with.
func TestTrainedModels(t *testing.T) {
	dir := shared.Path(t, "models")
	for name, want := range map[string]int{"gopher-4m": 39, "gopher-6m-qwen3": 68} {
		c := open(t, filepath.Join(dir, name))
		if len(c.Names()) != want {
			t.Errorf("%s: %d tensors", name, len(c.Names()))
		}
		if info, ok := c.Lookup("model.norm.weight"); !ok || !reflect.DeepEqual(info.Shape, []int{256}) {
			t.Errorf("%s: norm %v, %v", name, info, ok)
		}
	}
}
