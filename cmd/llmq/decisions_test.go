package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/llmq/llmq/pipeline"
)

// TestPrintDecisions: layers of different kinds have different sites, each in its column.
func TestPrintDecisions(t *testing.T) {
	var out bytes.Buffer
	rep := &pipeline.Report{}
	for _, group := range []string{"blk.0.ssm_in", "blk.0.mlp_in", "blk.1.attn_in", "blk.1.mlp_in"} {
		rep.Decisions = append(rep.Decisions, pipeline.Decision{Group: group, Chosen: "gptq",
			Candidates: []pipeline.Candidate{{Method: "gptq", Error: 0.25}}})
	}
	if err := (&app{stdout: &out}).printDecisions(rep); err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Fields(line))
	}
	for i, want := range []string{"decisions ssm_in mlp_in attn_in", "blk.0 gptq 0.25 gptq 0.25 -", "blk.1 - gptq 0.25 gptq 0.25"} {
		if got := strings.Join(lines[i], " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
}
