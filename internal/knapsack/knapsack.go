// Package knapsack solves the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, Knapsack Problems,
// 2004, chapter 11): one choice of each group, so that the sum of losses is least while the sum of sizes stays within a
// budget.
package knapsack

import (
	"cmp"
	"math"
	"slices"
	"sort"
)

// Choice is one way to store what a group stands for.
type Choice struct {
	Bytes int64
	Loss  float64 // finite and not negative
}

// Solution is the best selection that was found.
type Solution struct {
	Picks []int // of each group, the index of its choice
	Bytes int64
	Loss  float64
	// Bound is what no selection's loss is below: Loss itself where the search was complete, as it is but for instances
	// made to be hard.
	Bound float64
}

// maxStates bounds the partial selections that are kept after each group, and with them time and memory. Tests make it
// smaller.
var maxStates = 1 << 15

// Least returns the least sum of sizes that any selection has.
func Least(groups [][]Choice) int64 {
	var sum int64
	for _, g := range groups {
		sum += slices.MinFunc(g, func(a, b Choice) int { return cmp.Compare(a.Bytes, b.Bytes) }).Bytes
	}
	return sum
}

// Solve returns the best selection, or ok=false if none is within the budget. Each group needs at least one choice. The
// same input gives the same solution.
//
// It is dynamic programming over the groups with lists: partial selections that another one beats in both size and loss
// are dropped, and those that cannot become better than a selection that is known, by the bound of the linear relaxation.
func Solve(groups [][]Choice, budget int64) (s Solution, ok bool) {
	if Least(groups) > budget {
		return Solution{}, false
	}
	p := newProblem(groups)
	s = p.round(budget)
	s.Bound = math.Inf(1)
	dropped := p.search(budget, &s)
	s.Bound = min(s.Loss, dropped)
	return s, true
}

// option is a choice that no other of its group beats in both size and loss.
type option struct {
	Choice
	index int // in the group
}

// step takes a group from one option of its lower convex hull to the next.
type step struct {
	group, to   int // to indexes the group's options
	bytes, gain float64
}

// relaxation is the linear one of the groups from some group on: all at their smallest option, then steps in the order
// of what they gain per byte.
type relaxation struct {
	bytes int64   // of the smallest options
	loss  float64 // of the smallest options
	steps []step
	sums  []step // sums[i] adds up steps[:i]
}

type problem struct {
	options [][]option
	from    []relaxation // from[i] is that of groups i, i+1, ...
}

func newProblem(groups [][]Choice) *problem {
	p := &problem{options: make([][]option, len(groups)), from: make([]relaxation, len(groups)+1)}
	p.from[len(groups)].sums = []step{{}}
	for i := len(groups) - 1; i >= 0; i-- {
		p.options[i] = undominated(groups[i])
		first := p.options[i][0]
		next := &p.from[i+1]
		r := relaxation{bytes: next.bytes + first.Bytes, loss: next.loss + first.Loss}
		r.steps = append(hull(i, p.options[i]), next.steps...)
		// Stable: equal rates stay in the order of groups, and those of a group in that of its hull.
		slices.SortStableFunc(r.steps, func(a, b step) int { return cmp.Compare(b.gain*a.bytes, a.gain*b.bytes) })
		r.sums = make([]step, 1, len(r.steps)+1)
		for _, s := range r.steps {
			last := r.sums[len(r.sums)-1]
			r.sums = append(r.sums, step{bytes: last.bytes + s.bytes, gain: last.gain + s.gain})
		}
		p.from[i] = r
	}
	return p
}

// undominated returns a group's options by rising size and falling loss.
func undominated(g []Choice) []option {
	all := make([]option, len(g))
	for i, c := range g {
		all[i] = option{c, i}
	}
	slices.SortStableFunc(all, func(a, b option) int {
		return cmp.Or(cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.Loss, b.Loss))
	})
	kept := all[:1]
	for _, o := range all[1:] {
		if o.Loss < kept[len(kept)-1].Loss {
			kept = append(kept, o)
		}
	}
	return kept
}

