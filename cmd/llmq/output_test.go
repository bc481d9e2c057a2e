package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
)

const (
	reportKeys = "output parts bytes bits_per_weight seconds peak_rss_bytes tensors int8_fallbacks foldings ranges no_bias assignment decisions validation output_hessian"
	tensorKeys = "name type bytes relative_error weight_error expected_error damping fallback requantized_from lossless"
)

// calibrate are flags of a small calibration.
var calibrate = []string{"--calib", license, "--calib-tokens", "1024", "--seq-len", "64"}

func tensorsOf(t *testing.T, v map[string]any) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for _, e := range v["tensors"].([]any) {
		m := e.(map[string]any)
		out[m["name"].(string)] = m
	}
	return out
}

// listing is everything in a folder with its size.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) { // a temporary file of a process that is at work, which has no name for long
			return nil
		}
		if err != nil {
			return err
		}
		out = append(out, fmt.Sprint(path, info.Mode(), info.Size()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestConvert(t *testing.T) {
	dir := folder(t, "llama")
	out := t.TempDir()
	f16 := filepath.Join(out, "f16.gguf")
	v := mustJSON(t, reportKeys, "convert", dir, "-o", f16)
	info, err := os.Stat(f16)
	if err != nil || v["bytes"] != float64(info.Size()) || v["output"] != f16 {
		t.Errorf("reported %v bytes of %v, the file: %v %v", v["bytes"], v["output"], info, err)
	}
	for name, tensor := range tensorsOf(t, v) {
		checkKeys(t, tensor, tensorKeys)
		want := "F16"
		if strings.Contains(name, "norm") {
			want = "F32"
		}
		if tensor["type"] != want {
			t.Errorf("%s is %v, want %s", name, tensor["type"], want)
		}
	}
	// A GGUF file is a checkpoint too, and the same one.
	again := filepath.Join(out, "again.gguf")
	must(t, "convert", f16, "-o", again, "--type", "bf16", "--embedding-type", "f16", "--output-type", "f16",
		"--tensor-type", ".=f16")
	if !slices.Equal(read(t, f16), read(t, again)) {
		t.Error("a file converted to its own types differs from itself")
	}
	// Already quantized.
	q8 := filepath.Join(out, "q8.gguf")
	must(t, "convert", f16, "-o", q8, "--type", "q8_0")
	r := llmq(t, "convert", q8, "-o", filepath.Join(out, "f32.gguf"), "--type", "f32")
	if r.code != exitFailure || !strings.Contains(r.stderr, "Q8_0, already quantized") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQuantize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.gguf")
	args := append([]string{"quantize", folder(t, "llama"), "-o", path, "--bits", "4"}, calibrate...)
	tensors := tensorsOf(t, mustJSON(t, reportKeys, args...))
	q := tensors["blk.0.attn_q.weight"]
	checkKeys(t, q, tensorKeys)
	if e := q["relative_error"].(float64); q["type"] != "Q4_K" || !(e > 0 && e < 0.05) || q["damping"].(float64) < 0.01 {
		t.Errorf("attn_q: %v", q)
	}
	if e := tensors["token_embd.weight"]; e["type"] != "F16" || e["damping"] != 0.0 {
		t.Errorf("token_embd: %v", e)
	}
}

// TestFoldings: the report names every group that a transform left alone, and every linear whose bias stays.
func TestFoldings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.gguf")
	args := append([]string{"quantize", folder(t, "qwen2-yarn"), "-o", path, "--method", "awq", "--type", "q4_0",
		"--bias-correction", "--tensor-type", "ffn_down=f16"}, calibrate...)
	r := must(t, args...)
	for _, want := range []string{"groups scaled", "blk.0.mlp_out", "not scaled: none of its linears is quantized",
		"blk.0.ffn_up.weight", "bias not corrected"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	v := mustJSON(t, reportKeys, append(args, "--force")...)
	for _, f := range v["foldings"].([]any) {
		checkKeys(t, f.(map[string]any), "transform group into alpha beta error_before error_after skipped")
	}
	if v["no_bias"].([]any)[0] != "blk.0.attn_output.weight" {
		t.Errorf("without corrected biases: %v", v["no_bias"])
	}
}

// TestQuantizeOptions: every option that is to change the file does, and those that are not to do not.
func TestQuantizeOptions(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes a small model many times")
	}
	dir := folder(t, "llama-linear")
	out := t.TempDir()
	run := func(flags string) []byte {
		path := filepath.Join(out, "out.gguf")
		args := append([]string{"quantize", dir, "-o", path, "--force", "--type", "q4_0"}, calibrate...)
		must(t, append(args, strings.Fields(flags)...)...)
		return read(t, path)
	}
	plain := run("")
	for _, flags := range []string{"--refine 0", "--act-order=false", "--damping 0.1", "--seed 1", "--calib-tokens 512",
		"--seq-len 32", "--method rtn", "--type q4_1", "--tensor-type ffn_up=q8_0", "--embedding-type q8_0",
		"--output-type q5_0", "--method awq", "--method awq+gptq", "--smooth 0.5", "--smooth auto", "--bias-correction"} {
		if slices.Equal(run(flags), plain) {
			t.Errorf("%s changes nothing", flags)
		}
	}
	for _, flags := range []string{"", "--threads 1", "--threads 3", "--memory 100K", "--bits 4"} {
		if !slices.Equal(run(flags), plain) {
			t.Errorf("%s changes the output", flags)
		}
	}
}

func TestFallback(t *testing.T) {
	dir := folder(t, "llama3-tied") // 96 columns
	path := filepath.Join(t.TempDir(), "out.gguf")
	args := []string{"quantize", dir, "-o", path, "--method", "rtn", "--bits", "4"}
	r := must(t, args...)
	if !strings.Contains(r.stdout, "blk.0.attn_q.weight") ||
		!strings.Contains(r.stdout, "Q5_0 instead of Q4_K: its blocks of 256 do not divide 96 columns; +1152 bytes") {
		t.Errorf("no fallback in %q", r.stdout)
	}
	v := mustJSON(t, reportKeys, append(args, "--force")...)
	if q := tensorsOf(t, v)["blk.0.attn_q.weight"]; q["type"] != "Q5_0" || q["fallback"] != "Q4_K" {
		t.Errorf("attn_q: %v", q)
	}
	r = llmq(t, append(args, "--force", "--no-fallback")...)
	if r.code != exitFailure || !strings.Contains(r.stderr, "96 columns are not a multiple of Q4_K's block of 256") {
		t.Errorf("--no-fallback: exit %d, %q", r.code, r.stderr)
	}
}

func TestDryRun(t *testing.T) {
	for _, name := range []string{"llama", "llama3-tied"} {
		dir := folder(t, name)
		out := t.TempDir()
		path := filepath.Join(out, "out.gguf")
		args := append([]string{"quantize", dir, "-o", path}, calibrate...)
		dry := append(slices.Clone(args), "--dry-run")
		v := mustJSON(t, planKeys, dry...)
		for _, tensor := range v["tensors"].([]any) {
			checkKeys(t, tensor.(map[string]any), "name type shape bytes fallback")
		}
		r := must(t, dry...)
		if !strings.Contains(r.stdout, fmt.Sprintf("%.0f bytes", v["bytes"])) {
			t.Errorf("no size in %q", r.stdout)
		}
		if left := listing(t, out); len(left) != 1 {
			t.Errorf("--dry-run wrote %v", left[1:])
		}
		done := mustJSON(t, reportKeys, args...)
		if done["bytes"] != v["bytes"] || done["bits_per_weight"] != v["bits_per_weight"] {
			t.Errorf("planned %v bytes, %v bpw; wrote %v, %v", v["bytes"], v["bits_per_weight"], done["bytes"], done["bits_per_weight"])
		}
	}
}

// TestBudget: a dry run shows the same assignment as the run, which is within its budget.
func TestBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	out := t.TempDir()
	args := append([]string{"quantize", folder(t, "llama-linear"), "-o", filepath.Join(out, "out.gguf"), "--max-bpw", "5.5",
		"--max-size", "1MiB", "--output-type", "q5_0"}, calibrate...)
	dry := mustJSON(t, planKeys, append(slices.Clone(args), "--dry-run")...)
	if left := listing(t, out); len(left) != 1 {
		t.Errorf("--dry-run wrote %v", left[1:])
	}
	r := must(t, args...)
	for _, want := range []string{"budget", "1048576 bytes, 5.5 bits per weight", "bytes left", "the least within the budget"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	run := mustJSON(t, reportKeys, append(args, "--force")...)
	a, b := dry["assignment"].(map[string]any), run["assignment"].(map[string]any)
	const keys = "max_bytes max_bits_per_weight bytes bits_per_weight slack_bytes predicted_kl predicted_kl_bound sensitivity_tokens seconds tensors"
	checkKeys(t, a, keys)
	delete(a, "seconds")
	delete(b, "seconds")
	if !reflect.DeepEqual(a, b) || run["bytes"] != a["bytes"] || a["bits_per_weight"].(float64) > 5.5 {
		t.Errorf("planned %v, then %v of %v bytes", a, b, run["bytes"])
	}
	tensors := tensorsOf(t, run)
	for name, v := range tensorsOf(t, b) {
		checkKeys(t, v, "name type bytes sensitivity predicted_kl")
		if v["type"] != tensors[name]["type"] || name == "output.weight" {
			t.Errorf("assigned %v, written %v", v, tensors[name])
		}
	}
}

func TestBudgetUsage(t *testing.T) {
	dir := folder(t, "llama")
	for flags, want := range map[string]string{
		"--max-bpw 4 --method rtn":                      "takes calibration text, with --dry-run too",
		"--max-bpw 4 --method rtn --dry-run":            "takes calibration text, with --dry-run too",
		"--max-size 1G --bits 4 --calib ../../LICENSE":  "--bits and --type contradict them",
		"--max-size 1G --type q4_0 --calib x":           "--bits and --type contradict them",
		"--max-size 1G --method int8 --calib x":         "--method int8 has q8_0 only",
		"--max-bpw -1 --calib x":                        "--max-bpw -1: need more than 0",
		"--max-bpw 1 --calib ../../LICENSE --seq-len 9": "at most 1 bits per weight cannot be: the smallest types make it ",
	} {
		args := append([]string{"quantize", dir, "-o", filepath.Join(t.TempDir(), "x.gguf")}, strings.Fields(flags)...)
		if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, %q, want %q", flags, r.code, r.stderr, want)
		}
	}
}

