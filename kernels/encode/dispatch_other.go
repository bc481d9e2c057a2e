//go:build !amd64 || purego

package encode

func wholeF16([]byte, []float32) int { return 0 }

func wholeBF16([]byte, []float32) int { return 0 }

func roundQ4_0(int, []byte, []float32, []float32) { panic("encode: no vectors") }

func roundQ8_0(int, []byte, []float32, []float32) { panic("encode: no vectors") }
