//go:build !amd64 || purego

package peak

func arithmeticPeaks() []arithmeticPeak { return nil }

func readMemory(b []byte) { readGo(b) }
