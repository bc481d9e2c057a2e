package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
)

// meeting is a worker that does its first unit when all others have one, and counts its units.
type meeting struct {
	engine.Worker
	all  *sync.WaitGroup
	done *int
}

func (m *meeting) Do(ctx context.Context, u engine.Unit) (string, error) {
	if *m.done == 0 {
		m.all.Done()
		m.all.Wait()
	}
	*m.done++
	return m.Worker.Do(ctx, u)
}

// TestAssignUnits: workers find the sensitivities that a run without an engine finds, to the last bit, also where it was killed
// amid them.
func TestAssignUnits(t *testing.T) {
	together := usesTogether
	usesTogether = 1
	defer func() { usesTogether = together }()
	tm := testmodel.New("llama3-tied")
	j := job{tm.Source(), Recipe{Method: RTN, Type: ggml.Q4_K, Rules: rules(t, "ffn|attn_k|attn_v=q4_0")}, Options{Calib: sequences(tm, 4, 32)}}
	b := Budget{MaxBPW: 5.5}
	p, err := NewPlan(j.src, j.r)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Assign(t.Context(), j.src, p, b, t.TempDir(), j.opt)
	if err != nil {
		t.Fatal(err)
	}
	want.Assignment.Seconds = 0
	assign := func(path string, kill bool) (*Plan, [3]int, error) {
		d := openWork(t, path, j.src, p, j.opt)
		defer d.Close()
		var done [3]int
		var all sync.WaitGroup
		all.Add(len(done))
		made := 0
		l := &engine.Local{Values: d, Workers: len(done), Make: func(ctx context.Context, job []byte) (engine.Worker, error) {
			values, err := store.JoinDir(path)
			if err != nil {
				return nil, err
			}
			w, err := NewWorker(ctx, j.src, j.r, job, values, WorkerOptions{TempDir: t.TempDir()})
			made++
			return &meeting{w, &all, &done[made-1]}, err
		}}
		defer l.Close()
		opt := j.opt
		opt.Work, opt.Engine = d, l
		if kill {
			opt.Engine = &fragile{l, 0}
		}
		got, err := Assign(t.Context(), j.src, p, b, t.TempDir(), opt)
		return got, done, err
	}
	work := filepath.Join(t.TempDir(), "work")
	_, before, err := assign(work, true)
	if !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	got, after, err := assign(work, false)
	if err != nil {
		t.Fatal(err)
	}
	got.Assignment.Seconds = 0
	if !reflect.DeepEqual(got.Assignment, want.Assignment) {
		t.Errorf("assigned\n%+v, without an engine\n%+v", got.Assignment, want.Assignment)
	}
	uses := len(want.Assignment.Tensors) + 1 // the embedding is the head too
	if n := before[0] + before[1] + before[2]; n != uses/2 || n+after[0]+after[1]+after[2] != uses || min(before[0], before[1], before[2]) == 0 {
		t.Errorf("of %d units three workers did %v, and %v when the run went on", uses, before, after)
	}
	if left := values(t, work); len(left) != 1 || filepath.Base(left[0]) != typesName+".value" {
		t.Errorf("the folder holds %q", left)
	}
}

// TestEffectsRefused: jobs and units that do not belong to the checkpoint are refused by name.
func TestEffectsRefused(t *testing.T) {
	d := openWorkFolder(t)
	src := testmodel.New("llama").Source()
	digest, err := SourceDigest(src)
	if err != nil {
		t.Fatal(err)
	}
	worker := func(kind, source string) (engine.Worker, error) {
		job, err := engine.OfKind(kind, effectsJob{source, 16})
		if err != nil {
			t.Fatal(err)
		}
		return NewWorker(t.Context(), src, Recipe{}, job, d, WorkerOptions{})
	}
	refused := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	_, err = worker("other", digest)
	refused(err, `"other", not effects or gradients or layers`)
	_, err = worker(jobEffects, "another")
	refused(err, "is not the checkpoint")
	_, err = worker(jobEffects, digest)
	refused(err, "has no "+probesName)
	put := func(site, typ string) {
		if err := keepValue(d, probesName, &keptProbes{make([]int32, 64), []keptUse{{Site: site, ProbeType: typ}}}); err != nil {
			t.Fatal(err)
		}
	}
	put("blk.0.attn_q.weight", "q99")
	_, err = worker(jobEffects, digest)
	refused(err, "q99")
	put("blk.7.attn_q.weight", "q4_0")
	w, err := worker(jobEffects, digest)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Do(t.Context(), engine.Unit{Name: "types-effects00000", Spec: []byte(`{"First":0,"Last":2}`)})
	refused(err, "of tensors 0 to 2 of 1")
	_, err = w.Do(t.Context(), engine.Unit{Name: "types-effects00001", Spec: []byte(`{"First":0,"Last":1}`)})
	refused(err, "the unit")
	_, err = w.Do(t.Context(), engine.Unit{Name: "types-effects00000", Spec: []byte(`{"First":0,"Last":1}`)})
	refused(err, "blk.7.attn_q.weight")
}
