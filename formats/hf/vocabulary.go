package hf

import (
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// vocabulary is a tokenizer's tokens, one for each row of the embeddings.
type vocabulary struct {
	tokens []string
	types  []int32
	scores []float32
	taken  []bool         // an id has its token
	ids    map[string]int // of the tokens
	scored bool           // tokenizer.ggml.scores is written
}

// newVocabulary makes room for size tokens.
func newVocabulary(size int) *vocabulary {
	return &vocabulary{
		tokens: make([]string, size), types: make([]int32, size), scores: make([]float32, size),
		taken: make([]bool, size), ids: make(map[string]int),
	}
}

// put gives id its token. A second token of that id replaces the first.
func (v *vocabulary) put(id int, token string, typ tokenizer.Type, score float32) error {
	if id < 0 || id >= len(v.tokens) {
		return fmt.Errorf("token %q has id %d, but config.json says vocab_size %d", token, id, len(v.tokens))
	}
	if v.taken[id] && v.ids[v.tokens[id]] == id {
		delete(v.ids, v.tokens[id])
	}
	v.tokens[id], v.types[id], v.scores[id], v.taken[id] = token, int32(typ), score, true
	if _, dup := v.ids[token]; !dup {
		v.ids[token] = id
	}
	return nil
}

// pad fills the ids that have no token, as llama.cpp's converter does.
func (v *vocabulary) pad(score float32) {
	for id, taken := range v.taken {
		if !taken {
			v.tokens[id], v.types[id], v.scores[id] = fmt.Sprintf("[PAD%d]", id), int32(tokenizer.Unused), score
		}
	}
}

// id finds a token.
func (v *vocabulary) id(token string) (int, bool) {
	id, ok := v.ids[token]
	return id, ok
}

// checkNUL refuses tokens that llama.cpp would cut short: its strings end at NUL.
func (v *vocabulary) checkNUL() error {
	for id, token := range v.tokens {
		if strings.IndexByte(token, 0) >= 0 {
			return fmt.Errorf("token %d is %q; llama.cpp reads a token only up to NUL", id, token)
		}
	}
	return nil
}

// missingBytes counts the bytes that have no token <0x00> to <0xFF>.
func (v *vocabulary) missingBytes() int {
	n := 0
	for b := range 256 {
		if _, ok := v.ids[fmt.Sprintf("<0x%02X>", b)]; !ok {
			n++
		}
	}
	return n
}

// addedToken is a token beyond those of the model proper.
type addedToken struct {
	id      int
	content string
	special bool
	strips  bool // takes spaces beside it, or stands for whole words only
}

// readAddedToken reads what tokenizer.json and tokenizer_config.json say of a token.
func readAddedToken(o *object.Object, id int) addedToken {
	return addedToken{
		id, o.String("content", ""), o.Bool("special", false),
		o.Bool("lstrip", false) || o.Bool("rstrip", false) || o.Bool("single_word", false),
	}
}

// looksSpecial says that a token is one of control by its form, though some tokenizers do not call it special.
func (a *addedToken) looksSpecial() bool {
	between := func(open, close string) bool {
		return strings.HasPrefix(a.content, open) && strings.HasSuffix(a.content, close)
	}
	switch a.content {
	case "<pad>", "<mask>", "<2mass>", "[@BOS@]":
		return true
	}
	return between("<|", "|>") || between("<｜", "｜>") || between("<unused", ">")
}

// plainSpaces is a user-defined token as readers look for it: in the text as it is, before spaces are escaped.
func plainSpaces(token string) string { return strings.ReplaceAll(token, "▁", " ") }

// The scores of SentencePiece tokens that no merge makes, as llama.cpp's converter has them.
const (
	addScore = -1000
	padScore = -10000
)

// add puts added tokens, and warns of what cannot be kept: tokens without a row of the embeddings, a second id of a token,
// whose first is what the tokenizers library uses, and spaces that the token would take.
//
// A user-defined token's ▁ becomes a space, as readers look for it in the text before they escape spaces, unless the
// tokenizer looks for ▁ itself (asWritten).
func (v *vocabulary) add(added []addedToken, asWritten bool, warn func(format string, args ...any)) {
	var beyond, strips []string
	seen := make(map[string]bool) // files repeat each other's tokens
	for _, a := range added {
		if a.content == "" {
			continue
		}
		if first, ok := v.ids[a.content]; ok && first != a.id {
			if !seen[a.content] {
				warn("added token %q has id %d, but the vocabulary has it as %d, which is used", a.content, a.id, first)
			}
			a.id = first
		}
		token, typ := a.content, tokenizer.Control
		if !a.special && !a.looksSpecial() {
			if typ = tokenizer.UserDefined; !asWritten {
				token = plainSpaces(token)
			}
		}
		switch {
		case v.put(a.id, token, typ, addScore) != nil:
			if !seen[a.content] {
				beyond = append(beyond, fmt.Sprintf("%q (%d)", a.content, a.id))
			}
		case a.strips && !seen[a.content]:
			strips = append(strips, fmt.Sprintf("%q", a.content))
		}
		seen[a.content] = true
	}
	if len(beyond) > 0 {
		warn("added tokens %s are left out: the embeddings have %d rows", abridged(beyond), len(v.tokens))
	}
	if len(strips) > 0 {
		warn("added tokens %s take the spaces beside them (lstrip, rstrip) or are whole words only (single_word), "+
			"which GGUF readers do not do", abridged(strips))
	}
}

// abridged lists a few of many.
func abridged(list []string) string {
	const most = 3
	if len(list) <= most+1 {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
