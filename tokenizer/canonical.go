package tokenizer

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// canonical spells a pattern in one of the ways in which it can be spelled, so that two patterns can be compared: line
// breaks escaped, the members of character classes sorted, {1} dropped, English contractions in Llama 3's form. A
// pattern that it does not understand is left as it is.
func canonical(pattern string) string {
	p := strings.NewReplacer("\r", `\r`, "\n", `\n`, "\t", `\t`, "{1}", "").Replace(pattern)
	for _, same := range []string{
		`(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`,
		`'(?i:[sdmt]|ll|ve|re)`,
	} {
		p = strings.ReplaceAll(p, same, contractions)
	}
	var b strings.Builder
	for i := 0; i < len(p); {
		if p[i] == '\\' {
			n := atom(p[i:])
			b.WriteString(p[i : i+n])
			i += n
			continue
		}
		if p[i] != '[' {
			b.WriteByte(p[i])
			i++
			continue
		}
		class, n := sortedClass(p[i:])
		if n == 0 {
			return p
		}
		b.WriteString(class)
		i += n
	}
	return b.String()
}

// sortedClass rewrites the character class that opens p and returns its length; 0 for one that is nested or open.
func sortedClass(p string) (string, int) {
	i, open := 1, "["
	if strings.HasPrefix(p, "[^") {
		i, open = 2, "[^"
	}
	var members []string
	for i < len(p) && p[i] != ']' {
		if p[i] == '[' {
			return "", 0
		}
		n := atom(p[i:])
		if rest := p[i+n:]; len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			n += 1 + atom(rest[1:])
		}
		members = append(members, p[i:i+n])
		i += n
	}
	if i >= len(p) {
		return "", 0
	}
	slices.Sort(members)
	return open + strings.Join(slices.Compact(members), "") + "]", i + 1
}

// atom is the length of the character or escape that opens p, which is not empty.
func atom(p string) int {
	if p[0] != '\\' || len(p) == 1 {
		_, n := utf8.DecodeRuneInString(p)
		return n
	}
	if (p[1] == 'p' || p[1] == 'P') && len(p) > 2 && p[2] == '{' {
		if end := strings.IndexByte(p, '}'); end > 0 {
			return end + 1
		}
	}
	_, n := utf8.DecodeRuneInString(p[1:])
	return 1 + n
}
