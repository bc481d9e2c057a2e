package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

func (r *run) unary(op string, v any) (any, error) {
	if op == "not" {
		return !truth(v), nil
	}
	if u, ok := v.(*undefined); ok {
		return nil, u.fail()
	}
	f, n, whole, ok := number(v)
	switch {
	case !ok:
		return nil, fmt.Errorf("bad operand type for unary %s: '%s'", op, typeName(v))
	case whole && op == "-":
		if n == math.MinInt64 {
			return nil, errOverflow
		}
		return -n, nil
	case whole:
		return n, nil
	case op == "-":
		return -f, nil
	}
	return f, nil
}

// relation is one comparison.
func (r *run) relation(op string, a, b any) (bool, error) {
	switch op {
	case "==":
		return r.equal(a, b, 0)
	case "!=":
		same, err := r.equal(a, b, 0)
		return !same, err
	case "in":
		return r.contains(b, a)
	case "not in":
		in, err := r.contains(b, a)
		return !in, err
	}
	order, unordered, err := r.compare(a, b, 0)
	if err != nil || unordered {
		return false, err
	}
	switch op {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	}
	return order >= 0, nil
}

// contains is v in container.
func (r *run) contains(container, v any) (bool, error) {
	switch c := container.(type) {
	case string, markup:
		s, _ := text(c)
		sub, ok := text(v)
		if !ok {
			return false, fmt.Errorf("'in <string>' requires string as left operand, not %s", typeName(v))
		}
		return strings.Contains(s, sub), r.spend(len(s))
	case *dict:
		h, err := r.hashKey(v)
		if err != nil {
			return false, err
		}
		_, ok := c.get(h)
		return ok, nil
	case nil, bool, int64, bigInt, float64, *function, *macro, *namespace:
		return false, fmt.Errorf("argument of type '%s' is not iterable", typeName(c))
	}
	items, err := r.items(container)
	if err != nil {
		return false, err
	}
	for _, item := range items {
		if same, err := r.equal(item, v, 0); err != nil || same {
			return same, err
		}
	}
	return false, nil
}

var errOverflow = errors.New("an integer beyond 64 bits")

// binary is an arithmetic operation.
func (r *run) binary(op string, a, b any) (any, error) {
	for _, v := range []any{a, b} {
		if u, ok := v.(*undefined); ok {
			if s, isText := text(a); isText && op == "%" {
				return r.printf(s, b)
			}
			return nil, u.fail()
		}
	}
	unsupported := fmt.Errorf("unsupported operand type(s) for %s: '%s' and '%s'", op, typeName(a), typeName(b))
	f, n, whole1, ok1 := number(a)
	g, m, whole2, ok2 := number(b)
	if ok1 && ok2 {
		if whole1 && whole2 {
			return intOp(op, n, m)
		}
		return floatOp(op, f, g)
	}
	s, isText1 := text(a)
	t, isText2 := text(b)
	switch op {
	case "+":
		if isText1 && isText2 {
			_, m1 := a.(markup)
			_, m2 := b.(markup)
			if err := r.spend(len(s) + len(t)); err != nil {
				return nil, err
			}
			switch {
			case m1 && !m2:
				return markup(s + escape(t)), nil
			case m2 && !m1:
				return markup(escape(s) + t), nil
			}
			return like(a, s+t), nil
		}
		var x, y []any
		switch a := a.(type) {
		case *list:
			b, ok := b.(*list)
			if !ok {
				return nil, unsupported
			}
			x, y = a.items, b.items
		case *tuple:
			b, ok := b.(*tuple)
			if !ok {
				return nil, unsupported
			}
			x, y = a.items, b.items
		default:
			return nil, unsupported
		}
		if err := r.spend(valueCost * (len(x) + len(y))); err != nil {
			return nil, err
		}
		items := slices.Concat(x, y)
		if _, ok := a.(*tuple); ok {
			return &tuple{items}, nil
		}
		return &list{items}, nil
	case "*":
		times, ok := integer(b)
		v := a
		if !ok {
			if times, ok = integer(a); !ok {
				return nil, unsupported
			}
			v = b
		}
		times = max(times, 0)
		var items []any
		switch v := v.(type) {
		case string, markup:
			s, _ := text(v)
			if len(s) > 0 && times > int64(r.left/len(s)) {
				return nil, r.spend(r.left + 1)
			}
			if len(s) == 0 {
				return v, nil
			}
			return like(v, strings.Repeat(s, int(times))), r.spend(len(s) * int(times))
		case *list:
			items = v.items
		case *tuple:
			items = v.items
		default:
			return nil, unsupported
		}
		if len(items) > 0 {
			if times > int64(r.left/(valueCost*len(items))) {
				return nil, r.spend(r.left + 1)
			}
			items = slices.Repeat(items, int(times))
		}
		err := r.spend(valueCost * len(items))
		if _, ok := v.(*tuple); ok {
			return &tuple{items}, err
		}
		return &list{items}, err
	case "%":
		if _, ok := a.(markup); ok {
			return nil, errors.New("% of a safe string is not supported")
		}
		if isText1 {
			return r.printf(s, b)
		}
	}
	return nil, unsupported
}

func intOp(op string, a, b int64) (any, error) {
	switch op {
	case "+":
		if c := a + b; (c > a) == (b > 0) {
			return c, nil
		}
	case "-":
		if c := a - b; (c < a) == (b > 0) {
			return c, nil
		}
	case "*":
		if a == 0 || b == 0 {
			return int64(0), nil
		}
		if c := a * b; c/b == a && !(a == -1 && b == math.MinInt64) && !(b == -1 && a == math.MinInt64) {
			return c, nil
		}
	case "/":
		return floatOp(op, float64(a), float64(b))
	case "//", "%":
		if b == 0 {
			return nil, errors.New("integer division or modulo by zero")
		}
		if a == math.MinInt64 && b == -1 {
			break
		}
		q, m := a/b, a%b
		if m != 0 && (m < 0) != (b < 0) {
			q, m = q-1, m+b
		}
		if op == "%" {
			return m, nil
		}
		return q, nil
	case "**":
		if b < 0 {
			return floatOp(op, float64(a), float64(b))
		}
		result := int64(1)
		for range min(b, 64) {
			v, err := intOp("*", result, a)
			if err != nil {
				return nil, err
			}
			result = v.(int64)
		}
		if b > 64 && a < 0 && b%2 != 0 {
			result *= a // what is left after 64 factors without an overflow is 0, 1 or -1
		}
		return result, nil
	}
	return nil, errOverflow
}

func floatOp(op string, a, b float64) (any, error) {
	switch op {
	case "+":
		return a + b, nil
	case "-":
		return a - b, nil
	case "*":
		return a * b, nil
	case "**":
		f := math.Pow(a, b)
		if math.IsInf(f, 0) && !math.IsInf(a, 0) && !math.IsInf(b, 0) || math.IsNaN(f) && a == a && b == b {
			return nil, errors.New("a power out of range")
		}
		return f, nil
	}
	if b == 0 {
		return nil, errors.New("division by zero")
	}
	if op == "/" {
		return a / b, nil
	}
	m := math.Mod(a, b)
	if m != 0 && (m < 0) != (b < 0) {
		m += b
	}
	if op == "%" {
		return m, nil
	}
	return math.Floor((a - m) / b), nil
}
