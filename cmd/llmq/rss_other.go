//go:build !unix

package main

import "runtime"

// peakRSS is the memory that the Go runtime took from the system, where the peak of resident memory is not known.
func peakRSS() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}
