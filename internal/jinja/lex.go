package jinja

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	tokenEOF tokenKind = iota
	tokenData
	tokenVariableBegin
	tokenVariableEnd
	tokenBlockBegin
	tokenBlockEnd
	tokenName
	tokenString
	tokenInteger
	tokenFloat
	tokenOperator
)

// token is one piece of a template. text is the name, the operator, the text between tags or the string's value.
type token struct {
	kind tokenKind
	text string
	num  any // of an integer or a float
	line int
}

func (t token) String() string {
	switch t.kind {
	case tokenEOF:
		return "the end of the template"
	case tokenData:
		return "text"
	case tokenVariableBegin:
		return "'{{'"
	case tokenVariableEnd:
		return "'}}'"
	case tokenBlockBegin:
		return "'{%'"
	case tokenBlockEnd:
		return "'%}'"
	case tokenString:
		return "a string"
	}
	return "'" + t.text + "'"
}

// is tells whether the token is this name or operator.
func (t token) is(kind tokenKind, text string) bool { return t.kind == kind && t.text == text }

// lexer follows jinja2.lexer with trim_blocks (the line break after a block or a comment goes) and lstrip_blocks (so do
// blanks before it on its line).
type lexer struct {
	src    string
	pos    int
	line   int
	starts bool // whether the last match ended with a line break
	tokens []token
}

// lex cuts a template into tokens; the last one is tokenEOF.
func lex(source string) ([]token, error) {
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	source = strings.TrimSuffix(source, "\n")
	l := &lexer{src: source, line: 1, starts: true}
	for l.pos < len(l.src) {
		if err := l.root(); err != nil {
			return nil, err
		}
	}
	l.emit(token{kind: tokenEOF})
	return l.tokens, nil
}

func (l *lexer) emit(t token) {
	t.line = l.line
	l.tokens = append(l.tokens, t)
}

// advance moves on over n bytes.
func (l *lexer) advance(n int) {
	s := l.src[l.pos : l.pos+n]
	l.line += strings.Count(s, "\n")
	if n > 0 {
		l.starts = s[n-1] == '\n'
	}
	l.pos += n
}

// data emits the text up to the tag at byte end, stripped as the tag's sign says.
func (l *lexer) data(end int, sign byte, variable bool) {
	text := l.src[l.pos:end]
	switch {
	case sign == '-':
		text = strings.TrimRightFunc(text, isSpace)
	case sign != '+' && !variable:
		if i := strings.LastIndexByte(text, '\n') + 1; (i > 0 || l.starts) && strings.TrimFunc(text[i:], isSpace) == "" {
			text = text[:i]
		}
	}
	if text != "" {
		l.emit(token{kind: tokenData, text: text})
	}
	l.advance(end - l.pos)
}

// sign is the whitespace control at byte i, or 0.
func (l *lexer) sign(i int) byte {
	if i < len(l.src) && (l.src[i] == '-' || l.src[i] == '+') {
		return l.src[i]
	}
	return 0
}

// root reads text and the tag that follows it.
func (l *lexer) root() error {
	at := l.pos
	for {
		i := strings.IndexByte(l.src[at:], '{')
		if i < 0 || at+i+1 >= len(l.src) {
			l.emit(token{kind: tokenData, text: l.src[l.pos:]})
			l.advance(len(l.src) - l.pos)
			return nil
		}
		at += i
		if c := l.src[at+1]; c == '{' || c == '%' || c == '#' {
			break
		}
		at++
	}
	kind := l.src[at+1]
	sign := l.sign(at + 2)
	open := at + 2
	if sign != 0 {
		open++
	}
	if kind == '%' {
		if end, ok := l.raw(open, "raw", false); ok {
			l.data(at, sign, false)
			l.advance(end - l.pos)
			return l.rawBody()
		}
	}
	l.data(at, sign, kind == '{')
	l.advance(open - l.pos)
	switch kind {
	case '#':
		return l.comment()
	case '%':
		l.emit(token{kind: tokenBlockBegin})
		return l.tag('%', tokenBlockEnd)
	default:
		l.emit(token{kind: tokenVariableBegin})
		return l.tag('}', tokenVariableEnd)
	}
}

