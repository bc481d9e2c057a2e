package arch_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// other is a source with another value for a key; nil: without the key.
type other struct {
	model.Source
	key   string
	value any
}

func (o *other) Meta(key string) (any, bool) {
	if key == o.key {
		return o.value, o.value != nil
	}
	return o.Source.Meta(key)
}

// TestOddMetadata puts odd values in the place of each hyperparameter of each family: there is an error, or a model that
// runs.
func TestOddMetadata(t *testing.T) {
	odd := []any{nil, uint32(0), uint32(1), uint32(3), uint32(1 << 31), int32(-5), float32(0), float32(-1), float32(1e30), "odd",
		[]int32{}, []int32{0}, []int32{-1, 2, 1 << 30, 4, 5, 6, 7, 8}, []int32{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, []bool{}, []bool{true, false, true, true, true, true, true, true}}
	for _, dir := range references(t) {
		file, err := gguf.Open(filepath.Join(dir, "expected.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		name, _ := file.Meta("general.architecture")
		t.Run(fmt.Sprint(filepath.Base(dir)), func(t *testing.T) {
			var src model.Source = file
			if scaled, err := gguf.Scales(file); err != nil {
				t.Fatal(err)
			} else if scaled != nil {
				src = scaled
			}
			if _, err := arch.Open(src); err != nil {
				t.Fatal(err)
			}
			for _, kv := range file.Metadata() {
				if !strings.HasPrefix(kv.Key, fmt.Sprint(name, ".")) {
					continue
				}
				for _, value := range odd {
					runs(t, &other{src, kv.Key, value})
				}
			}
		})
	}
}

// runs opens a model and takes some tokens through it, if it can be opened.
func runs(t *testing.T, src *other) {
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("%s as %T %v: panic: %v", src.key, src.value, src.value, p)
		}
	}()
	m, err := arch.Open(src)
	if err != nil {
		return
	}
	if m.Width > 1<<16 || m.CheckLength(4) != nil {
		return
	}
	tokens := []int32{1, 2, 3, 4}
	x := tensor.New(len(tokens), m.Width)
	if err := m.Embed(x, tokens, len(tokens), nil); err != nil {
		return
	}
	st := m.NewState()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			return
		}
		if err := l.Forward(t.Context(), st, x, len(tokens)); err != nil {
			t.Error(err)
		}
		l.Release()
	}
}
