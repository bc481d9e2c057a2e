package checkpoint

import (
	"encoding/json"
	"testing"

	"github.com/llmq/llmq/formats/safetensors"
)

// BenchmarkRows decodes weights of GPTQ, stored in×out, a chunk of rows at a time.
func BenchmarkRows(b *testing.B) {
	parts, _ := gptqFolder(4, 1024, 1024, 128, false, false)
	c, err := Open(folder(b, parts), Config{Quantization: json.RawMessage(`{"quant_method":"gptq","bits":4}`)})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(4 << 20)
	for b.Loop() {
		for r := 0; r < 1024; r += 128 {
			if _, err := c.Rows("m.weight", r, r+128); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkFP8 decodes a weight of FP8 with a scale for each block of 128×128, as an expert is whenever it is used.
func BenchmarkFP8(b *testing.B) {
	const n = 1024
	c, err := Open(folder(b, []stored{
		{"m.weight", safetensors.F8E4M3, []int{n, n}, make([]byte, n*n)},
		{"m.weight_scale_inv", safetensors.F32, []int{n / 128, n / 128}, make([]byte, 4*n/128*n/128)},
	}), Config{Quantization: json.RawMessage(`{"quant_method":"fp8","weight_block_size":[128,128]}`)})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(4 * n * n)
	for b.Loop() {
		if _, err := c.Rows("m.weight", 0, n); err != nil {
			b.Fatal(err)
		}
	}
}
