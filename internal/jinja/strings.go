package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

func upper(s string) string { return cases.Upper(language.Und).String(s) }
func lower(s string) string { return cases.Lower(language.Und).String(s) }

func capitalize(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return titleRune(s[:n]) + strings.TrimPrefix(lower(s), lower(s[:n]))
}

// titleRune is the title case of one character.
func titleRune(s string) string { return cases.Title(language.Und).String(s) }

func title(s string) string {
	var b strings.Builder
	inWord := false
	for _, c := range s {
		switch {
		case inWord:
			b.WriteRune(unicode.ToLower(c))
		default:
			b.WriteString(titleRune(string(c)))
		}
		inWord = unicode.IsUpper(c) || unicode.IsLower(c) || unicode.IsTitle(c)
	}
	return b.String()
}

// splitLines is str.splitlines.
func splitLines(s string, keep bool) []string {
	var out []string
	for s != "" {
		i := strings.IndexAny(s, "\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029")
		if i < 0 {
			return append(out, s)
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		if strings.HasPrefix(s[i:], "\r\n") {
			n = 2
		}
		if keep {
			out = append(out, s[:i+n])
		} else {
			out = append(out, s[:i])
		}
		s = s[i+n:]
	}
	return out
}

// split is str.split and str.rsplit: at most limit times if limit is not negative.
func split(s, sep string, bySpace, fromRight bool, limit int64) []string {
	var out []string
	for {
		if bySpace {
			if fromRight {
				s = strings.TrimRightFunc(s, isSpace)
			} else {
				s = strings.TrimLeftFunc(s, isSpace)
			}
			if s == "" {
				break
			}
		}
		i, n := -1, len(sep)
		if limit != 0 {
			switch {
			case bySpace && fromRight:
				i = strings.LastIndexFunc(s, isSpace)
			case bySpace:
				i = strings.IndexFunc(s, isSpace)
			case fromRight:
				i = strings.LastIndex(s, sep)
			default:
				i = strings.Index(s, sep)
			}
		}
		if bySpace && i >= 0 {
			_, n = utf8.DecodeRuneInString(s[i:])
		}
		if i < 0 {
			if bySpace && fromRight {
				s = strings.TrimRightFunc(s, isSpace)
			}
			out = append(out, s)
			break
		}
		limit--
		if fromRight {
			out, s = append(out, s[i+n:]), s[:i]
		} else {
			out, s = append(out, s[:i]), s[i+n:]
		}
	}
	if fromRight {
		slices.Reverse(out)
	}
	return out
}

func strip(s string, chars any, left, right bool) (string, error) {
	in := isSpace
	if chars != nil && chars != any(missing) {
		set, ok := text(chars)
		if !ok {
			return "", fmt.Errorf("strip arg must be None or str, not %s", typeName(chars))
		}
		in = func(r rune) bool { return strings.ContainsRune(set, r) }
	}
	if left {
		s = strings.TrimLeftFunc(s, in)
	}
	if right {
		s = strings.TrimRightFunc(s, in)
	}
	return s, nil
}

// pad is str.center ('^'), ljust ('<') and rjust ('>').
func (r *run) pad(s string, width int64, fill rune, align byte) (string, error) {
	n := width - int64(utf8.RuneCountInString(s))
	if n <= 0 {
		return s, nil
	}
	if n > int64(r.left) {
		return "", r.spend(r.left + 1)
	}
	if err := r.spend(int(n) * utf8.RuneLen(fill)); err != nil {
		return "", err
	}
	left := int64(0)
	switch align {
	case '^':
		left = n/2 + n&width&1
	case '>':
		left = n
	}
	return strings.Repeat(string(fill), int(left)) + s + strings.Repeat(string(fill), int(n-left)), nil
}

// every is what str.isalpha and its like are: true of no empty string.
func every(s string, f func(rune) bool) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !f(r) }) < 0
}

// cased is str.isupper and str.islower.
func cased(s string, want, against func(rune) bool) bool {
	return strings.IndexFunc(s, want) >= 0 && strings.IndexFunc(s, func(r rune) bool { return against(r) || unicode.IsTitle(r) }) < 0
}

