package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/tensor"
)

// halved gives a checkpoint float16 weights in the place of bfloat16 ones.
func halved(t *testing.T, dir string) string {
	t.Helper()
	shards, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	if err != nil || len(shards) == 0 {
		t.Fatal(shards, err)
	}
	c, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var infos []safetensors.Info
	for _, name := range c.Names() {
		info, _ := c.Lookup(name)
		infos = append(infos, safetensors.Info{Name: name, DType: safetensors.F16, Shape: info.Shape})
	}
	w, err := safetensors.Create(filepath.Join(dir, "half"), infos, nil, safetensors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		data, _, err := c.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		x, half := make([]float32, len(data)/2), make([]byte, len(data))
		tensor.DecodeBF16(x, data)
		ggml.F16.Encode(half, x, nil)
		if _, err := w.Write(half); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, path := range append(shards, filepath.Join(dir, safetensors.IndexFile)) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, "half"), filepath.Join(dir, safetensors.SingleFile)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// floats are all weights of a model's linears as its reader sees them.
func floats(t *testing.T, src interface {
	Tensors() []ggml.Info
	Tensor(name string) (*ggml.Tensor, error)
}) map[string][]float32 {
	t.Helper()
	all := map[string][]float32{}
	for _, info := range src.Tensors() {
		if !strings.HasPrefix(info.Name, "blk.") || len(info.Shape) != 2 {
			continue
		}
		x, err := src.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Name] = make([]float32, info.Elements())
		x.Type.Decode(all[info.Name], x.Data)
	}
	return all
}

