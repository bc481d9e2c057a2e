//go:build (!amd64 && !arm64) || purego

package tile

import "github.com/llmq/llmq/kernels"

// For returns nil: there are no micro-kernels.
func For(kernels.Precision) *Tiling { return nil }
