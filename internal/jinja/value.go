package jinja

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
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

// arguments are a call's.
type arguments struct {
	name   string // of what is called, for errors
	args   []any
	names  []string
	values []any
}

// bind distributes the arguments among parameters; those that are not given are missing. "name?" is optional.
func (a *arguments) bind(params ...string) ([]any, error) {
	out := make([]any, len(params))
	if len(a.args) > len(params) {
		return nil, fmt.Errorf("%s takes at most %d arguments, not %d", a.name, len(params), len(a.args))
	}
	for i, p := range params {
		name, optional := strings.CutSuffix(p, "?")
		k := slices.Index(a.names, name)
		switch {
		case i < len(a.args) && k >= 0:
			return nil, fmt.Errorf("%s: two values for %s", a.name, name)
		case i < len(a.args):
			out[i] = a.args[i]
		case k >= 0:
			out[i] = a.values[k]
		case !optional:
			return nil, fmt.Errorf("%s wants the argument %s", a.name, name)
		default:
			out[i] = missing
		}
	}
	for _, name := range a.names {
		if !slices.Contains(params, name) && !slices.Contains(params, name+"?") {
			return nil, fmt.Errorf("%s has no argument %s", a.name, name)
		}
	}
	return out, nil
}

type missingType struct{}

// missing is an argument that was not given.
var missing = &missingType{}

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

// str is Python's str().
func (r *run) str(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case markup:
		return string(v), nil
	case *undefined:
		return "", nil
	}
	var b strings.Builder
	err := r.repr(&b, v, 0)
	return b.String(), err
}

// repr appends Python's repr().
func (r *run) repr(b *strings.Builder, v any, depth int) error {
	if depth > maxNesting {
		return errors.New("values nested too deeply to write")
	}
	if err := r.spend(stepCost); err != nil {
		return err
	}
	sequence := func(open, end string, items []any) error {
		if err := r.write(b, open); err != nil {
			return err
		}
		for i, item := range items {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := r.repr(b, item, depth+1); err != nil {
				return err
			}
		}
		return r.write(b, end)
	}
	switch v := v.(type) {
	case nil:
		return r.write(b, "None")
	case bool:
		if v {
			return r.write(b, "True")
		}
		return r.write(b, "False")
	case int64:
		return r.write(b, strconv.FormatInt(v, 10))
	case bigInt:
		return r.write(b, string(v))
	case float64:
		return r.write(b, floatRepr(v))
	case string:
		return r.write(b, stringRepr(v))
	case markup:
		return r.write(b, "Markup("+stringRepr(string(v))+")")
	case *list:
		return sequence("[", "]", v.items)
	case *tuple:
		if len(v.items) == 1 {
			return sequence("(", ",)", v.items)
		}
		return sequence("(", ")", v.items)
	case *dict:
		if err := r.write(b, "{"); err != nil {
			return err
		}
		for i, k := range v.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := r.repr(b, k, depth+1); err != nil {
				return err
			}
			b.WriteString(": ")
			if err := r.repr(b, v.values[i], depth+1); err != nil {
				return err
			}
		}
		return r.write(b, "}")
	case *view:
		items, err := r.items(v)
		if err != nil {
			return err
		}
		return sequence(typeName(v)+"([", "])", items)
	case rangeValue:
		if v.step != 1 {
			return r.write(b, fmt.Sprintf("range(%d, %d, %d)", v.start, v.stop, v.step))
		}
		return r.write(b, fmt.Sprintf("range(%d, %d)", v.start, v.stop))
	case *namespace:
		if err := r.write(b, "<Namespace "); err != nil {
			return err
		}
		if err := r.repr(b, v.d, depth+1); err != nil {
			return err
		}
		return r.write(b, ">")
	case *undefined:
		return r.write(b, "Undefined")
	case *macro:
		return r.write(b, "<Macro "+stringRepr(v.name)+">")
	case *loop:
		n, err := v.length()
		if err != nil {
			return err
		}
		return r.write(b, fmt.Sprintf("<LoopContext %d/%d>", v.index0+1, n))
	}
	return fmt.Errorf("a %s is written out, which in Python shows an address in memory", typeName(v))
}

// floatRepr is Python's repr of a float: the shortest digits that give it back.
func floatRepr(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return strings.ToLower(strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+"))
	}
	e := strconv.FormatFloat(f, 'e', -1, 64)
	exp, _ := strconv.Atoi(e[strings.IndexByte(e, 'e')+1:])
	if f != 0 && (exp < -4 || exp >= 16) {
		return e
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// stringRepr is Python's repr of a str.
func stringRepr(s string) string {
	var b strings.Builder
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	b.WriteByte(quote)
	for _, c := range s {
		switch {
		case c == rune(quote) || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(c):
			b.WriteRune(c)
		case c < 0x100:
			fmt.Fprintf(&b, `\x%02x`, c)
		case c < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			fmt.Fprintf(&b, `\U%08x`, c)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// Decode reads one JSON value as Python's json.loads does: members keep their order, of two alike the last one counts,
// whole numbers are integers.
func Decode(b []byte) (any, error) {
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	v, err := decode(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text after the JSON value")
	}
	return v, nil
}

func decode(dec *json.Decoder, depth int) (any, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("JSON nested more than %d deep", maxNesting)
	}
	t, err := dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		s := string(t)
		if !strings.ContainsAny(s, ".eE") {
			if n, err := strconv.ParseInt(s, 10, 64); err == nil {
				return n, nil
			}
			return bigInt(s), nil
		}
		f, _ := strconv.ParseFloat(s, 64) // ±Inf if it is too large, as in Python
		return f, nil
	case json.Delim:
		if t == '[' {
			l := &list{}
			for dec.More() {
				v, err := decode(dec, depth+1)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, v)
			}
			_, err := dec.Token()
			return l, err
		}
		d := newDict()
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := decode(dec, depth+1)
			if err != nil {
				return nil, err
			}
			d.put(k, k, v)
		}
		_, err := dec.Token()
		return d, err
	}
	return t, nil // nil, bool, string
}

// List returns the items of a decoded array.
func List(v any) (items []any, ok bool) {
	l, ok := v.(*list)
	if !ok {
		return nil, false
	}
	return l.items, true
}

// Members returns the names and values of a decoded object.
func Members(v any) (names []string, values []any, ok bool) {
	d, ok := v.(*dict)
	if !ok {
		return nil, nil, false
	}
	for _, k := range d.keys {
		names = append(names, k.(string))
	}
	return names, d.values, true
}

// Member returns a member of a decoded object, or nil if there is none.
func Member(v any, name string) any {
	d, ok := v.(*dict)
	if !ok {
		return nil
	}
	m, _ := d.get(name)
	return m
}
