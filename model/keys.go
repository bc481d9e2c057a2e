package model

import (
	"fmt"
	"math"
	"strings"
)

// Bounds beyond which a hyperparameter is taken for a corrupt file. The largest published models stay below a
// sixteenth of each; products of three stay within an int64.
const (
	MaxLayers  = 1 << 14
	MaxWidth   = 1 << 20
	MaxExperts = 1 << 14
	MaxVocab   = 1 << 24
	MaxContext = 1 << 30
)

// Keys reads the metadata below one architecture's prefix. The first failure is kept, and later reads return zero.
type Keys struct {
	Arch string // general.architecture

	src Source
	err error
}

// NewKeys returns the metadata of a source's architecture.
func NewKeys(src Source, arch string) *Keys { return &Keys{Arch: arch, src: src} }

// Err is the first failure.
func (k *Keys) Err() error { return k.err }

// Fail notes what is wrong with a key's value, unless something else was before.
func (k *Keys) Fail(key, format string, args ...any) {
	if k.err == nil {
		k.err = fmt.Errorf("model: %s: %s.%s: %s", k.src.Name(), k.Arch, key, fmt.Sprintf(format, args...))
	}
}

// Has says whether a key is there.
func (k *Keys) Has(key string) bool {
	_, ok := k.src.Meta(k.Arch + "." + key)
	return ok
}

// IsInt says whether a key is there and holds one integer.
func (k *Keys) IsInt(key string) bool {
	v, ok := k.src.Meta(k.Arch + "." + key)
	_, is := integer(v)
	return ok && is
}

// Under lists the source's tensors whose names begin with a prefix.
func (k *Keys) Under(prefix string) []string {
	var names []string
	for _, t := range k.src.Tensors() {
		if strings.HasPrefix(t.Name, prefix) {
			names = append(names, t.Name)
		}
	}
	return names
}

// Shape returns a tensor's shape, nil if the source does not have it.
func (k *Keys) Shape(name string) []int {
	for _, t := range k.src.Tensors() {
		if t.Name == name {
			return t.Shape
		}
	}
	return nil
}

// Int returns a number in [lo,hi], or absent if the key is not there. absent < 0 makes the key required.
func (k *Keys) Int(key string, absent, lo, hi int) int {
	v, ok := k.src.Meta(k.Arch + "." + key)
	if !ok && absent < 0 {
		k.Fail(key, "the key is missing")
		return 0
	}
	if !ok {
		return absent
	}
	n, ok := integer(v)
	if !ok {
		k.Fail(key, "is %T, want one integer", v)
		return 0
	}
	return k.within(key, n, lo, hi)
}

func (k *Keys) within(key string, n int64, lo, hi int) int {
	if n < int64(lo) || n > int64(hi) {
		k.Fail(key, "is %d, want %d to %d", n, lo, hi)
		return 0
	}
	return int(n)
}

// Ints returns a number for each of n layers, of a key that holds a list or one number for all of them.
func (k *Keys) Ints(key string, n, absent, lo, hi int) []int {
	list := make([]int, n)
	v, ok := k.src.Meta(k.Arch + "." + key)
	values, isList := integers(v)
	if !ok || !isList {
		one := k.Int(key, absent, lo, hi)
		for i := range list {
			list[i] = one
		}
		return list
	}
	if len(values) < n { // some writers list layers that readers leave out
		k.Fail(key, "is a list of %d, want %d, one for each layer", len(values), n)
		return list
	}
	for i := range list {
		list[i] = k.within(key, values[i], lo, hi)
	}
	return list
}

// Bools returns a truth value for each of n layers, of a key that holds a list of truth values or of integers; nil if
// the key is not there.
func (k *Keys) Bools(key string, n int) []bool {
	v, ok := k.src.Meta(k.Arch + "." + key)
	if !ok {
		return nil
	}
	list, ok := v.([]bool)
	if !ok {
		values, isList := integers(v)
		if !isList {
			k.Fail(key, "is %T, want a list of truth values", v)
			return nil
		}
		for _, x := range values {
			list = append(list, x != 0)
		}
	}
	if len(list) < n {
		k.Fail(key, "is a list of %d, want %d, one for each layer", len(list), n)
		return make([]bool, n)
	}
	return list[:n]
}

// Float returns a finite number in (lo,hi], or absent if the key is not there. An absent NaN makes the key required.
func (k *Keys) Float(key string, absent, lo, hi float64) float64 {
	v, ok := k.src.Meta(k.Arch + "." + key)
	if !ok {
		if math.IsNaN(absent) {
			k.Fail(key, "the key is missing")
		}
		return absent
	}
	var f float64
	switch v := v.(type) {
	case float32:
		f = float64(v)
	case float64:
		f = v
	default:
		n, ok := integer(v)
		if !ok {
			k.Fail(key, "is %T, want one number", v)
			return 0
		}
		f = float64(n)
	}
	if !(f > lo && f <= hi) {
		k.Fail(key, "is %g, want more than %g, at most %g", f, lo, hi)
		return 0
	}
	return f
}

// String returns a string, or absent if the key is not there.
func (k *Keys) String(key, absent string) string {
	v, ok := k.src.Meta(k.Arch + "." + key)
	if !ok {
		return absent
	}
	s, ok := v.(string)
	if !ok {
		k.Fail(key, "is %T, want a string", v)
	}
	return s
}

// Bool returns a truth value, or absent if the key is not there.
func (k *Keys) Bool(key string, absent bool) bool {
	v, ok := k.src.Meta(k.Arch + "." + key)
	if !ok {
		return absent
	}
	b, ok := v.(bool)
	if !ok {
		k.Fail(key, "is %T, want a truth value", v)
	}
	return b
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case uint8:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint64:
		return int64(min(v, math.MaxInt64)), true
	case int64:
		return v, true
	}
	return 0, false
}

func integers(v any) ([]int64, bool) {
	switch v := v.(type) {
	case []uint8:
		return widen(v), true
	case []int8:
		return widen(v), true
	case []uint16:
		return widen(v), true
	case []int16:
		return widen(v), true
	case []uint32:
		return widen(v), true
	case []int32:
		return widen(v), true
	case []int64:
		return v, true
	}
	return nil, false
}

func widen[T uint8 | int8 | uint16 | int16 | uint32 | int32](v []T) []int64 {
	w := make([]int64, len(v))
	for i, x := range v {
		w[i] = int64(x)
	}
	return w
}
