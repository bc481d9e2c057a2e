package model_test

import (
	"math"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/internal/testmodel"
)

// FuzzOpen changes one metadata value and one tensor's shape. Open must refuse the model, or the model must run.
func FuzzOpen(f *testing.F) {
	sources := make([]*testmodel.Source, len(testmodel.Names()))
	for i, name := range testmodel.Names() {
		sources[i] = testmodel.New(name).Source()
	}
	// Which model, which key, the new value's kind and bits; which tensor, which dimension, its new length.
	f.Add(uint8(0), uint8(2), uint8(0), uint64(3), uint8(0), uint8(9), int64(-1))
	f.Add(uint8(3), uint8(11), uint8(1), uint64(math.MaxUint64), uint8(7), uint8(0), int64(32))
	f.Add(uint8(5), uint8(12), uint8(2), math.Float64bits(1e-300), uint8(2), uint8(1), int64(0))
	f.Add(uint8(1), uint8(8), uint8(3), uint64(0), uint8(200), uint8(0), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, which, key, kind uint8, bits uint64, at, dim uint8, length int64) {
		src := *sources[int(which)%len(sources)]
		src.KV = append(src.KV[:0:0], src.KV...)
		src.List = append(src.List[:0:0], src.List...)
		kv := &src.KV[int(key)%len(src.KV)]
		switch kind % 6 {
		case 0:
			kv.Value = uint32(bits)
		case 1:
			kv.Value = bits
		case 2:
			kv.Value = math.Float64frombits(bits)
		case 3:
			kv.Value = float32(math.Float64frombits(bits))
		case 4:
			kv.Value = []string{"none", "linear", "yarn", "llama", "qwen2", "qwen3"}[bits%6]
		case 5:
			kv.Value = make([]string, bits%1000)
		}
		if w := &src.List[int(at)%len(src.List)]; length >= 0 && int(dim) < len(w.Shape) {
			w.Shape = append(w.Shape[:0:0], w.Shape...)
			w.Shape[dim] = int(length)
		}
		m, err := arch.Open(&src)
		if err != nil {
			return
		}
		tokens := []int32{5, 1, 200}
		x, st := embed(t, m, tokens, len(tokens)), m.NewState()
		for i := range m.Layers() {
			l, err := m.LoadLayer(i)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Forward(t.Context(), st, x, len(tokens)); err != nil {
				t.Fatal(err)
			}
			l.Release()
		}
	})
}