// skipSpace is the first byte from i on that is no space.
func (l *lexer) skipSpace(i int) int {
	return len(l.src) - len(strings.TrimLeftFunc(l.src[i:], isSpace))
}

// raw tells whether the block at byte i is {% raw %}, or {% endraw %}, and where it ends.
func (l *lexer) raw(i int, name string, trim bool) (end int, ok bool) {
	i = l.skipSpace(i)
	if !strings.HasPrefix(l.src[i:], name) {
		return 0, false
	}
	i = l.skipSpace(i + len(name))
	if name == "raw" && strings.HasPrefix(l.src[i:], "+%}") {
		return 0, false
	}
	n := l.closing(i, '%', trim)
	return i + n, n > 0
}

// closing is the length of a tag's end at byte i with the whitespace that goes with it, or 0 if no end is there.
func (l *lexer) closing(i int, c byte, trim bool) int {
	rest := l.src[i:]
	end := string([]byte{c, '}'})
	switch {
	case strings.HasPrefix(rest, "-"+end):
		return l.skipSpace(i+3) - i
	case c != '}' && strings.HasPrefix(rest, "+"+end):
		return 3
	case strings.HasPrefix(rest, end+"\n") && trim:
		return 3
	case strings.HasPrefix(rest, end):
		return 2
	}
	return 0
}

func (l *lexer) rawBody() error {
	for at := l.pos; ; at++ {
		i := strings.Index(l.src[at:], "{%")
		if i < 0 {
			return &Error{l.line, fmt.Errorf("{%% raw %%} without {%% endraw %%}")}
		}
		at += i
		sign, open := l.sign(at+2), at+2
		if sign != 0 {
			open++
		}
		if end, ok := l.raw(open, "endraw", true); ok {
			l.data(at, sign, false)
			l.advance(end - l.pos)
			return nil
		}
	}
}

func (l *lexer) comment() error {
	for at := l.pos; ; at++ {
		i := strings.Index(l.src[at:], "#}")
		if i < 0 {
			return &Error{l.line, fmt.Errorf("a comment without its end")}
		}
		at += i
		if at > l.pos && (l.src[at-1] == '-' || l.src[at-1] == '+') {
			at--
		}
		if n := l.closing(at, '#', true); n > 0 {
			l.advance(at + n - l.pos)
			return nil
		}
	}
}

