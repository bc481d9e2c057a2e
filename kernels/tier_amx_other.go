//go:build amd64 && !linux && !purego

package kernels

// tilesAllowed is false: how a process is allowed tiles is known for Linux alone.
func tilesAllowed() bool { return false }
