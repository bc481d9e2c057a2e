package pipeline

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
)

// headers is a checkpoint of which there is little more than headers: only vectors outside the layers have values.
type headers struct{ testmodel.Source }

func (h *headers) add(name string, t *ggml.Type, shape ...int) {
	h.List = append(h.List, ggml.Tensor{Info: ggml.Info{Name: name, Type: t, Shape: shape}})
}

func (h *headers) layer(i int, name string, shape ...int) {
	t := ggml.BF16
	if len(shape) == 1 {
		t = ggml.F32
	}
	h.add(fmt.Sprintf("blk.%d.%s", i, name), t, shape...)
}

func (h *headers) set(key string, values ...int) {
	arch, _ := h.KV.Get("general.architecture")
	for _, v := range values {
		h.KV.Set(arch.(string)+"."+key, uint32(v))
	}
}

// newHeaders begins a checkpoint of an architecture.
func newHeaders(arch string, layers, dim, ffn, heads, kvHeads, headDim int) *headers {
	h := &headers{testmodel.Source{Path: arch}}
	h.KV.Set("general.architecture", arch)
	h.set("block_count", layers)
	h.set("context_length", 8192)
	h.set("embedding_length", dim)
	h.set("feed_forward_length", ffn)
	h.set("attention.head_count", heads)
	h.set("attention.head_count_kv", kvHeads)
	h.set("attention.key_length", headDim)
	h.set("attention.value_length", headDim)
	h.KV.Set(arch+".attention.layer_norm_rms_epsilon", float32(1e-5))
	const vocab = 32000
	if arch != "qwen3moe" {
		h.set("vocab_size", vocab)
		h.set("rope.dimension_count", headDim)
	}
	h.add("token_embd.weight", ggml.BF16, vocab, dim)
	h.add("output.weight", ggml.BF16, vocab, dim)
	h.add("output_norm.weight", ggml.F32, dim)
	h.List[2].Data = make([]byte, 4*dim)
	for i := range layers {
		h.layer(i, "attn_norm.weight", dim)
		h.layer(i, "ffn_norm.weight", dim)
	}
	return h
}

func (h *headers) attention(i, dim, heads, kvHeads, headDim int) {
	h.layer(i, "attn_q.weight", heads*headDim, dim)
	h.layer(i, "attn_k.weight", kvHeads*headDim, dim)
	h.layer(i, "attn_v.weight", kvHeads*headDim, dim)
	h.layer(i, "attn_output.weight", dim, heads*headDim)
}

func (h *headers) mlp(i int, suffix string, dim, ffn int) {
	h.layer(i, "ffn_gate"+suffix+".weight", ffn, dim)
	h.layer(i, "ffn_up"+suffix+".weight", ffn, dim)
	h.layer(i, "ffn_down"+suffix+".weight", dim, ffn)
}

func (h *headers) experts(i, experts, dim, ffn int) {
	h.layer(i, "ffn_gate_inp.weight", experts, dim)
	h.layer(i, "ffn_gate_exps.weight", experts, ffn, dim)
	h.layer(i, "ffn_up_exps.weight", experts, ffn, dim)
	h.layer(i, "ffn_down_exps.weight", experts, dim, ffn)
}

func llamaHeaders(layers, dim, ffn, heads, kvHeads int) *headers {
	h := newHeaders("llama", layers, dim, ffn, heads, kvHeads, dim/heads)
	for i := range layers {
		h.attention(i, dim, heads, kvHeads, dim/heads)
		h.mlp(i, "", dim, ffn)
	}
	return h
}

// qwenHeaders is Qwen3-235B-A22B.
func qwenHeaders() *headers { return moeHeaders(94, 4096, 1536, 64, 4, 128) }

