// Package sniff tells what a downloaded file is when it is not what its name says.
package sniff

import (
	"bytes"
	"fmt"
)

// Impostor describes a file by its first bytes: a Git LFS pointer, a web page or a hub's error text. It returns "" for
// anything else.
func Impostor(head []byte) string {
	head = head[:min(len(head), 512)]
	text := bytes.ToLower(bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n"))
	switch {
	case bytes.HasPrefix(head, []byte("version https://git-lfs.github.com/")):
		size := ""
		if _, after, ok := bytes.Cut(head, []byte("\nsize ")); ok {
			digits, _, _ := bytes.Cut(after, []byte("\n"))
			size = fmt.Sprintf(" for a file of %.20s bytes", digits)
		}
		return "a Git LFS pointer" + size + ", not the file itself: run git lfs pull"
	case bytes.HasPrefix(text, []byte("<!doctype html")), bytes.HasPrefix(text, []byte("<html")):
		return "an HTML page: the download gave a web page in place of the file"
	case bytes.HasPrefix(text, []byte("entry not found")), bytes.HasPrefix(text, []byte("invalid username or password")),
		bytes.HasPrefix(text, []byte("access to model ")), bytes.HasPrefix(text, []byte("repository not found")):
		line, _, _ := bytes.Cut(bytes.TrimSpace(head), []byte("\n"))
		return fmt.Sprintf("a hub's answer in place of the file: %.100q", line)
	}
	return ""
}
