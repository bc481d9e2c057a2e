//go:build !amd64 || purego

package q8

import "github.com/llmq/llmq/kernels"

// tier returns the kernels of the tier in use, nil: there are none.
func tier() *kernelSet { return nil }

// tiles is tier of products that AMX does faster.
func tiles(int, *kernels.LevelFormat) *kernelSet { return nil }
