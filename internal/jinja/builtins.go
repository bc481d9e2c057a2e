package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// globals are the names that every template has.
func globals() map[string]any {
	return map[string]any{
		"range": &function{"range", rangeFunction},
		"dict":  &function{"dict", func(r *run, a *arguments) (any, error) { return r.makeDict(a) }},
		"namespace": &function{"namespace", func(r *run, a *arguments) (any, error) {
			d, err := r.makeDict(a)
			return &namespace{d}, err
		}},
		"raise_exception": &function{"raise_exception", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("message")
			if err != nil {
				return nil, err
			}
			s, err := r.str(v[0])
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("the template refuses this: %s", s)
		}},
		"strftime_now": &function{"strftime_now", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("format")
			if err != nil {
				return nil, err
			}
			s, ok := text(v[0])
			if !ok {
				return nil, errors.New("strftime_now wants a string")
			}
			return strftime(s, r.now)
		}},
		"joiner": &function{"joiner", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("sep?")
			if err != nil {
				return nil, err
			}
			sep := v[0]
			if sep == any(missing) {
				sep = ", "
			}
			used := false
			return &function{"joiner", func(*run, *arguments) (any, error) {
				if !used {
					used = true
					return "", nil
				}
				return sep, nil
			}}, nil
		}},
		"cycler": &function{"cycler", func(r *run, a *arguments) (any, error) {
			if len(a.args) == 0 {
				return nil, errors.New("at least one item has to be provided")
			}
			at, items := 0, a.args
			d := newDict()
			d.put("current", "current", items[0])
			d.put("next", "next", &function{"next", func(*run, *arguments) (any, error) {
				v := items[at]
				at = (at + 1) % len(items)
				d.put("current", "current", items[at])
				return v, nil
			}})
			d.put("reset", "reset", &function{"reset", func(*run, *arguments) (any, error) {
				at = 0
				d.put("current", "current", items[0])
				return nil, nil
			}})
			return &namespace{d}, nil
		}},
		"lipsum": &function{"lipsum", func(*run, *arguments) (any, error) {
			return nil, errors.New("lipsum is random, and not supported")
		}},
	}
}

func rangeFunction(r *run, a *arguments) (any, error) {
	if len(a.names) > 0 || len(a.args) < 1 || len(a.args) > 3 {
		return nil, errors.New("range wants 1 to 3 integers")
	}
	v := rangeValue{step: 1}
	for i, arg := range a.args {
		n, ok := integer(arg)
		if !ok || n > math.MaxInt32*1024 || n < -math.MaxInt32*1024 {
			return nil, fmt.Errorf("range wants integers, not %s", typeName(arg))
		}
		switch {
		case len(a.args) == 1 || i == 1:
			v.stop = n
		case i == 0:
			v.start = n
		default:
			v.step = n
		}
	}
	switch {
	case v.step == 0:
		return nil, errors.New("range: a step of 0")
	case v.step > 0 && v.stop > v.start:
		v.n = (v.stop - v.start + v.step - 1) / v.step
	case v.step < 0 && v.stop < v.start:
		v.n = (v.start - v.stop - v.step - 1) / -v.step
	}
	if v.n > maxRange {
		return nil, fmt.Errorf("range: more than %d numbers", maxRange)
	}
	return v, nil
}

// makeDict is dict(mapping or pairs, name=value).
func (r *run) makeDict(a *arguments) (*dict, error) {
	d := newDict()
	if len(a.args) > 1 {
		return nil, errors.New("dict wants at most one value without a name")
	}
	for _, v := range a.args {
		if from, ok := v.(*dict); ok {
			for i, k := range from.keys {
				h, _ := r.hashKey(k)
				d.put(h, k, from.values[i])
			}
			continue
		}
		pairs, err := r.items(v)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			kv, err := r.items(p)
			if err != nil {
				return nil, err
			}
			if len(kv) != 2 {
				return nil, errors.New("dict wants pairs")
			}
			h, err := r.hashKey(kv[0])
			if err != nil {
				return nil, err
			}
			d.put(h, kv[0], kv[1])
		}
	}
	for i, name := range a.names {
		d.put(name, name, a.values[i])
	}
	return d, r.spend(valueCost * len(d.keys))
}

