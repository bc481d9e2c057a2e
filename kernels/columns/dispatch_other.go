//go:build !amd64 || purego

package columns

import "github.com/llmq/llmq/kernels"

func round(int, *kernels.Lane, *kernels.Lane, *kernels.Lane, *kernels.Lane, float32, *kernels.Lane, *kernels.Lane, float32, float32) {
	panic("columns: no vectors")
}

func roundInTurn(int, []kernels.Lane, []kernels.Lane, []kernels.Lane, []kernels.Lane, []float32, []float32, int, []kernels.Lane, []kernels.Lane,
	*[8]int, float32, float32, bool) {
	panic("columns: no vectors")
}

func update(int, []kernels.Lane, []float32, int, []kernels.Lane) { panic("columns: no vectors") }

func updatePanels([]kernels.Lane, []float32, int, int, []kernels.Lane, bool) {
	panic("columns: no vectors")
}

func decode(int, []kernels.Lane, []kernels.Lane, *kernels.Lane, *kernels.Lane) {
	panic("columns: no vectors")
}

func shift(int, []kernels.Lane, []kernels.Lane, *kernels.Lane, []kernels.Lane, *kernels.Lane) {
	panic("columns: no vectors")
}

func shiftBy(int, []kernels.Lane, []kernels.Lane, *kernels.Lane, []float32, *kernels.Lane) {
	panic("columns: no vectors")
}

func subtract(int, []kernels.Lane, []kernels.Lane) { panic("columns: no vectors") }

func differ(int, []uint16, []kernels.Lane, []kernels.Lane) { panic("columns: no vectors") }

func fromCodes([]kernels.Lane, []int8, int) { panic("columns: no vectors") }

func dot(int, *kernels.Lane, []kernels.Lane, []kernels.Lane) { panic("columns: no vectors") }

func toRows(int, []float32, int, []kernels.Lane) { panic("columns: no vectors") }

func fromRows(int, []kernels.Lane, []float32, int) { panic("columns: no vectors") }
