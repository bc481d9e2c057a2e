package text

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestHoldsRecords(t *testing.T) {
	for _, c := range []struct {
		name, content string
		want          bool
	}{
		{"a.jsonl", "", true}, {"a.JSONL", "", true}, {"a.ndjson", "", true}, {"a.json", "prose", true},
		{"a.txt", `{"text": "x"}`, true},
		{"a", bom + "\r\n" + `{"text": "x", "l": [{}, 1]}` + "\r\n", true},
		{"a.txt", "{\n \"text\": \"x\"\n}", true},
		{"a.txt", "[\n{\"text\": \"x\"},\n{\"te", true}, // the first record is whole
		{"a.txt", "[{\"te", false},
		{"a.txt", "{\"text\": \"x", false},
		{"a.txt", "{}", false},
		{"a.txt", "[]", false},
		{"a.txt", "[1] Reference", false},
		{"a.txt", "{ return x; }", false},
		{"a.txt", "Prose.\n{\"text\": \"x\"}", false},
		{"a.txt", "", false},
	} {
		if got := HoldsRecords(c.name, []byte(c.content)); got != c.want {
			t.Errorf("%s %q: %v", c.name, c.content, got)
		}
	}
}

// read returns the records of content as "line: fields" with the strings of "t".
func read(content string) (out []string, err error) {
	where := func(line int) string { return fmt.Sprintf("f:%d", line) }
	err = EachRecord([]byte(content), where, func(line int, r Record) error {
		s, err := r.String("t")
		if s == "stop" {
			err = errors.New("stopped")
		}
		out = append(out, fmt.Sprintf("%d %s %s", line, r.Fields(), s))
		return err
	})
	return out, err
}

func TestEachRecord(t *testing.T) {
	const a, b = `{"t":"a","n":null}`, `{"t":"b","m":[1,{"t":"c"}]}`
	want := func(lineA, lineB int) []string {
		return []string{fmt.Sprintf(`%d the fields are "t" a`, lineA), fmt.Sprintf(`%d the fields are "m", "t" b`, lineB)}
	}
	for content, want := range map[string][]string{
		a + "\n" + b:                              want(1, 2),
		bom + a + "\r\n\r\n" + b:                  want(1, 3),
		bom + a + "\n" + bom + b:                  want(1, 2),
		"\n" + a + "\n \t\n" + b + " ":            want(2, 4),
		"[" + a + "," + b + "]":                   want(1, 1),
		"[" + a + "]\n[]\n[" + b + "]":            want(1, 3),
		"[\n" + a + ",\n\n" + b + "\n]\n":         want(2, 4),
		"{\n\"t\":\n\"a\"}\n" + b:                 {`1 the fields are "t" a`, `4 the fields are "m", "t" b`},
		"\n\n[\n{\n\"t\":\"a\"\n}\n,\n" + b + "]": want(4, 8),
		"": nil, " \r\n": nil, bom: nil, "[]": nil,
	} {
		if got, err := read(content); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", content, got, err, want)
		}
	}
	for content, want := range map[string]string{
		a + "\n{\"t\":":                     "f:2: unexpected end of JSON",
		a + "\nprose":                       "f:2: not JSON: invalid character 'p'",
		a + " " + b + " x":                  "f:1: not JSON: invalid character 'x'",
		"[" + a + ",\n" + b:                 "f:2: unexpected end of JSON",
		"[" + a + "\n" + b + "]":            "f:2: not JSON: expected comma after array element",
		a + "\n1":                           "f:2: a number where a record is wanted",
		"[\n" + a + ",\n[" + b + "]]":       "f:3: record 2: a list where a record is wanted",
		a + "\n\"s\"":                       "f:2: a string where a record is wanted",
		"null":                              "f:1: null where a record is wanted",
		a + "\n{\"t\":\"a\",\"t\":\"b\"}":   `f:2: "t" is there twice`,
		a + "\n{\"t\":\"a\",\"t\":null}":    `f:2: "t" is there twice`,
		a + "\n{\"t\":[]}":                  `f:2: "t" is a list; want a string`,
		a + "\n{\"t\":true}":                `f:2: "t" is a truth value; want a string`,
		a + "\n{\"t\":\"stop\"}\nprose":     "f:2: stopped",
		"[" + a + ",\n{\"t\":\"stop\"}\n]":  "f:2: record 2: stopped",
		a + "\n{\"t\":\"\xff\"}":            "f:2: not UTF-8: byte 0xff at offset 6 of the line",
		"[\n" + a + ",\n{\"t\":\"\xff\"}\n": "f:3: not UTF-8: byte 0xff at offset 28",
		"\xff\xfe{\x00":                     "f:1: not UTF-8: byte 0xff at offset 0",
	} {
		if got, err := read(content); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %q, %v; want %q", content, got, err, want)
		}
	}
}

func TestFields(t *testing.T) {
	r := Record{}
	if got := r.Fields(); got != "there are no fields" {
		t.Error(got)
	}
	for i := range 13 {
		r[fmt.Sprintf("%c", 'm'-i)] = nil
	}
	if got, want := r.Fields(), `the fields are "a", "b", "c", "d", "e", "f", "g", "h", "i", "j" and 3 more`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
