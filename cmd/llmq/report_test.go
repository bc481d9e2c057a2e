package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	if testing.Short() {
		t.Skip("runs many commands")
	}
	dir := folder(t, "llama")
	out := t.TempDir()
	path := func(name string) string { return filepath.Join(out, name) }
	save := func(name string, args ...string) {
		if err := os.WriteFile(path(name), []byte(must(t, append(args, "--json")...).stdout), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page := func(args ...string) string {
		must(t, append([]string{"report", "-o", path("r.html"), "--force"}, args...)...)
		return string(read(t, path("r.html")))
	}
	save("q.json", append([]string{"quantize", dir, "-o", path("q.gguf"), "--type", "q4_0", "--smooth", "0.5"}, calibrate...)...)
	save("f16.json", "convert", dir, "-o", path("f16.gguf"))
	for _, m := range []string{"q", "f16"} {
		save(m+"-eval.json", "eval", path(m+".gguf"), "--base", dir, "--text", license, "--context", "64", "--chunks", "3")
	}
	must(t, append([]string{"profile", dir, "-o", path("p.json"), "--type", "q4_0", "--kl", "1", "--kl-tokens", "64"}, calibrate...)...)

	all := page(path("q.json"), path("f16.json"), path("q-eval.json"), path("f16-eval.json"), path("p.json"), path("q.gguf"))
	for _, part := range []string{"Perplexity and size on LICENSE", "KL divergence against size", "Error of each linear", "Type of each linear",
		"Ranges before and after smoothing", "blk.0.attn_in, weights", "Outlier features", "Profile of llama", "perplexity on LICENSE",
		"<dt>method</dt><dd>gptq</dd>"} {
		if !strings.Contains(all, part) {
			t.Errorf("no %q on the page", part)
		}
	}
	// One section for what are one file's report, evaluation and metadata.
	if n := strings.Count(all, ">q.gguf</h2>"); n != 1 {
		t.Errorf("%d sections about q.gguf", n)
	}
	// The file alone tells its errors too.
	heat := func(page string) string {
		_, rest, ok := strings.Cut(page, `<h3 id="run-1-errors">`)
		table, _, end := strings.Cut(rest, "</table>")
		if !ok || !end {
			t.Fatal("no errors on the page")
		}
		return table
	}
	if fromReport, fromFile := heat(page(path("q.json"))), heat(page(path("q.gguf"))); fromReport != fromFile {
		t.Errorf("errors from the report\n%s\nfrom the file\n%s", fromReport, fromFile)
	}
}

func TestReportRefuses(t *testing.T) {
	out := t.TempDir()
	html := filepath.Join(out, "r.html")
	foreign := textFile(t, "foreign.json", `{"a":1}`)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-o", html}, exitUsage, "no RUN.json or GGUF file given"},
		{[]string{foreign}, exitUsage, "no output given"},
		{[]string{foreign, "-o", html}, exitFailure, "foreign.json: not written by llmq"},
		{[]string{license, "-o", html}, exitFailure, "not written by llmq: neither a GGUF file nor a JSON object"},
		{[]string{foreign, "-o", foreign, "--force"}, exitFailure, "the output is an input"},
	} {
		r := llmq(t, append([]string{"report"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit %d, %q; want %d, %q", c.args, r.code, r.stderr, c.code, c.want)
		}
	}
	if got := listing(t, out); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if string(read(t, foreign)) != `{"a":1}` {
		t.Error("the input has changed")
	}
}
