package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/llmq/llmq/tokenizer"
)

// tokenizerJSON is tokenizer.json of Hugging Face's tokenizers library with a BPE model.
type tokenizerJSON struct {
	vocab        map[string]int
	merges       [][2]string
	added        []addedToken
	byteLevel    bool // GPT-2's byte alphabet; otherwise SentencePiece's characters with byte fallback
	ignoreMerges bool
	unknown      string // unk_token
	steps        []string
	spacePrefix  bool // SentencePiece only
	// post is what the post-processor puts first and last around one text, "" where there is nothing; nil without one.
	post *[2]string
}

// parseTokenizerJSON returns what it has understood beside an error, so that byteLevel can be asked for.
func parseTokenizerJSON(file string, data []byte) (*tokenizerJSON, error) {
	t := &tokenizerJSON{}
	o, err := parseObject(file, data)
	if err != nil {
		return t, err
	}
	t.readPreTokenizer(o.object("pre_tokenizer"))
	model := o.object("model")
	if model == nil {
		o.fail("model", "is missing")
		return t, *o.err
	}
	if kind := model.string("type", "BPE"); *o.err == nil && kind != "BPE" {
		model.fail("type", "is %.64q; supported: BPE", kind)
	}
	for _, key := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if s := model.string(key, ""); s != "" {
			model.fail(key, "is %q, which GGUF readers do not know", s)
		}
	}
	t.ignoreMerges = model.bool("ignore_merges", false)
	t.unknown = model.string("unk_token", "")
	byteFallback := model.bool("byte_fallback", false)
	t.readVocab(model)
	t.readMerges(model)
	for _, a := range o.list("added_tokens") {
		t.added = append(t.added, addedToken{
			a.int("id", -1, 0, maxVocab), a.string("content", ""), a.bool("special", false),
		})
	}
	t.readNormalizer(o.object("normalizer"))
	t.readPostProcessor(o.object("post_processor"))
	if *o.err == nil && !t.byteLevel && !byteFallback {
		o.fail("pre_tokenizer", "is neither byte-level (%s) nor is there a byte_fallback", strings.Join(t.steps, ", "))
	}
	return t, *o.err
}

// readVocab reads model.vocab. It goes token by token, for encoding/json would let a second id of a token pass.
func (t *tokenizerJSON) readVocab(model *object) {
	raw, ok := model.get("vocab")
	if !ok {
		model.fail("vocab", "is missing")
		return
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		model.fail("vocab", "is %s, want an object", excerpt(raw))
		return
	}
	t.vocab = make(map[string]int)
	for d.More() {
		key, err := d.Token()
		token, isString := key.(string)
		var id int
		if err == nil && isString {
			err = d.Decode(&id)
		}
		if err != nil || !isString || id < 0 {
			model.fail("vocab", "the id of token %.64q is not a natural number (%v)", token, err)
			return
		}
		if other, dup := t.vocab[token]; dup {
			model.fail("vocab", "token %.64q has two ids, %d and %d", token, other, id)
			return
		}
		t.vocab[token] = id
	}
}

// readMerges reads model.merges: "a b", or, since tokenizers 0.20, ["a", "b"].
func (t *tokenizerJSON) readMerges(model *object) {
	raw, ok := model.get("merges")
	if !ok {
		model.fail("merges", "is missing")
		return
	}
	var pairs [][]string
	if json.Unmarshal(raw, &pairs) == nil {
		t.merges = make([][2]string, len(pairs))
		for i, pair := range pairs {
			if len(pair) != 2 || pair[0] == "" || pair[1] == "" {
				model.fail("merges", "[%d] is %.64q, want two tokens", i, pair)
				return
			}
			t.merges[i] = [2]string(pair)
		}
		return
	}
	var lines []string
	if json.Unmarshal(raw, &lines) != nil {
		model.fail("merges", "is %s, want a list of pairs", excerpt(raw))
		return
	}
	t.merges = make([][2]string, len(lines))
	for i, line := range lines {
		left, right, ok := strings.Cut(line, " ")
		if !ok || left == "" || right == "" {
			model.fail("merges", "[%d] is %.64q, want two tokens with a space between them", i, line)
			return
		}
		t.merges[i] = [2]string{left, right}
	}
}