// stringMethod is a method of str with the parameters that bind takes.
type stringMethod struct {
	params []string
	call   func(r *run, s string, a []any) (any, error)
}

func plainMethod(f func(string) string) stringMethod {
	return stringMethod{nil, func(_ *run, s string, _ []any) (any, error) { return f(s), nil }}
}

func predicate(f func(string) bool) stringMethod {
	return stringMethod{nil, func(_ *run, s string, _ []any) (any, error) { return f(s), nil }}
}

func stripMethod(left, right bool) stringMethod {
	return stringMethod{[]string{"chars?"}, func(_ *run, s string, a []any) (any, error) { return strip(s, a[0], left, right) }}
}

func splitMethod(fromRight bool) stringMethod {
	return stringMethod{[]string{"sep?", "maxsplit?"}, func(r *run, s string, a []any) (any, error) {
		limit := int64(-1)
		if a[1] != any(missing) {
			var ok bool
			if limit, ok = integer(a[1]); !ok {
				return nil, fmt.Errorf("maxsplit is %s, want int", typeName(a[1]))
			}
		}
		bySpace := a[0] == nil || a[0] == any(missing)
		sep, ok := text(a[0])
		if !bySpace && (!ok || sep == "") {
			return nil, fmt.Errorf("split wants a separator that is not empty")
		}
		return r.texts(split(s, sep, bySpace, fromRight, limit))
	}}
}

// texts makes a list of strings.
func (r *run) texts(parts []string) (any, error) {
	l := &list{make([]any, len(parts))}
	for i, p := range parts {
		l.items[i] = p
	}
	return l, r.spend(valueCost * len(parts))
}

func padMethod(align byte) stringMethod {
	return stringMethod{[]string{"width", "fillchar?"}, func(r *run, s string, a []any) (any, error) {
		width, ok := integer(a[0])
		if !ok {
			return nil, fmt.Errorf("width is %s, want int", typeName(a[0]))
		}
		fill := ' '
		if a[1] != any(missing) {
			f, ok := text(a[1])
			if !ok || utf8.RuneCountInString(f) != 1 {
				return nil, errors.New("the fill character must be exactly one character long")
			}
			fill, _ = utf8.DecodeRuneInString(f)
		}
		return r.pad(s, width, fill, align)
	}}
}

// affixMethod is startswith and endswith, of a string or a tuple of strings.
func affixMethod(has func(s, affix string) bool) stringMethod {
	return stringMethod{[]string{"prefix", "start?", "end?"}, func(_ *run, s string, a []any) (any, error) {
		s, _, ok := window(s, a[1:])
		if !ok {
			return nil, errWindow
		}
		affixes := []any{a[0]}
		if t, ok := a[0].(*tuple); ok {
			affixes = t.items
		}
		for _, v := range affixes {
			affix, ok := text(v)
			if !ok {
				return nil, fmt.Errorf("first arg must be str or a tuple of str, not %s", typeName(v))
			}
			if has(s, affix) {
				return true, nil
			}
		}
		return false, nil
	}}
}

var errWindow = errors.New("start and end must be integers or None")

// window is s[start:end] by characters, and the bytes before it.
func window(s string, bounds []any) (part string, before int, ok bool) {
	if (bounds[0] == any(missing) || bounds[0] == nil) && (bounds[1] == any(missing) || bounds[1] == nil) {
		return s, 0, true
	}
	n := int64(utf8.RuneCountInString(s))
	b := [2]int64{0, n}
	for i, v := range bounds {
		if v == nil || v == any(missing) {
			continue
		}
		k, ok := integer(v)
		if !ok {
			return "", 0, false
		}
		if k < 0 {
			k += n
		}
		b[i] = min(max(k, 0), n)
	}
	runes := []rune(s)
	return string(runes[b[0]:max(b[0], b[1])]), len(string(runes[:b[0]])), true
}

