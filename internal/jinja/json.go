package jinja

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

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
