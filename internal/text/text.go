// Package text reads the texts that models are calibrated and evaluated on.
package text

import (
	"fmt"
	"os"
	"unicode/utf8"
)

// ReadUTF8 returns a file's content. Content that is empty or not UTF-8 is an error, which gives the offset of the
// first byte that is wrong.
func ReadUTF8(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if len(b) == 0 {
		return "", fmt.Errorf("%s: the text is empty", path)
	}
	if at := Invalid(b); at >= 0 {
		return "", fmt.Errorf("%s: not UTF-8: byte %#02x at offset %d", path, b[at], at)
	}
	return string(b), nil
}

// Invalid returns the offset of the first byte of b that is not part of a UTF-8 sequence, -1 if there is none.
func Invalid(b []byte) int {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}
