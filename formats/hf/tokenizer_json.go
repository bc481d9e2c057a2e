package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// parseTokenizerJSON reads tokenizer.json of Hugging Face's tokenizers library with a BPE model. It returns what it has
// understood beside an error, so that byteLevel can be asked for.
func parseTokenizerJSON(file string, data []byte) (*bpeModel, error) {
	t := &bpeModel{}
	o, err := object.Parse(file, data)
	if err != nil {
		return t, err
	}
	t.readPreTokenizer(o.Object("pre_tokenizer"))
	t.readNormalizer(o.Object("normalizer"))
	model := o.Object("model")
	if model == nil {
		o.Fail("model", "is missing")
		return t, o.Err()
	}
	if kind := model.String("type", "BPE"); o.Err() == nil && kind != "BPE" {
		model.Fail("type", "is %.64q; supported: BPE", kind)
	}
	for _, key := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if s := model.String(key, ""); s != "" {
			model.Fail(key, "is %q, which GGUF readers do not know", s)
		}
	}
	t.ignoreMerges = model.Bool("ignore_merges", false)
	t.unknown = model.String("unk_token", "")
	byteFallback := model.Bool("byte_fallback", false)
	if raw, ok := model.Get("vocab"); ok {
		t.vocab = readVocab(model, "vocab", raw)
	} else {
		model.Fail("vocab", "is missing")
	}
	t.readMerges(model)
	for _, a := range o.List("added_tokens") {
		t.added = append(t.added, readAddedToken(a, a.Int("id", -1, 0, maxVocab)))
	}
	t.readPostProcessor(o.Object("post_processor"))
	if t.splitAtSpaces && !t.spacesReplaced {
		t.steps = append(t.steps, "Split at spaces")
	}
	if o.Err() == nil && !t.byteLevel && !byteFallback {
		o.Fail("pre_tokenizer", "is neither byte-level (%s) nor is there a byte_fallback", strings.Join(t.steps, ", "))
	}
	return t, o.Err()
}

// readVocab reads an object of tokens and their ids, o's member key. It goes token by token, for encoding/json would let a
// second id of a token pass.
func readVocab(o *object.Object, key string, raw []byte) map[string]int {
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		o.Fail(key, "is %.60s, want an object", raw)
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
			o.Fail(key, "the id of token %.64q is not a natural number up to %d (%v)", token, maxVocab, err)
			return nil
		}
		if other, dup := vocab[token]; dup {
			o.Fail(key, "token %.64q has two ids, %d and %d", token, other, id)
			return nil
		}
		vocab[token] = id
	}
	if _, err := d.Token(); err != nil {
		o.Fail(key, "is not closed (%v)", err)
		return nil
	}
	return vocab
}

// readMerges reads model.merges: "a b", or, since tokenizers 0.20, ["a", "b"].
func (t *bpeModel) readMerges(model *object.Object) {
	raw, ok := model.Get("merges")
	if !ok {
		model.Fail("merges", "is missing")
		return
	}
	var pairs [][]string
	if json.Unmarshal(raw, &pairs) == nil {
		t.merges = make([][2]string, len(pairs))
		for i, pair := range pairs {
			if len(pair) != 2 || pair[0] == "" || pair[1] == "" {
				model.Fail("merges", "[%d] is %.64q, want two tokens", i, pair)
				return
			}
			t.merges[i] = [2]string(pair)
		}
		return
	}
	var lines []string
	if json.Unmarshal(raw, &lines) != nil {
		model.Fail("merges", "is %s, want a list of pairs", model.Excerpt("merges"))
		return
	}
	t.merges = make([][2]string, len(lines))
	for i, line := range lines {
		left, right, ok := strings.Cut(line, " ")
		if !ok || left == "" || right == "" {
			model.Fail("merges", "[%d] is %.64q, want two tokens with a space between them", i, line)
			return
		}
		t.merges[i] = [2]string{left, right}
	}
}

