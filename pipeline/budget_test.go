package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tokenizer"
)

// fewSequences is a small part of testSet.
func fewSequences(tm *testmodel.Model) *calib.Set {
	set := testSet(tm)
	set.Sequences = set.Sequences[:4]
	return set
}

func assigned(t *testing.T, src Source, r Recipe, b Budget, opt Options) *Plan {
	t.Helper()
	p, err := NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = Assign(t.Context(), src, p, b, t.TempDir(), opt); err != nil {
		t.Fatal(err)
	}
	return p
}

func rules(t *testing.T, ss ...string) (rs []Rule) {
	t.Helper()
	for _, s := range ss {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

// TestAssign: files are within their budgets, and larger budgets lose less.
func TestAssign(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	for _, name := range []string{"llama", "llama3-tied"} {
		tm := testmodel.New(name)
		src := tm.Source()
		set := fewSequences(tm)
		small, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.IQ4_XS, Embedding: ggml.IQ4_XS, Output: ggml.IQ4_XS})
		if err != nil {
			t.Fatal(err)
		}
		r := Recipe{Method: RTN, Type: ggml.Q4_K}
		first, err := NewPlan(src, r)
		if err != nil {
			t.Fatal(err)
		}
		opt := Options{Calib: set}
		work := openWork(t, filepath.Join(t.TempDir(), "work"), src, first, opt)
		t.Cleanup(func() { work.Close() })
		opt.Work = work // the first budget's measurements serve the others
		before := math.Inf(1)
		for _, b := range []Budget{
			{MaxBytes: small.File.Size()}, {MaxBytes: 1 << 40, MaxBPW: 7}, {MaxBPW: 1e300},
		} {
			what := fmt.Sprintf("%s within %+v", name, b)
			p := assigned(t, src, r, b, opt)
			as := p.Assignment
			if b.MaxBytes > 0 && p.File.Size() > b.MaxBytes || b.MaxBPW > 0 && p.BitsPerWeight() > b.MaxBPW {
				t.Errorf("%s: %d bytes, %v bits per weight", what, p.File.Size(), p.BitsPerWeight())
			}
			if as.Bytes != p.File.Size() || as.BitsPerWeight != p.BitsPerWeight() || as.SlackBytes < 0 {
				t.Errorf("%s: reported %+v", what, as)
			}
			if as.Bound != as.PredictedKL || as.PredictedKL > before {
				t.Errorf("%s: predicted KL %v, at least %v, within less %v", what, as.PredictedKL, as.Bound, before)
			}
			before = as.PredictedKL
			var sum float64
			for _, a := range as.Tensors {
				sum += a.PredictedKL
				if pt := p.Lookup(a.Name); pt.Type.Name != a.Type || pt.Wanted != pt.Type || pt.Bytes() != a.Bytes {
					t.Errorf("%s: reported %+v, planned %v, wanted %v", what, a, pt.Type, pt.Wanted)
				}
			}
			if math.Abs(sum-as.PredictedKL) > 1e-9*sum {
				t.Errorf("%s: predictions add up to %v, not %v", what, sum, as.PredictedKL)
			}
		}
		if before != 0 {
			t.Errorf("%s: without a bound KL %v is predicted", name, before)
		}
	}
}

// TestAssignSame: what is assigned is what is written, and neither threads nor memory matter.
func TestAssignSame(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	threads := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(threads)
	tm := testmodel.New("llama3-tied")
	src := tm.Source()
	set := fewSequences(tm)
	r := Recipe{Method: GPTQ, Type: ggml.Q4_K}
	b := Budget{MaxBPW: 5.5}
	want := assigned(t, src, r, b, Options{Calib: set})
	want.Assignment.Seconds = 0
	path := filepath.Join(t.TempDir(), "out.gguf")
	rep, err := Run(t.Context(), src, want, path, Options{Calib: set})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Assignment != want.Assignment || rep.Bytes != want.File.Size() || len(open(t, path).Tensors()) != len(want.Tensors) {
		t.Errorf("%d bytes with %d tensors written, planned %d", rep.Bytes, len(rep.Tensors), want.File.Size())
	}
	runtime.GOMAXPROCS(threads + 1)
	got := assigned(t, src, r, b, Options{Calib: set, Memory: 1 << 16})
	runtime.GOMAXPROCS(threads)
	if got.Assignment.Seconds = 0; !reflect.DeepEqual(got.Assignment, want.Assignment) {
		t.Errorf("another number of threads, states in files: %+v, want %+v", got.Assignment, want.Assignment)
	}
}

