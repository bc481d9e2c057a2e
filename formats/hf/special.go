package hf

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/tokenizer"
)

// specialKinds are the special tokens that GGUF has keys for and the transformers library names for.
var specialKinds = []string{"bos", "eos", "unk", "sep", "pad", "cls", "mask"}

// specialKey is the key of a kind of special token's id.
func specialKey(kind string) string {
	switch kind {
	case "unk":
		kind = "unknown"
	case "sep":
		kind = "seperator" // sic
	case "pad":
		kind = "padding"
	}
	return "tokenizer.ggml." + kind + "_token_id"
}

// loadSpecialTokens sets the ids of special tokens and whether BOS, EOS and separators go around a text. The tokenizer's
// own files go before config.json, which some models leave with ids of another vocabulary.
func (c *Checkpoint) loadSpecialTokens(f *tokenizerFiles, v *vocabulary, m tokenizerModel) error {
	ids := map[string]int{}
	for _, kind := range specialKinds {
		id, ok, err := c.specialID(kind, f, v, m.config)
		if err != nil {
			return err
		}
		if ok {
			ids[kind] = id
		}
	}
	add := map[string]bool{} // kinds of which the files say whether they are added
	if f.bpe != nil && f.bpe.post != nil {
		f.bpe.post.apply(v, ids, add)
		if n := f.bpe.post.leading; n > 1 {
			c.warn("%s: post_processor: %d tokens go before every text; GGUF readers put only the first there", f.path, n)
		}
	}
	for _, kind := range []string{"bos", "eos", "sep"} {
		if f.config.Has("add_" + kind + "_token") {
			add[kind] = f.config.Bool("add_"+kind+"_token", false)
		}
	}
	if f.config.Err() != nil {
		return f.config.Err()
	}
	if err := c.familyTokens(v, m, ids, add); err != nil {
		return err
	}
	// What the transformers library's classes do where the files are silent, and what GGUF readers do.
	_, named := ids["bos"]
	byClass := map[string]bool{"bos": named && (f.bpe == nil || !f.bpe.byteLevel)}
	byReader := map[string]bool{"bos": c.readerAddsBOS()}
	for _, kind := range []string{"bos", "eos", "sep"} {
		want, said := add[kind]
		if !said {
			want = byClass[kind]
		}
		if _, ok := ids[kind]; want && !ok && kind != "sep" {
			return fmt.Errorf("%s: a %s token is to be added to every text, but none is named", c.dir, strings.ToUpper(kind))
		}
		if said || want != byReader[kind] {
			c.md.Set("tokenizer.ggml.add_"+kind+"_token", want)
		}
	}
	for _, kind := range append(specialKinds, "eot", "eom") {
		if id, ok := ids[kind]; ok {
			c.md.Set(specialKey(kind), uint32(id))
		}
	}
	return nil
}

// readerAddsBOS says whether GGUF readers put BOS before a text if add_bos_token does not say.
func (c *Checkpoint) readerAddsBOS() bool {
	if model, _ := c.md.Get("tokenizer.ggml.model"); model != tokenizer.ModelBytes {
		return true
	}
	name, _ := c.md.Get("tokenizer.ggml.pre")
	pre, ok := tokenizer.PreByName(name.(string))
	return ok && pre.AddBOS
}

// template is what tokenizer.json's post-processor puts around texts.
type template struct {
	first, last string   // around one text, "" where there is nothing
	leading     int      // tokens before it
	between     []string // tokens between two texts, beside those around each
}

// apply says which tokens are added. A last token that is not EOS takes its place, and EOS becomes EOT.
func (t *template) apply(v *vocabulary, ids map[string]int, add map[string]bool) {
	if first, ok := v.id(t.first); ok && t.first != "" {
		if _, named := ids["bos"]; !named {
			ids["bos"] = first
		}
		add["bos"] = first == ids["bos"]
	}
	if last, ok := v.id(t.last); ok && t.last != "" {
		if eos, named := ids["eos"]; named && eos != last {
			ids["eot"] = eos
		}
		ids["eos"], add["eos"] = last, true
	}
	if len(t.between) > 0 {
		separates := func(token string) bool {
			id, ok := v.id(token)
			eos, hasEOS := ids["eos"]
			sep, hasSep := ids["sep"]
			return ok && (hasEOS && id == eos || hasSep && id == sep)
		}
		add["sep"] = separates(t.between[0]) && t.last == "" || len(t.between) == 2 && separates(t.between[1])
	}
}

// specialID finds the id of a kind of special token.
func (c *Checkpoint) specialID(kind string, f *tokenizerFiles, v *vocabulary, config *object.Object) (int, bool, error) {
	for _, o := range []*object.Object{f.config, f.special} {
		raw, ok := o.Get(kind + "_token")
		if !ok {
			continue
		}
		var content string
		if json.Unmarshal(raw, &content) != nil {
			if t := o.Object(kind + "_token"); t != nil {
				content = t.String("content", "")
			}
		}
		if o.Err() != nil {
			return 0, false, o.Err()
		}
		if id, ok := v.id(content); ok {
			return id, true, nil
		}
		if content != "" {
			c.warn("%s: %s_token: %q is not in the vocabulary; left out", o.File, kind, content)
		}
	}
	if id, ok := f.bpeSpecial(kind); ok && id < len(v.tokens) {
		return id, true, nil
	}
	for _, o := range []*object.Object{config, config.Object("text_config")} {
		id, ok, err := c.configID(kind, o, len(v.tokens))
		if ok || err != nil {
			return id, ok, err
		}
	}
	if f.model != nil {
		if id, ok := f.model.special[kind]; ok && id >= 0 && id < len(v.tokens) {
			return id, true, nil
		}
	}
	return 0, false, nil
}

// bpeSpecial finds what the vocabulary's own file says.
func (f *tokenizerFiles) bpeSpecial(kind string) (int, bool) {
	if f.bpe == nil {
		return 0, false
	}
	id, ok := f.bpe.special[kind]
	return id, ok
}

// configID finds the id that config.json gives; -1 says none. Several tokens may end a text: the first is the main one.
func (c *Checkpoint) configID(kind string, o *object.Object, size int) (int, bool, error) {
	key := kind + "_token_id"
	raw, ok := o.Get(key)
	if !ok {
		return 0, false, nil
	}
	var list []int
	if json.Unmarshal(raw, &list) != nil {
		list = []int{o.Int(key, 0, -1, 1<<31-1)}
	}
	if o.Err() != nil {
		return 0, false, o.Err()
	}
	for _, id := range list {
		if id >= 0 && id < size {
			return id, true, nil
		}
		if id >= size {
			c.warn("%s: is %d, but there are %d tokens; left out", o.Path(key), id, size)
		}
	}
	return 0, false, nil
}
