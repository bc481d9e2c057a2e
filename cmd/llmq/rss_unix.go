//go:build unix

package main

import (
	"runtime"
	"syscall"
)

// peakRSS is the most memory that the process had resident, in bytes, pages of mapped files included.
func peakRSS() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss)
	}
	return int64(u.Maxrss) << 10
}
