//go:build linux || darwin

package pipeline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// stubborn is a method whose solvers work until they are told not to.
type stubborn struct {
	quant.Method
	running, untold *atomic.Int32 // solvers at work; those that nobody has told
}

func (m stubborn) Open(*quant.Stats) quant.Solver { return m }

func (m stubborn) Quantize(ctx context.Context, _ quant.Job) (quant.Result, error) {
	m.running.Add(1)
	defer m.running.Add(-1)
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		m.untold.Add(1)
	}
	return quant.Result{}, errors.New("given up")
}

// TestSiteFails: when a linear cannot be begun, those of its site that run are told to end, and have ended before anybody hears of it:
// what they write to is closed then.
func TestSiteFails(t *testing.T) {
	src := testmodel.New("llama").Source()
	plan, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0})
	if err != nil {
		t.Fatal(err)
	}
	for name, fail := range map[string]func(p *passage, second *model.Linear) (want string){
		"Hessians that cannot be read": func(p *passage, second *model.Linear) string {
			f, err := newOutputs(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.close() })
			f.at[second.ID()] = []outputBlock{{rows: second.Out}}
			p.found.outputs = f
			return "output Hessians: " + second.Name
		},
		"weights of a file that was cut off": func(p *passage, second *model.Linear) string {
			path := filepath.Join(t.TempDir(), "weights")
			const offset = 1 << 16 // whole pages
			if err := os.WriteFile(path, append(make([]byte, offset), second.W.Data...), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := mmap.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			second.W.Data = f.Data[offset:]
			if err := os.Truncate(path, 10); err != nil {
				t.Fatal(err)
			}
			return path
		},
	} {
		m := openModel(t, src)
		l, err := m.LoadLayer(0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		site := l.Stages[0].Sites[0]
		if site.Linears[0].F32, err = site.Linears[0].Matrix(); err != nil { // is not divided
			t.Fatal(err)
		}
		rows := mostUnitRows
		mostUnitRows = site.Linears[1].Out / 2
		method := stubborn{GPTQ, new(atomic.Int32), new(atomic.Int32)}
		tk := &task{ctx: t.Context(), src: src, m: m, plan: plan}
		p := &passage{task: tk, out: &writer{task: tk}, scaled: &transformer{task: tk}, found: &findings{}}
		p.found.methods = map[string]quant.Method{site.Linears[0].Name: method}
		want := fail(p, site.Linears[1])
		err = mmap.Guard(func() error { return p.site(l, site, quant.NewStats(site.In()), nil) })
		if running := method.running.Load(); running > 0 {
			t.Errorf("%s: %d linears still run", name, running)
		}
		if untold := method.untold.Load(); err == nil || !strings.Contains(err.Error(), want) || untold > 0 {
			t.Errorf("%s: %v; %d linears were not told", name, err, untold)
		}
		mostUnitRows = rows
	}
}
