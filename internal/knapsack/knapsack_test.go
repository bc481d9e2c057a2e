package knapsack

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

// bruteForce tries every selection.
func bruteForce(groups [][]Choice, budget int64) (loss float64, ok bool) {
	if len(groups) == 0 {
		return 0, budget >= 0
	}
	loss = math.Inf(1)
	for _, c := range groups[0] {
		if rest, fits := bruteForce(groups[1:], budget-c.Bytes); fits && rest+c.Loss < loss {
			loss, ok = rest+c.Loss, true
		}
	}
	return loss, ok
}

// check holds a solution to its own figures.
func check(t *testing.T, groups [][]Choice, budget int64, s Solution) {
	t.Helper()
	var bytes int64
	var loss float64
	for i, k := range s.Picks {
		bytes += groups[i][k].Bytes
		loss += groups[i][k].Loss
	}
	if len(s.Picks) != len(groups) || bytes != s.Bytes || bytes > budget || math.Abs(loss-s.Loss) > 1e-12*loss || s.Bound > s.Loss {
		t.Fatalf("budget %d: %+v adds up to %d bytes and a loss of %v", budget, s, bytes, loss)
	}
}

// random returns groups like tensors' types, or groups without any order to them.
func random(r *rand.Rand, n int, wild bool) [][]Choice {
	groups := make([][]Choice, n)
	for i := range groups {
		size, effect := int64(r.IntN(50)+1), math.Exp(4*r.Float64())
		for range r.IntN(5) + 1 {
			bits := int64(r.IntN(8) + 1)
			c := Choice{size * bits, effect * math.Exp2(-2*float64(bits)) * (1 + r.Float64())}
			if wild {
				c = Choice{int64(r.IntN(30)), float64(r.IntN(30))}
			}
			groups[i] = append(groups[i], c)
		}
	}
	return groups
}

func TestSolve(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	impossible := 0
	for trial := range 2000 {
		groups := random(r, r.IntN(7), trial%2 == 0)
		budget := int64(r.IntN(400))
		want, possible := bruteForce(groups, budget)
		got, ok := Solve(groups, budget)
		if ok != possible || ok != (Least(groups) <= budget) {
			t.Fatalf("%v within %d: solved %v, possible %v, least %d", groups, budget, ok, possible, Least(groups))
		}
		if !ok {
			impossible++
			continue
		}
		check(t, groups, budget, got)
		if math.Abs(got.Loss-want) > 1e-12*want || got.Bound != got.Loss {
			t.Fatalf("%v within %d: %+v, the least loss is %v", groups, budget, got, want)
		}
		if again, _ := Solve(groups, budget); !reflect.DeepEqual(again, got) {
			t.Fatalf("%v within %d: %+v, then %+v", groups, budget, got, again)
		}
	}
	if impossible == 0 || impossible > 1000 {
		t.Errorf("%d of 2000 budgets are impossible", impossible)
	}
}

// TestBound takes room away from the search: its selection may be worse then, and the bound says by how much at most.
func TestBound(t *testing.T) {
	defer func(n int) { maxStates = n }(maxStates)
	r := rand.New(rand.NewPCG(3, 4))
	worse, open := 0, 0
	for range 200 {
		groups := random(r, 12, true)
		budget := Least(groups) + int64(r.IntN(80))
		maxStates = 1 << 15
		best, _ := Solve(groups, budget)
		maxStates = 2
		got, ok := Solve(groups, budget)
		if !ok {
			t.Fatal("a budget that can be met was not")
		}
		check(t, groups, budget, got)
		if got.Bound > best.Loss || got.Loss < best.Loss {
			t.Fatalf("%v within %d: %+v, the least loss is %v", groups, budget, got, best.Loss)
		}
		if got.Loss > best.Loss {
			worse++
		}
		if got.Bound < got.Loss {
			open++
		}
	}
	if worse == 0 || open == 0 {
		t.Errorf("of 200 searches %d were worse and %d have a gap: the limit was not felt", worse, open)
	}
}

// TestLarge is a model of 80 layers with 12 types to choose from.
func TestLarge(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	bits := []float64{2.625, 3.4375, 4.25, 4.5, 4.5, 4.5, 5, 5.5, 5.5, 6, 6.5625, 8.5, 16}
	var groups [][]Choice
	var elements int64
	for i := range 80 * 7 {
		n := []int64{1 << 24, 1 << 22, 1 << 22, 1 << 24, 3 << 23, 3 << 23, 3 << 23}[i%7]
		elements += n
		var g []Choice
		effect := math.Exp(3*r.NormFloat64()) * 1e-3
		for _, b := range bits {
			g = append(g, Choice{int64(float64(n) * b / 8), effect * math.Exp2(-2*b) * (1 + 0.2*r.Float64())})
		}
		groups = append(groups, g)
	}
	for _, bpw := range []float64{2.7, 3.5, 4.83, 6} {
		budget := int64(bpw * float64(elements) / 8)
		s, ok := Solve(groups, budget)
		if !ok {
			t.Fatalf("%v bits per weight: no solution", bpw)
		}
		check(t, groups, budget, s)
		t.Logf("%v bits per weight: loss %.6g, bound %.6g, %d bytes left", bpw, s.Loss, s.Bound, budget-s.Bytes)
		if s.Bound < s.Loss*(1-1e-4) {
			t.Errorf("%v bits per weight: loss %v, bound %v", bpw, s.Loss, s.Bound)
		}
	}
}
