//go:build (!amd64 && !arm64) || purego

package kernels

// has says whether this machine has a tier.
func has(Tier) bool { return false }
