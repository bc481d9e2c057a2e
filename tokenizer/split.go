package tokenizer

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// splitter calls yield with the words of text, in order; together they are the text.
type splitter func(text string, yield func(word string))

// splitter compiles p.Split.
func (p *Pre) splitter() (splitter, error) {
	var all splitter
	for _, pattern := range p.Split {
		s, err := patternSplitter(pattern)
		if err != nil {
			return nil, fmt.Errorf("pattern %s: %w", pattern, err)
		}
		if outer := all; outer != nil {
			inner := s
			s = func(text string, yield func(string)) {
				outer(text, func(part string) { inner(part, yield) })
			}
		}
		all = s
	}
	return all, nil
}

// patternSplitter splits by one pattern: its matches are words, and so is what stands between them.
func patternSplitter(pattern string) (splitter, error) {
	if next, ok := handWritten[pattern]; ok {
		return func(text string, yield func(string)) {
			for len(text) > 0 {
				n := next(text)
				yield(text[:n])
				text = text[n:]
			}
		}, nil
	}
	return regexSplitter(pattern)
}

// regexSplitter serves every pattern; it needs lookahead, which package regexp lacks.
func regexSplitter(pattern string) (splitter, error) {
	re, err := regexp2.Compile(pattern, regexp2.None)
	if err != nil {
		return nil, err
	}
	return func(text string, yield func(string)) {
		runes := []rune(text)
		at, byteAt := 0, 0 // what has been yielded, in runes and in bytes
		emit := func(end int) {
			from := byteAt
			for ; at < end; at++ {
				_, n := utf8.DecodeRuneInString(text[byteAt:])
				byteAt += n
			}
			if byteAt > from {
				yield(text[from:byteAt])
			}
		}
		// The only error is a timeout, and none is set.
		m, _ := re.FindRunesMatch(runes)
		for m != nil {
			emit(m.Index)
			emit(m.Index + m.Length)
			m, _ = re.FindNextMatch(m)
		}
		emit(len(runes))
	}, nil
}

// handWritten are the patterns of the most usual models, written out because regexp2 takes many times as long. Each
// function returns the length of the first word of a text that is not empty.
var handWritten = map[string]func(text string) int{
	GPT2Pattern:   nextGPT2,
	llama3Pattern: words{digits: 3}.next,
	qwen2Pattern:  words{digits: 1}.next,
	qwen35Pattern: words{digits: 1, marks: true}.next,
	`\p{N}`:       nextDigit,
	lines:         nextLines,
}

// nextGPT2 splits by GPT2Pattern.
func nextGPT2(text string) int {
	if n := contraction(text, false); n > 0 {
		return n
	}
	r, size := utf8.DecodeRuneInString(text)
	from := 0
	if r == ' ' && len(text) > 1 {
		from = 1
		r, size = utf8.DecodeRuneInString(text[1:])
	}
	switch {
	case unicode.IsLetter(r):
		return from + size + span(text[from+size:], unicode.IsLetter)
	case unicode.IsNumber(r):
		return from + size + span(text[from+size:], unicode.IsNumber)
	case !unicode.IsSpace(r):
		return from + size + span(text[from+size:], isOther)
	}
	return spaces(text)
}

// words splits by Llama 3's pattern and its relatives.
type words struct {
	digits int  // the longest run of digits in a word
	marks  bool // combining marks count as letters
}

func (w words) next(text string) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	letter, other := unicode.IsLetter, isOther
	if w.marks {
		letter, other = isLetterOrMark, isOtherButMark
	}
	r, size := utf8.DecodeRuneInString(text)
	// [^\r\n\p{L}\p{N}]?\p{L}+
	if letter(r) {
		return size + span(text[size:], letter)
	}
	if r != '\r' && r != '\n' && !unicode.IsNumber(r) {
		if n := span(text[size:], letter); n > 0 {
			return size + n
		}
	}
	// \p{N}{1,digits}
	if unicode.IsNumber(r) {
		for i := 1; i < w.digits && size < len(text); i++ {
			r, n := utf8.DecodeRuneInString(text[size:])
			if !unicode.IsNumber(r) {
				break
			}
			size += n
		}
		return size
	}
	// ' ?[^\s\p{L}\p{N}]+[\r\n]*'
	from := 0
	if r == ' ' {
		from = 1
	}
	if n := span(text[from:], other); n > 0 {
		n += from
		for n < len(text) && (text[n] == '\r' || text[n] == '\n') {
			n++
		}
		return n
	}
	// \s*[\r\n]+
	blank := span(text, unicode.IsSpace)
	for i := blank; i > 0; i-- {
		if text[i-1] == '\r' || text[i-1] == '\n' {
			return i
		}
	}
	return spaces(text)
}

// nextDigit splits off single digits.
func nextDigit(text string) int {
	if r, size := utf8.DecodeRuneInString(text); unicode.IsNumber(r) {
		return size
	}
	return span(text, func(r rune) bool { return !unicode.IsNumber(r) })
}

// nextLines splits what is line breaks from what is not.
func nextLines(text string) int {
	breaks := text[0] == '\n'
	for i := range len(text) {
		if (text[i] == '\n') != breaks {
			return i
		}
	}
	return len(text)
}

// spaces matches \s+(?!\S)|\s+ in a text that opens with a space: all of them if they end the text, else all but the
// last, but at least one.
func spaces(text string) int {
	n := span(text, unicode.IsSpace)
	if n == len(text) {
		return n
	}
	if _, last := utf8.DecodeLastRuneInString(text[:n]); last < n {
		return n - last
	}
	return n
}

// contraction is the length of an English contraction ('s 't 're 've 'm 'll 'd) that opens text.
func contraction(text string, foldCase bool) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	at := func(i int) byte {
		if i >= len(text) {
			return 0
		}
		if c := text[i]; foldCase && 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return text[i]
	}
	switch a, b := at(1), at(2); {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return 2
	case a == 'r' && b == 'e' || a == 'v' && b == 'e' || a == 'l' && b == 'l':
		return 3
	}
	return 0
}

// span is the length of the longest prefix of text whose characters are all in the class.
func span(text string, class func(rune) bool) int {
	for i, r := range text {
		if !class(r) {
			return i
		}
	}
	return len(text)
}

func isOther(r rune) bool {
	return !unicode.IsSpace(r) && !unicode.IsLetter(r) && !unicode.IsNumber(r)
}

func isLetterOrMark(r rune) bool { return unicode.IsLetter(r) || unicode.IsMark(r) }

func isOtherButMark(r rune) bool { return isOther(r) && !unicode.IsMark(r) }