// readPreTokenizer translates pre_tokenizer into the steps that tokenizer.PresBySteps compares.
func (t *bpeModel) readPreTokenizer(o *object.Object) {
	if o == nil {
		return
	}
	switch kind := o.String("type", ""); kind {
	case "Sequence":
		for _, step := range o.List("pretokenizers") {
			t.readPreTokenizer(step)
		}
	case "Split":
		t.readSplit(o)
	case "ByteLevel":
		t.byteLevel = true
		if o.Bool("add_prefix_space", false) {
			o.Fail("add_prefix_space", "is true, which GGUF readers do not do")
		}
		if o.Bool("use_regex", true) {
			t.steps = append(t.steps, tokenizer.GPT2Pattern)
		}
	case "Digits":
		if o.Bool("individual_digits", false) {
			t.steps = append(t.steps, tokenizer.StepDigit)
		} else {
			t.steps = append(t.steps, tokenizer.StepDigits)
		}
	case "Punctuation":
		if behavior := o.String("behavior", "Isolated"); behavior == "Contiguous" {
			t.steps = append(t.steps, tokenizer.StepPunctuation)
		} else {
			t.steps = append(t.steps, "Punctuation "+behavior)
		}
	case "Metaspace":
		scheme := o.String("prepend_scheme", "always")
		t.spacePrefix = o.Bool("add_prefix_space", true) && scheme != "never"
		t.spacesReplaced = true
		if o.Bool("split", true) {
			t.steps = append(t.steps, "Metaspace split")
		}
	default:
		t.steps = append(t.steps, kind)
	}
}

func (t *bpeModel) readSplit(o *object.Object) {
	pattern := o.Object("pattern")
	step := pattern.String("Regex", "")
	switch s := pattern.String("String", ""); s {
	case "":
	case " ":
		t.splitAtSpaces = true
		return
	default:
		step = "String " + s
	}
	// What the patterns of tiktoken leave between matches is nothing, so removing it is as good as isolating matches.
	behavior, invert := o.String("behavior", ""), o.Bool("invert", false)
	if !(behavior == "Isolated" && !invert || behavior == "Removed" && invert) {
		step = fmt.Sprintf("Split %s (invert %v) %s", behavior, invert, step)
	}
	t.steps = append(t.steps, step)
}

// readNormalizer accepts what GGUF readers do by themselves: for SentencePiece, ▁ in place of spaces and before the
// text; for byte-level BPE nothing, and NFC, which they leave out.
func (t *bpeModel) readNormalizer(o *object.Object) {
	if o == nil {
		return
	}
	switch kind := o.String("type", ""); {
	case kind == "Sequence":
		for _, n := range o.List("normalizers") {
			t.readNormalizer(n)
		}
	case kind == "NFC" && t.byteLevel:
		t.nfc = true
	case kind == "Prepend" && !t.byteLevel && o.String("prepend", "") == "▁":
		t.spacePrefix = true
	case kind == "Replace" && !t.byteLevel && o.Object("pattern").String("String", "") == " " &&
		o.String("content", "") == "▁":
		t.spacesReplaced = true
	default:
		o.Fail("type", "%.64q with these members is not something GGUF readers do", kind)
	}
}

func (t *bpeModel) readPostProcessor(o *object.Object) {
	if o == nil {
		return
	}
	switch o.String("type", "") {
	case "Sequence":
		for _, p := range o.List("processors") {
			t.readPostProcessor(p)
		}
	case "RobertaProcessing", "BertProcessing":
		token := func(key string) string {
			var pair []json.RawMessage
			var name string
			if raw, ok := o.Get(key); !ok || json.Unmarshal(raw, &pair) != nil || len(pair) == 0 ||
				json.Unmarshal(pair[0], &name) != nil {
				o.Fail(key, "is %s, want a token and its id", o.Excerpt(key))
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
func readTemplate(o *object.Object) *template {
	special := func(item *object.Object) string { return item.Object("SpecialToken").String("id", "") }
	t := &template{}
	single, pair := o.List("single"), o.List("pair")
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
	if len(pair) > 2 && pair[0].Object("Sequence").String("id", "") == "A" &&
		pair[len(pair)-1].Object("Sequence").String("id", "") == "B" {
		for _, item := range pair[1 : len(pair)-1] {
			t.between = append(t.between, special(item))
		}
	}
	return t
}
