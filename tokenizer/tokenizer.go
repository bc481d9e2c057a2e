// Package tokenizer turns text into token ids and back, as llama.cpp does, from the metadata of a GGUF file. It knows
// two schemes: BPE (Sennrich et al., arXiv:1508.07909) with a pre-tokenizer, of bytes in GPT-2's alphabet or of
// characters, and SentencePiece BPE (Kudo and Richardson, arXiv:1808.06226), which merges by score and falls
// back to bytes.
//
// Package formats/hf writes the same metadata from tokenizer.json and tokenizer.model, so there is one constructor.
package tokenizer

import (
	"fmt"
	"sort"
	"strings"
)

// Metadata is where a tokenizer comes from; a model.Source satisfies it. See gguf.KV for the Go types of the values.
type Metadata interface {
	Meta(key string) (any, bool)
}

// The values of tokenizer.ggml.model, which GGUF names after the first model that had each.
const (
	ModelBytes         = "gpt2"   // byte-level BPE
	ModelCharacters    = "gemma4" // BPE of characters
	ModelSentencePiece = "llama"
)

// Type is the kind of a token, as GGUF files number it (tokenizer.ggml.token_type).
type Type int32

const (
	Normal      Type = 1
	Unknown     Type = 2
	Control     Type = 3
	UserDefined Type = 4
	Unused      Type = 5
	Byte        Type = 6
)

// Tokenizer is immutable: any number of goroutines may use one.
type Tokenizer struct {
	tokens []string // as the vocabulary spells them
	types  []Type
	pieces []string // the bytes that each token stands for

	bos, eos, unk  int32 // −1 if the vocabulary has none
	addBOS, addEOS bool
	alwaysBOS      bool    // add BOS whatever tokenizer.ggml.add_bos_token says
	special        []int32 // control, unknown and user-defined tokens, the longest first
	scheme         scheme
	warnings       []string
}

// scheme tokenizes a stretch of text that has no special token in it.
type scheme interface {
	// encode appends the ids of text to dst. afterSpecial says that the stretch opens the text or follows a special
	// token.
	encode(dst []int32, text string, afterSpecial bool) []int32
	// spacePrefix says that encode puts a space before such a stretch.
	spacePrefix() bool
}

// New reads tokenizer.ggml.* from m. It refuses a vocabulary that contradicts itself: duplicate tokens, a merge or a
// BOS token that is to be added but not in it, arrays of different lengths.
func New(m Metadata) (*Tokenizer, error) {
	t, err := load(m)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	return t, nil
}

func load(m Metadata) (*Tokenizer, error) {
	model, err := stringValue(m, keyModel)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{}
	if t.tokens, err = slice[string](m, keyTokens, true); err != nil {
		return nil, err
	}
	if len(t.tokens) == 0 {
		return nil, fmt.Errorf("%s is empty", keyTokens)
	}
	types, err := slice[int32](m, keyTypes, false)
	if err != nil {
		return nil, err
	}
	if types != nil && len(types) != len(t.tokens) {
		return nil, fmt.Errorf("%s has %d entries for %d tokens", keyTypes, len(types), len(t.tokens))
	}
	ids := make(map[string]int32, len(t.tokens))
	t.types = make([]Type, len(t.tokens))
	for i, token := range t.tokens {
		if other, dup := ids[token]; dup {
			return nil, fmt.Errorf("%s: %q has two ids, %d and %d", keyTokens, token, other, i)
		}
		ids[token] = int32(i)
		t.types[i] = Normal
		if types != nil {
			t.types[i] = Type(types[i])
		}
	}
	t.bos, t.eos, t.unk = -1, -1, -1
	switch model {
	case ModelBytes, ModelCharacters:
		err = t.loadBPE(m, model, ids)
	case ModelSentencePiece:
		err = t.loadSPM(m, ids)
	default:
		err = fmt.Errorf("%s %q is not supported; supported: %s (byte-level BPE), %s (SentencePiece), "+
			"%s (BPE of characters)", keyModel, model, ModelBytes, ModelSentencePiece, ModelCharacters)
	}
	if err != nil {
		return nil, err
	}
	if err := t.loadSpecial(m); err != nil {
		return nil, err
	}
	return t, nil
}

