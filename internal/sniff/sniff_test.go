package sniff

import (
	"strings"
	"testing"
)

func TestImpostor(t *testing.T) {
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4953586328\n"
	for head, want := range map[string]string{
		pointer:                              "a Git LFS pointer for a file of 4953586328 bytes",
		"\xef\xbb\xbf\n <!DOCTYPE html>\n":   "an HTML page",
		"<HTML><body>":                       "an HTML page",
		"Entry not found":                    `a hub's answer in place of the file: "Entry not found"`,
		"Access to model x is restricted.":   "a hub's answer",
		"":                                   "",
		`{"model_type":"llama"}`:             "",
		"\x08\x00\x00\x00\x00\x00\x00\x00{}": "",
		"version 3":                          "",
	} {
		if got := Impostor([]byte(head)); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%.40q: %q, want %q", head, got, want)
		}
	}
}