// TestAssignPinned: what the recipe fixes stays, and everything else is assigned, whatever the method.
func TestAssignPinned(t *testing.T) {
	tm := testmodel.New("qwen2")
	src := tm.Source()
	for _, r := range []Recipe{
		{Method: RTN, Rules: rules(t, `blk\.0\.attn_q=q8_0`), BiasCorrection: true},
		{Method: AWQ, Embedding: ggml.Q5_1},
		{Method: GPTQ, Output: ggml.Q5_1, BiasCorrection: true},
	} {
		r.Type = ggml.Q4_0
		opt := Options{Calib: fewSequences(tm)}
		p := assigned(t, src, r, Budget{MaxBPW: 8}, opt)
		chosen := map[string]bool{}
		for _, a := range p.Assignment.Tensors {
			chosen[a.Name] = true
		}
		for i := range p.Tensors {
			pt := &p.Tensors[i]
			_, _, rule, err := r.typeOf(&pt.Info, pt.Role)
			if err != nil {
				t.Fatal(err)
			}
			pinned := len(pt.Shape) == 1 || rule >= 0 || pt.Name == embeddingName && r.Embedding != nil ||
				pt.Name == outputName && r.Output != nil
			if chosen[pt.Name] == pinned {
				t.Errorf("%+v: %s: assigned %v, pinned %v", r, pt.Name, chosen[pt.Name], pinned)
			}
		}
		for name, typ := range map[string]bool{embeddingName: r.Embedding != nil, outputName: r.Output != nil} {
			if pt := p.Lookup(name); pt != nil && typ && pt.Type != ggml.Q5_1 {
				t.Errorf("%+v: %s is %v", r, name, pt.Type)
			}
		}
		if _, err := Run(t.Context(), src, p, filepath.Join(t.TempDir(), "out.gguf"), opt); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestAssignErrors(t *testing.T) {
	tm := testmodel.New("llama")
	src := tm.Source()
	r := Recipe{Method: RTN, Type: ggml.Q4_0}
	p, err := NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	opt := Options{Calib: fewSequences(tm)}
	assign := func(b Budget, p *Plan, opt Options) error {
		_, err := Assign(t.Context(), src, p, b, t.TempDir(), opt)
		return err
	}
	// The messages name the least that is possible, and that is indeed possible.
	var least int64
	var bpw float64
	scan := func(b Budget, format string, v any) {
		t.Helper()
		err := assign(b, p, opt)
		if err == nil {
			t.Fatalf("%+v was met", b)
		}
		if _, scanErr := fmt.Sscanf(err.Error(), format, v); scanErr != nil {
			t.Errorf("error %q: %v", err, scanErr)
		}
	}
	scan(Budget{MaxBytes: 10000}, "a file of at most 10000 bytes cannot be: the smallest types make it %d", &least)
	scan(Budget{MaxBPW: 1.5}, "at most 1.5 bits per weight cannot be: the smallest types make it %f", &bpw)
	if q := assigned(t, src, r, Budget{MaxBytes: least}, opt); q.File.Size() != least {
		t.Errorf("within %d bytes: %d", least, q.File.Size())
	}
	if q := assigned(t, src, r, Budget{MaxBPW: bpw}, opt); q.BitsPerWeight() > bpw {
		t.Errorf("within %v bits per weight: %v", bpw, q.BitsPerWeight())
	}
	if err := assign(Budget{MaxBytes: least - 1}, p, opt); err == nil {
		t.Errorf("less than the least was planned")
	}

	int8, err := NewPlan(src, Recipe{Method: Int8, Type: ggml.Q8_0})
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.Q4_0, Rules: rules(t, ".=q4_0")})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    *Plan
		opt  Options
		want string
	}{
		{p, Options{}, "takes calibration text"},
		{int8, opt, "method int8 has Q8_0 weights"},
		{fixed, opt, "every tensor a type"},
	} {
		if err := assign(Budget{MaxBPW: 6}, c.p, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Assign(ctx, src, p, Budget{MaxBPW: 6}, t.TempDir(), opt); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after cancelling", err)
	}
}

// ownText is Go code that the gopher models have not seen: that of some of this module's packages, a file for each.
func ownText(t *testing.T, pkgs ...string) (paths []string, text string) {
	t.Helper()
	for _, pkg := range pkgs {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources of %s: %v", pkg, err)
		}
		var b strings.Builder
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(content)
		}
		path := filepath.Join(t.TempDir(), filepath.Base(pkg)+".txt")
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		text += b.String()
	}
	return paths, text
}

