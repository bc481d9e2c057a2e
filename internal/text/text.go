// Package text reads the texts that models are calibrated and evaluated on.
package text

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"unicode/utf8"
)

// maxPipeBytes bounds what is read of a pipe, which has no size. Tests make it smaller.
var maxPipeBytes int64 = 1 << 30

// ReadUTF8 returns the content of a file or a pipe. Content that is empty or not UTF-8 is an error, which gives the offset
// of the first byte that is wrong. Devices, which may have no end, are refused.
func ReadUTF8(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return "", fmt.Errorf("%s: is a folder, not a text", path)
	case !mode.IsRegular() && mode&fs.ModeNamedPipe == 0:
		return "", fmt.Errorf("%s: neither a regular file nor a pipe", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	most := max(info.Size(), maxPipeBytes)
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", err
	}
	if int64(len(b)) > most {
		return "", fmt.Errorf("%s: more than %d bytes", path, most)
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
