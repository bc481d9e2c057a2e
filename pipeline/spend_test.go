package pipeline

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// passingSource is a source whose rows go when they are spent.
type passingSource struct {
	*testmodel.Source
	spent []model.Rows
	again bool // they come again, and are counted
	reads int  // of what had gone
}

func (s *passingSource) Passes() bool                { return true }
func (s *passingSource) Here(string) bool            { return true }
func (s *passingSource) Places(string) []model.Place { return nil }
func (s *passingSource) Check() error                { return nil }

func (s *passingSource) Spend(rows []model.Rows) error {
	s.spent = append(s.spent, rows...)
	return nil
}

func (s *passingSource) Tensor(name string) (*ggml.Tensor, error) {
	t, err := s.Source.Tensor(name)
	if err != nil {
		return nil, err
	}
	return s.Rows(name, 0, t.Rows())
}

func (s *passingSource) Rows(name string, lo, hi int) (*ggml.Tensor, error) {
	for _, r := range s.spent {
		if r.Name != name || hi <= r.Lo || r.Hi <= lo {
			continue
		}
		if !s.again {
			return nil, fmt.Errorf("rows %d to %d of %s are read, %v have gone", lo, hi, name, r)
		}
		s.reads++
	}
	t, err := s.Source.Tensor(name)
	if err != nil {
		return nil, err
	}
	row := t.Type.RowBytes(t.Cols())
	return &ggml.Tensor{Info: t.Info, Data: t.Data[lo*row : hi*row]}, nil
}

// has says whether some of a tensor's rows are there.
func (s *passingSource) has(info *ggml.Info) bool {
	left := info.Rows()
	for i, r := range s.spent {
		if r.Name == info.Name && !slices.Contains(s.spent[:i], r) {
			left -= r.Hi - r.Lo
		}
	}
	return left > 0
}

// Identity keeps SourceDigest from reading rows.
func (s *passingSource) Identity() string { return "passing" }

func (s *passingSource) Copies(string, int, int) bool { return false }

// passingJobs are runs whose head is converted, calibrated, and of experts and of a transform, whose hidden states are kept in other ways.
func passingJobs(t *testing.T) map[string]job {
	weights := batchWeights
	t.Cleanup(func() { batchWeights = weights })
	batchWeights = 1 << 12
	quick := gptq.Options{NoRefine: true}
	tm := testmodel.New("llama")
	set := sequences(tm, 5, 24)
	r := func(m quant.Method) Recipe {
		return Recipe{Method: WithGPTQ(m, quick), Type: ggml.Q4_0, Embedding: ggml.Q8_0, OutputHessian: OutputHessianOff}
	}
	head := r(GPTQ)
	head.Output, head.BiasCorrection = ggml.Q8_0, true
	return map[string]job{
		"converted head":  {&passingSource{Source: tm.Source()}, r(GPTQ), Options{Calib: set}},
		"calibrated head": {&passingSource{Source: tm.Source()}, head, Options{Calib: set, Memory: 1}},
		"awq":             {&passingSource{Source: tm.Source()}, r(AWQGPTQ), Options{Calib: set}},
		"experts": {&passingSource{Source: testmodel.Experts()}, Recipe{Method: WithGPTQ(GPTQ, quick), Type: ggml.Q4_0, OutputHessian: OutputHessianOff},
			Options{Calib: sequences(testmodel.New("qwen3"), 5, 24)}},
	}
}

// fresh is a job on a source that has all.
func (j job) fresh() job {
	j.src = &passingSource{Source: j.src.(*passingSource).Source}
	return j
}

// TestPassing kills runs on a source that spends its weights after every value that they keep (WIDE=1; else after some), before and behind the removal of what the value
// takes the place of: what goes on reads nothing that has gone, and makes the file and the report of an undisturbed run on an ordinary source.
func TestPassing(t *testing.T) {
	for name, j := range passingJobs(t) {
		t.Run(name, func(t *testing.T) {
			plain := j
			plain.src = j.src.(*passingSource).Source
			want, wantReport, _, _, err := plain.in(t, "", -1)
			if err != nil {
				t.Fatal(err)
			}
			alone := j.fresh()
			if got, rep, _, _, err := alone.in(t, "", -1); err != nil || got != want || reportJSON(t, rep) != reportJSON(t, wantReport) {
				t.Fatalf("without a work folder: %v, same file %v", err, got == want)
			}
			for _, info := range j.src.Tensors() {
				matrix := strings.HasSuffix(info.Name, ".weight") && len(info.Shape) > 1 && !strings.Contains(info.Name, "gate_inp")
				if calibrated := name == "calibrated head" && info.Name == outputName; matrix && !calibrated && alone.src.(*passingSource).has(&info) {
					t.Errorf("%s is there in the end", info.Name)
				}
			}
			step := map[string]int{"experts": 3, "calibrated head": 7, "converted head": 7}[name]
			switch {
			case os.Getenv("WIDE") != "":
				step = 1
			case name == "awq":
				return // TestResume kills such runs, on a source that stays
			}
			for n := 0; ; n += step {
				j := j.fresh()
				work := filepath.Join(t.TempDir(), "work")
				_, _, _, kept, err := j.with(t, work, &mortal{left: n / 2, atDelete: n%2 == 0}, nil)
				if err == nil {
					if kept < 4 {
						t.Errorf("only %d values are kept", kept)
					}
					break
				}
				if !errors.Is(err, errKilled) {
					t.Fatalf("killed after %d values: %v", n/2, err)
				}
				got, rep, _, _, err := j.in(t, work, -1)
				if err != nil {
					t.Fatalf("killed after %d values: %v", n/2, err)
				}
				if got != want {
					t.Errorf("killed after %d values: another file", n/2)
				}
				if got, want := reportJSON(t, rep), reportJSON(t, wantReport); got != want {
					t.Errorf("killed after %d values: the report is\n%s\nwant\n%s", n/2, got, want)
				}
				if left := values(t, work); len(left) > 0 {
					t.Errorf("killed after %d values: %q are left in the end", n/2, left)
				}
			}
		})
	}
}