// TestAssignGopher: within the bytes of a file of one type, assigned types lose much less, and about as much as predicted.
func TestAssignGopher(t *testing.T) {
	t.Parallel()
	if os.Getenv("WIDE") == "" {
		t.Skip("quantizes and evaluates a trained model: make wide")
	}
	src, err := hf.Open("../testdata/gopher-4m", hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := ownText(t, "kernels", "model", "tokenizer")
	set, err := calib.Sample(files, tok, calib.Options{Tokens: 4096, SeqLen: 256})
	if err != nil {
		t.Fatal(err)
	}
	_, text := ownText(t, "eval")
	tokens := tok.Encode(text, tokenizer.EncodeOptions{})
	base, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	measure := func(p *Plan) float64 {
		path := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := Run(t.Context(), src, p, path, Options{Calib: set}); err != nil {
			t.Fatal(err)
		}
		m, err := arch.Open(open(t, path))
		if err != nil {
			t.Fatal(err)
		}
		res, err := eval.Perplexity(t.Context(), m, tokens, eval.Options{Context: 256, Chunks: 8, Base: base})
		if err != nil {
			t.Fatal(err)
		}
		return res.KL
	}
	r := Recipe{Method: RTN, Type: ggml.Q4_K, Embedding: ggml.Q4_K, Output: ggml.Q4_K}
	uniform, err := NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	r.Embedding, r.Output = nil, nil
	mixed := assigned(t, src, r, Budget{MaxBytes: uniform.File.Size()}, Options{Calib: set})
	one, many, predicted := measure(uniform), measure(mixed), mixed.Assignment.PredictedKL
	t.Logf("%d bytes of Q4_K: KL %.4f; %d bytes: %.4f, predicted %.4f", uniform.File.Size(), one, mixed.File.Size(), many, predicted)
	if many > 0.75*one {
		t.Errorf("assigned types have a KL of %.4f, one type for all %.4f", many, one)
	}
	if r := predicted / many; r < 0.6 || r > 1.6 {
		t.Errorf("KL %.4f was predicted, measured %.4f", predicted, many)
	}
}

// TestHead: a head that knows its inputs is better than one rounded to nearest, and what is said of it is so.
func TestHead(t *testing.T) {
	tm := testmodel.New("llama")
	src := tm.Source()
	set := testSet(tm)
	tokens := tm.Tokens(48, 99)
	want := logits(t, src, tokens)
	off := map[quant.Method]float64{}
	for _, method := range []quant.Method{RTN, GPTQ} {
		path, rep := mustRun(t, src, Recipe{Method: method, Type: ggml.F16, Output: ggml.Q4_0, Rules: rules(t, "blk=f16")}, Options{Calib: set})
		off[method] = distance(want, logits(t, open(t, path), tokens))
		for _, r := range rep.Tensors {
			if r.Name != outputName {
				continue
			}
			if r.Type != "Q4_0" || (r.Damping > 0) != (method == GPTQ) {
				t.Errorf("%s: %+v", method.Name(), r)
			}
			if ratio := r.RelativeError / off[method]; ratio < 0.5 || ratio > 2 {
				t.Errorf("%s: the head's error is reported as %.3g, the logits are off by %.3g", method.Name(), r.RelativeError, off[method])
			}
		}
	}
	if off[GPTQ] > 0.9*off[RTN] {
		t.Errorf("GPTQ of the head leaves %.3g, rounding to nearest %.3g", off[GPTQ], off[RTN])
	}
}

// TestRoundedEmbeddings: linears make up for what rounding does to the embeddings that they read.
func TestRoundedEmbeddings(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	t.Parallel()
	for _, name := range []string{"llama", "llama3-tied"} {
		tm := testmodel.New(name)
		src := tm.Source()
		tokens := tm.Tokens(48, 99)
		want := logits(t, src, tokens)
		var off [2]float64
		for i, opt := range []Options{{NoCorrection: true}, {}} {
			opt.Calib = testSet(tm)
			path, _ := mustRun(t, src, Recipe{Method: GPTQ, Type: ggml.Q8_0, Embedding: ggml.Q4_0}, opt)
			off[i] = distance(want, logits(t, open(t, path), tokens))
		}
		if off[1] > 0.97*off[0] {
			t.Errorf("%s: logits off by %.3g with corrected linears, %.3g without", name, off[1], off[0])
		}
	}
}
