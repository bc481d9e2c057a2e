package arch

import (
	"math"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Gemma 4: layers with a window and layers without have heads of their own size and number, values are normalised, scores
// not scaled, and a factor of the layer multiplies the residual stream. Some models have experts beside the MLP, some
// embeddings for each layer, and last layers that attend to the keys and values of earlier ones.
func init() {
	register(&Family{
		Name:    "gemma4",
		Classes: []string{"Gemma4ForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4UnifiedForConditionalGeneration"},
		Convert: convertGemma4,
		Spec:    specGemma4,
	})
	tokenizes(&Tokenizer{Characters: true, AddBOS: true, Visible: []string{"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>",
		"<|tool_response>", "<tool_response|>", `<|"|>`}}, "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration",
		"Gemma4UnifiedForConditionalGeneration")
}

// gemma4Period: of so many layers the last has no window, where config.json has no layer_types.
const gemma4Period = 6

// perLayerTable has the embeddings of tokens for all layers.
const perLayerTable = "per_layer_token_embd.weight"

// gemma4Config are the members that Gemma 4 alone has.
type gemma4Config struct {
	windowed                     []bool
	sharing                      int // the last so many layers have no keys and values of their own
	fullDim, fullKV              int // head_dim and num_key_value_heads of layers without a window
	perLayer                     int // features of a layer's embeddings; 0: none
	keysAreValues, wide          bool
	experts, expertFFN           int // 0: none
	theta, local, stretch, turns float64
}

func convertGemma4(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, Heads: 8, HeadDim: 256, KVHeads: 4, Vocab: 262144, Tied: true, Act: "gelu_pytorch_tanh"})
	r.FFN = c.readFFN()
	c.wantGELU(r)
	c.wantFalse("attention_bias")
	g := c.readGemma4(r)
	o := c.Config
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetFloat("rope.freq_base", g.theta)
	c.SetFloat("rope.freq_base_swa", g.local)
	c.SetFloat("final_logit_softcapping", o.Float("final_logit_softcapping", 0, 0, maxWidth)) // readers cap at 30 where it is absent
	c.SetInt("attention.sliding_window", o.Int("sliding_window", 512, 1, maxContext))
	c.Set("attention.sliding_window_pattern", g.windowed)
	c.SetInt("attention.shared_kv_layers", g.sharing)
	c.SetInt("embedding_length_per_layer_input", g.perLayer)
	c.SetInt("attention.key_length", g.fullDim)
	c.SetInt("attention.value_length", g.fullDim)
	c.SetInt("attention.key_length_swa", r.HeadDim)
	c.SetInt("attention.value_length_swa", r.HeadDim)
	if g.expertFFN > 0 {
		c.SetInt("expert_feed_forward_length", g.expertFFN)
	}
	if g.wide {
		widths := make([]int32, r.Layers)
		for i := range widths {
			widths[i] = int32(g.ffn(r, i))
		}
		c.Set("feed_forward_length", widths)
	}
	if o.Has("num_global_key_value_heads") {
		heads := make([]int32, r.Layers)
		for i := range heads {
			heads[i] = int32(g.kvHeads(r, i))
		}
		c.Set("attention.head_count_kv", heads)
	} else {
		c.SetInt("attention.head_count_kv", r.KVHeads)
	}
	c.SetInt("rope.dimension_count", g.fullDim)
	c.SetInt("rope.dimension_count_swa", r.HeadDim)
	c.gemma4Tensors(r, g)
}

