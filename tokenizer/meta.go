package tokenizer

import (
	"fmt"
	"math"
)

// The metadata keys, as llama.cpp names them.
const (
	keyModel       = "tokenizer.ggml.model"
	keyPre         = "tokenizer.ggml.pre"
	keyTokens      = "tokenizer.ggml.tokens"
	keyScores      = "tokenizer.ggml.scores"
	keyTypes       = "tokenizer.ggml.token_type"
	keyMerges      = "tokenizer.ggml.merges"
	keyBOS         = "tokenizer.ggml.bos_token_id"
	keyEOS         = "tokenizer.ggml.eos_token_id"
	keyUNK         = "tokenizer.ggml.unknown_token_id"
	keyAddBOS      = "tokenizer.ggml.add_bos_token"
	keyAddEOS      = "tokenizer.ggml.add_eos_token"
	keySpacePrefix = "tokenizer.ggml.add_space_prefix"
)

func stringValue(m Metadata, key string) (string, error) {
	v, ok := m.Meta(key)
	if !ok {
		return "", fmt.Errorf("%s is missing", key)
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s is %T, want string", key, v)
	}
	return s, nil
}

// boolValue sets *dst if the key is there.
func boolValue(m Metadata, key string, dst *bool) error {
	v, ok := m.Meta(key)
	if !ok {
		return nil
	}
	b, ok := v.(bool)
	if !ok {
		return fmt.Errorf("%s is %T, want bool", key, v)
	}
	*dst = b
	return nil
}

func intValue(m Metadata, key string) (int64, bool, error) {
	v, ok := m.Meta(key)
	if !ok {
		return 0, false, nil
	}
	switch v := v.(type) {
	case uint8:
		return int64(v), true, nil
	case int8:
		return int64(v), true, nil
	case uint16:
		return int64(v), true, nil
	case int16:
		return int64(v), true, nil
	case uint32:
		return int64(v), true, nil
	case int32:
		return int64(v), true, nil
	case uint64:
		return int64(min(v, math.MaxInt64)), true, nil
	case int64:
		return v, true, nil
	}
	return 0, false, fmt.Errorf("%s is %T, want an integer", key, v)
}

func slice[T any](m Metadata, key string, required bool) ([]T, error) {
	v, ok := m.Meta(key)
	if !ok {
		if required {
			return nil, fmt.Errorf("%s is missing", key)
		}
		return nil, nil
	}
	s, ok := v.([]T)
	if !ok {
		return nil, fmt.Errorf("%s is %T, want %T", key, v, s)
	}
	return s, nil
}