// strftime formats t as Python's strftime does in the C locale.
func strftime(format string, t time.Time) (string, error) {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'H': "15", 'I': "03",
		'M': "04", 'S': "05", 'p': "PM", 'y': "06", 'j': "002", 'e': "_2", 'D': "01/02/06", 'F': "2006-01-02", 'T': "15:04:05",
		'R': "15:04", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05", 'f': "000000",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		c := format[i]
		pad := true
		if c == '-' && i+1 < len(format) { // glibc: without padding
			i++
			c, pad = format[i], false
		}
		layout, ok := layouts[c]
		s := t.Format(layout)
		switch {
		case c == '%':
			s = "%"
		case c == 'n':
			s = "\n"
		case c == 't':
			s = "\t"
		case c == 'Z' || c == 'z': // of a time without a zone
			s = ""
		case c == 'u':
			s = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		case c == 'w':
			s = strconv.Itoa(int(t.Weekday()))
		case c == 's':
			s = strconv.FormatInt(t.Unix(), 10)
		case !ok:
			return "", fmt.Errorf("strftime_now: %%%c is not supported", c)
		}
		if !pad {
			if trimmed := strings.TrimLeft(s, "0 "); trimmed != "" {
				s = trimmed
			} else {
				s = "0"
			}
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

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

// attributeGetter is what filters make of attribute="a.0.b": the values at those paths.
func (r *run) attributeGetter(attribute, missingValue any) (func(v any) (any, error), error) {
	if attribute == nil || attribute == any(missing) {
		return func(v any) (any, error) { return v, nil }, nil
	}
	parts := []any{attribute}
	if s, ok := text(attribute); ok {
		parts = nil
		for part := range strings.SplitSeq(s, ".") {
			if n, err := strconv.ParseInt(part, 10, 64); err == nil && part[0] != '-' && part[0] != '+' {
				parts = append(parts, n)
			} else {
				parts = append(parts, part)
			}
		}
	} else if _, ok := integer(attribute); !ok {
		return nil, fmt.Errorf("attribute is %s, want str or int", typeName(attribute))
	}
	return func(v any) (any, error) {
		for _, part := range parts {
			var err error
			if v, err = r.getitem(v, part); err != nil {
				return nil, err
			}
			if _, ok := v.(*undefined); ok && missingValue != any(missing) && missingValue != nil {
				v = missingValue
			}
		}
		return v, nil
	}, nil
}

// fold is what comparisons that ignore case compare.
func fold(v any, caseSensitive bool) any {
	if s, ok := text(v); ok && !caseSensitive {
		return lower(s)
	}
	return v
}

// given tells whether an argument was given and is true.
func given(v any) bool { return v != any(missing) && truth(v) }

type filterFunc struct {
	params []string
	call   func(r *run, v any, a []any) (any, error)
}

var filterFuncs map[string]filterFunc

// filter applies a filter.
func (r *run) filter(name string, v any, a *arguments) (any, error) {
	a.name = "filter " + name
	switch name {
	case "map", "select", "reject", "selectattr", "rejectattr":
		return r.mapOrSelect(name, v, a)
	case "format":
		s, err := r.str(v)
		if err != nil {
			return nil, err
		}
		if len(a.names) > 0 {
			if len(a.args) > 0 {
				return nil, errors.New("filter format: values with and without names")
			}
			d, err := r.makeDict(a)
			if err != nil {
				return nil, err
			}
			return r.printf(s, d)
		}
		return r.printf(s, &tuple{a.args})
	}
	f, ok := filterFuncs[name]
	if !ok {
		return nil, fmt.Errorf("no filter named '%s'", name)
	}
	args, err := a.bind(f.params...)
	if err != nil {
		return nil, err
	}
	if s, ok := text(v); ok {
		if err := r.spend(len(s)); err != nil {
			return nil, err
		}
	}
	return f.call(r, v, args)
}

// mapOrSelect is the filters that take another filter, or a test.
func (r *run) mapOrSelect(name string, v any, a *arguments) (any, error) {
	g := &generator{name: "generator"}
	var items []any
	var err error
	if truth(v) { // None has no items here, and is no error
		if items, err = r.items(v); err != nil {
			return nil, err
		}
	}
	if name == "map" && len(a.args) == 0 {
		m, err := a.bind("attribute", "default?")
		if err != nil {
			return nil, err
		}
		get, err := r.attributeGetter(m[0], m[1])
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			if item, err = get(item); err != nil {
				return nil, err
			}
			g.items = append(g.items, item)
		}
		return g, nil
	}
	get := func(v any) (any, error) { return v, nil }
	rest := *a
	if strings.HasSuffix(name, "attr") {
		if len(a.args) == 0 {
			return nil, fmt.Errorf("filter %s wants an attribute", name)
		}
		if get, err = r.attributeGetter(a.args[0], missing); err != nil {
			return nil, err
		}
		rest.args = a.args[1:]
	}
	inner := ""
	if len(rest.args) > 0 {
		if inner, _ = text(rest.args[0]); inner == "" {
			return nil, fmt.Errorf("filter %s wants a name first, not %s", name, typeName(rest.args[0]))
		}
		rest.args = rest.args[1:]
	}
	keep := !strings.HasPrefix(name, "reject")
	for _, item := range items {
		value, err := get(item)
		if err != nil {
			return nil, err
		}
		each := rest // filters and tests put their own name into it
		if name == "map" {
			if value, err = r.filter(inner, value, &each); err != nil {
				return nil, err
			}
			g.items = append(g.items, value)
			continue
		}
		ok := truth(value)
		if inner != "" {
			if ok, err = r.test(inner, value, &each); err != nil {
				return nil, err
			}
		}
		if ok == keep {
			g.items = append(g.items, item)
		}
	}
	return g, nil
}

func stringFilter(f func(string) string) filterFunc {
	return filterFunc{nil, func(r *run, v any, _ []any) (any, error) {
		s, err := r.str(v)
		return like(v, f(s)), err
	}}
}

// extreme is the filters min and max.
func extreme(sign int) filterFunc {
	return filterFunc{[]string{"case_sensitive?", "attribute?"}, func(r *run, v any, a []any) (any, error) {
		items, err := r.items(v)
		if err != nil {
			return nil, err
		}
		if len(items) == 0 {
			return &undefined{"No aggregated item, sequence was empty."}, nil
		}
		get, err := r.attributeGetter(a[1], missing)
		if err != nil {
			return nil, err
		}
		best := items[0]
		bestKey, err := get(best)
		if err != nil {
			return nil, err
		}
		for _, item := range items[1:] {
			key, err := get(item)
			if err != nil {
				return nil, err
			}
			order, _, err := r.compare(fold(key, given(a[0])), fold(bestKey, given(a[0])), 0)
			if err != nil {
				return nil, err
			}
			if order*sign > 0 {
				best, bestKey = item, key
			}
		}
		return best, nil
	}}
}

// sorted sorts items by what key gives of each.
func (r *run) sorted(items []any, key func(any) (any, error), reverse bool) ([]any, error) {
	type pair struct{ key, item any }
	pairs := make([]pair, len(items))
	for i, item := range items {
		k, err := key(item)
		if err != nil {
			return nil, err
		}
		pairs[i] = pair{k, item}
	}
	var failed error
	slices.SortStableFunc(pairs, func(a, b pair) int {
		if failed != nil {
			return 0
		}
		order, _, err := r.compare(a.key, b.key, 0)
		failed = err
		if reverse {
			order = -order
		}
		return order
	})
	out := make([]any, len(pairs))
	for i, p := range pairs {
		out[i] = p.item
	}
	return out, failed
}

func init() {
	defaultFilter := filterFunc{[]string{"default_value?", "boolean?"}, func(_ *run, v any, a []any) (any, error) {
		if _, ok := v.(*undefined); ok || given(a[1]) && !truth(v) {
			if a[0] == any(missing) {
				return "", nil
			}
			return a[0], nil
		}
		return v, nil
	}}
	lengthFilter := filterFunc{nil, func(_ *run, v any, _ []any) (any, error) {
		n, err := length(v)
		return int64(n), err
	}}
	escapeFilter := filterFunc{nil, func(r *run, v any, _ []any) (any, error) {
		if m, ok := v.(markup); ok {
			return m, nil
		}
		s, err := r.str(v)
		return markup(escape(s)), err
	}}
	filterFuncs = map[string]filterFunc{
		"default": defaultFilter, "d": defaultFilter, "length": lengthFilter, "count": lengthFilter,
		"e": escapeFilter, "escape": escapeFilter,
		"upper": stringFilter(upper), "lower": stringFilter(lower), "capitalize": stringFilter(capitalize),
		"title": stringFilter(titleWords), "min": extreme(-1), "max": extreme(1),
		"safe": {nil, func(r *run, v any, _ []any) (any, error) {
			s, err := r.str(v)
			return markup(s), err
		}},
		"string": {nil, func(r *run, v any, _ []any) (any, error) {
			if _, ok := v.(markup); ok {
				return v, nil
			}
			return r.str(v)
		}},
		"trim": {[]string{"chars?"}, func(r *run, v any, a []any) (any, error) {
			s, err := r.str(v)
			if err == nil {
				s, err = strip(s, a[0], true, true)
			}
			return like(v, s), err
		}},
		"replace": {[]string{"old", "new", "count?"}, func(r *run, v any, a []any) (any, error) {
			var s [3]string
			for i, x := range []any{v, a[0], a[1]} {
				var err error
				if s[i], err = r.str(x); err != nil {
					return nil, err
				}
			}
			return r.replace(s[0], s[1], s[2], a[2])
		}},
		"center": {[]string{"width?"}, func(r *run, v any, a []any) (any, error) {
			width := int64(80)
			if a[0] != any(missing) {
				width, _ = integer(a[0])
			}
			s, err := r.str(v)
			if err == nil {
				s, err = r.pad(s, width, ' ', '^')
			}
			return s, err
		}},
		"indent": {[]string{"width?", "first?", "blank?"}, func(r *run, v any, a []any) (any, error) {
			s, ok := text(v)
			if !ok {
				return nil, fmt.Errorf("filter indent wants a str, not %s", typeName(v))
			}
			indent, ok := text(a[0])
			if !ok {
				width := int64(4)
				if a[0] != any(missing) {
					if width, ok = integer(a[0]); !ok {
						return nil, fmt.Errorf("filter indent: width is %s", typeName(a[0]))
					}
				}
				var err error
				if indent, err = r.pad("", width, ' ', '<'); err != nil {
					return nil, err
				}
			}
			var b strings.Builder
			for i, line := range splitLines(s+"\n", false) {
				if i > 0 {
					b.WriteByte('\n')
				}
				if i == 0 && given(a[1]) || i > 0 && (line != "" || given(a[2])) {
					line = indent + line
				}
				if err := r.write(&b, line); err != nil {
					return nil, err
				}
			}
			return like(v, b.String()), nil
		}},
		"first": {nil, func(r *run, v any, _ []any) (any, error) {
			if g, ok := v.(*generator); ok && len(g.items) > 0 {
				item := g.items[0]
				g.items = g.items[1:]
				return item, nil
			}
			items, err := r.items(v)
			if err != nil || len(items) == 0 {
				return &undefined{"No first item, sequence was empty."}, err
			}
			return items[0], nil
		}},
		"last": {nil, func(r *run, v any, _ []any) (any, error) {
			if _, ok := v.(*generator); ok {
				return nil, fmt.Errorf("'%s' object is not reversible", typeName(v))
			}
			items, err := r.items(v)
			if err != nil || len(items) == 0 {
				return &undefined{"No last item, sequence was empty."}, err
			}
			return items[len(items)-1], nil
		}},
		"list": {nil, func(r *run, v any, _ []any) (any, error) {
			items, err := r.items(v)
			return &list{items}, err
		}},
		"items": {nil, func(r *run, v any, _ []any) (any, error) {
			switch v := v.(type) {
			case *undefined:
				return &generator{name: "generator"}, nil
			case *dict:
				items, err := r.items(&view{"items", v})
				return &generator{"generator", items}, err
			}
			return nil, errors.New("can only get item pairs from a mapping")
		}},
		"dictsort": {[]string{"case_sensitive?", "by?", "reverse?"}, func(r *run, v any, a []any) (any, error) {
			d, ok := v.(*dict)
			if !ok {
				return nil, fmt.Errorf("filter dictsort wants a dict, not %s", typeName(v))
			}
			pos := 0
			if by, _ := text(a[1]); by == "value" {
				pos = 1
			} else if a[1] != any(missing) && by != "key" {
				return nil, errors.New(`you can only sort by either "key" or "value"`)
			}
			items, err := r.items(&view{"items", d})
			if err != nil {
				return nil, err
			}
			items, err = r.sorted(items, func(v any) (any, error) { return fold(v.(*tuple).items[pos], given(a[0])), nil }, given(a[2]))
			return &list{items}, err
		}},
		"sort": {[]string{"reverse?", "case_sensitive?", "attribute?"}, func(r *run, v any, a []any) (any, error) {
			items, err := r.items(v)
			if err != nil {
				return nil, err
			}
			var getters []func(any) (any, error)
			attributes := []any{a[2]}
			if s, ok := text(a[2]); ok {
				attributes = nil
				for part := range strings.SplitSeq(s, ",") {
					attributes = append(attributes, part)
				}
			}
			for _, attribute := range attributes {
				get, err := r.attributeGetter(attribute, missing)
				if err != nil {
					return nil, err
				}
				getters = append(getters, get)
			}
			items, err = r.sorted(items, func(v any) (any, error) {
				key := &list{}
				for _, get := range getters {
					k, err := get(v)
					if err != nil {
						return nil, err
					}
					key.items = append(key.items, fold(k, given(a[1])))
				}
				return key, nil
			}, given(a[0]))
			return &list{items}, err
		}},
		"unique": {[]string{"case_sensitive?", "attribute?"}, func(r *run, v any, a []any) (any, error) {
			items, err := r.items(v)
			if err != nil {
				return nil, err
			}
			get, err := r.attributeGetter(a[1], missing)
			if err != nil {
				return nil, err
			}
			seen := map[any]bool{}
			g := &generator{name: "generator"}
			for _, item := range items {
				k, err := get(item)
				if err != nil {
					return nil, err
				}
				h, err := r.hashKey(fold(k, given(a[0])))
				if err != nil {
					return nil, err
				}
				if !seen[h] {
					seen[h] = true
					g.items = append(g.items, item)
				}
			}
			return g, nil
		}},
		"reverse": {nil, func(r *run, v any, _ []any) (any, error) {
			items, err := r.items(v)
			items = slices.Clone(items)
			slices.Reverse(items)
			if _, ok := text(v); ok {
				var b strings.Builder
				for _, c := range items {
					s, _ := text(c)
					b.WriteString(s)
				}
				return like(v, b.String()), err
			}
			if _, ok := v.(*generator); ok {
				return &list{items}, err
			}
			return &generator{"reversed", items}, err
		}},
		"join": {[]string{"d?", "attribute?"}, func(r *run, v any, a []any) (any, error) {
			items, err := r.items(v)
			if err != nil {
				return nil, err
			}
			get, err := r.attributeGetter(a[1], missing)
			if err != nil {
				return nil, err
			}
			sep := ""
			if a[0] != any(missing) {
				if sep, err = r.str(a[0]); err != nil {
					return nil, err
				}
			}
			var b strings.Builder
			for i, item := range items {
				if item, err = get(item); err != nil {
					return nil, err
				}
				s, err := r.str(item)
				if err == nil && i > 0 {
					err = r.write(&b, sep)
				}
				if err == nil {
					err = r.write(&b, s)
				}
				if err != nil {
					return nil, err
				}
			}
			return b.String(), nil
		}},
		"sum": {[]string{"attribute?", "start?"}, func(r *run, v any, a []any) (any, error) {
			items, err := r.items(v)
			if err != nil {
				return nil, err
			}
			get, err := r.attributeGetter(a[0], missing)
			if err != nil {
				return nil, err
			}
			var total any = int64(0)
			if a[1] != any(missing) {
				total = a[1]
			}
			if _, ok := text(total); ok {
				return nil, errors.New("sum() can't sum strings")
			}
			for _, item := range items {
				if item, err = get(item); err != nil {
					return nil, err
				}
				if total, err = r.binary("+", total, item); err != nil {
					return nil, err
				}
			}
			return total, nil
		}},
		"abs": {nil, func(r *run, v any, _ []any) (any, error) {
			f, n, whole, ok := number(v)
			if !ok {
				return nil, fmt.Errorf("bad operand type for abs(): '%s'", typeName(v))
			}
			if whole && n < 0 {
				return r.unary("-", n)
			} else if whole {
				return n, nil
			}
			return math.Abs(f), nil
		}},
		"int": {[]string{"default?", "base?"}, func(_ *run, v any, a []any) (any, error) {
			base := int64(10)
			if a[1] != any(missing) {
				base, _ = integer(a[1])
			}
			if s, ok := text(v); ok {
				s = strings.TrimFunc(s, isSpace)
				if prefix := map[int64]string{16: "0x", 8: "0o", 2: "0b"}[base]; prefix != "" {
					s = strings.TrimPrefix(strings.ToLower(s), prefix)
				}
				if base == 0 || base >= 2 && base <= 36 {
					if n, err := strconv.ParseInt(s, int(base), 64); err == nil {
						return n, nil
					}
				}
				if f, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(f) < 1<<62 {
					return int64(f), nil
				}
			} else if f, n, whole, ok := number(v); ok && whole {
				return n, nil
			} else if ok && math.Abs(f) < 1<<62 {
				return int64(f), nil
			} else if u, ok := v.(*undefined); ok {
				return nil, u.fail()
			}
			if a[0] == any(missing) {
				return int64(0), nil
			}
			return a[0], nil
		}},
		"float": {[]string{"default?"}, func(_ *run, v any, a []any) (any, error) {
			if s, ok := text(v); ok {
				if f, err := strconv.ParseFloat(strings.TrimFunc(s, isSpace), 64); err == nil {
					return f, nil
				}
			} else if f, _, _, ok := number(v); ok {
				return f, nil
			} else if u, ok := v.(*undefined); ok {
				return nil, u.fail()
			}
			if a[0] == any(missing) {
				return 0.0, nil
			}
			return a[0], nil
		}},
		"round": {[]string{"precision?", "method?"}, func(_ *run, v any, a []any) (any, error) {
			precision := int64(0)
			if a[0] != any(missing) {
				precision, _ = integer(a[0])
			}
			f, n, whole, ok := number(v)
			if !ok || precision < 0 || precision > 300 {
				return nil, fmt.Errorf("filter round: of %s to %d digits", typeName(v), precision)
			}
			method, _ := text(a[1])
			scale := math.Pow(10, float64(precision))
			switch {
			case (a[1] == any(missing) || method == "common") && whole:
				return n, nil
			case a[1] == any(missing) || method == "common":
				return strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(precision), 64), 64)
			case method == "ceil":
				return math.Ceil(f*scale) / scale, nil
			case method == "floor":
				return math.Floor(f*scale) / scale, nil
			}
			return nil, errors.New("filter round: method must be common, ceil or floor")
		}},
		"wordcount": {nil, func(r *run, v any, _ []any) (any, error) {
			s, err := r.str(v)
			n := len(strings.FieldsFunc(s, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsNumber(r) }))
			return int64(n), err
		}},
		"attr": {[]string{"name"}, func(r *run, v any, a []any) (any, error) {
			name, ok := text(a[0])
			if !ok {
				return nil, errors.New("filter attr wants a name")
			}
			value, ok, err := r.attribute(v, name)
			if err == nil && !ok {
				value = noAttribute(v, name)
			}
			return value, err
		}},
		"batch": {[]string{"linecount", "fill_with?"}, func(r *run, v any, a []any) (any, error) {
			n, ok := integer(a[0])
			items, err := r.items(v)
			if err != nil || !ok || n < 1 || n > maxRange {
				return nil, errors.Join(err, fmt.Errorf("filter batch wants a count"))
			}
			g := &generator{name: "generator"}
			for chunk := range slices.Chunk(items, int(n)) {
				chunk = slices.Clone(chunk)
				for a[1] != any(missing) && a[1] != nil && len(chunk) < int(n) {
					chunk = append(chunk, a[1])
				}
				g.items = append(g.items, &list{chunk})
			}
			return g, r.spend(valueCost * int(n))
		}},
		"tojson": {[]string{"ensure_ascii?", "indent?", "separators?", "sort_keys?"}, func(r *run, v any, a []any) (any, error) {
			return r.toJSON(v, a[0], a[1], a[2], a[3])
		}},
	}
	for _, name := range []string{"filesizeformat", "forceescape", "groupby", "pprint", "random", "slice", "striptags", "truncate", "urlencode", "urlize", "wordwrap", "xmlattr"} {
		filterFuncs[name] = filterFunc{nil, func(*run, any, []any) (any, error) {
			return nil, fmt.Errorf("filter %s is not supported", name)
		}}
	}
}

