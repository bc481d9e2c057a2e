package pipeline

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

const gobOrder = "LLMQ_TEST_GOB_ORDER"

// TestGobOrder: values of the same units are the same bytes in processes that have done other units before.
func TestGobOrder(t *testing.T) {
	rows := func(b *bytes.Buffer) error {
		return oneRecord("blk.0.attn_q.weight", 3, &rows{data: []byte{1, 2, 3}})(b)
	}
	stats := func(b *bytes.Buffer) error {
		return saveStats(b, &quant.Stats{Tokens: 1, H: tensor.New(2, 2), Sum: make([]float64, 2)}, statsPart{parts: 1}, nil)
	}
	if order := os.Getenv(gobOrder); order != "" {
		var of [2]bytes.Buffer
		for _, i := range order {
			i -= '0'
			if err := []func(*bytes.Buffer) error{rows, stats}[i](&of[i]); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("values %x %x", of[0].Bytes(), of[1].Bytes())
		return
	}
	var said []string
	for _, order := range []string{"01", "10"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGobOrder$", "-test.v")
		cmd.Env = append(os.Environ(), gobOrder+"="+order)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, after, _ := strings.Cut(string(out), "values ")
		values, _, _ := strings.Cut(after, "\n")
		said = append(said, values)
	}
	if said[0] == "" || said[0] != said[1] {
		t.Errorf("%s, rows first\n%s, statistics first", said[0], said[1])
	}
}
