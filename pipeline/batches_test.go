package pipeline

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// coupledJob is a run whose linears' rows go by batches.
func coupledJob(typ *ggml.Type) job {
	tm := testmodel.New("llama-linear")
	return job{tm.Source(), Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: typ, OutputHessian: OutputHessianOn},
		Options{Calib: sequences(tm, 18, 32)}}
}

// TestUnitsOnGrid: coupled rows that are on their type's grid, or stored in the type, stay as they are: there are no batches, and units of
// some of the rows.
func TestUnitsOnGrid(t *testing.T) {
	smallUnits(t)
	float, stored := coupledJob(ggml.Q4_0), coupledJob(ggml.Q4_0)
	for _, info := range float.src.Tensors() {
		if ggml.ParseName(info.Name).Layer < 0 || len(info.Shape) < 2 || info.Cols()%ggml.Q4_0.BlockLen != 0 {
			continue
		}
		x, err := float.src.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		w := tensor.New(x.Rows(), x.Cols())
		x.Type.Decode(w.Data, x.Data)
		_, decoded := encode(ggml.Q4_0, w, nil)
		x.Type.Encode(x.Data, decoded.Data, nil)
	}
	path, _ := mustRun(t, stored.src, Recipe{Method: RTN, Type: ggml.Q4_0}, Options{})
	stored.src, stored.r.Requantize = open(t, path), true
	for name, j := range map[string]job{"float": float, "stored": stored} {
		want, wantReport, _, _, err := j.in(t, "", -1)
		if err != nil {
			t.Fatal(err)
		}
		for _, workers := range []int{1, 3} {
			work := filepath.Join(t.TempDir(), "work")
			got, rep, _, _, err := j.by(t, work, -1, j.local(t, workers))
			if err != nil {
				t.Fatalf("%s, %d workers: %v", name, workers, err)
			}
			if got != want {
				t.Errorf("%s, %d workers: another file", name, workers)
			}
			if a, b := reportJSON(t, rep), reportJSON(t, wantReport); a != b {
				t.Errorf("%s, %d workers: the report is\n%s\nnot\n%s", name, workers, a, b)
			}
			if left := values(t, work); len(left) > 0 {
				t.Errorf("%s, %d workers: the folder holds %q", name, workers, left)
			}
		}
	}
}

// rotating is an engine whose workers take each other's places: of the sets of batches' parts each is done by others.
type rotating struct {
	engine.Engine
	values    store.Shared
	parts     int // that batches have
	workersOf func(job []byte) []engine.Worker
	tap       func(w engine.Worker, u *unitSpec) // after a unit
	workers   []engine.Worker
}

func (e *rotating) Begin(ctx context.Context, job []byte) error {
	e.workers = e.workersOf(job)
	return e.Engine.Begin(ctx, job)
}

func (e *rotating) Machines() int { return e.parts }

func (e *rotating) Do(ctx context.Context, units []engine.Unit) error {
	missing, err := engine.Missing(e.values, units)
	if err != nil {
		return err
	}
	for _, unit := range missing {
		var u unitSpec
		if err := json.Unmarshal(unit.Spec, &u); err != nil {
			return err
		}
		if u.Kind != unitBatch {
			break
		}
		w := e.workers[(u.Batch/2+u.Part)%len(e.workers)]
		if _, err := w.Do(ctx, unit); err != nil {
			return err
		}
		e.tap(w, &u)
	}
	return e.Engine.Do(ctx, units)
}

