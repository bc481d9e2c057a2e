//go:build !purego

package codebook

import "github.com/llmq/llmq/kernels"

func fill(lanes int, table *[MaxHalves]entry, levels []float32, target, weight []kernels.Lane, turn *[kernels.Lanes]int32) {
	n := len(target)
	if turn == nil {
		if lanes == kernels.Lanes {
			fillAVX512(&table[0].cost[0], &levels[0], len(levels), &target[0][0], &weight[0][0], n)
			return
		}
		for i := 0; i < kernels.Lanes; i += lanes {
			fillAVX2(&table[0].cost[i], &levels[0], len(levels), &target[0][i], &weight[0][i], n)
		}
		return
	}
	if lanes == kernels.Lanes {
		fillTurnedAVX512(&table[0].cost[0], &levels[0], len(levels), &target[0][0], &weight[0][0], n, &turn[0])
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		fillTurnedAVX2(&table[0].cost[i], &levels[0], len(levels), &target[0][i], &weight[0][i], n, &turn[i])
	}
}

func (s *Search) nearest(lanes int, word *[kernels.Lanes]int32, cost *kernels.Lane, w *Words, turned bool) {
	for i := 0; i < kernels.Lanes; i += lanes {
		low, high := &s.low[0].cost[i], &s.high[0].cost[i]
		switch {
		case lanes == kernels.Lanes && turned:
			nearestTurnedAVX512(&word[i], &cost[i], low, high, &w.lower[0], &w.runs[0].upper, len(w.runs))
		case lanes == kernels.Lanes:
			nearestAVX512(&word[i], &cost[i], low, high, &w.lower[0], &w.runs[0].upper, len(w.runs))
		case turned:
			nearestTurnedAVX2(&word[i], &cost[i], low, high, &w.lower[0], &w.runs[0].upper, len(w.runs))
		default:
			nearestAVX2(&word[i], &cost[i], low, high, &w.lower[0], &w.runs[0].upper, len(w.runs))
		}
	}
}
