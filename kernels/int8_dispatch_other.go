//go:build !amd64 || purego

package kernels

func int8Tier() *int8Kernels { return nil }
