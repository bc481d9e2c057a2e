package calib

import (
	"bytes"
	"fmt"
	"io"
	"os"
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

	structured bool   // the file holds records
	first      string // where the first record is, which decides whether there are domains
	domains    bool
}

// readStrata returns a file's documents, domains in the order of their first record.
func readStrata(path string, chat *ChatTemplate) ([]stratum, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("calibration: %w", err)
	}
	if !info.Mode().IsRegular() { // opening a pipe could wait for ever
		return nil, fmt.Errorf("calibration: %s: not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("calibration: %w", err)
	}
	defer file.Close()
	r := &reader{path: path, chat: chat, index: map[string]int{}}
	if info.Size() <= maxFileBytes {
		content, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
		if err != nil {
			return nil, fmt.Errorf("calibration: %w", err)
		}
		if int64(len(content)) > maxFileBytes {
			return nil, fmt.Errorf("calibration: %s: had %d bytes, and grows while it is read", path, info.Size())
		}
		if err := r.parser(content)(content, 0); err != nil {
			return nil, err
		}
	} else if err := r.pieces(file, info.Size()); err != nil {
		return nil, err
	}
	if len(r.strata) == 0 {
		return nil, fmt.Errorf("calibration: %s: no text", path)
	}
	return r.strata, nil
}

// parser returns what reads a file with this content, or content that begins so.
func (r *reader) parser(content []byte) func(content []byte, base int64) error {
	if r.structured = text.HoldsRecords(r.path, content); r.structured {
		return r.records
	}
	return r.plain
}

// pieces reads evenly spread pieces of a file of size bytes.
func (r *reader) pieces(file io.ReaderAt, size int64) error {
	head := make([]byte, pieceBytes)
	if _, err := file.ReadAt(head, 0); err != nil {
		return fmt.Errorf("calibration: %s: %w", r.path, err)
	}
	parse := r.parser(head)
	n := maxFileBytes / pieceBytes
	for i := range n {
		piece, base, err := r.readPiece(file, i*(size-pieceBytes)/(n-1))
		if err != nil {
			return fmt.Errorf("calibration: %s: %w", r.path, err)
		}
		if i == 0 && r.structured && !text.ByLines(piece) {
			return fmt.Errorf("calibration: %s: %d bytes of JSON whose first line is not a whole record; of more than %d bytes "+
				"pieces are read, by lines: write a record in each, as jq -c '.[]' does of a list", r.path, size, maxFileBytes)
		}
		if err := parse(piece, base); err != nil {
			return err
		}
	}
	return nil
}

// readPiece returns the whole lines of the piece at an offset, and the offset of the first of them. A piece that does
// not open the file starts after its first line break; every piece ends at its last one. One without any is longer where
// a line is a record, and otherwise cut between characters.
func (r *reader) readPiece(file io.ReaderAt, at int64) (piece []byte, base int64, err error) {
	for length := pieceBytes; ; length *= 2 {
		piece = make([]byte, length)
		n, err := file.ReadAt(piece, at)
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		piece = piece[:n]
		start, end := 0, bytes.LastIndexByte(piece, '\n')+1
		if at > 0 {
			start = bytes.IndexByte(piece, '\n') + 1
		}
		switch {
		case start < end:
			return piece[start:end], at + int64(start), nil
		case r.structured && err == io.EOF: // the last line begins before the piece, or is one without a break
			if at > 0 && end == 0 {
				return nil, at, nil
			}
			return piece[start:], at + int64(start), nil
		case r.structured && length < maxFileBytes:
			continue
		case r.structured:
			return nil, 0, fmt.Errorf("a line of more than %d bytes at offset %d", maxFileBytes, at)
		}
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
		return piece[start:end], at + int64(start), nil
	}
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

// plain reads one document, which starts base bytes into the file. Line ends are LF, however they are written.
func (r *reader) plain(content []byte, base int64) error {
	if at := text.Invalid(content); at >= 0 {
		return fmt.Errorf("calibration: %s: not UTF-8: byte %#02x at offset %d", r.path, content[at], base+int64(at))
	}
	if base == 0 {
		content = text.TrimBOM(content)
	}
	if len(bytes.TrimSpace(content)) > 0 {
		r.add("", document{text: string(bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n")))})
	}
	return nil
}

// records reads one document for each record.
func (r *reader) records(content []byte, base int64) error {
	where := func(line int) string {
		if base > 0 {
			return fmt.Sprintf("calibration: %s: line %d after byte %d", r.path, line, base)
		}
		return fmt.Sprintf("calibration: %s:%d", r.path, line)
	}
	return text.EachRecord(content, where, func(line int, rec text.Record) error {
		domain, err := r.domain(line, base, rec)
		if err != nil {
			return err
		}
		d, err := r.document(rec)
		if err == nil && d.text != "" {
			r.add(domain, d)
		}
		return err
	})
}

// domain returns a record's "domain". All records of a file have one, or none has.
func (r *reader) domain(line int, base int64, rec text.Record) (string, error) {
	domain, err := rec.String("domain")
	if err != nil {
		return "", err
	}
	switch has := domain != ""; {
	case r.first == "":
		r.domains = has
		if r.first = fmt.Sprintf("line %d", line); base > 0 {
			r.first += fmt.Sprintf(" after byte %d", base)
		}
	case has && !r.domains:
		return "", fmt.Errorf("a \"domain\", which the record in %s has not: give all records of a file one, or none", r.first)
	case !has && r.domains:
		return "", fmt.Errorf("no \"domain\", which the record in %s has: give all records of a file one, or none", r.first)
	}
	return domain, nil
}
