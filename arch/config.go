package arch

import (
	"slices"
)

// Defaults are what the transformers library takes for members that config.json does not have.
type Defaults struct {
	Layers  int     // num_hidden_layers; 0: it is required
	Heads   int     // num_attention_heads; 0: it is required
	Vocab   int     // vocab_size; 0: it is required
	Context int     // max_position_embeddings; 0: 2048
	Eps     float64 // rms_norm_eps; 0: 1e-6
	HeadDim int     // head_dim; 0: hidden_size over num_attention_heads
	KVHeads int     // num_key_value_heads; 0: as many as heads
	Theta   float64 // rope_theta; 0: 10000
	Tied    bool    // tie_word_embeddings
	Act     string  // hidden_act; "": silu
}

// Config are the members of config.json that nearly all classes read.
type Config struct {
	Layers, Dim, Heads, KVHeads, HeadDim, FFN, Vocab, Context int
	Eps, Theta                                                float64
	LayerNorm                                                 bool // norms are LayerNorm
	Tied                                                      bool
	Act                                                       string
}

// alias returns the first of several names of a member that is there, the first if none is.
func (c *Conversion) alias(names ...string) string {
	for _, name := range names {
		if c.Config.Has(name) {
			return name
		}
	}
	return names[0]
}

// Read reads the common members, under the names that old classes have for them too.
func (c *Conversion) Read(d Defaults) *Config {
	o := c.Config
	r := &Config{}
	r.Layers = o.Int(c.alias("num_hidden_layers", "n_layer", "n_layers", "num_layers"), orRequired(d.Layers), 1, maxLayers)
	r.Dim = o.Int(c.alias("hidden_size", "n_embd"), -1, 1, maxWidth)
	r.Heads = o.Int(c.alias("num_attention_heads", "n_head", "n_heads"), orRequired(d.Heads), 1, maxWidth)
	r.Vocab = o.Int("vocab_size", orRequired(d.Vocab), 1, maxVocab)
	context := d.Context
	if context == 0 {
		context = 2048
	}
	r.Context = o.Int(c.alias("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"), context, 1, maxContext)
	eps := d.Eps
	if eps == 0 {
		eps = 1e-6
	}
	r.Eps = o.Float(c.alias("rms_norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), eps, 0, 1)
	if o.Err() != nil {
		return r
	}
	kv := d.KVHeads
	if kv == 0 {
		kv = r.Heads
	}
	if o.Present("num_key_value_heads") { // null: as many as heads
		kv = r.Heads
	}
	r.KVHeads = o.Int("num_key_value_heads", kv, 1, maxWidth)
	if o.Err() == nil && r.Heads%r.KVHeads != 0 {
		o.Fail("num_key_value_heads", "is %d, want a divisor of num_attention_heads, %d", r.KVHeads, r.Heads)
	}
	headDim := d.HeadDim
	if headDim == 0 && !o.Has("head_dim") {
		if r.Dim%r.Heads != 0 {
			o.Fail("num_attention_heads", "is %d, which does not divide hidden_size, %d", r.Heads, r.Dim)
		}
		headDim = r.Dim / r.Heads
	}
	r.HeadDim = o.Int("head_dim", headDim, 1, maxWidth)
	act := d.Act
	if act == "" {
		act = "silu"
	}
	r.Act = o.String(c.alias("hidden_act", "hidden_activation", "activation_function"), act)
	r.Tied = o.Bool("tie_word_embeddings", d.Tied)
	theta := d.Theta
	if theta == 0 {
		theta = 10000
	}
	r.Theta = theta
	c.Vocab = r.Vocab
	return r
}

// orRequired is a default for Object.Int, for which 0 stands for none.
func orRequired(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// readFFN reads intermediate_size.
func (c *Conversion) readFFN() int {
	return c.Config.Int(c.alias("intermediate_size", "n_inner", "ffn_hidden_size"), -1, 1, maxWidth)
}

// acts are the names that config.json has for the activations.
var acts = map[string][]string{
	"silu": {"silu", "swish"},
	"gelu": {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"},
}

// WantAct refuses another activation than one of those that GGUF readers compute for the architecture.
func (c *Conversion) WantAct(r *Config, want string) {
	if c.Config.Err() == nil && !slices.Contains(acts[want], r.Act) && r.Act != want {
		c.Config.Fail(c.alias("hidden_act", "hidden_activation", "activation_function"), "is %q; supported for %s: %s", r.Act, c.Class, want)
	}
}

// Refuse refuses a member that the class reads and GGUF readers do not, unless it is what they take for granted.
func (c *Conversion) Refuse(key, why string) {
	c.Config.Fail(key, "is %s: %s", c.Config.Excerpt(key), why)
}

func (c *Conversion) setHeadDim(r *Config) {
	c.SetInt("attention.key_length", r.HeadDim)
	c.SetInt("attention.value_length", r.HeadDim)
}

// SetExperts sets the hyperparameters of a mixture of experts.
func (c *Conversion) SetExperts(count, used, ffn int) {
	c.SetInt("expert_count", count)
	c.SetInt("expert_used_count", used)
	if ffn > 0 {
		c.SetInt("expert_feed_forward_length", ffn)
	}
}

// Embeddings declares token_embd.weight. A checkpoint with tied weights may have them as the head alone.
func (c *Conversion) Embeddings(r *Config) { c.EmbeddingsFrom("model.embed_tokens.weight", r) }

// EmbeddingsFrom is Embeddings under another name.
func (c *Conversion) EmbeddingsFrom(name string, r *Config) *Tensor {
	if !c.Has(name) && r.Tied && c.Has(headName) {
		name = headName
	}
	return c.Tensor("token_embd.weight", name, r.Vocab, r.Dim)
}

// CutEmbeddings is Embeddings for checkpoints that may have rows beyond the vocabulary, which are left out.
func (c *Conversion) CutEmbeddings(name string, r *Config) {
	if shape := c.ShapeOf(name); len(shape) == 2 && shape[0] > r.Vocab && shape[1] == r.Dim {
		p := c.part(name, shape...)
		p.Count = r.Vocab
		c.Warn("%q has %d rows, the vocabulary %d tokens: the rows beyond are left out", p.Name, shape[0], r.Vocab)
		c.add("token_embd.weight", []int{r.Vocab, r.Dim}, p)
		return
	}
	c.EmbeddingsFrom(name, r)
}

// headName is where checkpoints have the output weights.
const headName = "lm_head.weight"

// Head declares the final norm and the output weights. Weights that config.json calls tied and that are there anyhow are
// kept where they are not those of the embeddings: the transformers library from 5 on uses them, and so do GGUF readers.
func (c *Conversion) Head(r *Config) {
	c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)
	c.Output(r, headName)
}

// OwnHead is Head for architectures whose GGUF readers demand output weights: the embeddings a second time where they are
// tied.
func (c *Conversion) OwnHead(r *Config) {
	c.Head(r)
	if last := c.Tensors[len(c.Tensors)-1]; last.Name != "output.weight" {
		c.Tensor("output.weight", c.embedding(), r.Vocab, r.Dim)
	}
}

// Output declares the output weights under a name of the checkpoint.
func (c *Conversion) Output(r *Config, name string) {
	head, stored := c.find(name)
	if r.Tied {
		if !stored {
			return
		}
		c.used[head] = true
		embed := c.embedding()
		if embed == head || c.weights.Equal(head, embed) {
			return
		}
		c.Warn("%q is kept, though tie_word_embeddings is true: it is not the embeddings", head)
	}
	c.Tensor("output.weight", name, r.Vocab, r.Dim)
}

// UntiedHead is Head for architectures whose readers want output weights.
func (c *Conversion) UntiedHead(r *Config, head string) {
	c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)
	c.untiedOutput(r, head)
}

// untiedOutput declares output weights: they are the embeddings where the checkpoint ties them and has no others.
func (c *Conversion) untiedOutput(r *Config, head string) {
	if embed := c.embedding(); r.Tied && !c.Has(head) && embed != "" {
		head = embed
	}
	c.Tensor("output.weight", head, r.Vocab, r.Dim)
}

// wantHeadDim refuses heads of another size than the width over their number, for architectures whose readers know no
// other.
func (c *Conversion) wantHeadDim(r *Config) {
	if c.Config.Err() == nil && r.HeadDim*r.Heads != r.Dim {
		c.Config.Fail("head_dim", "is %d; GGUF readers want hidden_size over num_attention_heads, %d, for %s", r.HeadDim, r.Dim/r.Heads, c.Class)
	}
}

// wantFalse refuses members that are true, for architectures whose readers have no such biases and the like.
func (c *Conversion) wantFalse(keys ...string) {
	for _, key := range keys {
		if c.Config.Bool(key, false) {
			c.Refuse(key, "GGUF readers know nothing of the kind for "+c.Class)
		}
	}
}

// embedding is the name of the embeddings in the checkpoint.
func (c *Conversion) embedding() string {
	for _, t := range c.Tensors {
		if t.Name == "token_embd.weight" {
			return t.Parts[0].Name
		}
	}
	return ""
}

// LayerTypes returns layer_types: what each of n layers attends to; nil if it is absent.
func (c *Conversion) LayerTypes(n int) []string {
	types := c.Config.Strings("layer_types")
	if types != nil && len(types) < n {
		c.Config.Fail("layer_types", "has %d elements, want %d, one for each layer", len(types), n)
		return nil
	}
	for _, t := range types {
		if t != "full_attention" && t != "sliding_attention" {
			c.Config.Fail("layer_types", "has %.64q; supported for %s: full_attention, sliding_attention", t, c.Class)
			return nil
		}
	}
	return types
}

// wantGELU refuses another activation than GELU, under either name that it has.
func (c *Conversion) wantGELU(r *Config) {
	c.Config.Has("hidden_act")
	if c.Config.Has("hidden_activation") {
		r.Act = c.Config.String("hidden_activation", "")
	}
	c.WantAct(r, "gelu")
}

// wantScale refuses another query_pre_attn_scalar than what GGUF readers take.
func (c *Conversion) wantScale(r *Config, want, absent float64) {
	if got := c.Config.Float("query_pre_attn_scalar", absent, 0, maxWidth); got != want && c.Config.Err() == nil {
		c.Config.Fail("query_pre_attn_scalar", "is %g; GGUF readers take %g for %s", got, want, c.Class)
	}
}
