package tokenizer

import (
	"fmt"
	"strings"
)

// bpe is byte-level BPE: the text is split into words by a pre-tokenizer, a word into bytes, and the bytes are merged
// by the rank of their pair.
type bpe struct {
	split        splitter
	byteID       [256]int32 // −1 for a byte that has no token
	merges       map[[2]int32]bpeMerge
	ignoreMerges bool
	words        map[string]int32 // what a normal token stands for → its id; used with ignoreMerges
	unk          *int32
}

type bpeMerge struct {
	rank int
	id   int32
}

func (t *Tokenizer) loadBPE(m Metadata, ids map[string]int32) error {
	name := "default"
	if _, ok := m.Meta(keyPre); ok {
		var err error
		if name, err = stringValue(m, keyPre); err != nil {
			return err
		}
	}
	pre, ok := PreByName(name)
	if !ok {
		return fmt.Errorf("%s %q is not known; known: %s", keyPre, name, strings.Join(PreNames(), ", "))
	}
	t.addBOS = pre.AddBOS

	b := &bpe{ignoreMerges: pre.IgnoreMerges, words: make(map[string]int32, len(t.tokens)), unk: &t.unk}
	var err error
	if b.split, err = pre.splitter(); err != nil {
		return err
	}
	for i := range b.byteID {
		b.byteID[i] = -1
	}
	t.pieces = make([]string, len(t.tokens))
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

	merges, err := slice[string](m, keyMerges, true)
	if err != nil {
		return err
	}
	b.merges = make(map[[2]int32]bpeMerge, len(merges))
	for rank, merge := range merges {
		left, right, ok := cutMerge(merge)
		if !ok {
			return fmt.Errorf("%s[%d]: %q is not two tokens with a space between them", keyMerges, rank, merge)
		}
		var made [3]int32
		for i, token := range []string{left, right, left + right} {
			if made[i], ok = ids[token]; !ok {
				return fmt.Errorf("%s[%d]: %q is not in the vocabulary", keyMerges, rank, token)
			}
		}
		pair := [2]int32{made[0], made[1]}
		if _, dup := b.merges[pair]; !dup {
			b.merges[pair] = bpeMerge{rank, made[2]}
		}
	}
	t.scheme = b
	return nil
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

func (b *bpe) encode(dst []int32, text string, _ bool) []int32 {
	m := b.merger()
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
	if b.ignoreMerges {
		if id, ok := b.words[word]; ok {
			return append(dst, id)
		}
	}
	return b.mergeWord(dst, word, m)
}

func (b *bpe) mergeWord(dst []int32, word string, m *merger) []int32 {
	m.reset()
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
		if piece := t.pieces[id]; typ == Normal && b.words[piece] == int32(id) && b.isWord(piece) {
			got = b.mergeWord(got[:0], piece, m)
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
