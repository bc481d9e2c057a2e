//go:build !purego

package kernels

// BestTier is the highest tier that this machine has: every arm64 processor has NEON.
func BestTier() Tier { return NEON }
