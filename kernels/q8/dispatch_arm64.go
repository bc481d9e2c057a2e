//go:build !purego

package q8

import "github.com/llmq/llmq/kernels"

var (
	tierSDOT = dotKernels{
		tile: [2][2]dotTile{{q8Group32SDOT, q8Group32MinSDOT}, {q8Group16SDOT, q8Group16MinSDOT}},
		runX: 16, runW: 4,
	}
	tierSMMLA = dotKernels{
		tile: [2][2]dotTile{{q8Group32SMMLA, q8Group32MinSMMLA}, {q8Group16SMMLA, q8Group16MinSMMLA}},
		runX: 8, runW: 8, pairs: true,
	}
)

// dotTier returns the kernels of the tier in use, nil if it has none.
func dotTier() *dotKernels {
	switch t := kernels.CurrentTier(); {
	case t >= kernels.I8MM:
		return &tierSMMLA
	case t == kernels.DotProd:
		return &tierSDOT
	}
	return nil
}
