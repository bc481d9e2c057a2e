package calib

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/llmq/llmq/internal/text"
)

// document is a text, or a conversation as the model's template renders it.
type document struct {
	text string
	chat bool
}

// stratum is the documents of a file, or those of one domain in it.
type stratum struct {
	domain string
	docs   []document
}

// Of a file longer than maxFileBytes, evenly spread pieces are read, which together are as long. Tests make them smaller.
var (
	maxFileBytes int64 = 64 << 20
	pieceBytes   int64 = 256 << 10
)

// reader gathers the documents of one file.
type reader struct {
	path   string
	chat   *ChatTemplate
	strata []stratum
	index  map[string]int // of strata, by domain

	first   string // where the first record is, which decides whether there are domains
	domains bool
}

// readStrata returns a file's documents, domains in the order of their first record.
func readStrata(path string, chat *ChatTemplate) ([]stratum, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("calibration: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("calibration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("calibration: %s: not a regular file", path)
	}
	r := &reader{path: path, chat: chat, index: map[string]int{}}
	parse := r.plain
	if strings.EqualFold(filepath.Ext(path), ".jsonl") {
		parse = r.records
	}
	if info.Size() <= maxFileBytes {
		if err := parse(file, 0); err != nil {
			return nil, err
		}
	} else {
		n := maxFileBytes / pieceBytes
		for i := range n {
			at := i * (info.Size() - pieceBytes) / (n - 1)
			piece, base, err := readPiece(file, at)
			if err != nil {
				return nil, fmt.Errorf("calibration: %s: %w", path, err)
			}
			if err := parse(bytes.NewReader(piece), base); err != nil {
				return nil, err
			}
		}
	}
	if len(r.strata) == 0 {
		return nil, fmt.Errorf("calibration: %s: no text", path)
	}
	return r.strata, nil
}

// readPiece returns the whole lines of the piece at an offset, and the offset of the first of them. A piece that does
// not open the file starts after its first line break; every piece ends at its last one. One without any is cut between
// characters.
func readPiece(file io.ReaderAt, at int64) (piece []byte, base int64, err error) {
	piece = make([]byte, pieceBytes)
	n, err := file.ReadAt(piece, at)
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	piece = piece[:n]
	start, end := 0, bytes.LastIndexByte(piece, '\n')+1
	if at > 0 {
		start = bytes.IndexByte(piece, '\n') + 1
	}
	if start >= end {
		for start = 0; at > 0 && start < min(utf8.UTFMax, n) && !utf8.RuneStart(piece[start]); start++ {
		}
		end = n
		for i := n - 1; i >= max(start, n-utf8.UTFMax); i-- {
			if utf8.RuneStart(piece[i]) {
				if !utf8.FullRune(piece[i:]) {
					end = i
				}
				break
			}
		}
	}
	return piece[start:end], at + int64(start), nil
}

// add puts a document into its stratum.
func (r *reader) add(domain string, d document) {
	i, ok := r.index[domain]
	if !ok {
		i = len(r.strata)
		r.index[domain] = i
		r.strata = append(r.strata, stratum{domain: domain})
	}
	r.strata[i].docs = append(r.strata[i].docs, d)
}

// plain reads one document from in, which starts base bytes into the file.
func (r *reader) plain(in io.Reader, base int64) error {
	b, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("calibration: %w", err)
	}
	if at := text.Invalid(b); at >= 0 {
		return fmt.Errorf("calibration: %s: not UTF-8: byte %#02x at offset %d", r.path, b[at], base+int64(at))
	}
	if len(bytes.TrimSpace(b)) > 0 {
		r.add("", document{text: string(b)})
	}
	return nil
}

// records reads one document per line.
func (r *reader) records(in io.Reader, base int64) error {
	lines := bufio.NewReader(in)
	for line := 1; ; line++ {
		b, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return fmt.Errorf("calibration: %w", err)
		}
		if len(bytes.TrimSpace(b)) > 0 {
			where := fmt.Sprintf("%s:%d", r.path, line)
			if base > 0 {
				where = fmt.Sprintf("%s: line %d after byte %d", r.path, line, base)
			}
			if err := r.record(where, b); err != nil {
				return fmt.Errorf("calibration: %s: %w", where, err)
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// record reads one line.
func (r *reader) record(where string, line []byte) error {
	if at := text.Invalid(line); at >= 0 {
		return fmt.Errorf("not UTF-8: byte %#02x at offset %d of the line", line[at], at)
	}
	var record struct {
		Text     *string         `json:"text"`
		Messages json.RawMessage `json:"messages"`
		Domain   string          `json:"domain"`
	}
	if err := json.Unmarshal(line, &record); err != nil {
		return err
	}
	domain := record.Domain != ""
	switch {
	case r.first == "":
		r.first, r.domains = where, domain
	case domain && !r.domains:
		return fmt.Errorf("a \"domain\", which %s has not: give all records of a file one, or none", r.first)
	case !domain && r.domains:
		return fmt.Errorf("no \"domain\", which %s has: give all records of a file one, or none", r.first)
	}
	d := document{chat: len(record.Messages) > 0}
	switch {
	case d.chat && record.Text != nil:
		return errors.New(`both "text" and "messages"`)
	case d.chat:
		var members map[string]json.RawMessage
		err := json.Unmarshal(line, &members)
		if err != nil {
			return err
		}
		if d.text, err = r.chat.render(record.Messages, members); err != nil {
			return err
		}
	case record.Text == nil:
		return errors.New(`no "text" field, nor "messages"`)
	default:
		d.text = *record.Text
	}
	if d.text != "" {
		r.add(record.Domain, d)
	}
	return nil
}
