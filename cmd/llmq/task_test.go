package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEvalTask(t *testing.T) {
	a, b := folder(t, "qwen3"), folder(t, "llama3-tied")
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	choices := write("choices.jsonl", `{"question":"the func","choices":["and","in the range"],"answer":"A"}`+"\n"+
		`{"question":"return the","choices":["string","thing","other"],"answer":2}`+"\n")
	words := write("words.jsonl", `{"text":"return the string"}`+"\n"+`{"text":"in the range of things"}`+"\n")
	swag := write("swag.txt", "the func\n1\nis here\nis there\nends\nreturns\n")
	const keys = "model bytes bits_per_weight base task kind examples accuracy seconds peak_rss_bytes"
	const measure = "value stderr"
	v := mustJSON(t, keys+" accuracy_norm accuracy_per_token", "eval", a, "--task", choices)
	checkKeys(t, v["accuracy"].(map[string]any), measure)
	v = mustJSON(t, keys+" perplexity", "eval", a, "--task", words, "--base", b)
	checkKeys(t, v["perplexity"].(map[string]any), measure+" base difference difference_stderr")
	if v = mustJSON(t, keys+" accuracy_norm accuracy_per_token", "eval", a, "--task", choices, "--examples", "1"); v["examples"] != 1.0 {
		t.Errorf("%v examples of 1", v["examples"])
	}
	r := must(t, "eval", a, "--task", swag, "--base", b)
	for _, part := range []string{"hellaswag, 1 examples", "accuracy per token", "% ± 0.00; base ", "difference "} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("no %q in %s", part, r.stdout)
		}
	}
	bad := write("bad.jsonl", `{"text":"return the string"}`+"\n{}\n")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--task " + bad, exitFailure, "bad.jsonl:2: no \"question\""},
		{"--task /none", exitFailure, "/none"},
		{"--task " + words + " --base /none", exitFailure, "/none"},
		{"--task " + words + " --text " + license, exitUsage, "--task and --text exclude each other"},
		{"--task " + words + " --activations f32", exitUsage, "--task and --activations exclude each other"},
		{"--task " + words + " --examples -1", exitUsage, "--examples -1"},
		{"--text " + license + " --examples 1", exitUsage, "--examples is for --task"},
		{"", exitUsage, "no --text FILE given, nor --task FILE"},
	} {
		if r := llmq(t, append([]string{"eval", a}, strings.Fields(c.args)...)...); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: exit %d, %q; want %d, %q", c.args, r.code, r.stderr, c.code, c.want)
		}
	}
}
