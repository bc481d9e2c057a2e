package hf

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/llmq/llmq/formats/hf/object"
)

// parseTekken reads tekken.json of Mistral's models (github.com/mistralai/mistral-common): ranks as tiktoken's, after
// special tokens.
func parseTekken(file string, data []byte) (*bpeModel, error) {
	o, err := object.Parse(file, data)
	if err != nil {
		return nil, err
	}
	config := o.Object("config")
	if config == nil {
		o.Fail("config", "is missing")
		return nil, o.Err()
	}
	size := config.Int("default_vocab_size", -1, 1, maxVocab)
	numSpecial := config.Int("default_num_special_tokens", -1, 0, maxVocab)
	if o.Err() == nil && numSpecial > size {
		config.Fail("default_num_special_tokens", "is %d, but default_vocab_size is %d", numSpecial, size)
	}
	var tokens []struct {
		Rank  *int   `json:"rank"`
		Bytes string `json:"token_bytes"`
	}
	if raw, ok := o.Get("vocab"); !ok || json.Unmarshal(raw, &tokens) != nil {
		o.Fail("vocab", "is %s, want a list of tokens", o.Excerpt("vocab"))
	}
	if o.Err() != nil {
		return nil, o.Err()
	}
	r := make(ranks, len(tokens))
	for i, t := range tokens {
		b, err := base64.StdEncoding.DecodeString(t.Bytes)
		key := fmt.Sprintf("vocab[%d]", i)
		switch {
		case t.Rank == nil || *t.Rank < 0:
			o.Fail(key, "rank is missing or negative")
		case *t.Rank >= size-numSpecial: // mistral-common leaves these out too
			continue
		case err != nil || len(b) == 0 || len(b) > maxTokenBytes:
			o.Fail(key, "token_bytes is %.64q, want 1 to %d bytes in base64", t.Bytes, maxTokenBytes)
		}
		if other, dup := r[string(b)]; dup {
			o.Fail(key, "%.64q has two ranks, %d and %d", b, other, *t.Rank)
		}
		if o.Err() != nil {
			return nil, o.Err()
		}
		r[string(b)] = *t.Rank
	}
	m := r.model(numSpecial)
	if m.merges, err = r.allMerges(len(data)); err != nil {
		return nil, fmt.Errorf("%s: vocab: %w", file, err)
	}
	m.pre, m.scored = "tekken", true
	m.post = &template{first: "<s>", leading: 1}
	if err := m.readTekkenSpecials(o, numSpecial); err != nil {
		return nil, err
	}
	return m, nil
}

// tekkenSpecials are the special tokens of files that do not list them.
var tekkenSpecials = []string{
	"<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
	"[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
	"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
}

// readTekkenSpecials names the first n ids, and finds those with a role.
func (b *bpeModel) readTekkenSpecials(o *object.Object, n int) error {
	listed := map[int]string{}
	if o.Has("special_tokens") {
		for _, t := range o.List("special_tokens") {
			listed[t.Int("rank", -1, 0, maxVocab)] = t.String("token_str", "")
		}
	} else {
		for i, token := range tekkenSpecials {
			listed[i] = token
		}
	}
	if o.Err() != nil {
		return o.Err()
	}
	// A file that claims more special tokens than it could name has them padded.
	for id := range min(n, len(b.vocab)+len(listed)+1024) {
		token, ok := listed[id]
		if !ok {
			token = fmt.Sprintf("<SPECIAL_%d>", id)
		}
		b.added = append(b.added, addedToken{id: id, content: token, special: true})
	}
	b.special = map[string]int{}
	for _, a := range b.added {
		switch a.content {
		case "<unk>":
			b.special["unk"] = a.id
		case "<s>":
			b.special["bos"] = a.id
		case "</s>":
			b.special["eos"] = a.id
		case "<pad>":
			b.special["pad"] = a.id
		}
	}
	if _, ok := b.special["pad"]; !ok {
		if eos, ok := b.special["eos"]; ok {
			b.special["pad"] = eos
		}
	}
	return nil
}