// loadSpecial reads the special ids and collects the tokens that are cut out of the text before all else.
func (t *Tokenizer) loadSpecial(m Metadata) error {
	for _, s := range []struct {
		key string
		id  *int32
	}{{keyBOS, &t.bos}, {keyEOS, &t.eos}, {keyUNK, &t.unk}} {
		if *s.id >= int32(len(t.tokens)) {
			*s.id = -1 // SentencePiece's default in a vocabulary too small for it
		}
		id, ok, err := intValue(m, s.key)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if id < 0 {
			return fmt.Errorf("%s is %d", s.key, id)
		}
		if id >= int64(len(t.tokens)) { // as llama.cpp does, whose converter writes such an id for Hunyuan
			t.warnings = append(t.warnings, fmt.Sprintf("%s is %d, but the vocabulary has %d tokens; ignored", s.key, id, len(t.tokens)))
			continue
		}
		*s.id = int32(id)
	}
	for _, s := range []struct {
		key, idKey string
		add        *bool
		id         int32
	}{{keyAddBOS, keyBOS, &t.addBOS, t.bos}, {keyAddEOS, keyEOS, &t.addEOS, t.eos}} {
		if err := boolValue(m, s.key, s.add); err != nil {
			return err
		}
		if *s.add && s.id < 0 {
			return fmt.Errorf("%s is true, but there is no %s in the vocabulary", s.key, s.idKey)
		}
	}
	t.addBOS = t.addBOS || t.alwaysBOS && t.bos >= 0
	for i, typ := range t.types {
		if (typ == Control || typ == Unknown || typ == UserDefined) && t.tokens[i] != "" {
			t.special = append(t.special, int32(i))
		}
	}
	sort.SliceStable(t.special, func(i, j int) bool {
		return len(t.tokens[t.special[i]]) > len(t.tokens[t.special[j]])
	})
	return nil
}

// EncodeOptions are the options of Encode.
type EncodeOptions struct {
	// NoBOS leaves out the BOS and EOS tokens that the model asks for around a text.
	NoBOS bool
	// ParseSpecial makes control tokens of their spelling in the text. Otherwise only user-defined tokens are
	// recognised, and "<|im_end|>" is text like any other.
	ParseSpecial bool
}

// Encode returns the ids of text. Bytes that are not UTF-8 are tokenized as such.
func (t *Tokenizer) Encode(text string, opt EncodeOptions) []int32 {
	dst := make([]int32, 0, len(text)/3+2)
	if t.addBOS && !opt.NoBOS {
		dst = append(dst, t.bos)
	}
	afterSpecial := true
	for _, f := range t.partition(text, opt.ParseSpecial) {
		if f.id >= 0 {
			dst = append(dst, f.id)
		} else {
			dst = t.scheme.encode(dst, f.text, afterSpecial)
		}
		afterSpecial = f.id >= 0
	}
	if t.addEOS && !opt.NoBOS {
		dst = append(dst, t.eos)
	}
	return dst
}

// fragment is a special token or, with id −1, a stretch of text.
type fragment struct {
	text string
	id   int32
}

// partition cuts the special tokens out of text, the longest first wherever they stand, as llama.cpp does.
func (t *Tokenizer) partition(text string, parseSpecial bool) []fragment {
	if text == "" {
		return nil
	}
	fragments := []fragment{{text, -1}}
	for _, id := range t.special {
		token := t.tokens[id]
		if t.types[id] != UserDefined && !parseSpecial || !strings.Contains(text, token) {
			continue
		}
		var cut []fragment
		for _, f := range fragments {
			for f.id < 0 {
				before, after, found := strings.Cut(f.text, token)
				if !found {
					break
				}
				if before != "" {
					cut = append(cut, fragment{before, -1})
				}
				cut = append(cut, fragment{token, id})
				f.text = after
			}
			if f.text != "" {
				cut = append(cut, f)
			}
		}
		fragments = cut
	}
	return fragments
}

// Decode returns the text of ids: Encode's inverse. It drops the BOS, EOS and space that Encode adds around a text, and
// spells out other special tokens. Ids that are not in the vocabulary are skipped.
func (t *Tokenizer) Decode(ids []int32) string {
	if t.addBOS && len(ids) > 0 && ids[0] == t.bos {
		ids = ids[1:]
	}
	if t.addEOS && len(ids) > 0 && ids[len(ids)-1] == t.eos {
		ids = ids[:len(ids)-1]
	}
	var b strings.Builder
	afterSpecial := true
	for _, id := range ids {
		if id < 0 || int(id) >= len(t.pieces) {
			continue
		}
		piece := t.pieces[id]
		special := t.types[id] == Control || t.types[id] == Unknown || t.types[id] == UserDefined
		if afterSpecial && !special && t.scheme.spacePrefix() {
			piece = strings.TrimPrefix(piece, " ")
		}
		b.WriteString(piece)
		afterSpecial = special
	}
	return b.String()
}

// BOS returns the id that opens a text, −1 if there is none, and whether the model wants it there.
func (t *Tokenizer) BOS() (id int32, add bool) { return t.bos, t.addBOS }

// EOS returns the id that ends a text, −1 if there is none, and whether the model wants it there.
func (t *Tokenizer) EOS() (id int32, add bool) { return t.eos, t.addEOS }

// Warnings says what in the file makes tokens doubtful.
func (t *Tokenizer) Warnings() []string { return t.warnings }

// VocabSize is the number of tokens.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// Token returns the text that id stands for, which need not be whole UTF-8 characters.
func (t *Tokenizer) Token(id int32) string {
	if id < 0 || int(id) >= len(t.pieces) {
		return ""
	}
	return t.pieces[id]
}
