package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

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
