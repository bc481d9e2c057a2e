package checkpoint

import (
	"encoding/json"
	"testing"
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
