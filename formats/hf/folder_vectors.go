package hf

import (
	"fmt"
	"math"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/tensor"
)

// Methods that scale channels change norms and biases. They are written in the checkpoint's own type: with bfloat16 a channel is off
// by 2⁻⁹ at most, far less than what eight bits do to its weights.

// change notes that a vector of the model is written. It has to be all of one of the checkpoint's, but for the order of its elements.
func (p *FolderPlan) change(name string) error {
	i, ok := p.c.index[name]
	if !ok {
		return fmt.Errorf("tensor %q is not one of the checkpoint", name)
	}
	t := p.c.sources[i].Tensor
	refuse := func(why string) error {
		return fmt.Errorf("tensor %q of the model changes, and cannot be brought back to the checkpoint's form: %s", name, why)
	}
	if len(t.Parts) != 1 || t.Columns != nil {
		return refuse("it is not one of its tensors")
	}
	part := &t.Parts[0]
	info, _ := p.c.weights.Lookup(part.Name)
	switch {
	case len(info.Shape) != 1 || len(t.Shape) != 1 || info.Shape[0] != t.Shape[0] || part.First != 0:
		return refuse(fmt.Sprintf("%q %d is more than that", part.Name, info.Shape))
	case p.changed[part.Name]:
		return refuse(fmt.Sprintf("%q is two of the model's", part.Name))
	case t.Change != nil && t.Undo == nil:
		return refuse(fmt.Sprintf("its values are not those of %q", part.Name))
	}
	seen := make([]bool, t.Shape[0])
	for k := range seen {
		at := element(part, k)
		if at < 0 || at >= len(seen) || seen[at] {
			return refuse(fmt.Sprintf("element %d of %q is not in one place", at, part.Name))
		}
		seen[at] = true
	}
	p.vectors[name], p.changed[part.Name] = t, true
	return nil
}

// element is where element i of a vector lies in the checkpoint's.
func element(part *arch.Part, i int) int {
	if part.Row != nil {
		return part.Row(i)
	}
	return i
}

// vector writes the values of a vector that changes.
func (w *FolderWriter) vector(t *arch.Tensor, data []byte) error {
	if len(data) != 4*t.Shape[0] {
		return fmt.Errorf("%d bytes are not %d float32 values", len(data), t.Shape[0])
	}
	x, back := make([]float32, t.Shape[0]), make([]float32, t.Shape[0])
	tensor.DecodeF32(x, data)
	if t.Undo != nil {
		t.Undo(x, 0)
	}
	for i, v := range x {
		back[element(&t.Parts[0], i)] = v
	}
	name := t.Parts[0].Name
	info, _ := w.c.weights.Lookup(name)
	out := make([]byte, info.Type.RowBytes(len(back)))
	info.Type.Encode(out, back, nil)
	again := make([]float32, len(back))
	info.Type.Decode(again, out)
	for i, v := range again {
		if math.IsInf(float64(v), 0) {
			return fmt.Errorf("element %d is %v, more than %s holds", i, back[i], info.Type.Name)
		}
	}
	return w.shards.WriteAt(name, out, 0)
}
