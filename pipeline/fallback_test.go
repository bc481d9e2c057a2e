package pipeline

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

func TestFallback(t *testing.T) {
	tm := testmodel.New("llama")
	src := tm.Source()
	// Channel 3 of the input of layer 1's gate and up is an outlier feature, in one of two layers.
	norm := src.Find("blk.1.ffn_norm.weight")
	values := make([]float32, norm.Elements())
	norm.Type.Unpack(values, norm.Data)
	values[3] = 40
	norm.Type, norm.Data = ggml.F32, make([]byte, 4*len(values))
	tensor.EncodeF32(norm.Data, values)
	set := testSet(tm)
	set.Sequences = set.Sequences[:8]
	recipe := Recipe{Method: GPTQ, Type: ggml.Q4_0}
	// With an error that no linear has, all that changes is that rounding errors are known.
	_, plain := mustRun(t, src, recipe, Options{Calib: set, Fallback: Fallback{MaxError: 2}})
	if len(plain.Int8Fallbacks) != 0 {
		t.Fatalf("fallbacks past an error of 2: %+v", plain.Int8Fallbacks)
	}
	var errs []float64
	for _, r := range plain.Tensors {
		if r.Type == "Q4_0" {
			errs = append(errs, r.rounding)
		}
	}
	slices.Sort(errs)
	limit := errs[0]

	path, rep := mustRun(t, src, recipe, Options{Calib: set, Fallback: Fallback{MaxError: limit}})
	f := open(t, path)
	types := map[string]string{}
	for _, r := range rep.Tensors {
		types[r.Name] = r.Type
		if r.rounding > limit {
			t.Errorf("%s: rounding error %v in %s is past %v", r.Name, r.rounding, r.Type, limit)
		}
		if r.Wanted != "" {
			t.Errorf("%s: reported as having columns that no block divides", r.Name)
		}
	}
	if n := len(rep.Int8Fallbacks); n < len(errs)-1 {
		t.Errorf("%d of %d linears fell back", n, len(errs))
	}
	added, withOutlier := int64(0), 0
	for _, fb := range rep.Int8Fallbacks {
		added += fb.Bytes
		if !fb.Done || fb.RelativeError <= limit || fb.From != "Q4_0" || types[fb.Name] != "Q8_0" {
			t.Errorf("%+v, now %s", fb, types[fb.Name])
		}
		v, ok := f.Meta(model.OutliersPrefix + fb.Name)
		recorded, _ := v.([]uint32)
		if ok != (fb.Outliers > 0) || len(recorded) != fb.Outliers {
			t.Errorf("%s: %v recorded, %d reported", fb.Name, v, fb.Outliers)
		}
		if strings.HasPrefix(fb.Name, "blk.1.ffn_up") || strings.HasPrefix(fb.Name, "blk.1.ffn_gate") {
			if withOutlier++; !slices.Contains(recorded, 3) {
				t.Errorf("%s: outliers %v, want 3 among them", fb.Name, recorded)
			}
		}
	}
	if withOutlier == 0 {
		t.Error("no linear with the outlier feature fell back")
	}
	if rep.Bytes != plain.Bytes+added {
		t.Errorf("%d bytes and %d added are not %d", plain.Bytes, added, rep.Bytes)
	}
	// The same types, given by rules, give the same weights.
	var rules []Rule
	for name, typ := range types {
		if typ == "Q8_0" {
			r, err := ParseRule("^" + strings.ReplaceAll(name, ".", `\.`) + "$=q8_0")
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
	}
	recipe.Rules = rules
	ruled, _ := mustRun(t, src, recipe, Options{Calib: set})
	g := open(t, ruled)
	for _, info := range f.Tensors() {
		a, err := f.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := g.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(a.Data, b.Data) {
			t.Errorf("%s differs from what rules give", info.Name)
		}
	}
}

func TestFallbackBudget(t *testing.T) {
	tm := testmodel.New("llama")
	set := testSet(tm)
	set.Sequences = set.Sequences[:4]
	recipe := Recipe{Method: RTN, Type: ggml.Q4_0}
	_, plain := mustRun(t, tm.Source(), recipe, Options{Calib: set})
	worst := slices.MaxFunc(plain.Tensors, func(a, b TensorReport) int {
		if a.RelativeError < b.RelativeError {
			return -1
		}
		return 1
	})
	every := Fallback{MaxError: 1e-9}
	_, all := mustRun(t, tm.Source(), recipe, Options{Calib: set, Fallback: every})
	for name, f := range map[string]Fallback{
		"bytes":           {MaxError: 1e-9, MaxBytes: (plain.Bytes + all.Bytes) / 2},
		"bits per weight": {MaxError: 1e-9, MaxBPW: (plain.BitsPerWeight + all.BitsPerWeight) / 2},
	} {
		_, rep := mustRun(t, tm.Source(), recipe, Options{Calib: set, Fallback: f})
		if f.MaxBytes > 0 && rep.Bytes > f.MaxBytes || f.MaxBPW > 0 && rep.BitsPerWeight > f.MaxBPW {
			t.Errorf("%s: %d bytes, %v bits per weight are over the budget %+v", name, rep.Bytes, rep.BitsPerWeight, f)
		}
		done, left := 0, 0
		for i, fb := range rep.Int8Fallbacks {
			if fb.Done {
				done++
			} else {
				left++
			}
			if i == 0 && (!fb.Done || fb.Name != worst.Name) {
				t.Errorf("%s: %+v goes first, want %s", name, fb, worst.Name)
			}
		}
		if done == 0 || left == 0 {
			t.Errorf("%s: %d fell back, %d did not", name, done, left)
		}
	}

	p, err := NewPlan(tm.Source(), recipe)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		opt  Options
		want string
	}{
		{Options{Fallback: every}, "which take calibration text"},
		{Options{Calib: set, Fallback: Fallback{MaxError: -1}}, "past a relative error of -1: want a positive number"},
		{Options{Calib: set, Fallback: Fallback{MaxError: 1, MaxBytes: 99}}, "bytes before anything falls back to INT8, 99 are allowed"},
		{Options{Calib: set, Fallback: Fallback{MaxError: 1, MaxBPW: 2}}, "bits per weight before anything falls back to INT8, 2 are allowed"},
	} {
		_, err := Run(t.Context(), tm.Source(), p, filepath.Join(dir, "x.gguf"), c.opt)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.opt.Fallback, err, c.want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
