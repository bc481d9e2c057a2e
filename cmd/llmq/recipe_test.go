package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestRecipe: what --print-recipe prints is all that a run depends on, and prints as itself again.
func TestRecipe(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	dir := folder(t, "llama-linear")
	out := filepath.Join(t.TempDir(), "out.gguf")
	run := func(args ...string) []byte {
		t.Helper()
		must(t, append([]string{"quantize", dir, "-o", out, "--force"}, args...)...)
		return read(t, out)
	}
	for _, flags := range []string{
		"--type q4_0",
		"--method awq --smooth 0.5 --bits 3 --seed 7 --tensor-type ffn_down=q8_0 --tensor-type attn_.*=iq4_nl --embedding-type q5_0",
		"--method awq+gptq --smooth auto --bias-correction --damping 0.02 --act-order=false --refine 0 --no-fallback --type q4_1 --int8-fallback 0.001 --max-bpw 9.5",
		"--max-bpw 6.5 --output-type q6_k",
		"--method int8",
		"--method rtn --type bf16",
		"--recipe auto --type q4_0 --max-ppl-increase 150%",
	} {
		args := append(strings.Fields(flags), calibrate...)
		printed := must(t, append([]string{"quantize", "--print-recipe"}, args...)...).stdout
		recipe := textFile(t, "recipe.yaml", printed)
		if again := must(t, "quantize", dir, "--print-recipe", "--recipe", recipe).stdout; again != printed {
			t.Errorf("%s: prints as\n%s\nand then as\n%s", flags, printed, again)
		}
		if !slices.Equal(run(args...), run("--recipe", recipe)) {
			t.Errorf("%s: the recipe gives another file:\n%s", flags, printed)
		}
	}
}

// TestRecipeOverridden: the command line has the last word.
func TestRecipeOverridden(t *testing.T) {
	recipe := textFile(t, "recipe.yaml", "method: rtn\ntype: q4_0\nsmooth: 0.25\ncalib: [a.txt, b.txt]\n"+
		"tensor-type: ffn_down=q6_k\nseed: 3\nmax-bpw: 0 # none\nmax-size: 0\nint8-fallback: 0\n")
	for _, c := range []struct{ flags, has, hasNot string }{
		{"", "method: rtn\ntype: Q4_0\nembedding-type: F16\noutput-type: F16\ntensor-type:\n  - ffn_down=Q6_K\n", ""},
		{"", "smooth: 0.25\n", ""},
		{"", "calib:\n  - a.txt\n  - b.txt\nseq-len:", ""},
		{"--method gptq --seed 4", "method: gptq\n", "seed: 3"},
		{"--bits 3", "type: Q3_K", "Q4_0"},
		{"--smooth off", "smooth: off\n", "0.25"},
		{"--calib c.txt --tensor-type x=q8_0", "calib:\n  - c.txt\n", "a.txt"},
		{"--tensor-type x=q8_0", "tensor-type:\n  - x=Q8_0\n", "ffn_down"},
		{"--max-bpw 5", "max-bpw: 5\n", "\ntype: "},
		{"--max-ppl-increase 1%", "max-ppl-increase: 0.01\n", ""},
		{"", "seed: 3\n", "max-ppl"},
		{"--max-bpw 5 --int8-fallback 0.1 --type q5_0", "type: Q5_0\n", "Q4_0"},
	} {
		args := append([]string{"quantize", "--print-recipe", "--recipe", recipe}, strings.Fields(c.flags)...)
		r := must(t, args...)
		if !strings.Contains(r.stdout, c.has) || c.hasNot != "" && strings.Contains(r.stdout, c.hasNot) {
			t.Errorf("%s:\n%s\nwant %q, not %q", c.flags, r.stdout, c.has, c.hasNot)
		}
	}
}

