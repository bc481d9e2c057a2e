package pipeline

import (
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/quant"
)

// wide is a model of random weights, large enough for its matrices to be most of what a run keeps in memory; experts 0: a llama.
func wide(dim, ffn, experts int) *testmodel.Source {
	const layers, heads, vocab = 1, 8, 256
	arch := "llama"
	if experts > 0 {
		arch = "qwen3moe"
	}
	s := &testmodel.Source{Path: "wide"}
	s.KV.Set("general.architecture", arch)
	set := func(key string, v any) { s.KV.Set(arch+"."+key, v) }
	set("block_count", uint32(layers))
	set("context_length", uint32(512))
	set("embedding_length", uint32(dim))
	set("feed_forward_length", uint32(ffn))
	set("attention.head_count", uint32(heads))
	set("attention.head_count_kv", uint32(heads))
	set("attention.layer_norm_rms_epsilon", float32(1e-5))
	set("rope.freq_base", float32(10000))
	if experts > 0 {
		set("attention.key_length", uint32(dim/heads))
		set("attention.value_length", uint32(dim/heads))
		set("expert_count", uint32(experts))
		set("expert_used_count", uint32(2))
		set("expert_feed_forward_length", uint32(ffn))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	add := func(name string, shape ...int) {
		info := ggml.Info{Name: name + ".weight", Type: ggml.BF16, Shape: shape}
		w := make([]float32, info.Elements())
		for i := range w {
			w[i] = 0.05 * float32(rng.NormFloat64())
			if len(shape) == 1 {
				w[i] = 1
			}
		}
		if len(shape) == 1 {
			info.Type = ggml.F32
		}
		data := make([]byte, info.Bytes())
		info.Type.Encode(data, w, nil)
		s.List = append(s.List, ggml.Tensor{Info: info, Data: data})
	}
	add("token_embd", vocab, dim)
	add("output_norm", dim)
	add("output", vocab, dim)
	for range layers {
		p := "blk.0."
		add(p+"attn_norm", dim)
		add(p+"ffn_norm", dim)
		for _, name := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			add(p+name, dim, dim)
		}
		if experts == 0 {
			add(p+"ffn_gate", ffn, dim)
			add(p+"ffn_up", ffn, dim)
			add(p+"ffn_down", dim, ffn)
			continue
		}
		add(p+"attn_q_norm", dim/heads)
		add(p+"attn_k_norm", dim/heads)
		add(p+"ffn_gate_inp", experts, dim)
		add(p+"ffn_gate_exps", experts, ffn, dim)
		add(p+"ffn_up_exps", experts, ffn, dim)
		add(p+"ffn_down_exps", experts, dim, ffn)
	}
	return s
}

// peakLive returns the largest live heap that collections find while f runs, above what was there before.
func peakLive(f func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	read := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	runtime.GC()
	before, peak := read(), int64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			peak = max(peak, read())
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-stopped
	return peak - before
}

// TestNeedsMemory: what is said of memory is what a run has in use at its peak.
func TestNeedsMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("quantizes matrices of some size")
	}
	const seqLen = 128
	rng := rand.New(rand.NewPCG(3, 4))
	text := func(seqs int) *calib.Set {
		set := &calib.Set{SeqLen: seqLen}
		for range seqs {
			seq := make([]int32, seqLen)
			for i := range seq {
				seq[i] = rng.Int32N(256)
			}
			set.Sequences = append(set.Sequences, seq)
		}
		return set
	}
	fast := WithGPTQ(GPTQ, gptq.Options{NoRefine: true}) // descent takes nothing more
	for _, c := range []struct {
		name    string
		source  *testmodel.Source
		methods []quant.Method
		outputs OutputHessian
		seqs    int
	}{
		{"dense", wide(512, 1024, 0), []quant.Method{fast, AWQ}, OutputHessianOff, 8},
		{"experts", wide(512, 256, 8), []quant.Method{fast}, OutputHessianOff, 8},
		{"outputs", wide(512, 1024, 0), []quant.Method{fast}, OutputHessianOn, 16},
	} {
		for _, method := range c.methods {
			set := text(c.seqs)
			p, err := NewPlan(c.source, Recipe{Method: method, Type: ggml.Q4_0, OutputHessian: c.outputs})
			if err != nil {
				t.Fatal(err)
			}
			needs := p.Needs(openModel(t, c.source), set.Tokens(), set.SeqLen, 0).Memory
			peak := peakLive(func() {
				_, err = Run(t.Context(), c.source, p, filepath.Join(t.TempDir(), "out.gguf"), Options{Calib: set})
			})
			if err != nil {
				t.Fatal(err)
			}
			ratio := float64(needs) / float64(peak)
			t.Logf("%s, %s: %.1f MB estimated, %.1f MB in use at most: %.3f", c.name, method.Name(), 1e-6*float64(needs), 1e-6*float64(peak), ratio)
			if !(0.85 <= ratio && ratio <= 1.5) { // a peak between two collections is not seen
				t.Errorf("%s, %s: %d bytes are estimated, %d were in use", c.name, method.Name(), needs, peak)
			}
		}
	}
}

