package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// unitJobs are runs of several shards whose linears are several units.
func unitJobs() map[string]job {
	tm := testmodel.New("llama")
	quick := WithGPTQ(GPTQ, gptq.Options{NoRefine: true})
	set := sequences(tm, 39, 32)
	return map[string]job{
		"gptq":    {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_K}, Options{Calib: sequences(tm, 21, 32)}}, // 7 batches of 3, where 4 fit
		"outputs": {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_0, OutputHessian: OutputHessianOn}, Options{Calib: set, NoCorrection: true}},
		"head": {tm.Source(), Recipe{Method: quick, Type: ggml.Q4_0, Output: ggml.Q8_0, BiasCorrection: true},
			Options{Calib: set, Memory: 1}},
		"experts": {testmodel.Experts(), Recipe{Method: quick, Type: ggml.Q4_0, OutputHessian: OutputHessianAuto},
			Options{Calib: sequences(testmodel.New("qwen3"), 14, 32)}},
	}
}

// smallUnits divides the linears of test models among units, short texts among shards, and statistics in parts.
func smallUnits(t *testing.T) {
	rows, tokens, features, halved, bundled := mostUnitRows, batchTokens, statsPartFeatures, leastHalvedFeatures, mostBundledFeatures
	bytes, batches, part, even := gradientPartBytes, gradientsTogether, leastBatchPart, leastEven
	mostUnitRows, batchTokens, statsPartFeatures, leastHalvedFeatures, mostBundledFeatures = 24, 128, 40, 41, 300
	gradientPartBytes, gradientsTogether, leastBatchPart, leastEven = 30000, 3, 2, 96
	t.Cleanup(func() {
		mostUnitRows, batchTokens, statsPartFeatures, leastHalvedFeatures, mostBundledFeatures = rows, tokens, features, halved, bundled
		gradientPartBytes, gradientsTogether, leastBatchPart, leastEven = bytes, batches, part, even
	})
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
			counts := map[string][]int{"gptq": {1, 3}, "outputs": {2, 3}, "head": {2, 4}, "experts": {1, 3}}[name] // 1 and 2 by halves, 4 by bundles, 3 by shards
			for _, workers := range counts {
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

// TestUnitsMixedShards: the sums of a half, or a bundle, are the same whether its shards are a batch each or, as some are here, two, which are longer
// than what a product takes at a time.
func TestUnitsMixedShards(t *testing.T) {
	smallUnits(t)
	batchTokens = 1088
	tm := testmodel.New("llama")
	j := job{tm.Source(), Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: ggml.Q4_0}, Options{Calib: sequences(tm, 18*34, 32)}}
	want, _, _, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, workers := range []int{2, 4} {
		got, _, _, _, err := j.by(t, filepath.Join(t.TempDir(), "work"), -1, j.local(t, workers))
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%d workers: another file", workers)
		}
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

// fragile is an engine whose run is killed in the midst of a set of units, the n-th.
type fragile struct {
	engine.Engine
	left int
}

func (f *fragile) Do(ctx context.Context, units []engine.Unit) error {
	if f.left--; f.left < 0 {
		if err := f.Engine.Do(ctx, units[:len(units)/2]); err != nil {
			return err
		}
		return errKilled
	}
	return f.Engine.Do(ctx, units)
}

// TestUnitsResume: a run that is killed amid any set of units goes on there, with another number of workers, or none at all.
func TestUnitsResume(t *testing.T) {
	smallUnits(t)
	j := unitJobs()["head"]
	j.opt.Calib = sequences(testmodel.New("llama"), 22, 32) // 7 shards of 3 or 4
	resumeUnits(t, j, 7)
}

// TestUnitsResumeBatches: likewise between batches of coupled rows, which two workers or three have begun to share.
func TestUnitsResumeBatches(t *testing.T) {
	smallUnits(t)
	tm := testmodel.New("llama")
	resumeUnits(t, job{tm.Source(), Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: ggml.Q4_0, OutputHessian: OutputHessianOn, BiasCorrection: true},
		Options{Calib: sequences(tm, 19, 32)}}, 37)
}

// resumeUnits kills j's run after every so many sets of units, and has it go on with another number of workers, or none at all.
func resumeUnits(t *testing.T, j job, every int) {
	counts := [][2]int{{2, 3}, {3, 2}, {2, 0}, {4, 1}, {3, 4}} // workers of both; 0: the run goes on by itself
	want, wantReport, _, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	sets := 0
	for n := 2; ; n += every {
		work := filepath.Join(t.TempDir(), "work")
		var f *fragile
		_, _, _, _, err := j.by(t, work, -1, func(work *store.Dir) engine.Engine {
			f = &fragile{j.local(t, counts[sets%len(counts)][0])(work), n}
			return f
		})
		if err == nil {
			break
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		var make func(*store.Dir) engine.Engine
		if workers := counts[sets%len(counts)][1]; workers > 0 {
			make = j.local(t, workers)
		}
		sets++
		got, rep, _, _, err := j.by(t, work, -1, make)
		if err != nil {
			t.Fatalf("after %d sets: %v", n, err)
		}
		if got != want {
			t.Errorf("after %d sets: another file", n)
		}
		if a, b := reportJSON(t, rep), reportJSON(t, wantReport); a != b {
			t.Errorf("after %d sets: the report is\n%s\nnot\n%s", n, a, b)
		}
		if left := values(t, work); len(left) > 0 {
			t.Errorf("after %d sets: the folder holds %q", n, left)
		}
	}
	if sets < 3 {
		t.Errorf("there are only %d places to be killed at", sets)
	}
}

// TestStatsValue: statistics come back bit for bit, and others than a site's are refused.
func TestStatsValue(t *testing.T) {
	const in, out = 70, 5
	d := openWorkFolder(t)
	rng := rand.New(rand.NewPCG(3, 4))
	random := func(rows, cols int) *tensor.Matrix {
		m := tensor.New(rows, cols)
		for i := range m.Data {
			m.Data[i] = float32(rng.NormFloat64())
		}
		return m
	}
	for name, parts := range map[string][2]bool{"plain": {}, "drift": {true, false}, "shortfall": {false, true}} {
		want := quant.NewStats(in)
		x := random(100, in)
		want.Observe(x)
		if parts[0] {
			want.ObserveDrift(random(100, in), x)
		}
		if parts[1] {
			want.ObserveShortfall(random(100, out), x)
		}
		const parts = 3
		put := func(name string, write func(w io.Writer, part statsPart) error) (names []string) {
			for part := range parts {
				names = append(names, fmt.Sprint(name, part))
				if _, err := d.Put(names[part], false, func(w io.Writer) error { return write(w, statsPart{part, parts}) }); err != nil {
					t.Fatal(err)
				}
			}
			return names
		}
		names := put(name, func(w io.Writer, part statsPart) error { return saveStats(w, want, part, nil) })
		load := func(names []string, in, out int) (*quant.Stats, error) {
			s := newPartialStats(in)
			err := s.complete(d, names, in, out)
			return s.Stats, err
		}
		got, err := load(names, in, out)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: statistics differ", name)
		}
		if _, err := load(names, in+1, out); err == nil {
			t.Errorf("%s: taken for those of another site", name)
		}
		if _, err := load(names[:2], in, out); err == nil {
			t.Errorf("%s: some parts are taken for all", name)
		}
		three := quant.NewStats(in)
		for range 3 {
			three.Add(want)
		}
		for how, made := range map[string]map[string]*quant.Stats{"read": nil, "made": {names[0]: want, names[1]: want, names[2]: want}, "some made": {names[1]: want}} {
			for _, keep := range []*partialStats{nil, newPartialStats(in)} {
				importance := make([]float32, in)
				from := d
				if how == "made" { // nothing is to be read
					from = openWorkFolder(t)
				}
				sums := put(fmt.Sprint(name, how, keep != nil), func(w io.Writer, part statsPart) error {
					to := keep
					if part.part == 1 { // another machine's
						to = nil
					}
					leaf := func() *statsTree {
						r, err := openMade(from, made[names[part.part]], names[part.part], part, in, out)
						if err != nil {
							t.Fatal(err)
						}
						return &statsTree{r: r}
					}
					tree := &statsTree{of: []*statsTree{{of: []*statsTree{leaf(), {of: []*statsTree{leaf()}}}}, leaf()}}
					defer tree.close()
					of, err := addStats(w, tree, to, part, in)
					for i, v := range of {
						importance[i] += v
					}
					return err
				})
				if !slices.Equal(importance, three.Importance()) {
					t.Errorf("%s, %s: the importance of the sum differs", name, how)
				}
				if got, err = load(sums, in, out); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, three) {
					t.Errorf("%s, %s: the sum of statistics differs", name, how)
				}
				if keep == nil {
					continue
				}
				if len(keep.there) != parts-1 {
					t.Errorf("%s, %s: %d parts are kept", name, how, len(keep.there))
				}
				if err := keep.complete(d, sums, in, out); err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(keep.Stats, three) {
					t.Errorf("%s, %s: the sum that is kept differs", name, how)
				}
			}
		}
		if name == "shortfall" {
			if _, err := load(names, in, out+1); err == nil {
				t.Error("the shortfall of other outputs is taken")
			}
		}
	}
}

func openWorkFolder(t *testing.T) *store.Dir {
	d, err := store.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