// readPreTokenizer translates pre_tokenizer into the steps that tokenizer.PresBySteps compares.
func (t *tokenizerJSON) readPreTokenizer(o *object) {
	if o == nil {
		return
	}
	switch kind := o.string("type", ""); kind {
	case "Sequence":
		for _, step := range o.list("pretokenizers") {
			t.readPreTokenizer(step)
		}
	case "Split":
		t.readSplit(o)
	case "ByteLevel":
		t.byteLevel = true
		if o.bool("add_prefix_space", false) {
			o.fail("add_prefix_space", "is true, which GGUF readers do not do")
		}
		if o.bool("use_regex", true) {
			t.steps = append(t.steps, tokenizer.GPT2Pattern)
		}
	case "Digits":
		if o.bool("individual_digits", false) {
			t.steps = append(t.steps, tokenizer.StepDigit)
		} else {
			t.steps = append(t.steps, tokenizer.StepDigits)
		}
	case "Punctuation":
		if behavior := o.string("behavior", "Isolated"); behavior == "Contiguous" {
			t.steps = append(t.steps, tokenizer.StepPunctuation)
		} else {
			t.steps = append(t.steps, "Punctuation "+behavior)
		}
	case "Metaspace":
		scheme := o.string("prepend_scheme", "always")
		t.spacePrefix = o.bool("add_prefix_space", true) && scheme != "never"
		if o.bool("split", true) {
			t.steps = append(t.steps, "Metaspace split")
		}
	default:
		t.steps = append(t.steps, kind)
	}
}

func (t *tokenizerJSON) readSplit(o *object) {
	pattern := o.object("pattern")
	step := pattern.string("Regex", "")
	if s := pattern.string("String", ""); s != "" {
		step = "String " + s
	}
	// What the patterns of tiktoken leave between matches is nothing, so removing it is as good as isolating matches.
	behavior, invert := o.string("behavior", ""), o.bool("invert", false)
	if !(behavior == "Isolated" && !invert || behavior == "Removed" && invert) {
		step = fmt.Sprintf("Split %s (invert %v) %s", behavior, invert, step)
	}
	t.steps = append(t.steps, step)
}

// readNormalizer accepts what GGUF readers do by themselves: for SentencePiece, ▁ in place of spaces and before the
// text; for byte-level BPE nothing, and NFC, which they leave out.
func (t *tokenizerJSON) readNormalizer(o *object) {
	if o == nil {
		return
	}
	switch kind := o.string("type", ""); {
	case kind == "Sequence":
		for _, n := range o.list("normalizers") {
			t.readNormalizer(n)
		}
	case kind == "NFC" && t.byteLevel:
	case kind == "Prepend" && !t.byteLevel && o.string("prepend", "") == "▁":
		t.spacePrefix = true
	case kind == "Replace" && !t.byteLevel && o.object("pattern").string("String", "") == " " &&
		o.string("content", "") == "▁":
	default:
		o.fail("type", "%.64q with these members is not something GGUF readers do", kind)
	}
}

func (t *tokenizerJSON) readPostProcessor(o *object) {
	if o == nil {
		return
	}
	switch o.string("type", "") {
	case "Sequence":
		for _, p := range o.list("processors") {
			t.readPostProcessor(p)
		}
	case "TemplateProcessing":
		single := o.list("single")
		if len(single) == 0 {
			return
		}
		special := func(i int) string { return single[i].object("SpecialToken").string("id", "") }
		t.post = &[2]string{special(0), special(len(single) - 1)}
	}
}

// vocabulary gathers the tokens, padded to size.
func (t *tokenizerJSON) vocabulary(size int, added []addedToken) (*vocabulary, error) {
	v := newVocabulary(size)
	for token, id := range t.vocab {
		if id < size && v.taken[id] {
			first, second := min(v.tokens[id], token), max(v.tokens[id], token)
			return nil, fmt.Errorf("model.vocab: tokens %.64q and %.64q have the same id, %d", first, second, id)
		}
		typ := tokenizer.Normal
		if !t.byteLevel && token == t.unknown {
			typ = tokenizer.Unknown
		} else if !t.byteLevel && isByteToken(token) {
			typ = tokenizer.Byte
		}
		if err := v.put(id, token, typ, 0); err != nil {
			return nil, err
		}
	}
	return v, v.add(added)
}

