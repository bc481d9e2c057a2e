package model

import (
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Gating makes a router's logits into scores.
type Gating int

const (
	GateSoftmax  Gating = iota // over all experts
	GateSigmoid                // each by itself
	GateSelected               // softmax over the logits of those that were chosen
)

// MoE is a mixture of experts (Shazeer et al., arXiv:1701.06538) as llama.cpp's build_moe_ffn computes it: the experts
// with the Top highest selection scores are chosen for each token, and their outputs added with the scores as weights.
type MoE struct {
	Router *Linear
	Top    int
	Gating Gating
	// SelectionBias is added to the scores by which experts are chosen, not to their weights; nil: none.
	SelectionBias []float32
	// Groups: experts are in so many groups, of which the GroupsUsed with the largest sums of their two best selection
	// scores take part. 0 or 1: no groups.
	Groups, GroupsUsed int
	// Normalize: the weights of a token are divided by their sum. Scale multiplies them then; 0: 1.
	Normalize bool
	Scale     float32
	// WeightFirst: the weight multiplies an expert's input instead of its output (Llama 4).
	WeightFirst bool

	// Gate, Up and Down are the experts' linears. GateUp, where not nil, is Gate and Up in one, gate's rows first. Both nil:
	// experts without gates.
	Gate, Up, GateUp, Down []*Linear
	Act                    Activation
	// ExpertScale multiplies an expert's output; nil: 1.
	ExpertScale []float32

	// Shared sees all tokens; nil: none. Its output is multiplied by σ(SharedGate·x) where that is not nil.
	Shared     *MLP
	SharedGate *Linear

	// RouterIn, where not nil, makes the router's input of the residual stream. It is the experts' otherwise.
	RouterIn *RouterInput
}

// RouterInput is the residual stream normalised, times Scale feature by feature and times Factor.
type RouterInput struct {
	Norm   *Norm
	Scale  []float32
	Factor float64
}

// of returns the router's input, in scratch memory.
func (r *RouterInput) of(st *State) *tensor.Matrix {
	y := st.Scratch("router in", st.X.Rows, st.X.Cols)
	r.Norm.apply(y, st.X)
	r.scale(y)
	return y
}

func (r *RouterInput) scale(y *tensor.Matrix) {
	for t := range y.Rows {
		for j, v := range y.Row(t) {
			y.Row(t)[j] = v * float32(r.Factor) * r.Scale[j]
		}
	}
}

// routes is which tokens of a batch reach which expert.
type routes struct {
	tokens  [][]int     // by expert, ascending
	weights [][]float32 // of the same tokens
	first   []int       // by expert: where its tokens begin among those of all experts
	shared  *tensor.Matrix
	in      *tensor.Matrix // of the experts, all tokens
}

// rows is the number of tokens of all experts.
func (r *routes) rows() int {
	n := 0
	for _, t := range r.tokens {
		n += len(t)
	}
	return n
}

// Branch is the mixture with its shared experts.
func (f *MoE) Branch() Branch {
	in, out := Stage{Apply: f.applyIn}, Stage{Apply: f.applyOut}
	var rows []int // of Down's input, the same for all experts
	if len(f.Down) > 0 {
		rows = identity(f.Down[0].In)
	}
	for e, down := range f.Down {
		linears := []*Linear{}
		switch {
		case f.GateUp != nil:
			linears = append(linears, f.GateUp[e])
		case f.Gate != nil:
			linears = append(linears, f.Gate[e], f.Up[e])
		default:
			linears = append(linears, f.Up[e])
		}
		in.Sites = append(in.Sites, &Site{Name: "ffn_exps_in", Expert: e, Linears: linears, Shares: "mlp_in"})
		site := &Site{Name: "ffn_exps_out", Expert: e, Linears: []*Linear{down}}
		if f.Gate != nil && f.Act.linearInUp() {
			site.Prev = &quant.Scaler{Name: f.Up[e].Name, Row: rows}
		}
		out.Sites = append(out.Sites, site)
	}
	if f.Shared != nil {
		linears := []*Linear{f.Shared.Up}
		if f.Shared.Gate != nil {
			linears = []*Linear{f.Shared.Gate, f.Shared.Up}
		}
		in.Sites = append(in.Sites, &Site{Name: "ffn_shexp_in", Expert: -1, Linears: linears, Shares: "mlp_in"})
		site := &Site{Name: "ffn_shexp_out", Expert: -1, Linears: []*Linear{f.Shared.Down}}
		if f.Shared.Gate != nil && f.Shared.Act.linearInUp() {
			site.Prev = &quant.Scaler{Name: f.Shared.Up.Name, Row: identity(f.Shared.Down.In)}
		}
		out.Sites = append(out.Sites, site)
	}
	in.Prepare = f.route
	in.Input = func(st *State, i int) (*tensor.Matrix, []int) {
		if i == len(f.Down) {
			return st.routes.in, nil
		}
		return f.gather(st, i), st.routes.tokens[i]
	}
	out.Input = func(st *State, i int) (*tensor.Matrix, []int) {
		if i == len(f.Down) {
			return st.routes.shared, nil
		}
		return f.part(st, st.In, i), st.routes.tokens[i]
	}
	return Branch{Stages: []Stage{in, out}, Back: f}
}

// route chooses the experts of each token of the batch. st.In, their input, is normalised.
func (f *MoE) route(st *State) {
	h, x := st.In, st.In
	if f.RouterIn != nil {
		x = f.RouterIn.of(st)
	}
	logits := st.Scratch("router", x.Rows, f.Router.Out)
	f.Router.exact(logits, x)
	n := len(f.Down)
	chosen := make([]int, x.Rows*f.Top)
	weights := make([]float32, x.Rows*f.Top)
	kernels.Parallel(x.Rows, 64, func(lo, hi int) {
		s := newSelection(n)
		for t := lo; t < hi; t++ {
			f.choose(s, logits.Row(t), chosen[t*f.Top:(t+1)*f.Top], weights[t*f.Top:(t+1)*f.Top])
		}
	})
	r := &routes{tokens: make([][]int, n), weights: make([][]float32, n), first: make([]int, n), in: h}
	for e := range r.tokens {
		r.tokens[e] = []int{} // where it stays empty: not all tokens, but none
	}
	for i, e := range chosen {
		r.tokens[e] = append(r.tokens[e], i/f.Top)
		r.weights[e] = append(r.weights[e], weights[i])
	}
	at := 0
	for e := range n {
		r.first[e] = at
		at += len(r.tokens[e])
	}
	st.routes = r
}

// selection is scratch space for the choice of a token's experts.
type selection struct {
	p, by  []float64
	order  []int
	groups []int
	best   []float64
}

func newSelection(n int) *selection {
	return &selection{p: make([]float64, n), by: make([]float64, n), order: make([]int, n)}
}

// choose sets chosen and weights for one token's logits.
func (f *MoE) choose(s *selection, logits []float32, chosen []int, weights []float32) {
	switch f.Gating {
	case GateSoftmax:
		softmax(s.p, logits)
	case GateSigmoid:
		for i, v := range logits {
			s.p[i] = 1 / (1 + math.Exp(-float64(v)))
		}
	case GateSelected:
		for i, v := range logits {
			s.p[i] = float64(v)
		}
	}
	copy(s.by, s.p)
	for i, b := range f.SelectionBias {
		s.by[i] += float64(b)
	}
	f.leaveGroups(s)
	for i := range s.order {
		s.order[i] = i
	}
	slices.SortStableFunc(s.order, func(a, b int) int {
		switch {
		case s.by[a] > s.by[b]:
			return -1
		case s.by[a] < s.by[b]:
			return 1
		}
		return 0
	})
	copy(chosen, s.order)
	var sum float64
	if f.Gating == GateSelected {
		largest := s.p[chosen[0]]
		for _, e := range chosen {
			largest = max(largest, s.p[e])
		}
		for _, e := range chosen {
			s.p[e] = math.Exp(s.p[e] - largest)
			sum += s.p[e]
		}
		for _, e := range chosen {
			s.p[e] /= sum
		}
	}
	sum = 0
	for _, e := range chosen {
		sum += s.p[e]
	}
	const least = 6.103515625e-5 // the smallest normal float16: llama.cpp's bound against division by zero
	for i, e := range chosen {
		w := s.p[e]
		if f.Normalize {
			w /= max(sum, least)
		}
		if f.Scale != 0 {
			w *= float64(f.Scale)
		}
		weights[i] = float32(w)
	}
}

// leaveGroups keeps the experts of all but the best groups from being chosen.
func (f *MoE) leaveGroups(s *selection) {
	if f.Groups <= 1 {
		return
	}
	size := len(s.by) / f.Groups
	if s.best == nil {
		s.best, s.groups = make([]float64, f.Groups), make([]int, f.Groups)
	}
	for g := range s.best {
		first, second := math.Inf(-1), math.Inf(-1)
		for _, v := range s.by[g*size : (g+1)*size] {
			if v > first {
				first, second = v, first
			} else if v > second {
				second = v
			}
		}
		s.best[g], s.groups[g] = first+second, g
	}
	slices.SortStableFunc(s.groups, func(a, b int) int {
		switch {
		case s.best[a] > s.best[b]:
			return -1
		case s.best[a] < s.best[b]:
			return 1
		}
		return 0
	})
	for _, g := range s.groups[f.GroupsUsed:] {
		for i := g * size; i < (g+1)*size; i++ {
			s.by[i] = math.Inf(-1)
		}
	}
}

func softmax(p []float64, logits []float32) {
	largest := slices.Max(logits)
	var sum float64
	for i, v := range logits {
		p[i] = math.Exp(float64(v) - float64(largest))
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
}

// gather returns the inputs of expert e.
func (f *MoE) gather(st *State, e int) *tensor.Matrix {
	r := st.routes
	x := st.Scratch("expert in", len(r.tokens[e]), r.in.Cols)
	for i, t := range r.tokens[e] {
		row := x.Row(i)
		copy(row, r.in.Row(t))
		if f.WeightFirst {
			for j := range row {
				row[j] *= r.weights[e][i]
			}
		}
	}
	return x
}

// part returns the rows of x, those of all experts, that are expert e's.
func (f *MoE) part(st *State, x *tensor.Matrix, e int) *tensor.Matrix {
	r := st.routes
	return x.View(r.first[e], r.first[e]+len(r.tokens[e]), 0, x.Cols)
}

// applyIn leaves the inputs of Down, expert after expert, in st.In.
func (f *MoE) applyIn(st *State) {
	r := st.routes
	n := f.Down[0].In
	inner := st.Scratch("experts", r.rows(), n)
	for e := range f.Down {
		if len(r.tokens[e]) == 0 || !st.computes(e) {
			continue
		}
		h, dst := f.gather(st, e), f.part(st, inner, e)
		switch {
		case f.GateUp != nil:
			both := st.apply(h, []string{"expert gate"}, f.GateUp[e])[0]
			f.Act.gated(st.table, dst, both.View(0, both.Rows, 0, n), both.View(0, both.Rows, n, 2*n))
		case f.Gate != nil:
			y := st.apply(h, []string{"expert gate", "expert up"}, f.Gate[e], f.Up[e])
			f.Act.gated(st.table, dst, y[0], y[1])
		default:
			f.Act.plain(st.table, dst, st.apply(h, []string{"expert up"}, f.Up[e])[0])
		}
	}
	if f.Shared != nil {
		r.shared = f.Shared.inner(st, "shared ", r.in)
	}
	st.In = inner
}

// applyOut leaves the mixture's output in st.In. The outputs of a token's experts are added in the experts' order.
func (f *MoE) applyOut(st *State) {
	r := st.routes
	sum := st.Scratch("mixture", r.in.Rows, f.Down[0].Out)
	if f.Shared == nil {
		sum.Zero()
	} else {
		f.Shared.Down.Apply(sum, r.shared, st.precision)
		if f.SharedGate != nil {
			gate := st.Scratch("shared gate", r.in.Rows, 1)
			f.SharedGate.exact(gate, r.in)
			for t := range sum.Rows {
				g := float32(1 / (1 + math.Exp(-float64(gate.Row(t)[0]))))
				for j, v := range sum.Row(t) {
					sum.Row(t)[j] = g * v
				}
			}
		}
	}
	for e, down := range f.Down {
		if len(r.tokens[e]) == 0 {
			continue
		}
		y := st.apply(f.part(st, st.In, e), []string{"expert out"}, down)[0]
		kernels.Parallel(y.Rows, 16, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				w := float32(1)
				if !f.WeightFirst {
					w = r.weights[e][i]
				}
				if f.ExpertScale != nil {
					w *= f.ExpertScale[e]
				}
				vector.Axpy(sum.Row(r.tokens[e][i]), w, y.Row(i))
			}
		})
	}
	st.In = sum
}
