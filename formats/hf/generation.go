package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/internal/sniff"
)

// loadGeneration sets general.sampling.* from generation_config.json. A configuration that says do_sample: false
// decodes greedily, whatever the other values. A broken file is no reason to refuse the model.
func (c *Checkpoint) loadGeneration() error {
	data, path, err := c.readOptional(generationFile)
	if data == nil || err != nil {
		return err
	}
	o, err := object.Parse(path, data)
	if err != nil {
		c.warn("%v; left out", err)
		return nil
	}
	sampled := o.Bool("do_sample", true)
	if o.Err() != nil {
		c.warn("%v; left out", o.Err())
		return nil
	}
	if !sampled {
		return nil
	}
	// A value that means nothing to GGUF readers, as −1 for no limit, is no reason to refuse the model.
	set := func(key string, value any) {
		if o.Err() != nil {
			c.warn("%v; left out", o.Err())
			o.Forget()
			return
		}
		c.md.Set("general.sampling."+key, value)
	}
	if o.Has("top_k") {
		set("top_k", int32(o.Int("top_k", 0, 0, maxVocab)))
	}
	for _, s := range []struct {
		hf, gguf string
		max      float64
	}{
		{"top_p", "top_p", 1}, {"min_p", "min_p", 1}, {"temperature", "temp", 100},
		{"repetition_penalty", "penalty_repeat", 100},
	} {
		if o.Has(s.hf) {
			set(s.gguf, float32(o.Float(s.hf, 0, -1e-9, s.max)))
		}
	}
	return nil
}

// The sources of chat templates, beside the member of that name in tokenizer_config.json.
const (
	chatTemplateFile = "chat_template.jinja"
	chatTemplateJSON = "chat_template.json"
	chatTemplatesDir = "additional_chat_templates"
)

// templateName is what may follow tokenizer.chat_template. in a key.
var templateName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// loadChatTemplates sets tokenizer.chat_template and its named variants. As in the transformers library, a file of
// its own goes before tokenizer_config.json.
func (c *Checkpoint) loadChatTemplates(tokenizerConfig *object.Object) error {
	named := map[string]string{}
	if tokenizerConfig.Has("chat_template") {
		v, _ := tokenizerConfig.Get("chat_template")
		var text string
		if json.Unmarshal(v, &text) == nil {
			named["default"] = text
		} else {
			for _, t := range tokenizerConfig.List("chat_template") {
				named[t.String("name", "default")] = t.String("template", "")
			}
		}
		if tokenizerConfig.Err() != nil {
			return tokenizerConfig.Err()
		}
	}
	o, err := c.readObject(chatTemplateJSON)
	if err != nil {
		return err
	}
	if o.Has("chat_template") {
		named["default"] = o.String("chat_template", "")
		if o.Err() != nil {
			return o.Err()
		}
	}
	data, path, err := c.readOptional(chatTemplateFile)
	if err != nil {
		return err
	}
	if what := sniff.Impostor(data); what != "" {
		return fmt.Errorf("%s: it is %s", path, what)
	}
	if data != nil {
		named["default"] = string(data)
	}
	files, err := os.ReadDir(filepath.Join(c.dir, chatTemplatesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".jinja")
		if !ok {
			continue
		}
		data, err := readFile(filepath.Join(c.dir, chatTemplatesDir, f.Name()))
		if err != nil {
			return err
		}
		named[name] = string(data)
	}

	var names []string
	for name, text := range named {
		switch {
		case text == "" || name == "default":
		case templateName.MatchString(name):
			names = append(names, name)
		default:
			c.warn("%s: chat template %q is left out: no metadata key can have that name", c.dir, name)
		}
	}
	slices.Sort(names)
	if len(names) > 0 {
		c.md.Set("tokenizer.chat_templates", names)
	}
	for _, name := range names {
		c.md.Set("tokenizer.chat_template."+name, named[name])
	}
	if text := named["default"]; text != "" {
		c.md.Set("tokenizer.chat_template", text)
	}
	return nil
}
