package hf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/llmq/llmq/model"
)

// gptqConfigFile is where GPTQ's tools look besides config.json.
const gptqConfigFile = "quantize_config.json"

// configure makes config.json, the checkpoint's with a quantization_config, and what else the format has.
func (p *FolderPlan) configure() error {
	path := filepath.Join(p.c.dir, configFile)
	data, err := readFile(path)
	if err != nil {
		return err
	}
	if p.c.declared {
		return fmt.Errorf("%s has a quantization_config: take the original checkpoint", path)
	}
	var q any
	if p.format == GPTQ {
		q = p.gptqConfig()
	} else {
		q = p.compressedConfig()
	}
	text, err := marshal(q, "  ")
	if err != nil {
		return err
	}
	if p.config, err = withQuantization(data, text); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if p.format == GPTQ {
		text, err := marshal(q, "")
		if err != nil {
			return err
		}
		p.more[gptqConfigFile] = append(text, '\n')
	}
	return nil
}

// withQuantization puts a quantization_config into config.json's text: in the place of one that is null, or at the end.
func withQuantization(config, quantization []byte) ([]byte, error) {
	end := bytes.LastIndexByte(config, '}')
	if end < 0 {
		return nil, errors.New("is no JSON object")
	}
	if at := nullQuantization(config); at >= 0 {
		return slices.Concat(config[:at], quantization, config[at+len("null"):]), nil
	}
	return fmt.Appendf(bytes.TrimRight(bytes.Clone(config[:end]), " \t\r\n"), ",\n  \"quantization_config\": %s\n}\n", quantization), nil
}

// nullQuantization is where the null of a JSON object's own quantization_config begins, or -1.
func nullQuantization(config []byte) int {
	dec := json.NewDecoder(bytes.NewReader(config))
	if _, err := dec.Token(); err != nil {
		return -1
	}
	for dec.More() {
		key, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return -1
		}
		if key == "quantization_config" && string(value) == "null" {
			return int(dec.InputOffset()) - len(value)
		}
	}
	return -1
}

