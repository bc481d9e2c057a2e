package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProfile(t *testing.T) {
	dir := folder(t, "llama3-tied")
	out := filepath.Join(t.TempDir(), "profile.json")
	args := append([]string{"profile", dir, "-o", out, "--type", "q4_0", "--kl", "2", "--kl-tokens", "128"}, calibrate...)
	r := must(t, args...)
	for _, part := range []string{"blk.2.ffn_down.weight", "Q4_0, rounded to nearest", "outlier features? ", "everything in " + out,
		"14 sequences of 64 tokens, LICENSE"} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("no %q in %s", part, r.stdout)
		}
	}
	read := func() (v map[string]any) {
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := read()
	checkKeys(t, v, "model layers type calibration inputs linears fallback checklist seconds")
	input := v["inputs"].([]any)[3].(map[string]any)
	checkKeys(t, input, "name layer min max mean_abs kurtosis histogram histogram_range feature_range outlier_features largest_features clip stability smoothing tokens")
	linear := v["linears"].([]any)[3].(map[string]any)
	checkKeys(t, linear, "name input type out in weights weight_error output_error kl_divergence")
	measured := 0
	for _, l := range v["linears"].([]any) {
		if l.(map[string]any)["kl_divergence"] != nil {
			measured++
		}
	}
	if measured != 2 {
		t.Errorf("%d linears have a KL divergence, want 2", measured)
	}
	if r := llmq(t, args...); r.code != exitFailure || !strings.Contains(r.stderr, "--force replaces it") {
		t.Errorf("over an existing file: exit %d, %q", r.code, r.stderr)
	}
	// With a text of its own nothing is taken out of the calibration text.
	r = must(t, append(args, "--force", "--held-out", license)...)
	if !strings.Contains(r.stdout, "16 sequences of 64 tokens") || !strings.Contains(r.stderr, "are in the calibration text too") {
		t.Errorf("stdout %s\nstderr %s", r.stdout, r.stderr)
	}
}

func TestProfileUsage(t *testing.T) {
	dir := folder(t, "qwen2")
	out := filepath.Join(t.TempDir(), "p.json")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--calib", license}, exitUsage, "no output given"},
		{[]string{"-o", out}, exitUsage, "no calibration text given"},
		{[]string{"-o", out, "--calib", license, "--kl", "-2"}, exitUsage, "--kl -2"},
		{[]string{"-o", out, "--calib", license, "--kl-tokens", "3"}, exitUsage, "--kl-tokens 3"},
		{[]string{"-o", out, "--calib", license, "--fallback-error", "-1"}, exitUsage, "--fallback-error -1"},
		{[]string{"-o", out, "--calib", license, "--calib-tokens", "0"}, exitUsage, "--calib-tokens 0"},
		{[]string{"-o", out, "--calib", license, "--calib-tokens", "64", "--seq-len", "64"}, exitUsage, "one sequence"},
		{[]string{"-o", out, "--calib", license, "--calib-tokens", "128", "--seq-len", "64", "--held-out", "/none"}, exitFailure, "/none"},
		{[]string{"-o", out, "--calib", "/none"}, exitFailure, "/none"},
		{[]string{"-o", filepath.Join(dir, "model-00001-of-00002.safetensors"), "--force", "--calib", license}, exitFailure, "part of the input"},
	} {
		if r := llmq(t, append([]string{"profile", dir}, c.args...)...); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit %d, %q; want %d, %q", c.args, r.code, r.stderr, c.code, c.want)
		}
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("a profile is left behind")
	}
}