// findMethod is find, rfind, index and rindex.
func findMethod(find func(s, sub string) int, must bool) stringMethod {
	return stringMethod{[]string{"sub", "start?", "end?"}, func(_ *run, s string, a []any) (any, error) {
		sub, ok := text(a[0])
		if !ok {
			return nil, fmt.Errorf("must be str, not %s", typeName(a[0]))
		}
		part, before, ok := window(s, a[1:])
		if !ok {
			return nil, errWindow
		}
		i := find(part, sub)
		if i < 0 {
			if must {
				return nil, errors.New("substring not found")
			}
			return int64(-1), nil
		}
		return int64(utf8.RuneCountInString(s[:before+i])), nil
	}}
}

func partitionMethod(fromRight bool) stringMethod {
	return stringMethod{[]string{"sep"}, func(_ *run, s string, a []any) (any, error) {
		sep, ok := text(a[0])
		if !ok || sep == "" {
			return nil, errors.New("partition wants a separator that is not empty")
		}
		i := strings.Index(s, sep)
		if fromRight {
			i = strings.LastIndex(s, sep)
		}
		switch {
		case i >= 0:
			return &tuple{[]any{s[:i], sep, s[i+len(sep):]}}, nil
		case fromRight:
			return &tuple{[]any{"", "", s}}, nil
		}
		return &tuple{[]any{s, "", ""}}, nil
	}}
}

func affixRemoval(f func(s, affix string) string) stringMethod {
	return stringMethod{[]string{"prefix"}, func(_ *run, s string, a []any) (any, error) {
		affix, ok := text(a[0])
		if !ok {
			return nil, fmt.Errorf("want str, not %s", typeName(a[0]))
		}
		return f(s, affix), nil
	}}
}

// replace is str.replace; limit nil is no limit.
func (r *run) replace(s, old, with string, limit any) (string, error) {
	n := -1
	if limit != nil && limit != any(missing) {
		k, ok := integer(limit)
		if !ok {
			return "", fmt.Errorf("count is %s, want int", typeName(limit))
		}
		n = int(max(-1, min(k, int64(len(s)+1))))
	}
	hits := strings.Count(s, old)
	if n >= 0 {
		hits = min(hits, n)
	}
	if err := r.spend(len(s)); err != nil {
		return "", err
	}
	if len(with) > 0 && hits > r.left/len(with) {
		return "", r.spend(r.left + 1)
	}
	if err := r.spend(hits * len(with)); err != nil {
		return "", err
	}
	return strings.Replace(s, old, with, n), nil
}

// isNumeric is nearly str.isnumeric: the ideographs that are numbers are letters here.
func isNumeric(r rune) bool { return unicode.IsNumber(r) }

// isDigit is str.isdigit, which takes superscripts and circled digits too.
func isDigit(r rune) bool {
	return unicode.IsDigit(r) || strings.ContainsRune("²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", r) || r >= 0x2460 && r <= 0x2468
}

var stringMethods map[string]stringMethod

