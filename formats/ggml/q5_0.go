package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q5_0 holds 32 weights in 22 bytes, 5.5 bits per weight:
//
//	d  float16
//	qh uint32    bit j is bit 4 of weight j
//	qs [16]byte  the low bits of weight j in the low half of byte j, of weight j+16 in the high half
//
//	w = d·(q − 16), q in 0..31
//
// The grid's codes are q − 16.
var Q5_0 = &Type{
	Format: kernels.Format{Name: "Q5_0", BlockLen: 32, BlockBytes: 22, Unpack: unpackQ5_0},
	ID:     6,
	Grid:   fit.New(quant.Affine{Name: "Q5_0", Block: 32, Group: 32, CodeMin: -16, CodeMax: 15}),
	Pack:   packQ5_0,
	Parse:  parseQ5_0,
}

func unpackQ5_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[22:] {
		d := getF16(src)
		qh := binary.LittleEndian.Uint32(src[2:])
		for j, v := range src[6:22] {
			dst[j] = d * float32(int(v&15)|int(qh>>j&1)<<4-16)
			dst[j+16] = d * float32(int(v>>4)|int(qh>>(j+16)&1)<<4-16)
		}
	}
}

func packQ5_0(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	var q [32]int8
	for j, c := range b.Codes {
		q[j] = c + 16
	}
	put5(dst[2:22], q[:])
}

func parseQ5_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	get5(b.Codes, src[2:22])
	for j := range b.Codes {
		b.Codes[j] -= 16
	}
}

// get5 reads 32 five-bit numbers as Q5_0 and Q5_1 keep them: qh, then qs.
func get5(dst []int8, src []byte) {
	qh := binary.LittleEndian.Uint32(src)
	nibbles(dst, src[4:20])
	for j := range dst {
		dst[j] |= int8(qh>>j&1) << 4
	}
}

// put5 stores 32 five-bit numbers as get5 reads them.
func put5(dst []byte, src []int8) {
	var qh uint32
	for j, q := range src {
		qh |= uint32(q>>4&1) << j
	}
	binary.LittleEndian.PutUint32(dst, qh)
	putNibbles(dst[4:20], src)
}
