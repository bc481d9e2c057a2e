//go:build !amd64 || purego

package kernels

func q8Tier() *q8Kernels { return nil }
