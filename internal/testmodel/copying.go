package testmodel

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/llmq/llmq/formats/ggml"
)

// Copying is a model of which all rows are copies, as those are that a checkpoint decodes: it is a model.RowCopier.
type Copying struct {
	*Source
	// Watched, where not nil, says of which tensors Most is the largest number of bytes that were handed out by Rows and still
	// reachable, at a time.
	Watched func(name string) bool
	Most    int
	// Fails, where not nil, has Rows fail.
	Fails func(name string) error

	mu   sync.Mutex
	live []copied
}

// copied are rows that were handed out.
type copied struct {
	data weak.Pointer[byte]
	size int
}

// Copies implements model.RowCopier.
func (c *Copying) Copies(string, int, int) bool { return true }

// Tensor implements model.Source.
func (c *Copying) Tensor(name string) (*ggml.Tensor, error) {
	t, err := c.Source.Tensor(name)
	if err != nil {
		return nil, err
	}
	return &ggml.Tensor{Info: t.Info, Data: bytes.Clone(t.Data)}, nil
}

// Rows implements model.RowSource.
func (c *Copying) Rows(name string, lo, hi int) (*ggml.Tensor, error) {
	if c.Fails != nil {
		if err := c.Fails(name); err != nil {
			return nil, err
		}
	}
	t, err := c.Source.Tensor(name)
	if err != nil {
		return nil, err
	}
	if lo < 0 || lo > hi || hi > t.Rows() {
		return nil, fmt.Errorf("%s: tensor %q: rows %d to %d of %d", c.Path, name, lo, hi, t.Rows())
	}
	row := t.Type.RowBytes(t.Cols())
	data := bytes.Clone(t.Data[lo*row : hi*row])
	if c.Watched != nil && c.Watched(name) {
		c.watch(data)
	}
	return &ggml.Tensor{Info: t.Info, Data: data}, nil
}

// watch adds data to what is in use.
func (c *Copying) watch(data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = append(c.live, copied{weak.Make(&data[0]), len(data)})
	runtime.GC() // what nobody can reach is gone then
	n, kept := 0, c.live[:0]
	for _, l := range c.live {
		if l.data.Value() != nil {
			n, kept = n+l.size, append(kept, l)
		}
	}
	c.live, c.Most = kept, max(c.Most, n)
	runtime.KeepAlive(data)
}
