package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestBackwardArchs compares the derivative of whole models, of every architecture, with that of the float64 forward pass which
// their branches' definitions make: for each layer along a random direction in which the outputs of all its linears move. The
// predictions of that forward pass must be the model's.
func TestBackwardArchs(t *testing.T) {
	dir := os.Getenv("ARCHS")
	if dir == "" {
		dir = shared.Path(t, "archs")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "expected.gguf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no models in %s: %v", dir, err)
	}
	seen := map[string]bool{} // hyperparameters: some folders have the same model in other formats
	for _, path := range files {
		if plain := filepath.Join(filepath.Dir(path), "expected-plain.gguf"); exists(plain) { // of types that llama.cpp alone has
			path = plain
		}
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			src, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			var key strings.Builder
			for _, kv := range src.Metadata() {
				if !strings.HasPrefix(kv.Key, "general.") && !strings.HasPrefix(kv.Key, "tokenizer.") {
					fmt.Fprintln(&key, kv.Key, kv.Value)
				}
			}
			if seen[key.String()] {
				t.Skip("the same model as another folder's")
			}
			seen[key.String()] = true
			m, err := arch.Open(src)
			if err != nil {
				t.Fatal(err)
			}
			checkArch(t, m)
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// inFull gives a linear its weights in float32.
func inFull(t *testing.T, lin *model.Linear) {
	w, err := lin.Matrix()
	if err != nil {
		t.Fatal(err)
	}
	lin.F32 = w
}

// gradients are those at the outputs of linears, summed over tokens, and their sums of squares.
type gradients struct {
	sums    map[*model.Linear][]float64
	squares map[*model.Linear]float64
}

func (g *gradients) see(lin *model.Linear, dy *tensor.Matrix, _ []int) error {
	if g.sums[lin] == nil {
		g.sums[lin] = make([]float64, lin.Out)
	}
	for i := range dy.Rows {
		for j, v := range dy.Row(i) {
			g.sums[lin][j] += float64(v)
			g.squares[lin] += float64(v) * float64(v)
		}
	}
	return nil
}

func checkArch(t *testing.T, m *model.Model) {
	m.Precision = kernels.F32
	tokens := make([]int32, 20)
	for i := range tokens {
		tokens[i] = int32((i*29 + 7) % m.Vocab)
	}
	labels := labelsFor(len(tokens), m.Vocab)
	x := tensor.New(len(tokens), m.Width)
	if err := m.Embed(x, tokens, len(tokens), nil); err != nil {
		t.Fatal(err)
	}
	hidden := rowsOf(x)
	st, layers, inputs := m.NewState(), []*model.Layer{}, []*tensor.Matrix{}
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		layers, inputs = append(layers, l), append(inputs, x.Clone())
		if err := l.Forward(t.Context(), st, x, len(tokens)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	logits := tensor.New(x.Rows, m.Vocab)
	h.Logits(logits, x)
	dx := tensor.New(x.Rows, x.Cols)
	h.Backward(st, dx, x, func(t int, a, _ []float32) {
		clear(a)
		a[labels[t]] = 1
	})
	g := &gradients{map[*model.Linear][]float64{}, map[*model.Linear]float64{}}
	d := &model.Differential{See: g.see}
	for i, l := range slices.Backward(layers) {
		if err := l.Backward(t.Context(), st, inputs[i], dx, len(tokens), d); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.Opaque) > 0 {
		t.Errorf("no derivatives: %v", d.Opaque)
	}
	checkForth(t, m, h, layers, inputs, labels, g)

	inFull(t, h.Linear)
	var before [][][]float64 // the hidden states before each layer
	for _, l := range layers {
		heads := map[*model.Linear]bool{} // which see all tokens, as experts do not
		for _, site := range l.Sites() {
			heads[site.Linears[0]] = site.Head
		}
		for _, lin := range l.Linears() {
			if inFull(t, lin); g.sums[lin] == nil && (lin.Expert < 0 || heads[lin]) {
				t.Errorf("%s is not shown", lin.ID())
			}
		}
		before = append(before, hidden)
		hidden, _ = l.Float64(hidden)
	}
	predictions := make([][]float64, len(hidden))
	for i, row := range hidden {
		predictions[i] = h.Float64(row)
	}
	compare(t, "logits", logits, 0, predictions, 3e-4)
	for i := len(layers) - 1; i >= 0; i -= max(1, len(layers)/6) { // all of a dozen, some of more
		g.checkLayer(t, h, layers[i:], before[i], labels)
	}
}

// checkForth takes hidden states forth through layers, all of which keep what the way back takes, and wants what Backward gives from
// the layers' inputs alone, bit for bit.
func checkForth(t *testing.T, m *model.Model, h *model.Head, layers []*model.Layer, inputs []*tensor.Matrix, labels []int, want *gradients) {
	var x *tensor.Matrix
	var forth []*model.State
	for i, l := range layers {
		x = inputs[i].Clone()
		forth = append(forth, m.NewState())
		if err := l.Forth(t.Context(), forth[i], x, x.Rows); err != nil {
			t.Fatal(err)
		}
		if i+1 < len(layers) && !slices.Equal(x.Data, inputs[i+1].Data) {
			t.Fatalf("layer %d: Forth makes other hidden states than Forward", i)
		}
	}
	st, dx := m.NewState(), tensor.New(x.Rows, x.Cols)
	h.Backward(st, dx, x.Clone(), func(t int, a, _ []float32) {
		clear(a)
		a[labels[t]] = 1
	})
	got := &gradients{map[*model.Linear][]float64{}, map[*model.Linear]float64{}}
	for i, l := range slices.Backward(layers) {
		if err := l.BackFrom(t.Context(), st, forth[i], dx, &model.Differential{See: got.see}); err != nil {
			t.Fatal(err)
		}
	}
	for lin, sums := range want.sums {
		if !slices.Equal(got.sums[lin], sums) {
			t.Errorf("%s: another gradient than Backward's", lin.ID())
		}
	}
}

func rowsOf(x *tensor.Matrix) [][]float64 {
	rows := make([][]float64, x.Rows)
	for i := range rows {
		for _, v := range x.Row(i) {
			rows[i] = append(rows[i], float64(v))
		}
	}
	return rows
}

// archLimit bounds the error of a layer's gradients. It has room for what the float32 forward pass has lost by then, of models whose
// scores are large; branches by themselves are held to less in backward_float64_test.go.
const archLimit = 3e-4

// checkLayer compares the gradients in the first of layers with differences, from the hidden states before it on.
func (g *gradients) checkLayer(t *testing.T, h *model.Head, layers []*model.Layer, before [][]float64, labels []int) {
	// Each linear has about the same share of the direction's slope, if its gradient is not tiny.
	rng := rand.New(rand.NewPCG(15, 15))
	var got, square float64
	direction := map[*model.Linear][]float64{}
	for _, lin := range layers[0].Linears() {
		for _, v := range g.sums[lin] {
			along := rng.NormFloat64() / max(1, math.Sqrt(g.squares[lin]))
			direction[lin] = append(direction[lin], along)
			got += v * along
			square += v * along * v * along
		}
	}
	loss := func(step float64) (float64, []int) {
		for lin, along := range direction {
			by := make([]float64, len(along))
			for j, v := range along {
				by[j] = step * v
			}
			model.Nudge(lin, by)
			defer model.Nudge(lin, nil)
		}
		hidden, all := before, []int{}
		for _, l := range layers {
			var chosen []int
			hidden, chosen = l.Float64(hidden)
			all = append(all, chosen...)
		}
		logits := make([][]float64, len(hidden))
		for i, row := range hidden {
			logits[i] = h.Float64(row)
		}
		return referenceLoss(logits, labels), all
	}
	_, chosen := loss(0)
	for step := 1. / 1024; ; step /= 4 {
		same := true
		at := func(step float64) float64 {
			v, c := loss(step)
			same = same && slices.Equal(c, chosen)
			return v
		}
		want := (8*(at(step)-at(-step)) - (at(2*step) - at(-2*step))) / (12 * step)
		if !same && step > 1e-6 {
			continue // a step that changes which experts are chosen leaves the function that is differentiated
		}
		off := math.Abs(got-want) / math.Sqrt(square)
		t.Logf("layer %d: off by %.2g of the slope's scale, at steps of %.2g", layers[0].Index, off, step)
		if !(off <= archLimit) {
			t.Errorf("layer %d: gradient %.8g along a direction, differences give %.8g (scale %.3g)", layers[0].Index, got, want, math.Sqrt(square))
		}
		return
	}
}
