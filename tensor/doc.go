// Package tensor holds the one dense type that the project computes with, and the conversions between float32 and the
// two half-precision formats that checkpoints use.
package tensor
