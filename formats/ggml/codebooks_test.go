package ggml

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/llmq/llmq/quant"
)

// TestCodebooks compares the codebooks with the SHA-256 sums of the grids in ggml-common.h, as they lie in memory there.
func TestCodebooks(t *testing.T) {
	for _, c := range []struct {
		name  string
		book  *quant.Codebook
		words int
		unit  int8 // of our levels in theirs
		sum   string
	}{
		{"iq2xxs_grid", codebook2XXS, 256, 1, "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54"},
		{"iq2xs_grid", codebook2XS, 512, 1, "06e47aaca60b4dc1d9b5a3f34540437058a6b142b4d7a59d5ded769b4d1bf1de"},
		{"iq2s_grid", codebook2S, 1024, 1, "e1aa1473412b0552c2174c30ef22ab4073f6a181b85a17056e8249bd2932fd88"},
		{"iq3xxs_grid", codebook3XXS, 256, 1, "46e35f5a997efdee6c99ce57854c8a0d4f0ff8ca57e5e8a60c0793ea580acf5d"},
		{"iq3s_grid", codebook3S, 512, 1, "bd1af4945a1717c65610b0284e4628b9a1ba3b306fae3a06f6e5f597356e349f"},
		{"iq1s_grid", codebook1, 2048, 8, "07540ffc1aeaf6ad4d97e96b0fcc765aae39671d4ae4a27bbd0e796fde167c6a"},
	} {
		h := sha256.New()
		codes := make([]int8, c.book.Width)
		for i := range c.book.Len() {
			c.book.Put(codes, i, 0)
			if word, signs := c.book.Find(codes, 0); word != i || signs != 0 {
				t.Fatalf("%s: word %d is found as %d with signs %#x", c.name, i, word, signs)
			}
			for _, q := range codes {
				h.Write([]byte{byte(q / c.unit)})
			}
		}
		if got := hex.EncodeToString(h.Sum(nil)); c.book.Len() != c.words || got != c.sum {
			t.Errorf("%s: %d words with sum %s, want %d with %s", c.name, c.book.Len(), got, c.words, c.sum)
		}
	}
}