func TestRecipeRefused(t *testing.T) {
	dir := folder(t, "llama-linear")
	out := t.TempDir()
	for _, c := range []struct{ content, want string }{
		{"method: gptq\ncalibration: x\n", `r.yaml:2: unknown key "calibration"`},
		{"# ours\n\nmetod: gptq\n", `r.yaml:3: unknown key "metod"; did you mean method?`},
		{"output: x.gguf\n", `r.yaml:1: unknown key "output"`},
		{"type: q4_0\nmethod: gtpq\n", `r.yaml:2: method: unknown method "gtpq"; did you mean gptq?; known: rtn, gptq`},
		{"method: rtn\ntype: q4k\n", `r.yaml:2: type: ggml: no type is named "q4k"; supported are`},
		{"type: q4k\n", "did you mean Q4_K?"},
		{"tensor-type:\n  - ffn_down=q6_k\n  - attn_q=q7_k\n", `r.yaml:3: tensor-type: "attn_q=q7_k": ggml: no type is named "q7_k"`},
		{"smooth: 1.5\n", "r.yaml:1: smooth: alpha is \"1.5\"; want a number from 0 to 1"},
		{"smooth: -0.1\n", "alpha is \"-0.1\""},
		{"smooth: .nan\n", "alpha is \".nan\""},
		{"damping: much\n", `r.yaml:1: damping: "much" is not a number`},
		{"act-order: no\n", `r.yaml:1: act-order: "no" is not true or false`},
		{"refine: 1.5\n", `r.yaml:1: refine: "1.5" is not a whole number`},
		{"seed: -1\n", `r.yaml:1: seed: "-1" is not a whole number from 0`},
		{"seq-len: 99999999999999999999\n", `r.yaml:1: seq-len: "99999999999999999999" is not a whole number that fits`},
		{"method: rtn\nmethod: gptq\n", "r.yaml:2: method is in line 1 already"},
		{"method: [rtn]\n", "r.yaml:1: method: want one value"},
		{"method:\n", "r.yaml:1: method: want one value"},
		{"calib: {a: b}\n", "r.yaml:1: calib: want a value or a list of them"},
		{"calib:\n  - a\n  -\n", "r.yaml:3: calib: want a value"},
		{"- method\n", "r.yaml:1: want keys with values"},
		{"method: rtn\n---\nmethod: gptq\n", "r.yaml: more than one document"},
		{"# nothing\n", "r.yaml: no recipe in it"},
		{"method: \"rtn\n", "r.yaml: yaml: "},
		{"method: \xff\n", "r.yaml: not UTF-8"},
	} {
		recipe := textFile(t, "r.yaml", c.content)
		r := llmq(t, "quantize", dir, "-o", filepath.Join(out, "x.gguf"), "--recipe", recipe, "--calib", license)
		if r.code != exitFailure || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: exit %d, %q, want %q", c.content, r.code, r.stderr, c.want)
		}
	}
	// What the command line overrides has to be right all the same.
	recipe := textFile(t, "r.yaml", "type: q4k\n")
	if r := llmq(t, "quantize", dir, "-o", filepath.Join(out, "x.gguf"), "--recipe", recipe, "--type", "q4_0", "--calib", license); r.code != exitFailure {
		t.Errorf("an overridden type that does not exist: exit %d, %q", r.code, r.stderr)
	}
	if got := listing(t, out); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

// TestRecipeKeys: a new flag of quantize is either a recipe's or known not to change the output.
func TestRecipeKeys(t *testing.T) {
	var without []string
	cmd := (&app{}).quantizeCommand()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(recipeKeys, f.Name) {
			without = append(without, f.Name)
		}
	})
	want := []string{"ack-wait", "allow-requantize", "creds", "dry-run", "engine", "force", "held-out", "imatrix", "json", "link", "listen", "lora", "low-disk",
		"machines", "memory", "modelfile", "output", "print-recipe", "recipe", "split-max-size", "threads", "token", "work"}
	if !slices.Equal(without, want) {
		t.Errorf("flags that are no recipe's: %v, want %v", without, want)
	}
	for _, key := range recipeKeys {
		if cmd.Flags().Lookup(key) == nil {
			t.Errorf("no flag for the recipe's key %s", key)
		}
	}
}

// FuzzRecipe: whatever a recipe says is refused with its place, or is printed again as it is in force.
func FuzzRecipe(f *testing.F) {
	for _, recipe := range []string{
		"method: gptq\nbits: 4\n", "tensor-type:\n- ffn_down=q6_k\n- '(=q4_k'\n", "max-ppl-increase: 1%\nsmooth: auto\n", "a: &a [*a]\n",
		"calib: &c [x]\ntensor-type: *c\n", "seed: 18446744073709551616\ndamping: .nan\nmax-size: 1e99G\n", "{method: rtn, bits: 0}", "- x", "!!binary x: y",
	} {
		f.Add([]byte(recipe))
	}
	path := filepath.Join(f.TempDir(), "recipe.yaml")
	f.Fuzz(func(t *testing.T, recipe []byte) {
		if err := os.WriteFile(path, recipe, 0o600); err != nil {
			t.Fatal(err)
		}
		r := llmq(t, "quantize", "--print-recipe", "--recipe", path)
		if r.code == exitOK {
			if err := os.WriteFile(path, []byte(r.stdout), 0o600); err != nil {
				t.Fatal(err)
			}
			if again := llmq(t, "quantize", "--print-recipe", "--recipe", path); again.stdout != r.stdout {
				t.Errorf("%q, and from that %q, %q", r.stdout, again.stdout, again.stderr)
			}
		} else if r.stdout != "" || !strings.HasPrefix(r.stderr, "llmq: ") {
			t.Errorf("exit %d, %q, %q", r.code, r.stdout, r.stderr)
		}
	})
}
