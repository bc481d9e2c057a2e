//go:build !amd64 || purego

package kernels

// lanes is the number of elements that vector loops take at a time.
func lanes() int { return 0 }

func (*BestScale) search(int, []Lane, []Lane, *Lane, []float32, int, int32, int32) {
	panic("kernels: no vectors")
}

func (*BestMinimum) search(int, []Lane, []Lane, *Moments, []Range, int, int32, int32) {
	panic("kernels: no vectors")
}

func (*BestRange) choose(int, int32, []Lane, []Lane, []Range, int32, int32) {
	panic("kernels: no vectors")
}

func (*BestMultiple) choose(int, []Lane, []Lane, *Window, [][2]float32, int32, int32, float32, float32, float32) {
	panic("kernels: no vectors")
}

func spreadRanges(int, []Range, *Lane, *Lane, *Lane, [][2]float32) { panic("kernels: no vectors") }

func (*Span) span(int, []Lane, []Lane) { panic("kernels: no vectors") }

func transposeLanes(int, []Lane, []float32, int) { panic("kernels: no vectors") }

func nearestLevels(int, []int8, []float32, float32, float32, int8, int8) {
	panic("kernels: no vectors")
}

func (*Lattice) errors(int, []Lane, []Range, float32, float32, float32) { panic("kernels: no vectors") }

func roundQ4_0(int, []byte, []float32, []float32) { panic("kernels: no vectors") }

func roundQ8_0(int, []byte, []float32, []float32) { panic("kernels: no vectors") }
