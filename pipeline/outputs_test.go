package pipeline

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestOutputHessian: all linears are quantized with Hessians of their outputs, to the same bytes at any number of goroutines and
// wherever the hidden states are; off means none.
func TestOutputHessian(t *testing.T) {
	tm := testmodel.New("qwen3")
	set := testSet(tm)
	set.Sequences = set.Sequences[:16]
	r := Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var first []byte
	for _, c := range []struct {
		threads int
		memory  int64
	}{{1, 0}, {3, 1}} {
		runtime.GOMAXPROCS(c.threads)
		path, rep := mustRun(t, tm.Source(), r, Options{Calib: set, Memory: c.memory})
		if o := rep.OutputHessian; o == nil || o.Linears != 14 || o.Tokens != 16*set.SeqLen || len(o.Opaque) != 0 {
			t.Errorf("reported: %+v", rep.OutputHessian)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.Errorf("%d threads, %d bytes of memory: another file", c.threads, c.memory)
		}
	}
	r.OutputHessian = OutputHessianOff
	path, rep := mustRun(t, tm.Source(), r, Options{Calib: set})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if rep.OutputHessian != nil || bytes.Equal(first, data) {
		t.Error("off: the same file, or a report")
	}
}

// TestSign: gradients of log predictions weighed by signed roots have the Fisher information diag(p) − ppᵀ as covariance, and a
// mean of zero.
func TestSign(t *testing.T) {
	const draws = 20000
	p := []float32{0.9, 0.05, 0.03, 0.02, 0}
	n := len(p)
	a := make([]float32, n)
	mean, cov := make([]float64, n), make([]float64, n*n)
	for k := range draws {
		sign(a, p, rand.NewPCG(7, uint64(k)))
		var sum float64
		g := make([]float64, n)
		for _, v := range a {
			sum += float64(v)
		}
		for j := range g {
			g[j] = float64(a[j]) - float64(p[j])*sum
			mean[j] += g[j] / draws
		}
		for i := range n {
			for j := range n {
				cov[i*n+j] += g[i] * g[j] / draws
			}
		}
	}
	for i := range n {
		if math.Abs(mean[i]) > 0.01 {
			t.Errorf("mean %d is %v", i, mean[i])
		}
		for j := range n {
			want := -float64(p[i]) * float64(p[j])
			if i == j {
				want += float64(p[i])
			}
			if math.Abs(cov[i*n+j]-want) > 0.003 {
				t.Errorf("covariance %d, %d is %v, want %v", i, j, cov[i*n+j], want)
			}
		}
	}
	// A vocabulary longer than the bits of a draw has signs of both kinds in every part.
	p, a = slices.Repeat([]float32{1}, 200), make([]float32, 200)
	sign(a, p, rand.NewPCG(7, 0))
	for i := 0; i < 200; i += 40 {
		if part := a[i : i+40]; !slices.Contains(part, 1) || !slices.Contains(part, -1) {
			t.Errorf("signs from %d on: %v", i, part)
		}
	}
}

// TestGradientSequences: few tokens all count; of many one sequence of each stretch does.
func TestGradientSequences(t *testing.T) {
	set := func(seqs, seqLen int) *calib.Set {
		s := &calib.Set{SeqLen: seqLen}
		for i := range seqs {
			s.Sequences = append(s.Sequences, make([]int32, seqLen))
			s.Sequences[i][0] = int32(i)
		}
		return s
	}
	const least = gradientLeast / 64
	for _, seqs := range []int{1, least - 1, least} {
		if got := gradientSequences(set(seqs, 64)); len(got) != seqs {
			t.Errorf("%d sequences of %d", len(got), seqs)
		}
	}
	const enough = gradientEnough / 64
	// Of more than that as many, then five of eight, then as many as are enough, then half: one of each stretch, and not the same one of each.
	for seqs, want := range map[int]int{least + 1: least, 8 * least / 5: least, 8*least/5 + 2: least + 1, 8 * least: 5 * least,
		8 * enough / 5: enough, 2 * enough: enough, 2*enough + 2: enough + 1} {
		got := gradientSequences(set(seqs, 64))
		if len(got) != want {
			t.Fatalf("%d sequences of %d, want %d", len(got), seqs, want)
		}
		var kinds [2]int
		for i, seq := range got {
			lo, hi := i*seqs/want, (i+1)*seqs/want
			if k := int(seq[0]); k < lo || k >= hi {
				t.Fatalf("of %d sequences number %d is %d, want one from %d to %d", seqs, i, k, lo, hi-1)
			} else if hi-lo == 2 {
				kinds[k-lo]++
			}
		}
		if pairs := kinds[0] + kinds[1]; pairs > 100 && min(kinds[0], kinds[1]) < pairs/4 {
			t.Errorf("of %d sequences: of each pair the first %d times, the second %d", seqs, kinds[0], kinds[1])
		}
	}
	if got := gradientSequences(set(1, 4*gradientLeast)); len(got) != 1 {
		t.Errorf("%d sequences of one", len(got))
	}
}

