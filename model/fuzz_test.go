package model_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/internal/testmodel"
)

// FuzzOpen changes one metadata value and one tensor's shape. Open must refuse the model, or the model must run.
func FuzzOpen(f *testing.F) {
	var sources []*testmodel.Source
	for _, name := range testmodel.Names() {
		sources = append(sources, testmodel.New(name).Source())
	}
	sources = append(sources, testmodel.Experts())
	// Which model, which key, the new value's kind and bits; which tensor, which dimension, its new length.
	f.Add(uint8(0), uint8(2), uint8(0), uint64(3), uint8(0), uint8(9), int64(-1))
	f.Add(uint8(3), uint8(11), uint8(1), uint64(math.MaxUint64), uint8(7), uint8(0), int64(32))
	f.Add(uint8(5), uint8(12), uint8(2), math.Float64bits(1e-300), uint8(2), uint8(1), int64(0))
	f.Add(uint8(1), uint8(8), uint8(3), uint64(0), uint8(200), uint8(0), int64(math.MaxInt64))
	f.Add(uint8(7), uint8(3), uint8(6), uint64(0x300000002), uint8(0), uint8(9), int64(-1))
	f.Add(uint8(7), uint8(20), uint8(0), uint64(0), uint8(0), uint8(9), int64(-1))
	f.Add(uint8(7), uint8(14), uint8(23), uint64(0), uint8(0), uint8(0), int64(70))
	f.Add(uint8(0), uint8(255), uint8(0), uint64(0), uint8(0), uint8(0), int64(math.MaxInt64-92))
	f.Fuzz(func(t *testing.T, which, key, kind uint8, bits uint64, at, dim uint8, length int64) {
		src := *sources[int(which)%len(sources)]
		src.KV = append(src.KV[:0:0], src.KV...)
		src.List = append(src.List[:0:0], src.List...)
		kv := &src.KV[int(key)%len(src.KV)]
		switch kind % 8 {
		case 0:
			kv.Value = uint32(bits)
		case 1:
			kv.Value = bits
		case 2:
			kv.Value = math.Float64frombits(bits)
		case 3:
			kv.Value = float32(math.Float64frombits(bits))
		case 4:
			kv.Value = []string{"none", "linear", "yarn", "llama", "qwen2", "qwen3", "qwen3moe", "gemma3"}[bits%8]
		case 5:
			kv.Value = make([]string, bits%1000)
		case 6:
			kv.Value = []int32{int32(bits), int32(bits >> 32), int32(bits)}
		case 7:
			kv.Value = []bool{bits&1 > 0, bits&2 > 0, bits&4 > 0}[:bits>>3%4]
		}
		if w := &src.List[int(at)%len(src.List)]; length >= 0 && int(dim) < len(w.Shape) {
			w.Shape = append(w.Shape[:0:0], w.Shape...)
			w.Shape[dim] = int(length)
			// Every reader sees to it that a tensor has the data that its shape calls for, where that can be.
			if size, err := w.Size(); err == nil && size > 4<<20 {
				return
			} else if err == nil {
				w.Data = bytes.Repeat(w.Data, int(size)/len(w.Data)+1)[:size]
			} else if _, err := arch.Open(&src); err == nil {
				t.Fatalf("%q %v can be opened", w.Name, w.Shape)
			}
		}
		m, err := arch.Open(&src)
		if err != nil {
			return
		}
		tokens := []int32{5 % int32(m.Vocab), 1 % int32(m.Vocab), 200 % int32(m.Vocab)}
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
