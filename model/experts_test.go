package model_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

func isExperts(name string) bool { return strings.Contains(name, "_exps.") }

// expertBytes is the size of the largest expert of a source, all its matrices.
func expertBytes(src *testmodel.Source) int {
	n := 0
	for _, t := range src.List {
		if strings.HasPrefix(t.Name, "blk.0.") && isExperts(t.Name) {
			n += len(t.Data) / t.Shape[0]
		}
	}
	return n
}

// TestLoadAgain: copies that a source makes are held once for a layer that is loaded twice; what one layer puts in their place does not
// change the other.
func TestLoadAgain(t *testing.T) {
	m := open(t, &testmodel.Copying{Source: testmodel.Experts()})
	const seqLen = 9
	want := embed(t, m, testmodel.New("qwen3").Tokens(seqLen, 6), seqLen)
	got := want.Clone()
	l, err := m.LoadLayer(0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.LoadAgain(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Forward(t.Context(), m.NewState(), want, seqLen); err != nil {
		t.Fatal(err)
	}
	held := 0
	for i, lin := range l.Linears() {
		other := again.Linears()[i]
		if lin.ID() != other.ID() || lin == other {
			t.Fatalf("linear %d is %s, then %s", i, lin.ID(), other.ID())
		}
		if len(lin.W.Data) > 0 {
			if held++; &lin.W.Data[0] != &other.W.Data[0] {
				t.Errorf("%s is held twice", lin.ID())
			}
			lin.W.Data = make([]byte, len(lin.W.Data))
		}
	}
	if held == 0 {
		t.Error("no linear is held")
	}
	l.Release()
	if err := again.Forward(t.Context(), m.NewState(), got, seqLen); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Data, want.Data) {
		t.Error("the layer loaded again computes something else")
	}
}

// TestBackwardOnly: where gradients of some linears alone are wanted they are the same, and no other experts are fetched for those of
// one expert; nothing is, where a layer has none of them.
func TestBackwardOnly(t *testing.T) {
	const seqLen = 17
	fetches := 0
	src := &testmodel.Copying{Source: testmodel.Experts(), Fails: func(name string) error {
		if isExperts(name) {
			fetches++
		}
		return nil
	}}
	m := open(t, src)
	x := embed(t, m, testmodel.New("qwen3").Tokens(seqLen, 6), seqLen)
	l, err := m.LoadLayer(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	pass := func(only func(*model.Linear) bool) map[string][]float32 {
		seen := map[string][]float32{}
		d := &model.Differential{Only: only, See: func(lin *model.Linear, dy *tensor.Matrix, _ []int) error {
			seen[lin.ID()] = dy.Clone().Data
			return nil
		}}
		fetches = 0
		if err := l.Backward(t.Context(), m.NewState(), x, x.Clone(), seqLen, d); err != nil {
			t.Fatal(err)
		}
		return seen
	}
	want := pass(nil)
	every, reached := fetches, 0 // an expert's three matrices are fetched once
	for id := range want {
		if strings.Contains(id, "ffn_down_exps") {
			reached++
		}
	}
	if every != 3*reached {
		t.Errorf("%d fetches for %d experts", every, reached)
	}
	for _, lin := range l.Linears() {
		if lin.Role == model.RoleKept {
			continue
		}
		got := pass(func(other *model.Linear) bool { return other.ID() == lin.ID() })
		if !slices.Equal(got[lin.ID()], want[lin.ID()]) {
			t.Errorf("%s has another gradient alone", lin.ID())
		}
		need := every
		switch { // what comes before the experts depends on all of them
		case lin.Expert >= 0 && want[lin.ID()] == nil: // no token reaches it
			need = 0
		case lin.Expert >= 0:
			need /= reached
		}
		if fetches != need {
			t.Errorf("%s: %d fetches, want %d of %d", lin.ID(), fetches, need, every)
		}
	}
	if got := pass(func(*model.Linear) bool { return false }); len(got) > 0 || fetches > 0 {
		t.Errorf("%d gradients and %d fetches for no linear", len(got), fetches)
	}
}

// TestFetchedExperts: where a source copies, a layer's results forth and back are the same bits, no more than one expert's
// weights are there at a time, and an expert's matrix is fetched once in a pass.
func TestFetchedExperts(t *testing.T) {
	held := testmodel.Experts()
	fetches := map[string]int{}
	fetched := &testmodel.Copying{Source: testmodel.Experts(), Watched: isExperts, Fails: func(name string) error {
		fetches[name]++
		return nil
	}}
	const seqLen = 17
	tokens := testmodel.New("qwen3").Tokens(2*seqLen, 6)
	run := func(src model.Source) (results [][]float32) {
		m := open(t, src)
		x := embed(t, m, tokens, seqLen)
		for i := range m.Layers() {
			l, err := m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			st, in, dx := m.NewState(), x.Clone(), x.Clone()
			clear(fetches)
			if err := l.Forward(t.Context(), st, x, seqLen); err != nil {
				t.Fatal(err)
			}
			for name, n := range fetches {
				if n > testmodel.ExpertCount {
					t.Errorf("%s: %d fetches for %d experts", name, n, testmodel.ExpertCount)
				}
			}
			see := func(_ *model.Linear, dy *tensor.Matrix, _ []int) error {
				results = append(results, dy.Clone().Data)
				return nil
			}
			if err := l.Backward(t.Context(), st, in, dx, seqLen, &model.Differential{See: see}); err != nil {
				t.Fatal(err)
			}
			for _, lin := range l.Linears() {
				w, err := lin.Matrix()
				if err != nil {
					t.Fatal(err)
				}
				part, err := lin.Part(1, 3).Matrix()
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(part.Data, w.View(1, 3, 0, w.Cols).Clone().Data) {
					t.Errorf("%s: rows 1 and 2 are others by themselves", lin.ID())
				}
				results = append(results, w.Data)
			}
			results = append(results, x.Clone().Data, dx.Data)
			l.Release()
		}
		return results
	}
	if want, got := run(held), run(fetched); !slices.EqualFunc(got, want, slices.Equal[[]float32]) {
		t.Error("other results where experts are fetched as they are used")
	}
	if most := expertBytes(held); fetched.Most == 0 || fetched.Most > most {
		t.Errorf("%d bytes of experts' weights at a time, one expert has %d", fetched.Most, most)
	}
}

// TestExpertsFail: a layer whose weights cannot be fetched when they are used says so, forth and back, and ever after.
func TestExpertsFail(t *testing.T) {
	gone := errors.New("gone")
	src := &testmodel.Copying{Source: testmodel.Experts()}
	m := open(t, src)
	const seqLen = 5
	x := embed(t, m, testmodel.New("qwen3").Tokens(seqLen, 6), seqLen)
	for _, name := range []string{"ffn_gate_exps", "ffn_down_exps"} {
		for _, backward := range []bool{false, true} {
			src.Fails = nil
			l, err := m.LoadLayer(0)
			if err != nil {
				t.Fatal(err)
			}
			src.Fails = func(n string) error {
				if strings.Contains(n, name) {
					return gone
				}
				return nil
			}
			pass := func() error {
				if !backward {
					return l.Forward(t.Context(), m.NewState(), x.Clone(), seqLen)
				}
				d := &model.Differential{See: func(*model.Linear, *tensor.Matrix, []int) error { return nil }}
				return l.Backward(t.Context(), m.NewState(), x, x.Clone(), seqLen, d)
			}
			if err := pass(); !errors.Is(err, gone) {
				t.Errorf("%s, backward %v: error %v", name, backward, err)
			}
			src.Fails = nil
			if err := pass(); !errors.Is(err, gone) {
				t.Errorf("%s, backward %v: error %v after the first", name, backward, err)
			}
			l.Release()
		}
	}
}

// TestCopied: of experts that a source copies those of a site count, of other linears all; of a source that does not copy, none.
func TestCopied(t *testing.T) {
	src := testmodel.Experts()
	var linears, site int64
	for _, w := range src.List {
		switch {
		case !strings.HasPrefix(w.Name, "blk.0."):
		case strings.Contains(w.Name, "ffn_gate_exps"), strings.Contains(w.Name, "ffn_up_exps"):
			site += int64(len(w.Data)) / testmodel.ExpertCount
		case strings.Contains(w.Name, "attn_") && len(w.Shape) == 2:
			linears += int64(len(w.Data))
		}
	}
	if held, fetched := open(t, src).Copied(0); held != 0 || fetched != 0 {
		t.Errorf("%d and %d bytes of views are counted", held, fetched)
	}
	if held, fetched := open(t, &testmodel.Copying{Source: src}).Copied(0); held != linears || fetched != site {
		t.Errorf("%d bytes held and %d fetched, want %d and %d", held, fetched, linears, site)
	}
}
