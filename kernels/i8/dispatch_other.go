//go:build !amd64 || purego

package i8

func tier() *kernelSet { return nil }
