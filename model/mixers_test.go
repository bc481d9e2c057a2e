package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// even is linear with results of the size of its inputs.
func even(rng *rand.Rand, out, in int) *Linear {
	l := linear(rng, out, in)
	elementwise.Scale(l.F32.Data, float32(1/math.Sqrt(float64(in))))
	return l
}

func vectorOf(rng *rand.Rand, n int) []float32 { return random(rng, 1, n).Row(0) }

// checkMixer compares a layer of one residual connection around a branch with ref, which is the branch for the normalised
// states of one sequence in float64. Sequences together give the bits that each gives alone, and the last tokens of each
// those that they have among all.
func checkMixer(t *testing.T, rng *rand.Rand, dim, seqLen int, branch func() Branch, ref func(h [][]float64) [][]float64) {
	t.Helper()
	pre := norm(rng, dim)
	l := layerOf(dim, dim, func(b *Loader) { b.Residual(Residual{Pre: pre, Branch: branch()}) })
	const sequences = 3
	x := random(rng, sequences*seqLen, dim)
	y := forwardLast(t, l, x, seqLen, seqLen)
	for s := range sequences {
		h := make([][]float64, seqLen)
		for i := range h {
			h[i] = pre.ref(wide(x.Row(s*seqLen + i)))
		}
		for i, want := range ref(h) {
			for j := range want {
				want[j] += float64(x.Row(s*seqLen + i)[j])
			}
			nearly(t, fmt.Sprintf("sequence %d of %d tokens, token %d", s, seqLen, i), y.Row(s*seqLen+i), want)
		}
		alone := forwardLast(t, l, x.View(s*seqLen, (s+1)*seqLen, 0, dim).Clone(), seqLen, seqLen)
		for i := range seqLen {
			if !slices.Equal(alone.Row(i), y.Row(s*seqLen+i)) {
				t.Fatalf("sequence %d of %d tokens: token %d has other bits alone", s, seqLen, i)
			}
		}
	}
	for _, last := range []int{1, (seqLen + 1) / 2} {
		z := forwardLast(t, l, x, seqLen, last)
		for s := range sequences {
			for i := seqLen - last; i < seqLen; i++ {
				nearly(t, fmt.Sprintf("last %d of %d tokens, token %d", last, seqLen, i), z.Row(s*seqLen+i), wide(y.Row(s*seqLen+i)))
			}
		}
	}
}

// ref is the convolution of one sequence.
func (m *ShortConv) ref(h [][]float64) [][]float64 {
	n := m.Out.In
	var bx, y [][]float64
	for t, x := range h {
		all := m.In.ref(x)
		for i := range n {
			all[i] *= all[2*n+i]
		}
		bx = append(bx, all[:n])
		for i := range n {
			sum := 0.0
			for k := range m.Width {
				if s := t - m.Width + 1 + k; s >= 0 {
					sum += float64(m.Taps[i*m.Width+k]) * bx[s][i]
				}
			}
			all[n+i] *= sum
		}
		y = append(y, m.Out.ref(all[n:2*n]))
	}
	return y
}

func TestShortConv(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	for _, shape := range [][2]int{{8, 3}, {33, 2}, {16, 5}} {
		for _, seqLen := range []int{1, 2, 9, 40} {
			dim := shape[0]
			m := &ShortConv{In: even(rng, 3*dim, dim), Out: even(rng, dim, dim), Width: shape[1], Taps: vectorOf(rng, dim*shape[1])}
			checkMixer(t, rng, dim, seqLen, m.Branch, m.ref)
		}
	}
}

// ref is the state space layer for one sequence, token by token.
func (m *Mamba2) ref(h [][]float64) [][]float64 {
	silu := func(x float64) float64 { return x / (1 + math.Exp(-x)) }
	channels, headDim := m.Channels(), m.Inner/m.Heads
	state := make([]float64, m.Inner*m.State)
	var before, out [][]float64
	for t, x := range h {
		all := m.In.ref(x)
		before = append(before, all[m.Inner:m.Inner+channels])
		u := make([]float64, channels)
		for c := range u {
			if m.TapsBias != nil {
				u[c] = float64(m.TapsBias[c])
			}
			for k := range m.Width {
				if s := t - m.Width + 1 + k; s >= 0 {
					u[c] += float64(m.Taps[c*m.Width+k]) * before[s][c]
				}
			}
			u[c] = silu(u[c])
		}
		y := make([]float64, m.Inner)
		for i := range y {
			head := i / headDim
			g := head * m.Groups / m.Heads
			dt := math.Log1p(math.Exp(all[m.Inner+channels+head] + float64(m.DtBias[head])))
			y[i] = float64(m.D[head]) * u[i]
			for n := range m.State {
				s := &state[i*m.State+n]
				*s = math.Exp(dt*float64(m.A[head]))**s + dt*u[m.Inner+g*m.State+n]*u[i]
				y[i] += u[m.Inner+m.Groups*m.State+g*m.State+n] * *s
			}
			y[i] *= silu(all[i])
		}
		if m.Norm != nil {
			n := m.Inner / m.Groups
			for g := range m.Groups {
				part := Norm{W: m.Norm.W[g*n : (g+1)*n], Eps: m.Norm.Eps}
				copy(y[g*n:], part.ref(y[g*n:(g+1)*n]))
			}
		}
		out = append(out, m.Out.ref(y))
	}
	return out
}

