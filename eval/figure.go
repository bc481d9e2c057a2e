package eval

import (
	"encoding/json"
	"math"
)

// Figure is a measured number that may be infinite or undefined, as the perplexity of a model that thinks the text all but
// impossible: exp of a mean beyond 709 is more than float64 holds. JSON has no such numbers; there it is null, and null is
// read as NaN.
type Figure float64

// Finite says whether the figure is a number.
func (f Figure) Finite() bool { return !math.IsNaN(float64(f)) && !math.IsInf(float64(f), 0) }

// MarshalJSON implements json.Marshaler.
func (f Figure) MarshalJSON() ([]byte, error) {
	if !f.Finite() {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Figure) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*f = Figure(math.NaN())
		return nil
	}
	return json.Unmarshal(b, (*float64)(f))
}
