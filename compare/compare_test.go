package compare_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/llmq/llmq/compare"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/testmodel"
)

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

func models(t *testing.T, a, b *testmodel.Source) *compare.Difference {
	t.Helper()
	d, err := compare.Models(t.Context(), a, b, silent{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// f32 is a tensor of float32 values.
func f32(name string, shape []int, values ...float32) ggml.Tensor {
	t := ggml.Tensor{Info: ggml.Info{Name: name, Type: ggml.F32, Shape: shape}}
	for _, v := range values {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(v))
	}
	return t
}

func TestSame(t *testing.T) {
	d := models(t, testmodel.New("qwen2").Source(), testmodel.New("qwen2").Source())
	if !d.None() || d.Same == 0 || d.RelativeError == nil || *d.RelativeError != 0 {
		t.Errorf("a model and itself: %+v", d)
	}
}

func TestDifferences(t *testing.T) {
	nan := float32(math.NaN())
	a := &testmodel.Source{Path: "a", KV: gguf.Metadata{{Key: "same", Value: "x"}, {Key: "number", Value: uint32(1)},
		{Key: "list", Value: []string{"p", "q", "r"}}, {Key: "gone", Value: true}}}
	b := &testmodel.Source{Path: "b", KV: gguf.Metadata{{Key: "number", Value: uint64(1)}, {Key: "same", Value: "x"},
		{Key: "list", Value: []string{"p", "q", "s"}}, {Key: "new", Value: float32(2)}}}
	a.List = []ggml.Tensor{f32("equal", []int{2}, 1, 2), f32("values", []int{2, 2}, 1, 2, 3, 4), f32("shape", []int{2}, 1, 2),
		f32("gone", []int{1}, 1), f32("nan", []int{3}, nan, nan, 1), f32("type", []int{2}, 0.5, 0.25), f32("zero", []int{1}, 0)}
	half := ggml.Tensor{Info: ggml.Info{Name: "type", Type: ggml.F16, Shape: []int{2}}, Data: []byte{0, 0x38, 0, 0x34}}
	b.List = []ggml.Tensor{f32("values", []int{2, 2}, 1, 2, 3, 1), f32("equal", []int{2}, 1, 2), f32("shape", []int{1, 2}, 1, 2),
		f32("nan", []int{3}, nan, 1, 1), half, f32("zero", []int{1}, 3), f32("new", []int{1}, 1)}
	d := models(t, a, b)

	want := map[string]int{"number": -1, "list": 2, "gone": -1, "new": -1}
	if len(d.Metadata) != len(want) {
		t.Errorf("keys: %+v", d.Metadata)
	}
	for _, k := range d.Metadata {
		if at, ok := want[k.Key]; !ok || at != k.At {
			t.Errorf("key %+v", k)
		}
	}
	tensors := map[string]compare.Tensor{}
	for _, x := range d.Tensors {
		tensors[x.Name] = x
	}
	if d.Same != 1 || len(tensors) != 7 {
		t.Errorf("%d the same, %d differ: %+v", d.Same, len(tensors), d.Tensors)
	}
	if x := tensors["values"]; x.RelativeError == nil || *x.RelativeError != 9.0/30 || x.AbsMax != 3 {
		t.Errorf("values: %+v", x)
	}
	if x := tensors["shape"]; x.RelativeError != nil || x.A == nil || x.B == nil {
		t.Errorf("shape: %+v", x)
	}
	if x := tensors["nan"]; x.NotFinite != 1 || x.AbsMax != 0 || x.RelativeError == nil || *x.RelativeError != 0 {
		t.Errorf("NaN: %+v", x)
	}
	if x := tensors["type"]; x.RelativeError == nil || *x.RelativeError != 0 || x.B.Type != ggml.F16 {
		t.Errorf("type: %+v", x)
	}
	if x := tensors["zero"]; x.RelativeError != nil || x.AbsMax != 3 {
		t.Errorf("zero: %+v", x)
	}
	if tensors["gone"].B != nil || tensors["new"].A != nil {
		t.Errorf("gone %+v, new %+v", tensors["gone"], tensors["new"])
	}
	if r := d.RelativeError; r == nil || *r != (9.0+9)/(5+30+1+0.3125) {
		t.Errorf("of all: %v", *r)
	}
}

// TestPieces compares a tensor of more rows than are read at a time.
func TestPieces(t *testing.T) {
	const rows, cols = 5000, 1024
	x := make([]float32, rows*cols)
	x[0] = 2
	a := &testmodel.Source{Path: "a", List: []ggml.Tensor{f32("w", []int{rows, cols}, x...)}}
	x[len(x)-1] = 1
	b := &testmodel.Source{Path: "b", List: []ggml.Tensor{f32("w", []int{rows, cols}, x...)}}
	if d := models(t, a, b); len(d.Tensors) != 1 || *d.Tensors[0].RelativeError != 0.25 || d.Tensors[0].AbsMax != 1 {
		t.Errorf("%+v", d.Tensors)
	}
	b.List[0].Data = b.List[0].Data[:4*cols*(rows-1)]
	if _, err := compare.Models(t.Context(), a, b, silent{}); err == nil {
		t.Error("a tensor that is cut off: no error")
	}
}
