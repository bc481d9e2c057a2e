package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// spec is how a value is formatted, by % or by str.format.
type spec struct {
	align, sign      byte // 0: the type's own
	fill             rune
	alt, zero, comma bool
	width, precision int64 // -1: none
	verb             byte
}

// formatNumber formats an int or a float.
func (r *run) formatNumber(v any, p spec) (string, error) {
	f, n, whole, ok := number(v)
	if !ok {
		return "", fmt.Errorf("format %%%c: a number is required, not %s", p.verb, typeName(v))
	}
	if p.precision > 1000 {
		return "", errors.New("a precision beyond 1000")
	}
	var digits string
	negative := whole && n < 0 || !whole && (f < 0 || f == 0 && 1/f < 0)
	switch p.verb {
	case 'd', 'x', 'X', 'o', 'b':
		if !whole {
			return "", fmt.Errorf("format %%%c: an integer is required, not float", p.verb)
		}
		base := map[byte]int{'d': 10, 'x': 16, 'X': 16, 'o': 8, 'b': 2}[p.verb]
		digits = strings.TrimPrefix(strconv.FormatInt(n, base), "-")
		if p.verb == 'X' {
			digits = strings.ToUpper(digits)
		}
		if p.alt && base != 10 {
			digits = "0" + string(p.verb) + digits
		}
	default:
		precision := p.precision
		if precision < 0 {
			precision = 6
		}
		if f < 0 {
			f = -f
		}
		verb := p.verb
		switch verb {
		case 'F':
			verb = 'f'
		case '%':
			f, verb = f*100, 'f'
		case 'g', 'G':
			precision = max(precision, 1)
		}
		digits = strconv.FormatFloat(f, verb, int(precision), 64)
		switch {
		case f != f:
			digits = "nan"
		case f > 1e308 && f*2 == f:
			digits = "inf"
		}
		if p.verb == '%' {
			digits += "%"
		}
	}
	if p.comma {
		i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
		if i < 0 {
			i = len(digits)
		}
		for i -= 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
	}
	sign := ""
	switch {
	case negative:
		sign = "-"
	case p.sign == '+' || p.sign == ' ':
		sign = string(p.sign)
	}
	if p.zero && p.align == 0 || p.align == '=' {
		fill := p.fill
		if p.zero && p.align == 0 {
			fill = '0'
		}
		digits, err := r.pad(digits, p.width-int64(len(sign)), fill, '>')
		return sign + digits, err
	}
	if p.align == 0 {
		p.align = '>'
	}
	return r.pad(sign+digits, p.width, p.fill, p.align)
}

// printf is str % args.
func (r *run) printf(format string, args any) (string, error) {
	items := []any{args}
	t, isTuple := args.(*tuple)
	if isTuple {
		items = t.items
	}
	mapping, isMapping := args.(*dict)
	used := 0
	next := func() (any, error) {
		if used >= len(items) {
			return nil, errors.New("not enough arguments for format string")
		}
		used++
		return items[used-1], nil
	}
	var b strings.Builder
	for format != "" {
		i := strings.IndexByte(format, '%')
		if i < 0 {
			i = len(format)
		}
		if err := r.write(&b, format[:i]); err != nil {
			return "", err
		}
		if format = format[i:]; format == "" {
			break
		}
		format = format[1:]
		p := spec{fill: ' ', width: -1, precision: -1, align: '>'}
		var value any
		var err error
		named := false
		if strings.HasPrefix(format, "(") {
			name, rest, ok := strings.Cut(format[1:], ")")
			if !ok || !isMapping {
				return "", errors.New("format requires a mapping")
			}
			if value, ok = mapping.get(name); !ok {
				return "", fmt.Errorf("format: no key '%s'", name)
			}
			format, named, used = rest, true, 1
		}
	flags:
		for ; format != ""; format = format[1:] {
			switch format[0] {
			case '-':
				p.align = '<'
			case '+', ' ':
				if p.sign != '+' {
					p.sign = format[0]
				}
			case '#':
				p.alt = true
			case '0':
				p.zero = true
			default:
				break flags
			}
		}
		count := func() (int64, error) {
			if strings.HasPrefix(format, "*") {
				format = format[1:]
				v, err := next()
				n, ok := integer(v)
				if err == nil && !ok {
					err = errors.New("* wants int")
				}
				return n, err
			}
			return takeNumber(&format)
		}
		if p.width, err = count(); err != nil {
			return "", err
		}
		if strings.HasPrefix(format, ".") {
			format = format[1:]
			if p.precision, err = count(); err != nil {
				return "", err
			}
			p.precision = max(p.precision, 0)
		}
		if format == "" {
			return "", errors.New("incomplete format")
		}
		p.verb = format[0]
		format = format[1:]
		if p.verb == '%' {
			b.WriteByte('%')
			continue
		}
		if !named {
			if value, err = next(); err != nil {
				return "", err
			}
		}
		var s string
		if p.zero && p.align == '>' {
			p.align = 0
		}
		switch p.verb {
		case 's', 'r':
			if p.align == 0 {
				p.align = '>'
			}
			s, err = r.str(value)
			if p.verb == 'r' {
				var rb strings.Builder
				err = r.repr(&rb, value, 0)
				s = rb.String()
			}
			if runes := []rune(s); p.precision >= 0 && p.precision < int64(len(runes)) {
				s = string(runes[:p.precision])
			}
			if err == nil {
				s, err = r.pad(s, p.width, ' ', p.align)
			}
		case 'd', 'i', 'u', 'x', 'X', 'o', 'e', 'E', 'f', 'F':
			if strings.IndexByte("iu", p.verb) >= 0 {
				p.verb = 'd'
			}
			if f, ok := value.(float64); ok && p.verb == 'd' && f > -1e18 && f < 1e18 {
				value = int64(f)
			}
			s, err = r.formatNumber(value, p)
		default:
			err = fmt.Errorf("the format character '%c' is not supported", p.verb)
		}
		if err == nil {
			err = r.write(&b, s)
		}
		if err != nil {
			return "", err
		}
	}
	if used < len(items) && !isMapping {
		if _, ok := args.(*list); !ok || isTuple {
			return "", errors.New("not all arguments converted during string formatting")
		}
	}
	return b.String(), nil
}