// moeHeaders is a mixture of experts of which a token reaches 8, with attention heads of 128 features.
func moeHeaders(layers, dim, ffn, heads, kvHeads, experts int) *headers {
	const headDim = 128
	h := newHeaders("qwen3moe", layers, dim, 12288, heads, kvHeads, headDim)
	h.set("expert_count", experts)
	h.set("expert_used_count", 8)
	h.set("expert_feed_forward_length", ffn)
	for i := range layers {
		h.attention(i, dim, heads, kvHeads, headDim)
		h.layer(i, "attn_q_norm.weight", headDim)
		h.layer(i, "attn_k_norm.weight", headDim)
		h.experts(i, experts, dim, ffn)
	}
	return h
}

// deepseekHeaders is DeepSeek-V3, which has 61 layers, 3 of them dense, without that which predicts a further token.
func deepseekHeaders(layers, dense int) *headers {
	const dim, ffn, heads, experts, qRank, rank, rope, nope, value = 7168, 2048, 128, 256, 1536, 512, 64, 128, 128
	h := newHeaders("deepseek2", layers, dim, 18432, heads, 1, rope)
	h.set("leading_dense_block_count", dense)
	h.set("attention.q_lora_rank", qRank)
	h.set("attention.kv_lora_rank", rank)
	h.set("attention.key_length", rank+rope)
	h.set("attention.value_length", rank)
	h.set("attention.key_length_mla", nope+rope)
	h.set("attention.value_length_mla", value)
	h.set("expert_count", experts)
	h.set("expert_used_count", 8)
	h.set("expert_feed_forward_length", ffn)
	h.set("expert_shared_count", 1)
	h.set("expert_gating_func", 2)
	for i := range layers {
		h.layer(i, "attn_q_a.weight", qRank, dim)
		h.layer(i, "attn_q_a_norm.weight", qRank)
		h.layer(i, "attn_q_b.weight", heads*(nope+rope), qRank)
		h.layer(i, "attn_kv_a_mqa.weight", rank+rope, dim)
		h.layer(i, "attn_kv_a_norm.weight", rank)
		h.layer(i, "attn_k_b.weight", heads, rank, nope)
		h.layer(i, "attn_v_b.weight", heads, value, rank)
		h.layer(i, "attn_output.weight", dim, heads*value)
		if i < dense {
			h.mlp(i, "", dim, 18432)
			continue
		}
		h.experts(i, experts, dim, ffn)
		h.mlp(i, "_shexp", dim, ffn)
	}
	return h
}

// planned opens a checkpoint and plans it as the note on distribution has it: GPTQ to 0.5625 bytes a weight, without Hessians of
// outputs, which it does not know.
func planned(t *testing.T, h *headers, outputs OutputHessian) (*Plan, *model.Model) {
	t.Helper()
	p, err := NewPlan(h, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: outputs})
	if err != nil {
		t.Fatal(err)
	}
	m, err := arch.Open(h)
	if err != nil {
		t.Fatal(err)
	}
	return p, m
}

// noted are a machine's speeds in the note: F FLOP/s in bfloat16, half of it in float32, and a link of 25 Gbit/s.
func noted(f float64) Speeds {
	return Speeds{Products: f, Float32: f / 2, Column: 3/(f/2) + 7/f, Disk: math.Inf(1), Link: 3.1e9}
}