// titleWords is the filter title: words begin after spaces, dashes and opening brackets.
func titleWords(s string) string {
	var b strings.Builder
	start := true
	for _, c := range s {
		switch {
		case isSpace(c) || strings.ContainsRune("-({[<", c):
			b.WriteRune(c)
			start = true
			continue
		case start:
			b.WriteString(upper(string(c)))
		default:
			b.WriteString(lower(string(c)))
		}
		start = false
	}
	return b.String()
}

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

// toJSON is json.dumps(v, ensure_ascii=False, indent=None, separators=None, sort_keys=False), transformers' tojson.
func (r *run) toJSON(v, ascii, indent, separators, sortKeys any) (string, error) {
	w := jsonWriter{r: r, ascii: given(ascii), sortKeys: given(sortKeys), comma: ", ", colon: ": "}
	if indent != any(missing) && indent != nil {
		w.comma, w.lines = ",", true
		s, ok := text(indent)
		if n, isInt := integer(indent); isInt {
			var err error
			if s, err = r.pad("", n, ' ', '<'); err != nil {
				return "", err
			}
		} else if !ok {
			return "", fmt.Errorf("tojson: indent is %s", typeName(indent))
		}
		w.indent = s
	}
	if separators != any(missing) && separators != nil {
		pair, err := r.items(separators)
		if err != nil || len(pair) != 2 {
			return "", errors.Join(err, errors.New("tojson: separators must be two strings"))
		}
		var ok1, ok2 bool
		w.comma, ok1 = text(pair[0])
		w.colon, ok2 = text(pair[1])
		if !ok1 || !ok2 {
			return "", errors.New("tojson: separators must be two strings")
		}
	}
	err := w.value(v, 0)
	return w.String(), err
}

