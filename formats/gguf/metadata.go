package gguf

import "slices"

// KV is one metadata entry. Value is one of the Go types uint8, int8, uint16, int16, uint32, int32, uint64, int64,
// float32, float64, bool and string, or a slice of one of them.
type KV struct {
	Key   string
	Value any
}

// Metadata is an ordered list of entries with distinct keys.
type Metadata []KV

// Get returns key's value.
func (m Metadata) Get(key string) (any, bool) {
	for _, kv := range m {
		if kv.Key == key {
			return kv.Value, true
		}
	}
	return nil, false
}

// Set replaces key's value, or appends it.
func (m *Metadata) Set(key string, value any) {
	for i := range *m {
		if (*m)[i].Key == key {
			(*m)[i].Value = value
			return
		}
	}
	*m = append(*m, KV{key, value})
}

// without returns a copy that lacks some keys.
func (m Metadata) without(keys ...string) Metadata {
	return slices.DeleteFunc(slices.Clone(m), func(kv KV) bool { return slices.Contains(keys, kv.Key) })
}
