//go:build !purego

package kernels

func roundLanes(lanes int, q, err, x, scale, minimum *Lane, u, lo, hi float32) {
	if lanes == Lanes {
		roundLanesAVX512(&q[0], &err[0], &x[0], &scale[0], &minimum[0], u, lo, hi)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		roundLanesAVX2(&q[i], &err[i], &x[i], &scale[i], &minimum[i], u, lo, hi)
	}
}

func subtractLanes(lanes int, dst []Lane, u []float32, x *Lane) {
	if lanes == Lanes {
		subtractLanesAVX512(&dst[0][0], &u[0], &x[0], len(u))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		subtractLanesAVX2(&dst[0][i], &u[0], &x[i], len(u))
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
