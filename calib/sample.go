// Package calib chooses the token sequences that a model is calibrated on.
package calib

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Tokenizer is what sampling needs of one.
type Tokenizer interface {
	// Tokens returns the tokens of a text without a BOS token, special tokens read as plain text.
	Tokens(text string) []int32
	// BOS returns the token that the model expects before a text; ok is false if it expects none.
	BOS() (id int32, ok bool)
}

// Options says how much to sample. The zero value is the default.
type Options struct {
	Tokens int    // tokens to sample; 0: DefaultTokens, or all there are if there are fewer but MinTokens
	SeqLen int    // tokens of a sequence; 0: DefaultSeqLen
	Seed   uint64 // of the positions that sequences are taken from
}

const (
	DefaultTokens = 65536
	DefaultSeqLen = 512
	// MinTokens is the least text that is worth a calibration.
	MinTokens = 4096
)

// Set is a sample of sequences, each SeqLen tokens long.
type Set struct {
	SeqLen    int
	Sequences [][]int32
	Sources   []Source
}

// Source is what one file has given to a set.
type Source struct {
	Path      string
	Tokens    int // in the file, or in what was read of it
	Sequences int // taken from it
}

// Tokens is the number of tokens in the set.
func (s *Set) Tokens() int { return len(s.Sequences) * s.SeqLen }

// Sample takes sequences from text files (.jsonl: the "text" field of each line; anything else: plain text): from each
// file in proportion to its length, from each part of a file alike, at positions that depend on the seed alone.
func Sample(paths []string, tok Tokenizer, opt Options) (*Set, error) {
	seqLen := opt.SeqLen
	if seqLen == 0 {
		seqLen = DefaultSeqLen
	}
	want := opt.Tokens
	if want == 0 {
		want = DefaultTokens
	}
	if seqLen < 2 || want < seqLen {
		return nil, fmt.Errorf("calibration: %d tokens in sequences of %d: need at least one sequence of 2", want, seqLen)
	}
	if len(paths) == 0 {
		return nil, errors.New("calibration: no text")
	}
	set := &Set{SeqLen: seqLen}
	var streams [][]int32
	total, sequences := 0, 0
	for _, path := range paths {
		docs, err := readDocuments(path)
		if err != nil {
			return nil, err
		}
		stream := tokenize(docs, tok)
		streams = append(streams, stream)
		set.Sources = append(set.Sources, Source{Path: path, Tokens: len(stream)})
		total += len(stream)
		sequences += len(stream) / seqLen
	}
	n := want / seqLen
	if n > sequences {
		if opt.Tokens != 0 || sequences*seqLen < MinTokens {
			return nil, fmt.Errorf("calibration: %s: %d tokens, enough for %d sequences of %d; %d tokens are wanted and %d are the least that is of use: give more text, a smaller --calib-tokens or a smaller --seq-len",
				strings.Join(paths, ", "), total, sequences, seqLen, want, MinTokens)
		}
		n = sequences
	}
	bos, hasBOS := tok.BOS()
	for i, k := range apportion(streams, seqLen, n) {
		rng := rand.New(rand.NewPCG(opt.Seed, uint64(i)))
		for _, seq := range windows(streams[i], seqLen, k, rng) {
			if hasBOS {
				seq[0] = bos
			}
			set.Sequences = append(set.Sequences, seq)
		}
		set.Sources[i].Sequences = k
	}
	return set, nil
}

// tokenize joins documents into one stream, each after a BOS token if the model expects one.
func tokenize(docs []string, tok Tokenizer) []int32 {
	bos, hasBOS := tok.BOS()
	var stream []int32
	for _, d := range docs {
		if hasBOS {
			stream = append(stream, bos)
		}
		stream = append(stream, tok.Tokens(d)...)
	}
	return stream
}

