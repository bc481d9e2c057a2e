package arch

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/model"
)

// Weights are the names and shapes of what a checkpoint holds.
type Weights interface {
	Names() []string
	// Shape returns a tensor's shape.
	Shape(name string) (shape []int, ok bool)
	// Equal says whether two tensors have the same type, shape and bytes.
	Equal(a, b string) bool
	// Blocks says that a tensor of experts is in blocks along the columns of out×in, though the class has plain ones in×out.
	Blocks(name string) bool
}

// Options are the options of Convert.
type Options struct {
	// MTP says which layers that predict further tokens are kept.
	MTP MTP
}

// Conversion describes the GGUF file that a checkpoint becomes, while a family's Convert fills it in.
type Conversion struct {
	Family *Family
	Class  string         // in config.json
	Config *object.Object // with text_config's members in the place of those around it
	Options
	// Metadata are the hyperparameters, and Tensors the tensors in the order in which the forward pass needs them.
	Metadata gguf.Metadata
	Tensors  []*Tensor
	Vocab    int // rows of the embeddings
	Warnings []string

	weights Weights
	used    map[string]bool
	err     error
}

// Tensor is one of GGUF's, and where it comes from.
type Tensor struct {
	Name  string
	Shape []int
	// Parts follow each other along the rows, which are those of the shape's last dimension.
	Parts []Part
	// Values are of a tensor that the checkpoint does not have; nil where there are Parts.
	Values []float32
	// Columns gives for each column the one that it is in the checkpoint, which may have more; nil: all as they are.
	Columns []int
	// Change, where not nil, computes row r's new values in place; the tensor becomes F32. Undo is its inverse, where there is one.
	Change, Undo func(row []float32, r int)
}

// Part is rows of a tensor of the checkpoint.
type Part struct {
	Name  string // as the checkpoint has it
	Count int    // of rows
	// Row gives for each of them the row that it is in the checkpoint; nil: First and those after it.
	Row   func(r int) int
	First int
	// Transposed: the checkpoint has, for each index of the dimensions before the last two, in×out where out×in is
	// wanted. Count and Row count rows of the transposed tensor. In and Out are the sizes in the checkpoint, in×out.
	Transposed bool
	In, Out    int
}

// Tensors are several that one call has declared: a weight, and its bias if it has one.
type Tensors []*Tensor

// Convert finds the family of a checkpoint and has it describe the conversion. A checkpoint whose class several families
// share goes to the first that takes it.
func Convert(config *object.Object, weights Weights, opt Options) (*Conversion, error) {
	classes := config.Strings("architectures")
	if err := config.Err(); err != nil {
		return nil, err
	}
	if len(classes) == 0 {
		classes = classesOf(config.String("model_type", ""))
	}
	if len(classes) == 0 {
		return nil, fmt.Errorf("%s: architectures: is missing, and no class is known by model_type, %.64q", config.File, config.String("model_type", ""))
	}
	c := &Conversion{Class: classes[0], Config: config, Options: opt, weights: weights, used: map[string]bool{}}
	if text := config.Object("text_config"); text != nil {
		c.Config = text.Over(config)
	}
	for _, f := range byClass[c.Class] {
		if f.Takes == nil || f.Takes(c.Config) {
			c.Family = f
			break
		}
	}
	if c.Family == nil {
		return nil, fmt.Errorf("%s: architectures: %.64q is not supported; supported: %s",
			config.File, c.Class, strings.Join(Classes(), ", "))
	}
	c.Family.Convert(c)
	if err := c.Config.Err(); err != nil {
		return nil, err
	}
	if c.err != nil {
		return nil, c.err
	}
	c.noteUnread()
	c.noteWindow()
	return c, c.leftover()
}

// renamed has the language model classes of model_types that are called otherwise.
var renamed = map[string]string{"kimi_k2": "DeepseekV3ForCausalLM", "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
	"hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM"}

// classesOf returns the language model class for a model_type, where architectures is missing: qwen3_moe stands for
// Qwen3MoeForCausalLM, gemma3 for Gemma3ForConditionalGeneration, gemma3_text for Gemma3ForCausalLM.
func classesOf(modelType string) []string {
	if class := renamed[modelType]; class != "" {
		return []string{class}
	}
	bare := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "") }
	stem, text := strings.CutSuffix(modelType, "_text")
	suffixes := []string{"ForConditionalGeneration", "ForCausalLM", "LMHeadModel"}
	if text {
		suffixes = suffixes[1:]
	}
	for _, suffix := range suffixes {
		for _, class := range Classes() {
			if modelType != "" && bare(class) == bare(stem+suffix) {
				return []string{class}
			}
		}
	}
	return nil
}

