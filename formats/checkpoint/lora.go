package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/sniff"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/tensor"
)

// Files of an adapter of the peft library.
const (
	adapterConfig = "adapter_config.json"
	adapterFile   = "adapter_model.safetensors"
	adapterTorch  = "adapter_model.bin"
)

// adapter is what adapter_config.json says.
type adapter struct {
	r     int
	alpha float64
	// Settings of some modules, whose names the keys' patterns match: the first that does counts.
	rankPattern, alphaPattern []setting
	rsLoRA                    bool
	transposed                bool // fan_in_fan_out: weights are stored in×out
}

type setting struct {
	pattern *regexp.Regexp
	value   float64
}

// merge adds an adapter to the weights, which become float32: W + s·B·A is computed in float64 and rounded once, where
// s = α/r, or α/√r for rsLoRA (Kalajdzievski, arXiv:2312.03732).
func (c *Checkpoint) merge(dir string) error {
	ad, err := readAdapter(filepath.Join(dir, adapterConfig))
	if err != nil {
		return err
	}
	parts, err := c.adapterParts(dir)
	if err != nil {
		return err
	}
	byName := make(map[string]*part, len(parts))
	for _, p := range parts {
		byName[p.name] = p
	}
	merged := 0
	for _, p := range parts {
		module, side, ok := splitLoRA(p.name)
		if !ok {
			return unsupportedf("%s: tensor %q: only lora_A and lora_B are merged, not biases, embeddings, magnitudes or whole modules",
				p.file, p.name)
		}
		if side == 'B' {
			if name := strings.Replace(p.name, ".lora_B.", ".lora_A.", 1); byName[name] == nil {
				return p.errorf("there is no %q beside it", name)
			}
			continue
		}
		name := strings.Replace(p.name, ".lora_A.", ".lora_B.", 1)
		b := byName[name]
		if b == nil {
			return p.errorf("there is no %q beside it", name)
		}
		target := c.tensors[module+".weight"]
		if target == nil {
			return p.errorf("the model has no tensor %q to add it to", module+".weight")
		}
		if err := c.mergeInto(target, module, p, b, ad); err != nil {
			return err
		}
		merged++
	}
	if merged == 0 {
		return formatErrorf("%s: the adapter holds no tensors", dir)
	}
	c.warnings = append(c.warnings, fmt.Sprintf("%s: merged into %s", dir, plural(merged, "weight")))
	return nil
}

// adapterParts opens an adapter's file, which is closed with the checkpoint.
func (c *Checkpoint) adapterParts(dir string) ([]*part, error) {
	path := filepath.Join(dir, adapterFile)
	if _, err := os.Stat(path); missing(err) {
		if _, err := os.Stat(filepath.Join(dir, adapterTorch)); err == nil {
			parts, files, err := openTorch(dir, []string{adapterTorch})
			c.files = append(c.files, files...)
			return parts, err
		}
	}
	st, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, st)
	return safetensorsParts(st)
}

// splitLoRA cuts base_model.model.MODULE.lora_A.weight, or .lora_A.NAME.weight.
func splitLoRA(name string) (module string, side byte, ok bool) {
	name = strings.TrimPrefix(name, "base_model.model.")
	for _, side := range []byte{'A', 'B'} {
		module, rest, ok := strings.Cut(name, ".lora_"+string(side)+".")
		if ok && (rest == "weight" || strings.Count(rest, ".") == 1 && strings.HasSuffix(rest, ".weight")) {
			return strings.TrimSuffix(module, ".base_layer"), side, true
		}
	}
	return "", 0, false
}

