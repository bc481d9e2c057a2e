package kernels

import (
	"runtime"
	"testing"
)

// TestSpare: what computes has as many processors as before, what answers messages has one more, until all who asked for it are done.
func TestSpare(t *testing.T) {
	all, threads := Processors(), runtime.GOMAXPROCS(0)
	check := func(more int) {
		t.Helper()
		if Processors() != all || runtime.GOMAXPROCS(0) != threads+more {
			t.Errorf("%d processors compute of %d, not %d of %d", Processors(), runtime.GOMAXPROCS(0), all, threads+more)
		}
	}
	first := Spare()
	check(1)
	second := Spare()
	check(1)
	first()
	first()
	check(1)
	second()
	check(0)
}
