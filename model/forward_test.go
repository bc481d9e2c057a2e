package model_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

func open(t testing.TB, src model.Source) *model.Model {
	t.Helper()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	return m
}

// embed returns the hidden states that enter the first layer.
func embed(t testing.TB, m *model.Model, tokens []int32, seqLen int) *tensor.Matrix {
	t.Helper()
	x := tensor.New(len(tokens), m.Width)
	if err := m.Embed(x, tokens, seqLen, nil); err != nil {
		t.Fatal(err)
	}
	return x
}

// trace is what forward saw: the embeddings, each layer's output, the logits.
type trace struct {
	embed, logits *tensor.Matrix
	hidden        []*tensor.Matrix
}

// forward runs m on sequences of seqLen tokens.
func forward(t testing.TB, m *model.Model, tokens []int32, seqLen int) *trace {
	t.Helper()
	x := embed(t, m, tokens, seqLen)
	tr := &trace{embed: x.Clone()}
	st := m.NewState()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Forward(t.Context(), st, x, seqLen); err != nil {
			t.Fatal(err)
		}
		l.Release()
		tr.hidden = append(tr.hidden, x.Clone())
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	tr.logits = tensor.New(len(tokens), m.Vocab)
	h.Logits(tr.logits, x)
	return tr
}

// compare fails if rows of got, from row at on, differ from want by more than limit.
func compare(t testing.TB, what string, got *tensor.Matrix, at int, want [][]float64, limit float64) {
	t.Helper()
	worst := 0.0
	for r := range want {
		for c, v := range got.Row(at + r) {
			if d := math.Abs(float64(v) - want[r][c]); !(d <= worst) {
				worst = d
			}
		}
	}
	t.Logf("%s: largest difference %.3g", what, worst)
	if !(worst <= limit) {
		t.Errorf("%s: largest difference %g, want at most %g", what, worst, limit)
	}
}

// TestForward compares every architecture with the float64 forward pass that follows Hugging Face's definition.
func TestForward(t *testing.T) {
	for _, name := range testmodel.Names() {
		t.Run(name, func(t *testing.T) {
			tm := testmodel.New(name)
			m := open(t, tm.Source())
			const seqs, seqLen = 2, 19
			tokens := tm.Tokens(seqs*seqLen, 1)
			got := forward(t, m, tokens, seqLen)
			for s := range seqs {
				at := s * seqLen
				want := tm.Forward(tokens[at : at+seqLen])
				compare(t, "embeddings", got.embed, at, want.Embed, 0)
				for i := range want.Hidden {
					compare(t, "layer "+string(rune('0'+i)), got.hidden[i], at, want.Hidden[i], 1e-4)
				}
				compare(t, "logits", got.logits, at, want.Logits, 1e-4)
			}
		})
	}
}

// TestDeterministic demands equal bits from any number of threads, and from sequences run together or alone.
func TestDeterministic(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, precision := range []kernels.Precision{kernels.F32, kernels.Auto} {
		for _, name := range []string{"llama", "mistral", "qwen3"} {
			tm := testmodel.New(name)
			const seqs, seqLen = 3, 13
			tokens := tm.Tokens(seqs*seqLen, 2)
			var first *trace
			for _, threads := range []int{1, 2, 5} {
				runtime.GOMAXPROCS(threads)
				m := open(t, tm.Source())
				m.Precision = precision
				got := forward(t, m, tokens, seqLen)
				if first == nil {
					first = got
				}
				if !slices.Equal(got.logits.Data, first.logits.Data) {
					t.Errorf("%s: %d threads give other logits than 1", name, threads)
				}
			}
			m := open(t, tm.Source())
			m.Precision = precision
			forward(t, m, tokens[:2], 2) // so that everything kept between calls has to grow
			for s := range seqs {
				alone := forward(t, m, tokens[s*seqLen:(s+1)*seqLen], seqLen)
				if !slices.Equal(alone.logits.Data, first.logits.View(s*seqLen, (s+1)*seqLen, 0, m.Vocab).Data) {
					t.Errorf("%s: sequence %d alone gives other logits than among %d", name, s, seqs)
				}
			}
		}
	}
}

