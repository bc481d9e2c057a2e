package model_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// times returns W·x for rows [lo,hi) of a tensor.
func times(src *testmodel.Source, name string, lo, hi int, x []float64) []float64 {
	w := src.Find(name)
	v := make([]float32, w.Elements())
	w.Type.Unpack(v, w.Data)
	y := make([]float64, hi-lo)
	for r := range y {
		for c, f := range x {
			y[r] += float64(v[(lo+r)*len(x)+c]) * f
		}
	}
	return y
}

// mixture is Qwen3-MoE's mixture of experts for one token's normalised hidden state, in float64: the chosen experts,
// ascending, and the output.
func mixture(src *testmodel.Source, layer int, h []float64) (chosen []int, y []float64) {
	p := fmt.Sprintf("blk.%d.", layer)
	logits := times(src, p+"ffn_gate_inp.weight", 0, testmodel.ExpertCount, h)
	order := make([]int, len(logits))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(logits[b], logits[a]) })
	chosen = slices.Sorted(slices.Values(order[:testmodel.ExpertsUsed]))
	sum := 0.0
	for _, e := range chosen {
		sum += math.Exp(logits[e])
	}
	y = make([]float64, len(h))
	for _, e := range chosen {
		n := src.Find(p + "ffn_down_exps.weight").Cols()
		gate := times(src, p+"ffn_gate_exps.weight", e*n, (e+1)*n, h)
		up := times(src, p+"ffn_up_exps.weight", e*n, (e+1)*n, h)
		for i, g := range gate {
			up[i] *= g / (1 + math.Exp(-g))
		}
		for i, v := range times(src, p+"ffn_down_exps.weight", e*len(h), (e+1)*len(h), up) {
			y[i] += math.Exp(logits[e]) / sum * v
		}
	}
	return chosen, y
}

// TestExperts compares a mixture of experts with float64: each expert sees the tokens that the router sends there, and
// the layer adds the weighted sum of their outputs.
func TestExperts(t *testing.T) {
	src := testmodel.Experts()
	m := open(t, src)
	const seqLen = 17
	tokens := testmodel.New("qwen3").Tokens(2*seqLen, 6)
	x := embed(t, m, tokens, seqLen)
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		seen, after := walk(t, m, l, x, seqLen)
		// The hidden states between attention and experts.
		st, before := m.NewState(), x.Clone()
		st.Enter(m, before, seqLen)
		if err := l.Run(t.Context(), st, 0, 2, nil); err != nil {
			t.Fatal(err)
		}
		inputs := make([][]float64, len(tokens))
		for e := range testmodel.ExpertCount {
			v := seen[fmt.Sprintf("blk.%d.ffn_exps_in[%d]", i, e)]
			if v.tokens == nil || len(v.tokens) != v.in.Rows {
				t.Fatalf("layer %d: expert %d sees %d rows of %d tokens", i, e, v.in.Rows, len(v.tokens))
			}
			for r, token := range v.tokens {
				inputs[token] = make([]float64, v.in.Cols)
				for c, f := range v.in.Row(r) {
					inputs[token][c] = float64(f)
				}
			}
		}
		routed := make([][]int, testmodel.ExpertCount)
		want := make([][]float64, len(tokens))
		for token, h := range inputs {
			if h == nil {
				t.Fatalf("layer %d: token %d reaches no expert", i, token)
			}
			chosen, y := mixture(src, i, h)
			for _, e := range chosen {
				routed[e] = append(routed[e], token)
			}
			for c, v := range before.Row(token) {
				y[c] += float64(v)
			}
			want[token] = y
		}
		for e := range routed {
			for _, name := range []string{"in", "out"} {
				if v := seen[fmt.Sprintf("blk.%d.ffn_exps_%s[%d]", i, name, e)]; !slices.Equal(v.tokens, routed[e]) {
					t.Errorf("layer %d: expert %d sees tokens %v, want %v", i, e, v.tokens, routed[e])
				}
			}
		}
		if len(routed[testmodel.ExpertCount-1]) > 0 {
			t.Errorf("layer %d: tokens %v reach the last expert", i, routed[testmodel.ExpertCount-1])
		}
		compare(t, fmt.Sprintf("layer %d", i), after, 0, want, 1e-4)
		l.Release()
		x = after
	}
}

// TestExpertSites checks the sites of a model with experts, and that the walk shows the same inputs where some experts
// alone are computed.
func TestExpertSites(t *testing.T) {
	m := open(t, testmodel.Experts())
	tokens := testmodel.New("qwen3").Tokens(11, 4)
	sites(t, m, tokens)
	l, err := m.LoadLayer(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if n := len(l.Sites()); n != 2+2*testmodel.ExpertCount {
		t.Errorf("%d sites", n)
	}
	x := embed(t, m, tokens, len(tokens))
	all, _ := walk(t, m, l, x, len(tokens))
	const lo, hi = 1, 4
	st := m.NewState()
	st.Enter(m, x, len(tokens))
	st.OnlyExperts(lo, hi)
	compared := 0
	err = l.Run(t.Context(), st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, _ []int) error {
		if s.Expert >= lo && s.Expert < hi {
			compared += in.Rows
			if !slices.Equal(in.Clone().Data, all[s.ID()].in.Data) {
				t.Errorf("%s: another input where experts %d to %d alone are computed", s.ID(), lo, hi-1)
			}
		}
		return nil
	})
	if err != nil || compared == 0 {
		t.Errorf("%d rows compared; %v", compared, err)
	}
}
