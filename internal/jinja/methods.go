package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// mutators are methods that would change a value, which the immutable sandbox refuses.
var mutators = map[string][]string{
	"list": {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"},
	"dict": {"clear", "pop", "popitem", "setdefault", "update"},
}

// attribute is Python's getattr(v, name), as far as the sandbox gives it.
func (r *run) attribute(v any, name string) (any, bool, error) {
	if u, ok := v.(*undefined); ok {
		return nil, false, u.fail()
	}
	if strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") {
		return &undefined{fmt.Sprintf("access to attribute '%s' of '%s' object is unsafe", name, typeName(v))}, true, nil
	}
	if slices.Contains(mutators[typeName(v)], name) {
		return &function{name, func(*run, *arguments) (any, error) {
			return nil, fmt.Errorf("access to attribute '%s' of '%s' object is unsafe: a template cannot change values", name, typeName(v))
		}}, true, nil
	}
	method := func(params []string, call func(a []any) (any, error)) (any, bool, error) {
		return &function{name, func(_ *run, a *arguments) (any, error) {
			bound, err := a.bind(params...)
			if err != nil {
				return nil, err
			}
			return call(bound)
		}}, true, nil
	}
	switch v := v.(type) {
	case string, markup:
		s, _ := text(v)
		if name == "format" {
			return &function{name, func(r *run, a *arguments) (any, error) {
				if _, ok := v.(markup); ok {
					return nil, errors.New("format of a safe string is not supported")
				}
				return r.format(s, a)
			}}, true, nil
		}
		m, ok := stringMethods[name]
		if !ok {
			return nil, false, nil
		}
		return method(m.params, func(a []any) (any, error) {
			if err := r.spend(len(s)); err != nil {
				return nil, err
			}
			if _, ok := v.(markup); ok && (name == "replace" || name == "join") {
				return nil, fmt.Errorf("%s of a safe string is not supported", name)
			}
			out, err := m.call(r, s, a)
			if err != nil {
				return nil, err
			}
			return likeAll(v, out), nil
		})
	case *dict:
		switch name {
		case "keys", "values", "items":
			return method(nil, func([]any) (any, error) { return &view{name, v}, nil })
		case "copy":
			return method(nil, func([]any) (any, error) { return v, nil })
		case "get":
			return method([]string{"key", "default?"}, func(a []any) (any, error) {
				h, err := r.hashKey(a[0])
				if err != nil {
					return nil, err
				}
				if item, ok := v.get(h); ok {
					return item, nil
				}
				if a[1] == any(missing) {
					return nil, nil
				}
				return a[1], nil
			})
		case "fromkeys":
			return nil, false, errors.New("dict.fromkeys is not supported")
		}
	case *list, *tuple:
		switch name {
		case "index":
			return method([]string{"value"}, func(a []any) (any, error) {
				items, err := r.items(v)
				if err != nil {
					return nil, err
				}
				for i, item := range items {
					if same, err := r.equal(item, a[0], 0); err != nil || same {
						return int64(i), err
					}
				}
				return nil, errors.New("the value is not in the list")
			})
		case "count":
			return method([]string{"value"}, func(a []any) (any, error) {
				items, err := r.items(v)
				n := int64(0)
				for _, item := range items {
					same, err := r.equal(item, a[0], 0)
					if err != nil {
						return nil, err
					}
					if same {
						n++
					}
				}
				return n, err
			})
		case "copy":
			if _, ok := v.(*list); ok {
				return method(nil, func([]any) (any, error) { return v, nil })
			}
		}
	case *namespace:
		item, ok := v.d.get(name)
		return item, ok, nil
	case *loop:
		return v.attr(r, name)
	case rangeValue:
		switch name {
		case "start":
			return v.start, true, nil
		case "stop":
			return v.stop, true, nil
		case "step":
			return v.step, true, nil
		}
	case *macro:
		if name == "name" {
			return v.name, true, nil
		}
	case int64, float64, bool:
		if slices.Contains([]string{"real", "imag", "numerator", "denominator", "conjugate", "bit_length", "bit_count", "is_integer", "hex", "to_bytes", "as_integer_ratio"}, name) {
			return nil, false, fmt.Errorf("%s.%s is not supported", typeName(v), name)
		}
	}
	return nil, false, nil
}

// likeAll gives the strings in a method's result the type that the string v has.
func likeAll(v, out any) any {
	switch out := out.(type) {
	case string:
		return like(v, out)
	case *list:
		for i, item := range out.items {
			out.items[i] = likeAll(v, item)
		}
	case *tuple:
		for i, item := range out.items {
			out.items[i] = likeAll(v, item)
		}
	}
	return out
}
