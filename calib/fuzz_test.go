package calib_test

import (
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/llmq/llmq/calib"
)

// FuzzFile: whatever a calibration file holds is refused or gives texts of UTF-8 in proportion to it.
func FuzzFile(f *testing.F) {
	for _, content := range []string{
		"plain text\r\nin two lines", "\xef\xbb\xbf{\"text\": \"a\"}\n\n{\"text\": null, \"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}",
		`[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}]`,
		`{"instruction": "i", "input": "in", "output": "o", "history": [["q", "a"]], "domain": "d"}`,
		"{\n \"prompt\": [{\"role\": \"user\", \"content\": \"q\"}],\n \"completion\": \"a\"\n}", `{"text": "\ud800\u0000"}`, "\xff\xfea\x00", "[[[[[",
	} {
		f.Add("x.jsonl", []byte(content))
		f.Add("x.txt", []byte(content))
	}
	dir := f.TempDir()
	chat := template(turns)
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		path := filepath.Join(dir, "x"+filepath.Ext(filepath.Base(name)))
		if os.WriteFile(path, content, 0o600) != nil {
			return // no name of a file
		}
		defer os.Remove(path)
		docs, err := calib.Documents(path, chat)
		if err != nil {
			return
		}
		n := 0
		for _, d := range docs {
			if n += len(d); !utf8.ValidString(d) {
				t.Errorf("%q is not UTF-8", d)
			}
		}
		if n > 16*len(content)+64<<10 {
			t.Errorf("%d bytes of text in %d", n, len(content))
		}
	})
}
