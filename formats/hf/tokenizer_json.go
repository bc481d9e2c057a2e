package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/llmq/llmq/tokenizer"
)

// parseTokenizerJSON reads tokenizer.json of Hugging Face's tokenizers library with a BPE model. It returns what it has
// understood beside an error, so that byteLevel can be asked for.
func parseTokenizerJSON(file string, data []byte) (*bpeModel, error) {
	t := &bpeModel{}
	o, err := parseObject(file, data)
	if err != nil {
		return t, err
	}
	t.readPreTokenizer(o.object("pre_tokenizer"))
	t.readNormalizer(o.object("normalizer"))
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
	if raw, ok := model.get("vocab"); ok {
		t.vocab = readVocab(model, "vocab", raw)
	} else {
		model.fail("vocab", "is missing")
	}
	t.readMerges(model)
	for _, a := range o.list("added_tokens") {
		t.added = append(t.added, readAddedToken(a, a.int("id", -1, 0, maxVocab)))
	}
	t.readPostProcessor(o.object("post_processor"))
	if t.splitAtSpaces && !t.spacesReplaced {
		t.steps = append(t.steps, "Split at spaces")
	}
	if *o.err == nil && !t.byteLevel && !byteFallback {
		o.fail("pre_tokenizer", "is neither byte-level (%s) nor is there a byte_fallback", strings.Join(t.steps, ", "))
	}
	return t, *o.err
}

// readVocab reads an object of tokens and their ids, o's member key. It goes token by token, for encoding/json would let a
// second id of a token pass.
func readVocab(o *object, key string, raw []byte) map[string]int {
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		o.fail(key, "is %s, want an object", excerpt(raw))
		return nil
	}
	vocab := make(map[string]int)
	for d.More() {
		name, err := d.Token()
		token, isString := name.(string)
		var id int
		if err == nil && isString {
			err = d.Decode(&id)
		}
		if err != nil || !isString || id < 0 || id > maxVocab {
			o.fail(key, "the id of token %.64q is not a natural number up to %d (%v)", token, maxVocab, err)
			return nil
		}
		if other, dup := vocab[token]; dup {
			o.fail(key, "token %.64q has two ids, %d and %d", token, other, id)
			return nil
		}
		vocab[token] = id
	}
	if _, err := d.Token(); err != nil {
		o.fail(key, "is not closed (%v)", err)
		return nil
	}
	return vocab
}

// readMerges reads model.merges: "a b", or, since tokenizers 0.20, ["a", "b"].
func (t *bpeModel) readMerges(model *object) {
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
func (t *bpeModel) readPreTokenizer(o *object) {
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
		t.spacesReplaced = true
		if o.bool("split", true) {
			t.steps = append(t.steps, "Metaspace split")
		}
	default:
		t.steps = append(t.steps, kind)
	}
}

func (t *bpeModel) readSplit(o *object) {
	pattern := o.object("pattern")
	step := pattern.string("Regex", "")
	switch s := pattern.string("String", ""); s {
	case "":
	case " ":
		t.splitAtSpaces = true
		return
	default:
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
func (t *bpeModel) readNormalizer(o *object) {
	if o == nil {
		return
	}
	switch kind := o.string("type", ""); {
	case kind == "Sequence":
		for _, n := range o.list("normalizers") {
			t.readNormalizer(n)
		}
	case kind == "NFC" && t.byteLevel:
		t.nfc = true
	case kind == "Prepend" && !t.byteLevel && o.string("prepend", "") == "▁":
		t.spacePrefix = true
	case kind == "Replace" && !t.byteLevel && o.object("pattern").string("String", "") == " " &&
		o.string("content", "") == "▁":
		t.spacesReplaced = true
	default:
		o.fail("type", "%.64q with these members is not something GGUF readers do", kind)
	}
}

func (t *bpeModel) readPostProcessor(o *object) {
	if o == nil {
		return
	}
	switch o.string("type", "") {
	case "Sequence":
		for _, p := range o.list("processors") {
			t.readPostProcessor(p)
		}
	case "RobertaProcessing", "BertProcessing":
		token := func(key string) string {
			var pair []json.RawMessage
			var name string
			if raw, ok := o.get(key); !ok || json.Unmarshal(raw, &pair) != nil || len(pair) == 0 ||
				json.Unmarshal(pair[0], &name) != nil {
				o.fail(key, "is %s, want a token and its id", excerpt(raw))
			}
			return name
		}
		first, last := token("cls"), token("sep")
		t.post = &template{first: first, last: last, leading: 1, between: []string{last, last}}
	case "TemplateProcessing":
		t.post = readTemplate(o)
	}
}

// readTemplate reads what goes around one text and between two.
func readTemplate(o *object) *template {
	special := func(item *object) string { return item.object("SpecialToken").string("id", "") }
	t := &template{}
	single, pair := o.list("single"), o.list("pair")
	if len(single) > 1 {
		t.first, t.last = special(single[0]), special(single[len(single)-1])
	}
	for t.leading < len(single) && special(single[t.leading]) != "" {
		t.leading++
	}
	if len(pair) > 0 && t.first != "" && special(pair[0]) == t.first {
		pair = pair[1:]
	}
	if len(pair) > 0 && t.last != "" && special(pair[len(pair)-1]) == t.last {
		pair = pair[:len(pair)-1]
	}
	if len(pair) > 2 && pair[0].object("Sequence").string("id", "") == "A" &&
		pair[len(pair)-1].object("Sequence").string("id", "") == "B" {
		for _, item := range pair[1 : len(pair)-1] {
			t.between = append(t.between, special(item))
		}
	}
	return t
}
