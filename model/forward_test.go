package model_test

import (
	"context"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

func open(t testing.TB, src model.Source) *model.Model {
	t.Helper()
	m, err := model.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	return m
}

// trace is what forward saw: the embeddings, each layer's output, the logits.
type trace struct {
	embed, logits *tensor.Matrix
	hidden        []*tensor.Matrix
}

// forward runs m on sequences of seqLen tokens.
func forward(t testing.TB, m *model.Model, tokens []int32, seqLen int) *trace {
	t.Helper()
	x := tensor.New(len(tokens), m.Dim)
	if err := m.Embed(x, tokens); err != nil {
		t.Fatal(err)
	}
	tr := &trace{embed: x.Clone()}
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Forward(context.Background(), x, seqLen); err != nil {
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

// TestForwardLast demands the bits that Forward gives the last tokens, and that the others are left alone.
func TestForwardLast(t *testing.T) {
	for _, name := range []string{"llama", "mistral", "qwen2", "qwen3"} {
		tm := testmodel.New(name)
		const seqs, seqLen = 3, 40
		m := open(t, tm.Source())
		before := tensor.New(seqs*seqLen, m.Dim)
		if err := m.Embed(before, tm.Tokens(seqs*seqLen, 4)); err != nil {
			t.Fatal(err)
		}
		l, err := m.LoadLayer(0)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		all := before.Clone()
		if err := l.Forward(context.Background(), all, seqLen); err != nil {
			t.Fatal(err)
		}
		for _, last := range []int{7, 20, 39, 40} {
			x := before.Clone()
			if err := l.ForwardLast(context.Background(), x, seqLen, last); err != nil {
				t.Fatal(err)
			}
			for i := range x.Rows {
				want := before
				if i%seqLen >= seqLen-last {
					want = all
				}
				if !slices.Equal(x.Row(i), want.Row(i)) {
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
	x := tensor.New(len(tokens), m.Dim)
	if err := m.Embed(x, tokens); err != nil {
		t.Fatal(err)
	}
	y := x.Clone()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Forward(context.Background(), x, len(tokens)); err != nil {
			t.Fatal(err)
		}
		for _, lin := range l.Linears() {
			if lin.F32, err = lin.Matrix(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Forward(context.Background(), y, len(tokens)); err != nil {
			t.Fatal(err)
		}
		l.Down.F32.Zero()
		z := y.Clone()
		in := tensor.New(len(tokens), m.FFN)
		l.MLPOut(z, in)
		if !slices.Equal(y.Data, z.Data) {
			t.Error("a zero ffn_down changes the hidden state")
		}
		l.Release()
	}
	for i := range x.Data {
		if d := math.Abs(float64(x.Data[i] - y.Data[i])); !(d <= 1e-5) {
			t.Fatalf("element %d: %g from the source's weights, %g from replaced ones", i, x.Data[i], y.Data[i])
		}
	}
}

// TestGroups scales each group's input, moves the factor into what precedes it, and expects the same output: the
// groups and their Prev are what they claim to be.
func TestGroups(t *testing.T) {
	for _, name := range testmodel.Names() {
		tm := testmodel.New(name)
		m := open(t, tm.Source())
		tokens := tm.Tokens(11, 4)
		x := tensor.New(len(tokens), m.Dim)
		if err := m.Embed(x, tokens); err != nil {
			t.Fatal(err)
		}
		for g := range 4 {
			l, err := m.LoadLayer(0)
			if err != nil {
				t.Fatal(err)
			}
			want := x.Clone()
			if err := l.Forward(context.Background(), want, len(tokens)); err != nil {
				t.Fatal(err)
			}
			group := l.Groups()[g]
			scale := func(i int) float32 { return float32(1 + i%5) }
			row := func(channel int) int { return channel }
			if lin := group.Prev.Linear; lin != nil {
				row = func(channel int) int { return group.Prev.Row[channel] }
				if lin.F32, err = lin.Matrix(); err != nil {
					t.Fatal(err)
				}
				for r := range lin.Out {
					for c := range lin.F32.Row(r) {
						lin.F32.Row(r)[c] /= scale(r)
					}
					if lin.Bias != nil {
						lin.Bias[r] /= scale(r)
					}
				}
			}
			for i := range group.Prev.Norm {
				group.Prev.Norm[i] /= scale(i)
			}
			for _, lin := range group.Linears {
				if lin.F32, err = lin.Matrix(); err != nil {
					t.Fatal(err)
				}
				for r := range lin.Out {
					for c := range lin.F32.Row(r) {
						lin.F32.Row(r)[c] *= scale(row(c))
					}
				}
			}
			got := x.Clone()
			if err := l.Forward(context.Background(), got, len(tokens)); err != nil {
				t.Fatal(err)
			}
			for i := range got.Data {
				if d := math.Abs(float64(got.Data[i] - want.Data[i])); !(d <= 1e-4) {
					t.Fatalf("%s: %s: element %d is %g scaled, %g before", name, group.Name, i, got.Data[i], want.Data[i])
				}
			}
			l.Release()
		}
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
			for r := range w.Rows() {
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

// TestCancel stops a layer in the middle.
func TestCancel(t *testing.T) {
	tm := testmodel.New("llama")
	m := open(t, tm.Source())
	l, err := m.LoadLayer(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Forward(ctx, tensor.New(4, m.Dim), 4); err != context.Canceled {
		t.Errorf("Forward returns %v, want %v", err, context.Canceled)
	}
}