// TestForwardLast demands the bits that Forward gives the last tokens.
func TestForwardLast(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen2", "qwen3"} {
		tm := testmodel.New(name)
		const seqs, seqLen = 3, 40
		m := open(t, tm.Source())
		st := m.NewState()
		before := embed(t, m, tm.Tokens(seqs*seqLen, 4), seqLen)
		l, err := m.LoadLayer(0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		all := before.Clone()
		if err := l.Forward(t.Context(), st, all, seqLen); err != nil {
			t.Fatal(err)
		}
		for _, last := range []int{7, 20, 39, 40} {
			x := before.Clone()
			if err := l.ForwardLast(t.Context(), st, x, seqLen, last); err != nil {
				t.Fatal(err)
			}
			for i := range x.Rows {
				if i%seqLen >= seqLen-last && !slices.Equal(x.Row(i), all.Row(i)) {
					t.Fatalf("%s, the last %d of %d: token %d differs", name, last, seqLen, i)
				}
			}
		}
	}
}

// TestReplaced runs a layer whose linears were all replaced by their own values in float32.
func TestReplaced(t *testing.T) {
	tm := testmodel.New("qwen2")
	m := open(t, tm.Source())
	tokens := tm.Tokens(10, 3)
	x := embed(t, m, tokens, len(tokens))
	y := x.Clone()
	st := m.NewState()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Forward(t.Context(), st, x, len(tokens)); err != nil {
			t.Fatal(err)
		}
		for _, lin := range l.Linears() {
			if lin.F32, err = lin.Matrix(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Forward(t.Context(), st, y, len(tokens)); err != nil {
			t.Fatal(err)
		}
		l.Linears()[len(l.Linears())-1].F32.Zero()
		z := y.Clone()
		st.Enter(m, z, len(tokens))
		mlp := len(l.Stages) - 2
		var between *tensor.Matrix
		err = l.Run(t.Context(), st, mlp, len(l.Stages), func(s *model.Site, in *tensor.Matrix, _ []int) error {
			if s.Name == "mlp_out" {
				between = in.Clone()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(y.Data, z.Data) {
			t.Error("a zero ffn_down changes the hidden state")
		}
		if between == nil || slices.Max(between.Data) == 0 {
			t.Error("ffn_down has seen nothing")
		}
		l.Release()
	}
	for i := range x.Data {
		if d := math.Abs(float64(x.Data[i] - y.Data[i])); !(d <= 1e-5) {
			t.Fatalf("element %d: %g from the source's weights, %g from replaced ones", i, x.Data[i], y.Data[i])
		}
	}
}

// visited is what a walk through a layer has shown of a site.
type visited struct {
	in     *tensor.Matrix
	tokens []int
}

// walk returns the inputs of a layer's sites and the layer's output for hidden states x, which it leaves alone.
func walk(t *testing.T, m *model.Model, l *model.Layer, x *tensor.Matrix, seqLen int) (map[string]visited, *tensor.Matrix) {
	t.Helper()
	st, y, sites := m.NewState(), x.Clone(), map[string]visited{}
	st.Enter(m, y, seqLen)
	err := l.Run(t.Context(), st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, tokens []int) error {
		if _, ok := sites[s.ID()]; ok {
			t.Errorf("%s is visited twice", s.ID())
		}
		sites[s.ID()] = visited{in.Clone(), tokens}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sites, y
}

// closeTo fails if an element of got is further from want than 1e-4.
func closeTo(t *testing.T, what string, got, want *tensor.Matrix) {
	t.Helper()
	for r := range want.Rows {
		for c, v := range want.Row(r) {
			if d := math.Abs(float64(got.Row(r)[c] - v)); !(d <= 1e-4) {
				t.Fatalf("%s: element [%d %d] is %g, want %g", what, r, c, got.Row(r)[c], v)
			}
		}
	}
}

// sites checks every site of every layer of a model: a walk shows it once; its linears read what the walk shows; and if
// its input is scaled and the factors are moved into what precedes it, the layer's output stays the same and the input
// changes by the factors. Sites and their Prev are what they claim to be.
func sites(t *testing.T, m *model.Model, tokens []int32) {
	x := embed(t, m, tokens, len(tokens))
	for i := range m.Layers() {
		load := func() *model.Layer {
			l, err := m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		plain := load()
		before, want := walk(t, m, plain, x, len(tokens))
		all := plain.Sites()
		if len(before) != len(all) || len(all) != len(m.Shape(i)) {
			t.Fatalf("layer %d: %d sites are visited of %d; %d shapes", i, len(before), len(all), len(m.Shape(i)))
		}
		linears := map[*model.Linear]bool{}
		for k, s := range all {
			shape := m.Shape(i)[k]
			if s.Layer != i || shape.Name != s.Name || shape.Expert != s.Expert || shape.In != s.In() || len(shape.Out) != len(s.Linears) {
				t.Errorf("%s: layer %d, shape %+v", s.ID(), s.Layer, shape)
			}
			v, reached := before[s.ID()], len(tokens)
			if v.tokens != nil {
				reached = len(v.tokens)
			}
			if v.in.Rows != reached || v.in.Cols != s.In() {
				t.Errorf("%s: the input is %d×%d for %d tokens", s.ID(), v.in.Rows, v.in.Cols, reached)
			}
			for j, lin := range s.Linears {
				if linears[lin] || lin.In != s.In() || lin.Expert != s.Expert || shape.Out[j] != lin.Out || shape.Names[j] != lin.Name {
					t.Errorf("%s: %s, %d×%d, expert %d, has another site or shape", s.ID(), lin.Name, lin.Out, lin.In, lin.Expert)
				}
				linears[lin] = true
			}
		}
		for _, lin := range plain.Linears() {
			if lin.Role == model.RoleLinear && !linears[lin] {
				t.Errorf("%s has no site", lin.ID())
			}
		}
		plain.Release()
		for k := range all {
			l := load()
			scaleSite(t, l, l.Sites()[k])
			after, got := walk(t, m, l, x, len(tokens))
			s := l.Sites()[k]
			closeTo(t, s.ID()+" scaled: the layer's output", got, want)
			if s.Prev != nil {
				in := before[s.ID()].in
				for r := range in.Rows {
					for c := range in.Row(r) {
						in.Row(r)[c] /= factor(s, c)
					}
				}
				closeTo(t, s.ID()+" scaled: its input", after[s.ID()].in, in)
			}
			l.Release()
		}
		x = want
	}
}

// factor is what channel c of a site's input is divided by.
func factor(s *model.Site, c int) float32 {
	if s.Prev.Row != nil {
		c = s.Prev.Row[c]
	}
	return float32(1 + c%5)
}

// scaleSite scales a site's linears up and what precedes it down, where something can.
func scaleSite(t *testing.T, l *model.Layer, s *model.Site) {
	t.Helper()
	if s.Prev == nil {
		return
	}
	var err error
	if s.Prev.Row != nil {
		i := slices.IndexFunc(l.Linears(), func(lin *model.Linear) bool { return lin.Name == s.Prev.Name && lin.Expert == s.Expert })
		lin := l.Linears()[i]
		if lin.F32, err = lin.Matrix(); err != nil {
			t.Fatal(err)
		}
		for r := range lin.Out {
			for c := range lin.F32.Row(r) {
				lin.F32.Row(r)[c] /= float32(1 + r%5)
			}
			if lin.Bias != nil {
				lin.Bias[r] /= float32(1 + r%5)
			}
		}
	}
	for c := range s.Prev.Norm {
		s.Prev.Norm[c] /= factor(s, c)
	}
	for _, lin := range s.Linears {
		if lin.F32, err = lin.Matrix(); err != nil {
			t.Fatal(err)
		}
		for r := range lin.Out {
			for c := range lin.F32.Row(r) {
				lin.F32.Row(r)[c] *= factor(s, c)
			}
		}
	}
}

// TestSites checks the sites of every test model, which all can be scaled.
func TestSites(t *testing.T) {
	for _, name := range testmodel.Names() {
		t.Run(name, func(t *testing.T) {
			tm := testmodel.New(name)
			m := open(t, tm.Source())
			sites(t, m, tm.Tokens(11, 4))
			l, err := m.LoadLayer(0)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			var names []string
			for _, s := range l.Sites() {
				names = append(names, s.ID())
				if s.Prev == nil {
					t.Errorf("%s cannot be scaled", s.ID())
				}
			}
			if want := []string{"blk.0.attn_in", "blk.0.attn_out", "blk.0.mlp_in", "blk.0.mlp_out"}; !slices.Equal(names, want) {
				t.Errorf("sites %v, want %v", names, want)
			}
		})
	}
}

// TestTypes stores every matrix, the embeddings too, in each type, and expects what the decoded values give in float32.
func TestTypes(t *testing.T) {
	tm := testmodel.New("llama")
	tokens := tm.Tokens(12, 5)
	for _, typ := range ggml.Types {
		coded, plain := tm.Source(), tm.Source()
		for i := range coded.List {
			w := &coded.List[i]
			if len(w.Shape) != 2 {
				continue
			}
			v := make([]float32, w.Elements())
			w.Type.Decode(v, w.Data)
			w.Type = typ
			w.Data = make([]byte, w.Bytes())
			_, words := typ.Grid.(*quant.Lattice) // whose encoding takes long: a few rows serve for all
			for r := range w.Rows() {
				if row := typ.RowBytes(w.Cols()); words && r >= 2 {
					copy(w.Data[r*row:(r+1)*row], w.Data[r%2*row:])
					continue
				}
				typ.Encode(w.Data[r*typ.RowBytes(w.Cols()):][:typ.RowBytes(w.Cols())], v[r*w.Cols():(r+1)*w.Cols()], nil)
			}
			typ.Decode(v, w.Data)
			p := &plain.List[i]
			p.Type, p.Data = ggml.F32, make([]byte, 4*len(v))
			tensor.EncodeF32(p.Data, v)
		}
		got, want := forward(t, open(t, coded), tokens, 6), forward(t, open(t, plain), tokens, 6)
		for i := range got.logits.Data {
			if d := math.Abs(float64(got.logits.Data[i] - want.logits.Data[i])); !(d <= 1e-4) {
				t.Fatalf("%s: logit %d is %g, %g from its decoded weights", typ.Name, i, got.logits.Data[i], want.logits.Data[i])
			}
		}
	}
}

// TestCancel stops a layer in the middle: a visitor ends the context, and no later stage is visited.
func TestCancel(t *testing.T) {
	tm := testmodel.New("llama")
	m := open(t, tm.Source())
	l, err := m.LoadLayer(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	st := m.NewState()
	st.Enter(m, tensor.New(4, m.Width), 4)
	seen := 0
	err = l.Run(ctx, st, 0, len(l.Stages), func(*model.Site, *tensor.Matrix, []int) error {
		seen++
		cancel()
		return nil
	})
	if err != context.Canceled || seen != 1 {
		t.Errorf("Run returns %v after %d sites, want %v after 1", err, seen, context.Canceled)
	}
	if err := l.Forward(ctx, st, tensor.New(4, m.Width), 4); err != context.Canceled {
		t.Errorf("Forward returns %v, want %v", err, context.Canceled)
	}
	// A visitor's error ends the walk.
	mine := errors.New("enough")
	st.Enter(m, tensor.New(4, m.Width), 4)
	err = l.Run(t.Context(), st, 0, len(l.Stages), func(*model.Site, *tensor.Matrix, []int) error { return mine })
	if err != mine {
		t.Errorf("Run returns %v, want the visitor's error", err)
	}
}
