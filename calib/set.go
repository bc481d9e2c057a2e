package calib

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/llmq/llmq/formats/gguf"
)

// What a set should have; it warns if it has not.
const (
	MinSequences    = 100
	MaxSourceShare  = 0.8 // of the sequences
	MaxOverlapShare = 0.01
	// OverlapTokens is the length of the n-grams that Overlap compares: long enough that chance does not repeat them
	// (Brown et al., arXiv:2005.14165, appendix C, take 13 words).
	OverlapTokens = 13
)

// Metadata describes the set for a GGUF file: how much it is, where it comes from, and a digest that tells it from
// every other. Source names have no folders: they are nobody's business.
func (s *Set) Metadata() gguf.Metadata {
	names := make([]string, 0, len(s.Sources))
	for i := range s.Sources {
		if s.Sources[i].Sequences > 0 {
			names = append(names, s.Sources[i].Name())
		}
	}
	return gguf.Metadata{
		{Key: "llmq.calibration.sequences", Value: uint32(len(s.Sequences))},
		{Key: "llmq.calibration.sequence_length", Value: uint32(s.SeqLen)},
		{Key: "llmq.calibration.sources", Value: names},
		{Key: "llmq.calibration.sha256", Value: s.SHA256()},
	}
}

// SHA256 is the digest, in hexadecimal, of all token ids in order, each as four bytes, the lowest first.
func (s *Set) SHA256() string {
	h := sha256.New()
	for _, seq := range s.Sequences {
		h.Write(tokenBytes(seq))
	}
	return hex.EncodeToString(h.Sum(nil))
}

func tokenBytes(tokens []int32) []byte {
	b := make([]byte, 0, 4*len(tokens))
	for _, id := range tokens {
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	return b
}

func hashTokens(tokens []int32) [sha256.Size]byte { return sha256.Sum256(tokenBytes(tokens)) }

// HoldOut takes n sequences, evenly spread, out of the set and returns their tokens. At least one stays.
func (s *Set) HoldOut(n int) []int32 {
	total := len(s.Sequences)
	n = min(n, total-1)
	var tokens []int32
	var stay [][]int32
	source, left := 0, 0 // whose sequence comes, and how many of its more
	if len(s.Sources) > 0 {
		left = s.Sources[0].Sequences
	}
	for i, seq := range s.Sequences {
		for left == 0 && source < len(s.Sources)-1 {
			source++
			left = s.Sources[source].Sequences
		}
		left--
		if (i+1)*n/total == i*n/total {
			stay = append(stay, seq)
			continue
		}
		tokens = append(tokens, seq...)
		if source < len(s.Sources) {
			s.Sources[source].Sequences--
		}
	}
	s.Sequences = stay
	return tokens
}

// warn finds what makes the set a poor calibration.
func (s *Set) warn(want int) {
	add := func(format string, args ...any) {
		s.Warnings = append(s.Warnings, "calibration: "+fmt.Sprintf(format, args...))
	}
	if d := s.Duplicates; d.Documents+d.Sequences > 0 {
		add("%d documents and %d sequences repeat others exactly and are left out", d.Documents, d.Sequences)
	}
	if want -= want % s.SeqLen; s.Tokens() < want {
		add("%d tokens instead of %d: the text has no more", s.Tokens(), want)
	}
	if n := len(s.Sequences); n < MinSequences {
		add("%d sequences; fewer than %d leave ranges and Hessians uncertain", n, MinSequences)
	}
	if len(s.Sources) == 1 {
		add("all text is of one source, %s: the model keeps best what its kind of text needs; a second, of another kind or "+
			"language that the model is used for, would have that looked after too", s.Sources[0].Name())
	}
	for i := range s.Sources {
		src := &s.Sources[i]
		if share := float64(src.Sequences) / float64(len(s.Sequences)); len(s.Sources) > 1 && share > MaxSourceShare {
			add("%.0f%% of the sequences come from one source, %s; more than %.0f%% favour its kind of text", 100*share,
				src.Name(), 100*MaxSourceShare)
		}
		if src.Tokens < s.SeqLen {
			add("%s has %d tokens, too few for one sequence of %d", src.Name(), src.Tokens, s.SeqLen)
		}
	}
}

// WarnOverlap warns if the set has much in common with a text that the model will be evaluated on: figures measured on
// what a model was calibrated on flatter it. name names the text.
func (s *Set) WarnOverlap(name string, tokens []int32) {
	if share := s.Overlap(tokens); share > MaxOverlapShare {
		s.Warnings = append(s.Warnings, fmt.Sprintf(
			"calibration: %.1f%% of the passages of %d tokens in %s are in the calibration text too: an evaluation on it flatters the result",
			100*share, OverlapTokens, name))
	}
}

// Overlap returns the share of a text's passages of OverlapTokens tokens that occur in the set. A text without one
// overlaps nothing.
func (s *Set) Overlap(tokens []int32) float64 {
	n := len(tokens) - OverlapTokens + 1
	if n <= 0 {
		return 0
	}
	known := map[[OverlapTokens]int32]bool{}
	for _, seq := range s.Sequences {
		for i := 0; i+OverlapTokens <= len(seq); i++ {
			known[[OverlapTokens]int32(seq[i:])] = true
		}
	}
	common := 0
	for i := range n {
		if known[[OverlapTokens]int32(tokens[i:])] {
			common++
		}
	}
	return float64(common) / float64(n)
}