// takeNumber cuts digits off the front of s; -1: there are none.
func takeNumber(s *string) (int64, error) {
	n := strings.IndexFunc(*s, func(r rune) bool { return r < '0' || r > '9' })
	if n < 0 {
		n = len(*s)
	}
	if n == 0 {
		return -1, nil
	}
	v, err := strconv.ParseInt((*s)[:n], 10, 32)
	*s = (*s)[n:]
	return v, err
}

// format is str.format.
func (r *run) format(format string, a *arguments) (string, error) {
	var b strings.Builder
	auto, numbered := 0, false
	for format != "" {
		i := strings.IndexAny(format, "{}")
		if i < 0 {
			i = len(format)
		}
		if err := r.write(&b, format[:i]); err != nil {
			return "", err
		}
		if format = format[i:]; format == "" {
			break
		}
		if strings.HasPrefix(format, "{{") || strings.HasPrefix(format, "}}") {
			b.WriteByte(format[0])
			format = format[2:]
			continue
		}
		end := strings.IndexByte(format, '}')
		if format[0] == '}' || end < 0 {
			return "", errors.New("a single brace in a format string")
		}
		field := format[1:end]
		format = format[end+1:]
		if strings.Contains(field, "{") {
			return "", errors.New("nested replacement fields are not supported")
		}
		field, how, _ := strings.Cut(field, ":")
		field, conversion, _ := strings.Cut(field, "!")
		i = strings.IndexAny(field, ".[")
		if i < 0 {
			i = len(field)
		}
		name, path := field[:i], field[i:]
		var v any
		index := auto
		n, err := strconv.Atoi(name)
		if err == nil {
			index, numbered = n, true
		} else if name == "" {
			auto++
		}
		if numbered && auto > 0 {
			return "", errors.New("format: fields with and without numbers")
		}
		if err == nil || name == "" {
			if index < 0 || index >= len(a.args) {
				return "", fmt.Errorf("format: no argument %d", index)
			}
			v = a.args[index]
		} else {
			k := slices.Index(a.names, name)
			if k < 0 {
				return "", fmt.Errorf("format: no argument '%s'", name)
			}
			v = a.values[k]
		}
		if path != "" {
			return "", errors.New("attributes and items in a format string are not supported")
		}
		var s string
		switch conversion {
		case "s":
			v, err = r.str(v)
		case "r":
			var rb strings.Builder
			err = r.repr(&rb, v, 0)
			v = rb.String()
		case "":
			err = nil
		default:
			err = fmt.Errorf("unknown conversion '%s'", conversion)
		}
		if err == nil {
			s, err = r.formatSpec(v, how)
		}
		if err == nil {
			err = r.write(&b, s)
		}
		if err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// formatSpec is format(v, how).
func (r *run) formatSpec(v any, how string) (string, error) {
	if how == "" {
		return r.str(v)
	}
	whole := how
	p := spec{fill: ' ', width: -1, precision: -1}
	first, n := utf8.DecodeRuneInString(how)
	if len(how) > n && strings.IndexByte("<>^=", how[n]) >= 0 {
		p.fill, p.align, how = first, how[n], how[n+1:]
	} else if strings.IndexByte("<>^=", how[0]) >= 0 {
		p.align, how = how[0], how[1:]
	}
	take := func(chars string) byte {
		if how != "" && strings.IndexByte(chars, how[0]) >= 0 {
			c := how[0]
			how = how[1:]
			return c
		}
		return 0
	}
	p.sign = take("+- ")
	p.alt = take("#") != 0
	p.zero = take("0") != 0
	var err error
	if p.width, err = takeNumber(&how); err != nil {
		return "", err
	}
	p.comma = take(",") != 0
	if take(".") != 0 {
		if p.precision, err = takeNumber(&how); err != nil {
			return "", err
		}
	}
	if len(how) > 1 {
		return "", fmt.Errorf("invalid format specifier '%s'", whole)
	}
	p.verb = take("sdxXobeEfFgG%")
	if how != "" {
		return "", fmt.Errorf("unknown format code '%s'", how)
	}
	if s, ok := text(v); ok {
		if p.verb != 0 && p.verb != 's' || p.sign != 0 || p.comma || p.align == '=' {
			return "", fmt.Errorf("format specifier '%s' does not fit a str", whole)
		}
		if runes := []rune(s); p.precision >= 0 && p.precision < int64(len(runes)) {
			s = string(runes[:p.precision])
		}
		if p.zero && p.align == 0 {
			p.fill = '0'
		}
		if p.align == 0 {
			p.align = '<'
		}
		return r.pad(s, p.width, p.fill, p.align)
	}
	switch v.(type) {
	case int64, bool:
		if p.verb == 0 {
			p.verb = 'd'
		}
	case float64:
		if strings.IndexByte("eEfF%", p.verb) < 0 || p.verb == 0 {
			return "", fmt.Errorf("format specifier '%s' of a float is not supported", whole)
		}
	default:
		return "", fmt.Errorf("unsupported format string passed to %s.__format__", typeName(v))
	}
	if p.verb == 'g' || p.verb == 'G' || p.verb == 's' {
		return "", fmt.Errorf("format code '%c' of a number is not supported", p.verb)
	}
	return r.formatNumber(v, p)
}