func (c *Conversion) readGemma4(r *Config) *gemma4Config {
	o := c.Config
	g := &gemma4Config{}
	g.windowed = c.windowedLayers(r.Layers, gemma4Period)
	if o.Err() == nil && !o.Has("layer_types") {
		g.windowed[r.Layers-1] = false // as the class has it
	}
	g.sharing = o.Int("num_kv_shared_layers", 0, 0, max(r.Layers-1, 0))
	g.fullDim = o.Int("global_head_dim", 512, 2, maxWidth)
	g.keysAreValues = o.Bool("attention_k_eq_v", false)
	g.fullKV = o.Int("num_global_key_value_heads", max(r.KVHeads, 1), 1, maxWidth)
	if !g.keysAreValues && o.Err() == nil { // the class then takes num_key_value_heads; there are checkpoints of both kinds
		for i := range r.Layers {
			shape := c.ShapeOf(layerName("model.layers.%d.self_attn.k_proj.weight", i))
			if !g.windowed[i] && len(shape) == 2 && shape[0] == r.KVHeads*g.fullDim {
				g.fullKV = r.KVHeads
			}
		}
	}
	g.wide = o.Bool("use_double_wide_mlp", false)
	g.perLayer = o.Int("hidden_size_per_layer_input", 256, 0, maxWidth)
	if n := o.Int("vocab_size_per_layer_input", 262144, 0, maxVocab); g.perLayer > 0 && n != r.Vocab {
		o.Fail("vocab_size_per_layer_input", "is %d; GGUF readers want vocab_size, %d", n, r.Vocab)
	}
	if g.expertFFN = o.Int(c.alias("moe_intermediate_size", "expert_intermediate_size"), 0, 0, maxWidth); o.Bool("enable_moe_block", false) {
		g.experts = o.Int("num_experts", -1, 1, maxWidth)
		o.Int("top_k_experts", -1, 1, max(g.experts, 1))
		if g.expertFFN == 0 {
			o.Fail("moe_intermediate_size", "is missing")
		}
	}
	if o.String("use_bidirectional_attention", "") == "all" {
		c.Refuse("use_bidirectional_attention", "GGUF readers attend to what comes before a token alone")
	}
	g.theta, g.stretch, g.turns, g.local = 1e6, 1, 0.25, 10000
	if p := o.Object("rope_parameters"); p != nil {
		full, local := p.Object("full_attention"), p.Object("sliding_attention")
		kind := full.String("rope_type", "default")
		switch kind {
		case "proportional":
			g.stretch = full.Float("factor", 1, 0, maxContext)
		case "default":
		default:
			full.Fail("rope_type", "is %.64q; supported for %s: proportional, default", kind, c.Class)
		}
		g.theta = full.Float("rope_theta", 1e6, 1, math.MaxFloat32)
		g.turns = full.Float("partial_rotary_factor", 1, 0, 1)
		c.wantPlain(local)
		g.local = local.Float("rope_theta", 10000, 1, math.MaxFloat32)
	}
	if o.Err() == nil && (g.fullDim%2 != 0 || r.HeadDim%2 != 0) {
		o.Fail("global_head_dim", "is %d, and head_dim %d; want even numbers", g.fullDim, r.HeadDim)
	}
	if o.Err() == nil && g.sharing > 0 {
		for i, first := range []int{2, 1} {
			if n := r.Layers - g.sharing; n < 2 || g.windowed[n-first] != (i == 0) {
				o.Fail("layer_types", "GGUF readers want the last layers with keys of their own, up to layer %d, to be one with a window and "+
					"one without", n-1)
				break
			}
		}
	}
	if o.Err() == nil && (g.fullKV > r.Heads || r.Heads%g.fullKV != 0) {
		o.Fail("num_global_key_value_heads", "is %d, want a divisor of num_attention_heads, %d", g.fullKV, r.Heads)
	}
	return g
}

// wantPlain refuses a scaled or partial rotary embedding of layers with a window.
func (c *Conversion) wantPlain(local *object.Object) {
	if kind := local.String("rope_type", "default"); kind != "default" {
		local.Fail("rope_type", "is %.64q: layers with a window are not scaled by GGUF readers", kind)
	}
	if f := local.Float("partial_rotary_factor", 1, 0, 1); f != 1 && c.Config.Err() == nil {
		local.Fail("partial_rotary_factor", "is %g, which GGUF readers do not know for %s", f, c.Class)
	}
}

func (g *gemma4Config) headDim(r *Config, i int) int {
	if g.windowed[i] {
		return r.HeadDim
	}
	return g.fullDim
}

func (g *gemma4Config) kvHeads(r *Config, i int) int {
	if g.windowed[i] {
		return r.KVHeads
	}
	return g.fullKV
}

func (g *gemma4Config) ffn(r *Config, i int) int {
	if g.wide && i >= r.Layers-g.sharing {
		return 2 * r.FFN
	}
	return r.FFN
}

