package pipeline

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// passOf is a passage of j that has done nothing yet, with a work folder if d is not nil.
func passOf(t *testing.T, j job, d *store.Dir) *passage {
	plan, err := NewPlan(j.src, j.r)
	if err != nil {
		t.Fatal(err)
	}
	m, err := arch.Open(j.src)
	if err != nil {
		t.Fatal(err)
	}
	opt := j.opt
	opt.Progress = silent{}
	work := &task{ctx: t.Context(), src: j.src, m: m, plan: plan, opt: opt, tempDir: t.TempDir()}
	if d != nil {
		work.opt.Work = d
		work.kept = newKeeper(d, "", "", &plan.Recipe, 1)
	}
	p := &passage{task: work, found: newFindings()}
	t.Cleanup(func() { p.found.outputs.close() })
	return p
}

// hessians are all that outputs have.
func hessians(t *testing.T, o *outputs) map[string][]*tensor.Matrix {
	all := map[string][]*tensor.Matrix{}
	for id := range o.at {
		blocks, err := o.of(&model.Linear{Name: id, Expert: -1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all[id] = blocks
	}
	return all
}

// TestGradientUnits: workers make the Hessians and the report of a run by itself, to the last bit, also where the run was killed amid
// any set of units, and goes on with other workers, who have none of the hidden states; the folder is left with nothing but them.
func TestGradientUnits(t *testing.T) {
	smallUnits(t)
	budget := outputBudget
	defer func() { outputBudget = budget }()
	outputBudget = 200000
	for name, src := range map[string]*testmodel.Source{"dense": testmodel.New("qwen3").Source(), "experts": testmodel.Experts()} {
		j := job{src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianAuto},
			Options{Calib: sequences(testmodel.New("qwen3"), 18, 32)}}
		plain := passOf(t, j, nil)
		if err := plain.gradients(); err != nil {
			t.Fatal(err)
		}
		want := hessians(t, plain.found.outputs)
		if len(want) == 0 {
			t.Fatalf("%s: there are no Hessians", name)
		}
		all := 0 // units of the way back
		for i := range plain.m.Layers() {
			l, err := plain.m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			b := newBackwardPass(plain.task, nil, nil, batching{}, 0)
			all += len(b.groups(l)) * batchCount(plain.m, len(j.opt.Calib.Sequences), j.opt.Calib.SeqLen)
		}
		kills := 0
		for n := 1; ; n = 4*n - 1 {
			path := t.TempDir()
			backs := 0
			run := func(workers, left int) (*passage, error) {
				d, err := store.OpenDir(path, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				p := passOf(t, j, d)
				p.opt.Engine = &counting{&fragile{j.local(t, workers)(d), left}, d, &backs}
				return p, p.gradients()
			}
			_, err := run(3, n)
			if err == nil {
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("%s: %v", name, err)
			}
			kills++
			attempted := backs
			p, err := run(1+n%2, 1000)
			if err != nil {
				t.Fatalf("%s: killed at set %d: %v", name, n, err)
			}
			if again := backs - all; again < 0 || again > gradientsTogether {
				t.Errorf("%s: killed at set %d: %d units of the way back, then %d, %d without", name, n, attempted, backs-attempted, all)
			}
			if got := hessians(t, p.found.outputs); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: killed at set %d: other Hessians", name, n)
			}
			if got, want := p.found.outputs.report(), plain.found.outputs.report(); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: killed at set %d: the report is %+v, not %+v", name, n, got, want)
			}
			if left := values(t, path); len(left) != 1 || !strings.HasSuffix(left[0], outputsName+".value") {
				t.Errorf("%s: killed at set %d: the folder holds %q", name, n, left)
			}
		}
		if kills < 3 {
			t.Errorf("%s: there are only %d places to be killed at", name, kills)
		}
	}
}

// counting is an engine that counts units of the way back whose values are asked for and not there.
type counting struct {
	engine.Engine
	values store.Shared
	n      *int
}

func (c *counting) Do(ctx context.Context, units []engine.Unit) error {
	missing, err := engine.Missing(c.values, units)
	if err != nil {
		return err
	}
	for _, u := range missing {
		if strings.Contains(string(u.Spec), `"Back":true`) {
			*c.n++
		}
	}
	return c.Engine.Do(ctx, units)
}

// TestGradientUnitsRefused: jobs and units that do not belong to the checkpoint or the text are refused by name.
func TestGradientUnitsRefused(t *testing.T) {
	d := openWorkFolder(t)
	j := job{testmodel.New("llama").Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0}, Options{Calib: sequences(testmodel.New("llama"), 4, 32)}}
	spec, err := passOf(t, j, d).job()
	if err != nil {
		t.Fatal(err)
	}
	worker := func(change func(*gradientsJob)) (engine.Worker, error) {
		g := gradientsJob{*spec, 2}
		g.Types = slices.Clone(spec.Types)
		change(&g)
		message, err := engine.OfKind(jobGradients, &g)
		if err != nil {
			t.Fatal(err)
		}
		return NewWorker(t.Context(), j.src, j.r, message, d, WorkerOptions{TempDir: t.TempDir()})
	}
	refused := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	same := func(*gradientsJob) {}
	_, err = worker(same)
	refused(err, "has no "+gradientsTokens)
	if err := keepValue(d, gradientsTokens, j.opt.Calib.Sequences); err != nil {
		t.Fatal(err)
	}
	_, err = worker(func(g *gradientsJob) { g.Sequences = 5 })
	refused(err, "4 sequences of 5")
	_, err = worker(func(g *gradientsJob) { g.PerBatch = 0 })
	refused(err, "batches of 0")
	_, err = worker(func(g *gradientsJob) { g.Source = "another" })
	refused(err, "is not the checkpoint")
	_, err = worker(func(g *gradientsJob) { g.Types[3].Type = "q99" })
	refused(err, "q99")
	w, err := worker(same)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for want, u := range map[string]gradientsUnit{
		"of none of":  {Layer: 99, Back: true},
		"2 batches":   {Forth: true, First: 2},
		"of group 7":  {Back: true, Group: 7},
		"of part 9":   {Part: 9, Last: 1},
		"no such":     {Last: 2},
		"before 1 of": {First: 1, Last: 1},
	} {
		_, err := w.Do(context.Background(), u.unit(1))
		if want == "no such" { // sums that are not there
			want = "gradients-layer0000-group00"
		}
		if want == "before 1 of" {
			want = "2 batches"
		}
		refused(err, want)
	}
	u := gradientsUnit{Forth: true}
	unit := u.unit(1)
	unit.Name = "gradients-forth0000-batch00001"
	_, err = w.Do(context.Background(), unit)
	refused(err, "the unit's name")
}
