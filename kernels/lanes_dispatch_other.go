//go:build !amd64 || purego

package kernels

func roundLanes(int, *Lane, *Lane, *Lane, *Lane, float32, *Lane, *Lane, float32, float32) {
	panic("kernels: no vectors")
}

func addLanes(int, []Lane, []float32, *Lane) { panic("kernels: no vectors") }

func updateLanes(int, []Lane, []float32, int, []Lane) { panic("kernels: no vectors") }

func dotLanes(int, *Lane, []Lane, []Lane) { panic("kernels: no vectors") }

func rowsFromLanes(int, []float32, int, []Lane) { panic("kernels: no vectors") }
