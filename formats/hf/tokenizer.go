package hf

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tokenizer"
)

// vocabulary is a tokenizer's tokens, one for each row of the embeddings.
type vocabulary struct {
	tokens []string
	types  []int32
	scores []float32
	taken  []bool // an id has its token
}

func newVocabulary(size int) *vocabulary {
	return &vocabulary{make([]string, size), make([]int32, size), make([]float32, size), make([]bool, size)}
}

// put gives id its token. A second token of that id replaces the first.
func (v *vocabulary) put(id int, token string, typ tokenizer.Type, score float32) error {
	if id < 0 || id >= len(v.tokens) {
		return fmt.Errorf("token %q has id %d, but config.json says vocab_size %d", token, id, len(v.tokens))
	}
	v.tokens[id], v.types[id], v.scores[id], v.taken[id] = token, int32(typ), score, true
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
	for id, t := range v.tokens {
		if t == token && v.taken[id] {
			return id, true
		}
	}
	return 0, false
}

// addedToken is a token beyond those of the model proper.
type addedToken struct {
	id      int
	content string
	special bool
}

// looksSpecial says that a token is one of control by its form, though some tokenizers do not call it special.
func (a *addedToken) looksSpecial() bool {
	between := func(open, close string) bool {
		return strings.HasPrefix(a.content, open) && strings.HasSuffix(a.content, close)
	}
	return a.content == "<pad>" || a.content == "<mask>" || between("<|", "|>") || between("<｜", "｜>") ||
		between("<unused", ">")
}

// plainSpaces is a user-defined token as readers look for it: in the text as it is, before spaces are escaped.
func plainSpaces(token string) string { return strings.ReplaceAll(token, "▁", " ") }

// The scores of SentencePiece tokens that no merge makes, as llama.cpp's converter has them.
const (
	addScore = -1000
	padScore = -10000
)

// add puts added tokens.
func (v *vocabulary) add(added []addedToken) error {
	for _, a := range added {
		token, typ := a.content, tokenizer.Control
		if a.id >= 0 && a.id < len(v.types) && v.types[a.id] == int32(tokenizer.Unknown) && v.tokens[a.id] == a.content {
			continue // <unk> is special too, but readers must know it for what it is
		}
		if !a.special && !a.looksSpecial() {
			token, typ = plainSpaces(token), tokenizer.UserDefined
		}
		if err := v.put(a.id, token, typ, addScore); err != nil {
			return err
		}
	}
	return nil
}

// tokenizerFiles are the parsed files that describe a tokenizer; nil where one is absent.
type tokenizerFiles struct {
	json     *tokenizerJSON
	model    *sentencePiece
	config   *object // tokenizer_config.json
	special  *object // special_tokens_map.json
	added    []addedToken
	jsonPath string
	spPath   string
}

