package eval_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// mortal is a work folder that fails when so many values have been kept.
type mortal struct {
	*store.Dir
	left int
}

var errKilled = errors.New("killed")

func (m *mortal) Create(name string) (store.Writer, error) {
	if m.left == 0 {
		return nil, errKilled
	}
	m.left--
	return m.Dir.Create(name)
}

// layers counts those that are computed.
type layers struct {
	progress
	n int
}

func (l *layers) Item(name string) {
	if name != "head" {
		l.n++
	}
}

// TestResume kills an evaluation of two models behind every layer: it goes on there, and finds the same.
func TestResume(t *testing.T) {
	tm := testmodel.New("llama")
	base := testmodel.New("llama3-tied")
	tokens := tm.Tokens(200, 3)
	run := func(work string, left int) (*eval.Result, int, error) {
		l := &layers{}
		opt := eval.Options{Context: 32, Progress: l, Base: open(t, base.Source())}
		if work != "" {
			d, err := store.OpenDir(work, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			opt.Work = &mortal{d, left}
		}
		res, err := eval.Perplexity(t.Context(), open(t, tm.Source()), tokens, opt)
		return res, l.n, err
	}
	want, all, err := run("", -1)
	if err != nil {
		t.Fatal(err)
	}
	for n := range all {
		work := filepath.Join(t.TempDir(), "work")
		if _, _, err := run(work, n); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		got, again, err := run(work, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got.Perplexity != want.Perplexity || *got.Divergence != *want.Divergence {
			t.Errorf("killed behind %d layers: %+v, %+v; want %+v, %+v", n, got, got.Divergence, want, want.Divergence)
		}
		if again != all-n {
			t.Errorf("killed behind %d layers: %d of %d are computed then", n, again, all)
		}
		if left, _ := filepath.Glob(filepath.Join(work, "*.value")); len(left) > 0 {
			t.Errorf("%q are left", left)
		}
	}
}
