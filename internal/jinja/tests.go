package jinja

import (
	"errors"
	"fmt"
	"slices"
	"unicode"
)

// test is a test of is.
func (r *run) test(name string, v any, a *arguments) (bool, error) {
	a.name = "test " + name
	params := []string{}
	ops := map[string]string{
		"==": "==", "eq": "==", "equalto": "==", "!=": "!=", "ne": "!=", ">": ">", "gt": ">", "greaterthan": ">",
		">=": ">=", "ge": ">=", "<": "<", "lt": "<", "lessthan": "<", "<=": "<=", "le": "<=", "in": "in",
	}
	op, isOp := ops[name]
	if isOp || name == "divisibleby" || name == "sameas" {
		params = []string{"other"}
	}
	args, err := a.bind(params...)
	if err != nil {
		return false, err
	}
	if isOp {
		return r.relation(op, v, args[0])
	}
	_, isUndefined := v.(*undefined)
	s, isText := text(v)
	switch name {
	case "defined":
		return !isUndefined, nil
	case "undefined":
		return isUndefined, nil
	case "none":
		return v == nil, nil
	case "boolean":
		_, ok := v.(bool)
		return ok, nil
	case "true", "false":
		return v == any(name == "true"), nil
	case "integer":
		switch v.(type) {
		case int64, bigInt:
			return true, nil
		}
		return false, nil
	case "float":
		_, ok := v.(float64)
		return ok, nil
	case "number":
		_, _, _, ok := number(v)
		_, big := v.(bigInt)
		return ok || big, nil
	case "string":
		return isText, nil
	case "mapping":
		_, ok := v.(*dict)
		return ok, nil
	case "sequence":
		switch v.(type) {
		case string, markup, *list, *tuple, *dict, rangeValue, *undefined:
			return true, nil
		}
		return false, nil
	case "iterable":
		switch v.(type) {
		case string, markup, *list, *tuple, *dict, rangeValue, *undefined, *view, *generator, *loop:
			return true, nil
		}
		return false, nil
	case "callable":
		switch v.(type) {
		case *function, *macro, *undefined, *loop:
			return true, nil
		}
		return false, nil
	case "escaped":
		_, ok := v.(markup)
		return ok, nil
	case "lower", "upper":
		if !isText {
			if s, err = r.str(v); err != nil {
				return false, err
			}
		}
		if name == "lower" {
			return cased(s, unicode.IsLower, unicode.IsUpper), nil
		}
		return cased(s, unicode.IsUpper, unicode.IsLower), nil
	case "odd", "even", "divisibleby":
		by := any(int64(2))
		if name == "divisibleby" {
			by = args[0]
		}
		if isText {
			return false, fmt.Errorf("test %s wants a number, not str", name)
		}
		rest, err := r.binary("%", v, by)
		if err != nil {
			return false, err
		}
		f, n, whole, _ := number(rest)
		zero := whole && n == 0 || !whole && f == 0
		one := whole && n == 1 || !whole && f == 1
		return name == "odd" && one || name != "odd" && zero, nil
	case "sameas":
		return typeName(v) == typeName(args[0]) && sameas(v, args[0]), nil
	case "filter":
		_, ok := filterFuncs[s]
		return ok || slices.Contains([]string{"map", "select", "reject", "selectattr", "rejectattr", "format"}, s), nil
	case "test":
		return false, errors.New("test test is not supported")
	}
	return false, fmt.Errorf("no test named '%s'", name)
}

// sameas is Python's is. Equal strings and small numbers are taken for the same object, as they mostly are.
func sameas(a, b any) bool { return a == b }