// TestCostNote compares the model of cost to ../shared/notes/distributed.md, section 3.
func TestCostNote(t *testing.T) {
	const teraflops = 1e12
	machines := []int{2, 4, 8, 16, 32}
	for _, m := range []struct {
		name string
		src  *headers
		like *headers // what the note counts the bytes of: DeepSeek-V3 without its dense layers
		// T = 262144, machines of 4 TFLOP/s.
		layer      float64   // seconds, on one machine
		hours      float64   // likewise, of all layers
		efficiency []float64 // % of 2 to 32 machines
		// Fewer tokens, and faster machines.
		hours64, efficiency64 float64 // T = 65536: on one, and of 8
		fast8, fast32         float64 // % at 12 TFLOP/s
		// GB a layer at N = 8: in, of each kind.
		sums, rows, experts, states, weights float64
	}{
		{"Llama-70B", llamaHeaders(80, 8192, 28672, 64, 8), nil, 519, 11.5, []float64{95, 93, 90, 84, 72},
			4.0, 76, 81, 57, 61. / 8, 2.6 + 1.2/8, 0, 17. / 8, 1.7},
		{"Qwen3-235B-A22B", qwenHeaders(), nil, 181, 4.7, []float64{87, 86, 83, 79, 70},
			1.8, 85, 65, 47, 5.9 / 8, 0.24 + 0.13/8, 4.3 + 69./8, 8.6 / 8, 0.14 + 4.8/8},
		{"DeepSeek-V3", deepseekHeaders(61, 3), deepseekHeaders(2, 0), 760, 12.3, []float64{93, 93, 91, 88, 81},
			5.7, 92, 80, 65, 27. / 8, 1.2 + 0.5/8, 7.5 + 120./8, 15. / 8, 2 * (0.2 + 11.3/8)},
		{"Llama-405B", llamaHeaders(126, 16384, 53248, 128, 8), nil, 2143, 75, []float64{95, 93, 88, 80, 66},
			31, 75, 80, 53, 0, 0, 0, 0, 0},
	} {
		p, md := planned(t, m.src, OutputHessianOff)
		check := func(what string, got, want float64) {
			t.Helper()
			if !(math.Abs(got-want) <= 0.2*want) {
				t.Errorf("%s: %s: %.4g, the note has %.4g", m.name, what, got, want)
			} else {
				t.Logf("%s: %s: %.4g, the note has %.4g (%+.0f%%)", m.name, what, got, want, 100*(got/want-1))
			}
		}
		const many, few, seqLen = 262144, 65536, 2048
		one := p.Cost(md, many, seqLen, 1, noted(4*teraflops))
		check("seconds of a layer", one.Seconds/float64(md.Layers()), m.layer)
		check("hours", one.Seconds/3600, m.hours)
		for i, n := range machines {
			c := p.Cost(md, many, seqLen, n, noted(4*teraflops))
			check(fmt.Sprintf("%% of %d machines", n), 100*c.Efficiency, m.efficiency[i])
		}
		check("hours with few tokens", p.Cost(md, few, seqLen, 1, noted(4*teraflops)).Seconds/3600, m.hours64)
		check("% of 8 machines with few tokens", 100*p.Cost(md, few, seqLen, 8, noted(4*teraflops)).Efficiency, m.efficiency64)
		check("% of 8 fast machines", 100*p.Cost(md, many, seqLen, 8, noted(12*teraflops)).Efficiency, m.fast8)
		check("% of 32 fast machines", 100*p.Cost(md, many, seqLen, 32, noted(12*teraflops)).Efficiency, m.fast32)
		if m.sums == 0 {
			continue
		}
		if m.like != nil {
			p, md = planned(t, m.like, OutputHessianOff)
		}
		moved := map[string]Transfer{}
		for _, tr := range p.Cost(md, many, seqLen, 8, noted(4*teraflops)).Transfers {
			moved[tr.Name] = tr
		}
		gigabytes := func(n int64) float64 { return float64(n) / float64(md.Layers()) / 1e9 }
		check("GB of sums in", gigabytes(moved[movedSums].In), m.sums)
		check("GB of sums out", gigabytes(moved[movedSums].Out), m.sums)
		check("GB that rows need", gigabytes(moved[movedNeeds].In), m.rows)
		check("GB of states", gigabytes(moved[movedStates].Out), m.states)
		check("GB of weights", gigabytes(moved[movedWeights].In), m.weights)
		if m.experts > 0 {
			check("GB of experts", gigabytes(moved[movedExperts].In), m.experts)
		}
	}
}

