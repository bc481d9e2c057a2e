package safetensors

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/llmq/llmq/internal/atomicfile"
)

// The library's serializer sets the order of the tensors, and wants them in it. A run has them in the order of the model's layers,
// and several at a time: so headers are laid out first, and the data goes to its place as it comes.

// ShardBytes is how large shards grow: transformers' "5GB".
const ShardBytes = 5_000_000_000

// Layout is a checkpoint's shards before anything is written.
type Layout struct {
	infos  []Info
	slots  map[string]*slot
	shards []shardPlan
	size   int64
	index  []byte // IndexFile's content; nil for a single file
}

// slot is where a tensor's data goes.
type slot struct {
	shard        int
	offset, size int64
}

type shardPlan struct {
	name   string
	header []byte
	size   int64
}

// NewLayout distributes tensors, in their order, over shards of at most maxBytes of data; a tensor that is larger has one of its
// own. The Shard of an info is not used.
func NewLayout(infos []Info, maxBytes int64) (*Layout, error) {
	l := &Layout{infos: infos, slots: make(map[string]*slot, len(infos))}
	var groups [][]Info
	var bytes, total int64
	for i := range infos {
		n := infos[i].Bytes()
		if len(groups) == 0 || bytes > 0 && bytes+n > maxBytes {
			groups, bytes = append(groups, nil), 0
		}
		last := len(groups) - 1
		groups[last] = append(groups[last], infos[i])
		bytes += n
		total += n
	}
	places := make(map[string]string, len(infos))
	for no, group := range groups {
		name := SingleFile
		if len(groups) > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", no+1, len(groups))
		}
		header, ends, err := encodeHeader(group, map[string]string{"format": "pt"})
		if err != nil {
			return nil, fmt.Errorf("safetensors: %s: %w", name, err)
		}
		at := int64(len(header))
		for i := range group {
			if l.slots[group[i].Name] != nil {
				return nil, fmt.Errorf("safetensors: %s: the name %q is taken", name, group[i].Name)
			}
			l.slots[group[i].Name] = &slot{no, at, ends[i] - at}
			places[group[i].Name] = name
			at = ends[i]
		}
		l.shards = append(l.shards, shardPlan{name, header, at})
		l.size += at
	}
	if len(groups) > 1 {
		index, err := json.MarshalIndent(map[string]any{"metadata": map[string]int64{"total_size": total}, "weight_map": places}, "", "  ")
		if err != nil {
			return nil, err
		}
		l.index = append(index, '\n')
		l.size += int64(len(l.index))
	}
	return l, nil
}

// Size is the size in bytes of all files.
func (l *Layout) Size() int64 { return l.size }

// Shards are the names of the files that hold tensors.
func (l *Layout) Shards() []string {
	names := make([]string, len(l.shards))
	for i := range l.shards {
		names[i] = l.shards[i].name
	}
	return names
}

// ShardWriter fills in the shards of a Layout. Tensors come in any order and from several goroutines.
type ShardWriter struct {
	*Layout
	files []*atomicfile.File

	mu      sync.Mutex
	written map[string]int64 // bytes of each tensor
}

// Create starts the shards in a folder, where they must not be yet.
func (l *Layout) Create(dir string) (*ShardWriter, error) {
	w := &ShardWriter{Layout: l, written: make(map[string]int64, len(l.slots))}
	for i := range l.shards {
		s := &l.shards[i]
		f, err := atomicfile.Create(filepath.Join(dir, s.name), s.size, Options{})
		if err == nil {
			w.files = append(w.files, f)
			_, err = f.WriteAt(s.header, 0)
		}
		if err != nil {
			w.Abort()
			return nil, fmt.Errorf("safetensors: %w", err)
		}
	}
	return w, nil
}

// WriteAt stores p as the bytes of a tensor from off on. Each is to be stored once.
func (w *ShardWriter) WriteAt(name string, p []byte, off int64) error {
	at := w.slots[name]
	if at == nil {
		return fmt.Errorf("safetensors: tensor %q is not in the layout", name)
	}
	if off < 0 || int64(len(p)) > at.size-off {
		return fmt.Errorf("safetensors: tensor %q: bytes %d to %d of %d", name, off, off+int64(len(p)), at.size)
	}
	if _, err := w.files[at.shard].WriteAt(p, at.offset+off); err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written[name] += int64(len(p))
	return nil
}

// Close checks that all data has come, and puts the shards and their index in place. When it fails, no shard is left behind.
func (w *ShardWriter) Close(dir string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.infos {
		name := w.infos[i].Name
		if n, size := w.written[name], w.slots[name].size; n != size {
			w.Abort()
			return fmt.Errorf("safetensors: %s: tensor %q: %d bytes of %d were written", w.shards[w.slots[name].shard].name, name, n, size)
		}
	}
	if err := atomicfile.Commit(w.files...); err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	if w.index == nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, IndexFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	_, err = f.Write(w.index)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("safetensors: %w", err)
	}
	return nil
}

// Abort gives the shards up. After Close it does nothing.
func (w *ShardWriter) Abort() {
	for _, f := range w.files {
		f.Abort()
	}
}
