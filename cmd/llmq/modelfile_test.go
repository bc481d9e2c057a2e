package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/internal/testmodel"
)

func TestModelfile(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "model")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := testmodel.New("qwen2").WriteFolder(folder); err != nil {
		t.Fatal(err)
	}
	generation := `{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}`
	if err := os.WriteFile(filepath.Join(folder, "generation_config.json"), []byte(generation), 0o644); err != nil {
		t.Fatal(err)
	}
	out, file := filepath.Join(dir, "my model.gguf"), filepath.Join(dir, "sub", "Modelfile")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := llmq(t, "convert", folder, "-o", out, "--modelfile", file); r.code != exitOK {
		t.Fatal(r.stderr)
	}
	want := "FROM ./../my model.gguf\nPARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER top_p 0.95\nPARAMETER repeat_penalty 1.05\n"
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Skip(err) // a system without links
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--modelfile", file, "-o", filepath.Join(dir, "b.gguf")}, "exists"},
		{[]string{"--modelfile", filepath.Join(dir, "b.gguf"), "-o", filepath.Join(dir, "b.gguf")}, "is the output too"},
		{[]string{"--modelfile", dir + "/./sub/../b.gguf", "-o", filepath.Join(dir, "b.gguf"), "--force"}, "is the output too"},
		{[]string{"--modelfile", filepath.Join(dir, "link", "b.gguf"), "-o", filepath.Join(dir, "b.gguf"), "--force"}, "is the output too"},
		{[]string{"--modelfile", filepath.Join(dir, "M"), "-o", filepath.Join(dir, "b.gguf"), "--split-max-size", "1M"}, "one file"},
	} {
		if r := llmq(t, append([]string{"convert", folder}, c.args...)...); r.code == exitOK || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: %d %s, want %q", c.args, r.code, r.stderr, c.want)
		}
		if _, err := os.Stat(filepath.Join(dir, "b.gguf")); err == nil {
			t.Errorf("%v: wrote the output", c.args)
		}
	}
}