// TestNeedsMeasured: what is said of large layers is what runs of theirs had in use at the peak, by the garbage collector's word. That
// was on two processors, with the default --memory.
func TestNeedsMeasured(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, c := range []struct {
		name    string
		src     *headers
		tokens  int
		method  quant.Method
		outputs OutputHessian
		used    int64 // MiB
	}{
		{"2048 wide", llamaHeaders(2, 2048, 5632, 32, 4), 4096, GPTQ, OutputHessianOff, 738},
		{"2048 wide", llamaHeaders(2, 2048, 5632, 32, 4), 4096, GPTQ, OutputHessianOn, 711},
		{"8B", llamaHeaders(1, 4096, 14336, 32, 8), 16384, GPTQ, OutputHessianAuto, 3150},
		{"2048 wide", llamaHeaders(2, 2048, 5632, 32, 4), 4096, AWQ, OutputHessianOff, 701},
		{"128 experts", moeHeaders(1, 2048, 768, 32, 4, 128), 16384, GPTQ, OutputHessianOn, 2099},
	} {
		p, err := NewPlan(c.src, Recipe{Method: c.method, Type: ggml.Q4_K, OutputHessian: c.outputs})
		if err != nil {
			t.Fatal(err)
		}
		m, err := arch.Open(c.src)
		if err != nil {
			t.Fatal(err)
		}
		needs := p.Needs(m, c.tokens, 512, 512<<20).Memory >> 20
		ratio := float64(needs) / float64(c.used)
		t.Logf("%s, %s: %d MiB, %d were used: %.3f", c.name, c.method.Name(), needs, c.used, ratio)
		if !(0.9 <= ratio && ratio <= 1.1) {
			t.Errorf("%s, %s: %d MiB are estimated, %d were in use", c.name, c.method.Name(), needs, c.used)
		}
	}
}

// TestNeedsOfLarge: a layer of an 8B model fits 4 GB, with some room, however long the text is, and one of a 70B model 12 GB.
// That runs take no more than these needs is TestNeedsMemory's.
func TestNeedsOfLarge(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, c := range []struct {
		name   string
		src    *headers
		tokens int
		most   int64
	}{
		{"8B", llamaHeaders(1, 4096, 14336, 32, 8), 8192, 3.8e9},
		{"8B", llamaHeaders(1, 4096, 14336, 32, 8), 16384, 3.8e9},
		{"8B", llamaHeaders(1, 4096, 14336, 32, 8), 65536, 3.8e9},
		{"70B", llamaHeaders(1, 8192, 28672, 64, 8), 65536, 12e9},
	} {
		for _, outputs := range []OutputHessian{OutputHessianOff, OutputHessianAuto} {
			p, err := NewPlan(c.src, Recipe{Method: GPTQ, Type: ggml.Q4_K, OutputHessian: outputs})
			if err != nil {
				t.Fatal(err)
			}
			needs := p.Needs(openModel(t, c.src), c.tokens, 512, 512<<20)
			t.Logf("%s, %d tokens, %s: %d and %d MiB", c.name, c.tokens, outputs, needs.Memory>>20, needs.Mapped>>20)
			if all := needs.Memory + needs.Mapped; all > c.most {
				t.Errorf("%s, %d tokens, %s: %d bytes, more than %d", c.name, c.tokens, outputs, all, c.most)
			}
		}
	}
}

// TestWaiting: what waits of a half is on the disk, of the stage that has most.
func TestWaiting(t *testing.T) {
	defer func(n int) { leastHalvedFeatures = n }(leastHalvedFeatures)
	leastHalvedFeatures = 400
	for _, c := range []struct {
		src  *testmodel.Source
		want int64
	}{
		{wide(512, 1024, 0), 2*1024*1024 + 4*1024*512}, // H's triangle and S of an MLP's way out
		{wide(512, 256, 8), 2*512*512 + 4*512*512},     // H and D of attention's way in; a mixture has H alone, of all experts
	} {
		p, err := NewPlan(c.src, Recipe{Method: GPTQ, Type: ggml.Q4_0})
		if err != nil {
			t.Fatal(err)
		}
		m := openModel(t, c.src)
		if got := p.waiting(m, 2, 2048, 1024); got != c.want {
			t.Errorf("%d bytes wait, want %d", got, c.want)
		}
		if got := p.waiting(m, 2, 1024, 1024); got != 0 {
			t.Errorf("%d bytes wait of one batch", got)
		}
	}
}

// TestGradientDisk: states that no budget holds lie on the disk before every layer and go as the sums of their layers come, which
// stay; what is estimated is the most that is there at a time.
func TestGradientDisk(t *testing.T) {
	const dim, ffn, tokens = 512, 1024, 4096
	src := wide(dim, ffn, 0)
	p, err := NewPlan(src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn})
	if err != nil {
		t.Fatal(err)
	}
	g := p.gradientNeeds(openModel(t, src), tokens, 512, 1)
	packed := func(n int64) int64 { return 4 * n * (n + 1) / 2 }
	sums := 5*packed(dim) + 2*packed(ffn)
	states := stateBytes(tokens, dim)/2 + stateBytes(tokens, dim) // before the layer in bfloat16, and the gradients
	if g.sums != sums || g.disk != states+sums {
		t.Errorf("%d bytes of sums, %d in all, want %d and %d", g.sums, g.disk, sums, states+sums)
	}
	if g := p.gradientNeeds(openModel(t, src), tokens, 512, 0); g.disk != sums {
		t.Errorf("%d bytes with all states in memory, want %d", g.disk, sums)
	}
	// Sums over half of the text that judge wait in the file, too, until the others are there: with half of them it is longer than at the end.
	p.Recipe.OutputHessian = OutputHessianAuto
	g = p.gradientNeeds(openModel(t, src), tokens, 512, 0)
	if g.sums != sums || g.disk != 2*sums {
		t.Errorf("%d bytes of sums, %d in all, want %d and %d", g.sums, g.disk, sums, 2*sums)
	}
	p.Recipe.OutputHessian = OutputHessianOn
	const many = 8 * tokens
	if some := p.gradientNeeds(openModel(t, src), many, 512, 1); some.disk != many*5/8/tokens*states+sums {
		t.Errorf("%d bytes with five eighths of %d tokens, want %d", some.disk, many, many*5/8/tokens*states+sums)
	}
}
