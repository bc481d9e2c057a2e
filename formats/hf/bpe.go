package hf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/tokenizer"
)

// bpeModel is a BPE tokenizer, from whichever of the files that describe one.
type bpeModel struct {
	vocab        map[string]int
	merges       [][2]string
	added        []addedToken
	special      map[string]int // kinds of special tokens that the file itself names
	byteLevel    bool           // GPT-2's byte alphabet; otherwise SentencePiece's characters with byte fallback
	ignoreMerges bool
	unknown      string // unk_token
	ranks        bool   // merges come from ranks
	// How text is split: pre names it where the file has no steps that say so.
	pre   string
	steps []string
	// What happens to a text before.
	spacePrefix    bool // SentencePiece only
	spacesReplaced bool // by ▁
	splitAtSpaces  bool // which comes to nothing if they are replaced: some files say both
	nfc            bool
	scored         bool      // llama.cpp's converter writes scores, all of them 0
	post           *template // nil without one
}

// pres are the pre-tokenizers that split as the model does, the one to prefer first; none if no reader knows how.
func (b *bpeModel) pres(quirks arch.Tokenizer) []*tokenizer.Pre {
	if len(b.steps) == 0 {
		name := b.pre
		if name == "" {
			name = quirks.Pre
		}
		if p, ok := tokenizer.PreByName(name); ok {
			return []*tokenizer.Pre{p}
		}
		return nil
	}
	found := tokenizer.PresBySteps(b.steps)
	usual, ok := tokenizer.PreByName(quirks.Pre)
	for i, p := range found {
		if ok && p == usual {
			found[0], found[i] = found[i], found[0]
		}
	}
	return found
}

// preName is the name to write for the first of pres: the class's own, if it is one of its names.
func preName(p *tokenizer.Pre, quirks arch.Tokenizer) string {
	if usual, ok := tokenizer.PreByName(quirks.Pre); ok && usual == p {
		return quirks.Pre
	}
	return p.Names[0]
}

// vocabulary gathers the tokens.
func (b *bpeModel) vocabulary(size int, added []addedToken, asWritten bool, warn func(string, ...any)) (*vocabulary, error) {
	if size == 0 {
		var err error
		if size, err = b.size(added); err != nil {
			return nil, err
		}
	}
	v := newVocabulary(size)
	v.scored = b.scored
	for token, id := range b.vocab {
		if id < size && v.taken[id] {
			first, second := min(v.tokens[id], token), max(v.tokens[id], token)
			return nil, fmt.Errorf("tokens %.64q and %.64q have the same id, %d", first, second, id)
		}
		typ := tokenizer.Normal
		if !b.byteLevel && token == b.unknown {
			typ = tokenizer.Unknown
		} else if !b.byteLevel && isByteToken(token) {
			typ = tokenizer.Byte
		}
		if err := v.put(id, token, typ, 0); err != nil {
			return nil, err
		}
	}
	v.add(added, asWritten, warn)
	if b.scored {
		clear(v.scores)
	}
	return v, v.checkNUL()
}

// size is the number of tokens, which the ids say.
func (b *bpeModel) size(added []addedToken) (int, error) {
	size, tokens := 0, len(b.vocab)+len(added)
	for _, id := range b.vocab {
		size = max(size, id+1)
	}
	for _, a := range added {
		size = max(size, a.id+1)
	}
	if size > 2*tokens+1024 {
		return 0, fmt.Errorf("ids go up to %d, but there are only %d tokens", size-1, tokens)
	}
	return size, nil
}

// isByteToken recognises SentencePiece's <0xFF>.
func isByteToken(token string) bool {
	if len(token) != len("<0xFF>") || token[:3] != "<0x" || token[5] != '>' {
		return false
	}
	_, err := strconv.ParseUint(token[3:5], 16, 8)
	return err == nil
}

// loadBPE sets the metadata of a byte-level tokenizer.
func (c *Checkpoint) loadBPE(f *tokenizerFiles, m tokenizerModel, opt Options) (*vocabulary, error) {
	b := f.bpe
	v, err := b.vocabulary(m.vocab, f.added, false, c.warn)
	if err != nil {
		return nil, err
	}
	v.pad(0)
	pre := opt.Pre
	if pre == "" {
		pres := b.pres(m.quirks)
		switch {
		case len(pres) > 0:
			pre = preName(pres[0], m.quirks)
		case len(b.steps) > 0:
			return nil, fmt.Errorf("pre_tokenizer: these steps are not those of a pre-tokenizer that GGUF readers know:\n\t%s\n"+
				"name one that splits alike with --pre: %s", strings.Join(b.steps, "\n\t"), strings.Join(tokenizer.PreNames(), ", "))
		default:
			return nil, fmt.Errorf("the file does not say how text is split into words; name the pre-tokenizer with --pre: %s",
				strings.Join(tokenizer.PreNames(), ", "))
		}
	} else if _, ok := tokenizer.PreByName(pre); !ok {
		return nil, fmt.Errorf("--pre %q is not known; known: %s", pre, strings.Join(tokenizer.PreNames(), ", "))
	}
	if b.nfc {
		c.warn("%s: NFC is left out: GGUF readers do not compose characters, so texts that are not composed have other tokens", f.path)
	}
	c.setVocabulary(tokenizer.ModelBytes, pre, v)
	c.setMerges(b)
	if raw, ok := f.config.Get("add_prefix_space"); ok {
		prefix := f.config.Bool("add_prefix_space", false)
		switch {
		case f.config.Err() != nil:
			return nil, f.config.Err()
		case prefix:
			c.warn("%s: add_prefix_space: is %s, which GGUF readers do not do for byte-level tokenizers", f.config.File, raw)
		}
		if m.quirks.PrefixSaid {
			c.md.Set("tokenizer.ggml.add_space_prefix", prefix)
		}
	}
	return v, nil
}

