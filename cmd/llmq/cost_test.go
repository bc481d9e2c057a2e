package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
)

// TestCost: --dry-run measures this machine, says how long a run takes, with --machines what goes between them, and leaves nothing.
func TestCost(t *testing.T) {
	measures(t)
	dir, out := folder(t, "llama"), t.TempDir()
	args := append([]string{"quantize", dir, "-o", filepath.Join(out, "x.gguf"), "--dry-run"}, calibrate...)
	one := mustJSON(t, planKeys, args...)["cost"].(map[string]any)
	if !(one["seconds"].(float64) > 0) || one["machines"] != 1. || one["efficiency"] != 1. || len(one["transfers"].([]any)) > 0 {
		t.Errorf("cost is %v", one)
	}
	cost := mustJSON(t, planKeys, append(args, "--machines", "3", "--link", "8Mbit")...)["cost"].(map[string]any)
	checkKeys(t, cost, "machines shards speeds phases transfers seconds fastest slowest efficiency left_out")
	speeds := cost["speeds"].(map[string]any)
	checkKeys(t, speeds, "products float32 beside weight column feature disk link")
	for _, what := range []string{"products", "float32", "feature", "disk"} {
		if !(speeds[what].(float64) > 0) {
			t.Errorf("%s are %v", what, speeds[what])
		}
	}
	if !(speeds["weight"].(float64)+speeds["column"].(float64) > 0) || speeds["link"] != 1e6 {
		t.Errorf("speeds are %v", speeds)
	}
	if e := cost["efficiency"].(float64); !(e > 0 && e < 1) || len(cost["transfers"].([]any)) != 5 {
		t.Errorf("cost is %v", cost)
	}
	if fast, slow := one["fastest"].(float64), one["slowest"].(float64); !(fast > 0 && fast <= one["seconds"].(float64) && one["seconds"].(float64) <= slow) {
		t.Errorf("%g to %g s, in the mean %v", fast, slow, one["seconds"])
	}
	measureSpeeds = func(*pipeline.Plan, context.Context, *model.Model, int, int, string, func(pipeline.Speeds) float64) (pipeline.Speeds, []float64, error) {
		return pipeline.Speeds{Products: 1e11, Float32: 1e11, Feature: 1e-9}, []float64{60, 7200}, nil
	}
	r := must(t, args...)
	if !strings.Contains(r.stdout, " to 2.0 h, as its speed changes") {
		t.Errorf("where its speed changes, --dry-run prints\n%s", r.stdout)
	}
	if !strings.Contains(r.stdout, "on this machine") || !strings.Contains(r.stdout, "GFLOP/s") || strings.Contains(r.stdout, "of each machine") {
		t.Errorf("--dry-run prints\n%s", r.stdout)
	}
	measures(t)
	nowhere := append([]string{"quantize", dir, "-o", "/dev/null/x.gguf", "--dry-run"}, calibrate...)
	if r := must(t, nowhere...); !strings.Contains(r.stdout, "not counted: the disk") {
		t.Errorf("without a folder for the output --dry-run prints\n%s", r.stdout)
	}
	if left := listing(t, out); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	for flags, want := range map[string]string{
		"--machines 0 --dry-run":                "--machines 0: need 1 or more",
		"--machines 2":                          "--machines is for --dry-run",
		"--link 10Gbit --dry-run":               "one machine has nothing to send",
		"--machines 2 --dry-run --link 10":      "not a speed such as",
		"--machines 2 --dry-run --link 0Gbit":   "not a speed such as",
		"--machines 2 --dry-run --link Gbit":    "not a speed such as",
		"--machines 2 --dry-run --link bit":     "not a speed such as",
		"--machines 2 --dry-run --link infGbit": "not a speed such as",
	} {
		args := append([]string{"quantize", dir, "-o", filepath.Join(out, "x.gguf")}, strings.Fields(flags)...)
		if r := llmq(t, append(args, calibrate...)...); r.code != exitUsage || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, %s", flags, r.code, r.stderr)
		}
	}
}

// measures has --dry-run measure this machine until the test ends.
func measures(t *testing.T) {
	of := measureSpeeds
	measureSpeeds = (*pipeline.Plan).MeasureSpeeds
	t.Cleanup(func() { measureSpeeds = of })
}

// TestCostOfRecipes: --dry-run measures whatever a run does.
func TestCostOfRecipes(t *testing.T) {
	measures(t)
	dir, out := folder(t, "llama"), t.TempDir()
	for _, flags := range []string{ // what has no columns as measured, no calibration text, or no weights that are rounded
		"--method rtn --type q4_0", "--method awq", "--method int8", "--recipe auto", "--type iq2_s", "--type f16", "--output-type q6_k",
		"--format compressed-tensors --bits 8", "--format gptq --bits 4 --group-size 32", "--method rtn --smooth 0.5",
	} {
		args := append([]string{"quantize", dir, "-o", filepath.Join(out, "x.gguf"), "--dry-run"}, strings.Fields(flags)...)
		if r := must(t, args...); !strings.Contains(r.stdout, "on this machine") {
			t.Errorf("%s: --dry-run prints\n%s", flags, r.stdout)
		}
	}
}
