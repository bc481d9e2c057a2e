package profile_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/profile"
)

// TestExperts profiles a model with experts, which see some of the tokens each, and the last of them none.
func TestExperts(t *testing.T) {
	tm := testmodel.New("qwen3")
	const sequences = 6
	p := run(t, testmodel.Experts(), testSet(tm, sequences), profile.Options{Type: ggml.Q4_0, HeldOut: tm.Tokens(60, 5), KLLinears: -1,
		Eval: eval.Options{Context: 20}})
	if len(p.Inputs) != p.Layers*(2+2*testmodel.ExpertCount) || len(p.Linears) != p.Layers*(4+3*testmodel.ExpertCount) {
		t.Fatalf("%d inputs, %d linears", len(p.Inputs), len(p.Linears))
	}
	reached := map[string]int{} // by input, the expert's number aside
	kl := map[string]float64{}
	for i := range p.Inputs {
		in := &p.Inputs[i]
		stem, number, expert := strings.Cut(in.Name, "[")
		reached[stem] += in.Tokens
		idle := number == fmt.Sprintf("%d]", testmodel.ExpertCount-1)
		if (in.Tokens == 0) != idle || idle != strings.Contains(in.Smoothing.Skipped, "no token reaches it") {
			t.Errorf("%s: %d tokens, smoothing %+v", in.Name, in.Tokens, in.Smoothing)
		}
		if idle && (in.MeanAbs != 0 || in.FeatureRange.Max != 0 || len(in.OutlierFeatures) != 0) || !idle && !(in.MeanAbs > 0) {
			t.Errorf("%s: %+v", in.Name, in)
		}
		if expert && strings.Contains(stem, "exps_in") && in.Smoothing.Alpha != nil {
			t.Errorf("%s is to be smoothed, and one norm makes the inputs of all experts", in.Name)
		}
	}
	for stem, n := range reached {
		want := sequences * seqLen
		if strings.Contains(stem, "exps") {
			want *= testmodel.ExpertsUsed
		}
		if n != want {
			t.Errorf("%s: %d tokens, want %d", stem, n, want)
		}
	}
	for i := range p.Linears {
		l := &p.Linears[i]
		idle := strings.HasSuffix(l.Name, fmt.Sprintf("[%d]", testmodel.ExpertCount-1))
		if !(l.WeightError > 0) || (l.OutputError > 0) == idle {
			t.Errorf("%s: weight error %g, output error %g", l.Name, l.WeightError, l.OutputError)
		}
		if l.KL == nil || !(l.KL.Mean > 0) {
			t.Fatalf("%s: KL divergence %v", l.Name, l.KL)
		}
		stem, _, _ := strings.Cut(l.Name, "[")
		if before, ok := kl[stem]; ok && before != l.KL.Mean {
			t.Errorf("%s: KL divergence %g, %g of another expert of the tensor", l.Name, l.KL.Mean, before)
		}
		kl[stem] = l.KL.Mean
	}
	if c := check(t, p, "reach every expert"); c.OK || !strings.Contains(c.Evidence, "no token reaches 4 of 32 inputs: blk.0.ffn_exps_in[6], blk.0.ffn_exps_out[6]") {
		t.Errorf("%+v", c)
	}
	if c := check(t, p, "single linear"); !strings.Contains(c.Evidence, "14 linears, each quantized alone") {
		t.Errorf("%+v", c)
	}
	if _, err := json.Marshal(p); err != nil {
		t.Error(err)
	}
}
