package gguf

import (
	"fmt"
	"reflect"

	"github.com/llmq/llmq/formats/ggml"
)

// The layout (github.com/ggml-org/ggml, docs/gguf.md), everything little-endian:
//
//	magic "GGUF", version uint32, tensors uint64, entries uint64
//	entries:  key string, type uint32, value
//	tensors:  name string, n uint32, n dimensions uint64 (fastest first), type uint32, offset uint64
//	zeros to the alignment, then the data; offsets count from here
//
// A string is a uint64 length and its bytes; an array is an element type, a uint64 length and its elements.
const (
	magic            = "GGUF"
	oldestVersion    = 2 // version 1 had 32-bit counts
	lastVersion      = 3 // as version 2, and may be big-endian
	headerBytes      = 4 + 4 + 8 + 8
	defaultAlignment = 32
	alignmentKey     = "general.alignment"
	maxDims          = 4     // GGML_MAX_DIMS
	maxNameBytes     = 63    // GGML_MAX_NAME less the terminating zero
	maxAnyNameBytes  = 65535 // of programs built with another GGML_MAX_NAME, such as stable-diffusion.cpp
	maxKeyBytes      = 65535 // docs/gguf.md
	minEntryBytes    = 8 + 1 + 4 + 1
	minTensorBytes   = 8 + 1 + 4 + 8 + 4 + 8
)

// A FormatError reports that the input is not a valid GGUF file.
type FormatError string

func (e FormatError) Error() string { return "gguf: " + string(e) }

// An UnsupportedError reports that the input uses a valid but unimplemented feature.
type UnsupportedError string

func (e UnsupportedError) Error() string { return "gguf: " + string(e) }

// valueType is the number of a metadata type (enum gguf_type).
type valueType uint32

const (
	typeUint8 valueType = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// goTypes are the Go types of the metadata types; an array of one of them is a slice.
var goTypes = map[valueType]reflect.Type{
	typeUint8:   reflect.TypeFor[uint8](),
	typeInt8:    reflect.TypeFor[int8](),
	typeUint16:  reflect.TypeFor[uint16](),
	typeInt16:   reflect.TypeFor[int16](),
	typeUint32:  reflect.TypeFor[uint32](),
	typeInt32:   reflect.TypeFor[int32](),
	typeFloat32: reflect.TypeFor[float32](),
	typeBool:    reflect.TypeFor[bool](),
	typeString:  reflect.TypeFor[string](),
	typeUint64:  reflect.TypeFor[uint64](),
	typeInt64:   reflect.TypeFor[int64](),
	typeFloat64: reflect.TypeFor[float64](),
}

var valueTypes = func() map[reflect.Type]valueType {
	m := make(map[reflect.Type]valueType)
	for v, t := range goTypes {
		m[t] = v
	}
	return m
}()

// alignmentOf is the data's alignment in bytes: general.alignment, or 32.
func alignmentOf(md Metadata) (int64, error) {
	v, ok := md.Get(alignmentKey)
	if !ok {
		return defaultAlignment, nil
	}
	a, ok := v.(uint32)
	if !ok {
		return 0, fmt.Errorf("%s is of type %T, not uint32", alignmentKey, v)
	}
	if a == 0 || a&(a-1) != 0 {
		return 0, fmt.Errorf("%s is %d, not a power of two", alignmentKey, a)
	}
	return int64(a), nil
}

// describe prints a tensor's type and shape: "Q4_K [512 256]".
func describe(t *ggml.Info) string { return fmt.Sprintf("%s %d", t.Type.Name, t.Shape) }
