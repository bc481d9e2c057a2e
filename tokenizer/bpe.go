package tokenizer

import (
	"fmt"
	"strings"
)

// bpe is BPE: the text is split into words by a pre-tokenizer, a word into bytes (or, with pre.Characters, characters),
// and these are merged by the rank of their pair.
type bpe struct {
	pre    *Pre
	split  splitter
	byteID [256]int32 // −1 for a byte that has no token
	merges map[[2]int32]bpeMerge
	// words are the tokens that are not control tokens by the bytes of a word that would be the token. They serve where a word need not be
	// merged (IgnoreMerges, WholeLines), and as the characters that merging begins with.
	words map[string]int32
	unk   *int32
}

type bpeMerge struct {
	rank int
	id   int32
}

// loadBPE reads the vocabulary of ModelBytes, or that of ModelCharacters, which is a pre-tokenizer by itself.
func (t *Tokenizer) loadBPE(m Metadata, model string, ids map[string]int32) error {
	name := "default"
	if model != ModelBytes {
		name = model
	} else if _, ok := m.Meta(keyPre); ok {
		var err error
		if name, err = stringValue(m, keyPre); err != nil {
			return err
		}
	} else {
		t.warnings = append(t.warnings, fmt.Sprintf("there is no %s: text is split into words as few models want it; convert the "+
			"model again", keyPre))
	}
	pre, ok := PreByName(name)
	if !ok {
		return fmt.Errorf("%s %q is not known; known: %s", keyPre, name, strings.Join(PreNames(), ", "))
	}
	t.addBOS, t.alwaysBOS = pre.AddBOS, pre.AlwaysBOS

	b := &bpe{pre: pre, words: make(map[string]int32, len(t.tokens)), unk: &t.unk}
	var err error
	if b.split, err = pre.splitter(); err != nil {
		return err
	}
	for i := range b.byteID {
		b.byteID[i] = -1
	}
	t.pieces = make([]string, len(t.tokens))
	if pre.Characters {
		b.addCharacterTokens(t, ids)
	} else {
		b.addByteTokens(t)
	}
	if b.merges, err = loadMerges(m, ids); err != nil {
		return err
	}
	t.scheme = b
	return nil
}

// addByteTokens reads tokens that are spelled in GPT-2's alphabet.
func (b *bpe) addByteTokens(t *Tokenizer) {
	for i, token := range t.tokens {
		t.pieces[i] = token
		if t.types[i] != Normal && t.types[i] != Unused {
			continue
		}
		piece, ok := bytesOf(token)
		if !ok {
			continue // not of the byte alphabet: no text leads to it
		}
		t.pieces[i] = piece
		if t.types[i] == Unused {
			continue
		}
		b.words[piece] = int32(i)
		if len(piece) == 1 {
			b.byteID[piece[0]] = int32(i)
		}
	}
}

// addCharacterTokens reads tokens that are spelled as text, and <0x00> to <0xFF>.
func (b *bpe) addCharacterTokens(t *Tokenizer, ids map[string]int32) {
	for i, token := range t.tokens {
		t.pieces[i] = token
		if t.types[i] == Normal || t.types[i] == Unused {
			t.pieces[i] = b.unescape(token)
		}
		if t.types[i] == Normal || t.types[i] == UserDefined {
			b.words[token] = int32(i)
		}
	}
	for i := range b.byteID {
		if id, ok := ids[byteToken(byte(i))]; ok {
			b.byteID[i] = id
			t.pieces[id] = string([]byte{byte(i)})
			delete(b.words, t.tokens[id])
		}
	}
}

// byteToken is how SentencePiece spells a byte.
func byteToken(b byte) string { return fmt.Sprintf("<0x%02X>", b) }

// loadMerges reads the merges; pairs are keyed by their ids.
func loadMerges(m Metadata, ids map[string]int32) (map[[2]int32]bpeMerge, error) {
	list, err := slice[string](m, keyMerges, true)
	if err != nil {
		return nil, err
	}
	merges := make(map[[2]int32]bpeMerge, len(list))
	for rank, merge := range list {
		left, right, ok := cutMerge(merge)
		if !ok {
			return nil, fmt.Errorf("%s[%d]: %q is not two tokens with a space between them", keyMerges, rank, merge)
		}
		var made [3]int32
		for i, token := range []string{left, right, left + right} {
			if made[i], ok = ids[token]; !ok {
				return nil, fmt.Errorf("%s[%d]: %q is not in the vocabulary", keyMerges, rank, token)
			}
		}
		pair := [2]int32{made[0], made[1]}
		if _, dup := merges[pair]; !dup {
			merges[pair] = bpeMerge{rank, made[2]}
		}
	}
	return merges, nil
}