// operators, longest first.
var operators = []string{"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":", "|", ",", ";"}

// tag reads the tokens up to the end of a tag.
func (l *lexer) tag(c byte, end tokenKind) error {
	var open []byte // brackets that want closing
	for l.pos < len(l.src) {
		if len(open) == 0 {
			if n := l.closing(l.pos, c, c == '%'); n > 0 {
				l.emit(token{kind: end})
				l.advance(n)
				return nil
			}
		}
		rest := l.src[l.pos:]
		first, size := utf8.DecodeRuneInString(rest)
		switch {
		case isSpace(first):
			l.advance(size)
		case first >= '0' && first <= '9':
			if err := l.number(); err != nil {
				return err
			}
		case first == '_' || unicode.IsLetter(first):
			n := strings.IndexFunc(rest, func(r rune) bool {
				return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.Is(unicode.M, r)
			})
			if n < 0 {
				n = len(rest)
			}
			l.emit(token{kind: tokenName, text: rest[:n]})
			l.advance(n)
		case first == '\'' || first == '"':
			if err := l.str(byte(first)); err != nil {
				return err
			}
		default:
			op := ""
			for _, o := range operators {
				if strings.HasPrefix(rest, o) {
					op = o
					break
				}
			}
			switch op {
			case "":
				return &Error{l.line, fmt.Errorf("unexpected character %q", first)}
			case "(", "[", "{":
				open = append(open, map[string]byte{"(": ')', "[": ']', "{": '}'}[op])
			case ")", "]", "}":
				if len(open) == 0 || open[len(open)-1] != op[0] {
					return &Error{l.line, fmt.Errorf("unexpected '%s'", op)}
				}
				open = open[:len(open)-1]
			}
			l.emit(token{kind: tokenOperator, text: op})
			l.advance(len(op))
		}
	}
	return nil // the parser finds the end of the template where it wants more
}

// number reads an integer or a float. After a dot there are integers only: a.0.1 is an item of an item.
func (l *lexer) number() error {
	rest := l.src[l.pos:]
	digits := func(i int, ok func(byte) bool) int {
		for i < len(rest) && (ok(rest[i]) || rest[i] == '_' && i+1 < len(rest) && ok(rest[i+1])) {
			i++
		}
		return i
	}
	decimal := func(c byte) bool { return c >= '0' && c <= '9' }
	isDigit := func(i int) bool { return i < len(rest) && decimal(rest[i]) }
	end, float := digits(0, decimal), false
	if l.pos == 0 || l.src[l.pos-1] != '.' {
		if end < len(rest) && rest[end] == '.' && isDigit(end+1) {
			end, float = digits(end+1, decimal), true
		}
		if end < len(rest) && rest[end]|0x20 == 'e' {
			i := end + 1
			if i < len(rest) && (rest[i] == '+' || rest[i] == '-') {
				i++
			}
			if isDigit(i) {
				end, float = digits(i, decimal), true
			}
		}
	}
	if float {
		f, err := strconv.ParseFloat(strings.ReplaceAll(rest[:end], "_", ""), 64)
		if err != nil {
			return &Error{l.line, fmt.Errorf("number %s: %w", rest[:end], err)}
		}
		l.emit(token{kind: tokenFloat, text: rest[:end], num: f})
		l.advance(end)
		return nil
	}
	base := 10
	if len(rest) > 2 && rest[0] == '0' {
		hex := func(c byte) bool { return decimal(c) || c|0x20 >= 'a' && c|0x20 <= 'f' }
		for _, b := range []struct {
			letter byte
			base   int
			ok     func(byte) bool
		}{{'x', 16, hex}, {'o', 8, func(c byte) bool { return c >= '0' && c <= '7' }}, {'b', 2, func(c byte) bool { return c == '0' || c == '1' }}} {
			if e := digits(2, b.ok); rest[1]|0x20 == b.letter && e > 2 {
				base, end = b.base, e
			}
		}
	}
	s := strings.ReplaceAll(rest[:end], "_", "")
	if base == 10 && len(s) > 1 && s[0] == '0' {
		if s = strings.TrimLeft(s, "0"); s != "" {
			return &Error{l.line, fmt.Errorf("number %s: leading zeros", rest[:end])}
		}
		s = "0"
	}
	if base != 10 {
		s = s[2:]
	}
	n, err := strconv.ParseInt(s, base, 64)
	if err != nil {
		return &Error{l.line, fmt.Errorf("number %s: beyond 64 bits", rest[:end])}
	}
	l.emit(token{kind: tokenInteger, text: rest[:end], num: n})
	l.advance(end)
	return nil
}

// str reads a string with Python's escapes.
func (l *lexer) str(quote byte) error {
	var b strings.Builder
	s := l.src[l.pos:]
	fail := func(format string, args ...any) error { return &Error{l.line, fmt.Errorf(format, args...)} }
	for i := 1; i < len(s); {
		switch c := s[i]; {
		case c == quote:
			l.emit(token{kind: tokenString, text: b.String()})
			l.advance(i + 1)
			return nil
		case c != '\\' || i+1 >= len(s):
			b.WriteByte(c)
			i++
		default:
			c = s[i+1]
			i += 2
			if at := strings.IndexByte(`\'"abfnrtv`, c); at >= 0 {
				b.WriteByte("\\'\"\a\b\f\n\r\t\v"[at])
				continue
			}
			switch n := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]; {
			case c == '\n':
			case n > 0:
				if i+n > len(s) {
					return fail("a truncated \\%c escape", c)
				}
				v, err := strconv.ParseUint(s[i:i+n], 16, 32)
				if err != nil || !utf8.ValidRune(rune(v)) {
					return fail("an invalid \\%c escape", c)
				}
				b.WriteRune(rune(v))
				i += n
			case c >= '0' && c <= '7':
				v := rune(c - '0')
				for k := 0; k < 2 && i < len(s) && s[i] >= '0' && s[i] <= '7'; k++ {
					v = v*8 + rune(s[i]-'0')
					i++
				}
				b.WriteRune(v)
			case c == 'N':
				return fail("\\N escapes are not supported")
			default:
				b.WriteByte('\\')
				b.WriteByte(c)
			}
		}
	}
	return fail("a string without its end")
}

// isSpace is Python's str.isspace.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }
