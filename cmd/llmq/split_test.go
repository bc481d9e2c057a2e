package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

const (
	inspectKeys = "path format parts weights bytes bits_per_weight types metadata tensors"
	planKeys    = "output parts bytes bits_per_weight memory_bytes disk_bytes work_bytes checkpoint_bytes tensors assignment cost"
)

// TestSplit: a split file is the same model as one file, wherever a GGUF file is an input.
func TestSplit(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	one, split := filepath.Join(out, "one.gguf"), filepath.Join(out, "s.gguf")
	must(t, "convert", dir, "-o", one)
	args := []string{"convert", dir, "-o", split, "--split-max-size", "500K"}
	planned := mustJSON(t, planKeys, append(args, "--dry-run")...)
	v := mustJSON(t, reportKeys, args...)
	parts := v["parts"].([]any)
	n := len(parts)
	if n < 3 || n > 20 {
		t.Fatalf("%d parts", n)
	}
	first := filepath.Join(out, fmt.Sprintf("s-00001-of-%05d.gguf", n))
	if v["output"] != first || parts[0] != first || fmt.Sprint(planned["parts"]) != fmt.Sprint(parts) ||
		planned["bytes"] != v["bytes"] || planned["output"] != first {
		t.Errorf("output %v, parts %v; planned %v", v["output"], parts, planned["parts"])
	}
	var bytes float64
	for i, p := range parts {
		fi, err := os.Stat(p.(string))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && fi.Size() > 510_000 {
			t.Errorf("%v has %d bytes", p, fi.Size())
		}
		bytes += float64(fi.Size())
	}
	if v["bytes"] != bytes {
		t.Errorf("%v bytes reported, the parts have %v", v["bytes"], bytes)
	}
	if _, err := os.Stat(split); err == nil {
		t.Errorf("%s is there too", split)
	}
	r := must(t, append(args, "--force")...)
	if !strings.Contains(r.stdout, first) || !strings.Contains(r.stdout, fmt.Sprintf("and %d parts more", n-1)) {
		t.Errorf("%q", r.stdout)
	}

	got, want := mustJSON(t, inspectKeys, "inspect", first), mustJSON(t, inspectKeys, "inspect", one)
	if fmt.Sprint(got["parts"]) != fmt.Sprint(parts) || fmt.Sprint(want["parts"]) != "[]" {
		t.Errorf("parts %v and %v", got["parts"], want["parts"])
	}
	for _, key := range []string{"metadata", "tensors", "weights", "types"} {
		if fmt.Sprint(got[key]) != fmt.Sprint(want[key]) {
			t.Errorf("%s differ", key)
		}
	}
	if r := must(t, "inspect", first); !strings.Contains(r.stdout, fmt.Sprintf("%d parts", n)) {
		t.Errorf("%q", r.stdout)
	}
	joined := filepath.Join(out, "joined.gguf")
	must(t, "convert", first, "-o", joined)
	if !slices.Equal(read(t, joined), read(t, one)) {
		t.Error("the joined file differs from one that was never split")
	}
	evaluate := func(path string) map[string]any {
		return mustJSON(t, evalKeys, "eval", path, "--text", license, "--context", "64", "--chunks", "2")
	}
	if a, b := evaluate(first), evaluate(one); a["perplexity"] != b["perplexity"] || a["bytes"] != bytes {
		t.Errorf("perplexity %v of %v bytes, of one file %v", a["perplexity"], a["bytes"], b["perplexity"])
	}
	last := parts[n-1].(string)
	for _, args := range [][]string{{"inspect", last}, {"convert", last, "-o", joined, "--force"}, {"eval", last, "--text", license}} {
		r := llmq(t, args...)
		if r.code != exitFailure || !strings.Contains(r.stderr, fmt.Sprintf("is part %d of %d; give the first, %s", n, n, first)) {
			t.Errorf("%q: exit %d, %q", args, r.code, r.stderr)
		}
	}
}

// TestSplitOutputs: names that are taken, and those of the input.
func TestSplitOutputs(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	split := filepath.Join(out, "s.gguf")
	must(t, "convert", dir, "-o", split, "--split-max-size", "900KB")
	before := listing(t, out)
	files, _ := filepath.Glob(filepath.Join(out, "s-*.gguf"))
	if len(files) < 2 {
		t.Fatal(files)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"convert", dir, "-o", split, "--split-max-size", "900K"}, "exists; --force replaces it"},
		{[]string{"convert", files[0], "-o", files[1], "--force"}, "the output is part of the input"},
		{[]string{"convert", files[0], "-o", files[0], "--force"}, "the output is the input"},
		{[]string{"convert", files[0], "-o", split, "--force", "--split-max-size", "1M"}, "the parts of the input have the names of its parts"},
		{[]string{"convert", dir, "-o", split, "--split-max-size", "50T"}, "is not a size such as 500M, 50G or 40GiB"},
	} {
		if r := llmq(t, c.args...); r.code == exitOK || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%q: exit %d, %q, want %q", c.args, r.code, r.stderr, c.want)
		}
	}
	if after := listing(t, out); !slices.Equal(before, after) {
		t.Errorf("the folder holds %q, before %q", after, before)
	}
	// A model that one part holds is one file.
	v := mustJSON(t, reportKeys, "convert", dir, "-o", split, "--split-max-size", "1GiB")
	if v["output"] != split || len(v["parts"].([]any)) != 0 {
		t.Errorf("%v, %v", v["output"], v["parts"])
	}
}

