package kernels

import (
	"fmt"
	"testing"
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
