//go:build !nonats

package eval_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/engine/cluster"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// lost is a worker that hangs in its first unit, and is then cut off.
type lost struct {
	engine.Worker
	hangs bool
	begun func(name string)
	cut   context.CancelFunc
}

func (l *lost) Do(ctx context.Context, u engine.Unit) (string, error) {
	l.begun(u.Name)
	if l.hangs {
		l.cut()
		<-ctx.Done()
		return "", ctx.Err()
	}
	return l.Worker.Do(ctx, u)
}

// TestUnitsCluster: three workers of a cluster, one of which is lost in the midst of its first unit, find what an evaluation without
// an engine finds; more than one does units, and the lost one's is done by another.
func TestUnitsCluster(t *testing.T) {
	tm, base := testmodel.New("llama"), testmodel.New("llama3-tied")
	tokens := tm.Tokens(12*16, 5)
	opt := eval.Options{Context: 16, BatchTokens: 16, Base: open(t, base.Source())}
	want, err := eval.Perplexity(t.Context(), open(t, tm.Source()), tokens, opt)
	if err != nil {
		t.Fatal(err)
	}
	d, err := store.OpenDir(t.TempDir(), []store.Part{{What: "test", Digest: t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c, err := cluster.New(t.Context(), cluster.Options{Run: d.ID(), Values: d, Build: "build", Tier: "tier", AckWait: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	by := map[string][]string{} // units, by who began them
	var all sync.WaitGroup      // meet in their first unit
	all.Add(3)
	for i := range 3 {
		name := fmt.Sprint("w", i)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := c.Local()
		w.Name, w.Values = name, d
		w.Make = engine.Kinds[engine.Worker]{eval.JobKind: func(ctx context.Context, spec []byte) (engine.Worker, error) {
			ew, err := eval.NewWorker(ctx, open(t, tm.Source()), open(t, base.Source()), spec, d, eval.WorkerOptions{TempDir: t.TempDir()})
			begun := func(unit string) {
				mu.Lock()
				first := len(by[name]) == 0
				by[name] = append(by[name], unit)
				mu.Unlock()
				if first {
					all.Done()
					all.Wait()
				}
			}
			return &lost{ew, i == 0, begun, cancel}, err
		}}.Make
		wg.Go(func() { w.Work(ctx) })
	}
	opt.Work, opt.Engine, opt.Base = d, c, open(t, base.Source())
	got, err := eval.Perplexity(t.Context(), open(t, tm.Source()), tokens, opt)
	if err != nil {
		t.Fatal(err)
	}
	c.End(nil, false)
	wg.Wait()
	if figures(got) != figures(want) {
		t.Errorf("%s, without an engine\n%s", figures(got), figures(want))
	}
	others := map[string]bool{}
	for _, name := range append(by["w1"], by["w2"]...) {
		others[name] = true
	}
	if len(by["w0"]) != 1 || len(by["w1"]) == 0 || len(by["w2"]) == 0 || len(others) != 12 {
		t.Errorf("units begun: %v", by)
	}
}