func TestPartSizes(t *testing.T) {
	for s, want := range map[string]partSize{"300": 300, "2K": 2000, "2KB": 2000, "500M": 5e8, "50G": 5e10, "1.5 GB": 1.5e9,
		"2KiB": 2048, "40GiB": 40 << 30, "1MiB": 1 << 20} {
		var p partSize
		if err := p.Set(s); err != nil || p != want {
			t.Errorf("%q is %d, %v; want %d", s, p, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "0.5", "G", "1T", "1e30G", "NaN", "1GiBB"} {
		var p partSize
		if err := p.Set(s); err == nil {
			t.Errorf("%q is %d", s, p)
		}
	}
}

func TestRequantize(t *testing.T) {
	dir, out := folder(t, "llama"), t.TempDir()
	q8, q4 := filepath.Join(out, "q8.gguf"), filepath.Join(out, "q4.gguf")
	must(t, append([]string{"quantize", dir, "-o", q8, "--method", "int8"}, calibrate...)...)
	args := append([]string{"quantize", q8, "-o", q4, "--type", "q4_0", "--tensor-type", "ffn_up=q8_0"}, calibrate...)
	r := llmq(t, args...)
	if r.code != exitFailure || !strings.Contains(r.stderr, "Q8_0, already quantized") || !strings.Contains(r.stderr, "--allow-requantize") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
	for name, tensor := range tensorsOf(t, mustJSON(t, reportKeys, append(args, "--allow-requantize")...)) {
		want := ""
		if strings.HasPrefix(name, "blk.") && !strings.Contains(name, "norm") && !strings.Contains(name, "ffn_up") { // which keeps its codes
			want = "Q8_0"
		}
		if tensor["requantized_from"] != want {
			t.Errorf("%s was requantized from %q, want %q", name, tensor["requantized_from"], want)
		}
	}
	for key := range mustJSON(t, inspectKeys, "inspect", q4)["metadata"].(map[string]any) {
		if strings.HasPrefix(key, "llmq.int8.") {
			t.Errorf("%s of the input is in the output", key)
		}
	}
	// Decoded, and nothing else.
	f32, same := filepath.Join(out, "f32.gguf"), filepath.Join(out, "same.gguf")
	r = must(t, "convert", q4, "-o", f32, "--type", "f32", "--allow-requantize")
	if !strings.Contains(r.stdout, "12 tensors from Q4_0, 2 from Q8_0") {
		t.Errorf("%q", r.stdout)
	}
	evaluate := func(path string) float64 {
		return mustJSON(t, evalKeys, "eval", path, "--text", license, "--context", "64", "--chunks", "2", "--precision",
			"f32")["perplexity"].(float64)
	}
	a, b := evaluate(q4), evaluate(f32)
	if d := a/b - 1; d > 1e-5 || d < -1e-5 {
		t.Errorf("perplexity %v, decoded %v", a, b)
	}
	// What has its type already is copied.
	v := tensorsOf(t, mustJSON(t, reportKeys, "convert", q4, "-o", same, "--type", "q4_0", "--allow-requantize"))
	if q := v["blk.0.attn_q.weight"]; q["requantized_from"] != "" || q["relative_error"] != 0.0 {
		t.Errorf("copied: %v", q)
	}
	if q := v["blk.0.ffn_up.weight"]; q["requantized_from"] != "Q8_0" || q["relative_error"] == 0.0 {
		t.Errorf("from Q8_0 to Q4_0: %v", q)
	}
}

// TestInspectAny: an architecture and types that nothing else reads.
func TestInspectAny(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd.gguf")
	w, err := gguf.Create(path, gguf.Metadata{{Key: "general.architecture", Value: "wavenext"}}, []ggml.Info{
		{Name: "a.weight", Type: ggml.Q8_0, Shape: []int{2, 32}}, {Name: "b.weight", Type: ggml.F32, Shape: []int{1, 16}},
	}, gguf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{"a.weight": 68, "b.weight": 64} {
		if err := w.WriteTensor(name, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := read(t, path)
	for name, id := range map[string]byte{"a.weight": 39, "b.weight": 137} { // MXFP4, and one that ggml does not know
		const between = 4 + 2*8 // the number of dimensions, and two
		b[strings.Index(string(b), name)+len(name)+between] = id
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	tensors, err := json.Marshal(mustJSON(t, inspectKeys, "inspect", path)["tensors"])
	if want := `[{"bytes":34,"name":"a.weight","shape":[2,32],"type":"MXFP4"},` +
		`{"bytes":64,"name":"b.weight","shape":[1,16],"type":"type 137"}]`; err != nil || string(tensors) != want {
		t.Errorf("got  %s, %v\nwant %s", tensors, err, want)
	}
	r := must(t, "inspect", path)
	for _, want := range []string{"wavenext", "type 137", "1×16", "64 bytes"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	r = llmq(t, "eval", path, "--text", license)
	if r.code != exitFailure || !strings.Contains(r.stderr, `tensor "b.weight": unknown type 137`) {
		t.Errorf("eval: exit %d, %q", r.code, r.stderr)
	}
}