// marshal is json.MarshalIndent without escapes for web pages.
func marshal(v any, prefix string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent(prefix, "  ")
	err := enc.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// linears are the modules of the checkpoint that may be linear and are not quantized: kept matrices, but for the embeddings.
func (p *FolderPlan) linears() []string {
	var embedding string
	if i, ok := p.c.index[model.EmbedName]; ok && len(p.c.sources[i].Parts) > 0 {
		embedding = p.c.sources[i].Parts[0].Name
	}
	var names []string
	for _, name := range p.kept {
		info, _ := p.c.weights.Lookup(name)
		if stem, ok := strings.CutSuffix(name, ".weight"); ok && len(info.Shape) == 2 && name != embedding {
			names = append(names, stem)
		}
	}
	return names
}

// compressedConfig is quantization_config as llm-compressor writes it: one group for all linears but those that are ignored.
func (p *FolderPlan) compressedConfig() any {
	// args are compressed-tensors' QuantizationArgs.
	type args struct {
		Actorder  *string        `json:"actorder"`
		Block     []int          `json:"block_structure"`
		Dynamic   bool           `json:"dynamic"`
		GroupSize *int           `json:"group_size"`
		Bits      int            `json:"num_bits"`
		Observer  *string        `json:"observer"`
		Kwargs    map[string]any `json:"observer_kwargs"`
		Strategy  string         `json:"strategy"`
		Symmetric bool           `json:"symmetric"`
		Type      string         `json:"type"`
	}
	observer := "minmax"
	format := "pack-quantized"
	weights := args{GroupSize: &p.scheme.Group, Bits: 4, Observer: &observer, Kwargs: map[string]any{}, Strategy: "group",
		Symmetric: !p.scheme.ZeroPoint, Type: "int"}
	var inputs *args
	if p.scheme.Bits == 8 {
		format = "int-quantized"
		weights.GroupSize, weights.Bits, weights.Strategy = nil, 8, "channel"
		inputs = &args{Dynamic: true, Bits: 8, Kwargs: map[string]any{}, Strategy: "token", Symmetric: true, Type: "int"}
	}
	type group struct {
		Inputs  *args    `json:"input_activations"`
		Outputs *args    `json:"output_activations"`
		Targets []string `json:"targets"`
		Weights args     `json:"weights"`
	}
	ignore := p.linears()
	if !slices.Contains(ignore, "lm_head") {
		ignore = append(ignore, "lm_head") // tied to the embeddings, which are kept
	}
	return struct {
		Groups  map[string]group `json:"config_groups"`
		Format  string           `json:"format"`
		Ratio   *float64         `json:"global_compression_ratio"`
		Ignore  []string         `json:"ignore"`
		KVCache any              `json:"kv_cache_scheme"`
		Method  string           `json:"quant_method"`
		Status  string           `json:"quantization_status"`
	}{
		Groups: map[string]group{"group_0": {inputs, nil, []string{"Linear"}, weights}},
		Format: format, Ignore: ignore, Method: "compressed-tensors", Status: "compressed",
	}
}

// fusions are modules of which vLLM and SGLang make one, by the last part of their names.
var fusions = []struct {
	fused string
	parts []string
}{
	{"qkv_proj", []string{"q_proj", "k_proj", "v_proj"}},
	{"gate_up_proj", []string{"gate_proj", "up_proj"}},
	{"fused_qkv_a_proj", []string{"q_a_proj", "kv_a_proj_with_mqa"}},
}

// servedAs are the names that servers have for modules that they make of the named ones: linears side by side of which all parts are
// named, and a layer's experts, of which whole has seen to it that all are named if one is. Rules of compressed-tensors name the parts, and servers find them; those of GPTQ are compared with
// the names of what servers have made.
func servedAs(modules []string) []string {
	var names []string
	for _, module := range modules {
		if m := oneExpert.FindStringSubmatch(module); m != nil {
			names = append(names, m[1])
			continue
		}
		for _, f := range fusions {
			stem, ok := strings.CutSuffix(module, "."+f.parts[0])
			if ok && !slices.ContainsFunc(f.parts, func(part string) bool { return !slices.Contains(modules, stem+"."+part) }) {
				names = append(names, stem+"."+f.fused)
			}
		}
	}
	return names
}

// gptqConfig is quantize_config.json as GPTQModel writes it. Linears that are not quantized are named by its "dynamic" rules, under
// the checkpoint's names, which transformers and GPTQModel look for, and those of what servers make of them.
func (p *FolderPlan) gptqConfig() any {
	dynamic := map[string]struct{}{}
	kept := p.linears()
	for _, name := range slices.Concat(kept, servedAs(kept)) {
		if name != "lm_head" {
			dynamic["-:^"+regexp.QuoteMeta(name)+"$"] = struct{}{}
		}
	}
	return struct {
		Bits       int                 `json:"bits"`
		Format     string              `json:"checkpoint_format"`
		DescAct    bool                `json:"desc_act"`
		Dynamic    map[string]struct{} `json:"dynamic,omitempty"`
		GroupSize  int                 `json:"group_size"`
		Head       bool                `json:"lm_head"`
		Meta       map[string]any      `json:"meta"`
		PackDType  string              `json:"pack_dtype"`
		Method     string              `json:"quant_method"`
		Symmetric  bool                `json:"sym"`
		Sequential bool                `json:"true_sequential"`
	}{
		Bits: p.scheme.Bits, Format: "gptq", Dynamic: dynamic, GroupSize: p.scheme.Group, Meta: map[string]any{"quantizer": []string{"llmq"}},
		PackDType: "int32", Method: "gptq", Symmetric: !p.scheme.ZeroPoint, Sequential: true,
	}
}

// notCopied are files of a checkpoint folder that the output has of its own, or that are about weights as they were.
var notCopied = regexp.MustCompile(`^(config|params|hf_quant_config|quant(ize)?_config|adapter_.*|.*\.index)\.json$`)

// copied are files beside the weights that those who load a model want: the tokenizer, chat templates, defaults of generation,
// preprocessors, code, the licence.
var copied = regexp.MustCompile(`(?i)(\.(json|jinja|model|tiktoken|txt|py)|^(licen[cs]e|notice|use_policy)[^/]*)$`)

// companions lists the files of a checkpoint folder that are copied.
func companions(dir string) ([]string, error) {
	var names []string
	for _, sub := range []string{"", chatTemplatesDir} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if errors.Is(err, fs.ErrNotExist) && sub != "" {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			if !copied.MatchString(e.Name()) || notCopied.MatchString(e.Name()) {
				continue
			}
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() { // the hub's cache has links
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// writeFile writes a new file whose bytes are on the disk.
func writeFile(dir, name string, data []byte) error {
	return newFile(dir, name, bytes.NewReader(data))
}

// copyFile copies a file of a folder into another.
func copyFile(to, from, name string) error {
	f, err := os.Open(filepath.Join(from, name))
	if err != nil {
		return err
	}
	defer f.Close()
	return newFile(to, name, f)
}

func newFile(dir, name string, from io.Reader) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
