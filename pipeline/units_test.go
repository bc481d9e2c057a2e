package pipeline

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// unitJobs are runs of several shards whose linears are several units.
func unitJobs() map[string]job {
	tm := testmodel.New("llama")
	quick := WithGPTQ(GPTQ, gptq.Options{NoRefine: true})
	set := sequences(tm, 39, 32)
	return map[string]job{
		"gptq":    {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_K}, Options{Calib: set}},
		"outputs": {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_0, OutputHessian: OutputHessianOn}, Options{Calib: set, NoCorrection: true}},
		"head": {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_0, Output: ggml.Q8_0, BiasCorrection: true},
			Options{Calib: set, Memory: 1}},
		"experts": {testmodel.Experts(), Recipe{Method: quick, Type: ggml.Q4_0},
			Options{Calib: sequences(testmodel.New("qwen3"), 14, 32)}},
	}
}

// smallUnits divides the linears of test models among units, and short texts among shards.
func smallUnits(t *testing.T) {
	rows, tokens := mostUnitRows, batchTokens
	mostUnitRows, batchTokens = 24, 128
	t.Cleanup(func() { mostUnitRows, batchTokens = rows, tokens })
}

// local is an engine of workers in this process, for j's run in a work folder.
func (j job) local(t *testing.T, workers int) func(work *store.Dir) engine.Engine {
	return func(work *store.Dir) engine.Engine {
		l := &engine.Local{Values: work, Workers: workers, Make: func(ctx context.Context, job []byte) (engine.Worker, error) {
			values, err := store.JoinDir(work.Path())
			if err != nil {
				return nil, err
			}
			return NewWorker(ctx, j.src, j.r, job, values, WorkerOptions{Memory: j.opt.Memory, TempDir: t.TempDir()})
		}}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
		return l
	}
}

// TestUnits: any number of workers makes the file and the report of a run without an engine.
func TestUnits(t *testing.T) {
	smallUnits(t)
	for name, j := range unitJobs() {
		t.Run(name, func(t *testing.T) {
			want, wantReport, _, _, err := j.in(t, "", -1)
			if err != nil {
				t.Fatal(err)
			}
			for _, workers := range []int{1, 3} {
				if workers == 1 && name != "gptq" && name != "experts" {
					continue
				}
				work := filepath.Join(t.TempDir(), "work")
				got, rep, _, _, err := j.by(t, work, -1, j.local(t, workers))
				if err != nil {
					t.Fatalf("%d workers: %v", workers, err)
				}
				if got != want {
					t.Errorf("%d workers: another file", workers)
				}
				if a, b := reportJSON(t, rep), reportJSON(t, wantReport); a != b {
					t.Errorf("%d workers: the report is\n%s\nnot\n%s", workers, a, b)
				}
				if left := values(t, work); len(left) > 0 {
					t.Errorf("%d workers: the folder holds %q", workers, left)
				}
			}
		})
	}
}

// TestUnitsRefused: what there are no units for is refused by name.
func TestUnitsRefused(t *testing.T) {
	j := unitJobs()["gptq"]
	for want, r := range map[string]Recipe{
		"awq":  {Method: AWQ, Type: ggml.Q4_0},
		"auto": {Method: Auto, Type: ggml.Q4_0},
		"int8": {Method: Int8, Type: ggml.Q8_0},
	} {
		j.r = r
		if _, _, _, _, err := j.by(t, filepath.Join(t.TempDir(), "work"), -1, j.local(t, 1)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	j = unitJobs()["gptq"]
	j.opt.Fallback = Fallback{MaxError: 0.1}
	if _, _, _, _, err := j.by(t, filepath.Join(t.TempDir(), "work"), -1, j.local(t, 1)); err == nil || !strings.Contains(err.Error(), "q8_0") {
		t.Errorf("%v", err)
	}
}
