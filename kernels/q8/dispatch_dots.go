//go:build !arm64 || purego

package q8

func dotTier() *dotKernels { return nil }