// TestGradientGroups: Hessians do not depend on how many linears' sums fit in memory together, nor on where the hidden states are.
func TestGradientGroups(t *testing.T) {
	tm, src := testmodel.New("qwen3"), testmodel.Experts()
	m := openModel(t, src)
	plan, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn})
	if err != nil {
		t.Fatal(err)
	}
	set := testSet(tm)
	set.Sequences = set.Sequences[:8]
	var want map[string][]*tensor.Matrix
	for _, c := range []struct{ budget, memory int64 }{{outputBudget, 0}, {1 << 14, 0}, {1, 1}} {
		o, err := newOutputs(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer o.close()
		work := &task{ctx: t.Context(), src: src, m: m, plan: plan, opt: Options{Calib: set, Memory: c.memory, Progress: silent{}}, tempDir: t.TempDir()}
		b := newBackwardPass(work, o, set.Sequences, states.Evenly(8, 3), span{0, 3})
		b.budget = c.budget
		defer b.close()
		if err := b.forward(); err != nil {
			t.Fatal(err)
		}
		got := map[string][]*tensor.Matrix{}
		for i := m.Layers() - 1; i >= 0; i-- {
			l, err := m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release()
			if groups := len(b.groups(l)); (groups > 1) != (want != nil) {
				t.Errorf("budget %d: %d groups", c.budget, groups)
			}
			if err := b.layer(i); err != nil {
				t.Fatal(err)
			}
			for _, lin := range l.Linears() {
				if got[lin.ID()], err = o.of(lin, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		if want == nil {
			want = got
		}
		for id, blocks := range want {
			if len(got[id]) != len(blocks) {
				t.Fatalf("budget %d: %s has %d blocks, want %d", c.budget, id, len(got[id]), len(blocks))
			}
			for k, h := range blocks {
				if !slices.Equal(got[id][k].Data, h.Data) {
					t.Errorf("budget %d: %s: block %d is another", c.budget, id, k)
				}
			}
		}
	}
}

// TestGradientsTogether: Hessians and what is reported of them do not depend on whether layers are taken together, nor on the number of
// goroutines; batches are of two or three sequences, of which some judge, or of many.
func TestGradientsTogether(t *testing.T) {
	smallUnits(t) // several batches are foreseen
	tm := testmodel.New("qwen3")
	m := openModel(t, tm.Source())
	plan, err := NewPlan(tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianAuto})
	if err != nil {
		t.Fatal(err)
	}
	set := testSet(tm)
	set.Sequences = set.Sequences[:12]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, batches := range []int{5, 2} {
		run := func(threads int, pass func(b *backwardPass) error) *outputs {
			runtime.GOMAXPROCS(threads)
			o, err := newOutputs(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(o.close)
			work := &task{ctx: t.Context(), src: tm.Source(), m: m, plan: plan, opt: Options{Calib: set, Progress: silent{}}, tempDir: t.TempDir()}
			if err := pass(newBackwardPass(work, o, set.Sequences, states.Evenly(len(set.Sequences), batches), span{0, batches})); err != nil {
				t.Fatal(err)
			}
			return o
		}
		want, got := run(1, (*backwardPass).byLayer), run(3, func(b *backwardPass) error { return b.together(3) })
		// Layer by layer half of the sums waits behind those that are done, in the room that is foreseen.
		foreseen := plan.gradientNeeds(m, len(set.Sequences)*set.SeqLen, set.SeqLen, 0).disk
		if info, err := want.file.Stat(); err != nil || info.Size() <= want.end || info.Size() > foreseen+4096 {
			t.Errorf("the file has %d bytes, at the end %d, foreseen are %d: %v", info.Size(), want.end, foreseen, err)
		}
		if got.rep.Linears != want.rep.Linears || got.rep.Skipped != want.rep.Skipped || got.predicted != want.predicted || want.rep.Linears == 0 {
			t.Errorf("together %+v, layer by layer %+v", got.rep, want.rep)
		}
		for id := range want.at {
			lin := &model.Linear{Name: id, Expert: -1}
			w, err := want.of(lin, nil)
			if err != nil {
				t.Fatal(err)
			}
			g, err := got.of(lin, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(g, w, func(a, b *tensor.Matrix) bool { return slices.Equal(a.Data, b.Data) }) {
				t.Errorf("%d batches: %s has another Hessian", batches, id)
			}
		}
	}
}

// TestTokensTogether: a small model's layers are taken together; experts, and few tokens, whose hidden states take less room, are not.
func TestTokensTogether(t *testing.T) {
	plan := func(src *testmodel.Source) (*Plan, *model.Model) {
		p, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianAuto})
		if err != nil {
			t.Fatal(err)
		}
		return p, openModel(t, src)
	}
	p, m := plan(wide(256, 768, 0))
	batch, bytes := p.tokensTogether(m, 65536)
	if batch < leastTokens || batch > tokensAtOnce || bytes <= 0 || bytes > togetherBytes || bytes > 3*stateBytes(65536, 256)/2 {
		t.Errorf("%d tokens at a time, %d bytes", batch, bytes)
	}
	if n, _ := p.tokensTogether(m, 2048); n != 0 {
		t.Errorf("of 2048 tokens %d at a time", n)
	}
	// Batches beside the first are as many as processors, as far as sideBytes go, and their memory is foreseen.
	was := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(was)
	needs := map[int]int64{}
	for _, c := range []struct{ processors, want int }{{1, 1}, {2, 2}, {64, 1 + int(sideBytes/p.travellerBytes(m, batch))}} {
		runtime.GOMAXPROCS(c.processors)
		if got := p.side(m, 65536, batch); got != c.want {
			t.Errorf("%d processors: %d batches side by side, want %d", c.processors, got, c.want)
		}
		needs[c.processors] = p.gradientNeeds(m, 65536, 512, 1).memory
	}
	if more := needs[64] - needs[1]; more < sideBytes/2 || more > sideBytes {
		t.Errorf("batches side by side take %d bytes more, of at most %d", more, sideBytes)
	}
	runtime.GOMAXPROCS(8)
	if got := p.side(m, 3*batch/2, batch); got > 2 {
		t.Errorf("%d of two batches side by side", got)
	}
	p, m = plan(wide(256, 256, 8))
	if n, _ := p.tokensTogether(m, 65536); n != 0 {
		t.Errorf("experts: %d tokens at a time", n)
	}
}

// TestBatchOf: models that compute much for a token go through their stages in smaller batches, but not in ever smaller ones.
func TestBatchOf(t *testing.T) {
	for _, c := range []struct{ ffn, want int }{{256, batchTokens}, {1 << 16, batchTokens / 2}, {1 << 19, leastTokens}} {
		if got := batchOf(openModel(t, wide(16, c.ffn, 0))); got != c.want {
			t.Errorf("an MLP of %d: %d tokens, want %d", c.ffn, got, c.want)
		}
	}
}

// TestOutputsStored: what is stored comes back, symmetric, with the outputs' scales multiplied in.
func TestOutputsStored(t *testing.T) {
	o, err := newOutputs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	h := tensor.FromSlice(2, 2, []float32{1, -99, 2, 3}) // what is above the diagonal is not read
	if err := o.put("blk.0.attn_v.weight", []*tensor.Matrix{h, tensor.FromSlice(1, 1, []float32{5})}); err != nil {
		t.Fatal(err)
	}
	r := &transformer{}
	v := &quant.Linear{Name: "blk.0.attn_v.weight", W: tensor.New(3, 4)}
	r.noteOutputs(&quant.Group{Prev: &quant.Scaler{Name: v.Name, Row: []int{0, 1, 2, 0, 1, 2}}, Before: v}, []float32{2, 3, 4, 2, 3, 4})
	got, err := o.of(&model.Linear{Name: v.Name, Expert: -1}, r.outputs[v.Name])
	if err != nil {
		t.Fatal(err)
	}
	want := [][]float32{{4, 12, 12, 27}, {80}}
	for i, w := range want {
		for j, x := range w {
			if got[i].Data[j] != x {
				t.Errorf("block %d: %v, want %v", i, got[i].Data, w)
			}
		}
	}
}

func TestOutputBlocks(t *testing.T) {
	for _, c := range []struct {
		rows, dim int
		expert    bool
		want      []int
	}{
		{256, 256, false, []int{256}}, {4096, 2560, false, []int{4096}}, {14336, 4096, false, []int{3584, 3584, 3584, 3584}},
		{768, 2048, true, []int{384, 384}}, {5000, 5000, false, []int{2500, 2500}}, {7, 3, false, []int{3, 2, 2}},
	} {
		got := outputBlocks(c.rows, c.dim, c.expert)
		if len(got) != len(c.want) {
			t.Errorf("%d rows: %v, want %v", c.rows, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%d rows: %v, want %v", c.rows, got, c.want)
			}
		}
	}
}

// TestRoomForGradients: a disk without room is refused before the work, in numbers.
func TestRoomForGradients(t *testing.T) {
	if err := roomForGradients(1000, 1000, "dir"); err != nil {
		t.Error(err)
	}
	err := roomForGradients(1001, 1000, "dir")
	if err == nil || !strings.Contains(err.Error(), "1001 bytes of temporary files in dir, where 1000 are free") {
		t.Errorf("error %v", err)
	}
}
