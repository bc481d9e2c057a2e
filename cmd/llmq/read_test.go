package main

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
)

const evalKeys = "model bytes bits_per_weight base text activations " +
	"perplexity perplexity_stderr tokens_scored context chunks bos seconds tokens_per_second peak_rss_bytes"

const divergenceKeys = " kl_divergence kl_divergence_stderr kl_divergence_median kl_divergence_p99 kl_divergence_p999" +
	" kl_divergence_p999_stderr kl_divergence_float16 kl_divergence_max same_top same_top_stderr same_top5 same_top5_stderr" +
	" rms_delta_p rms_delta_p_stderr base_perplexity perplexity_increase perplexity_increase_stderr"

func TestEval(t *testing.T) {
	dir := folder(t, "llama")
	f32 := filepath.Join(t.TempDir(), "f32.gguf")
	must(t, "convert", dir, "-o", f32, "--type", "f32")
	args := []string{"--text", license, "--context", "64", "--chunks", "5"}
	v := mustJSON(t, evalKeys, append([]string{"eval", dir}, args...)...)
	if v["tokens_scored"] != 5*31.0 || v["context"] != 64.0 || v["bos"] != true || v["peak_rss_bytes"].(float64) < 1<<20 || v["model"] != dir ||
		v["text"] != license || !(v["bytes"].(float64) > 1000) || v["bits_per_weight"] != 16.0 {
		t.Errorf("%v", v)
	}
	// The checkpoint against its own values in another container.
	based := mustJSON(t, evalKeys+divergenceKeys, append([]string{"eval", f32, "--base", dir}, args...)...)
	if p, b := based["perplexity"].(float64), v["perplexity"].(float64); math.Abs(p/b-1) > 0.01 || based["base_perplexity"] != b {
		t.Errorf("perplexity %v from the file, %v from the folder, %v as base", p, b, based["base_perplexity"])
	}
	if based["same_top"].(float64) < 0.95 || based["kl_divergence"].(float64) > 0.01 {
		t.Errorf("%v", based)
	}
	r := must(t, append([]string{"eval", f32, "--base", dir}, args...)...)
	for _, want := range []string{"chunks of 64 tokens, the first replaced by BOS, second half scored", "155 tokens in 5 chunks",
		"perplexity", " ± ", "KL divergence", "99th percentile", "same top token"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	preset := mustJSON(t, evalKeys, "eval", dir, "--text", license, "--preset", "gptq-2048", "--chunks", "1")
	if preset["context"] != 2048.0 || preset["tokens_scored"] != 2047.0 {
		t.Errorf("%v", preset)
	}
}

// TestEvalTexts: several texts have a row each, and in JSON an object each, as alone.
func TestEvalTexts(t *testing.T) {
	dir := folder(t, "llama")
	args := []string{"eval", dir, "--base", dir, "--context", "64", "--chunks", "2"}
	alone := mustJSON(t, evalKeys+divergenceKeys, append(args, "--text", license)...)
	texts := append(args, "--text", "law="+license, "--text", "main_test.go")
	all := mustJSON(t, "evaluations", texts...)["evaluations"].([]any)
	first, second := all[0].(map[string]any), all[1].(map[string]any)
	if len(all) != 2 || first["perplexity"] != alone["perplexity"] || first["name"] != "law" || first["text"] != license ||
		second["text"] != "main_test.go" || second["perplexity"] == first["perplexity"] || second["name"] != nil {
		t.Errorf("%v", all)
	}
	r := must(t, texts...)
	for _, want := range []string{"\nlaw ", "\nmain_test.go ", "same top five", "RMS Δp", "(below float16's)"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	if r := llmq(t, append(args, "--text", license, "--text", license)...); r.code != exitUsage || !strings.Contains(r.stderr, "is there already") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}

func TestEvalBaseOfAnotherTokenizer(t *testing.T) {
	r := llmq(t, "eval", folder(t, "llama"), "--base", folder(t, "qwen2"), "--text", license, "--context", "64", "--chunks", "1")
	if r.code != exitFailure || !strings.Contains(r.stderr, "into different tokens") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}

func TestTokenize(t *testing.T) {
	dir := folder(t, "llama")
	const text = "Licensed under the 日本"
	v := mustJSON(t, "ids", "tokenize", dir, "--text", textFile(t, "text", text))
	ids := v["ids"].([]any)
	without := mustJSON(t, "ids", "tokenize", dir, "--text", textFile(t, "text", text), "--no-bos")["ids"].([]any)
	if len(ids) != len(without)+1 || len(without) < 5 || ids[1] != without[0] {
		t.Errorf("with BOS %v, without %v", ids, without)
	}
	r := llmqWith(t, t.Context(), text, nil, "tokenize", dir, "--text", "-")
	if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); r.code != exitOK || len(lines) != len(ids) {
		t.Errorf("standard input: exit %d, %q, want %d lines", r.code, r.stdout, len(ids))
	}
	if v := mustJSON(t, "ids", "tokenize", dir, "--no-bos", "--text", textFile(t, "text", " ")); len(v["ids"].([]any)) != 1 {
		t.Errorf("a space: %v", v)
	}
	r = llmqWith(t, t.Context(), "\xff", nil, "tokenize", dir, "--text", "-")
	if r.code != exitFailure || !strings.Contains(r.stderr, "standard input: not UTF-8: byte 0xff at offset 0") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
}

// TestTokenizeVocabulary: a GGUF file without tensors is enough.
func TestTokenizeVocabulary(t *testing.T) {
	dir := folder(t, "llama")
	src, err := (&app{stderr: os.Stderr}).openSource(t.Context(), dir, hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	path := filepath.Join(t.TempDir(), "vocab.gguf")
	w, err := gguf.Create(path, src.Metadata(), nil, gguf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := must(t, "tokenize", path, "--text", license).stdout, must(t, "tokenize", dir, "--text", license).stdout; got != want {
		t.Error("the vocabulary splits a text differently from its checkpoint")
	}
	mustJSON(t, inspectKeys, "inspect", path)
	if r := llmq(t, "eval", path, "--text", license); r.code != exitFailure || !strings.Contains(r.stderr, "token_embd.weight") {
		t.Errorf("eval of a vocabulary: exit %d, %q", r.code, r.stderr)
	}
}

func TestInspect(t *testing.T) {
	dir := folder(t, "llama")
	q4 := filepath.Join(t.TempDir(), "q4.gguf")
	must(t, "quantize", dir, "-o", q4, "--method", "rtn", "--type", "q4_0")
	for _, c := range []struct{ path, format, typ string }{{dir, "checkpoint", "BF16"}, {q4, "gguf", "Q4_0"}} {
		v := mustJSON(t, inspectKeys, "inspect", c.path)
		md := v["metadata"].(map[string]any)
		if v["format"] != c.format || md["general.architecture"] != "llama" || len(md["tokenizer.ggml.tokens"].([]any)) < 256 {
			t.Errorf("%s: format %v, architecture %v", c.path, v["format"], md["general.architecture"])
		}
		weights := 0.0
		for _, e := range v["tensors"].([]any) {
			tensor := e.(map[string]any)
			checkKeys(t, tensor, "name type shape bytes")
			n := 1.0
			for _, d := range tensor["shape"].([]any) {
				n *= d.(float64)
			}
			weights += n
			if tensor["name"] == "blk.1.ffn_up.weight" && (tensor["type"] != c.typ || n != 256*512) {
				t.Errorf("%s: %v", c.path, tensor)
			}
		}
		if weights != v["weights"] {
			t.Errorf("%s: %v weights, the tensors have %v", c.path, v["weights"], weights)
		}
		r := must(t, "inspect", c.path)
		for _, want := range []string{"general.architecture", "blk.1.ffn_up.weight", "512×256", c.typ, "bits per weight", "…"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%s: no %q in %q", c.path, want, r.stdout)
			}
		}
	}
}

func TestMetadataValues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd.gguf")
	md := gguf.Metadata{
		{Key: "a.nan", Value: float32(math.NaN())},
		{Key: "a.floats", Value: []float64{1, math.Inf(-1)}},
		{Key: "a.bytes", Value: []uint8{1, 255}},
		{Key: "a.long", Value: strings.Repeat("ä", 100)},
		{Key: "a.lines", Value: "one\ntwo\x1b[31m"},
		{Key: "a.\x1b[2J\xff", Value: true},
		{Key: "a.empty", Value: []string{}},
		{Key: "a.big", Value: uint64(math.MaxUint64)},
	}
	w, err := gguf.Create(path, md, []ggml.Info{}, gguf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := must(t, "inspect", path).stdout
	for _, want := range []string{"NaN", "[2] 1, -Inf", "[2] 1, 255", `ä"… (200 bytes)`, `"one\ntwo\x1b[31m"`, `"a.\x1b[2J`, "[0]", "18446744073709551615"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	got := must(t, "inspect", path, "--json").stdout
	for _, want := range []string{`"a.nan":"NaN"`, `"a.floats":[1,"-Inf"]`, `"a.bytes":[1,255]`, `"a.empty":[]`,
		`"a.big":18446744073709551615`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

// TestInfinitePerplexity: a model that thinks the text impossible has no perplexity that JSON could hold. What was measured
// is printed, null where it is infinite, and the command fails.
func TestInfinitePerplexity(t *testing.T) {
	tm := testmodel.New("llama")
	for _, tensor := range tm.Tensors {
		if tensor.Name != "lm_head.weight" {
			continue
		}
		for i := range tensor.Data {
			tensor.Data[i] *= 1 << 14
		}
	}
	dir := filepath.Join(t.TempDir(), "broken")
	if err := errors.Join(os.Mkdir(dir, 0o755), tm.WriteFolder(dir)); err != nil {
		t.Fatal(err)
	}
	good := folder(t, "llama")
	words := textFile(t, "words.jsonl", `{"text":"return the string"}`+"\n"+`{"text":"in the range of things"}`+"\n")
	text := []string{"--text", license, "--context", "64", "--chunks", "2"}
	for _, c := range []struct {
		args []string
		null []string
		row  string
	}{
		{append([]string{dir}, text...), []string{"perplexity", "perplexity_stderr"}, "infinite ± infinite"},
		{append([]string{good, "--base", dir}, text...), []string{"base_perplexity"}, "perplexity infinite ("},
		{[]string{dir, "--task", words}, nil, "infinite ± infinite"},
	} {
		r := llmq(t, append([]string{"eval"}, c.args...)...)
		if r.code != exitFailure || !strings.Contains(r.stderr, "warning: a perplexity is infinite") || !strings.Contains(r.stdout, c.row) {
			t.Errorf("%v: exit %d, %q, %q", c.args, r.code, r.stdout, r.stderr)
		}
		r = llmq(t, append([]string{"eval", "--json"}, c.args...)...)
		var v map[string]any
		if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || r.code != exitFailure || !strings.Contains(r.stderr, "warning: a perplexity is infinite") {
			t.Errorf("%v: exit %d, %v, %q", c.args, r.code, err, r.stderr)
		}
		for _, key := range c.null {
			if got, ok := v[key]; !ok || got != nil {
				t.Errorf("%v: %s is %v", c.args, key, got)
			}
		}
		// A report takes it.
		must(t, "report", textFile(t, "eval.json", r.stdout), "-o", filepath.Join(t.TempDir(), "page.html"))
	}
}