func TestMamba2(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 2))
	for i, shape := range [][5]int{{12, 24, 4, 2, 3}, {16, 16, 1, 1, 8}, {8, 40, 10, 5, 4}, {24, 64, 8, 1, 16}} {
		for _, seqLen := range []int{1, 3, 64, 97} {
			dim := shape[0]
			m := &Mamba2{Inner: shape[1], Heads: shape[2], Groups: shape[3], State: shape[4], Width: 4 - i%2}
			m.In, m.Out = even(rng, m.InWidth(), dim), even(rng, dim, m.Inner)
			m.Taps, m.DtBias, m.D = vectorOf(rng, m.Channels()*m.Width), vectorOf(rng, m.Heads), vectorOf(rng, m.Heads)
			m.A = vectorOf(rng, m.Heads)
			for h, v := range m.A {
				m.A[h] = -float32(math.Exp(float64(v)))
			}
			if i != 1 {
				m.TapsBias = vectorOf(rng, m.Channels())
			}
			if i != 2 {
				m.Norm = norm(rng, m.Inner)
			}
			checkMixer(t, rng, dim, seqLen, m.Branch, m.ref)
		}
	}
}

// ref is latent attention for one sequence, in the form of the paper: keys and values of each head are made of the latents.
func (a *MLA) ref(h [][]float64) [][]float64 {
	turn := func(x []float64, pos int) []float64 {
		freq, magnitude := a.RoPE.frequencies()
		y := slices.Clone(x)
		for j, f := range freq {
			s, c := math.Sincos(float64(pos) * f)
			y[2*j] = magnitude * (x[2*j]*c - x[2*j+1]*s)
			y[2*j+1] = magnitude * (x[2*j]*s + x[2*j+1]*c)
		}
		return y
	}
	var latents, turned, out [][]float64
	for t, x := range h {
		kv := a.KVA.ref(x)
		latents, turned = append(latents, a.KVNorm.ref(kv[:a.Rank])), append(turned, turn(kv[a.Rank:], t))
		var q []float64
		if a.Q != nil {
			q = a.Q.ref(x)
		} else {
			q = a.QB.ref(a.QNorm.ref(a.QA.ref(x)))
		}
		result := make([]float64, a.Heads*a.ValueDim)
		for head := range a.Heads {
			q := q[head*(a.Nope+a.Rope) : (head+1)*(a.Nope+a.Rope)]
			qr := turn(q[a.Nope:], t)
			weights, sum := make([]float64, t+1), 0.0
			for s := range weights {
				score := 0.0
				for r, nudge := range nudges[a.KB[head]] { // of what meets the latents
					score += nudge * latents[s][r]
				}
				for n := range a.Nope { // the key's feature n is Σ_r KB[r][n]·c_r
					key := 0.0
					for r, c := range latents[s] {
						key += float64(a.KB[head].F32.Row(r)[n]) * c
					}
					score += q[n] * key
				}
				for j, v := range qr {
					score += v * turned[s][j]
				}
				weights[s] = math.Exp(score * float64(a.Scale))
				sum += weights[s]
			}
			for s, w := range weights {
				for i, v := range a.VB[head].ref(latents[s]) {
					result[head*a.ValueDim+i] += w / sum * v
				}
			}
		}
		out = append(out, a.O.ref(result))
	}
	return out
}

