package pipeline

import (
	"encoding/gob"
	"io"
)

// Gob numbers types as a process meets them, and has the numbers in its bytes. Two machines that do the same unit must write the same
// bytes, whatever each did before: so all processes meet the types of units' values here, in one order.
func init() {
	for _, v := range []any{&record{}, &statsHeader{}, &gradientSums{}, &verdicts{}} {
		if err := gob.NewEncoder(io.Discard).Encode(v); err != nil {
			panic(err) // a type that gob does not know
		}
	}
}
