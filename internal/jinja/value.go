package jinja

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Values are Python's: nil (None), bool, int64, bigInt, float64, string and the types below. None of them changes once it
// is made but a namespace and what is consumed by iterating (generators), so they may be shared.
type (
	// bigInt is an integer beyond 64 bits, in digits. It can be written and compared for equality.
	bigInt string
	// markup is a string that escaped or safe has marked, as markupsafe.Markup.
	markup string
	list   struct{ items []any }
	tuple  struct{ items []any }
	// dict keeps its keys in the order in which they came.
	dict struct {
		keys, values []any
		index        map[any]int // by hashKey
	}
	// view is what a dict's keys, values and items are; kind is one of those.
	view struct {
		kind string
		d    *dict
	}
	// generator gives each item once; name is what Python calls it.
	generator struct {
		name  string
		items []any
	}
	rangeValue struct{ start, stop, step, n int64 }
	namespace  struct{ d *dict }
	// undefined stands for what is not there; message says what.
	undefined struct{ message string }
	// function is a callable that is not a macro.
	function struct {
		name string
		call func(r *run, a *arguments) (any, error)
	}
)

func newDict() *dict { return &dict{index: map[any]int{}} }

// get returns the value of a key of the sort hashKey makes.
func (d *dict) get(key any) (any, bool) {
	i, ok := d.index[key]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

func (d *dict) put(hash, key, v any) {
	if i, ok := d.index[hash]; ok {
		d.values[i] = v
		return
	}
	d.index[hash] = len(d.keys)
	d.keys = append(d.keys, key)
	d.values = append(d.values, v)
}

// compositeKey is the key of a tuple.
type compositeKey string

// hashKey is what a value is found by in a dict: equal values have equal keys.
func (r *run) hashKey(v any) (any, error) {
	switch v := v.(type) {
	case nil, int64, bigInt, string, rangeValue:
		return v, nil
	case bool:
		n, _ := integer(v)
		return n, nil
	case float64:
		if n := int64(v); float64(n) == v && math.Abs(v) < 1<<62 {
			return n, nil
		}
		return v, nil
	case markup:
		return string(v), nil
	case *tuple:
		var b strings.Builder
		for _, item := range v.items {
			k, err := r.hashKey(item)
			if err != nil {
				return nil, err
			}
			s := fmt.Sprintf("%T:%v", k, k)
			if err := r.spend(len(s)); err != nil {
				return nil, err
			}
			fmt.Fprintf(&b, "%d:%s;", len(s), s)
		}
		return compositeKey(b.String()), nil
	case *function, *macro, *namespace, *undefined, *loop:
		return v, nil
	}
	return nil, fmt.Errorf("unhashable type: '%s'", typeName(v))
}

// typeName is Python's name of a value's type.
func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, bigInt:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case markup:
		return "Markup"
	case *list:
		return "list"
	case *tuple:
		return "tuple"
	case *dict:
		return "dict"
	case *view:
		return "dict_" + v.kind
	case *generator:
		return v.name
	case rangeValue:
		return "range"
	case *namespace:
		return "Namespace"
	case *undefined:
		return "Undefined"
	case *function:
		return "function"
	case *macro:
		return "Macro"
	case *loop:
		return "LoopContext"
	}
	return fmt.Sprintf("%T", v)
}

// fail is the error of an undefined value.
func (u *undefined) fail() error { return errors.New(u.message) }

// text returns a str's text.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case markup:
		return string(v), true
	}
	return "", false
}

// integer returns an int's or a bool's number.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// number returns an int's, a bool's or a float's number; whole is whether it is an integer.
func number(v any) (f float64, n int64, whole, ok bool) {
	if n, ok := integer(v); ok {
		return float64(n), n, true, true
	}
	f, ok = v.(float64)
	return f, 0, false, ok
}

// truth is Python's bool().
func truth(v any) bool {
	switch v := v.(type) {
	case nil, *undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case rangeValue:
		return v.n != 0
	}
	if n, err := length(v); err == nil {
		return n != 0
	}
	return true
}

// length is Python's len().
func length(v any) (int, error) {
	switch v := v.(type) {
	case string:
		return utf8.RuneCountInString(v), nil
	case markup:
		return utf8.RuneCountInString(string(v)), nil
	case *list:
		return len(v.items), nil
	case *tuple:
		return len(v.items), nil
	case *dict:
		return len(v.keys), nil
	case *view:
		return len(v.d.keys), nil
	case rangeValue:
		return int(v.n), nil
	case *undefined:
		return 0, nil
	case *loop:
		return v.length()
	}
	return 0, fmt.Errorf("object of type '%s' has no len()", typeName(v))
}

// items returns what iterating over a value gives, and consumes a generator.
func (r *run) items(v any) ([]any, error) {
	var out []any
	switch v := v.(type) {
	case *list:
		out = v.items
	case *tuple:
		out = v.items
	case *dict:
		out = v.keys
	case *generator:
		out, v.items = v.items, nil
	case *undefined:
	case *view:
		switch v.kind {
		case "keys":
			out = v.d.keys
		case "values":
			out = v.d.values
		default:
			for i, k := range v.d.keys {
				out = append(out, &tuple{[]any{k, v.d.values[i]}})
			}
		}
	case rangeValue:
		for i := range v.n {
			out = append(out, v.start+i*v.step)
		}
	case string, markup:
		s, _ := text(v)
		if err := r.spend(valueCost * len(s)); err != nil {
			return nil, err
		}
		for _, c := range s {
			out = append(out, like(v, string(c)))
		}
	case *loop:
		for {
			ok, err := v.next()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			out = append(out, &tuple{[]any{v.item, v}})
		}
	default:
		return nil, fmt.Errorf("'%s' object is not iterable", typeName(v))
	}
	return out, r.spend(valueCost * len(out))
}

// like gives a string the type that v has.
func like(v any, s string) any {
	if _, ok := v.(markup); ok {
		return markup(s)
	}
	return s
}
