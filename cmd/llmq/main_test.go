package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
)

const license = "../../LICENSE" // a text

// result is what a command line did.
type result struct {
	code           int
	stdout, stderr string
}

// llmq runs a command line in this process.
func llmq(t *testing.T, args ...string) result {
	t.Helper()
	return llmqWith(t, t.Context(), "", nil, args...)
}

func llmqWith(t *testing.T, ctx context.Context, stdin string, stderr io.Writer, args ...string) result {
	t.Helper()
	threads := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(threads) // --threads changes it
	var out, err bytes.Buffer
	w := io.Writer(&err)
	if stderr != nil {
		w = io.MultiWriter(&err, stderr)
	}
	a := &app{strings.NewReader(stdin), &out, w}
	code := a.run(ctx, args)
	return result{code, out.String(), err.String()}
}

// must runs a command line that has to succeed.
func must(t *testing.T, args ...string) result {
	t.Helper()
	r := llmq(t, args...)
	if r.code != exitOK {
		t.Fatalf("llmq %s: exit %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// mustJSON runs a command line that has to print one object and nothing else, and checks the object's keys.
func mustJSON(t *testing.T, keys string, args ...string) map[string]any {
	t.Helper()
	r := must(t, append(args, "--json")...)
	dec := json.NewDecoder(strings.NewReader(r.stdout))
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("llmq %s: %v in %q", strings.Join(args, " "), err, r.stdout)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Errorf("llmq %s: more than one object on stdout", strings.Join(args, " "))
	}
	checkKeys(t, v, keys)
	return v
}

func checkKeys(t *testing.T, v map[string]any, keys string) {
	t.Helper()
	var got []string
	for k := range v {
		got = append(got, k)
	}
	want := strings.Fields(keys)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("keys %v, want %v", got, want)
	}
}

// folder writes a test model's checkpoint.
func folder(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := testmodel.New(name).WriteFolder(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// textFile writes a text.
func textFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTierName: a misspelt LLMQ_CPU does not leave the fastest instructions in use without a word.
func TestTierName(t *testing.T) {
	for value, code := range map[string]int{"AVX2": exitUsage, "avx2": exitOK, "": exitOK} {
		t.Setenv(kernels.TierEnv, value)
		r := llmq(t, "version")
		if r.code != code || code != exitOK && !strings.Contains(r.stderr, `LLMQ_CPU: unknown tier "AVX2"; there are purego, `) {
			t.Errorf("LLMQ_CPU=%s: exit %d, %q", value, r.code, r.stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := folder(t, "llama")
	for _, c := range []struct{ args, stderr string }{
		{"evl", `unknown command "evl"; did you mean eval?`},
		{"frobnicate", "unknown command \"frobnicate\"\n"},
		{"help frobnicate", "unknown command \"frobnicate\": want one of bench, "},
		{"completion csh", "unknown shell \"csh\": want one of bash, fish, powershell, zsh"},
		{"eval", "no MODEL given"},
		{"eval MODEL", "no --text FILE given"},
		{"eval MODEL x", `unexpected argument "x"`},
		{"eval MODEL --txt x", "unknown flag --txt; did you mean --text?"},
		{"convert MODEL -o x.gguf --type=", "no type given"},
		{"convert MODEL -o x.gguf --output y.gguf", `invalid argument "y.gguf" for "-o, --output" flag: it is given twice, first as "x.gguf"`},
		{"convert MODEL -o x.gguf --lora a --lora b", `"b" for "--lora" flag: it is given twice`},
		{"eval MODEL --text a --base b --base c", `"c" for "--base" flag: it is given twice`},
		{"eval MODEL --text a --text b --work w", "--work is for one --text, not 2"},
		{"eval MODEL --text a --text a --base b --base c", `"c" for "--base" flag: it is given twice`},
		{"quantize MODEL -o x --calib a --calib b --held-out a --held-out b", `"b" for "--held-out" flag: it is given twice`},
		{"eval MODEL -x", "unknown shorthand flag: 'x'"},
		{"eval MODEL --text x --contxt=5", "unknown flag --contxt; did you mean --context?"},
		{"eval MODEL --text x --context five", `invalid argument "five" for "--context"`},
		{"eval MODEL --text x --context -1", "--context"},
		{"eval MODEL --text x --preset paper", `unknown preset "paper"; known: gptq-2048`},
		{"eval MODEL --text x --preset gptq-2048 --context 4", "give no --context"},
		{"eval MODEL --text x --threads -1", "--threads -1"},
		{"eval MODEL --text x --memory lots", `"lots" is not a size such as`},
		{"inspect", "no FILE|FOLDER given"},
		{"tokenize MODEL", "no --text FILE given"},
		{"convert MODEL", "no output given: -o FILE"},
		{"convert MODEL -o x.gguf --type q9_k", `no type is named "q9_k"; supported are F32, F16`},
		{"quantize MODEL -o x.gguf", "gptq needs calibration text: give some with --calib FILE, or use --method rtn"},
		{"quantize MODEL -o x.gguf --method awg", `unknown method "awg"; did you mean awq?; known: rtn, gptq, awq, awq+gptq, int8, auto`},
		{"quantize MODEL -o x.gguf --method awq", "awq needs calibration text: give some with --calib FILE, or use --method rtn"},
		{"quantize MODEL -o x.gguf --method rtn --smooth auto", "smoothing needs calibration text: give some with --calib FILE"},
		{"quantize MODEL -o x.gguf --method rtn --bias-correction", "bias correction needs calibration text"},
		{"quantize MODEL -o x.gguf --smooth 1.5 --calib x", `invalid argument "1.5" for "--smooth" flag: alpha is "`},
		{"quantize MODEL -o x.gguf --smooth -0.1 --calib x", `invalid argument "-0.1" for "--smooth" flag: alpha is "`},
		{"quantize MODEL -o x.gguf --smooth NaN --calib x", `invalid argument "NaN" for "--smooth" flag: alpha is "`},
		{"quantize MODEL -o x.gguf --smooth= --calib x", `invalid argument "" for "--smooth" flag: alpha is "`},
		{"quantize MODEL -o x.gguf --recipe auto", "the perplexity is measured on held-out calibration text: give some with --calib FILE"},
		{"quantize MODEL -o x.gguf --recipe auto --method rtn --calib x", "--recipe auto chooses the methods: give no --method"},
		{"quantize MODEL -o x.gguf --recipe auto --smooth 0.5 --calib x", "smoothing is one of the things that auto decides on"},
		{"quantize MODEL -o x.gguf --method rtn --max-ppl-increase 1%", "held-out calibration text: give some with --calib FILE"},
		{"quantize MODEL -o x.gguf --max-ppl-increase 1 --calib x", `"--max-ppl-increase" flag: that is 100%; for 1% write 1%`},
		{"quantize MODEL -o x.gguf --max-ppl-increase 0% --calib x", "want a share above 0, such as 1% or 0.01"},
		{"quantize MODEL -o x.gguf --max-ppl-increase -1% --calib x", "want a share above 0, such as 1% or 0.01"},
		{"quantize MODEL -o x.gguf --max-ppl-increase NaN --calib x", "want a share above 0, such as 1% or 0.01"},
		{"quantize MODEL -o x.gguf --max-ppl-increase lots --calib x", "want a share above 0, such as 1% or 0.01"},
		{"quantize MODEL -o x.gguf --method rtn --bits 0", "--bits 0: need more than 0"},
		{"quantize MODEL -o x.gguf --method rtn --type q4_0 --bits 0", "--bits 0: need more than 0"},
		{"quantize MODEL -o x.gguf --method rtn --bits 1", "--bits 1: want 2, 3"},
		{"quantize MODEL -o x.gguf --calib x --max-size 0", "--max-size 0: need more than 0"},
		{"quantize MODEL -o x.gguf --calib x --max-size 0GB", "--max-size 0: need more than 0"},
		{"quantize MODEL -o x.gguf --calib x --max-size 0.5", "is not a size"},
		{"quantize MODEL -o x.gguf --calib x --max-bpw 0", "--max-bpw 0: need more than 0"},
		{"quantize MODEL -o x.gguf --calib x --max-bpw -0", "--max-bpw 0: need more than 0"},
		{"quantize MODEL -o x.gguf --calib x --max-bpw Inf", "--max-bpw +Inf: need more than 0, and finite"},
		{"quantize MODEL -o x.gguf --calib x --int8-fallback 0", "--int8-fallback 0: need more than 0"},
		{"quantize MODEL -o x.gguf --calib x --int8-fallback Inf", "--int8-fallback +Inf: need more than 0, and finite"},
		{"eval MODEL --text x --base=", "--base is empty"},
		{"eval MODEL --text=", "--text is empty"},
		{"bench --type=", "--type is empty"},
		{"bench --shape 131072x131072 --tokens 1", "--shape 131072x131072 with --tokens 1: more than 1073741824 values"},
		{"bench --shape 131072x256 --tokens 1,65536", "--shape 131072x256 with --tokens 65536: more than 1073741824 values"},
		{"quantize MODEL -o x.gguf --calib x --held-out=", "--held-out is empty"},
		{"quantize MODEL -o x.gguf --method rtn --held-out x", "--held-out is compared to calibration text"},
		{"eval MODEL --text x --threads 1025", "--threads 1025: need 1 to 1024, or 0 for all"},
		{"eval MODEL --text x --context 0", "--context 0: need more than 0"},
		{"profile MODEL --calib x -o x.json --fallback-error 0", "--fallback-error 0: need more than 0"},
		{"quantize MODEL -o x.gguf --method rtn --bits 7", "--bits 7: want 2, 3, 4, 5, 6 or 8, or about the bits per weight of a type: 1.562, 1.75"},
		{"quantize MODEL -o x.gguf --method rtn --bits 2.9", "--bits 2.9: want 2, 3"},
		{"quantize MODEL -o x.gguf --method rtn --bits 2.5 --type q2_k", "--bits 2.5 contradicts --type Q2_K, which has 2"},
		{"quantize MODEL -o x.gguf --method rtn --bits 3 --type q4_k", "--bits 3 contradicts --type Q4_K, which has 4"},
		{"quantize MODEL -o x.gguf --method rtn --damping 0", "--damping 0"},
		{"quantize MODEL -o x.gguf --method rtn --damping NaN", "--damping NaN"},
		{"quantize MODEL -o x.gguf --method rtn --refine -1", "--refine -1"},
		{"quantize MODEL -o x.gguf --method rtn --seq-len 1", "--seq-len 1"},
		{"quantize MODEL -o x.gguf --method rtn --calib-tokens 0", "--calib-tokens 0"},
		{"quantize MODEL -o x.gguf --method rtn --tensor-type q4_k", "want REGEX=TYPE"},
		{"quantize MODEL -o x.gguf --method rtn --tensor-type (=q4_k", "missing closing )"},
	} {
		r := llmq(t, strings.Fields(strings.ReplaceAll(c.args, "MODEL", dir))...)
		if r.code != exitUsage || !strings.Contains(r.stderr, c.stderr) || r.stdout != "" {
			t.Errorf("llmq %s: exit %d, stdout %q, stderr %q; want %q", c.args, r.code, r.stdout, r.stderr, c.stderr)
		}
		if lines := strings.Count(r.stderr, "\n"); lines != 2 || !strings.Contains(r.stderr, "--help'.\n") {
			t.Errorf("llmq %s: %q, want the message and where help is", c.args, r.stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, c := range []struct{ args, stdout string }{
		{"", "quantize"},
		{"--help", "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a limit not met, 130 interrupted."},
		{"quantize --help", "llmq quantize Qwen3-8B -o qwen3-8b-q4_k.gguf --method gptq --bits 4 --calib wiki.train.txt"},
		{"eval --help", "--preset"},
		{"version", "llmq "},
	} {
		if r := must(t, strings.Fields(c.args)...); !strings.Contains(r.stdout, c.stdout) || r.stderr != "" {
			t.Errorf("llmq %s: stdout %q, stderr %q; want %q", c.args, r.stdout, r.stderr, c.stdout)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"calib", "calib", 0}, {"clib", "calib", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestByteSizes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want byteSize
	}{{"0", 0}, {"4096", 4096}, {"1K", 1 << 10}, {"1.5MiB", 3 << 19}, {"2 GB", 2e9}, {"1Ti", 1 << 40}, {"7B", 7},
		{"4.2GB", 4200000000}, {"4.2GiB", 4509715661}, {"4.2G", 4509715661}, {"4.2gb", 4200000000}, {"800k", 800 << 10}, {"800K", 800 << 10},
		{"800kb", 800000}, {"800 KB", 800000}, {"800KiB", 800 << 10}, {"1e3", 1000}, {"1E", 1 << 60}, {" 5 ", 5}} {
		var b byteSize
		if err := b.Set(c.in); err != nil || b != c.want {
			t.Errorf("%q: %d, %v; want %d", c.in, b, err, c.want)
		}
	}
	for _, in := range []string{"", "B", "GiB", "-1", "1e30", "NaN", "Inf", "1GiBs", "1KK", "4096i", "7iB", "0.4", "9E", "1 000", "0x10", "K"} {
		var b byteSize
		if err := b.Set(in); err == nil {
			t.Errorf("%q: %d, want an error", in, b)
		}
	}
	for _, c := range []struct {
		n    int64
		want string
	}{{0, "0 bytes"}, {1023, "1023 bytes"}, {1024, "1.00 KiB"}, {10 << 20, "10.0 MiB"}, {500 << 30, "500 GiB"}, {5 << 40, "5.00 TiB"}} {
		if got := formatBytes(c.n); got != c.want {
			t.Errorf("%d: %q, want %q", c.n, got, c.want)
		}
	}
}