// mergeInto puts a sum in a weight's place.
func (c *Checkpoint) mergeInto(t *logical, module string, a, b *part, ad adapter) error {
	for _, p := range []*part{a, b} {
		if err := p.dims(2); err != nil {
			return err
		}
	}
	if len(t.Shape) != 2 {
		return a.errorf("it is for %q, whose shape %d has not 2 dimensions", t.Name, t.Shape)
	}
	rows, cols := t.Shape[0], t.Shape[1]
	out, in := rows, cols
	if ad.transposed {
		out, in = cols, rows
	}
	rank := int(lookup(ad.rankPattern, module, float64(ad.r)))
	if err := a.expectShape(rank, in); err != nil {
		return err
	}
	if err := b.expectShape(out, rank); err != nil {
		return err
	}
	scale := lookup(ad.alphaPattern, module, ad.alpha) / float64(rank)
	if ad.rsLoRA {
		scale = lookup(ad.alphaPattern, module, ad.alpha) / math.Sqrt(float64(rank))
	}
	fa, err := floatsOf(a, false)
	if err != nil {
		return err
	}
	fb, err := floatsOf(b, false)
	if err != nil {
		return err
	}
	base := *t
	t.Type, t.decoder = ggml.F32, sum{base: &base, a: fa, b: fb, rank: rank, in: in, scale: scale, transposed: ad.transposed}
	if t.Format != "" {
		t.Format += " + "
	}
	t.Format += LoRA
	return nil
}

// sum is W + scale·B·A: W is base, A rank×in, B out×rank.
type sum struct {
	base       *logical
	a, b       floats
	rank, in   int
	scale      float64
	transposed bool // W is in×out
}

func (s sum) rows(lo, hi int) ([]byte, error) {
	src, err := s.base.rows(lo, hi)
	if err != nil {
		return nil, err
	}
	cols := s.base.Shape[1]
	row, acc := make([]float32, cols), make([]float64, cols)
	out := make([]byte, 4*(hi-lo)*cols)
	bytes := s.base.Type.RowBytes(cols)
	along, across := s.a, s.b // read for each row as a whole; at the row's number
	n, alongStep, alongRank, acrossRow, acrossRank := s.in, 1, s.in, s.rank, 1
	if s.transposed {
		along, across = s.b, s.a
		n, alongStep, alongRank, acrossRow, acrossRank = cols, s.rank, 1, 1, s.in
	}
	matrix := make([]float64, s.rank*n)
	for k := range s.rank {
		for j := range n {
			matrix[k*n+j] = float64(along.get(j*alongStep + k*alongRank))
		}
	}
	for r := lo; r < hi; r++ {
		clear(acc)
		for k := range s.rank {
			f := float64(across.get(r*acrossRow + k*acrossRank))
			for j, v := range matrix[k*n:][:n] {
				acc[j] += float64(f * v) // the conversion keeps them from being fused
			}
		}
		s.base.Type.Unpack(row, src[(r-lo)*bytes:][:bytes])
		for j := range row {
			row[j] = float32(float64(row[j]) + float64(s.scale*acc[j]))
		}
		tensor.EncodeF32(out[4*(r-lo)*cols:], row)
	}
	return out, nil
}

func (s sum) spans(lo, hi int) []span { return s.base.spans(lo, hi) }

// lookup finds a module's setting.
func lookup(settings []setting, module string, otherwise float64) float64 {
	for _, s := range settings {
		if s.pattern.MatchString(module) {
			return s.value
		}
	}
	return otherwise
}

