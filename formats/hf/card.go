package hf

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// loadCard sets general.* from the model card: the YAML front matter of README.md.
func (c *Checkpoint) loadCard() error {
	name, err := folderName(c.dir)
	if err != nil {
		return err
	}
	c.md.Set("general.name", name)
	c.md.Set("general.size_label", sizeLabel(c.infos))
	data, path, err := c.readOptional(cardFile)
	if err != nil {
		return err
	}
	if err := cardMetadata(&c.md, data); err != nil {
		c.warn("%s: its front matter is left out: %v", path, err)
	}
	return nil
}

// folderName is a checkpoint's name if its card gives none: the folder's or, in Hugging Face's cache, where a folder is
// models--ORGANIZATION--NAME/snapshots/COMMIT, the repository's.
func folderName(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	snapshots := filepath.Dir(abs)
	parts := strings.Split(filepath.Base(filepath.Dir(snapshots)), "--")
	if filepath.Base(snapshots) == "snapshots" && parts[0] == "models" && len(parts) > 1 {
		return strings.Join(parts[min(2, len(parts)-1):], "--"), nil
	}
	return filepath.Base(abs), nil
}

// card are the fields of a model card that GGUF has keys for.
type card struct {
	Name        string    `yaml:"name"`
	ModelName   string    `yaml:"model_name"`
	License     oneOrMore `yaml:"license"`
	LicenseName string    `yaml:"license_name"`
	LicenseLink string    `yaml:"license_link"`
	BaseModel   oneOrMore `yaml:"base_model"`
	Language    oneOrMore `yaml:"language"`
	Languages   oneOrMore `yaml:"languages"`
	Tags        oneOrMore `yaml:"tags"`
}

// oneOrMore is one string or a list of them.
type oneOrMore []string

// UnmarshalYAML accepts both.
func (s *oneOrMore) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Tag != "!!null" {
			*s = oneOrMore{n.Value}
		}
		return nil
	}
	for _, item := range n.Content {
		if n.Kind != yaml.SequenceNode || item.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: want a string or a list of strings", n.Line)
		}
		*s = append(*s, item.Value)
	}
	return nil
}

// frontMatter returns the YAML between the two lines of dashes that open a card; nil if there is none.
func frontMatter(data []byte) []byte {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	rest, ok := bytes.CutPrefix(data, []byte("---\n"))
	if !ok {
		return nil
	}
	if matter, _, ok := bytes.Cut(append([]byte("\n"), rest...), []byte("\n---")); ok {
		return matter
	}
	return nil
}

func cardMetadata(md *gguf.Metadata, data []byte) error {
	var card card
	if err := yaml.Unmarshal(frontMatter(data), &card); err != nil {
		return err
	}
	set := func(key, value string) {
		if value != "" {
			md.Set(key, value)
		}
	}
	set("general.name", card.Name)
	set("general.name", card.ModelName)
	set("general.license", strings.Join(card.License, ", "))
	set("general.license.name", card.LicenseName)
	set("general.license.link", card.LicenseLink)
	if len(card.BaseModel) > 0 {
		md.Set("general.base_model.count", uint32(len(card.BaseModel)))
	}
	for i, base := range card.BaseModel {
		key := fmt.Sprintf("general.base_model.%d.", i)
		organization, name, ok := strings.Cut(base, "/")
		if !ok {
			set(key+"name", base)
			continue
		}
		set(key+"name", name)
		set(key+"organization", organization)
		set(key+"repo_url", "https://huggingface.co/"+base)
	}
	if len(card.Tags) > 0 {
		md.Set("general.tags", []string(card.Tags))
	}
	if languages := append(card.Language, card.Languages...); len(languages) > 0 {
		md.Set("general.languages", []string(languages))
	}
	return nil
}

// sizeLabel rounds a number of weights to two digits, as file names give it: 8.0B, 135M.
func sizeLabel(infos []ggml.Info) string {
	weights, experts, tensors := 0, 0, 0
	for _, t := range infos {
		// One of the experts that a tensor holds.
		if n := expertsIn(&t); n > 0 {
			weights += t.Elements() / n
			experts += n
			tensors++
			continue
		}
		weights += t.Elements()
	}
	if tensors > 0 {
		return fmt.Sprintf("%dx%s", experts/tensors, roundedCount(weights))
	}
	return roundedCount(weights)
}

// expertsIn is the number of experts whose matrices a tensor holds; 0: it holds none.
func expertsIn(t *ggml.Info) int {
	if !strings.HasSuffix(ggml.ParseName(t.Name).Stem, "_exps") || len(t.Shape) < 3 {
		return 0
	}
	return t.Shape[len(t.Shape)-3]
}

// roundedCount writes a number with two digits at least.
func roundedCount(weights int) string {
	n, unit := float64(weights)/1e3, "K"
	for _, next := range []string{"M", "B", "T"} {
		if n < 999.5 {
			break
		}
		n, unit = n/1e3, next
	}
	if n < 9.95 {
		return fmt.Sprintf("%.1f%s", n, unit)
	}
	return fmt.Sprintf("%.0f%s", n, unit)
}
