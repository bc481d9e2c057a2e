package eval_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// counted is a worker whose units are counted, and that is cancelled when it has done so many, but for -1.
type counted struct {
	engine.Worker
	done   *int
	left   *int
	mu     *sync.Mutex
	cancel context.CancelCauseFunc
	meet   *sync.WaitGroup // with another worker, before the first unit; nil: not
}

func (c *counted) Do(ctx context.Context, u engine.Unit) (string, error) {
	c.mu.Lock()
	if *c.left == 0 {
		c.cancel(errKilled)
	}
	*c.left--
	*c.done++
	c.mu.Unlock()
	if c.meet != nil {
		c.meet.Done()
		c.meet.Wait()
		c.meet = nil
	}
	return c.Worker.Do(ctx, u)
}

// divided is an evaluation by workers in this process.
type divided struct {
	t       *testing.T
	m, base *testmodel.Model // base may be nil
	tokens  []int32
	opt     eval.Options
}

// run evaluates in a work folder with some workers, until one that begins more than left units is cancelled, and counts the units that
// each has begun.
func (s *divided) run(work string, workers, left int) (*eval.Result, []int, error) {
	s.t.Helper()
	d, err := store.OpenDir(work, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancelCause(s.t.Context())
	defer cancel(nil)
	done := make([]int, workers)
	var mu sync.Mutex
	made := 0
	var meet *sync.WaitGroup
	if workers > 1 && s.opt.Chunks != 1 {
		meet = new(sync.WaitGroup)
		meet.Add(workers)
	}
	models := func() (m, base *model.Model) {
		if s.base != nil {
			base = open(s.t, s.base.Source())
		}
		return open(s.t, s.m.Source()), base
	}
	l := &engine.Local{Values: d, Workers: workers, Make: engine.Kinds[engine.Worker]{
		eval.JobKind: func(ctx context.Context, spec []byte) (engine.Worker, error) {
			values, err := store.JoinDir(work)
			if err != nil {
				return nil, err
			}
			m, base := models()
			w, err := eval.NewWorker(ctx, m, base, spec, values, eval.WorkerOptions{TempDir: s.t.TempDir()})
			made++
			return &counted{w, &done[made-1], &left, &mu, cancel, meet}, err
		}}.Make}
	defer l.Close()
	opt := s.opt
	opt.Work, opt.Engine = d, l
	m, base := models()
	opt.Base = base
	res, err := eval.Perplexity(ctx, m, s.tokens, opt)
	return res, done, err
}

// figures is a result without the time it took.
func figures(r *eval.Result) string {
	same := *r
	same.Seconds, same.TokensPerSecond, same.Divergence = 0, 0, nil
	return fmt.Sprintf("%+v %+v", same, r.Divergence)
}

// TestUnits: any number of workers finds what an evaluation without an engine finds, to the last bit, and so does a run whose worker
// is cancelled in the midst and which goes on with others, or with none.
func TestUnits(t *testing.T) {
	tm, base := testmodel.New("llama"), testmodel.New("llama3-tied")
	bos := int32(1)
	for name, s := range map[string]*divided{
		"base":      {m: tm, base: base, opt: eval.Options{Context: 16, BatchTokens: 32, BOS: &bos}},
		"alone":     {m: tm, opt: eval.Options{Context: 12, BatchTokens: 12, ScoreAll: true, Chunks: 19}},
		"outliers":  {m: tm, opt: eval.Options{Context: 16, BatchTokens: 16, Chunks: 3, Activations: eval.LLMInt8}},
		"one shard": {m: tm, opt: eval.Options{Context: 16, Chunks: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s.t, s.tokens = t, tm.Tokens(16*39+5, 3)
			opt := s.opt
			if s.base != nil {
				opt.Base = open(t, s.base.Source())
			}
			want, err := eval.Perplexity(t.Context(), open(t, tm.Source()), s.tokens, opt)
			if err != nil {
				t.Fatal(err)
			}
			check := func(how, work string, workers int) []int {
				got, done, err := s.run(work, workers, -1)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if figures(got) != figures(want) {
					t.Errorf("%s:\n%s, without an engine\n%s", how, figures(got), figures(want))
				}
				if left, _ := filepath.Glob(filepath.Join(work, "*.value")); len(left) > 0 {
					t.Errorf("%s: %q are left", how, left)
				}
				return done
			}
			if name == "one shard" {
				check("one worker", t.TempDir(), 1)
				return
			}
			done := check("three workers", t.TempDir(), 3)
			units := min(16, (want.Chunks*want.Context+s.opt.BatchTokens-1)/s.opt.BatchTokens)
			if done[0]+done[1]+done[2] != units || min(done[0], done[1], done[2]) == 0 {
				t.Errorf("three workers did %v of %d units", done, units)
			}
			if units < 16 {
				return
			}
			work := t.TempDir()
			if _, _, err := s.run(work, 3, 7); !errors.Is(err, errKilled) && !errors.Is(err, context.Canceled) {
				t.Fatalf("a run that is cancelled: %v", err)
			}
			done = check("after it was cancelled", work, 2)
			if total := done[0] + done[1]; total == 0 || total > 16-4 {
				t.Errorf("%d of 16 units are done again after 7 were begun by three workers", total)
			}
		})
	}
}

// TestUnitsRefused: jobs and units that do not belong to the models are refused by name.
func TestUnitsRefused(t *testing.T) {
	d, err := store.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	tm := testmodel.New("llama")
	m := open(t, tm.Source())
	worker := func(spec string) (engine.Worker, error) {
		return eval.NewWorker(t.Context(), m, nil, []byte(spec), d, eval.WorkerOptions{})
	}
	text := func(bytes int) {
		w, err := d.Create("eval-text")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, strings.Repeat("\x00", bytes))
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	for want, try := range map[string]struct {
		bytes int
		spec  string
	}{
		"base model":   {256, `{"Context":32,"Tokens":64,"Base":true}`},
		"unexpected":   {200, `{"Context":32,"Tokens":64}`},
		"bytes more":   {300, `{"Context":32,"Tokens":64}`},
		"-1 tokens":    {256, `{"Context":32,"Tokens":-1}`},
		"context of 3": {256, `{"Context":3,"Tokens":64}`},
		"the job":      {256, `[]`},
		"fast":         {256, `{"Context":32,"Tokens":64,"Activations":"fast"}`},
	} {
		text(try.bytes)
		if _, err := worker(try.spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", try.spec, err)
		}
	}
	text(256)
	w, err := worker(`{"Context":32,"Tokens":64}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []engine.Unit{{Name: "eval-scores00", Spec: []byte(`{"Shard":1}`)}, {Name: "eval-scores09", Spec: []byte(`{"Shard":9}`)},
		{Name: "eval-scores00", Spec: []byte(`x`)}} {
		if _, err := w.Do(t.Context(), u); err == nil || !strings.Contains(err.Error(), "the unit") {
			t.Errorf("%s: %v", u.Spec, err)
		}
	}
	if _, err := eval.Perplexity(t.Context(), m, tm.Tokens(64, 1), eval.Options{Context: 32, Engine: &engine.Local{}}); err == nil ||
		!strings.Contains(err.Error(), "folder") {
		t.Errorf("an engine without a folder: %v", err)
	}
}
