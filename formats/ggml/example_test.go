package ggml_test

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
)

func ExampleType_Encode() {
	w := make([]float32, 64) // a row: two blocks of Q8_0
	for i := range w {
		w[i] = float32(i-32) / 64
	}
	data := make([]byte, ggml.Q8_0.RowBytes(len(w)))
	ggml.Q8_0.Encode(data, w, nil)

	back := make([]float32, len(w))
	ggml.Q8_0.Decode(back, data)
	fmt.Println(len(data), "bytes,", ggml.Q8_0.BitsPerWeight(), "bits per weight")
	fmt.Println(w[5], back[5])
	// Output:
	// 68 bytes, 8.5 bits per weight
	// -0.421875 -0.421875
}

func ExampleByName() {
	t, err := ggml.ByName("q4_k")
	fmt.Println(t, t.BitsPerWeight(), err)
	_, err = ggml.ByName("q8_k")
	fmt.Println(err)
	// Output:
	// Q4_K 4.5 <nil>
	// ggml: type Q8_K (15) is not supported; supported are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0
}

func ExampleSubstitute() {
	fmt.Println(ggml.Substitute(ggml.Q4_K, 4096), ggml.Substitute(ggml.Q4_K, 4000), ggml.Substitute(ggml.Q4_K, 4001))
	// Output: Q4_K Q5_0 F16
}