func (c *Checkpoint) readTokenizerFiles() (*tokenizerFiles, error) {
	f := &tokenizerFiles{}
	data, path, err := c.readOptional(tokenizerFile)
	if err != nil {
		return nil, err
	}
	var jsonErr error
	if f.jsonPath = path; data != nil {
		f.json, jsonErr = parseTokenizerJSON(path, data)
	}
	if f.json == nil || !f.json.byteLevel {
		data, path, err := c.readOptional(sentencePieceFile)
		if err != nil {
			return nil, err
		}
		if f.spPath = path; data != nil {
			if f.model, err = parseSentencePiece(path, data); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case jsonErr != nil && f.model != nil: // which says all that is needed
		c.warn("%v; left out in favour of %s", jsonErr, sentencePieceFile)
		f.json = nil
	case jsonErr != nil:
		return nil, jsonErr
	}
	if f.config, err = c.readObject(tokenizerConfigFile); err != nil {
		return nil, err
	}
	if f.special, err = c.readObject(specialTokensFile); err != nil {
		return nil, err
	}
	added, err := c.readObject(addedTokensFile)
	if err != nil {
		return nil, err
	}
	if f.added, err = addedTokens(added, f.config); err != nil {
		return nil, err
	}
	if f.json != nil {
		f.added = append(f.added, f.json.added...)
	}
	return f, nil
}

// addedTokens reads added_tokens.json and the added_tokens_decoder of tokenizer_config.json.
func addedTokens(file, config *object) ([]addedToken, error) {
	var added []addedToken
	if file != nil {
		for _, content := range slices.Sorted(maps.Keys(file.fields)) {
			added = append(added, addedToken{id: file.int(content, -1, 0, maxVocab), content: content})
		}
		if *file.err != nil {
			return nil, *file.err
		}
	}
	if decoder := config.object("added_tokens_decoder"); decoder != nil {
		for _, key := range slices.Sorted(maps.Keys(decoder.fields)) {
			var id int
			if json.Unmarshal([]byte(key), &id) != nil {
				decoder.fail(key, "the key is not a token id")
			}
			if t := decoder.object(key); t != nil {
				added = append(added, addedToken{id, t.string("content", ""), t.bool("special", false)})
			}
		}
		return added, *config.err
	}
	return added, nil
}

// loadTokenizer sets tokenizer.*.
func (c *Checkpoint) loadTokenizer(cfg *config, opt Options) error {
	f, err := c.readTokenizerFiles()
	if err != nil {
		return err
	}
	var v *vocabulary
	switch {
	case f.json != nil && f.json.byteLevel:
		if v, err = c.loadBPE(f, cfg.vocab, opt); err != nil {
			return fmt.Errorf("%s: %w", f.jsonPath, err)
		}
	case opt.Pre != "" && (f.model != nil || f.json != nil):
		return fmt.Errorf("%s: the tokenizer is SentencePiece, which has no pre-tokenizer; leave out --pre", c.dir)
	case f.model != nil:
		if v, err = c.loadSentencePiece(f, cfg.vocab); err != nil {
			return fmt.Errorf("%s: %w", f.spPath, err)
		}
	case f.json != nil:
		if v, err = c.loadMergedSPM(f, cfg.vocab); err != nil {
			return fmt.Errorf("%s: %w", f.jsonPath, err)
		}
	default:
		return fmt.Errorf("%s: holds neither %s nor %s", c.dir, tokenizerFile, sentencePieceFile)
	}
	if err := c.loadSpecialTokens(f, v, cfg); err != nil {
		return err
	}
	if err := c.loadChatTemplates(f.config); err != nil {
		return err
	}
	return c.checkTokenizer(f, opt)
}

// setVocabulary sets the arrays that every tokenizer has.
func (c *Checkpoint) setVocabulary(model string, v *vocabulary) {
	c.md.Set("tokenizer.ggml.model", model)
	c.md.Set("tokenizer.ggml.tokens", v.tokens)
	c.md.Set("tokenizer.ggml.token_type", v.types)
	if model == "llama" {
		c.md.Set("tokenizer.ggml.scores", v.scores)
	}
}

// specialKinds are the special tokens that GGUF has keys for.
var specialKinds = []struct{ hf, gguf string }{
	{"bos", "tokenizer.ggml.bos_token_id"},
	{"eos", "tokenizer.ggml.eos_token_id"},
	{"unk", "tokenizer.ggml.unknown_token_id"},
	{"sep", "tokenizer.ggml.seperator_token_id"}, // sic
	{"pad", "tokenizer.ggml.padding_token_id"},
	{"mask", "tokenizer.ggml.mask_token_id"},
}

// loadSpecialTokens sets the ids of special tokens and whether BOS and EOS go around a text. The tokenizer's own files
// go before config.json, which some models leave with ids of another vocabulary.
func (c *Checkpoint) loadSpecialTokens(f *tokenizerFiles, v *vocabulary, cfg *config) error {
	ids := map[string]int{}
	for _, kind := range specialKinds {
		id, ok, err := specialID(kind.hf, f, v, cfg)
		if err != nil {
			return err
		}
		if ok {
			ids[kind.hf] = id
			c.md.Set(kind.gguf, uint32(id))
		}
	}
	bos, eos := f.json == nil || !f.json.byteLevel, false // the defaults of the transformers library's classes
	if f.json != nil && f.json.post != nil {
		first, isToken := v.id(f.json.post[0])
		if _, named := ids["bos"]; isToken && !named {
			ids["bos"] = first
			c.md.Set(specialKinds[0].gguf, uint32(first))
		}
		last, endsWithToken := v.id(f.json.post[1])
		bos, eos = isToken && first == ids["bos"], endsWithToken && last == ids["eos"]
	}
	bos, eos = f.config.bool("add_bos_token", bos), f.config.bool("add_eos_token", eos)
	if f.config != nil && *f.config.err != nil {
		return *f.config.err
	}
	for _, add := range []struct {
		kind string
		want bool
	}{{"bos", bos}, {"eos", eos}} {
		if _, ok := ids[add.kind]; add.want && !ok {
			return fmt.Errorf("%s: a %s token is to be added to every text, but none is named", c.dir, strings.ToUpper(add.kind))
		}
		c.md.Set("tokenizer.ggml.add_"+add.kind+"_token", add.want)
	}
	return nil
}

// specialID finds the id of a kind of special token.
func specialID(kind string, f *tokenizerFiles, v *vocabulary, cfg *config) (int, bool, error) {
	for _, o := range []*object{f.config, f.special} {
		raw, ok := o.get(kind + "_token")
		if !ok {
			continue
		}
		var content string
		if json.Unmarshal(raw, &content) != nil {
			if t := o.object(kind + "_token"); t != nil {
				content = t.string("content", "")
			}
		}
		if *o.err != nil {
			return 0, false, *o.err
		}
		if id, ok := v.id(content); ok {
			return id, true, nil
		}
		if content != "" && (kind == "bos" || kind == "eos") {
			return 0, false, fmt.Errorf("%s: %s_token: %q is not in the vocabulary", o.file, kind, content)
		}
	}
	if raw, ok := cfg.object.Get(kind + "_token_id"); ok {
		var list []int // several tokens may end a text; the first is the main one
		if json.Unmarshal(raw, &list) != nil {
			list = []int{cfg.object.Int(kind+"_token_id", 0, -1, cfg.vocab-1)}
		}
		if cfg.object.Err() != nil {
			return 0, false, cfg.object.Err()
		}
		if len(list) > 0 && list[0] >= cfg.vocab {
			return 0, false, fmt.Errorf("%s: %s_token_id: is %d, but vocab_size is %d", cfg.object.File, kind, list[0], cfg.vocab)
		}
		if len(list) > 0 && list[0] >= 0 {
			return list[0], true, nil
		}
	}
	if f.model != nil {
		if id, ok := f.model.special[kind]; ok && id >= 0 && id < cfg.vocab {
			return id, true, nil
		}
	}
	return 0, false, nil
}

// metadataView lets package tokenizer read metadata that no file holds yet.
type metadataView gguf.Metadata

// Meta returns a value.
func (m metadataView) Meta(key string) (any, bool) { return gguf.Metadata(m).Get(key) }

// checkTokenizer builds the tokenizer that readers will build, and settles which pre-tokenizer it needs.
func (c *Checkpoint) checkTokenizer(f *tokenizerFiles, opt Options) error {
	tok, err := tokenizer.New(metadataView(c.md))
	if err != nil {
		return fmt.Errorf("%s: %w", c.dir, err)
	}
	if f.json == nil || !f.json.byteLevel || opt.Pre != "" {
		return nil
	}
	// Of the pre-tokenizers that split alike, the usual one serves unless its rule for words that are tokens matters.
	pres := tokenizer.PresBySteps(f.json.steps)
	if pres[0].IgnoreMerges == f.json.ignoreMerges {
		return nil
	}
	id, ok := tok.MergesReachAll()
	if ok {
		return nil
	}
	for _, p := range pres[1:] {
		if p.IgnoreMerges == f.json.ignoreMerges {
			c.md.Set("tokenizer.ggml.pre", p.Names[0])
			return nil
		}
	}
	return fmt.Errorf("%s: ignore_merges is %v, which GGUF readers do not do for this pre_tokenizer (%s), and it matters: "+
		"merging does not make token %d, %q; --pre %s converts it nevertheless",
		f.jsonPath, f.json.ignoreMerges, pres[0].Names[0], id, tok.Token(id), pres[0].Names[0])
}
