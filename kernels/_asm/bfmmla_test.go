package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestBFMMLA counts the instructions of the generated loops, in the assembly that is there: those of a panel's height at most 1.2 × its
// products.
func TestBFMMLA(t *testing.T) {
	assembly, _, counts := bfmmla()
	file, err := os.ReadFile("../internal/tile/bfmmla_arm64.s")
	if err != nil || !strings.HasSuffix(string(file), assembly) {
		t.Errorf("tile/bfmmla_arm64.s is not what is generated (%v)", err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range bfmmlaTable() {
		c := counts[i]
		_, body, _ := strings.Cut(string(file), fmt.Sprintf("·gemmBFMMLAx%d(SB)", c.rows))
		_, body, _ = strings.Cut(body, "\nfour:\n")
		body, _, _ = strings.Cut(body, "\n\n")
		lines := strings.Split(body, "\n")
		products := 0
		for _, line := range lines {
			if strings.Contains(line, "bfmmla") {
				products++
			}
		}
		if len(lines) != c.instructions || products != c.products || c.rows == bfmmlaRows[0] && c.ratio() > 1.2 {
			t.Errorf("%d rows: %d instructions, counted %d, for %d products, counted %d", c.rows, len(lines), c.instructions, products, c.products)
		}
		if !strings.Contains(string(readme), row+"\n") {
			t.Errorf("kernels/README.md lacks the row\n%s", row)
		}
	}
}
