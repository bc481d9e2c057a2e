package elementwise

import (
	"math"
	"sync"

	"github.com/llmq/llmq/tensor"
)

// geluTable is GELU in the tanh form for each float16, rounded to float16: ggml's ggml_table_gelu_f16.
var geluTable = sync.OnceValue(func() *[1 << 16]float32 {
	t := new([1 << 16]float32)
	for i := range t {
		x := tensor.F16(uint16(i))
		u := float32(math.Sqrt(2/math.Pi)) * x * (1 + 0.044715*x*x)
		t[i] = tensor.RoundF16(0.5 * x * (1 + float32(math.Tanh(float64(u)))))
	}
	return t
})

// tableGELU is GELU as llama.cpp's CPU backend takes it from its table (ggml_vec_gelu_f32).
func tableGELU(t *[1 << 16]float32, x float32) float32 {
	switch {
	case x <= -10:
		return 0
	case x >= 10:
		return x
	}
	return t[tensor.ToF16(x)]
}

// TableGELUMul sets dst = GELU(gate)·up with GELU from llama.cpp's table, which rounds its input and its output to 11 bits:
// what a GGUF file computes there. dst may be gate or up.
func TableGELUMul(dst, gate, up *tensor.Matrix) {
	checkSame(dst, gate)
	checkSame(dst, up)
	table := geluTable()
	for t := range dst.Rows {
		out, u := dst.Row(t), up.Row(t)
		for i, v := range gate.Row(t) {
			out[i] = tableGELU(table, v) * u[i]
		}
	}
}

// TableGELU sets dst = GELU(x) as TableGELUMul does. dst may be x.
func TableGELU(dst, x *tensor.Matrix) {
	checkSame(dst, x)
	table := geluTable()
	for t := range dst.Rows {
		out := dst.Row(t)
		for i, v := range x.Row(t) {
			out[i] = tableGELU(table, v)
		}
	}
}
