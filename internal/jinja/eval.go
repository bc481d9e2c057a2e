package jinja

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

var (
	errBreak    = errors.New("{% break %} outside of a loop")
	errContinue = errors.New("{% continue %} outside of a loop")
)

// enter counts one nested evaluation; leave ends it.
func (r *run) enter() error {
	if r.depth++; r.depth > maxDepth {
		return errors.New("nested too deeply")
	}
	return r.spend(stepCost)
}

func (r *run) leave() { r.depth-- }

// called runs f as one call of a macro.
func (r *run) called(f func() error) error {
	if r.calls++; r.calls > maxCalls {
		return errors.New("macros call each other too deeply")
	}
	defer func() { r.calls-- }()
	return f()
}

func (r *run) eval(x expr, s *scope) (any, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	switch x := x.(type) {
	case *constExpr:
		return x.v, nil
	case *nameExpr:
		return s.get(x.name), nil
	case *tupleExpr:
		items, err := r.all(x.items, s)
		return &tuple{items}, err
	case *listExpr:
		items, err := r.all(x.items, s)
		return &list{items}, err
	case *dictExpr:
		keys, err := r.all(x.keys, s)
		if err != nil {
			return nil, err
		}
		values, err := r.all(x.values, s)
		if err != nil {
			return nil, err
		}
		d := newDict()
		for i, k := range keys {
			h, err := r.hashKey(k)
			if err != nil {
				return nil, err
			}
			d.put(h, k, values[i])
		}
		return d, nil
	case *attrExpr:
		v, err := r.eval(x.x, s)
		if err == nil {
			v, err = r.getattr(v, x.name)
		}
		return v, at(x.line, err)
	case *itemExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		key, err := r.eval(x.key, s)
		if err == nil {
			v, err = r.getitem(v, key)
		}
		return v, at(x.line, err)
	case *sliceExpr:
		v, err := r.slice(x, s)
		return v, at(x.line, err)
	case *callExpr:
		f, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		v, err := r.call(f, a)
		return v, at(x.line, err)
	case *filterExpr:
		v := s.get(blockText)
		if x.x != nil {
			var err error
			if v, err = r.eval(x.x, s); err != nil {
				return nil, err
			}
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		v, err = r.filter(x.name, v, a)
		return v, at(x.line, err)
	case *testExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		ok, err := r.test(x.name, v, a)
		return ok, at(x.line, err)
	case *unaryExpr:
		v, err := r.eval(x.x, s)
		if err == nil {
			v, err = r.unary(x.op, v)
		}
		return v, at(x.line, err)
	case *binaryExpr:
		l, err := r.eval(x.l, s)
		if err != nil {
			return nil, err
		}
		if x.op == "and" && !truth(l) || x.op == "or" && truth(l) {
			return l, nil
		}
		v, err := r.eval(x.r, s)
		if err == nil && x.op != "and" && x.op != "or" {
			v, err = r.binary(x.op, l, v)
		}
		return v, at(x.line, err)
	case *concatExpr:
		items, err := r.all(x.items, s)
		if err != nil {
			return nil, err
		}
		var b strings.Builder
		for _, item := range items {
			text, err := r.str(item)
			if err == nil {
				err = r.write(&b, text)
			}
			if err != nil {
				return nil, at(x.line, err)
			}
		}
		return b.String(), nil
	case *compareExpr:
		l, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		for i, op := range x.ops {
			v, err := r.eval(x.rs[i], s)
			if err != nil {
				return nil, err
			}
			ok, err := r.relation(op, l, v)
			if err != nil || !ok {
				return ok, at(x.line, err)
			}
			l = v
		}
		return true, nil
	case *condExpr:
		test, err := r.eval(x.test, s)
		if err != nil {
			return nil, err
		}
		switch {
		case truth(test):
			return r.eval(x.then, s)
		case x.orelse != nil:
			return r.eval(x.orelse, s)
		}
		return &undefined{fmt.Sprintf("the inline if-expression on line %d evaluated to false and no else section was defined.", x.line)}, nil
	}
	panic(fmt.Sprintf("jinja: expression %T", x))
}

// noAttribute is what an attribute or an item that is not there gives.
func noAttribute(v, key any) *undefined {
	what := fmt.Sprintf("'%s' object", typeName(v))
	if v == nil {
		what = "None"
	}
	if name, ok := text(key); ok {
		if len(name) > 80 {
			name = strings.ToValidUTF8(name[:80], "") + "…"
		}
		return &undefined{fmt.Sprintf("%s has no attribute '%s'", what, name)}
	}
	if n, ok := integer(key); ok {
		return &undefined{fmt.Sprintf("%s has no element %d", what, n)}
	}
	return &undefined{fmt.Sprintf("%s has no such element", what)}
}

// getattr is v.name: Python's attribute, else the item of that name, else undefined.
func (r *run) getattr(v any, name string) (any, error) {
	if a, ok, err := r.attribute(v, name); ok || err != nil {
		return a, err
	}
	if d, ok := v.(*dict); ok {
		if item, ok := d.get(name); ok {
			return item, nil
		}
	}
	return noAttribute(v, name), nil
}

// getitem is v[key]: Python's item, else the attribute of that name, else undefined.
func (r *run) getitem(v, key any) (any, error) {
	i, isInt := integer(key)
	switch v := v.(type) {
	case *undefined:
		return nil, v.fail()
	case *dict:
		h, err := r.hashKey(key)
		if err == nil {
			if item, ok := v.get(h); ok {
				return item, nil
			}
		}
	case *list, *tuple, rangeValue:
		if isInt {
			n, _ := length(v)
			if i < 0 {
				i += int64(n)
			}
			if i < 0 || i >= int64(n) {
				break
			}
			switch v := v.(type) {
			case *list:
				return v.items[i], nil
			case *tuple:
				return v.items[i], nil
			case rangeValue:
				return v.start + i*v.step, nil
			}
		}
	case string, markup:
		if isInt {
			s, _ := text(v)
			if err := r.spend(len(s)); err != nil {
				return nil, err
			}
			if i < 0 {
				i += int64(utf8.RuneCountInString(s))
			}
			if i < 0 {
				break
			}
			for _, c := range s {
				if i == 0 {
					return like(v, string(c)), nil
				}
				i--
			}
		}
	}
	if name, ok := text(key); ok {
		if a, ok, err := r.attribute(v, name); ok || err != nil {
			return a, err
		}
	}
	return noAttribute(v, key), nil
}

// slice is x[start:stop:step].
func (r *run) slice(x *sliceExpr, s *scope) (any, error) {
	v, err := r.eval(x.x, s)
	if err != nil {
		return nil, err
	}
	var bounds [3]*int64
	for i, b := range []expr{x.start, x.stop, x.step} {
		if b == nil {
			continue
		}
		value, err := r.eval(b, s)
		if err != nil {
			return nil, err
		}
		if n, ok := integer(value); ok {
			bounds[i] = &n
		} else if value != nil {
			return nil, fmt.Errorf("slice indices must be integers or None, not %s", typeName(value))
		}
	}
	var items []any
	switch v := v.(type) {
	case *undefined:
		return nil, v.fail()
	case *list:
		items = v.items
	case *tuple:
		items = v.items
	case string, markup:
	case rangeValue:
		return nil, errors.New("slices of a range are not supported")
	default:
		return nil, fmt.Errorf("'%s' object cannot be sliced", typeName(v))
	}
	str, isText := text(v)
	runes := []rune(str)
	n := int64(len(items))
	if isText {
		n = int64(len(runes))
	}
	if err := r.spend(len(str)); err != nil {
		return nil, err
	}
	step := int64(1)
	if bounds[2] != nil {
		step = *bounds[2]
	}
	if step == 0 {
		return nil, errors.New("slice step cannot be zero")
	}
	low, high := int64(0), n // where indices are clamped
	if step < 0 {
		low, high = -1, n-1
	}
	clamp := func(b *int64, missing int64) int64 {
		if b == nil {
			return missing
		}
		i := *b
		if i < 0 {
			i += n
		}
		return min(max(i, low), high)
	}
	start, stop := clamp(bounds[0], low), clamp(bounds[1], high)
	if step < 0 {
		start, stop = clamp(bounds[0], high), clamp(bounds[1], low)
	}
	var picked []any
	var b strings.Builder
	for i := start; step > 0 && i < stop || step < 0 && i > stop; {
		if isText {
			b.WriteRune(runes[i])
		} else {
			picked = append(picked, items[i])
		}
		if step > n || step < -n {
			break
		}
		i += step
	}
	if err := r.spend(b.Len() + valueCost*len(picked)); err != nil {
		return nil, err
	}
	switch v.(type) {
	case *list:
		return &list{picked}, nil
	case *tuple:
		return &tuple{picked}, nil
	}
	return like(v, b.String()), nil
}
