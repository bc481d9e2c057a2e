// Package text reads the texts that models are calibrated and evaluated on.
package text

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"unicode/utf8"
)

// maxTextBytes bounds a text that is read as a whole. Tests make it smaller.
var maxTextBytes int64 = 1 << 30

// ReadFile returns the content of a regular file of at most so many bytes. A pipe would keep the reader waiting, and a device
// may have no end.
func ReadFile(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(path, f, info.Size(), most)
}

// readAll reads what has size bytes as far as is known, and at most so many.
func readAll(name string, r io.Reader, size, most int64) ([]byte, error) {
	tooLong := fmt.Errorf("%s: more than %d bytes", name, most)
	if size > most {
		return nil, tooLong
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = tooLong
	}
	return b, err
}

// ReadUTF8 returns the content of a file, of a gigabyte at most. Content that is empty or not UTF-8 is an error, which gives the
// offset of the first byte that is wrong. Devices, which may have no end, are refused, and pipes of the file system, whose
// writer may never come; a pipe that a shell has made, as for <(command), has one.
func ReadUTF8(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return "", fmt.Errorf("%s: is a folder, not a text", path)
	case !mode.IsRegular() && (mode&fs.ModeNamedPipe == 0 || isNamed(path)):
		return "", fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	s, err := Read(path, f, info.Size())
	if err == nil && s == "" {
		err = fmt.Errorf("%s: the text is empty", path)
	}
	return s, err
}

// isNamed says whether what path stands for has a place in the file system: /proc/self/fd/3 links to "pipe:[4711]", which has
// none.
func isNamed(path string) bool {
	_, err := filepath.EvalSymlinks(path)
	return err == nil
}

// Read returns what r gives, which may be empty. It has size bytes as far as is known; name is for messages.
func Read(name string, r io.Reader, size int64) (string, error) {
	b, err := readAll(name, r, size, maxTextBytes)
	if err != nil {
		return "", err
	}
	if at := Invalid(b); at >= 0 {
		return "", fmt.Errorf("%s: not UTF-8: byte %#02x at offset %d", name, b[at], at)
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