// TestFailures: whatever goes wrong, the message says what, and nothing is left behind or changed.
func TestFailures(t *testing.T) {
	root := t.TempDir()
	dir := folder(t, "llama")
	if err := os.Rename(dir, filepath.Join(root, "ckpt")); err != nil {
		t.Fatal(err)
	}
	must(t, "convert", filepath.Join(root, "ckpt"), "-o", filepath.Join(root, "f16.gguf"))
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("exists.gguf", "precious")
	write("empty.txt", "")
	write("short.txt", "a few words")
	write("binary.txt", "good \xff bad")
	write("broken.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n")
	write("broken.gguf", "GGUF\x03\x00\x00\x00")
	write("not.gguf", "hello")
	if err := os.Mkdir(filepath.Join(root, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := listing(t, root)
	for _, c := range []struct{ args, stderr string }{
		{"convert absent -o out.gguf", "absent"},
		{"convert folder -o out.gguf", "config.json"},
		{"convert broken.gguf -o out.gguf", "broken.gguf"},
		{"convert not.gguf -o out.gguf", "not.gguf"},
		{"convert ckpt/model-00001-of-00002.safetensors -o out.gguf", "give the folder that holds it"},
		{"convert f16.gguf -o out.gguf --pre gpt-2", "--pre is for checkpoint folders"},
		{"convert ckpt -o exists.gguf", "exists.gguf exists; --force replaces it"},
		{"convert ckpt -o folder --force", "folder"},
		{"convert ckpt -o absent/out.gguf", "absent"},
		{"convert f16.gguf -o f16.gguf --force", "the output is the input"},
		{"convert f16.gguf -o ckpt/../f16.gguf --force", "the output is the input"},
		{"convert ckpt -o ckpt --force", "the output is the input"},
		{"convert ckpt -o ckpt/model-00001-of-00002.safetensors --force", "the output is part of the input"},
		{"convert ckpt -o ckpt/config.json --force", "the output is part of the input"},
		{"quantize ckpt -o short.txt --calib short.txt --force", "the output is calibration text"},
		{"convert ckpt -o out.gguf --tensor-type nothing=q8_0", `"nothing" matches no tensor`},
		{"convert ckpt -o out.gguf --tensor-type ffn_down=q8_0 --tensor-type ffn_down=q8_0", `"ffn_down" is given twice, for Q8_0 and for Q8_0`},
		{"convert ckpt -o out.gguf --tensor-type ffn=q8_0 --tensor-type ffn_down=f16",
			`"ffn_down" has no effect: rules before it take the tensors that it matches, such as blk.0.ffn_down.weight`},
		{"convert ckpt -o out.gguf --tensor-type norm=q8_0", `"norm" has no effect: what it matches has to be F32, such as output_norm.weight`},
		{"quantize ckpt -o out.gguf --calib absent.txt", "absent.txt"},
		{"quantize ckpt -o out.gguf --calib empty.txt", "empty.txt: no text"},
		{"quantize ckpt -o out.gguf --calib short.txt", "short.txt"},
		{"quantize ckpt -o out.gguf --calib binary.txt", "not UTF-8: byte 0xff at offset 5"},
		{"quantize ckpt -o out.gguf --calib broken.jsonl", `broken.jsonl:2: no "text" field`},
		{"quantize ckpt -o out.gguf --calib folder", "not a regular file"},
		{"eval ckpt --text absent.txt", "absent.txt"},
		{"eval ckpt --text empty.txt", "empty.txt: the text is empty"},
		{"eval ckpt --text binary.txt", "not UTF-8: byte 0xff at offset 5"},
		{"eval ckpt --text short.txt", "tokens"},
		{"convert ckpt -o -", "-: the output must be a file; ./- is one of that name"},
		{"report f16.gguf -o -", "-: the output must be a file"},
		{"inspect broken.gguf", "broken.gguf"},
		{"tokenize ckpt --text binary.txt", "not UTF-8"},
	} {
		args := strings.Fields(c.args)
		for i, arg := range args[1:] {
			if !strings.HasPrefix(arg, "-") && arg != "gpt-2" && !strings.Contains(arg, "=") {
				args[i+1] = filepath.Join(root, arg)
			}
		}
		r := llmq(t, args...)
		if r.code != exitFailure || !strings.Contains(r.stderr, c.stderr) || r.stdout != "" {
			t.Errorf("llmq %s: exit %d, stdout %q, stderr %q; want %q", c.args, r.code, r.stdout, r.stderr, c.stderr)
		}
		if strings.Count(r.stderr, "llmq: ") != 1 {
			t.Errorf("llmq %s: %q is not one message", c.args, r.stderr)
		}
		if after := listing(t, root); !slices.Equal(before, after) {
			t.Fatalf("llmq %s left %v, before %v", c.args, after, before)
		}
	}
}

// canceller ends a context when it is shown a text.
type canceller struct {
	text   string
	cancel func()
}

func (c *canceller) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestInterrupt(t *testing.T) {
	dir := folder(t, "llama")
	out := t.TempDir()
	path := filepath.Join(out, "out.gguf")
	gptq := append([]string{"quantize", dir, "-o", path}, calibrate...)
	for _, c := range []struct {
		at   string
		args []string
	}{
		{"quantize: layer 1/2", gptq},
		{"quantize: layer 2/2", gptq},
		{"convert: blk.1", []string{"convert", dir, "-o", path}},
		{"evaluate: layer 2/2", []string{"eval", dir, "--text", license, "--context", "64", "--memory", "10K"}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		r := llmqWith(t, ctx, "", &canceller{c.at, cancel}, c.args...)
		cancel()
		if r.code != exitInterrupted || !strings.HasSuffix(r.stderr, "llmq: interrupted\n") || r.stdout != "" {
			t.Errorf("%s at %q: exit %d, stdout %q, stderr %q", c.args[0], c.at, r.code, r.stdout, r.stderr)
		}
		if left := listing(t, out); len(left) != 1 {
			t.Errorf("%s at %q left %v", c.args[0], c.at, left[1:])
		}
	}
}

// TestForce: an existing output stays whole until the new one is.
func TestForce(t *testing.T) {
	dir := folder(t, "qwen3")
	path := filepath.Join(t.TempDir(), "out.gguf")
	must(t, "convert", dir, "-o", path)
	old := read(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	llmqWith(t, ctx, "", &canceller{"blk.1", cancel}, "convert", dir, "-o", path, "--type", "f32", "--force")
	if !slices.Equal(read(t, path), old) {
		t.Error("an interrupted run changed the file that it was to replace")
	}
	must(t, "convert", dir, "-o", path, "--type", "f32", "--force")
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if typ := f.Tensors()[0].Type.Name; typ != "F32" {
		t.Errorf("still %s", typ)
	}
}
