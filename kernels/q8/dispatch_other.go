//go:build !amd64 || purego

package q8

// tier returns the kernels of the tier in use, nil: there are none.
func tier() *kernelSet { return nil }