// fail keeps the first error.
func (c *Conversion) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// Warn notes what of the checkpoint is left out, and why.
func (c *Conversion) Warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// Set sets a hyperparameter under the architecture's prefix.
func (c *Conversion) Set(key string, value any) { c.Metadata.Set(c.Family.Name+"."+key, value) }

// SetInt sets an unsigned integer.
func (c *Conversion) SetInt(key string, n int) { c.Set(key, uint32(n)) }

// SetFloat sets a float32.
func (c *Conversion) SetFloat(key string, f float64) { c.Set(key, float32(f)) }

// roots are where checkpoints keep the language model: what stands in place of "model." in a name.
var roots = []string{"model.", "model.language_model.", "language_model.model.", "language_model.", "ernie.", ""}

// find returns a tensor's name in the checkpoint: the name itself, or under another root.
func (c *Conversion) find(name string) (string, bool) {
	if _, ok := c.weights.Shape(name); ok {
		return name, true
	}
	bare := strings.TrimPrefix(name, "model.")
	for _, root := range roots {
		if _, ok := c.weights.Shape(root + bare); ok {
			return root + bare, true
		}
	}
	return name, false
}

// Has says whether the checkpoint has a tensor.
func (c *Conversion) Has(name string) bool {
	_, ok := c.find(name)
	return ok
}

// ShapeOf returns a tensor's shape in the checkpoint, nil if it has none.
func (c *Conversion) ShapeOf(name string) []int {
	name, _ = c.find(name)
	shape, _ := c.weights.Shape(name)
	return shape
}

// part checks that the checkpoint has a tensor of a shape, and returns all of its rows.
func (c *Conversion) part(name string, shape ...int) Part {
	found, ok := c.find(name)
	if !ok {
		c.fail("tensor %q is missing; config.json (%s) calls for it", name, c.Class)
	}
	got, _ := c.weights.Shape(found)
	if ok && !slices.Equal(got, shape) {
		c.fail("tensor %q is %v, config.json calls for %v", found, got, shape)
	}
	c.used[found] = true
	rows := 1
	for _, n := range shape[:len(shape)-1] {
		rows *= n
	}
	return Part{Name: found, Count: rows}
}

// add declares a tensor of some parts.
func (c *Conversion) add(name string, shape []int, parts ...Part) *Tensor {
	t := &Tensor{Name: name, Shape: shape, Parts: parts}
	c.Tensors = append(c.Tensors, t)
	return t
}

// Tensor declares a tensor that the checkpoint has in the same shape.
func (c *Conversion) Tensor(name, from string, shape ...int) *Tensor {
	return c.add(name, shape, c.part(from, shape...))
}

// Values declares a tensor that the checkpoint does not have.
func (c *Conversion) Values(name string, values []float32) {
	c.Tensors = append(c.Tensors, &Tensor{Name: name, Shape: []int{len(values)}, Values: values})
}

// SkipAll notes that the tensors whose names match are known and left out.
func (c *Conversion) SkipAll(names *regexp.Regexp) {
	for _, name := range c.weights.Names() {
		if names.MatchString(name) {
			c.used[name] = true
		}
	}
}

// Layer declares tensors of one layer: names in GGUF get the prefix "blk.N.", those in the checkpoint hf.
type Layer struct {
	c        *Conversion
	gguf, hf string
}

// Layer returns layer i under the usual prefix.
func (c *Conversion) Layer(i int) *Layer { return c.LayerAt(i, fmt.Sprintf("model.layers.%d.", i)) }

// LayerAt returns layer i under a prefix of the checkpoint.
func (c *Conversion) LayerAt(i int, prefix string) *Layer {
	return &Layer{c, ggml.LayerName(i) + ".", prefix}
}

// Has says whether the checkpoint has a tensor of the layer.
func (l *Layer) Has(name string) bool { return l.c.Has(l.hf + name) }

// Norm declares a norm's weights over n features.
func (l *Layer) Norm(name, from string, n int) Tensors {
	return Tensors{l.c.Tensor(l.gguf+name+".weight", l.hf+from+".weight", n)}
}

// Tensor declares a tensor of any shape under its full names.
func (l *Layer) Tensor(name, from string, shape ...int) *Tensor {
	return l.c.Tensor(l.gguf+name, l.hf+from, shape...)
}

