package ggml

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"

	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/tensor"
)

// refs is ../shared/refs/ggml-blocks.safetensors: seven matrices of 32×256, and what llama-quantize made of them.
type refs struct {
	header map[string]struct {
		Offsets [2]int `json:"data_offsets"`
	}
	data []byte
}

const refRows, refCols = 32, 256

var refTensors = []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}

// openRefs returns nil where the shared folder is absent.
func openRefs(t testing.TB) *refs {
	path, ok := shared.Lookup("refs/ggml-blocks.safetensors")
	if !ok {
		t.Log("no ../shared beside this checkout: only what is in the repository is checked")
		return nil
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	r := &refs{data: file[8+n:]}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(file[8:8+n], &all); err != nil {
		t.Fatal(err)
	}
	delete(all, "__metadata__")
	rest, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(rest, &r.header); err != nil {
		t.Fatal(err)
	}
	return r
}

// bytes returns a tensor's data, nil if there is none of that name.
func (r *refs) bytes(name string) []byte {
	h, ok := r.header[name]
	if !ok {
		return nil
	}
	return r.data[h.Offsets[0]:h.Offsets[1]]
}

func (r *refs) floats(t testing.TB, name string) []float32 {
	b := r.bytes(name)
	if b == nil {
		t.Fatalf("refs: no tensor %q", name)
	}
	f := make([]float32, len(b)/4)
	tensor.DecodeF32(f, b)
	return f
}
