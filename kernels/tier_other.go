//go:build (!amd64 && !arm64) || purego

package kernels

// BestTier is the highest tier that this machine has.
func BestTier() Tier { return PureGo }
