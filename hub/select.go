package hub

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// The names of weights that transformers' models have, in the order in which they are looked for.
const (
	singleFile  = "model.safetensors"
	indexFile   = "model.safetensors.index.json"
	torchFile   = "pytorch_model.bin"
	torchIndex  = "pytorch_model.bin.index.json"
	configFile  = "config.json"
	adapterFile = "adapter_config.json"
)

// maxBesideBytes is beyond any configuration or tokenizer: the largest tokenizer.json have 35 MB.
const maxBesideBytes = 256 << 20

// beside lists the files that are needed beside the weights: configuration, tokenizer, templates and the card, all at the
// repository's root, and the index of the weights, if there is one.
func (l *Listing) beside() ([]File, error) {
	_, plain := l.Lookup(configFile)
	_, adapter := l.Lookup(adapterFile)
	if !plain && !adapter {
		return nil, fmt.Errorf("hub: %s: the repository has no %s: %s", l.Ref, configFile, l.instead())
	}
	index := l.index()
	var files []File
	for _, f := range l.Files {
		if strings.Contains(f.Path, "/") || f.Bytes > maxBesideBytes {
			continue
		}
		switch path.Ext(f.Path) {
		case ".json":
			if strings.HasSuffix(f.Path, ".index.json") && f.Path != index {
				continue
			}
		case ".model", ".tiktoken", ".jinja", ".txt":
		default:
			if f.Path != "README.md" {
				continue
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// index is the name of the index of the weights, "" where there is none.
func (l *Listing) index() string {
	has := func(name string) bool { _, ok := l.Lookup(name); return ok }
	switch {
	case has(singleFile):
		return ""
	case has(indexFile):
		return indexFile
	case len(l.numbered()) > 0, has(torchFile):
		return ""
	case has(torchIndex):
		return torchIndex
	}
	return ""
}

// numbered lists model-00001-of-0000N.safetensors and so on.
func (l *Listing) numbered() []File {
	var files []File
	for _, f := range l.Files {
		if ok, _ := path.Match("model-[0-9]*-of-[0-9]*.safetensors", f.Path); ok {
			files = append(files, f)
		}
	}
	return files
}

// weights lists the files of weights, one kind of them: safetensors before torch's, as transformers looks for them. index is the
// content of the file that l.index names.
func (l *Listing) weights(index []byte) ([]File, error) {
	if name := l.index(); name != "" {
		return l.indexed(name, index)
	}
	if f, ok := l.Lookup(singleFile); ok {
		return []File{f}, nil
	}
	if files := l.numbered(); len(files) > 0 {
		return files, nil
	}
	names := []string{torchFile}
	if _, ok := l.Lookup(configFile); !ok {
		names = []string{"adapter_model.safetensors", "adapter_model.bin"}
	}
	for _, name := range names {
		if f, ok := l.Lookup(name); ok {
			return []File{f}, nil
		}
	}
	return nil, fmt.Errorf("hub: %s: the repository has no weights in the format of transformers (%s or shards of it): %s", l.Ref, singleFile,
		l.instead())
}

// indexed lists the files that an index names, in their order.
func (l *Listing) indexed(name string, index []byte) ([]File, error) {
	var parsed struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(index, &parsed); err != nil {
		return nil, fmt.Errorf("hub: %s: %s: %w", l.Ref, name, err)
	}
	var files []File
	for tensor, shard := range parsed.Map {
		f, ok := l.Lookup(shard)
		if !ok {
			return nil, fmt.Errorf("hub: %s: %s places tensor %.200q in %.200q, which the repository does not have", l.Ref, name, tensor, shard)
		}
		if !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("hub: %s: %s names no file of weights", l.Ref, name)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// instead says what a repository holds that lacks what is looked for.
func (l *Listing) instead() string {
	var ggufs int
	maker := false
	for _, f := range l.Files {
		if path.Ext(f.Path) == ".gguf" {
			ggufs++
		}
		maker = maker || strings.HasPrefix(path.Base(f.Path), "consolidated.") || f.Path == "params.json"
	}
	switch {
	case ggufs > 0:
		return fmt.Sprintf("it holds %d GGUF files: take the original model, which its page names", ggufs)
	case maker:
		return "it holds a model in its maker's own format: take the one for the transformers library"
	}
	return fmt.Sprintf("it holds %d files, none of them of a model", len(l.Files))
}
