package calib

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"github.com/llmq/llmq/tokenizer"
)

// Tokenizer is what sampling needs of a *tokenizer.Tokenizer.
type Tokenizer interface {
	Encode(text string, opt tokenizer.EncodeOptions) []int32
	// BOS returns the token that opens a text, and whether the model expects it there.
	BOS() (id int32, add bool)
}

// Options says how much to sample. The zero value is the default.
type Options struct {
	Tokens int    // tokens to sample; 0: Enough, or all there are if there are fewer but MinTokens
	Enough int    // tokens that are sampled where Tokens is 0; 0: DefaultTokens
	SeqLen int    // tokens of a sequence; 0: DefaultSeqLen
	Seed   uint64 // of the positions that sequences are taken from
	// HeldOut is how many tokens to sample besides, as far as the text has them, for Set.HoldOut.
	HeldOut int
	// Chat renders the conversations of "messages" records; nil: such a record is an error.
	Chat *ChatTemplate
}

const (
	DefaultTokens = 65536
	// SmallModelTokens is the default of models of fewer than smallModel weights, whose runs are short: it takes 2% off
	// their KL divergence (0 to 5%) for at most twice the time, and more tokens take nothing off.
	SmallModelTokens = 131072
	smallModel       = 1e9

	DefaultSeqLen = 512
	// MinTokens is the least text that is worth a calibration.
	MinTokens = 4096
)

// Enough is how many tokens a model of so many weights is calibrated on unless told otherwise.
func Enough(weights int64) int {
	if weights < smallModel {
		return SmallModelTokens
	}
	return DefaultTokens
}

// Set is a sample of sequences, each SeqLen tokens long.
type Set struct {
	SeqLen    int
	Sequences [][]int32
	Sources   []Source
	// Duplicates counts what was left out because the set had the same already.
	Duplicates struct{ Documents, Sequences int }
	// Warnings say what makes the set a poor calibration.
	Warnings []string
}

// Source is what one stratum of the text, a file or one domain in a file, has given to a set.
type Source struct {
	Path      string
	Domain    string // "" for a file without domains
	Tokens    int    // in the source, or in what was read of it
	Sequences int    // taken from it
}

// Name is the source without its folder: "chat.jsonl", or "chat.jsonl: law" for a domain of it.
func (s *Source) Name() string {
	if s.Domain != "" {
		return filepath.Base(s.Path) + ": " + s.Domain
	}
	return filepath.Base(s.Path)
}

// Tokens is the number of tokens in the set.
func (s *Set) Tokens() int { return len(s.Sequences) * s.SeqLen }

// Sample takes sequences from text files. A file of records (text.HoldsRecords) has texts, {"text": ...}, or conversations,
// {"messages": [{"role": ..., "content": ...}, ...]}, or another of the layouts that document names; each with a "domain" if
// all records of the file have one. Any other file is one plain text. Each file, or each domain in one, is a stratum: it gives sequences in proportion to its
// length, each part of it alike, at positions that depend on the seed alone. Documents and sequences that repeat
// another exactly are left out.
func Sample(paths []string, tok Tokenizer, opt Options) (*Set, error) {
	seqLen, want := opt.SeqLen, opt.Tokens
	if seqLen == 0 {
		seqLen = DefaultSeqLen
	}
	if want == 0 {
		want = cmp.Or(opt.Enough, DefaultTokens)
	}
	if seqLen < 2 || want < seqLen {
		return nil, fmt.Errorf("calibration: %d tokens in sequences of %d: need at least one sequence of 2", want, seqLen)
	}
	if len(paths) == 0 {
		return nil, errors.New("calibration: no text")
	}
	set := &Set{SeqLen: seqLen}
	var streams [][]int32
	seen := map[[sha256.Size]byte]bool{}
	total, sequences := 0, 0
	for _, path := range paths {
		strata, err := readStrata(path, opt.Chat)
		if err != nil {
			return nil, err
		}
		for _, s := range strata {
			stream := set.tokenize(s.docs, tok, seen)
			streams = append(streams, stream)
			set.Sources = append(set.Sources, Source{Path: path, Domain: s.domain, Tokens: len(stream)})
			total += len(stream)
			sequences += len(stream) / seqLen
		}
	}
	n := (want + min(opt.HeldOut, math.MaxInt-want)) / seqLen
	if n > sequences {
		if opt.Tokens != 0 && want/seqLen > sequences || opt.Tokens == 0 && sequences*seqLen < MinTokens {
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
			if h := hashTokens(seq); seen[h] {
				set.Duplicates.Sequences++
				continue
			} else {
				seen[h] = true
			}
			set.Sequences = append(set.Sequences, seq)
			set.Sources[i].Sequences++
		}
	}
	set.warn(want)
	return set, nil
}

// tokenize joins the documents that are new into one stream, each after a BOS token if the model expects one.
func (s *Set) tokenize(docs []document, tok Tokenizer, seen map[[sha256.Size]byte]bool) []int32 {
	bos, hasBOS := tok.BOS()
	var stream []int32
	for _, d := range docs {
		h := sha256.Sum256([]byte(d.text))
		if seen[h] {
			s.Duplicates.Documents++
			continue
		}
		seen[h] = true
		// In a conversation the template has written the control tokens, often a BOS token among them; in a plain text
		// their names are text like any other.
		tokens := tok.Encode(d.text, tokenizer.EncodeOptions{NoBOS: true, ParseSpecial: d.chat})
		if hasBOS && (len(tokens) == 0 || tokens[0] != bos) {
			stream = append(stream, bos)
		}
		stream = append(stream, tokens...)
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
