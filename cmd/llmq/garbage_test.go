package main

import (
	"runtime/debug"
	"testing"
)

// TestGarbagePercent: the larger a run, the smaller the share of its memory that may be garbage, between two bounds.
func TestGarbagePercent(t *testing.T) {
	for inUse, want := range map[int64]int{0: gcPercent, 100 << 20: gcPercent, 640 << 20: 10, 1 << 30: 6, 64 << 30: leastPercent} {
		if got := garbagePercent(inUse); got != want {
			t.Errorf("%d bytes in use: %d%%, want %d%%", inUse, got, want)
		}
	}
}

// TestKeepLow: a large run lowers the collector's percentage while it lasts, a small one or a user's GOGC does not.
func TestKeepLow(t *testing.T) {
	t.Setenv("GOGC", "")
	present := func() int {
		percent := debug.SetGCPercent(100)
		debug.SetGCPercent(percent)
		return percent
	}
	before := present()
	restore := keepLow(8 << 30)
	during := present()
	restore()
	if during != leastPercent || present() != before {
		t.Errorf("%d%%, then %d%%, then %d%%", before, during, present())
	}
	restore = keepLow(1 << 20)
	if present() != before {
		t.Errorf("a small run has %d%%", present())
	}
	restore()
	t.Setenv("GOGC", "100")
	restore = keepLow(8 << 30)
	if present() != before {
		t.Errorf("with GOGC it is %d%%", present())
	}
	restore()
}