func init() {
	stringMethods = map[string]stringMethod{
		"upper": plainMethod(upper), "lower": plainMethod(lower), "title": plainMethod(title), "capitalize": plainMethod(capitalize),
		"casefold": plainMethod(func(s string) string { return cases.Fold().String(s) }),
		"swapcase": plainMethod(func(s string) string {
			return strings.Map(func(r rune) rune {
				if unicode.IsUpper(r) {
					return unicode.ToLower(r)
				}
				return unicode.ToUpper(r)
			}, s)
		}),
		"strip": stripMethod(true, true), "lstrip": stripMethod(true, false), "rstrip": stripMethod(false, true),
		"split": splitMethod(false), "rsplit": splitMethod(true),
		"center": padMethod('^'), "ljust": padMethod('<'), "rjust": padMethod('>'),
		"startswith": affixMethod(strings.HasPrefix), "endswith": affixMethod(strings.HasSuffix),
		"find": findMethod(strings.Index, false), "rfind": findMethod(strings.LastIndex, false),
		"index": findMethod(strings.Index, true), "rindex": findMethod(strings.LastIndex, true),
		"partition": partitionMethod(false), "rpartition": partitionMethod(true),
		"removeprefix": affixRemoval(strings.TrimPrefix), "removesuffix": affixRemoval(strings.TrimSuffix),
		"isspace":   predicate(func(s string) bool { return every(s, isSpace) }),
		"isalpha":   predicate(func(s string) bool { return every(s, unicode.IsLetter) }),
		"isdecimal": predicate(func(s string) bool { return every(s, unicode.IsDigit) }),
		"isdigit":   predicate(func(s string) bool { return every(s, isDigit) }),
		"isnumeric": predicate(func(s string) bool { return every(s, isNumeric) }),
		"isalnum":   predicate(func(s string) bool { return every(s, func(r rune) bool { return unicode.IsLetter(r) || isNumeric(r) }) }),
		"isascii":   predicate(func(s string) bool { return s == "" || every(s, func(r rune) bool { return r < 0x80 }) }),
		"isupper":   predicate(func(s string) bool { return cased(s, unicode.IsUpper, unicode.IsLower) }),
		"islower":   predicate(func(s string) bool { return cased(s, unicode.IsLower, unicode.IsUpper) }),
		"istitle": predicate(func(s string) bool {
			return cased(s, func(r rune) bool { return unicode.IsUpper(r) || unicode.IsTitle(r) }, func(rune) bool { return false }) && title(s) == s
		}),
		"isprintable": predicate(func(s string) bool { return s == "" || every(s, unicode.IsPrint) }),
		"replace": {[]string{"old", "new", "count?"}, func(r *run, s string, a []any) (any, error) {
			old, ok1 := text(a[0])
			with, ok2 := text(a[1])
			if !ok1 || !ok2 {
				return nil, errors.New("replace wants strings")
			}
			return r.replace(s, old, with, a[2])
		}},
		"count": {[]string{"sub", "start?", "end?"}, func(_ *run, s string, a []any) (any, error) {
			sub, ok := text(a[0])
			if !ok {
				return nil, fmt.Errorf("must be str, not %s", typeName(a[0]))
			}
			part, _, ok := window(s, a[1:])
			if !ok {
				return nil, errWindow
			}
			return int64(strings.Count(part, sub)), nil
		}},
		"join": {[]string{"iterable"}, func(r *run, s string, a []any) (any, error) {
			items, err := r.items(a[0])
			if err != nil {
				return nil, err
			}
			var b strings.Builder
			for i, item := range items {
				t, ok := text(item)
				if !ok {
					return nil, fmt.Errorf("sequence item %d: expected str instance, %s found", i, typeName(item))
				}
				if i > 0 {
					t = s + t
				}
				if err := r.write(&b, t); err != nil {
					return nil, err
				}
			}
			return b.String(), nil
		}},
		"splitlines": {[]string{"keepends?"}, func(r *run, s string, a []any) (any, error) {
			return r.texts(splitLines(s, a[0] != any(missing) && truth(a[0])))
		}},
		"zfill": {[]string{"width"}, func(r *run, s string, a []any) (any, error) {
			width, ok := integer(a[0])
			if !ok {
				return nil, fmt.Errorf("width is %s, want int", typeName(a[0]))
			}
			sign := ""
			if s != "" && (s[0] == '-' || s[0] == '+') {
				sign, s = s[:1], s[1:]
			}
			s, err := r.pad(s, width-int64(len(sign)), '0', '>')
			return sign + s, err
		}},
		"expandtabs": {[]string{"tabsize?"}, func(r *run, s string, a []any) (any, error) {
			size := int64(8)
			if a[0] != any(missing) {
				size, _ = integer(a[0])
			}
			if size > 1000 {
				return nil, errors.New("tabs of more than 1000 columns")
			}
			var b strings.Builder
			col := int64(0)
			for _, c := range s {
				switch {
				case c == '\t' && size > 0:
					n := size - col%size
					if err := r.write(&b, strings.Repeat(" ", int(n))); err != nil {
						return nil, err
					}
					col += n
				case c == '\t':
				default:
					b.WriteRune(c)
					if col++; c == '\n' || c == '\r' {
						col = 0
					}
				}
			}
			return b.String(), nil
		}},
	}
	for _, name := range []string{"encode", "translate", "maketrans", "format_map", "isidentifier"} {
		stringMethods[name] = stringMethod{nil, func(*run, string, []any) (any, error) {
			return nil, fmt.Errorf("str.%s is not supported", name)
		}}
	}
}

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

// escape is markupsafe.escape of a text.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(s)
}
