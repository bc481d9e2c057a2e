package model_test

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/tensor"
)

// gopher reads a BF16 checkpoint into the frame of a test model, which knows Hugging Face's names and order of rows on
// its own.
func gopher(t *testing.T, dir string) *testmodel.Model {
	t.Helper()
	tm := &testmodel.Model{Name: filepath.Base(dir)}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &tm.Config); err != nil {
		t.Fatal(err)
	}
	ck, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer ck.Close()
	for _, name := range ck.Names() {
		data, info, err := ck.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		w := testmodel.Tensor{Name: name, Shape: info.Shape, Data: make([]float32, len(data)/2)}
		tensor.DecodeBF16(w.Data, data)
		tm.Tensors = append(tm.Tensors, w)
	}
	return tm
}

// TestGopher compares the built-in model's forward pass with the float64 one.
func TestGopher(t *testing.T) {
	tm := gopher(t, "../testdata/gopher-4m")
	tokens := tm.Tokens(24, 1)
	got, want := forward(t, open(t, tm.Source()), tokens, len(tokens)), tm.Forward(tokens)
	compare(t, "embeddings", got.embed, 0, want.Embed, 0)
	for i := range want.Hidden {
		compare(t, "hidden state", got.hidden[i], 0, want.Hidden[i], 1e-4)
	}
	compare(t, "logits", got.logits, 0, want.Logits, 1e-4)
}

// TestGopherReference compares it with what PyTorch computed.
func TestGopherReference(t *testing.T) {
	path := shared.Path(t, "refs/logits-gopher-4m.safetensors")
	m := open(t, gopher(t, "../testdata/gopher-4m").Source())
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Parsed here, for the token ids are of a type that checkpoints do not have.
	n := binary.LittleEndian.Uint64(file)
	var header map[string]struct {
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	data := func(name string) []byte { return file[8+n:][header[name].Offsets[0]:header[name].Offsets[1]] }
	// read returns a reference of sequences×positions×cols values as one row per position.
	read := func(name string, cols int) [][]float64 {
		v := make([]float32, len(data(name))/4)
		tensor.DecodeF32(v, data(name))
		rows := make([][]float64, len(v)/cols)
		for i, x := range v {
			rows[i/cols] = append(rows[i/cols], float64(x))
		}
		return rows
	}
	tokens := make([]int32, len(data("tokens"))/4)
	for i := range tokens {
		tokens[i] = int32(binary.LittleEndian.Uint32(data("tokens")[4*i:]))
	}
	got := forward(t, m, tokens, header["tokens"].Shape[1])
	const limit = 1e-3
	compare(t, "embeddings", got.embed, 0, read("embed", m.Dim), 0)
	for i, h := range got.hidden {
		compare(t, "hidden state", h, 0, read("hidden."+string(rune('0'+i)), m.Dim), limit)
	}
	compare(t, "logits", got.logits, 0, read("logits", m.Vocab), limit)
}
