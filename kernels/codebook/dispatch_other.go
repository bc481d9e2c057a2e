//go:build !amd64 || purego

package codebook

import "github.com/llmq/llmq/kernels"

func fill(int, *[MaxHalves]entry, []float32, []kernels.Lane, []kernels.Lane, *[kernels.Lanes]int32) {
	panic("codebook: no vectors")
}

func (*Search) nearest(int, *[kernels.Lanes]int32, *kernels.Lane, *Words, bool) {
	panic("codebook: no vectors")
}
