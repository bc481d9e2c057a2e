// Package peak measures the limits of the machine.
package peak

import (
	"encoding/binary"
	"runtime"
	"time"

	"github.com/llmq/llmq/kernels"
)

// Peak is a limit of the machine, measured by a loop that does nothing else.
type Peak struct {
	Name    string  // "f32 FMA, AVX-512"
	Unit    string  // "GFLOP/s", "Gop/s" or "GB/s"
	Threads int     //
	Rate    float64 // in Unit
}

// best returns the most units of work per second that threads copies of run reach together in a few tries of about
// the given time; run does its argument's number of rounds, each worth perRound.
func best(threads int, perRound float64, run func(thread, rounds int)) float64 {
	const tries, least = 5, 20 * time.Millisecond
	rounds, rate := 1, 0.0
	for try := 0; try < tries; {
		start := time.Now()
		kernels.Spread(threads, threads, func(i int) { run(i, rounds) })
		if d := time.Since(start); d >= least {
			rate = max(rate, perRound*float64(rounds*threads)/d.Seconds())
			try++
		} else {
			rounds *= 2
		}
	}
	return rate
}

// Peaks measures the machine's limits with the given number of threads, at most kernels.Processors(): multiply-adds of float32,
// bfloat16 pairs and bytes where the machine has them, and reading and copying memory. It takes about a second and
// some hundred megabytes.
func Peaks(threads int) []Peak {
	threads = min(max(threads, 1), kernels.Processors())
	var peaks []Peak
	for _, p := range arithmeticPeaks() {
		p.Threads = threads
		p.Rate = best(threads, p.opsPerRound/1e9, func(_, rounds int) { p.run(rounds) })
		peaks = append(peaks, p.Peak)
	}
	// Larger than any cache that two threads could have for themselves.
	const bytes = 256 << 20
	src, dst := make([]byte, bytes), make([]byte, bytes)
	for i := 0; i < bytes; i += 4096 {
		src[i], dst[i] = 1, 1
	}
	part := bytes / threads &^ 4095
	peaks = append(peaks,
		Peak{"memory read", "GB/s", threads, best(threads, float64(part)/1e9, func(i, rounds int) {
			for range rounds {
				readMemory(src[i*part : (i+1)*part])
			}
		})},
		Peak{"memory copy", "GB/s", threads, best(threads, float64(part)/1e9, func(i, rounds int) {
			for range rounds {
				copy(dst[i*part:(i+1)*part], src[i*part:(i+1)*part])
			}
		})})
	return peaks
}

// arithmeticPeak is a loop over registers.
type arithmeticPeak struct {
	Peak
	opsPerRound float64
	run         func(rounds int)
}

func readGo(b []byte) {
	var sum uint64
	for len(b) >= 8 {
		sum += binary.LittleEndian.Uint64(b)
		b = b[8:]
	}
	runtime.KeepAlive(sum) // or the loop might be removed
}