// TestUnitsBatchesMove: workers that are given parts of some batches, and others' later on, make what a run without an engine makes. Each
// corrects the rows of the parts that it has had, from the batch on where it got them, and knows others' as they are told.
func TestUnitsBatchesMove(t *testing.T) {
	smallUnits(t)
	j := coupledJob(ggml.Q4_0)
	want, wantReport, _, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, shape := range [][2]int{{1, 2}, {2, 2}, {2, 3}} { // parts, workers
		var own, others, left int // rows
		got, rep, _, _, err := j.by(t, filepath.Join(t.TempDir(), "work"), -1, func(work *store.Dir) engine.Engine {
			e := &rotating{Engine: j.local(t, 1)(work), values: work, parts: shape[0]}
			e.workersOf = func(job []byte) (workers []engine.Worker) {
				for range shape[1] {
					dir, err := store.JoinDir(work.Path())
					if err != nil {
						t.Fatal(err)
					}
					workers = append(workers, j.worker(t, job, dir))
				}
				return workers
			}
			e.tap = func(worker engine.Worker, u *unitSpec) {
				w := worker.(*Worker)
				b := w.sums.batches
				if u.Batch < b.Batches()-1 { // then it may have had another part before
					return
				}
				m, err := w.layer.l.Stages[u.Stage].Sites[0].Linears[0].Matrix()
				if err != nil {
					t.Fatal(err)
				}
				for batch := range b.Batches() {
					for part := range u.Parts {
						lo, hi := batchPart(b.Coupled, batch, part, u.Parts)
						for p := lo; p < hi; p++ {
							switch corrected := !slices.Equal(b.Target().Row(b.Row(p)), m.Row(b.Row(p))); {
							case corrected && part == u.Part:
								own++
							case corrected:
								others++
							case part == u.Part:
								left++
							}
						}
					}
				}
			}
			return e
		})
		if err != nil {
			t.Fatalf("%v: %v", shape, err)
		}
		if got != want {
			t.Errorf("%v: another file", shape)
		}
		if a, b := reportJSON(t, rep), reportJSON(t, wantReport); a != b {
			t.Errorf("%v: the report is\n%s\nnot\n%s", shape, a, b)
		}
		if own == 0 || left > 0 || others > 0 {
			t.Errorf("%v: of the parts that workers began with they have corrected %d rows and not %d, of others %d", shape, own, left, others)
		}
	}
}

// cutShort is a store of which the first value that is opened of those that it likes ends too early.
type cutShort struct {
	store.Shared
	likes string // what the value's name has in it; "": none
	bytes int64
}

func (s *cutShort) Open(name string) (io.ReadCloser, error) {
	r, err := s.Shared.Open(name)
	if err != nil || s.likes == "" || !strings.Contains(name, s.likes) {
		return r, err
	}
	s.likes = ""
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, s.bytes), r}, nil
}

// TestUnitsBatchCutShort: a worker that could read only some rows of a batch, and that is given the unit again, makes what a new one makes.
func TestUnitsBatchCutShort(t *testing.T) {
	smallUnits(t)
	j := coupledJob(ggml.Q4_0)
	tried := false
	_, _, _, _, err := j.by(t, filepath.Join(t.TempDir(), "work"), -1, func(work *store.Dir) engine.Engine {
		return &tapped{Engine: j.local(t, 2)(work), tap: func(job []byte, units []engine.Unit) bool {
			if !strings.Contains(units[0].Name, "-batch0003-part0of2") {
				return false
			}
			dir, err := store.JoinDir(work.Path())
			if err != nil {
				t.Fatal(err)
			}
			values := &cutShort{Shared: dir}
			do := func(w engine.Worker) (string, error) {
				digest, err := w.Do(t.Context(), units[0])
				work.Delete(units[0].Name)
				return digest, err
			}
			worker := func() engine.Worker { return j.worker(t, job, values) }
			want, err := do(worker())
			if err != nil {
				t.Fatal(err)
			}
			w := worker()
			values.likes = "-batch0005-part1of2"
			r, err := dir.Open(strings.Replace(units[0].Name, "-batch0003-part0of2", values.likes, 1))
			if err != nil {
				t.Fatal(err)
			}
			values.bytes, _ = io.Copy(io.Discard, r)
			values.bytes = values.bytes * 3 / 4
			r.Close()
			if _, err := do(w); err == nil {
				t.Fatal("rows that are missing are not missed")
			}
			if got, err := do(w); got != want || err != nil {
				t.Errorf("another value, %v", err)
			}
			tried = true
			return true
		}}
	})
	if err != nil || !tried {
		t.Errorf("%v, tried: %v", err, tried)
	}
}
