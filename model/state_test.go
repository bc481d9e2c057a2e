package model

import "testing"

// TestPassing: two states beside each other have the room for what passes in common, and no other.
func TestPassing(t *testing.T) {
	m := &Model{}
	one := m.NewState()
	other := m.NewStateBeside(one)
	first := func(x []float32) *float32 { return &x[0] }
	if first(scratchIn(one.passing, "gate", 2, 3).Data) != first(scratchIn(other.passing, "gate", 2, 3).Data) {
		t.Error("the room for gates is not in common")
	}
	if first(one.Scratch("up", 2, 3).Data) == first(other.Scratch("up", 2, 3).Data) {
		t.Error("other scratch memory is in common")
	}
}
