package peak

import (
	"fmt"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

func TestPeaks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	for _, p := range Peaks(1) {
		if p.Name == "" || p.Unit == "" || p.Threads != 1 || !(p.Rate > 0) {
			t.Errorf("%+v", p)
		}
	}
}

func BenchmarkPeaks(b *testing.B) {
	for threads := 1; threads <= 2; threads++ {
		b.Run(fmt.Sprint(threads), func(b *testing.B) {
			for b.Loop() {
				for _, p := range Peaks(threads) {
					b.Logf("%-28s %d threads: %7.1f %s", p.Name, p.Threads, p.Rate, p.Unit)
				}
			}
		})
	}
}

func BenchmarkPeakLoops(b *testing.B) {
	for _, p := range arithmeticPeaks() {
		b.Run(p.Name, func(b *testing.B) { kerneltest.Rate(b, 1000*p.opsPerRound, func() { p.run(1000) }) })
	}
}
