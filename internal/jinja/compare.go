package jinja

import (
	"errors"
	"fmt"
	"strings"
)

// equal is Python's ==.
func (r *run) equal(a, b any, depth int) (bool, error) {
	if err := r.spend(stepCost); err != nil {
		return false, err
	}
	if depth > maxNesting {
		return false, errors.New("values nested too deeply to compare")
	}
	all := func(a, b []any) (bool, error) {
		if len(a) != len(b) {
			return false, nil
		}
		for i := range a {
			if same, err := r.equal(a[i], b[i], depth+1); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	}
	if s, ok := text(a); ok {
		t, ok := text(b)
		return ok && s == t, r.spend(min(len(s), len(t)))
	}
	if f, n, whole, ok := number(a); ok {
		g, m, whole2, ok := number(b)
		if whole && whole2 {
			return ok && n == m, nil
		}
		return ok && f == g, nil
	}
	switch a := a.(type) {
	case *list:
		b, ok := b.(*list)
		if !ok {
			return false, nil
		}
		return all(a.items, b.items)
	case *tuple:
		b, ok := b.(*tuple)
		if !ok {
			return false, nil
		}
		return all(a.items, b.items)
	case *dict:
		b, ok := b.(*dict)
		if !ok || len(a.keys) != len(b.keys) {
			return false, nil
		}
		for i, k := range a.keys {
			h, err := r.hashKey(k)
			if err != nil {
				return false, err
			}
			v, ok := b.get(h)
			if !ok {
				return false, nil
			}
			if same, err := r.equal(a.values[i], v, depth+1); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case *undefined:
		_, ok := b.(*undefined)
		return ok, nil
	case rangeValue:
		b, ok := b.(rangeValue)
		return ok && a.n == b.n && (a.n == 0 || a.start == b.start && (a.n == 1 || a.step == b.step)), nil
	case *view:
		return false, fmt.Errorf("comparing %s is not supported", typeName(a))
	}
	return a == b, nil
}

// compare orders two values as Python's < does: -1, 0 or 1. unordered is a NaN.
func (r *run) compare(a, b any, depth int) (order int, unordered bool, err error) {
	if err := r.spend(stepCost); err != nil {
		return 0, false, err
	}
	s, ok1 := text(a)
	t, ok2 := text(b)
	if ok1 && ok2 {
		return strings.Compare(s, t), false, r.spend(min(len(s), len(t)))
	}
	f, n, whole1, ok1 := number(a)
	g, m, whole2, ok2 := number(b)
	switch {
	case ok1 && ok2 && whole1 && whole2:
		f, g = 0, 0
		if n < m {
			f = -1
		} else if n > m {
			f = 1
		}
		fallthrough
	case ok1 && ok2:
		if f != f || g != g {
			return 0, true, nil
		}
		if f < g {
			return -1, false, nil
		} else if f > g {
			return 1, false, nil
		}
		return 0, false, nil
	}
	var x, y []any
	sequences := false
	switch a := a.(type) {
	case *list:
		if b, ok := b.(*list); ok {
			x, y, sequences = a.items, b.items, true
		}
	case *tuple:
		if b, ok := b.(*tuple); ok {
			x, y, sequences = a.items, b.items, true
		}
	case *undefined:
		return 0, false, a.fail()
	}
	if u, ok := b.(*undefined); ok {
		return 0, false, u.fail()
	}
	if !sequences || depth > maxNesting {
		return 0, false, fmt.Errorf("'<' not supported between instances of '%s' and '%s'", typeName(a), typeName(b))
	}
	for i := range min(len(x), len(y)) {
		if same, err := r.equal(x[i], y[i], depth+1); err != nil {
			return 0, false, err
		} else if !same {
			return r.compare(x[i], y[i], depth+1)
		}
	}
	return len(x) - len(y), false, nil
}
