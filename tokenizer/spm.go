package tokenizer

import (
	"fmt"
	"strings"
)

// spaceMark is how SentencePiece writes a space inside a token: U+2581.
const spaceMark = "▁"

// spm is SentencePiece BPE: the characters of the whole text are merged by the score of the token that a pair makes,
// and what is left without a token is spelled in bytes.
type spm struct {
	ids       map[string]int32 // tokens that text can become
	scores    []float32
	byteID    [256]int32 // −1 for a byte that has no token
	addPrefix bool
	unk       *int32
	// wordwise: no token has a space mark after another character, so no merge joins two words, and each word can be
	// tokenized by itself.
	wordwise bool
}

func (t *Tokenizer) loadSPM(m Metadata, ids map[string]int32) error {
	s := &spm{ids: make(map[string]int32, len(t.tokens)), addPrefix: true, unk: &t.unk, wordwise: true}
	var err error
	if s.scores, err = slice[float32](m, keyScores, true); err != nil {
		return err
	}
	if len(s.scores) != len(t.tokens) {
		return fmt.Errorf("%s has %d entries for %d tokens", keyScores, len(s.scores), len(t.tokens))
	}
	for i, score := range s.scores {
		if score != score {
			return fmt.Errorf("%s[%d] is NaN", keyScores, i)
		}
	}
	if err := boolValue(m, keySpacePrefix, &s.addPrefix); err != nil {
		return err
	}
	// SentencePiece's defaults, which llama.cpp assumes too.
	t.unk, t.bos, t.eos = 0, 1, 2
	t.addBOS = true

	t.pieces = make([]string, len(t.tokens))
	for i, token := range t.tokens {
		switch t.types[i] {
		case Control, Unknown, UserDefined, Byte: // cut out of the text before it comes here, or never in it
			t.pieces[i] = token
		default:
			t.pieces[i] = strings.ReplaceAll(token, spaceMark, " ")
			s.ids[token] = int32(i)
			s.wordwise = s.wordwise && wordEnd(token) == len(token)
		}
	}
	for i := range s.byteID {
		s.byteID[i] = -1
		if id, ok := ids[byteToken(byte(i))]; ok {
			s.byteID[i] = id
			t.pieces[id] = string([]byte{byte(i)})
			delete(s.ids, t.tokens[id])
		}
	}
	t.scheme = s
	return nil
}

func (s *spm) spacePrefix() bool { return s.addPrefix }

func (s *spm) encode(dst []int32, text string, afterSpecial bool) []int32 {
	if afterSpecial && s.addPrefix {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", spaceMark)
	if !s.wordwise {
		return s.encodeWord(dst, text, &merger{})
	}
	m := &merger{}
	seen := make(map[string][2]int) // where in dst a word's ids already stand
	for len(text) > 0 {
		word := text[:wordEnd(text)]
		text = text[len(word):]
		if at, ok := seen[word]; ok {
			dst = append(dst, dst[at[0]:at[1]]...)
			continue
		}
		from := len(dst)
		dst = s.encodeWord(dst, word, m)
		seen[word] = [2]int{from, len(dst)}
	}
	return dst
}

// wordEnd is the length of the first word of text: its space marks and what follows up to the next one.
func wordEnd(text string) int {
	n := 0
	for strings.HasPrefix(text[n:], spaceMark) {
		n += len(spaceMark)
	}
	if next := strings.Index(text[n:], spaceMark); next >= 0 {
		return n + next
	}
	return len(text)
}

func (s *spm) encodeWord(dst []int32, text string, m *merger) []int32 {
	m.reset()
	m.pair = func(left, right *symbol) (int32, float64, bool) {
		id, ok := s.ids[text[left.start:right.start+right.size]]
		if !ok {
			return 0, 0, false
		}
		return id, -float64(s.scores[id]), true
	}
	return m.mergeCharacters(dst, text, s.ids, &s.byteID, *s.unk)
}