// readAdapter reads adapter_config.json. What would change the sum and is not implemented is refused by name.
func readAdapter(path string) (adapter, error) {
	b, err := text.ReadFile(path, maxJSONBytes)
	if err != nil {
		return adapter{}, fmt.Errorf("checkpoint: %w", err)
	}
	if what := sniff.Impostor(b); what != "" {
		return adapter{}, formatErrorf("%s: it is %s", path, what)
	}
	var c struct {
		Type       string          `json:"peft_type"`
		R          *int            `json:"r"`
		Alpha      *float64        `json:"lora_alpha"`
		Rank       json.RawMessage `json:"rank_pattern"`
		Alphas     json.RawMessage `json:"alpha_pattern"`
		RSLoRA     bool            `json:"use_rslora"`
		DoRA       bool            `json:"use_dora"`
		QALoRA     bool            `json:"use_qalora"`
		Transposed bool            `json:"fan_in_fan_out"`
		Bias       string          `json:"bias"`
		LoRABias   bool            `json:"lora_bias"`
		Init       json.RawMessage `json:"init_lora_weights"`
		Modules    []string        `json:"modules_to_save"`
		Parameters []string        `json:"target_parameters"`
		Tokens     json.RawMessage `json:"trainable_token_indices"`
		Replicated json.RawMessage `json:"layer_replication"`
		Invocation json.RawMessage `json:"alora_invocation_tokens"`
	}
	if err := unmarshal(b, &c); err != nil {
		return adapter{}, formatErrorf("%s: %v", path, err)
	}
	given := func(raw json.RawMessage) bool {
		return len(raw) > 0 && !slices.Contains([]string{"null", "false", "[]", "{}"}, string(bytes.TrimSpace(raw)))
	}
	var init string
	if json.Unmarshal(c.Init, &init) != nil {
		init = "" // a boolean
	}
	for _, refused := range []struct {
		is   bool
		what string
	}{
		{c.Type != "" && c.Type != "LORA", fmt.Sprintf("peft_type %q", c.Type)},
		{c.DoRA, "use_dora: DoRA"},
		{c.QALoRA, "use_qalora"},
		{c.Bias != "" && c.Bias != "none", fmt.Sprintf("bias %q", c.Bias)},
		{c.LoRABias, "lora_bias"},
		{len(c.Modules) > 0, fmt.Sprintf("modules_to_save %q", c.Modules)},
		{len(c.Parameters) > 0, fmt.Sprintf("target_parameters %q", c.Parameters)},
		{given(c.Tokens), "trainable_token_indices"},
		{given(c.Replicated), "layer_replication"},
		{given(c.Invocation), "alora_invocation_tokens"},
		// These take what they begin with out of the base's weights.
		{init != "" && !slices.Contains([]string{"gaussian", "eva", "orthogonal"}, init), fmt.Sprintf("init_lora_weights %q", init)},
	} {
		if refused.is {
			return adapter{}, unsupportedf("%s: %s is not supported; merge the adapter with peft", path, refused.what)
		}
	}
	ad := adapter{r: 8, alpha: 8, rsLoRA: c.RSLoRA, transposed: c.Transposed} // peft's defaults
	if c.R != nil {
		ad.r = *c.R
	}
	if c.Alpha != nil {
		ad.alpha = *c.Alpha
	}
	if ad.r < 1 {
		return adapter{}, formatErrorf("%s: r is %d", path, ad.r)
	}
	if ad.rankPattern, err = settings(c.Rank); err == nil {
		ad.alphaPattern, err = settings(c.Alphas)
	}
	for _, s := range ad.rankPattern {
		if s.value < 1 || s.value != math.Trunc(s.value) || s.value > math.MaxInt32 {
			err = fmt.Errorf("rank_pattern: a rank of %g", s.value)
		}
	}
	if err != nil {
		return adapter{}, formatErrorf("%s: %v", path, err)
	}
	return ad, nil
}

// settings reads an object of patterns and numbers in its order.
func settings(raw json.RawMessage) ([]setting, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("a pattern that is no object: %.60s", raw)
	}
	var list []setting
	for dec.More() {
		key, err := dec.Token()
		if err != nil && err != io.EOF {
			return nil, err
		}
		name, _ := key.(string)
		var v float64
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("pattern %.200q: %v", name, err)
		}
		re, err := regexp.Compile(`^(.*\.)?(` + name + `)$`)
		if err != nil {
			return nil, fmt.Errorf("pattern %.200q: %v", name, err)
		}
		list = append(list, setting{re, v})
	}
	return list, nil
}