func TestMLA(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 3))
	for i, shape := range [][6]int{{16, 2, 8, 4, 12, 6}, {24, 3, 5, 2, 8, 11}, {10, 1, 16, 8, 16, 16}, {32, 4, 12, 6, 20, 8}} {
		for _, seqLen := range []int{1, 7, 33} {
			dim := shape[0]
			a := &MLA{Heads: shape[1], Nope: shape[2], Rope: shape[3], Rank: shape[4], ValueDim: shape[5], Scale: 0.3}
			a.RoPE = &RoPE{Dims: a.Rope, Base: 100, Scaling: "none", Factor: 1, AttnFactor: 1.25, Style: elementwise.RoPEPairs}
			if wide := a.Heads * (a.Nope + a.Rope); i%2 == 0 {
				a.Q = even(rng, wide, dim)
			} else {
				a.QA, a.QNorm, a.QB = even(rng, 9, dim), norm(rng, 9), even(rng, wide, 9)
			}
			a.KVA, a.KVNorm = even(rng, a.Rank+a.Rope, dim), norm(rng, a.Rank)
			for range a.Heads {
				a.KB, a.VB = append(a.KB, even(rng, a.Rank, a.Nope)), append(a.VB, even(rng, a.ValueDim, a.Rank))
			}
			a.O = even(rng, dim, a.Heads*a.ValueDim)
			checkMixer(t, rng, dim, seqLen, a.Branch, a.ref)
		}
	}
}

// TestHeads: the sites of latent attention's heads see what their linears are applied to.
func TestHeads(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 4))
	const dim, seqLen = 12, 5
	a := &MLA{Heads: 3, Nope: 4, Rope: 2, Rank: 6, ValueDim: 5, Scale: 0.3, Q: even(rng, 18, dim), KVA: even(rng, 8, dim), KVNorm: norm(rng, 6),
		O: even(rng, dim, 15), RoPE: &RoPE{Dims: 2, Base: 100, Scaling: "none", Factor: 1, AttnFactor: 1}}
	for range a.Heads {
		a.KB, a.VB = append(a.KB, even(rng, 6, 4)), append(a.VB, even(rng, 5, 6))
	}
	l := layerOf(dim, dim, func(b *Loader) { b.Residual(Residual{Branch: a.Branch()}) })
	st, x := l.m.NewState(), random(rng, 2*seqLen, dim)
	st.Enter(l.m, x, seqLen)
	var q *tensor.Matrix
	heads := map[string]int{}
	err := l.Run(t.Context(), st, 0, len(l.Stages), func(s *Site, in *tensor.Matrix, tokens []int) error {
		switch s.Name {
		case "attn_k_b":
			if q == nil {
				q = st.In.Clone()
			}
			for i := range in.Rows {
				if at := s.Expert * 6; !slices.Equal(in.Row(i), q.Row(i)[at:at+4]) {
					t.Errorf("head %d: token %d is %v, want %v", s.Expert, i, in.Row(i), q.Row(i)[at:at+4])
				}
			}
		case "attn_v_b":
			for i := range in.Rows {
				if at := s.Expert * 6; !slices.Equal(in.Row(i), st.In.Row(i)[at:at+6]) {
					t.Errorf("head %d: token %d is %v, want %v", s.Expert, i, in.Row(i), st.In.Row(i)[at:at+6])
				}
			}
		default:
			return nil
		}
		if tokens != nil || in.Rows != 2*seqLen {
			t.Errorf("%s of head %d sees %d rows of %v", s.Name, s.Expert, in.Rows, tokens)
		}
		heads[s.Name]++
		return nil
	})
	if err != nil || heads["attn_k_b"] != 3 || heads["attn_v_b"] != 3 {
		t.Errorf("%v, %v", heads, err)
	}
}

// TestClamped: nothing scales through gpt-oss's activation, which is not linear in up.
func TestClamped(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 5))
	for _, act := range []Activation{SiLU, SwiGLUO} {
		mlp := &MLP{Gate: even(rng, 6, 4), Up: even(rng, 6, 4), Down: even(rng, 4, 6), Act: act}
		moe := &MoE{Router: even(rng, 2, 4), Top: 1, Act: act, Gate: []*Linear{mlp.Gate, mlp.Gate}, Up: []*Linear{mlp.Up, mlp.Up},
			Down: []*Linear{mlp.Down, mlp.Down}, Shared: mlp}
		want := act == SiLU
		if got := mlp.Branch().Out.Prev != nil; got != want {
			t.Errorf("activation %d: the MLP's output can be scaled: %v", act, got)
		}
		for _, site := range moe.Branch().Stages[1].Sites {
			if got := site.Prev != nil; got != want {
				t.Errorf("activation %d: %s can be scaled: %v", act, site.Name, got)
			}
		}
	}
}
