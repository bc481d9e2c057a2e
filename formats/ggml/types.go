package ggml

import (
	"fmt"
	"strings"

	"github.com/llmq/llmq/kernels"
)

// Types lists every supported type in the order of their ids.
var Types = []*Type{F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S,
	IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0}

// unsupported are the types of enum ggml_type that llmq can neither decode nor write: their names, for errors, and their
// blocks, from which a tensor's size follows (ggml.h and ggml.c, 2026-09). ggml has removed the types without a block.
var unsupported = map[uint32]kernels.Format{
	4:  {Name: "Q4_2"},
	5:  {Name: "Q4_3"},
	9:  {Name: "Q8_1", BlockLen: 32, BlockBytes: 36},
	15: {Name: "Q8_K", BlockLen: 256, BlockBytes: 292},
	24: {Name: "I8", BlockLen: 1, BlockBytes: 1},
	25: {Name: "I16", BlockLen: 1, BlockBytes: 2},
	26: {Name: "I32", BlockLen: 1, BlockBytes: 4},
	27: {Name: "I64", BlockLen: 1, BlockBytes: 8},
	28: {Name: "F64", BlockLen: 1, BlockBytes: 8},
	31: {Name: "Q4_0_4_4"},
	32: {Name: "Q4_0_4_8"},
	33: {Name: "Q4_0_8_8"},
	36: {Name: "IQ4_NL_4_4"},
	37: {Name: "IQ4_NL_4_8"},
	38: {Name: "IQ4_NL_8_8"},
}

// Layout is the name and the block of the type that GGUF files number id, supported or not; there is no Unpack in it for
// those that are not. BlockLen is 0 for a type that ggml has removed, and for an id that it does not know, whose name is "type
// N".
func Layout(id uint32) kernels.Format {
	if t, err := ByID(id); err == nil {
		return t.Format
	}
	if f, ok := unsupported[id]; ok {
		return f
	}
	return kernels.Format{Name: fmt.Sprintf("type %d", id)}
}

// UnsupportedError reports a type that is not in Types.
type UnsupportedError struct {
	Name string // "" if even ggml's name for the id is unknown
	ID   uint32
	// Known tells a type that ggml has, and llmq has not, from one that is in neither.
	Known bool
}

func (e *UnsupportedError) Error() string {
	switch {
	case e.Known:
		return fmt.Sprintf("ggml: type %s (%d) is not supported; supported are %s", e.Name, e.ID, names())
	case e.Name != "":
		return fmt.Sprintf("ggml: no type is named %q; supported are %s", e.Name, names())
	}
	return fmt.Sprintf("ggml: unknown type %d; supported are %s", e.ID, names())
}

func names() string {
	s := make([]string, len(Types))
	for i, t := range Types {
		s[i] = t.Name
	}
	return strings.Join(s, ", ")
}

// ByID returns the type that GGUF files number id, or an *UnsupportedError.
func ByID(id uint32) (*Type, error) {
	for _, t := range Types {
		if t.ID == id {
			return t, nil
		}
	}
	f, ok := unsupported[id]
	return nil, &UnsupportedError{Name: f.Name, ID: id, Known: ok}
}

// ByName returns the type of that name in any case ("q4_k"), or an *UnsupportedError.
func ByName(name string) (*Type, error) {
	for _, t := range Types {
		if strings.EqualFold(t.Name, name) {
			return t, nil
		}
	}
	for id, f := range unsupported {
		if strings.EqualFold(f.Name, name) {
			return nil, &UnsupportedError{Name: f.Name, ID: id, Known: true}
		}
	}
	return nil, &UnsupportedError{Name: name}
}

// Substitute returns the type to use instead of t for rows of cols columns: t itself where its block divides them, else
// one of 32-column blocks as in llama.cpp's llama-quant.cpp (for Q2_K and Q3_K the better one of the size, and Q1_0 besides),
// else F16.
func Substitute(t *Type, cols int) *Type {
	if cols%t.BlockLen == 0 {
		return t
	}
	switch t {
	case Q2_K, Q3_K, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_XS:
		t = IQ4_NL
	case TQ1_0, TQ2_0, Q1_0, Q2_0:
		t = Q4_0
	case Q4_K:
		t = Q5_0
	case Q5_K:
		t = Q5_1
	case Q6_K:
		t = Q8_0
	}
	if cols%t.BlockLen == 0 {
		return t
	}
	return F16
}
