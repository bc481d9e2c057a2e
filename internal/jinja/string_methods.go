package jinja

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
)

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