// Linear declares a linear's weight, out×in, and its bias.
func (l *Layer) Linear(name, from string, out, in int, bias bool) Tensors {
	ts := Tensors{l.Tensor(name+".weight", from+".weight", out, in)}
	if bias {
		ts = append(ts, l.Tensor(name+".bias", from+".bias", out))
	}
	return ts
}

// Split declares linears whose rows are one after the other in one of the checkpoint's: sizes by GGUF's names.
func (l *Layer) Split(from string, in int, bias bool, names []string, sizes []int) Tensors {
	var ts Tensors
	all := 0
	for _, n := range sizes {
		all += n
	}
	first := 0
	for i, name := range names {
		p := l.c.part(l.hf+from+".weight", all, in)
		p.First, p.Count = first, sizes[i]
		ts = append(ts, l.c.add(l.gguf+name+".weight", []int{sizes[i], in}, p))
		if bias {
			p := l.c.vectorPart(l.hf+from+".bias", all, first, sizes[i])
			ts = append(ts, l.c.add(l.gguf+name+".bias", []int{sizes[i]}, p))
		}
		first += sizes[i]
	}
	return ts
}

// vectorPart is part of a vector: its elements are the rows of a part of one column.
func (c *Conversion) vectorPart(name string, all, first, count int) Part {
	p := c.part(name, all)
	p.First, p.Count = first, count
	return p
}

// Experts declares one tensor for n experts' linears, out×in each, which the checkpoint has one by one: from holds %d in
// the place of the expert's number.
func (l *Layer) Experts(name, from string, n, out, in int) *Tensor {
	var parts []Part
	for e := range n {
		parts = append(parts, l.c.part(l.hf+fmt.Sprintf(from, e)+".weight", out, in))
		if l.c.err != nil { // config.json may claim thousands of layers of thousands of experts
			break
		}
	}
	return l.c.add(l.gguf+name+".weight", []int{n, out, in}, parts...)
}

// FusedExperts declares rows first to first+out−1 of each of n experts, all×in each, that the checkpoint has in one
// tensor. transposed: it has them in×all each, unless in blocks.
func (l *Layer) FusedExperts(name, from string, n, out, in, first, all int, transposed bool) *Tensor {
	shape := []int{n, all, in}
	if found, ok := l.c.find(l.hf + from); ok && l.c.weights.Blocks(found) {
		transposed = false
	}
	if transposed {
		shape = []int{n, in, all}
	}
	p := l.c.part(l.hf+from, shape...)
	p.Count, p.Transposed, p.In, p.Out = n*out, transposed, in, all
	if all != out || transposed {
		p.Row = func(r int) int { return r/out*all + first + r%out }
	}
	return l.c.add(l.gguf+name+".weight", []int{n, out, in}, p)
}

// Permute puts the rows of q or k, heads of headDim of which dims rotate, into llama.cpp's order: of the rotated rows of a
// head, those of the first half go to the even places and those of the second half to the odd ones.
func (ts Tensors) Permute(headDim, dims int) Tensors {
	return ts.Rows(func(r int) int {
		head, i := r/headDim*headDim, r%headDim
		if i < dims {
			i = i/2 + i%2*dims/2
		}
		return head + i
	})
}

// pairsToHalves is the other way: of the rotated rows of a head, those of even places go to the first half and those of odd ones to
// the second.
func (ts Tensors) pairsToHalves(headDim, dims int) Tensors {
	return ts.Rows(func(r int) int {
		head, i := r/headDim*headDim, r%headDim
		if i < dims {
			i = i%(dims/2)*2 + i/(dims/2)
		}
		return head + i
	})
}

// Rows reorders rows: row r of the tensor is row(r) of what it was.
func (ts Tensors) Rows(row func(r int) int) Tensors {
	for _, t := range ts {
		p := &t.Parts[0]
		before, first := p.Row, p.First
		p.Row = func(r int) int {
			if before != nil {
				return before(row(r))
			}
			return first + row(r)
		}
	}
	return ts
}

// Columns reorders columns: column c of the tensor is column(c) of the checkpoint's. A vector's elements are columns.
func (ts Tensors) Columns(column func(c int) int) Tensors {
	for _, t := range ts {
		t.Columns = make([]int, t.Shape[len(t.Shape)-1])
		for c := range t.Columns {
			t.Columns[c] = column(c)
		}
	}
	return ts
}