// hull returns the steps along the lower convex hull of a group's options.
func hull(group int, options []option) []step {
	var corners []int
	rate := func(a, b int) float64 { // what going from a to b gains per byte
		return (options[a].Loss - options[b].Loss) / float64(options[b].Bytes-options[a].Bytes)
	}
	for i := range options {
		for n := len(corners); n >= 2 && rate(corners[n-2], corners[n-1]) <= rate(corners[n-1], i); n = len(corners) {
			corners = corners[:n-1]
		}
		corners = append(corners, i)
	}
	var steps []step
	for i, c := range corners[1:] {
		from, to := options[corners[i]], options[c]
		steps = append(steps, step{group, c, float64(to.Bytes - from.Bytes), from.Loss - to.Loss})
	}
	return steps
}

// bound returns the relaxation's loss within a budget: no selection of these groups has less.
func (r *relaxation) bound(budget int64) float64 {
	left := float64(budget - r.bytes)
	if left < 0 {
		return math.Inf(1)
	}
	k := sort.Search(len(r.steps), func(i int) bool { return r.sums[i+1].bytes > left })
	loss := r.loss - r.sums[k].gain
	if k < len(r.steps) {
		loss -= r.steps[k].gain * (left - r.sums[k].bytes) / r.steps[k].bytes
	}
	return loss
}

// round makes a selection of the relaxation: it takes every step that fits, of each group up to the first that does not.
func (p *problem) round(budget int64) Solution {
	at := make([]int, len(p.options))
	stopped := make([]bool, len(p.options))
	left := budget - p.from[0].bytes
	for _, s := range p.from[0].steps {
		if n := int64(s.bytes); !stopped[s.group] && n <= left {
			at[s.group] = s.to
			left -= n
		} else {
			stopped[s.group] = true
		}
	}
	var s Solution
	for i, k := range at {
		s.add(p.options[i][k])
	}
	return s
}

func (s *Solution) add(o option) {
	s.Picks = append(s.Picks, o.index)
	s.Bytes += o.Bytes
	s.Loss += o.Loss
}

// state is a selection of the first groups.
type state struct {
	bytes  int64
	loss   float64
	parent int32 // in the list of one group less
	option int32
}

// search replaces s by the best selection there is, if that is better. It returns the least bound of the states that it
// had to give up for want of room, infinite if there were none.
func (p *problem) search(budget int64, s *Solution) (dropped float64) {
	dropped = math.Inf(1)
	lists := make([][]state, 1, len(p.options)+1)
	lists[0] = []state{{}}
	for i, options := range p.options {
		var all []state
		for k, st := range lists[i] {
			for j, o := range options {
				n := state{st.bytes + o.Bytes, st.loss + o.Loss, int32(k), int32(j)}
				if n.loss+p.from[i+1].bound(budget-n.bytes) < s.Loss {
					all = append(all, n)
				}
			}
		}
		slices.SortStableFunc(all, func(a, b state) int {
			return cmp.Or(cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.loss, b.loss))
		})
		kept := all[:0]
		for _, n := range all {
			if len(kept) == 0 || n.loss < kept[len(kept)-1].loss {
				kept = append(kept, n)
			}
		}
		if len(kept) > maxStates {
			var least float64
			kept, least = p.thin(kept, i+1, budget)
			dropped = min(dropped, least)
		}
		lists = append(lists, slices.Clip(kept))
	}
	// Losses fall along the list, and every state in it is better than s was.
	last := lists[len(p.options)]
	if len(last) == 0 {
		return dropped
	}
	k := int32(len(last) - 1)
	*s = Solution{Picks: make([]int, len(p.options)), Bytes: last[k].bytes, Loss: last[k].loss}
	for i := len(p.options); i > 0; i-- {
		st := lists[i][k]
		s.Picks[i-1] = p.options[i-1][st.option].index
		k = st.parent
	}
	return dropped
}

// thin keeps the maxStates states whose bounds are least, in their order, and returns the least bound of the others.
func (p *problem) thin(states []state, next int, budget int64) (kept []state, least float64) {
	bounds := make([]float64, len(states))
	order := make([]int, len(states))
	for i, st := range states {
		bounds[i], order[i] = st.loss+p.from[next].bound(budget-st.bytes), i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(bounds[a], bounds[b]) })
	least = bounds[order[maxStates]]
	order = order[:maxStates]
	slices.Sort(order)
	for _, i := range order {
		kept = append(kept, states[i])
	}
	return kept, least
}
