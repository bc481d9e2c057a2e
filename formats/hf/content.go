package hf

import (
	"bytes"
)

// notTheFile recognises what stands in a file's place when a download went wrong, and says what to do; "" for anything
// else.
func notTheFile(data []byte) string {
	head := bytes.TrimSpace(data[:min(len(data), 1024)])
	switch lower := bytes.ToLower(head); {
	case bytes.HasPrefix(head, []byte("version https://git-lfs.github.com/spec/")):
		return "is a Git LFS pointer, not the file itself; run git lfs pull"
	case bytes.HasPrefix(lower, []byte("<!doctype html")), bytes.HasPrefix(lower, []byte("<html")):
		return "is a web page, not the file; download the file again"
	case bytes.Equal(head, []byte("Entry not found")), bytes.Equal(head, []byte("Repository not found")),
		bytes.HasPrefix(head, []byte("Invalid username or password")), bytes.HasPrefix(head, []byte("Access to model ")):
		return "is the hub's answer, not the file: " + string(head)
	}
	return ""
}
