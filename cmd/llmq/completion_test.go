package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/pipeline"
)

// TestCompletion: what shells are told, with the directive at its end: 0 for files, 4 for none, 16 for folders.
func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // in the answer, which ends with a directive
		ends string
	}{
		{[]string{"qu"}, "quantize\t", ":4"},
		{[]string{"quantize", ""}, "", ":0"},
		{[]string{"quantize", "x", "--method", ""}, strings.Join(pipeline.MethodNames(), "\n"), ":4"},
		{[]string{"quantize", "x", "--type", ""}, "q4_k\n", ":4"},
		{[]string{"quantize", "x", "--output-hessian", ""}, "on\n", ":4"},
		{[]string{"quantize", "x", "--mtp", ""}, "keep\n", ":4"},
		{[]string{"quantize", "x", "--tensor-type", "ffn_down=q"}, "ffn_down=q6_k\n", ":4"},
		{[]string{"quantize", "x", "--bits", ""}, "", ":4"},
		{[]string{"quantize", "x", "--calib", ""}, "", ":0"},
		{[]string{"quantize", "x", "--work", ""}, "", ":16"},
		{[]string{"eval", "x", "--activations", ""}, "llm.int8\n", ":4"},
		{[]string{"eval", "x", "--precision", ""}, "f32\n", ":4"},
		{[]string{"eval", "x", "--preset", ""}, presetGPTQ + "\n", ":4"},
		{[]string{"eval", "x", "--base", ""}, "", ":0"},
		{[]string{"bench", "--type", ""}, "q4_k\n", ":4"},
		{[]string{"bench", ""}, "", ":0"},
		{[]string{"inspect", ""}, "", ":0"},
		{[]string{"diff", "a", ""}, "", ":0"},
		{[]string{"status", ""}, "", ":16"},
		{[]string{"download", ""}, "", ":4"},
		{[]string{"version", ""}, "", ":4"},
	} {
		r := must(t, append([]string{"__complete"}, c.args...)...)
		if !strings.Contains(r.stdout, c.want) || !strings.HasSuffix(r.stdout, c.ends+"\n") || c.want == "" && r.stdout != c.ends+"\n" {
			t.Errorf("%q: %q; want %q, and %s at the end", c.args, r.stdout, c.want, c.ends)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := must(t, "completion", shell); !strings.Contains(r.stdout, "__complete") {
			t.Errorf("%s: %q", shell, r.stdout)
		}
	}
}

// TestChoices: what is offered for a flag is what it takes.
func TestChoices(t *testing.T) {
	root := (&app{nil, io.Discard, io.Discard}).rootCommand()
	offered := 0
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			visit(c)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			v := f.Value
			if one, ok := v.(*oneValue); ok {
				v = one.Value
			}
			if c, ok := v.(chooser); ok {
				for _, choice := range c.choices("x=") {
					offered++
					if err := v.Set(choice); err != nil {
						t.Errorf("%s --%s %s: %v", cmd.Name(), f.Name, choice, err)
					}
				}
			}
		})
	}
	visit(root)
	if offered < 5*len(ggml.Types) {
		t.Errorf("%d choices of all flags are too few", offered)
	}
	for _, name := range activationNames {
		r := llmq(t, "eval", folder(t, "llama"), "--text", license, "--activations", name, "--context", "8", "--chunks", "1")
		if strings.Contains(r.stderr, "unknown activations") {
			t.Errorf("--activations %s: %s", name, r.stderr)
		}
	}
}

func TestMan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	must(t, "man", dir)
	b, err := os.ReadFile(filepath.Join(dir, "llmq-quantize.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`.TH "LLMQ-QUANTIZE" "1"`, "CHECKPOINT", `\fB--output-hessian\fP`, "gptq"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("llmq-quantize.1 lacks %q", want)
		}
	}
	for _, cmd := range (&app{nil, io.Discard, io.Discard}).rootCommand().Commands() {
		if _, err := os.Stat(filepath.Join(dir, "llmq-"+cmd.Name()+".1")); (err == nil) != cmd.IsAvailableCommand() {
			t.Errorf("%s, hidden %v: %v", cmd.Name(), cmd.Hidden, err)
		}
	}
}