// TestQuantizeFolder: GPTQ chooses the same weights whatever the container: those of a Q4_0 file are those of a folder with the same
// grid, in either format; the same command writes the same bytes.
func TestQuantizeFolder(t *testing.T) {
	dir, out := halved(t, folder(t, "llama")), t.TempDir()
	run := func(name string, more ...string) string {
		t.Helper()
		path := filepath.Join(out, name)
		r := must(t, slices.Concat([]string{"quantize", dir, "-o", path}, calibrate, []string{"--calib-tokens", "256", "--output-hessian", "off"}, more)...)
		if !strings.Contains(r.stdout, path) {
			t.Errorf("printed %q", r.stdout)
		}
		return path
	}
	f, err := gguf.Open(run("q4_0.gguf", "--type", "q4_0"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := floats(t, f)
	for _, format := range []string{"compressed-tensors", "gptq"} {
		path := run(format, "--format", format, "--group-size", "32")
		c, err := hf.Open(path, hf.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got := floats(t, c)
		if len(got) != len(want) || len(got) == 0 {
			t.Fatalf("%d linears, %d in the GGUF file", len(got), len(want))
		}
		for name, x := range want {
			for i := range x {
				if math.Float32bits(got[name][i]) != math.Float32bits(x[i]) && x[i] != 0 {
					t.Fatalf("%s: %s: weight %d is %v, %v in the GGUF file", format, name, i, got[name][i], x[i])
				}
			}
		}
		if format == "gptq" { // which differs only in where things go
			continue
		}
		again := run(format+"-again", "--format", format, "--group-size", "32", "--threads", "1")
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			a, _ := os.ReadFile(filepath.Join(path, e.Name()))
			if b, err := os.ReadFile(filepath.Join(again, e.Name())); err != nil || !bytes.Equal(a, b) {
				t.Errorf("%s: %s is another with one thread: %v", format, e.Name(), err)
			}
		}
	}
}

// TestFolderOutput: what is there stays without --force, and with it if it is no model; a plan says how large a folder will be.
func TestFolderOutput(t *testing.T) {
	dir, out := folder(t, "qwen3"), filepath.Join(t.TempDir(), "out")
	args := []string{"quantize", dir, "-o", out, "--format", "compressed-tensors", "--method", "rtn", "--bits", "8"}
	plan := mustJSON(t, planKeys, append(args, "--dry-run")...)
	if _, err := os.Stat(out); err == nil {
		t.Error("a dry run has written something")
	}
	v := mustJSON(t, reportKeys, args...)
	var size float64
	for _, name := range []string{safetensors.SingleFile, "config.json"} {
		info, err := os.Stat(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		size += float64(info.Size())
	}
	if plan["output"] != out || v["output"] != out || plan["bytes"] != size || v["bytes"] != size || plan["bits_per_weight"] != v["bits_per_weight"] {
		t.Errorf("planned %v in %v, written %v in %v, there are %v bytes", plan["bytes"], plan["output"], v["bytes"], v["output"], size)
	}
	if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, "--force replaces it") {
		t.Errorf("over a folder: exit %d, %s", r.code, r.stderr)
	}
	project := filepath.Join(out, "src")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := llmq(t, append(args, "--force")...); r.code == exitOK || !strings.Contains(r.stderr, "holds src, which is no file: it is not replaced") {
		t.Errorf("over a folder with a folder: exit %d, %s", r.code, r.stderr)
	}
	if err := os.Remove(project); err != nil {
		t.Fatal(err)
	}
	must(t, append(args, "--force", "--bits", "4", "--group-size", "32")...)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.MkdirAll(filepath.Join(other, "letters"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		other:                     "no config.json of a quantized checkpoint: it is not replaced",
		folder(t, "llama"):        "config.json without quantization_config: it is not replaced",
		dir:                       "lies in the output",
		filepath.Dir(dir):         "lies in the output",
		filepath.Join(dir, "new"): "the output lies in the input",
	} {
		args[3] = path
		if r := llmq(t, append(args, "--force")...); r.code == exitOK || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, %s; want %q", path, r.code, r.stderr, want)
		}
	}
	args[1], args[3] = out, out+"2"
	if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, "take the original checkpoint") {
		t.Errorf("a quantized folder again: exit %d, %s", r.code, r.stderr)
	}
	file := filepath.Join(t.TempDir(), "m.gguf")
	must(t, "convert", dir, "-o", file)
	args[1] = file
	if r := llmq(t, args...); r.code == exitOK || !strings.Contains(r.stderr, "is for checkpoint folders") {
		t.Errorf("from a GGUF file: exit %d, %s", r.code, r.stderr)
	}
}

// TestFolderUsage: what has no effect in a format is refused, and recipes hold what there is.
func TestFolderUsage(t *testing.T) {
	for _, test := range [][2]string{
		{"--format onnx", "want gguf or compressed-tensors or gptq"},
		{"--group-size 128", "GGUF's types have their own"},
		{"--zero-point", "GGUF's types have their own"},
		{"--format gptq --bits 8", "8, with activations of 8 bits, are for compressed-tensors"},
		{"--format gptq --bits 3", "3 bits: 4 and 8 are possible"},
		{"--format compressed-tensors --bits 4.5", "4.5 bits: 4 and 8 are possible"},
		{"--format compressed-tensors --group-size 16", "groups of 16 columns"},
		{"--format compressed-tensors --bits 8 --group-size 128", "one scale for each row"},
		{"--format compressed-tensors --type q4_0", "--type is for GGUF files"},
		{"--format compressed-tensors --tensor-type a=q4_0", "--tensor-type is for GGUF files"},
		{"--format compressed-tensors --embedding-type q8_0", "--embedding-type is for GGUF files"},
		{"--format compressed-tensors --max-size 1G", "--max-size is for GGUF files"},
		{"--format compressed-tensors --bias-correction", "--bias-correction is for GGUF files"},
		{"--format compressed-tensors --method int8", "--method int8 is for GGUF files"},
		{"--format compressed-tensors --recipe auto", "--method auto is for GGUF files"},
		{"--format compressed-tensors --low-disk", "--low-disk"},
		{"--format gptq --split-max-size 5G", "--split-max-size is for GGUF files"},
	} {
		args := append([]string{"quantize", "MODEL", "-o", "x", "--calib", "x"}, strings.Fields(test[0])...)
		r := llmq(t, args...)
		if r.code != exitUsage || !strings.Contains(r.stderr, test[1]) {
			t.Errorf("%s: exit %d, %s", test[0], r.code, r.stderr)
		}
	}
	r := must(t, "quantize", "--format", "gptq", "--zero-point", "--group-size", "64", "--calib", "x", "--print-recipe")
	for _, want := range []string{"format: gptq\n", "bits: 4\n", "group-size: 64\n", "zero-point: true\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the recipe lacks %q:\n%s", want, r.stdout)
		}
	}
	if again := must(t, "quantize", "--recipe", textFile(t, "r.yaml", r.stdout), "--print-recipe"); again.stdout != r.stdout {
		t.Errorf("read again, the recipe is\n%s\nnot\n%s", again.stdout, r.stdout)
	}
}