// TestPassingUnused: layers that predict further tokens, which the forward pass leaves out, are read once by a run that is killed, too.
func TestPassingUnused(t *testing.T) {
	f, err := gguf.Open(filepath.Join(shared.Path(t, "archs"), "glm4moe", "expected.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src := &testmodel.Source{Path: "glm4moe", KV: slices.Clone(f.Metadata())}
	layers, _ := f.Meta("glm4moe.block_count")
	src.KV.Set("glm4moe.block_count", layers.(uint32)+1)
	src.KV.Set("glm4moe.nextn_predict_layers", uint32(1))
	for _, info := range f.Tensors() {
		tensor, err := f.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		src.List = append(src.List, *tensor)
		if rest, ok := strings.CutPrefix(info.Name, "blk.0."); ok {
			further := *tensor
			further.Name = fmt.Sprintf("blk.%d.%s", layers, rest)
			src.List = append(src.List, further)
		}
	}
	set := &calib.Set{SeqLen: 16}
	for i := range 4 {
		seq := make([]int32, set.SeqLen)
		for j := range seq {
			seq[j] = int32((7*i + 3*j) % 32)
		}
		set.Sequences = append(set.Sequences, seq)
	}
	j := job{&passingSource{Source: src}, Recipe{Method: WithGPTQ(GPTQ, gptq.Options{NoRefine: true}), Type: ggml.Q8_0, Embedding: ggml.Q8_0,
		OutputHessian: OutputHessianOff}, Options{Calib: set}}
	want, _, _, _, err := j.fresh().in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		j := j.fresh()
		work := filepath.Join(t.TempDir(), "work")
		if _, _, _, _, err := j.in(t, work, n); err == nil {
			if unused := len(j.src.(*passingSource).spent); n < 5 || unused == 0 {
				t.Errorf("%d values are kept, %d times rows are spent", n, unused)
			}
			return
		} else if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if got, _, _, _, err := j.in(t, work, -1); err != nil || got != want {
			t.Errorf("killed after %d values: %v, same file %v", n, err, got == want)
		}
	}
}

// TestPassingDamaged damages what a run has kept that was killed amid hidden states of two layers: the same file comes of it, if need be of
// weights that come again.
func TestPassingDamaged(t *testing.T) {
	j := passingJobs(t)["calibrated head"]
	j.src.(*passingSource).again = true
	want, _, _, _, err := j.in(t, "", -1)
	if err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(t.TempDir(), "work")
	var old, fresh int
	for n := 1; old == 0 || fresh < 2; n++ {
		if err := os.RemoveAll(before); err != nil {
			t.Fatal(err)
		}
		k := j.fresh()
		if _, _, _, _, err := k.in(t, before, n); !errors.Is(err, errKilled) {
			t.Fatalf("no run is killed amid hidden states of two layers: %v", err)
		}
		old, fresh = 0, 0
		for _, name := range values(t, before) {
			switch name := filepath.Base(name); {
			case strings.HasPrefix(name, "run1-states0001-shard00-part"):
				old++
			case strings.HasPrefix(name, "run1-states0002-shard00-part"):
				fresh++
			}
		}
	}
	for _, name := range append(values(t, before), filepath.Join(before, "run1-output.partial")) {
		work := filepath.Join(t.TempDir(), "work")
		if err := os.CopyFS(work, os.DirFS(before)); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(work, filepath.Base(name))
		b, err := os.ReadFile(file)
		if err == nil {
			b[len(b)/2] ^= 4
			err = os.WriteFile(file, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _, _, err := j.in(t, work, -1); err != nil || got != want {
			t.Errorf("%s: %v, same file %v", filepath.Base(name), err, got == want)
		}
	}
}

// doubtful is a passingSource that can be checked.
type doubtful struct {
	*passingSource
	bad error
}

func (s *doubtful) Check() error { return s.bad }

// TestPassingNaN: weights that cannot be are looked at whether they are those that the checkpoint has, before it is blamed.
func TestPassingNaN(t *testing.T) {
	errBad := errors.New("another digest")
	for name, bad := range map[string]error{"of the checkpoint": nil, "of the download": errBad} {
		t.Run(name, func(t *testing.T) {
			tm := testmodel.New("llama")
			src := tm.Source()
			w := src.Find("blk.1.ffn_up.weight")
			w.Data = slices.Repeat([]byte{0xff}, len(w.Data)) // NaN, in F32 and BF16
			j := job{&doubtful{&passingSource{Source: src}, bad}, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOff},
				Options{Calib: sequences(tm, 2, 24)}}
			_, _, _, _, err := j.in(t, "", -1)
			if err == nil || !strings.Contains(err.Error(), `"blk.1.ffn_up.weight": element [0 0] is NaN`) || errors.Is(err, errBad) != (bad != nil) {
				t.Errorf("error %v", err)
			}
		})
	}
}
