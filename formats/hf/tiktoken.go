package hf

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/internal/sniff"
	"github.com/llmq/llmq/tokenizer"
)

// maxTokenBytes bounds a token of a file of ranks: the time to find its merge grows with the square of its length. The
// longest of OpenAI's have 128.
const maxTokenBytes = 1 << 10

// ranks are tokens in the order in which tiktoken (github.com/openai/tiktoken) merges: of all pairs of neighbours, the one
// that makes the token of the least rank goes first. They are also the ids.
type ranks map[string]int

// readRanks finds the file of ranks, nil if there is none.
func (c *Checkpoint) readRanks() ([]byte, string, error) {
	data, path, err := c.readOptional(ranksFile)
	if data != nil || err != nil {
		return data, path, err
	}
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, "", err
	}
	for _, file := range files {
		if filepath.Ext(file.Name()) == ".tiktoken" {
			return c.readOptional(file.Name())
		}
	}
	return nil, path, nil
}

// isRanks says that the first line could be of a file of ranks.
func isRanks(data []byte) bool {
	line, _, _ := bytes.Cut(data, []byte("\n"))
	_, _, err := parseRank(string(line))
	return err == nil
}

// parseRanks reads lines of a token in base64 and its rank, as *.tiktoken files have them.
func parseRanks(file string, data []byte) (*bpeModel, error) {
	if what := sniff.Impostor(data); what != "" {
		return nil, fmt.Errorf("%s: it is %s", file, what)
	}
	r := ranks{}
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		text = strings.TrimRight(text, "\r\n")
		if text == "" {
			continue
		}
		token, rank, err := parseRank(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, line, err)
		}
		if other, dup := r[token]; dup {
			return nil, fmt.Errorf("%s:%d: token %.64q has two ranks, %d and %d", file, line, token, other, rank)
		}
		r[token] = rank
	}
	if len(r) == 0 {
		return nil, fmt.Errorf("%s: holds no ranks", file)
	}
	b := r.model(0)
	b.merges = r.merges()
	return b, nil
}

func parseRank(line string) (token string, rank int, err error) {
	text, number, ok := strings.Cut(line, " ")
	if !ok {
		return "", 0, fmt.Errorf("%.64q is not a token in base64 and its rank", line)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) == 0 {
		return "", 0, fmt.Errorf("%.64q is not a token in base64", text)
	}
	if len(b) > maxTokenBytes {
		return "", 0, fmt.Errorf("a token of %d bytes", len(b))
	}
	if rank, err = strconv.Atoi(number); err != nil || rank < 0 || rank > maxVocab {
		return "", 0, fmt.Errorf("rank %.64q is not a number from 0 to %d", number, maxVocab)
	}
	return string(b), rank, nil
}

// model is a BPE model without merges, whose ids are the ranks from first on.
func (r ranks) model(first int) *bpeModel {
	b := &bpeModel{vocab: make(map[string]int, len(r)), byteLevel: true, ignoreMerges: true, ranks: true}
	for token, rank := range r {
		b.vocab[tokenizer.SpellBytes(token)] = first + rank
	}
	return b
}

// sorted lists the tokens by rank.
func (r ranks) sorted() []string {
	return slices.SortedFunc(maps.Keys(r), func(x, y string) int { return r[x] - r[y] })
}

// merges lists for each token what merging its bytes comes to before the token itself would be made. Tokens for which that
// is not two others are made by no merge. As tiktoken takes a word that is a token whole, they occur only so.
func (r ranks) merges() [][2]string {
	var merges [][2]string
	for _, token := range r.sorted() {
		if parts := r.split(token); len(parts) == 2 {
			merges = append(merges, [2]string{tokenizer.SpellBytes(parts[0]), tokenizer.SpellBytes(parts[1])})
		}
	}
	return merges
}

// allMerges lists all pairs of tokens that make a token, by its rank and then those of the pair, as Mistral's tokenizers are
// converted. It fails if they take more than limit bytes, which only tokens made for that do.
func (r ranks) allMerges(limit int) ([][2]string, error) {
	var merges [][2]string
	size := 0
	for _, token := range r.sorted() {
		from := len(merges)
		for i := 1; i < len(token); i++ {
			_, left := r[token[:i]]
			_, right := r[token[i:]]
			if left && right {
				merges = append(merges, [2]string{token[:i], token[i:]})
				size += len(token)
			}
		}
		if size > limit {
			return nil, fmt.Errorf("the merges up to rank %d take %d bytes", r[token], size)
		}
		slices.SortFunc(merges[from:], func(x, y [2]string) int {
			return cmp.Or(r[x[0]]-r[y[0]], r[x[1]]-r[y[1]])
		})
	}
	for i, m := range merges {
		merges[i] = [2]string{tokenizer.SpellBytes(m[0]), tokenizer.SpellBytes(m[1])}
	}
	return merges, nil
}

// split merges the bytes of token by the ranks below its own, and returns what is left.
func (r ranks) split(token string) []string {
	parts := make([]string, len(token))
	for i := range parts {
		parts[i] = token[i : i+1]
	}
	own := r[token]
	pairs := make([]int, len(parts)) // ranks of each part with the next, own for none below it
	rank := func(i int) {
		if i < 0 || i >= len(pairs) {
			return
		}
		pairs[i] = own
		if i+1 < len(parts) {
			if rank, ok := r[parts[i]+parts[i+1]]; ok {
				pairs[i] = min(rank, own)
			}
		}
	}
	for i := range parts {
		rank(i)
	}
	for {
		at := 0
		for i, rank := range pairs {
			if rank < pairs[at] {
				at = i
			}
		}
		if pairs[at] == own {
			return parts
		}
		parts[at] += parts[at+1]
		parts = slices.Delete(parts, at+1, at+2)
		pairs = slices.Delete(pairs, at+1, at+2)
		rank(at - 1)
		rank(at)
	}
}

// specialsAfter numbers special tokens from the last rank on.
func (b *bpeModel) specialsAfter(specials []string) []addedToken {
	next := 0
	for _, id := range b.vocab {
		next = max(next, id+1)
	}
	var added []addedToken
	for i, token := range specials {
		added = append(added, addedToken{id: next + i, content: token, special: true})
	}
	return added
}

// parseVocabAndMerges reads vocab.json and merges.txt of GPT-2's tokenizer and its heirs.
func parseVocabAndMerges(vocabFile string, vocab []byte, mergesFile string, merges []byte) (*bpeModel, error) {
	if what := sniff.Impostor(vocab); what != "" {
		return nil, fmt.Errorf("%s: it is %s", vocabFile, what)
	}
	if what := sniff.Impostor(merges); what != "" {
		return nil, fmt.Errorf("%s: it is %s", mergesFile, what)
	}
	b := &bpeModel{byteLevel: true}
	o := object.New(vocabFile)
	if b.vocab = readVocab(o, "vocab", vocab); o.Err() != nil {
		return nil, o.Err()
	}
	line := 0
	for text := range strings.Lines(string(merges)) {
		line++
		text = strings.TrimRight(text, "\r\n")
		if text == "" || line == 1 && strings.HasPrefix(text, "#version") {
			continue
		}
		left, right, ok := strings.Cut(text, " ")
		if !ok || left == "" || right == "" || strings.Contains(right, " ") {
			return nil, fmt.Errorf("%s:%d: is %.64q, want two tokens with a space between them", mergesFile, line, text)
		}
		b.merges = append(b.merges, [2]string{left, right})
	}
	return b, nil
}
