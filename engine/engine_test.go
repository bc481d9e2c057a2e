package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/llmq/llmq/store"
)

// TestAssign: keys are shared out evenly, stay where they are as far as that is even, and leave workers that are gone.
func TestAssign(t *testing.T) {
	var units []Unit
	for i := range 16 {
		units = append(units, Unit{Key: fmt.Sprint(i), Size: 1})
	}
	units = append(units, Unit{})
	var p Places
	count := func(to []string) map[string]int {
		n := map[string]int{}
		for _, w := range to {
			n[w]++
		}
		return n
	}
	one := p.Assign(units, []string{"a"})
	if want := map[string]int{"a": 16, "": 1}; !reflect.DeepEqual(count(one), want) {
		t.Errorf("one worker: %v", count(one))
	}
	three := p.Assign(units, []string{"a", "b", "c"})
	if n := count(three); n["a"] != 6 || n["b"] != 5 || n["c"] != 5 {
		t.Errorf("three workers: %v", n)
	}
	if again := p.Assign(units, []string{"c", "a", "b"}); !slices.Equal(again, three) {
		t.Errorf("keys move from %v to %v though nothing has changed", three, again)
	}
	two := p.Assign(units, []string{"a", "c"})
	for i, w := range two {
		if three[i] != "b" && w != three[i] {
			t.Errorf("unit %d moves from %s to %s though that is alive", i, three[i], w)
		}
	}
	if n := count(two); n["a"] != 8 || n["c"] != 8 {
		t.Errorf("two workers: %v", n)
	}
	if none := p.Assign(units, nil); slices.ContainsFunc(none, func(w string) bool { return w != "" }) {
		t.Errorf("nobody is there: %v", none)
	}
}

// TestAssignParts: parts of a key that nobody has had stay where the key was, as far as that is even, and the key itself goes back there.
func TestAssignParts(t *testing.T) {
	var halves, parts []Unit
	for i := range 16 {
		half := fmt.Sprintf("half%d", i/8)
		halves = append(halves, Unit{Key: half, Size: 1})
		parts = append(parts, Unit{Key: fmt.Sprintf("%s/batch%d", half, i), Size: 1})
	}
	var p Places
	two := p.Assign(halves, []string{"a", "b"})
	moved := 0
	for i, w := range p.Assign(parts, []string{"a", "b", "c"}) {
		if w != two[i] {
			moved++
			if w != "c" {
				t.Errorf("part %d goes from %s to %s", i, two[i], w)
			}
		}
	}
	if moved != 5 { // six, five and five
		t.Errorf("%d parts go to the worker that has come", moved)
	}
	if again := p.Assign(halves, []string{"a", "b"}); !slices.Equal(again, two) {
		t.Errorf("halves go from %v to %v", two, again)
	}
}

// TestAssignHome: parts of about the same size, the larger ones first, stay where they are.
func TestAssignHome(t *testing.T) {
	for _, workers := range [][]string{{"a", "b"}, {"a", "b", "c", "d"}, {"a", "b", "c"}} {
		for _, parts := range []int{8, 16} {
			var p Places
			var was []string
			for range 3 {
				var units []Unit
				for i := range parts {
					key := fmt.Sprintf("half%d/bundle%d", i/(parts/2), i/(parts/4))
					if len(workers) == 2 {
						key = fmt.Sprintf("half%d", i/(parts/2))
					} else if len(workers) == 3 {
						key = fmt.Sprintf("%s/shard%02d", key, i)
					}
					units = append(units, Unit{Name: fmt.Sprint(i), Key: key, Size: int64(7 + i%2)})
				}
				slices.SortStableFunc(units, func(a, b Unit) int { return int(b.Size - a.Size) })
				at := make([]string, parts)
				for i, w := range p.Assign(units, workers) {
					var n int
					fmt.Sscan(units[i].Name, &n)
					at[n] = w
				}
				if was != nil && !slices.Equal(at, was) {
					t.Errorf("%d parts on %v go from %v to %v", parts, workers, was, at)
				}
				was = at
			}
		}
	}
}

// TestAssignSizes: a worker that comes has as much to do as the other, not as many keys.
func TestAssignSizes(t *testing.T) {
	for _, sizes := range [][]int64{{2, 2, 1, 1}, {3, 1, 1, 1}, {1, 1, 2, 2}, {1, 2, 3}, {1, 1, 1, 1}} {
		var units []Unit
		var total int64
		for i, n := range sizes {
			for range n { // of a key are several units
				units = append(units, Unit{Key: fmt.Sprint(i), Size: 10})
				total += 10
			}
		}
		var p Places
		p.Assign(units, []string{"a"})
		load := map[string]int64{}
		for i, w := range p.Assign(units, []string{"a", "b"}) {
			load[w] += units[i].Size
		}
		if 2*load["a"] != total || 2*load["b"] != total {
			t.Errorf("keys of %d units: %v", sizes, load)
		}
	}
}

// echo puts units' specs as their values.
type echo struct {
	values store.Shared
	mu     *sync.Mutex
	done   *[]string
}

func (e echo) Do(_ context.Context, u Unit) (string, error) {
	if string(u.Spec) == `"bad"` {
		return "", errors.New("bad")
	}
	e.mu.Lock()
	*e.done = append(*e.done, u.Name)
	e.mu.Unlock()
	return e.values.Put(u.Name, false, func(w io.Writer) error {
		_, err := w.Write(u.Spec)
		return err
	})
}

func (e echo) Close() error { return nil }

// TestLocal: what is in the store is not done again, the largest come first, and a unit that fails is named.
func TestLocal(t *testing.T) {
	d, err := store.OpenDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var done []string
	l := &Local{Values: d, Make: func(context.Context, []byte) (Worker, error) { return echo{d, new(sync.Mutex), &done}, nil }}
	defer l.Close()
	if err := l.Begin(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	unit := func(name string, size int64) Unit {
		return Unit{Name: name, Spec: []byte(`"` + name + `"`), Size: size}
	}
	if err := l.Do(t.Context(), []Unit{unit("a", 1)}); err != nil {
		t.Fatal(err)
	}
	if err := l.Do(t.Context(), []Unit{unit("a", 1), unit("b", 2), unit("c", 4), unit("d", 3)}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "c", "d", "b"}; !slices.Equal(done, want) {
		t.Errorf("done are %q, want %q", done, want)
	}
	if err := l.Do(t.Context(), []Unit{unit("bad", 1)}); err == nil || err.Error() != "bad: bad" {
		t.Errorf("a unit that fails: %v", err)
	}
}