// TestStageRuns: how often layers' linears are applied is what streams do; in the note's words, c.
func TestStageRuns(t *testing.T) {
	m, err := arch.Open(testmodel.New("llama").Source())
	if err != nil {
		t.Fatal(err)
	}
	// q, k and v; o; gate and up, which the quantized model computes once to see what down gets; down.
	if got := stageRuns(m.Shape(0), true); !slices.Equal(got, []stageRun{{2, 0}, {3, 0}, {2, 0}, {2, 1}}) {
		t.Errorf("with the original: %v", got)
	}
	if got := stageRuns(m.Shape(0), false); !slices.Equal(got, []stageRun{{1, 0}, {1, 0}, {1, 0}, {0, 1}}) {
		t.Errorf("alone: %v", got)
	}
}

// TestCostBeside: the gradients of a model whose layers are held together are at the speed of batches side by side, a large model's not.
func TestCostBeside(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, c := range []struct {
		src    Source
		beside bool
	}{
		{testmodel.New("llama").Source(), true},
		{llamaHeaders(2, 4096, 14336, 32, 8), false},
	} {
		p, err := NewPlan(c.src, Recipe{Method: GPTQ, Type: ggml.Q4_0, OutputHessian: OutputHessianOn})
		if err != nil {
			t.Fatal(err)
		}
		m := openModel(t, c.src)
		at := func(beside float64) *Cost {
			s := noted(1e12)
			s.Beside = beside
			return p.Cost(m, 65536, 512, 1, s)
		}
		like, twice := at(0), at(2e12)
		if same := at(1e12); same.gradients != like.gradients {
			t.Errorf("gradients take %g s, at the speed of Products said twice %g", like.gradients, same.gradients)
		}
		if faster := twice.gradients < like.gradients; faster != c.beside || twice.Seconds-twice.gradients != like.Seconds-like.gradients {
			t.Errorf("batches side by side at twice the speed: gradients take %g s for %g, all %g for %g", twice.gradients, like.gradients, twice.Seconds, like.Seconds)
		}
	}
}