type jsonWriter struct {
	strings.Builder
	r                    *run
	ascii, sortKeys      bool
	lines                bool
	indent, comma, colon string
}

func (w *jsonWriter) put(s string) error { return w.r.write(&w.Builder, s) }

func (w *jsonWriter) newline(depth int) error {
	if !w.lines {
		return nil
	}
	if err := w.put("\n"); err != nil {
		return err
	}
	for range depth {
		if err := w.put(w.indent); err != nil {
			return err
		}
	}
	return nil
}

func (w *jsonWriter) sequence(open, end string, n, depth int, item func(i int) error) error {
	if err := w.put(open); err != nil {
		return err
	}
	for i := range n {
		if i > 0 {
			w.WriteString(w.comma)
		}
		if err := w.newline(depth + 1); err != nil {
			return err
		}
		if err := item(i); err != nil {
			return err
		}
	}
	if n > 0 {
		if err := w.newline(depth); err != nil {
			return err
		}
	}
	return w.put(end)
}

func (w *jsonWriter) value(v any, depth int) error {
	if depth > maxNesting {
		return errors.New("tojson: nested too deeply")
	}
	if err := w.r.spend(stepCost); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		return w.put("null")
	case bool:
		return w.put(strconv.FormatBool(v))
	case int64:
		return w.put(strconv.FormatInt(v, 10))
	case bigInt:
		return w.put(string(v))
	case float64:
		switch {
		case math.IsNaN(v):
			return w.put("NaN")
		case math.IsInf(v, 1):
			return w.put("Infinity")
		case math.IsInf(v, -1):
			return w.put("-Infinity")
		}
		return w.put(floatRepr(v))
	case string:
		return w.put(w.quote(v))
	case markup:
		return w.put(w.quote(string(v)))
	case *list:
		return w.sequence("[", "]", len(v.items), depth, func(i int) error { return w.value(v.items[i], depth+1) })
	case *tuple:
		return w.sequence("[", "]", len(v.items), depth, func(i int) error { return w.value(v.items[i], depth+1) })
	case *dict:
		order := make([]any, len(v.keys))
		for i := range order {
			order[i] = i
		}
		if w.sortKeys {
			var err error
			if order, err = w.r.sorted(order, func(i any) (any, error) { return v.keys[i.(int)], nil }, false); err != nil {
				return err
			}
		}
		return w.sequence("{", "}", len(order), depth, func(i int) error {
			k := order[i].(int)
			var key string
			switch name := v.keys[k].(type) {
			case string:
				key = name
			case markup:
				key = string(name)
			case nil, bool, int64, bigInt, float64:
				sub := jsonWriter{r: w.r}
				if err := sub.value(name, depth); err != nil {
					return err
				}
				key = sub.String()
			default:
				return fmt.Errorf("keys must be str, int, float, bool or None, not %s", typeName(name))
			}
			if err := w.put(w.quote(key)); err != nil {
				return err
			}
			w.WriteString(w.colon)
			return w.value(v.values[k], depth+1)
		})
	}
	return fmt.Errorf("an object of type %s is not JSON serializable", typeName(v))
}

func (w *jsonWriter) quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c < 0x20:
			if i := strings.IndexRune("\b\f\n\r\t", c); i >= 0 {
				b.WriteString(`\` + "bfnrt"[i:i+1])
			} else {
				fmt.Fprintf(&b, `\u%04x`, c)
			}
		case w.ascii && c >= 0x80 && c < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, c)
		case w.ascii && c >= 0x10000:
			c -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+c>>10, 0xdc00+c&0x3ff)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
