package model

import (
	"fmt"

	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Branch is what a residual connection goes around: stages that take a normalised input, st.In, to an output.
type Branch struct {
	// Stages take st.In from one to the next.
	Stages []Stage
	// Out, where not nil, is the linear that makes the output of what the last stage has left in st.In. Where it is nil
	// the last stage leaves the output itself.
	Out *Site
	// Costly says that Out's input is expensive to compute.
	Costly bool
	// Back is the branch's derivative; nil: there is none.
	Back derivative
	// Narrows says that the branch may leave the output of State.last tokens alone, having narrowed st.X.
	Narrows bool
}

// derivative is what a branch is made of, as it goes backward.
type derivative interface {
	// back takes dy, the gradient at the input of Out, or at the output where there is no Out, to that at the branch's input h,
	// and adds it to dh. st.X is the residual stream from which the branch starts.
	back(st *State, d *Differential, h, dy, dh *tensor.Matrix)
}

// Residual is x = LayerScale·(x + Scale·Post(branch(Pre(x)))).
type Residual struct {
	Pre, Post  *Norm   // nil: none
	Scale      float32 // 0: 1
	Branch     Branch
	LayerScale *LayerScale // nil: none
}

// LayerScale is a factor of the residual stream that a tensor of one element has; none if the tensor is not there.
type LayerScale struct{ V []float32 }

// plain says that the branch's output is added as it is, and that is all.
func (r *Residual) plain() bool {
	return r.Post == nil && r.LayerScale == nil && (r.Scale == 0 || r.Scale == 1)
}

// finish adds the branch's output y, which it may overwrite, to st.X.
func (r *Residual) finish(st *State, y *tensor.Matrix) {
	if r.Post != nil {
		r.Post.apply(y, y)
	}
	scale := r.Scale
	if scale == 0 {
		scale = 1
	}
	byRows(y.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			x := st.X.Row(t)
			vector.Axpy(x, scale, y.Row(t))
			if r.LayerScale != nil && r.LayerScale.V != nil {
				f := r.LayerScale.V[0]
				for j := range x {
					x[j] *= f
				}
			}
		}
	})
}

// out is the stage of the branch's Out.
func (r Residual) out() Stage {
	site := r.Branch.Out
	return Stage{Sites: []*Site{site}, Carries: r.Branch.Costly, Adds: r.plain(), Apply: func(st *State) {
		if r.plain() {
			st.add(st.X, site.Linears[0], st.In)
			return
		}
		r.finish(st, st.apply(st.In, []string{"branch"}, site.Linears[0])[0])
	}}
}

// stages are the branch's, and what adds its output to st.X.
func (r Residual) stages() []Stage {
	stages := r.Branch.Stages
	if r.Branch.Out != nil {
		return append(stages, r.out())
	}
	last := &stages[len(stages)-1]
	apply := last.Apply
	last.Apply = func(st *State) {
		apply(st)
		r.finish(st, st.In)
	}
	return stages
}

// Residual adds a residual connection to the layer.
func (b *Loader) Residual(r Residual) {
	at, own := len(b.layer.Stages), newPart(r)
	stages := r.stages()
	b.layer.spans = append(b.layer.spans, span{[]part{own}, at, at + len(stages)})
	first := &stages[0]
	first.Begins = true
	first.Prepare = prepared(first.Prepare, func(st *State) { st.In = normed(st, "norm", r.Pre) })
	absorb(first, r.Pre)
	b.layer.narrows = b.layer.narrows || r.Branch.Narrows
	b.layer.Stages = append(b.layer.Stages, stages...)
}

// Parallel adds residual connections around branches that all start from the same x: x += Σ branch(Pre(x)). Branches
// with the same norm, given as the same pointer next to each other, share their first site. No attention among them may
// narrow.
func (b *Loader) Parallel(rs ...Residual) {
	var tails []Stage
	around := span{from: len(b.layer.Stages)}
	for _, r := range rs {
		around.parts = append(around.parts, newPart(r))
	}
	for i := 0; i < len(rs); {
		j := i + 1
		for j < len(rs) && rs[j].Pre == rs[i].Pre {
			j++
		}
		group, name := rs[i:j], fmt.Sprintf("norm%d", i)
		site := *group[0].Branch.Stages[0].Sites[0]
		site.Linears, site.Prev = nil, nil
		var firsts []Stage
		for _, r := range group {
			firsts = append(firsts, r.Branch.Stages[0])
			site.Linears = append(site.Linears, r.Branch.Stages[0].Sites[0].Linears...)
		}
		head := Stage{
			Sites: []*Site{&site}, Begins: i == 0, Inside: i > 0,
			Prepare: func(st *State) { st.In = normed(st, name, group[0].Pre) },
			Apply: func(st *State) {
				in := st.In
				for k := range firsts {
					st.In = in
					firsts[k].Apply(st)
					st.kept[fmt.Sprint(name, k)] = st.In
				}
			},
		}
		absorb(&head, group[0].Pre)
		b.layer.Stages = append(b.layer.Stages, head)
		for k, r := range group {
			r.Branch.Stages = r.Branch.Stages[1:]
			rest := r.stages()
			for i := range rest {
				rest[i].Inside = true
			}
			rest[0].Prepare = prepared(rest[0].Prepare, func(st *State) { st.In = st.kept[fmt.Sprint(name, k)] })
			tails = append(tails, rest...)
		}
		i = j
	}
	b.layer.Stages = append(b.layer.Stages, tails...)
	around.to = len(b.layer.Stages)
	b.layer.spans = append(b.layer.spans, around)
}

// prepared runs two preparations one after the other; the second may be nil.
func prepared(second, first func(st *State)) func(st *State) {
	if second == nil {
		return first
	}
	return func(st *State) {
		first(st)
		second(st)
	}
}

// absorb makes a norm what scalings of the stage's one site go to.
func absorb(s *Stage, n *Norm) {
	if n == nil || n.Name == "" || n.B != nil || len(s.Sites) != 1 || s.Sites[0].Prev != nil {
		return
	}
	s.Sites[0].Prev = &quant.Scaler{Name: n.Name, Norm: n.W}
}

// normed returns st.X normalised, in scratch memory; without a norm st.X itself.
func normed(st *State, name string, n *Norm) *tensor.Matrix {
	if n == nil {
		return st.X
	}
	h := st.Scratch(name, st.X.Rows, st.X.Cols)
	n.apply(h, st.X)
	return h
}