func (c *Conversion) gemma4Tensors(r *Config, g *gemma4Config) {
	c.CutEmbeddings("model.embed_tokens.weight", r)
	if n := r.Layers * g.perLayer; n > 0 {
		c.Tensor(perLayerTable, "model.embed_tokens_per_layer.weight", r.Vocab, n)
		c.Tensor("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", n, r.Dim)
		c.Tensor("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", g.perLayer)
	}
	// The first pairs of a head turn, the others stand still: their frequencies are divided by much.
	factors := make([]float32, g.fullDim/2)
	for i := range factors {
		if factors[i] = float32(g.stretch); i >= int(float64(g.fullDim)*g.turns/2) {
			factors[i] = 1e30
		}
	}
	c.Values("rope_freqs.weight", factors)
	for i := range r.Layers {
		l := c.Layer(i)
		headDim := g.headDim(r, i)
		q, kv := r.Heads*headDim, g.kvHeads(r, i)*headDim
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, false)
		l.Norm("attn_q_norm", "self_attn.q_norm", headDim)
		// Layers that share keys and values may have some of their own anyhow, which nothing reads.
		own := i < r.Layers-g.sharing
		if own || l.Has("self_attn.k_proj.weight") {
			l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, false)
			if g.windowed[i] || !g.keysAreValues {
				l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, false)
			}
		}
		if own || l.Has("self_attn.k_norm.weight") {
			l.Norm("attn_k_norm", "self_attn.k_norm", headDim)
		}
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.Norm("ffn_norm", "pre_feedforward_layernorm", r.Dim)
		wide := *r
		wide.FFN = g.ffn(r, i)
		l.gatedMLP(&wide, false)
		if g.experts > 0 {
			l.gemma4Experts(r, g)
		}
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim)
		if g.perLayer > 0 {
			l.Linear("inp_gate", "per_layer_input_gate", g.perLayer, r.Dim, false)
			l.Linear("proj", "per_layer_projection", r.Dim, g.perLayer, false)
			l.Norm("post_norm", "post_per_layer_input_norm", r.Dim)
		}
		if l.Has("layer_scalar") {
			l.Tensor("layer_output_scale.weight", "layer_scalar", 1)
		}
	}
	c.Head(r)
}

func (l *Layer) gemma4Experts(r *Config, g *gemma4Config) {
	n, ffn := g.experts, g.expertFFN
	l.Norm("post_ffw_norm_1", "post_feedforward_layernorm_1", r.Dim)
	l.Norm("pre_ffw_norm_2", "pre_feedforward_layernorm_2", r.Dim)
	l.Linear("ffn_gate_inp", "router.proj", n, r.Dim, false)
	l.Tensor("ffn_gate_inp.scale", "router.scale", r.Dim)
	l.FusedExperts("ffn_gate_up_exps", "experts.gate_up_proj", n, 2*ffn, r.Dim, 0, 2*ffn, false)
	l.FusedExperts("ffn_down_exps", "experts.down_proj", n, r.Dim, ffn, 0, r.Dim, false)
	l.Tensor("ffn_down_exps.scale", "router.per_expert_scale", n)
	l.Norm("post_ffw_norm_2", "post_feedforward_layernorm_2", r.Dim)
}

// gemma4 are the hyperparameters of Gemma 4.
type gemma4 struct {
	*hyper
	kvHeadsOf, ffnOf            []int // by layer
	headDimLocal                int
	local                       *model.RoPE
	perLayer, own               int // own: so many layers have keys and values of their own
	keptFull, keptLocal, widest int // columns of State.Aux, and how many there are
}

