package eval_test

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/tensor"
)

// louder doubles the weights, which are then still exact in bfloat16.
func louder(w *tensor.Matrix) (*tensor.Matrix, error) {
	for i := range w.Data {
		w.Data[i] *= 2
	}
	return w, nil
}

// TestSensitivity compares each effect with the KL divergence of a model that has the other weights in its file.
func TestSensitivity(t *testing.T) {
	tm := testmodel.New("llama3-tied")
	tokens := tm.Tokens(60, 3)
	names := []string{"blk.2.ffn_down.weight", "blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.0.ffn_up.weight"}
	var rs []eval.Replacement
	for _, name := range names {
		rs = append(rs, eval.Replacement{Linear: name, Weights: louder})
	}
	opt := eval.Options{Context: 20}
	got, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), tokens, rs, opt)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		src := tm.Source()
		w := src.Find(name)
		for j := 0; j < len(w.Data); j += 2 {
			tensor.EncodeBF16(w.Data[j:j+2], []float32{2 * tensor.BF16(uint16(w.Data[j])|uint16(w.Data[j+1])<<8)})
		}
		opt.Base = open(t, tm.Source())
		want := perplexity(t, open(t, src), tokens, opt)
		near(t, name+": KL", got[i].KL, want.KL, 1e-4)
		near(t, name+": standard error", got[i].StdErr, want.KLStdErr, 1e-4)
	}

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for threads, opt := range map[int]eval.Options{
		1: {Context: 20, BatchTokens: 1}, 2: {Context: 20, Memory: 1, TempDir: t.TempDir()}, 3: {Context: 20, Memory: 1, BatchTokens: 40},
	} {
		runtime.GOMAXPROCS(threads)
		again, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), tokens, rs, opt)
		if err != nil {
			t.Fatal(err)
		}
		for i := range again {
			near(t, "again: KL", again[i].KL, got[i].KL, 1e-5)
		}
	}
	// One processor takes two batches of long chunks together.
	long, want := tm.Tokens(5*32, 4), []eval.Effect(nil)
	for threads := 2; threads > 0; threads-- {
		runtime.GOMAXPROCS(threads)
		got, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), long, rs, eval.Options{Context: 32, BatchTokens: 32})
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		for i := range got {
			near(t, "long chunks: KL", got[i].KL, want[i].KL, 1e-5)
		}
	}
	same := func(w *tensor.Matrix) (*tensor.Matrix, error) { return w, nil }
	p := &progress{}
	none, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), tokens, []eval.Replacement{{names[1], same}},
		eval.Options{Context: 20, Progress: p})
	if err != nil || !reflect.DeepEqual(none, []eval.Effect{{}}) {
		t.Errorf("the same weights: %+v, %v", none, err)
	}
	if done := p.done.Load(); done != p.total || p.total == 0 {
		t.Errorf("%d of %d units were reported done", done, p.total)
	}
}

// TestSensitivityEnds replaces the embedding and the head, of a model with two tensors for them, and of one with one.
func TestSensitivityEnds(t *testing.T) {
	defer eval.SetHeadRows(7)()
	rs := []eval.Replacement{{eval.Embedding, louder}, {"blk.0.attn_q.weight", louder}, {eval.Head, louder}}
	opt := eval.Options{Context: 20, ScoreAll: true}
	for _, name := range []string{"llama", "llama3-tied"} {
		tm := testmodel.New(name)
		tokens := tm.Tokens(60, 3)
		got, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), tokens, rs, opt)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range rs {
			src := tm.Source()
			if src.Find(eval.Head) == nil { // tied: what is read and what computes logits, apart
				e := *src.Find(eval.Embedding)
				e.Name, e.Data = eval.Head, bytes.Clone(e.Data)
				src.List = append(src.List, e)
			}
			w := src.Find(r.Linear)
			for j := 0; j < len(w.Data); j += 2 {
				tensor.EncodeBF16(w.Data[j:j+2], []float32{2 * tensor.BF16(uint16(w.Data[j])|uint16(w.Data[j+1])<<8)})
			}
			opt := opt
			opt.Base = open(t, tm.Source())
			want := perplexity(t, open(t, src), tokens, opt)
			near(t, name+", "+r.Linear+": KL", got[i].KL, want.KL, 1e-4)
		}
	}
}

func TestSensitivityErrors(t *testing.T) {
	tm := testmodel.New("qwen2")
	tokens := tm.Tokens(60, 3)
	fails := func(*tensor.Matrix) (*tensor.Matrix, error) { return nil, errors.New("cannot") }
	for _, c := range []struct {
		r    eval.Replacement
		opt  eval.Options
		want string
	}{
		{eval.Replacement{Linear: "blk.9.attn_q.weight", Weights: louder}, eval.Options{Context: 20}, `no layer has a linear "blk.9.attn_q.weight"`},
		{eval.Replacement{Linear: "output_norm.weight", Weights: louder}, eval.Options{Context: 20}, "no layer has a linear"},
		{eval.Replacement{Linear: eval.Embedding, Weights: fails}, eval.Options{Context: 20}, "token_embd.weight: cannot"},
		{eval.Replacement{Linear: eval.Head, Weights: fails}, eval.Options{Context: 20}, "output.weight: cannot"},
		{eval.Replacement{Linear: "blk.0.attn_q.weight", Weights: louder}, eval.Options{Context: 90}, "the text has 60 tokens"},
		{eval.Replacement{Linear: "blk.0.attn_q.weight", Weights: fails},
			eval.Options{Context: 20}, "blk.0.attn_q.weight: cannot"},
	} {
		_, err := eval.Sensitivity(context.Background(), open(t, tm.Source()), tokens, []eval.Replacement{c.r}, c.opt)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.r.Linear, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := eval.Sensitivity(ctx, open(t, tm.Source()), tokens, []eval.Replacement{{"blk.0.attn_q.weight", louder}}, eval.Options{Context: 20})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}
