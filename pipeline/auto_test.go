package pipeline

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tensor"
)

// speak returns sequences that a model has drawn from its own predictions: text on which every other model is worse.
func speak(t *testing.T, m *model.Model, seqs, seqLen int) []int32 {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	text := make([][]int32, seqs)
	for i := range text {
		text[i] = []int32{1}
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	for n := 1; n < seqLen; n++ {
		x := tensor.New(seqs*n, m.Dim)
		if err := m.Embed(x, slices.Concat(text...), n, nil); err != nil {
			t.Fatal(err)
		}
		for i := range m.Layers() {
			l, err := m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Forward(t.Context(), m.NewState(), x, n); err != nil {
				t.Fatal(err)
			}
			l.Release()
		}
		y := tensor.New(x.Rows, m.Vocab)
		h.Logits(y, x)
		for i := range text {
			text[i] = append(text[i], draw(y.Row(i*n+n-1), rng))
		}
	}
	return slices.Concat(text...)
}

// draw returns a token by the probabilities that logits stand for.
func draw(logits []float32, rng *rand.Rand) int32 {
	at := math.Log(rng.Float64()) + elementwise.LogSumExp(logits)
	sum := math.Inf(-1)
	for i, v := range logits {
		if sum = math.Log(math.Exp(sum) + math.Exp(float64(v))); sum > at {
			return int32(i)
		}
	}
	return int32(len(logits) - 1)
}

// TestAuto: on a model with outlier features the groups that read them are scaled, each decision is for the least error
// of those measured, and the model is not worse than with any one way for all groups.
func TestAuto(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	for _, name := range []string{"llama", "qwen2-yarn"} {
		tm := testmodel.New(name)
		src, err := testmodel.Plant(tm.Source(), testmodel.Outliers{Channels: 4, Factor: 50})
		if err != nil {
			t.Fatal(err)
		}
		set := sequences(tm, 24, 32)
		want := openModel(t, tm.Source())
		best := math.Inf(1)
		for _, m := range []quant.Method{GPTQ, AWQ, AWQGPTQ} {
			got, _ := quantized(t, src, set, Recipe{Method: m, Type: ggml.Q4_0})
			best = min(best, outputError(t, tm, got, want))
		}
		got, rep := quantized(t, src, set, Recipe{Method: Auto, Type: ggml.Q4_0})
		if e := outputError(t, tm, got, want); e > 1.1*best {
			t.Errorf("%s: error %.3g, the best single method has %.3g", name, e, best)
		}
		if len(rep.Decisions) != 4*want.Layers() {
			t.Fatalf("%s: %d decisions for %d layers", name, len(rep.Decisions), want.Layers())
		}
		scaled := 0
		for _, d := range rep.Decisions {
			var chosen, least float64 = 0, math.Inf(1)
			for _, c := range d.Candidates {
				if c.Skipped != "" {
					continue
				}
				least = min(least, c.Error)
				if c.Method == d.Chosen {
					chosen = c.Error
				}
			}
			if len(d.Candidates) != len((&Recipe{Method: auto{}}).ways()) || !(chosen > 0) || chosen != least {
				t.Errorf("%s: %+v", name, d)
			}
			reads := strings.HasSuffix(d.Group, "_in") // the outliers
			if reads && d.InputMax < 20*d.InputMedian {
				t.Errorf("%s: %s: largest input %g, median %g", name, d.Group, d.InputMax, d.InputMedian)
			}
			if reads && d.Chosen != "gptq" {
				scaled++
			}
		}
		if scaled < want.Layers() {
			t.Errorf("%s: %d of %d groups that read outliers are scaled", name, scaled, 2*want.Layers())
		}
	}
}

// validated is a model, its calibration set, and text of its own.
func validated(t *testing.T) (src *testmodel.Source, set *calib.Set, held []int32) {
	t.Helper()
	tm := testmodel.New("llama-linear")
	src = tm.Source()
	return src, sequences(tm, 24, 32), speak(t, openModel(t, src), 48, 32)
}

// TestValidate: the validation is what eval says of the file, and the bytes do not depend on the threads.
func TestValidate(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	src, set, held := validated(t)
	var first []byte
	for _, threads := range []int{1, 3} {
		runtime.GOMAXPROCS(threads)
		path, rep := mustRun(t, src, Recipe{Method: Auto, Type: ggml.Q4_0},
			Options{Calib: set, Validate: Validate{Tokens: held, MaxIncrease: 10}})
		got, base := openModel(t, open(t, path)), openModel(t, src)
		got.Precision, base.Precision = 0, 0
		res, err := eval.Perplexity(t.Context(), got, held, eval.Options{Context: 32, ScoreAll: true, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		v := rep.Validation
		if v.Quantized != res.Perplexity || v.Original != res.BasePerplexity || v.Increase != res.Increase ||
			v.StdErr != res.IncreaseStdErr || v.Tokens != 48*31 || v.Limit != 10 || len(v.Runs) != 1 {
			t.Errorf("validation %+v, eval %+v %+v", v, res, res.Divergence)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.Errorf("%d threads give other bytes than 1", threads)
		}
	}
}

// TestLimit: linears get Q8_0 until the limit is met, and no more of them than it takes.
func TestLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes a model many times")
	}
	src, set, held := validated(t)
	recipe := Recipe{Method: Auto, Type: ggml.Q4_0}
	_, free := mustRun(t, src, recipe, Options{Calib: set, Validate: Validate{Tokens: held}})
	if v := free.Validation; !(v.Increase > 0) || v.Limit != 0 || !v.Met || len(free.Int8Fallbacks) > 0 {
		t.Fatalf("without a limit: %+v, %d linears fell back", v, len(free.Int8Fallbacks))
	}
	limit := float64(free.Validation.Increase) / 2
	path, rep := mustRun(t, src, recipe, Options{Calib: set, Validate: Validate{Tokens: held, MaxIncrease: limit}})
	v := rep.Validation
	last := v.Runs[len(v.Runs)-1]
	if !v.Met || float64(v.Increase+v.StdErr) > limit || len(v.Runs) < 2 || len(v.Runs) > maxRuns || last.Increase != v.Increase || last.Bytes != rep.Bytes {
		t.Errorf("limit %g: %+v", limit, v)
	}
	if v.Runs[0].Increase != free.Validation.Increase || v.Runs[0].Int8 != 0 {
		t.Errorf("the first run has %+v, without a limit there is %+v", v.Runs[0], free.Validation)
	}
	runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0))
	again, _ := mustRun(t, src, recipe, Options{Calib: set, Validate: Validate{Tokens: held, MaxIncrease: limit}})
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) / 2)
	a, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(again); err != nil || !bytes.Equal(a, b) {
		t.Errorf("twice as many threads give other bytes, %v", err)
	}
	n := 0
	for _, info := range open(t, path).Tensors() {
		if info.Type == ggml.Q8_0 {
			n++
		}
	}
	if n != len(rep.Int8Fallbacks) || n != last.Int8 || n == 0 || n >= 14 {
		t.Errorf("%d linears in Q8_0, %d reported, %+v", n, len(rep.Int8Fallbacks), last)
	}
	for i, f := range rep.Int8Fallbacks {
		if !f.Done || f.From != "Q4_0" || !(f.KL > 0) || !(f.RelativeError > 0) || f.Bytes <= 0 {
			t.Errorf("fallback %d: %+v", i, f)
		}
	}
	if !slices.EqualFunc(rep.Decisions, free.Decisions, func(a, b Decision) bool { return a.Chosen == b.Chosen }) {
		t.Error("starting over has changed decisions")
	}
}