func specGemma4(k *model.Keys) *model.Spec {
	h := &gemma4{hyper: readHyper(k, elementwise.RoPEHalves, kvHeadsKey, ffnKey)}
	h.kvHeadsOf = k.Ints("attention.head_count_kv", h.layers, h.heads, 1, model.MaxWidth)
	h.ffnOf = k.Ints("feed_forward_length", h.layers, -1, 1, model.MaxWidth)
	h.headDimLocal = k.Int("attention.key_length_swa", -1, 1, model.MaxWidth)
	h.local = h.rope.Unscaled(k.Float("rope.freq_base_swa", 10000, 0, math.MaxFloat32))
	h.local.Dims = k.Int("rope.dimension_count_swa", h.rope.Dims, 2, max(h.headDimLocal, 2))
	h.perLayer = k.Int("embedding_length_per_layer_input", -1, 0, model.MaxWidth)
	h.own = h.layers - k.Int("attention.shared_kv_layers", 0, 0, max(h.layers, 0))
	softcap := float32(k.Float("final_logit_softcapping", gemma2LogitCap, -1, model.MaxWidth))
	if k.Err() == nil && h.windowed == nil {
		k.Fail("attention.sliding_window_pattern", "the key is missing")
	}
	if n := h.local.Dims; k.Err() == nil && (n%2 != 0 || n > h.headDimLocal) {
		k.Fail("rope.dimension_count_swa", "is %d, want an even number up to the head's %d", n, h.headDimLocal)
	}
	if k.Err() == nil && h.heads < 1 {
		k.Fail("attention.head_count", "is %d, want a positive number", h.heads)
	}
	for i, kv := range h.kvHeadsOf {
		if k.Err() == nil && h.heads%kv != 0 {
			k.Fail("attention.head_count_kv", "has %d for layer %d, want a divisor of attention.head_count, %d", kv, i, h.heads)
		}
	}
	if k.Err() == nil && int64(h.layers)*int64(h.perLayer) > model.MaxWidth {
		k.Fail("embedding_length_per_layer_input", "is %d, too many for %d layers", h.perLayer, h.layers)
	}
	if h.layout(k); k.Err() != nil {
		return nil
	}
	spec := h.embedScaled(h.spec(h.layer), softcap)
	spec.Width = h.dim + h.widest
	outer := spec.Outer
	spec.Outer = func(b *model.Loader) model.Ends {
		b.SetFactors(h.rope, "rope_freqs.weight", model.Required)
		ends := outer(b)
		if n := h.layers * h.perLayer; n > 0 {
			e := &model.PerLayerEmbeddings{
				Width: h.perLayer,
				Name:  perLayerTable,
				Table: b.Table(perLayerTable, h.vocab, n),
				Proj:  b.Kept("per_layer_model_proj", n, h.dim, model.Absent),
				Norm:  b.Norm("per_layer_proj_norm", h.perLayer, h.eps),
			}
			ends.EmbedAux = func(aux, x *tensor.Matrix, tokens []int32, replace model.ReplaceRows) error {
				return e.Embed(aux.View(0, aux.Rows, 0, n), x, tokens, replace)
			}
		}
		return ends
	}
	return spec
}

// layout says where State.Aux has the embeddings of each layer and the keys and values that the last layers share: those
// of the last layer with a window, and of the last without, that have their own. Readers take them for the last two.
func (h *gemma4) layout(k *model.Keys) {
	h.widest = h.layers * h.perLayer
	if k.Err() != nil || h.own == h.layers {
		return
	}
	if h.own < 2 || !h.windowed[h.own-2] || h.windowed[h.own-1] {
		k.Fail("attention.shared_kv_layers", "is %d: the last two of the %d layers before them must be one with a window and one without",
			h.layers-h.own, h.own)
		return
	}
	for i := h.own; i < h.layers; i++ {
		if from := h.source(i); h.kvHeadsOf[i] != h.kvHeadsOf[from] {
			k.Fail("attention.head_count_kv", "is %d for layer %d, but %d for layer %d, whose keys it takes", h.kvHeadsOf[i], i, h.kvHeadsOf[from], from)
			return
		}
	}
	h.keptLocal = h.widest
	h.keptFull = h.keptLocal + 2*h.kvHeadsOf[h.own-2]*h.headDimLocal
	h.widest = h.keptFull + 2*h.kvHeadsOf[h.own-1]*h.headDim
}

// source is the layer whose keys and values layer i attends to.
func (h *gemma4) source(i int) int {
	switch {
	case i < h.own:
		return i
	case h.windowed[i]:
		return h.own - 2
	default:
		return h.own - 1
	}
}

