//go:build !purego

package peak

import (
	"github.com/llmq/llmq/kernels"
	"golang.org/x/sys/cpu"
)

func arithmeticPeaks() []arithmeticPeak {
	// A round is a hundred passes over the loop's independent instructions.
	loop := func(name, unit string, instructions, ops int, run func(n int)) arithmeticPeak {
		return arithmeticPeak{Peak{Name: name, Unit: unit}, float64(100 * instructions * ops),
			func(rounds int) { run(100 * rounds) }}
	}
	var p []arithmeticPeak
	best := kernels.BestTier()
	if best >= kernels.AVX512 {
		p = append(p, loop("f32 FMA, AVX-512", "GFLOP/s", 16, 2*16, peakF32AVX512))
	}
	if best >= kernels.AVX2 {
		p = append(p, loop("f32 FMA, AVX2", "GFLOP/s", 12, 2*8, peakF32AVX2))
	}
	if best >= kernels.AVX512BF16 {
		p = append(p, loop("bf16 dot product, AVX-512", "GFLOP/s", 16, 2*32, peakBF16))
	}
	if best >= kernels.AMX {
		p = append(p, loop("bf16 tile product, AMX", "GFLOP/s", 4, 16*16*2*32, peakAMX))
	}
	if best >= kernels.AVX512 && cpu.X86.HasAVX512VNNI {
		p = append(p, loop("int8 dot product, AVX-512", "Gop/s", 16, 2*64, peakInt8))
	}
	return p
}

// readMemory loads every byte of b, whose length is a multiple of 256.
func readMemory(b []byte) {
	if kernels.BestTier() >= kernels.AVX2 {
		readAVX2(&b[0], len(b))
		return
	}
	readGo(b)
}
