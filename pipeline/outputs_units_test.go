package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/states"
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
			Options{Calib: sequences(testmodel.New("qwen3"), 22, 32)}} // 7 batches of 3 or 4
		plain := passOf(t, j, nil)
		if err := plain.gradients(); err != nil {
			t.Fatal(err)
		}
		want := hessians(t, plain.found.outputs)
		if len(want) == 0 {
			t.Fatalf("%s: there are no Hessians", name)
		}
		batches := textBatches(plain.m, len(j.opt.Calib.Sequences), j.opt.Calib.SeqLen).batches()
		all := 0 // batches on the way back through a layer
		for i := range plain.m.Layers() {
			l, err := plain.m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			b := newBackwardPass(plain.task, nil, nil, nil, span{})
			all += len(b.groups(l)) * batches
		}
		kills := 0
		for n := 1; ; n = 4*n - 1 {
			path := t.TempDir()
			backs := 0
			// By batches first and by halves then, the other way round, and either way on.
			first, then := []int{3, 2, 4, 1}[kills%4], []int{2, 3, 3, 2}[kills%4]
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
			_, err := run(first, n)
			if err == nil {
				break
			}
			if !errors.Is(err, errKilled) {
				t.Fatalf("%s: %v", name, err)
			}
			kills++
			attempted := backs
			p, err := run(then, 1000)
			if err != nil {
				t.Fatalf("%s: killed at set %d: %v", name, n, err)
			}
			if again := backs - all; again < 0 || again > batches {
				t.Errorf("%s: killed at set %d: %d batches on the way back, then %d, %d without", name, n, attempted, backs-attempted, all)
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

// counting is an engine that counts batches of the way back whose values are asked for and not there.
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
		var g gradientsUnit
		if err := json.Unmarshal(u.Spec, &g); err != nil {
			return err
		}
		if first, last := g.batches(); g.Back {
			*c.n += last - first
		}
	}
	return c.Engine.Do(ctx, units)
}

// sums is an engine that counts, of each group of linears, the sums on the way back that are in the work folder at a time, at most.
type sums struct {
	engine.Engine
	values store.Shared
	most   map[string]int
}

func (s *sums) Do(ctx context.Context, units []engine.Unit) error {
	err := s.Engine.Do(ctx, units)
	if names, _ := s.values.Names(); err == nil && strings.Contains(string(units[0].Spec), `"Back":true`) {
		group, n := units[0].Name[:strings.LastIndex(units[0].Name, "-")], 0
		for _, name := range names {
			if strings.HasPrefix(name, group+"-batch") || strings.HasPrefix(name, group+"-half") {
				n++
			}
		}
		s.most[group] = max(s.most[group], n)
	}
	return err
}

