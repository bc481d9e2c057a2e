//go:build !purego

package kernels

// has says whether this machine has a tier: every arm64 processor has NEON.
func has(t Tier) bool { return t == NEON }
