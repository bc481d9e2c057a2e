//go:build !amd64 || purego

package q8

func tier() *kernelSet { return nil }
