package kernels

import (
	"runtime"
	"testing"
)

// setThreads sets GOMAXPROCS for the rest of the test.
func setThreads(t *testing.T, n int) {
	t.Helper()
	was := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

// rate runs f until b is done and reports flops per second of the clock, and per second of processor time, which other
// processes on the machine disturb less.
func rate(b *testing.B, flops float64, f func()) {
	b.Helper()
	f()
	start := cpuTime()
	for b.Loop() {
		f()
	}
	flops *= float64(b.N) / 1e9
	b.ReportMetric(flops/b.Elapsed().Seconds(), "GFLOP/s")
	b.ReportMetric(flops/(cpuTime()-start).Seconds(), "GFLOP/cpu-s")
	b.ReportMetric(0, "ns/op")
}
