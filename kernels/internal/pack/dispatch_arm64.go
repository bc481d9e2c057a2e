//go:build !purego

package pack

// Prefetch does nothing here.
func Prefetch(*byte, int) {}
