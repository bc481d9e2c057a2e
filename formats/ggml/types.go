package ggml

import (
	"fmt"
	"strings"
)

// Types lists every supported type in the order of their ids.
var Types = []*Type{F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16,
	MXFP4, NVFP4}

// unsupported names the ids of enum ggml_type that llmq can neither read nor write (ggml.h, 2026-09). Readers name
// them in errors.
var unsupported = map[uint32]string{
	4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
	22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8",
	33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
	41: "Q1_0", 42: "Q2_0",
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
	name, ok := unsupported[id]
	return nil, &UnsupportedError{Name: name, ID: id, Known: ok}
}

// ByName returns the type of that name in any case ("q4_k"), or an *UnsupportedError.
func ByName(name string) (*Type, error) {
	for _, t := range Types {
		if strings.EqualFold(t.Name, name) {
			return t, nil
		}
	}
	for id, n := range unsupported {
		if strings.EqualFold(n, name) {
			return nil, &UnsupportedError{Name: n, ID: id, Known: true}
		}
	}
	return nil, &UnsupportedError{Name: name}
}

// Substitute returns the type to use instead of t for rows of cols columns: t itself where its block divides them, else
// the type of 32-column blocks that llama.cpp's llama-quant.cpp puts in its place, else F16.
func Substitute(t *Type, cols int) *Type {
	if cols%t.BlockLen == 0 {
		return t
	}
	switch t {
	case Q2_K, Q3_K, IQ4_XS:
		t = IQ4_NL
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
