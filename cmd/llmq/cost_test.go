package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestCost: --dry-run --machines measures this machine, says how long a run takes and what goes between machines, and leaves nothing.
func TestCost(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	args := append([]string{"quantize", dir, "-o", filepath.Join(out, "x.gguf"), "--dry-run"}, calibrate...)
	if v := mustJSON(t, planKeys, args...); v["cost"] != nil {
		t.Errorf("nobody asks, and the cost is %v", v["cost"])
	}
	cost := mustJSON(t, planKeys, append(args, "--machines", "3", "--link", "8Mbit")...)["cost"].(map[string]any)
	checkKeys(t, cost, "machines shards speeds phases transfers seconds efficiency left_out")
	speeds := cost["speeds"].(map[string]any)
	checkKeys(t, speeds, "products float32 weight column disk link")
	for _, what := range []string{"products", "float32", "disk"} {
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
	r := must(t, append(args, "--machines", "1")...)
	if !strings.Contains(r.stdout, "on this machine") || !strings.Contains(r.stdout, "GFLOP/s") || strings.Contains(r.stdout, "of each machine") {
		t.Errorf("--dry-run prints\n%s", r.stdout)
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
