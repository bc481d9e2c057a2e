package q8_test // not kernels_test: what it imports would all be compiled once more, for that package's tests

import (
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/internal/blocktest"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/tensor"
)

// TestEndOfMapping multiplies weights that end where readable memory ends, as the last tensor of a mapped file may, with
// as many tokens as each kind of product takes: a kernel that reads past them faults.
func TestEndOfMapping(t *testing.T) {
	page := syscall.Getpagesize()
	memory, err := syscall.Mmap(-1, 0, 16*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(memory)
	end := len(memory) - page
	if err := syscall.Mprotect(memory[end:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 6))
		for _, typ := range blocktest.Types {
			lengths := []int{typ.BlockLen, 256}
			if typ.BlockLen == 1 {
				lengths = []int{1, 31, 32, 64, 255}
			}
			for _, in := range lengths {
				const out = 5
				w := blocktest.Weights(rng, typ, out, in)
				at := &kernels.Weights{Rows: out, Cols: in, Format: &typ.Format, Data: memory[end-len(w.Data) : end]}
				copy(at.Data, w.Data)
				for _, tokens := range []int{1, 2, 4, 9} {
					x, want, got := tensor.New(tokens, in), tensor.New(tokens, out), tensor.New(tokens, out)
					for i := range x.Data {
						x.Data[i] = float32(rng.NormFloat64())
					}
					for _, multiply := range []func(dst *tensor.Matrix, w *kernels.Weights){
						func(dst *tensor.Matrix, w *kernels.Weights) { gemm.MatMul(dst, x, w, kernels.Auto) },
						func(dst *tensor.Matrix, w *kernels.Weights) { gemm.MatMul(dst, x, w, kernels.F32) },
						func(dst *tensor.Matrix, w *kernels.Weights) {
							if typ.Levels != nil {
								q8.MatMul(x, kernels.Product{Dst: dst, W: w})
							}
						},
					} {
						multiply(want, w)
						multiply(got, at)
						for i, v := range want.Data {
							if got.Data[i] != v {
								t.Fatalf("%v, %d tokens, %d columns: %v at the end of memory, %v elsewhere", typ, tokens, in, got.Data[i], v)
							}
						}
					}
				}
			}
		}
	})
}