// setMerges sets the merges, in which a space stands between two tokens; those of tokens have another character.
func (c *Checkpoint) setMerges(b *bpeModel) {
	merges := make([]string, len(b.merges))
	for i, m := range b.merges {
		merges[i] = strings.ReplaceAll(m[0], " ", "Ġ") + " " + strings.ReplaceAll(m[1], " ", "Ġ")
	}
	c.md.Set("tokenizer.ggml.merges", merges)
}

// loadCharacters sets the metadata of BPE of characters.
func (c *Checkpoint) loadCharacters(f *tokenizerFiles, m tokenizerModel) (*vocabulary, error) {
	b := f.bpe
	if len(b.steps) > 0 {
		return nil, fmt.Errorf("pre_tokenizer: %s: GGUF readers do not do this for BPE of characters", strings.Join(b.steps, ", "))
	}
	if b.spacePrefix || !b.spacesReplaced {
		return nil, fmt.Errorf("normalizer: puts a space before the text, or leaves spaces as they are; GGUF readers do neither " +
			"for BPE of characters")
	}
	v, err := b.vocabulary(m.vocab, f.added, true, c.warn)
	if err != nil {
		return nil, err
	}
	for id, token := range v.tokens {
		if slices.Contains(m.quirks.Visible, token) {
			v.types[id] = int32(tokenizer.UserDefined)
		}
		v.scores[id] = addScore
	}
	v.pad(addScore)
	v.scored = true
	if n := v.missingBytes(); n > 0 {
		c.warn("%s: %d of 256 bytes have no token; llama.cpp loses them where a character is not a token", f.path, n)
	}
	c.setVocabulary(tokenizer.ModelCharacters, "", v)
	c.setMerges(b)
	c.md.Set("tokenizer.ggml.add_space_prefix", false)
	return v, nil
}

// loadMergedSPM sets the metadata of a SentencePiece tokenizer of which only tokenizer.json is left. SentencePiece
// merges by the score of the token that a pair makes; the rank of the first merge that makes it will do for a score, as
// long as the merges are all the ways to make each token, in one run each. Then the two orders are the same.
func (c *Checkpoint) loadMergedSPM(f *tokenizerFiles, m tokenizerModel) (*vocabulary, error) {
	b := f.bpe
	if len(b.steps) > 0 {
		return nil, fmt.Errorf("pre_tokenizer: %s: GGUF readers do not do this for SentencePiece", strings.Join(b.steps, ", "))
	}
	v, err := b.vocabulary(m.vocab, f.added, false, c.warn)
	if err != nil {
		return nil, err
	}
	if err := b.scoreByRank(v); err != nil {
		return nil, err
	}
	v.pad(padScore)
	v.scored = true
	if err := v.checkBytes(); err != nil {
		return nil, err
	}
	c.setVocabulary(tokenizer.ModelSentencePiece, "default", v)
	return v, c.setSpacePrefix(f, m, b.spacePrefix)
}

// scoreByRank gives the tokens that merges make the scores that make SentencePiece merge alike.
func (b *bpeModel) scoreByRank(v *vocabulary) error {
	ways := make(map[string]int) // ways to make a token
	merges := func(token string) bool {
		id, ok := b.vocab[token]
		return ok && v.types[id] != int32(tokenizer.UserDefined) && v.types[id] != int32(tokenizer.Control)
	}
	last := ""
	for rank, m := range b.merges {
		token := m[0] + m[1]
		id, ok := b.vocab[token]
		if !ok {
			return fmt.Errorf("model.merges[%d]: %.64q is not in the vocabulary", rank, token)
		}
		if !merges(m[0]) || !merges(m[1]) || !merges(token) {
			continue // readers cut these out of the text before they merge
		}
		if token != last {
			if ways[token] > 0 {
				return fmt.Errorf("model.merges[%d]: %.64q is merged at two ranks, which SentencePiece's scores "+
					"cannot express; add %s to the folder", rank, token, sentencePieceFile)
			}
			v.scores[id] = -float32(rank)
		}
		ways[token]++
		last = token
	}
	for token, id := range b.vocab {
		if v.types[id] != int32(tokenizer.Normal) {
			continue // merging never makes it
		}
		possible := 0
		for i := range token {
			if merges(token[:i]) && merges(token[i:]) {
				possible++
			}
		}
		if ways[token] != possible {
			return fmt.Errorf("model.merges: %.64q can be made in %d ways, of which %d are merges; SentencePiece's scores "+
				"cannot express that; add %s to the folder", token, possible, ways[token], sentencePieceFile)
		}
	}
	return nil
}
