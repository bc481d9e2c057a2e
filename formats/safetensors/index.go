package safetensors

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/sniff"
)

// readIndex returns the shard of every tensor, as a sharded checkpoint's index gives it.
func readIndex(path string) (map[string]string, error) {
	m, err := mmap.Open(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	defer m.Close()
	if what := sniff.Impostor(m.Data); what != "" {
		return nil, formatErrorf("%s: it is %s", path, what)
	}
	places, err := parseIndex(m.Data)
	if err != nil {
		return nil, formatErrorf("%s: %v", filepath.Base(path), err)
	}
	return places, nil
}

func parseIndex(b []byte) (map[string]string, error) {
	if len(b) > maxHeaderBytes {
		return nil, fmt.Errorf("%d bytes, more than %d", len(b), maxHeaderBytes)
	}
	var places map[string]string
	p := newObjectReader(b)
	err := p.object(func(key string) error {
		if key != "weight_map" {
			var skipped json.RawMessage
			return p.within(fmt.Sprintf("%.200q", key), p.dec.Decode(&skipped))
		}
		places = make(map[string]string)
		return p.within(key, p.object(func(name string) error {
			file, err := p.string()
			if err == nil && !filepath.IsLocal(filepath.FromSlash(file)) {
				err = fmt.Errorf("its shard %.200q is not a path inside the folder", file)
			}
			places[name] = file
			return p.within(fmt.Sprintf("tensor %.200q", name), err)
		}))
	})
	if err == nil {
		err = p.end()
	}
	if err == nil && len(places) == 0 {
		err = fmt.Errorf("its weight_map names no tensor")
	}
	return places, err
}

// WriteIndex writes the index of a sharded checkpoint into dir. The places are the shard of every tensor, totalBytes the
// size of all their data.
func WriteIndex(dir string, places map[string]string, totalBytes int64, opt Options) error {
	b, err := json.MarshalIndent(map[string]any{
		"metadata":   map[string]int64{"total_size": totalBytes},
		"weight_map": places,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	b = append(b, '\n')
	out, err := atomicfile.Create(filepath.Join(dir, IndexFile), int64(len(b)), opt)
	if err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	defer out.Abort()
	if _, err = out.WriteAt(b, 0); err == nil {
		err = out.Commit()
	}
	if err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	return nil
}
