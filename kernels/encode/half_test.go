package encode

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// Both conversions against tensor's, value by value: over random bits, every half-precision value, what lies between
// two of them, and what is not finite.
func TestEncodeHalf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var values []float32
	for bits := range 1 << 16 {
		values = append(values, tensor.F16(uint16(bits)), tensor.BF16(uint16(bits)),
			math.Float32frombits(uint32(bits)<<16|0x8000), math.Float32frombits(rng.Uint32()))
		// The middle between two binary16 values, and its neighbours.
		m := (tensor.F16(uint16(bits)) + tensor.F16(uint16(bits)+1)) / 2
		values = append(values, m, math.Nextafter32(m, 1e9), math.Nextafter32(m, -1e9))
	}
	for _, c := range []struct {
		name   string
		encode func([]byte, []float32)
		round  func(float32) uint16
		limit  float32
		value  func(uint16) float32
	}{
		{"F16", F16, tensor.ToF16, MaxF16, tensor.F16},
		{"BF16", BF16, tensor.ToBF16, MaxBF16, tensor.BF16},
	} {
		kerneltest.EachTier(t, func(t *testing.T) {
			check := func(src []float32) {
				dst := make([]byte, 2*len(src)+2)
				dst[2*len(src)] = 77
				c.encode(dst[:2*len(src)], src)
				if dst[2*len(src)] != 77 {
					t.Fatalf("%s of %d values wrote past the end", c.name, len(src))
				}
				for i, v := range src {
					got := binary.LittleEndian.Uint16(dst[2*i:])
					want := c.round(min(max(v, -c.limit), c.limit))
					if got != want && !(v != v && c.value(got) != c.value(got)) {
						t.Fatalf("%s(%v = %#x) is %#x, want %#x", c.name, v, math.Float32bits(v), got, want)
					}
				}
			}
			check(values)
			for n := range 50 {
				check(values[1000 : 1000+n])
			}
		})
	}
}
