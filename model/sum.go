package model

import (
	"fmt"

	"github.com/llmq/llmq/tensor"
)

// Sum is Σ Post(branch(Pre(x))) of the residual stream x over several branches: what has a norm of its own around it
// before it is added to x. The parts' Scale and LayerScale have no effect, and none of their branches may narrow.
type Sum []Residual

// Branch is the sum. It looks at the residual stream, not at its normalised input.
func (s Sum) Branch() Branch {
	var stages []Stage
	var parts sumParts
	for _, r := range s {
		parts = append(parts, newPart(r))
	}
	for i, part := range s {
		own := part.Branch.Stages
		if site := part.Branch.Out; site != nil {
			own = append(own, Stage{Sites: []*Site{site}, Carries: part.Branch.Costly, Apply: func(st *State) {
				st.In = st.apply(st.In, []string{"branch"}, site.Linears[0])[0]
			}})
		}
		for k := range own {
			own[k].Inside = i > 0 // the sum so far is wanted behind it
		}
		first, last := &own[0], &own[len(own)-1]
		first.Prepare = prepared(first.Prepare, func(st *State) { st.In = normed(st, fmt.Sprint("sum norm ", i), part.Pre) })
		absorb(first, part.Pre)
		apply := last.Apply
		last.Apply = func(st *State) {
			apply(st)
			s.collect(st, i)
		}
		stages = append(stages, own...)
	}
	return Branch{Stages: stages, Back: parts}
}

// sumParts are a Sum's branches, each with the stages that it has by itself.
type sumParts []part

// back is a derivative: dy is the gradient at the sum.
func (s sumParts) back(st *State, d *Differential, _, dy, dh *tensor.Matrix) {
	dy = dy.Clone() // parts use the scratch memory that it is in
	sum := dh.Clone()
	for i := range s {
		s[i].back(st, d, sum, dy)
	}
	copyTo(dh, 0, sum)
}

// collect adds part i's output, which is in st.In, to those before it.
func (s Sum) collect(st *State, i int) {
	y := st.In
	sum := st.Scratch("sum", y.Rows, y.Cols)
	byRows(y.Rows, func(lo, hi int) {
		part, all := y.View(lo, hi, 0, y.Cols), sum.View(lo, hi, 0, y.Cols)
		if s[i].Post != nil {
			s[i].Post.rows(part, part)
		}
		for t := range part.Rows {
			row := all.Row(t)
			if i == 0 {
				copy(row, part.Row(t))
				continue
			}
			for j, v := range part.Row(t) {
				row[j] += v
			}
		}
	})
	st.In = sum
}
