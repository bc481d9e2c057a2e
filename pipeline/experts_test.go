package pipeline

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestFetchedExperts: a run of a source that copies writes the same file, and has no more than one expert's weights at a time. So
// does one that quantizes two experts at a time, for which the original model computes no others but at the end.
func TestFetchedExperts(t *testing.T) {
	isExperts := func(name string) bool { return strings.Contains(name, "_exps.") }
	set := &calib.Set{SeqLen: 32}
	for i := range 3 {
		set.Sequences = append(set.Sequences, testmodel.New("qwen3").Tokens(32, uint64(i)))
	}
	fetched := &testmodel.Copying{Source: testmodel.Experts(), Watched: isExperts}
	run := func(src Source) []byte {
		p, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if _, err := Run(t.Context(), src, p, path, Options{Calib: set}); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	want := run(testmodel.Experts())
	if !bytes.Equal(run(fetched), want) {
		t.Error("another file where experts are fetched as they are used")
	}
	dim := int64(fetched.Find("blk.0.ffn_up_exps.weight").Cols())
	defer func(n int64) { statsBytes = n }(statsBytes)
	statsBytes = 2 * 3 * 4 * dim * dim
	if !bytes.Equal(run(fetched), want) {
		t.Error("another file where two experts are quantized at a time")
	}
	expert := 0
	for _, w := range fetched.List {
		if strings.HasPrefix(w.Name, "blk.0.") && isExperts(w.Name) {
			expert += len(w.Data) / w.Shape[0]
		}
	}
	if fetched.Most == 0 || fetched.Most > expert {
		t.Errorf("%d bytes of experts' weights at a time, one expert has %d", fetched.Most, expert)
	}
}

// TestUncorrected: what inputs lack is summed where Correct reads it, where biases are corrected by it, and while nobody knows how many
// tokens reach the experts.
func TestUncorrected(t *testing.T) {
	l, err := openModel(t, testmodel.Experts()).LoadLayer(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	at := &place{l: l, k: -1}
	for k := range l.Stages {
		if len(l.Stages[k].Sites) > 1 {
			at.k = k
			break
		}
	}
	in := at.stage().Sites[0].In()
	few := in - in/4 // with those of all experts as many as the expert has inputs
	p := &passage{task: &task{plan: &Plan{}}}
	if p.uncorrected(at, 0) {
		t.Error("true before the tokens are counted")
	}
	at.reached = []int{few, few + 1}
	if !p.uncorrected(at, 0) || p.uncorrected(at, 1) {
		t.Errorf("with %d inputs, %d tokens suffice or %d do not", in, few, few+1)
	}
	p.plan.Recipe.BiasCorrection = true
	if p.uncorrected(at, 0) {
		t.Error("true where biases are corrected")
	}
}