func (h *gemma4) layer(b *model.Loader, i int) {
	attn := h.norm(b, "attn_norm")
	b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, i).Branch(), Post: h.norm(b, "post_attention_norm")})
	mlp := model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlpOf(b, "", h.ffnOf[i], model.GELU, model.Absent).Branch()}
	out := model.Residual{Pre: mlp.Pre, Branch: mlp.Branch}
	if b.Has("ffn_gate_inp.weight") {
		mlp.Post = h.norm(b, "post_ffw_norm_1")
		experts := model.Residual{Pre: h.norm(b, "pre_ffw_norm_2"), Branch: h.experts(b).Branch(), Post: h.norm(b, "post_ffw_norm_2")}
		out = model.Residual{Branch: model.Sum{mlp, experts}.Branch()}
	}
	out.Post = h.norm(b, "post_ffw_norm")
	last := &out
	var embedding model.Residual
	if h.perLayer > 0 {
		branch := &model.PerLayer{
			Gate: b.Linear("inp_gate", h.perLayer, h.dim, model.Absent),
			Proj: b.Linear("proj", h.dim, h.perLayer, model.Absent),
			Act:  model.GELU, At: i * h.perLayer,
		}
		embedding = model.Residual{Branch: branch.Branch(), Post: h.norm(b, "post_norm")}
		last = &embedding
	}
	last.LayerScale = b.LayerScale("layer_output_scale")
	b.Residual(out)
	if h.perLayer > 0 {
		b.Residual(embedding)
	}
}

func (h *gemma4) attention(b *model.Loader, i int) *model.Attention {
	a := &model.Attention{Heads: h.heads, KVHeads: h.kvHeadsOf[i], HeadDim: h.headDim, RoPE: h.rope, Scale: 1, Window: h.windowOf(i)}
	kept := &model.KV{At: h.keptFull}
	if h.windowed[i] {
		a.HeadDim, a.RoPE, kept.At = h.headDimLocal, h.local, h.keptLocal
	}
	q, kv := a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	fused := i < h.own && b.Has("attn_qkv.weight") // as converters make them where they are asked to
	if fused {
		a.QKV = b.Linear("attn_qkv", q+2*kv, h.dim, model.Absent)
	} else {
		a.Q = b.Linear("attn_q", q, h.dim, model.Absent)
	}
	a.QNorm = b.Norm("attn_q_norm", a.HeadDim, h.eps)
	switch {
	case i >= h.own:
		a.Takes = kept
		for _, name := range []string{"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"} {
			b.Unused(name, false)
		}
	default:
		if !fused {
			a.K = b.Linear("attn_k", kv, h.dim, model.Absent)
		}
		a.KNorm = b.Norm("attn_k_norm", a.HeadDim, h.eps)
		if !fused && b.Has("attn_v.weight") { // the values are the keys otherwise
			a.V = b.Linear("attn_v", kv, h.dim, model.Absent)
		}
		a.VNorm = model.Unweighted(a.HeadDim, h.eps)
		if h.own < h.layers && i >= h.own-2 {
			a.Keeps = kept
		}
	}
	a.O = b.Linear("attn_output", h.dim, q, model.Absent)
	return a
}

// experts are those beside the MLP. Their router sees the residual stream, normalised, with a scale of its own.
func (h *gemma4) experts(b *model.Loader) *model.MoE {
	n := h.hyper.experts
	if n < 1 || h.expertsUsed < 1 || h.expertFFN < 1 {
		b.Fail("%d of %d experts of width %d are used", h.expertsUsed, n, h.expertFFN)
		return &model.MoE{}
	}
	scale, plain := b.Vector("ffn_gate_inp.scale", h.dim, model.Required), model.Unweighted(h.dim, h.eps)
	f := &model.MoE{
		Router: b.Kept("ffn_gate_inp", n, h.dim, model.Absent), Top: h.expertsUsed, Normalize: true, Act: model.GELU,
		RouterIn: &model.RouterInput{Norm: plain, Scale: scale, Factor: 1 / math.Sqrt(float64(h.dim))},
	}
	if b.Has("ffn_gate_up_exps.weight") {
		f.GateUp = b.Experts("ffn_gate_up_exps", n, 2*h.expertFFN, h.dim, model.Absent)
	} else {
		f.Gate = b.Experts("ffn_gate_exps", n, h.expertFFN, h.dim, model.Absent)
		f.Up = b.Experts("ffn_up_exps", n, h.expertFFN, h.dim, model.Absent)
	}
	f.Down = b.Experts("ffn_down_exps", n, h.dim, h.expertFFN, model.Absent)
	f.ExpertScale = b.Vector("ffn_down_exps.scale", n, model.Optional)
	return f
}