// cutMerge cuts "left right". A token may itself begin with a space, so the first character is never the separator.
func cutMerge(merge string) (left, right string, ok bool) {
	if len(merge) < 3 {
		return "", "", false
	}
	i := strings.IndexByte(merge[1:], ' ')
	if i < 0 || i+2 == len(merge) {
		return "", "", false
	}
	return merge[:i+1], merge[i+2:], true
}

func (b *bpe) spacePrefix() bool { return false }

func (b *bpe) escape(text string) string {
	if b.pre.EscapeSpaces {
		return strings.ReplaceAll(text, " ", spaceMark)
	}
	return text
}

func (b *bpe) unescape(token string) string {
	if b.pre.EscapeSpaces {
		return strings.ReplaceAll(token, spaceMark, " ")
	}
	return token
}

func (b *bpe) encode(dst []int32, text string, _ bool) []int32 {
	m := b.merger()
	text = b.escape(text)
	// Where in dst a word's ids already stand. Most words of a text have occurred before.
	seen := make(map[string][2]int)
	b.split(text, func(word string) {
		if at, ok := seen[word]; ok {
			dst = append(dst, dst[at[0]:at[1]]...)
			return
		}
		from := len(dst)
		dst = b.encodeWord(dst, word, m)
		seen[word] = [2]int{from, len(dst)}
	})
	return dst
}

func (b *bpe) merger() *merger {
	return &merger{pair: func(left, right *symbol) (int32, float64, bool) {
		merge, ok := b.merges[[2]int32{left.id, right.id}]
		return merge.id, float64(merge.rank), ok
	}}
}

func (b *bpe) encodeWord(dst []int32, word string, m *merger) []int32 {
	if b.pre.IgnoreMerges || b.pre.WholeLines && strings.Trim(word, "\n") == "" {
		if id, ok := b.words[word]; ok {
			return append(dst, id)
		}
	}
	return b.mergeWord(dst, word, m)
}

func (b *bpe) mergeWord(dst []int32, word string, m *merger) []int32 {
	m.reset()
	if b.pre.Characters {
		return m.mergeCharacters(dst, word, b.words, &b.byteID, *b.unk)
	}
	for i := range len(word) {
		m.add(b.byteID[word[i]], 1)
	}
	m.merge()
	for i := range m.symbols {
		switch s := &m.symbols[i]; {
		case s.size == 0:
		case s.id >= 0:
			dst = append(dst, s.id)
		case *b.unk >= 0:
			dst = append(dst, *b.unk)
		}
		// A byte without a token in a vocabulary without an unknown token is lost, in llama.cpp and Hugging Face's
		// tokenizers too.
	}
	return dst
}

// MergesReachAll says whether every word that is a token also becomes that token by merging alone. Then it makes no
// difference whether a reader looks words up first (Hugging Face's ignore_merges). Otherwise id is the first for which
// it does.
func (t *Tokenizer) MergesReachAll() (id int32, ok bool) {
	b, isBPE := t.scheme.(*bpe)
	if !isBPE {
		return 0, true
	}
	m := b.merger()
	var got []int32
	for id, typ := range t.types {
		if word := b.escape(t.pieces[id]); typ == Normal && b.words[word] == int32(id) && b.isWord(word) {
			got = b.mergeWord(got[:0], word, m)
			if len(got) != 1 || got[0] != int32(id) {
				return int32(id), false
			}
		}
	}
	return 0, true
}

// isWord says that the pre-tokenizer leaves s whole.
func (b *bpe) isWord(s string) bool {
	n := 0
	b.split(s, func(string) { n++ })
	return n == 1
}

// runeBytes is GPT-2's alphabet: a printable character for every byte, so that tokens can be written as text. The
// characters of Latin-1 that are printable stand for themselves, U+0100 and on for the other bytes, in their order.
var runeBytes = func() map[rune]byte {
	bytes := make(map[rune]byte, 256)
	next := rune(256)
	for i := range 256 {
		c := rune(i)
		if c < '!' || c > '~' && c < '¡' || c == 0xAD { // space, control characters, soft hyphen
			c = next
			next++
		}
		bytes[c] = byte(i)
	}
	return bytes
}()

// byteRunes is the inverse of runeBytes.
var byteRunes = func() (runes [256]rune) {
	for r, b := range runeBytes {
		runes[b] = r
	}
	return runes
}()

// SpellBytes spells bytes in GPT-2's alphabet, as the tokens of a byte-level vocabulary are.
func SpellBytes(bytes string) string {
	out := make([]rune, len(bytes))
	for i := range out {
		out[i] = byteRunes[bytes[i]]
	}
	return string(out)
}

// bytesOf returns the bytes that a byte-level token stands for.
func bytesOf(token string) (string, bool) {
	out := make([]byte, 0, len(token))
	for _, r := range token {
		c, ok := runeBytes[r]
		if !ok {
			return "", false
		}
		out = append(out, c)
	}
	return string(out), len(out) > 0
}
