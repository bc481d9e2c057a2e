//go:build !amd64 || purego

package integer

func q8Tier() *q8Kernels { return nil }

func int8Tier() *int8Kernels { return nil }