// apportion divides n sequences among streams in proportion to how many each holds, by largest remainder; the first
// of equal remainders wins.
func apportion(streams [][]int32, seqLen, n int) []int {
	share := make([]int, len(streams))
	rest := make([]int, len(streams))
	total := 0
	for _, s := range streams {
		total += len(s) / seqLen
	}
	left := n
	for i, s := range streams {
		k := len(s) / seqLen
		share[i], rest[i] = n*k/total, n*k%total
		left -= share[i]
	}
	for ; left > 0; left-- {
		best := 0
		for i := range rest {
			if rest[i] > rest[best] {
				best = i
			}
		}
		share[best]++
		rest[best] = -1
	}
	return share
}

// windows cuts n sequences from a stream, one at a random place in each of n equal parts.
func windows(stream []int32, seqLen, n int, rng *rand.Rand) [][]int32 {
	out := make([][]int32, n)
	for i := range out {
		lo, hi := i*len(stream)/n, (i+1)*len(stream)/n
		start := lo + rng.IntN(hi-lo-seqLen+1)
		out[i] = append([]int32(nil), stream[start:start+seqLen]...)
	}
	return out
}

const (
	// maxFileBytes is how much of a file is tokenized; of a longer one, evenly spread pieces are.
	maxFileBytes = 64 << 20
	pieceBytes   = 256 << 10
)

// readDocuments returns a file's documents.
func readDocuments(path string) ([]string, error) {
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
	jsonl := strings.EqualFold(filepath.Ext(path), ".jsonl")
	var docs []string
	if info.Size() <= maxFileBytes {
		docs, err = parse(path, file, jsonl, 0)
	} else {
		for i := range int64(maxFileBytes / pieceBytes) {
			// Whole lines only: a piece starts after the first line break and ends at the last one.
			at := i * (info.Size() - pieceBytes) / (maxFileBytes/pieceBytes - 1)
			var piece []byte
			if piece, err = readPiece(file, at); err != nil {
				return nil, fmt.Errorf("calibration: %s: %w", path, err)
			}
			var more []string
			if more, err = parse(path, bytes.NewReader(piece), jsonl, at); err != nil {
				break
			}
			docs = append(docs, more...)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("calibration: %s: no text", path)
	}
	return docs, nil
}

func readPiece(file io.ReaderAt, at int64) ([]byte, error) {
	piece := make([]byte, pieceBytes)
	if _, err := file.ReadAt(piece, at); err != nil && err != io.EOF {
		return nil, err
	}
	if at > 0 {
		piece = piece[bytes.IndexByte(piece, '\n')+1:]
	}
	return piece[:bytes.LastIndexByte(piece, '\n')+1], nil
}

// parse reads documents from r, which starts base bytes into the file.
func parse(path string, r io.Reader, jsonl bool, base int64) ([]string, error) {
	if !jsonl {
		text, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("calibration: %w", err)
		}
		if i := invalidUTF8(text); i >= 0 {
			return nil, fmt.Errorf("calibration: %s: byte %d is not UTF-8 text", path, base+int64(i))
		}
		if len(bytes.TrimSpace(text)) == 0 {
			return nil, nil
		}
		return []string{string(text)}, nil
	}
	var docs []string
	in := bufio.NewReader(r)
	for line := 1; ; line++ {
		text, err := in.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("calibration: %w", err)
		}
		if len(bytes.TrimSpace(text)) > 0 {
			where := fmt.Sprintf("%s:%d", path, line)
			if base > 0 {
				where = fmt.Sprintf("%s: line %d after byte %d", path, line, base)
			}
			var record struct {
				Text *string `json:"text"`
			}
			if i := invalidUTF8(text); i >= 0 {
				return nil, fmt.Errorf("calibration: %s: byte %d of the line is not UTF-8 text", where, i)
			}
			if err := json.Unmarshal(text, &record); err != nil {
				return nil, fmt.Errorf("calibration: %s: %w", where, err)
			}
			if record.Text == nil {
				return nil, fmt.Errorf("calibration: %s: no \"text\" field", where)
			}
			if *record.Text != "" {
				docs = append(docs, *record.Text)
			}
		}
		if err == io.EOF {
			return docs, nil
		}
	}
}

// invalidUTF8 returns the offset of the first byte that is not part of UTF-8 text, or −1.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}
