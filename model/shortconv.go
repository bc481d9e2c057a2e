package model

import (
	"github.com/llmq/llmq/kernels/scan"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// ShortConv is LFM2's gated convolution (Liquid AI, arXiv:2511.23404): In makes b, c and x, Dim features each, and the
// output is Out·(c ⊙ conv(b⊙x)), where conv is causal, with Width taps for each channel.
type ShortConv struct {
	In, Out *Linear
	Taps    []float32 // by channel
	Width   int
}

// Branch is the convolution with its output, which is linear in c.
func (s *ShortConv) Branch() Branch {
	n := s.Out.In
	rows := make([]int, n)
	for i := range rows {
		rows[i] = n + i
	}
	return Branch{
		Stages: []Stage{{
			Sites: []*Site{{Name: "conv_in", Expert: -1, Linears: []*Linear{s.In}, Shares: "attn_in"}},
			Apply: s.apply,
		}},
		Out:     &Site{Name: "conv_out", Expert: -1, Linears: []*Linear{s.Out}, Prev: &quant.Scaler{Name: s.In.Name, Row: rows}},
		Narrows: true, Back: s,
	}
}

// apply leaves the input of Out, of the tokens that st wants, in st.In.
func (s *ShortConv) apply(st *State) {
	n := s.Out.In
	all := st.apply(st.In, []string{"conv in"}, s.In)[0]
	bx, y := st.columns("conv bx", all, 0, n), st.Scratch("conv out", all.Rows, n)
	byRows(bx.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			multiply(bx.Row(t), all.Row(t)[2*n:])
		}
	})
	st.convolve(y, bx, s.Taps, nil, s.Width)
	byRows(y.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			multiply(y.Row(t), all.Row(t)[n:2*n])
		}
	})
	st.leave(y)
}

// multiply sets dst *= x, element by element.
func multiply(dst, x []float32) {
	x = x[:len(dst)]
	for i, v := range x {
		dst[i] *= v
	}
}

// convolve sets dst to the causal convolution of x, by sequence.
func (st *State) convolve(dst, x *tensor.Matrix, taps, bias []float32, width int) {
	for i := 0; i < x.Rows; i += st.SeqLen {
		scan.Conv(dst.View(i, i+st.SeqLen, 0, dst.Cols), x.View(i, i+st.SeqLen, 0, x.Cols), taps, bias, width)
	}
}

// leave leaves the rows of x that belong to tokens which are wanted in st.In, and these tokens alone in st.X.
func (st *State) leave(x *tensor.Matrix) {
	if st.In = x; st.last < st.SeqLen {
		st.In = st.lastOf("last of mixer", x)
	}
	st.narrow()
}
