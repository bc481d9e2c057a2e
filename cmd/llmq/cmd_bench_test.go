package main

import (
	"testing"

	"github.com/llmq/llmq/internal/testmodel"
)

func TestBench(t *testing.T) {
	if testing.Short() {
		t.Skip("takes times")
	}
	v := mustJSON(t, "machine results", "bench", "--type", "q4_k", "--shape", "256x256", "--tokens", "1,64")
	kernels := map[string]bool{}
	for _, r := range v["results"].([]any) {
		r := r.(map[string]any)
		kernels[r["kernel"].(string)] = true
		if r["rate"].(float64) <= 0 || r["seconds"].(float64) <= 0 {
			t.Errorf("%v", r)
		}
	}
	for _, want := range []string{"matmul", "matmul q8", "unpack", "encode", "syrk", "gptq, refine 0"} {
		if !kernels[want] {
			t.Errorf("no figure for %s", want)
		}
	}
	for _, args := range [][]string{
		{"--shape", "100x256"}, {"--shape", "256x-1"}, {"--tokens", "0"}, {"--type", "q9"}, {"--precision", "f64"},
	} {
		if r := llmq(t, append([]string{"bench"}, args...)...); r.code != exitUsage {
			t.Errorf("llmq bench %v: exit %d: %s", args, r.code, r.stderr)
		}
	}
}

func TestBenchModel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes times")
	}
	dir := t.TempDir()
	if err := testmodel.New("qwen3").WriteFolder(dir); err != nil {
		t.Fatal(err)
	}
	v := mustJSON(t, "tier tokens seconds tokens_per_second operations", "bench", dir, "--tokens", "16")
	timed := map[string]bool{}
	for _, op := range v["operations"].([]any) {
		timed[op.(map[string]any)["name"].(string)] = true
	}
	for _, want := range []string{"blk.1.ffn_down.weight", "after attn_in", "head"} {
		if !timed[want] {
			t.Errorf("no %q in %v", want, timed)
		}
	}
}