// TestCostParts: what a run does besides has its part in the estimate, and what cannot be divided is not.
func TestCostParts(t *testing.T) {
	src := llamaHeaders(2, 4096, 14336, 32, 8)
	phases := func(c *Cost) map[string]float64 {
		got := map[string]float64{}
		var sum float64
		for _, p := range c.Phases {
			got[p.Name] = p.Seconds
			sum += p.Seconds
		}
		if math.Abs(sum-c.Seconds) > 1e-9*sum {
			t.Errorf("phases take %g s, all together %g", sum, c.Seconds)
		}
		return got
	}
	s := noted(1e12)
	s.Disk = 1e9
	const tokens, seqLen = 65536, 512
	off, m := planned(t, src, OutputHessianOff)
	on, _ := planned(t, src, OutputHessianAuto)
	one := phases(off.Cost(m, tokens, seqLen, 1, s))
	if one[costOutputs] != 0 || one[costStore] != 0 || len(off.Cost(m, tokens, seqLen, 1, s).Transfers) > 0 {
		t.Errorf("one machine: %v", one)
	}
	if want := (2*float64(off.Elements()) + float64(off.File.Size())) / 1e9; math.Abs(one[costDisk]/want-1) > 1e-3 {
		t.Errorf("disk: %g s, want %g", one[costDisk], want)
	}
	coupled := phases(on.Cost(m, tokens, seqLen, 1, s))
	var weights float64
	for i := range m.Layers() {
		weights += float64(m.LayerWeights(i))
	}
	// Six operations for a weight and a token that gives gradients, and the head, at least; and rows wait for each other's errors.
	if least := float64(gradientTokens(tokens)) * (6*weights + 4*32000*4096) / 1e12; coupled[costOutputs] < least || coupled[costOutputs] > 1.5*least {
		t.Errorf("output Hessians take %g s, products alone %g", coupled[costOutputs], least)
	}
	if !(coupled[costRows] > one[costRows]) || coupled[costObserve] != one[costObserve] {
		t.Errorf("with output Hessians %v, without %v", coupled, one)
	}
	// Two machines share the batches of attn_output's one block of 4096 rows, and four at most.
	if two := phases(on.Cost(m, tokens, seqLen, 2, s)); !(two[costRows] < 0.6*coupled[costRows]) {
		t.Errorf("coupled rows take %g s on one machine, %g on two", coupled[costRows], two[costRows])
	}
	for n, divides := range map[*Plan]bool{off: true, on: false} {
		two, many := phases(n.Cost(m, tokens, seqLen, 2, s)), phases(n.Cost(m, tokens, seqLen, 16, s))
		if faster := two[costRows]/many[costRows] > 3; faster != divides {
			t.Errorf("rows on 2 machines take %g s, on 16 %g", two[costRows], many[costRows])
		}
	}
	// 40960 tokens give gradients, 20 batches of 2048: 16 machines have one or two each.
	always, _ := planned(t, src, OutputHessianOn)
	if one, many := phases(always.Cost(m, tokens, seqLen, 1, s)), phases(always.Cost(m, tokens, seqLen, 16, s)); math.Abs(many[costOutputs]/one[costOutputs]-0.1) > 1e-9 {
		t.Errorf("output Hessians take %g s, on 16 machines %g", one[costOutputs], many[costOutputs])
	}
	// Sums of two halves go to two machines, of 20 batches and of what is before the second span of them to more; of gradients that judge as many.
	// The Hessians follow.
	var packed float64
	for _, b := range []float64{4096, 1024, 1024, 4096, 3584, 3584, 3584, 3584, 3584, 3584, 3584, 3584, 4096} {
		packed += float64(m.Layers()) * 2 * b * b
	}
	for n, sums := range map[int]float64{2: 2, 3: 21, 16: 21} {
		moved := func(p *Plan) (in, out float64) {
			for _, tr := range p.Cost(m, tokens, seqLen, n, s).Transfers {
				if tr.Name == movedSums {
					in, out = float64(tr.In), float64(tr.Out)
				}
			}
			return in, out
		}
		in, out := moved(on)
		in0, out0 := moved(off)
		if wantIn, wantOut := (2*sums/float64(n)+1)*packed, (2*sums+1)/float64(n)*packed; math.Abs(in-in0-wantIn) > 4 || math.Abs(out-out0-wantOut) > 4 {
			t.Errorf("%d machines: %g and %g bytes of gradients' sums, want %g and %g", n, in-in0, out-out0, wantIn, wantOut)
		}
	}
	// 16 shards: 12 machines take as long as 8 do.
	if a, b := phases(off.Cost(m, tokens, seqLen, 8, s)), phases(off.Cost(m, tokens, seqLen, 12, s)); a[costObserve] != b[costObserve] {
		t.Errorf("8 machines observe for %g s, 12 for %g", a[costObserve], b[costObserve])
	}
	// 12288 tokens are 4 batches: 3 machines take as long as 2 do, and those half of one's time.
	if a, b, c := phases(off.Cost(m, 12288, seqLen, 1, s)), phases(off.Cost(m, 12288, seqLen, 2, s)), phases(off.Cost(m, 12288, seqLen, 3, s)); b[costObserve] != a[costObserve]/2 || c[costObserve] != b[costObserve] {
		t.Errorf("12288 tokens: one machine observes for %g s, two for %g, three for %g", a[costObserve], b[costObserve], c[costObserve])
	}
	if few := phases(off.Cost(m, tokens/64, seqLen, 1, s)); math.Abs(64*few[costObserve]/one[costObserve]-1) > 1e-9 || !(few[costRows] < one[costRows]) {
		t.Errorf("a 64th of the tokens: %v, all: %v", few, one)
	}
	if plain := off.Cost(nil, 0, 0, 1, s); len(plain.Phases) != 2 || plain.Phases[0].Name != costRows {
		t.Errorf("without calibration: %+v", plain.Phases)
	}
}
