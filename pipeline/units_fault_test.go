package pipeline

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// badPage is what the runtime panics with at an address that cannot be read.
type badPage uintptr

func (p badPage) Addr() uintptr { return uintptr(p) }

// faultyContext has a page of a map turn out bad when it is asked for the left-th time.
type faultyContext struct {
	context.Context
	left int
	at   badPage
}

func (c *faultyContext) Err() error {
	if c.left--; c.left == 0 {
		panic(c.at)
	}
	return c.Context.Err()
}

// tapped calls tap before the first set of units that it likes.
type tapped struct {
	engine.Engine
	job []byte
	tap func(job []byte, units []engine.Unit) (done bool)
}

func (e *tapped) Begin(ctx context.Context, job []byte) error {
	e.job = job
	return e.Engine.Begin(ctx, job)
}

func (e *tapped) Do(ctx context.Context, units []engine.Unit) error {
	if e.tap != nil && e.tap(e.job, units) {
		e.tap = nil
	}
	return e.Engine.Do(ctx, units)
}

// worker is a worker by itself for a job of j's run.
func (j job) worker(t *testing.T, job []byte, values store.Shared) engine.Worker {
	w, err := NewWorker(t.Context(), j.src, j.r, job, values, WorkerOptions{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// TestUnitsFault: a worker whose map fails amid a half of the shards, and that is given the unit again, makes what a new one makes.
func TestUnitsFault(t *testing.T) {
	smallUnits(t)
	tm := testmodel.New("llama")
	j := job{tm.Source(), Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: ggml.Q4_K},
		Options{Calib: sequences(tm, 131, 32)}} // 33 batches of 3 or 4: shards of two
	path := filepath.Join(t.TempDir(), "map")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := mmap.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	at := badPage(unsafe.Pointer(&m.Data[0]))
	tried := 0
	_, _, _, _, err = j.by(t, filepath.Join(t.TempDir(), "work"), -1, func(work *store.Dir) engine.Engine {
		return &tapped{Engine: j.local(t, 1)(work), tap: func(job []byte, units []engine.Unit) bool {
			name := (&unitSpec{Kind: unitObserve, Stage: 2, Shard: 1, Half: true}).name(newKeeper(nil, "", "", &j.r, 1))
			if len(units) < 2 || units[1].Name != name {
				return false
			}
			values, err := store.JoinDir(work.Path())
			if err != nil {
				t.Fatal(err)
			}
			do := func(w engine.Worker, ctx context.Context) (string, error) {
				digest, err := w.Do(ctx, units[1])
				names, _ := work.Names()
				for _, n := range names {
					if len(n) >= len(name) && n[:len(name)] == name {
						work.Delete(n)
					}
				}
				return digest, err
			}
			worker := func() engine.Worker { return j.worker(t, job, values) }
			counting := &faultyContext{Context: t.Context()}
			want, err := do(worker(), counting)
			if err != nil {
				t.Fatal(err)
			}
			calls := -counting.left
			for k := 1; k < 8; k++ {
				w := worker()
				if _, err := do(w, &faultyContext{t.Context(), k * calls / 8, at}); err == nil {
					t.Fatal("no fault")
				}
				if got, err := do(w, t.Context()); got != want || err != nil {
					t.Errorf("after a fault at %d of %d: another value, %v", k*calls/8, calls, err)
				}
				tried++
			}
			return true
		}}
	})
	if err != nil || tried == 0 {
		t.Errorf("%d faults, %v", tried, err)
	}
}
