package jinja

import (
	"fmt"
	"slices"
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

// escape is markupsafe.escape of a text.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(s)
}
