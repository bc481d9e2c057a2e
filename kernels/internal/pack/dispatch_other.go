//go:build (!amd64 && !arm64) || purego

package pack

// RoundBF16 has no plain version: only tiers with bfloat16 products ask for it.
func RoundBF16(*uint16, *float32, int) { panic("pack: no bfloat16 instructions") }

// Prefetch does nothing here.
func Prefetch(*byte, int) {}