// isByteToken recognises SentencePiece's <0xFF>.
func isByteToken(token string) bool {
	var b byte
	n, err := fmt.Sscanf(token, "<0x%02X>", &b)
	return err == nil && n == 1 && len(token) == len("<0xFF>") && token[len(token)-1] == '>'
}

// loadBPE sets the metadata of a byte-level tokenizer.
func (c *Checkpoint) loadBPE(f *tokenizerFiles, size int, opt Options) (*vocabulary, error) {
	t := f.json
	v, err := t.vocabulary(size, f.added)
	if err != nil {
		return nil, err
	}
	v.pad(0)
	pre := opt.Pre
	if pre == "" {
		pres := tokenizer.PresBySteps(t.steps)
		if len(pres) == 0 {
			return nil, fmt.Errorf("pre_tokenizer: these steps are not those of a pre-tokenizer that GGUF readers know:\n\t%s\n"+
				"name one that splits alike with --pre: %s", strings.Join(t.steps, "\n\t"), strings.Join(tokenizer.PreNames(), ", "))
		}
		pre = pres[0].Names[0]
	} else if _, ok := tokenizer.PreByName(pre); !ok {
		return nil, fmt.Errorf("--pre %q is not known; known: %s", pre, strings.Join(tokenizer.PreNames(), ", "))
	}
	merges := make([]string, len(t.merges))
	for i, m := range t.merges {
		// In the byte alphabet Ġ is a space.
		merges[i] = strings.ReplaceAll(m[0], " ", "Ġ") + " " + strings.ReplaceAll(m[1], " ", "Ġ")
	}
	c.setVocabulary("gpt2", v)
	c.md.Set("tokenizer.ggml.pre", pre)
	c.md.Set("tokenizer.ggml.merges", merges)
	return v, nil
}

// loadMergedSPM sets the metadata of a SentencePiece tokenizer of which only tokenizer.json is left. SentencePiece
// merges by the score of the token that a pair makes; the rank of the first merge that makes it will do for a score, as
// long as the merges are all the ways to make each token, in one run each. Then the two orders are the same.
func (c *Checkpoint) loadMergedSPM(f *tokenizerFiles, size int) (*vocabulary, error) {
	t := f.json
	if len(t.steps) > 0 {
		return nil, fmt.Errorf("pre_tokenizer: %s: GGUF readers do not do this for SentencePiece", strings.Join(t.steps, ", "))
	}
	v, err := t.vocabulary(size, f.added)
	if err != nil {
		return nil, err
	}
	ways := make(map[string]int) // ways to make a token
	last := ""
	for rank, m := range t.merges {
		token := m[0] + m[1]
		id, ok := t.vocab[token]
		if !ok {
			return nil, fmt.Errorf("model.merges[%d]: %.64q is not in the vocabulary", rank, token)
		}
		if token != last {
			if ways[token] > 0 {
				return nil, fmt.Errorf("model.merges[%d]: %.64q is merged at two ranks, which SentencePiece's scores "+
					"cannot express; add %s to the folder", rank, token, sentencePieceFile)
			}
			v.scores[id] = -float32(rank)
		}
		ways[token]++
		last = token
	}
	for token, id := range t.vocab {
		if v.types[id] != int32(tokenizer.Normal) {
			continue // merging never makes it
		}
		possible := 0
		for i := range token {
			_, left := t.vocab[token[:i]]
			_, right := t.vocab[token[i:]]
			if left && right {
				possible++
			}
		}
		if ways[token] != possible {
			return nil, fmt.Errorf("model.merges: %.64q can be made in %d ways, of which %d are merges; SentencePiece's scores "+
				"cannot express that; add %s to the folder", token, possible, ways[token], sentencePieceFile)
		}
	}
	v.pad(padScore)
	c.setVocabulary("llama", v)
	c.md.Set("tokenizer.ggml.pre", "default")
	return v, c.setSpacePrefix(f, t.spacePrefix)
}

// setSpacePrefix says whether a space goes before the text; tokenizer_config.json may decide otherwise than the model.
func (c *Checkpoint) setSpacePrefix(f *tokenizerFiles, byModel bool) error {
	c.md.Set("tokenizer.ggml.add_space_prefix", f.config.bool("add_prefix_space", byModel))
	if f.config == nil {
		return nil
	}
	return *f.config.err
}
