package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// kinded is a message of several kinds: a job, or what is said of a run.
type kinded struct {
	Kind string          `json:"kind"`
	Spec json.RawMessage `json:"spec"`
}

// OfKind encodes a message of a kind, for Kinds.
func OfKind(kind string, spec any) ([]byte, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return json.Marshal(&kinded{kind, b})
}

// Kinds are the kinds of messages that a program knows, each with what it makes of one: Kinds[Worker] of a job. A package that
// has units done adds its own.
type Kinds[T any] map[string]func(ctx context.Context, spec []byte) (T, error)

// Make makes what a message is for.
func (k Kinds[T]) Make(ctx context.Context, message []byte) (made T, err error) {
	var m kinded
	if err := json.Unmarshal(message, &m); err != nil {
		return made, fmt.Errorf("the job: %w", err)
	}
	f := k[m.Kind]
	if f == nil {
		return made, fmt.Errorf("the job is of kind %q, not %s", m.Kind, strings.Join(slices.Sorted(maps.Keys(k)), " or "))
	}
	return f(ctx, m.Spec)
}
