//go:build arm64 && !linux && !darwin && !purego

package kernels

// hasBF16 is false: how a processor's FEAT_BF16 is found is known for Linux and macOS alone.
func hasBF16() bool { return false }