// TestLimitNotMet: nothing is written, what was there stays, and the error says what was tried.
func TestLimitNotMet(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes a model many times")
	}
	t.Parallel()
	src, set, held := validated(t)
	rule, err := ParseRule("ffn_down=q4_0")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := NewPlan(src, Recipe{Method: Auto, Type: ggml.Q4_0})
	if err != nil {
		t.Fatal(err)
	}
	budget := Fallback{MaxBytes: plain.File.Size() + 10_000}
	for _, c := range []struct {
		recipe   Recipe
		fallback Fallback
		left     int
		message  string
	}{
		{Recipe{Method: Auto}, Fallback{}, 0, "even with Q8_0 throughout the standard error is larger"},
		{Recipe{Method: Auto, Rules: []Rule{rule}}, Fallback{}, 2, "keep 2 linears from getting Q8_0"},
		{Recipe{Method: Auto}, budget, -1, "linears from getting Q8_0"},
		{Recipe{Method: RTN}, Fallback{}, 14, "the method auto would"},
	} {
		c.recipe.Type = ggml.Q4_0
		p, err := NewPlan(src, c.recipe)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err = Run(t.Context(), src, p, path, Options{Calib: set, Overwrite: true, Fallback: c.fallback,
			Validate: Validate{Tokens: held, MaxIncrease: 1e-7}})
		var limit *LimitError
		if !errors.As(err, &limit) || !strings.Contains(err.Error(), c.message) {
			t.Fatalf("error %v, want %q", err, c.message)
		}
		rep := limit.Report
		if rep.Validation.Met || rep.Output != "" || limit.Tried != (c.recipe.Method == Auto) || c.left >= 0 && limit.Left != c.left {
			t.Errorf("%q: %+v %+v", c.message, limit, rep.Validation)
		}
		if c.fallback.MaxBytes > 0 {
			done := 0
			for _, f := range rep.Int8Fallbacks {
				if f.Done {
					done++
				}
			}
			if rep.Bytes > c.fallback.MaxBytes || done == 0 || limit.Left != 14-done {
				t.Errorf("%d bytes of %d, %d linears fell back, %d left", rep.Bytes, c.fallback.MaxBytes, done, limit.Left)
			}
		}
		files, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(files) != 1 {
			t.Errorf("left behind: %v, %v", files, err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != "before" {
			t.Errorf("the file that was there: %q, %v", data, err)
		}
	}
}

func TestValidateErrors(t *testing.T) {
	tm := testmodel.New("llama")
	set := sequences(tm, 4, 16)
	for _, c := range []struct {
		opt  Options
		want string
	}{
		{Options{Calib: set, Validate: Validate{MaxIncrease: math.NaN()}}, "may rise by NaN"},
		{Options{Calib: set, Validate: Validate{MaxIncrease: -1}}, "may rise by -1"},
		{Options{Calib: set, Validate: Validate{MaxIncrease: 1}}, "0 tokens of calibration text are held out"},
		{Options{Calib: set, Validate: Validate{Tokens: make([]int32, 17)}}, "17 tokens of calibration text are held out: want whole sequences of 16"},
		{Options{Calib: sequences(tm, 4, 3), Validate: Validate{Tokens: make([]int32, 3)}}, "sequences of 3 tokens are too short"},
		{Options{Validate: Validate{Tokens: make([]int32, 16)}}, "takes calibration text"},
		{Options{Calib: set, Fallback: Fallback{MaxBytes: 9}}, "9 are allowed"},
	} {
		p, err := NewPlan(tm.Source(), Recipe{Method: Auto, Type: ggml.Q4_0})
		if err != nil {
			t.Fatal(err)
		}
		if c.opt.Calib == nil {
			p.Recipe.Method = RTN
		}
		_, err = Run(t.Context(), tm.Source(), p, filepath.Join(t.TempDir(), "out.gguf"), c.opt)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

// TestShare: what is left of the divergences puts the increase and its standard error on the limit.
func TestShare(t *testing.T) {
	for _, c := range []struct{ increase, stderr, limit, want float64 }{
		{0.02, 0, 0.01, 0.5},
		{0.02, 0.01, 0.01, 0.25},
		{0, 0.02, 0.01, 0.25},
		{-0.001, 0.02, 0.01, 0.26334},
		{0.001, 0.001, 0.01, 1},
		{1e-2, 1e-4, 1e-6, 3.8197e-05},
	} {
		v := &Validation{Increase: eval.Figure(c.increase), StdErr: eval.Figure(c.stderr)}
		q := v.share(c.limit)
		if at := c.increase*q + c.stderr*math.Sqrt(q); math.Abs(q/c.want-1) > 1e-3 || q < 1 && math.Abs(at/c.limit-1) > 1e-9 {
			t.Errorf("%+v: share %g, where increase and standard error are %g", c, q, at)
		}
	}
	// Where nothing can be told, nothing may be left.
	for _, v := range []*Validation{{Increase: eval.Figure(math.NaN())}, {Increase: eval.Figure(math.Inf(1))}, {StdErr: eval.Figure(math.NaN())},
		{Increase: eval.Figure(math.Inf(-1)), StdErr: eval.Figure(math.Inf(1))}} {
		if q := v.share(0.01); q != 0 {
			t.Errorf("%+v: share %g, want 0", v, q)
		}
	}
}

// TestOutliersScaled: smoothing does not change which features are counted as outliers.
func TestOutliersScaled(t *testing.T) {
	tm := testmodel.New("llama")
	src, err := testmodel.Plant(tm.Source(), testmodel.Outliers{Channels: 4, Factor: 50})
	if err != nil {
		t.Fatal(err)
	}
	outliers := func(s *smoothquant.Smoothing) map[string]int {
		_, rep := mustRun(t, src, Recipe{Method: RTN, Type: ggml.Q4_0, Smooth: s}, Options{Calib: sequences(tm, 16, 32),
			Fallback: Fallback{MaxError: 1e-9}})
		n := map[string]int{}
		for _, f := range rep.Int8Fallbacks {
			n[f.Name] = f.Outliers
		}
		return n
	}
	plain, smoothed := outliers(nil), outliers(&smoothquant.Smoothing{Alpha: 0.5})
	const q = "blk.0.attn_q.weight" // in the first layer the inputs are the same
	if plain[q] < 4 || plain[q] > 64 || smoothed[q] != plain[q] || len(smoothed) != 14 {
		t.Errorf("outlier features: %v, smoothed %v", plain, smoothed)
	}
}
