//go:build !amd64 || purego

package gemm

import "github.com/llmq/llmq/kernels"

func productsOf(*kernels.Format) (p rowProducts, ok bool) { return p, false }

func productsBF16Of(*kernels.Format, kernels.Precision) (p rowProductsBF16, ok bool) { return p, false }