// Plus adds a constant to all values.
func (ts Tensors) Plus(v float32) Tensors {
	return ts.Each(func(x float32) float32 { return x + v }).undo(func(x float32) float32 { return x - v })
}

// Times multiplies all values by a constant.
func (ts Tensors) Times(v float32) Tensors {
	if v == 1 {
		return ts
	}
	return ts.Each(func(x float32) float32 { return x * v }).undo(func(x float32) float32 { return x / v })
}

// Each computes all values anew.
func (ts Tensors) Each(f func(x float32) float32) Tensors {
	for _, t := range ts {
		t.Change, t.Undo = each(f), nil
	}
	return ts
}

// undo gives the inverse of Each.
func (ts Tensors) undo(f func(x float32) float32) Tensors {
	for _, t := range ts {
		t.Undo = each(f)
	}
	return ts
}

func each(f func(x float32) float32) func(row []float32, r int) {
	return func(row []float32, _ int) {
		for i, v := range row {
			row[i] = f(v)
		}
	}
}

// silent are members of config.json that say nothing about the function that a model computes, whatever its class.
var silent = regexp.MustCompile(`^(_.*|architectures|model_type|transformers_version|torch_dtype|dtype|use_cache|auto_map|` +
	`initializer_range|.*dropout.*|.*_pdrop|output_(attentions|hidden_states|router_logits)|router_aux_loss_coef|` +
	`.*token_ids?|pretraining_tp|tokenizer_class|task_specific_params|summary_.*|quantization_config|text_config|` +
	`.*vision.*|.*audio.*|image_.*|video_.*|mm_.*|max_window_layers|spatial_merge_size|(multimodal_)?projector_.*|[be]o[ia]_token_index|name_or_path|id2label|label2id|problem_type|` +
	`return_dict|is_encoder_decoder|is_decoder|gradient_checkpointing|bad_words_ids|cache_implementation|language_model_only)$`)

// noteUnread says which members of config.json have no effect, as the class does not read them.
func (c *Conversion) noteUnread() {
	var names []string
	for _, name := range c.Config.Unread() {
		if !silent.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		c.Warn("%s: %s: no effect, %s does not read %s", c.Config.File, strings.Join(names, ", "), c.Class,
			map[bool]string{true: "it", false: "them"}[len(names) == 1])
	}
}

var (
	// noWeight matches tensors that checkpoints carry and that follow from config.json, or that belong to training.
	noWeight = regexp.MustCompile(`(\.(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids|attn\.bias|` +
		`attention\.bias|(k|v|q)_scale|(k|v)_zero_point|input_scale|activation_scale))$|(^|\.)v_head\.`)
	// otherModel matches tensors of vision, audio and the like beside the language model.
	otherModel = regexp.MustCompile(`^(model\.)?(visual|vision_\w+|audio_\w+|multi_modal_projector|mm_\w+|embed_vision|` +
		`embed_audio|image_\w+|vision|mlp_AR|speech_\w+|connector|projector|resampler)\.`)
)

// leftover refuses a tensor of the checkpoint that no one has asked for: it would change the function, were it
// understood. What is known to be of no use is noted.
func (c *Conversion) leftover() error {
	var others, noted []string
	for _, name := range c.weights.Names() {
		switch {
		case c.used[name]:
		case otherModel.MatchString(name):
			others = append(others, name)
		case noWeight.MatchString(name), slices.Contains(c.ShapeOf(name), 0):
			if !strings.Contains(name, "rotary_emb") && !strings.HasSuffix(name, "masked_bias") {
				noted = append(noted, name)
			}
		default:
			shape, _ := c.weights.Shape(name)
			return fmt.Errorf("tensor %q %v is not one that config.json (%s) calls for", name, shape, c.Class)
		}
	}
	if len(others) > 0 {
		c.Warn("%d of the checkpoint's tensors are of vision, audio and the like and left out, such as %s", len(others), others[0])
	}
	if len(noted) > 0 {
		c.Warn("%d of the checkpoint's tensors are left out, as the class does not read them, such as %s", len(noted), noted[0])
	}
	return nil
}

// Bounds of config.json's numbers; those of package model.
const (
	maxLayers  = model.MaxLayers
	maxWidth   = model.MaxWidth
	maxVocab   = model.MaxVocab
	maxContext = model.MaxContext
)

// layerName puts a layer's number into a prefix of the checkpoint.
func layerName(format string, i int) string { return fmt.Sprintf(format, i) }
