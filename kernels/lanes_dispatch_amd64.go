//go:build !purego

package kernels

func roundLanes(lanes int, q, err, w, sum *Lane, inverse float32, scale, minimum *Lane, lo, hi float32) {
	if lanes == Lanes {
		roundLanesAVX512(&q[0], &err[0], &w[0], &sum[0], inverse, &scale[0], &minimum[0], lo, hi)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		roundLanesAVX2(&q[i], &err[i], &w[i], &sum[i], inverse, &scale[i], &minimum[i], lo, hi)
	}
}

func addLanes(lanes int, dst []Lane, u []float32, x *Lane) {
	if lanes == Lanes {
		addLanesAVX512(&dst[0][0], &u[0], &x[0], len(dst))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		addLanesAVX2(&dst[0][i], &u[0], &x[i], len(dst))
	}
}

func updateLanes(lanes int, dst []Lane, u []float32, pitch int, x []Lane) {
	if lanes == Lanes {
		updateLanesAVX512(&dst[0][0], &u[0], 4*pitch, &x[0][0], len(dst))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		updateLanesAVX2(&dst[0][i], &u[0], 4*pitch, &x[0][i], len(dst))
	}
}

func dotLanes(lanes int, sum *Lane, x, y []Lane) {
	if lanes == Lanes {
		dotLanesAVX512(&sum[0], &x[0][0], &y[0][0], len(x))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		dotLanesAVX2(&sum[i], &x[0][i], &y[0][i], len(x))
	}
}

func rowsFromLanes(lanes int, dst []float32, pitch int, src []Lane) {
	for j := 0; j < len(src); j += lanes {
		if lanes == Lanes {
			transposeAVX512(word(&dst[j]), 4*pitch, word(&src[j][0]), 4*Lanes, 1)
			continue
		}
		for i := 0; i < Lanes; i += lanes {
			transposeAVX2(word(&dst[i*pitch+j]), 4*pitch, word(&src[j][i]), 4*Lanes, 1)
		}
	}
}
