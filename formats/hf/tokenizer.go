package hf

import (
	"encoding/json"
	"fmt"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// tokenizerModel is what reading a tokenizer needs to know of the model.
type tokenizerModel struct {
	quirks arch.Tokenizer // of the class that config.json names
	vocab  int            // rows of the embeddings; 0: as many as the tokenizer has tokens
	config *object.Object // config.json, for the ids of special tokens
}

// loadTokenizer sets tokenizer.* and returns the number of tokens, m.vocab where that is given.
func (c *Checkpoint) loadTokenizer(m tokenizerModel, opt Options) (int, error) {
	f, err := c.readTokenizerFiles(m)
	if err != nil {
		return 0, err
	}
	var v *vocabulary
	switch {
	case f.bpe != nil && f.bpe.byteLevel:
		v, err = c.loadBPE(f, m, opt)
	case opt.Pre != "" && opt.Pre != "default": // which is what those below are given
		return 0, fmt.Errorf("%s: the tokenizer is SentencePiece, which has no pre-tokenizer; leave out --pre", c.dir)
	case f.bpe != nil && m.quirks.Characters:
		v, err = c.loadCharacters(f, m)
	case f.model != nil:
		v, err = c.loadSentencePiece(f, m)
	default:
		v, err = c.loadMergedSPM(f, m)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", f.path, err)
	}
	if err := c.loadSpecialTokens(f, v, m); err != nil {
		return 0, err
	}
	if err := c.loadChatTemplates(f.config); err != nil {
		return 0, err
	}
	return len(v.tokens), c.checkTokenizer(f, m, opt)
}

// tokenizerFiles are the parsed files that describe a tokenizer; nil where one is absent. One of bpe and model is there,
// or both, where they describe the same tokenizer.
type tokenizerFiles struct {
	bpe     *bpeModel
	model   *sentencePiece
	path    string         // of the one that is used
	config  *object.Object // tokenizer_config.json
	special *object.Object // special_tokens_map.json
	added   []addedToken   // the later replace the earlier
}

// The files that hold a vocabulary, in the order in which they are looked for.
const (
	tokenizerFile     = "tokenizer.json"
	sentencePieceFile = "tokenizer.model" // or ranks
	tekkenFile        = "tekken.json"
	ranksFile         = "tiktoken.model" // or any *.tiktoken
	vocabFile         = "vocab.json"
	mergesFile        = "merges.txt"
)

func (c *Checkpoint) readTokenizerFiles(m tokenizerModel) (*tokenizerFiles, error) {
	f := &tokenizerFiles{}
	var err error
	if f.config, err = c.readObject(tokenizerConfigFile); err != nil {
		return nil, err
	}
	if f.special, err = c.readObject(specialTokensFile); err != nil {
		return nil, err
	}
	if err := c.readVocabularies(f); err != nil {
		return nil, err
	}
	if f.bpe == nil && f.model == nil {
		if err := c.readRarerVocabularies(f, m); err != nil {
			return nil, err
		}
	}
	added, err := c.readObject(addedTokensFile)
	if err != nil {
		return nil, err
	}
	more, err := addedTokens(added, f.config)
	if err != nil {
		return nil, err
	}
	f.added = append(f.added, more...)
	if f.bpe != nil {
		f.added = append(f.added, f.bpe.added...)
	}
	return f, nil
}

// readVocabularies reads tokenizer.json and tokenizer.model. The latter is a SentencePiece model, or ranks.
func (c *Checkpoint) readVocabularies(f *tokenizerFiles) error {
	data, path, err := c.readOptional(tokenizerFile)
	if err != nil {
		return err
	}
	var jsonErr error
	if data != nil {
		f.path = path
		f.bpe, jsonErr = parseTokenizerJSON(path, data)
	}
	if f.bpe == nil || !f.bpe.byteLevel {
		data, path, err := c.readOptional(sentencePieceFile)
		switch {
		case err != nil:
			return err
		case data == nil:
		case isRanks(data) && f.bpe == nil:
			f.path = path
			f.bpe, err = parseRanks(path, data)
		default:
			f.path = path
			f.model, err = parseSentencePiece(path, data)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case jsonErr != nil && f.model != nil: // which says all that is needed
		c.warn("%v; left out in favour of %s", jsonErr, sentencePieceFile)
		f.bpe = nil
	case jsonErr != nil:
		return jsonErr
	}
	return nil
}

// readRarerVocabularies reads what folders without the usual files have: tekken.json, ranks, vocab.json and merges.txt.
func (c *Checkpoint) readRarerVocabularies(f *tokenizerFiles, m tokenizerModel) error {
	data, path, err := c.readOptional(tekkenFile)
	if err != nil {
		return err
	}
	if f.path = path; data != nil {
		f.bpe, err = parseTekken(path, data)
		return err
	}
	if data, path, err = c.readRanks(); err != nil {
		return err
	}
	if f.path = path; data != nil {
		if f.bpe, err = parseRanks(path, data); err == nil {
			f.added = f.bpe.specialsAfter(m.quirks.Specials)
		}
		return err
	}
	vocab, vocabPath, err := c.readOptional(vocabFile)
	if err != nil {
		return err
	}
	merges, mergesPath, err := c.readOptional(mergesFile)
	if err != nil {
		return err
	}
	if vocab == nil || merges == nil {
		return fmt.Errorf("%s: holds none of %s, %s, %s, ranks (%s, *.tiktoken), %s with %s",
			c.dir, tokenizerFile, sentencePieceFile, tekkenFile, ranksFile, vocabFile, mergesFile)
	}
	f.path = vocabPath
	if f.bpe, err = parseVocabAndMerges(vocabPath, vocab, mergesPath, merges); err != nil {
		return err
	}
	f.bpe.pre, f.bpe.nfc = arch.SlowTokenizer(f.config.String("tokenizer_class", ""))
	return nil
}

// addedTokens reads added_tokens.json and the added_tokens_decoder of tokenizer_config.json.
func addedTokens(file, config *object.Object) ([]addedToken, error) {
	var added []addedToken
	if file != nil {
		for _, content := range file.Keys() {
			added = append(added, addedToken{id: file.Int(content, -1, 0, maxVocab), content: content})
		}
		if file.Err() != nil {
			return nil, file.Err()
		}
	}
	if decoder := config.Object("added_tokens_decoder"); decoder != nil {
		for _, key := range decoder.Keys() {
			var id int
			if json.Unmarshal([]byte(key), &id) != nil {
				decoder.Fail(key, "the key is not a token id")
			}
			if t := decoder.Object(key); t != nil {
				added = append(added, readAddedToken(t, id))
			}
		}
		return added, config.Err()
	}
	return added, nil
}

// setVocabulary sets the arrays that every tokenizer has.
func (c *Checkpoint) setVocabulary(model, pre string, v *vocabulary) {
	c.md.Set("tokenizer.ggml.model", model)
	if pre != "" {
		c.md.Set("tokenizer.ggml.pre", pre)
	}
	c.md.Set("tokenizer.ggml.tokens", v.tokens)
	if v.scored {
		c.md.Set("tokenizer.ggml.scores", v.scores)
	}
	c.md.Set("tokenizer.ggml.token_type", v.types)
}

// metadataView lets package tokenizer read metadata that no file holds yet.
type metadataView gguf.Metadata

// Meta returns a value.
func (m metadataView) Meta(key string) (any, bool) { return gguf.Metadata(m).Get(key) }

// checkTokenizer builds the tokenizer that readers will build, and settles which pre-tokenizer it needs.
func (c *Checkpoint) checkTokenizer(f *tokenizerFiles, m tokenizerModel, opt Options) error {
	tok, err := tokenizer.New(metadataView(c.md))
	if err != nil {
		return fmt.Errorf("%s: %w", c.dir, err)
	}
	if f.bpe == nil || !f.bpe.byteLevel || opt.Pre != "" {
		return nil
	}
	// Of the pre-tokenizers that split alike, the usual one serves unless its rule for words that are tokens matters.
	pres := f.bpe.pres(m.quirks)
	if pres[0].IgnoreMerges == f.bpe.ignoreMerges {
		return nil
	}
	id, ok := tok.MergesReachAll()
	if ok {
		return nil
	}
	for _, p := range pres[1:] {
		if p.IgnoreMerges == f.bpe.ignoreMerges {
			c.md.Set("tokenizer.ggml.pre", p.Names[0])
			if _, said := c.md.Get("tokenizer.ggml.add_bos_token"); !said && p.AddBOS != pres[0].AddBOS {
				c.md.Set("tokenizer.ggml.add_bos_token", pres[0].AddBOS)
			}
			return nil
		}
	}
	if f.bpe.ranks { // whose words are few that merging misses
		c.warn("%s: merging does not make token %d, %q, nor perhaps others, so that GGUF readers (%s) have other tokens for it",
			f.path, id, tok.Token(id), pres[0].Names[0])
		return nil
	}
	return fmt.Errorf("%s: ignore_merges is %v, which GGUF readers do not do for this pre_tokenizer (%s), and it matters: "+
		"merging does not make token %d, %q; --pre %s converts it nevertheless",
		f.path, f.bpe.ignoreMerges, pres[0].Names[0], id, tok.Token(id), pres[0].Names[0])
}
