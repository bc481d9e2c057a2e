package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

const validationKeys = "tokens ppl_original ppl_quantized increase increase_stderr kl_divergence limit met runs"

// TestRecipeAuto: one command, whose decisions and validation are reported.
func TestRecipeAuto(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes a small model many times")
	}
	out := filepath.Join(t.TempDir(), "out.gguf")
	args := append([]string{"quantize", folder(t, "llama-linear"), "-o", out, "--force", "--recipe", "auto", "--type", "q4_0",
		"--max-ppl-increase", "0.5"}, calibrate...)
	v := mustJSON(t, reportKeys, args...)
	decisions := v["decisions"].([]any)
	if len(decisions) != 4*2 {
		t.Errorf("%d decisions for 2 layers", len(decisions))
	}
	for _, d := range decisions {
		checkKeys(t, d.(map[string]any), "group input_absmax input_absmax_median candidates chosen")
		for _, c := range d.(map[string]any)["candidates"].([]any) {
			checkKeys(t, c.(map[string]any), "method error skipped")
		}
	}
	validation := v["validation"].(map[string]any)
	checkKeys(t, validation, validationKeys)
	if validation["limit"] != 0.5 || !(validation["increase"].(float64) <= 0.5) {
		t.Errorf("%v", validation)
	}
	// What the text has besides the 16 sequences asked for is held out.
	if tokens := int(validation["tokens"].(float64)); tokens%63 != 0 || tokens < 16*63 {
		t.Errorf("%d tokens were predicted, want many times 63", tokens)
	}
	f, err := gguf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{model.KLKey: float32(validation["kl_divergence"].(float64)),
		model.KLTokensKey: uint32(validation["tokens"].(float64)), model.KLTextKey: "held out of the calibration text"} {
		if got, _ := f.Metadata().Get(key); got != want {
			t.Errorf("%s: %v in the file, %v measured", key, got, want)
		}
	}
	f.Close()
	r := must(t, args...)
	for _, want := range []string{"perplexity", " held-out tokens; limit 50%: met", "decisions", "attn_in", "blk.1"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
}

// TestLimitExitCode: a limit that is not met has an exit code of its own, a report, and no file.
func TestLimitExitCode(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes a trained model several times")
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "out.gguf")
	// The text is of the kind that the model was trained on: what it loses costs.
	args := []string{"quantize", "../../testdata/gopher-4m", "-o", out, "--method", "rtn", "--bits", "2", "--calib", "auto_test.go",
		"--calib-tokens", "512", "--seq-len", "128", "--max-ppl-increase", "0.0001%"}
	for flag, wants := range map[string][]string{
		"--json":      {`"output":""`, `"limit":0.000001`, `"runs":[{"int8_linears":0`},
		"--threads=0": {"none: the limit is not met", "limit 0.0001%: NOT met"},
	} {
		r := llmq(t, append(args, flag)...)
		if r.code != exitLimit || !strings.Contains(r.stderr, "the limit is 0.0001%: nothing is written") {
			t.Errorf("exit %d, %q", r.code, r.stderr)
		}
		for _, want := range wants {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("no %q in %q", want, r.stdout)
			}
		}
	}
	if left := listing(t, dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestShares(t *testing.T) {
	for in, want := range map[string]shareValue{"1%": 0.01, "0.01": 0.01, " 2.5 %": 0.025, "0.0001%": 1e-6, "150%": 1.5} {
		var v shareValue
		if err := v.Set(in); err != nil || v < want*0.999999 || v > want*1.000001 {
			t.Errorf("%q: %v, %v; want %v", in, v, err, want)
		}
	}
}
