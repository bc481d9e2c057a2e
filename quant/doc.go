// Package quant holds what every quantization method shares: the grid of values that a block type can store, a weight
// on that grid, the statistics of the inputs that a linear sees, and what a method is.
package quant
