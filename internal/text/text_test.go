package text

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadUTF8(t *testing.T) {
	for _, c := range []struct{ content, err string }{
		{"plain, ünïcode, 漢字, 🙂, and U+FFFD itself: \uFFFD", ""},
		{"", "empty"},
		{"ab\xffcd", "byte 0xff at offset 2"},
		{"cut short: \xe6\xbc", "byte 0xe6 at offset 11"},
		{"surrogate \xed\xa0\x80", "offset 10"},
	} {
		path := filepath.Join(t.TempDir(), "text")
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadUTF8(path)
		switch {
		case c.err == "" && (err != nil || got != c.content):
			t.Errorf("%q: %q, %v", c.content, got, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%q: error %v, want %q", c.content, err, c.err)
		}
	}
}