// TestGradientHalves: any number of workers makes the Hessians of a run by itself, of one batch or many, however many are summed at a time; one
// and two workers put out two sums of a part, more than that one of each batch.
func TestGradientHalves(t *testing.T) {
	smallUnits(t)
	tm := testmodel.New("qwen3")
	seen := map[int]bool{}
	for _, seqs := range []int{1, 5, 9, 22} {
		j := job{tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn}, Options{Calib: sequences(tm, seqs, 32)}}
		plain := passOf(t, j, nil)
		if err := plain.gradients(); err != nil {
			t.Fatal(err)
		}
		want := hessians(t, plain.found.outputs)
		l, err := plain.m.LoadLayer(0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		b := newBackwardPass(plain.task, nil, nil, nil, span{})
		parts := len(b.parts(b.groups(l)[0]))
		batches := textBatches(plain.m, seqs, 32).batches()
		if seen[batches] = true; parts < 2 {
			t.Fatalf("%d parts", parts)
		}
		for _, gradientsTogether = range []int{2, 16} {
			for workers := 1; workers <= 4; workers++ {
				what := fmt.Sprintf("%d batches, %d at a time, %d workers", batches, gradientsTogether, workers)
				d := openWorkFolder(t)
				p := passOf(t, j, d)
				counted := &sums{j.local(t, workers)(d), d, map[string]int{}}
				p.opt.Engine = counted
				if err := p.gradients(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if !reflect.DeepEqual(hessians(t, p.found.outputs), want) {
					t.Errorf("%s: other Hessians", what)
				}
				most := min(batches, 2)
				if workers > 2 {
					most = min(batches, gradientsTogether)
				}
				if got := counted.most["gradients-layer0000-group00"]; got != most*parts {
					t.Errorf("%s: %d sums of %d parts, want %d", what, got, parts, most*parts)
				}
			}
		}
	}
	if !seen[1] || !seen[2] || !seen[3] || !seen[7] {
		t.Errorf("texts of %v batches", seen)
	}
}

// TestSpans: spans are of all batches, in order, of no more than are summed at a time, and none is of both halves where there are several.
func TestSpans(t *testing.T) {
	for n := 1; n < 70; n++ {
		of := batching(states.Evenly(n, n))
		_, middle := of.half(0)
		if _, last := of.half(of.halves() - 1); last != n || middle-(n-middle) < 0 || middle-(n-middle) > 1 && n > 1 {
			t.Errorf("%d batches: the halves meet at %d and end at %d", n, middle, last)
		}
		next := 0
		for _, s := range of.spans() {
			if s.first != next || s.last <= s.first || s.last-s.first > gradientsTogether || n > gradientsTogether && s.first < middle && middle < s.last {
				t.Errorf("%d batches: spans %v", n, of.spans())
			}
			next = s.last
		}
		if next != n || n <= gradientsTogether && len(of.spans()) > 1 {
			t.Errorf("%d batches: spans %v", n, of.spans())
		}
	}
}

// erring is a context that is done when it has been asked so often.
type erring struct {
	context.Context
	left int
}

func (e *erring) Err() error {
	if e.left--; e.left == -1 {
		return errKilled
	}
	return nil
}

// TestGradientHalfFails: a worker that fails amid a half, and is given it again, makes what a new one makes.
func TestGradientHalfFails(t *testing.T) {
	smallUnits(t)
	tm := testmodel.New("qwen3")
	j := job{tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn}, Options{Calib: sequences(tm, 24, 32)}}
	d := openWorkFolder(t)
	p := passOf(t, j, d)
	tried := 0
	p.opt.Engine = &tapped{Engine: j.local(t, 2)(d), tap: func(message []byte, units []engine.Unit) bool {
		if !strings.Contains(units[0].Name, "layer0000") || !strings.Contains(string(units[0].Spec), `"Back":true`) {
			return false
		}
		const never = 1 << 30
		calls := &erring{t.Context(), never}
		w := j.worker(t, message, d)
		want, err := w.Do(calls, units[0])
		if err != nil {
			t.Fatal(err)
		}
		for left := never - calls.left - 1; left > 0; left -= 4 {
			w := j.worker(t, message, d)
			if _, err := w.Do(&erring{t.Context(), left}, units[0]); !errors.Is(err, errKilled) {
				t.Fatalf("killed at %d: %v", left, err)
			}
			if got, err := w.Do(t.Context(), units[0]); got != want || err != nil {
				t.Errorf("killed at %d: another value, %v", left, err)
			}
			tried++
		}
		return true
	}}
	if err := p.gradients(); err != nil || tried < 3 {
		t.Errorf("%d failures, %v", tried, err)
	}
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
	_, err = worker(func(g *gradientsJob) { g.Sequences = -1 })
	refused(err, "-1 sequences of 32 tokens in 2 batches")
	_, err = worker(func(g *gradientsJob) { g.SeqLen = 0 })
	refused(err, "4 sequences of 0 tokens")
	_, err = worker(func(g *gradientsJob) { g.Batches = 0 })
	refused(err, "in 0 batches")
	_, err = worker(func(g *gradientsJob) { g.Batches = 5 })
	refused(err, "4 sequences of 32 tokens in 5 batches")
	_, err = worker(func(g *gradientsJob) { g.Source = "another" })
	refused(err, "is not the checkpoint")
	_, err = worker(func(g *gradientsJob) { g.Types[3].Type = "q99" })
	refused(err, "q99")
	layers := *spec
	layers.Sequences = 0
	message, err := engine.OfKind(jobLayers, &layers)
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewWorker(t.Context(), j.src, j.r, message, d, WorkerOptions{TempDir: t.TempDir()})
	refused(err, "0 sequences of 32 tokens")
	w, err := worker(same)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for want, u := range map[string]gradientsUnit{
		"of none of":   {Layer: 99, Back: true},
		"2 batches":    {Forth: true, First: 2},
		"of group 7":   {Back: true, Group: 7},
		"of part 9":    {Part: 9, Last: 1},
		"no such":      {Last: 2},
		"before 1 of":  {First: 1, Last: 1},
		"no half of 2": {Back: true, Last: 2},
		"0 to 0, no":   {Halves: true, Last: 1},
	} {
		_, err := w.Do(context.Background(), u.unit(1, ""))
		if want == "no such" { // sums that are not there
			want = "gradients-layer0000-group00"
		}
		if want == "before 1 of" {
			want = "2 batches"
		}
		refused(err, want)
	}
	u := gradientsUnit{Forth: true}
	unit := u.unit(1, "")
	unit.Name = "gradients-forth0000-batch00001"
	_, err = w.Do(context.Background(), unit)
	refused(err, "the unit's name")
}
