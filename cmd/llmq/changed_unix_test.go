//go:build linux || darwin

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/pipeline"
)

// onLine calls f once, when a line of a command's progress says what it should.
type onLine struct {
	line string
	f    func() error
	err  error
}

func (w *onLine) Write(p []byte) (int, error) {
	if w.f != nil && strings.Contains(string(p), w.line) {
		w.err = w.f()
		w.f = nil
	}
	return len(p), nil
}

// TestInputChanges cuts off, or writes to, the file of weights while a command reads it, a base model or an adapter too: an
// error that names the file, and no output. What is cut off faults in whatever goroutine reads it.
func TestInputChanges(t *testing.T) {
	changes := map[string]func(path string) error{
		"cut off": func(path string) error { return os.Truncate(path, 4096) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"rewritten": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			fi, err := f.Stat()
			if err == nil {
				_, err = f.WriteAt([]byte{0, 0, 0, 0}, fi.Size()-4)
			}
			return err
		},
	}
	tokens := tokensFile(t, 2, 16)
	cal := " " + strings.Join(calibrate, " ")
	for _, test := range []struct{ how, line, args string }{
		{"cut off", "convert: blk.0", "convert CKPT -o OUT"},
		{"empty", "convert: output", "convert CKPT -o OUT"},
		{"rewritten", "convert: blk.1", "convert CKPT -o OUT"},
		{"cut off", "quantize: blk.0", "convert GGUF -o OUT --type q8_0"},
		{"cut off", "convert: blk.0", "convert CKPT -o OUT --split-max-size 50K"},
		{"cut off", "quantize: layer 1/2", "quantize CKPT -o OUT" + cal},
		{"rewritten", "quantize: layer 2/2", "quantize GGUF -o OUT --type q4_0" + cal},
		{"rewritten", "layer 1/2", "quantize CKPT -o OUT --max-bpw 6" + cal},
		{"cut off", "profile: layer 1/2", "profile CKPT -o OUT" + cal},
		{"cut off", "evaluate: layer 1/2", "eval GGUF --chunks 4 --context 64 --text " + license},
		{"cut off", "evaluate: head", "eval CKPT --chunks 4 --context 64 --text " + license},
		{"rewritten", "evaluate: head", "eval CKPT --chunks 4 --context 64 --text " + license},
		{"empty", "evaluate: layer 2/2", "eval LEFT --base GGUF --chunks 4 --context 64 --text " + license},
		{"rewritten", "logits: head", "eval CKPT --tokens TOKENS --logits OUT"},
	} {
		dir := folder(t, "llama")
		gguf, left := filepath.Join(dir, "model.gguf"), filepath.Join(t.TempDir(), "left.gguf")
		must(t, "convert", dir, "-o", gguf)
		must(t, "convert", dir, "-o", left)
		path := filepath.Join(dir, "model-00001-of-00002.safetensors")
		if strings.Contains(test.args, "GGUF") {
			path = gguf
		}
		past := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
		out := t.TempDir()
		args := strings.Fields(strings.NewReplacer("CKPT", dir, "OUT", filepath.Join(out, "out"), "GGUF", gguf, "LEFT", left, "TOKENS", tokens).Replace(test.args))
		hook := &onLine{line: test.line, f: func() error { return changes[test.how](path) }}
		r := llmqWith(t, t.Context(), "", hook, args...)
		if hook.f != nil || hook.err != nil {
			t.Errorf("%s, %s: nothing was changed, %v: %s", test.args, test.how, hook.err, r.stderr)
			continue
		}
		if r.code != exitFailure || r.stdout != "" || !strings.Contains(r.stderr, path+": the file was ") {
			t.Errorf("%s, %s: exit %d, %q, %q", test.args, test.how, r.code, r.stdout, r.stderr)
		}
		if left := listing(t, out); len(left) != 1 {
			t.Errorf("%s, %s: left %v", test.args, test.how, left)
		}
	}
}

// tokensFile writes sequences of token ids for --tokens.
func tokensFile(t *testing.T, sequences, length int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.safetensors")
	w, err := safetensors.Create(path, []safetensors.Info{{Name: tokensTensor, DType: safetensors.I32, Shape: []int{sequences, length}}}, nil, safetensors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Write(make([]byte, 4*sequences*length)); err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// whenAdded calls f once, when work is reported after a stage has come to an item of this name.
type whenAdded struct {
	name string
	f    func()

	mu sync.Mutex // guards what follows, and f: evaluations report from several goroutines
	at bool
}

func (p *whenAdded) Stage(string, int64)  {}
func (p *whenAdded) Expect(time.Duration) {}
func (p *whenAdded) Skip(int64)           {}
func (p *whenAdded) Detail(string)        {}
func (p *whenAdded) Done()                {}

func (p *whenAdded) Item(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = name == p.name
}

func (p *whenAdded) Add(int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at && p.f != nil {
		p.f()
		p.f = nil
	}
}

// TestCutOffInside cuts off a file of weights when its size has been looked at and its weights are being read, by goroutines
// of an evaluation's and of a run's own.
func TestCutOffInside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	open := func() *gguf.File {
		os.Remove(path)
		must(t, "convert", folder(t, "llama"), "-o", path)
		f, err := gguf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	cut := func() {
		if err := os.Truncate(path, 4096); err != nil {
			t.Error(err)
		}
	}
	t.Run("evaluation", func(t *testing.T) {
		m, err := arch.Open(open())
		if err != nil {
			t.Fatal(err)
		}
		p := &whenAdded{name: "layer 1/2", f: cut}
		_, err = eval.Perplexity(t.Context(), m, make([]int32, 4096), eval.Options{Context: 64, BatchTokens: 64, Progress: p})
		if err == nil || !strings.Contains(err.Error(), path+": the file was changed") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("run", func(t *testing.T) {
		src := open()
		plan, err := pipeline.NewPlan(src, pipeline.Recipe{Method: pipeline.GPTQ, Type: ggml.Q4_0})
		if err != nil {
			t.Fatal(err)
		}
		set := &calib.Set{SeqLen: 64, Sequences: make([][]int32, 16)}
		for i := range set.Sequences {
			set.Sequences[i] = make([]int32, 64)
		}
		out := t.TempDir()
		opt := pipeline.Options{Calib: set, NoCorrection: true, Progress: &whenAdded{name: "layer 1/2", f: cut}}
		_, err = pipeline.Run(context.Background(), src, plan, filepath.Join(out, "out"), opt)
		if err == nil || !strings.Contains(err.Error(), path+": the file was changed") {
			t.Errorf("got %v", err)
		}
		if left := listing(t, out); len(left) != 1 {
			t.Errorf("left %v", left)
		}
	})
}
