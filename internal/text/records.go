package text

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// bom is U+FEFF, which some editors write before a text to say that it is UTF-8.
const bom = "\ufeff"

// TrimBOM returns b without the byte order mark that it may begin with.
func TrimBOM(b []byte) []byte { return bytes.TrimPrefix(b, []byte(bom)) }

// Record is an object in a file of records. Members that are null are left out.
type Record map[string]json.RawMessage

// HoldsRecords says whether a file is to be read as records: its name ends in .jsonl, .ndjson or .json, or its content
// begins as only a file of records does, with a whole JSON object, in one line or several, or a list that begins with one.
// content may be a part of the file, from its start.
func HoldsRecords(path string, content []byte) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".jsonl", ".ndjson", ".json":
		return true
	}
	dec := json.NewDecoder(bytes.NewReader(TrimBOM(content)))
	t, err := dec.Token()
	if err == nil && t == json.Delim('[') {
		t, err = dec.Token()
	}
	if err != nil || t != json.Delim('{') || !dec.More() { // {} is as likely to be code
		return false
	}
	for depth := 1; depth > 0; {
		t, err := dec.Token()
		if err != nil {
			return false
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
	return true
}

// ByLines says whether content, of a file of records, has a whole value in its first line that is not empty. Then so should
// every line; otherwise values may go over several lines.
func ByLines(content []byte) bool {
	content = bytes.TrimLeft(TrimBOM(content), " \t\r\n")
	line, _, _ := bytes.Cut(content, []byte("\n"))
	return json.Valid(line)
}

// EachRecord calls f with every record of content: JSON objects that follow each other, one in a line or over several
// lines, or are the elements of lists. Errors, f's too, begin with where(line), lines counted from 1, and in a list with the
// record's number.
func EachRecord(content []byte, where func(line int) string, f func(line int, r Record) error) error {
	content = TrimBOM(content)
	if !ByLines(content) {
		if at := Invalid(content); at >= 0 {
			return fmt.Errorf("%s: not UTF-8: byte %#02x at offset %d", where(1+bytes.Count(content[:at], newline)), content[at], at)
		}
		return eachValue(content, 1, where, f)
	}
	for line := 1; len(content) > 0; line++ {
		b, rest, _ := bytes.Cut(content, newline)
		b = TrimBOM(b) // of a file that was appended to another
		if content = rest; len(bytes.TrimSpace(b)) == 0 {
			continue
		}
		if at := Invalid(b); at >= 0 {
			return fmt.Errorf("%s: not UTF-8: byte %#02x at offset %d of the line", where(line), b[at], at)
		}
		if err := eachValue(b, line, where, f); err != nil {
			return err
		}
	}
	return nil
}

var newline = []byte("\n")

// eachValue is EachRecord for values that begin in line.
func eachValue(content []byte, line int, where func(line int) string, f func(line int, r Record) error) error {
	dec := json.NewDecoder(bytes.NewReader(content))
	seen := 0 // bytes whose line breaks are counted in line
	advance := func() {
		at := int(dec.InputOffset())
		for at < len(content) && strings.IndexByte(" \t\r\n,", content[at]) >= 0 { // to where the next value begins
			at++
		}
		line += bytes.Count(content[seen:at], newline)
		seen = at
	}
	fail := func(err error) error {
		var syntax *json.SyntaxError
		switch {
		case errors.As(err, &syntax):
			at := min(max(int(syntax.Offset), seen), len(content))
			return fmt.Errorf("%s: not JSON: %w", where(line+bytes.Count(content[seen:at], newline)), err)
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			return fmt.Errorf("%s: unexpected end of JSON", where(line))
		}
		return fmt.Errorf("%s: %w", where(line), err)
	}
	value := func(number int) error {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return fail(err)
		}
		r, err := parseRecord(raw)
		if err == nil {
			err = f(line, r)
		}
		if err != nil && number > 0 {
			err = fmt.Errorf("record %d: %w", number, err)
		}
		if err != nil {
			return fail(err)
		}
		return nil
	}
	for {
		if advance(); seen == len(content) {
			return nil
		}
		if content[seen] != '[' {
			if err := value(0); err != nil {
				return err
			}
			continue
		}
		if _, err := dec.Token(); err != nil {
			return fail(err)
		}
		for number := 1; dec.More(); number++ {
			advance()
			if err := value(number); err != nil {
				return err
			}
		}
		if _, err := dec.Token(); err != nil {
			return fail(err)
		}
	}
}

// parseRecord reads an object.
func parseRecord(raw json.RawMessage) (Record, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("%s where a record is wanted: an object with named fields", kind(raw))
	}
	r := Record{}
	given := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if given[name] {
			return nil, fmt.Errorf("%.40q is there twice", name)
		}
		given[name] = true
		if string(value) != "null" {
			r[name] = value
		}
	}
	return r, nil
}

// Has says whether a field is there.
func (r Record) Has(name string) bool { return r[name] != nil }

// String returns a field that has to be a string, "" if it is not there.
func (r Record) String(name string) (string, error) {
	raw := r[name]
	if raw == nil {
		return "", nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", fmt.Errorf("%q is %s; want a string", name, kind(raw))
	}
	return s, nil
}

// List returns the elements of a field that has to be a list, nil if it is not there.
func (r Record) List(name string) ([]json.RawMessage, error) {
	raw := r[name]
	if raw == nil {
		return nil, nil
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, fmt.Errorf("%q is %s; want a list", name, kind(raw))
	}
	return list, nil
}

// Strings returns a field that has to be a list of strings, nil if it is not there.
func (r Record) Strings(name string) ([]string, error) {
	list, err := r.List(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, raw := range list {
		s, err := Record{"": raw}.String("")
		if err != nil || string(raw) == "null" {
			return nil, fmt.Errorf("%q[%d] is %s; want a string", name, i, kind(raw))
		}
		out = append(out, s)
	}
	return out, nil
}

// Records returns a field that has to be a list of objects, nil if it is not there.
func (r Record) Records(name string) ([]Record, error) {
	list, err := r.List(name)
	if err != nil {
		return nil, err
	}
	var out []Record
	for i, raw := range list {
		e, err := parseRecord(raw)
		if err != nil {
			return nil, fmt.Errorf("%q[%d]: %w", name, i, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// Fields lists the names of the fields that are there, for an error: `no fields`, or `the fields are "a", "b"`.
func (r Record) Fields() string {
	const most = 10
	if len(r) == 0 {
		return "there are no fields"
	}
	names := slices.Sorted(maps.Keys(r))
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%.40q", name)
	}
	return "the fields are " + strings.Join(names, ", ") + more
}

// kind names what a JSON value is.
func kind(raw json.RawMessage) string {
	switch raw = bytes.TrimLeft(raw, " \t\r\n"); {
	case len(raw) == 0:
		return "nothing"
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "a list"
	case raw[0] == '"':
		return "a string"
	case raw[0] == 'n':
		return "null"
	case raw[0] == 't', raw[0] == 'f':
		return "a truth value"
	}
	return "a number"
}
