package jinja

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

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
