package calib

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/llmq/llmq/internal/jinja"
	"github.com/llmq/llmq/tokenizer"
)

// ChatTemplate renders conversations as a model was trained to see them: as Hugging Face's apply_chat_template does, by
// package jinja. The date is always the 26th of July 2024, Llama 3's default, so that the same conversation gives the
// same tokens every day.
type ChatTemplate struct {
	template *jinja.Template
	err      error          // instead of template
	special  map[string]any // bos_token and its like, of the model
}

var chatDate = time.Date(2024, time.July, 26, 0, 0, 0, 0, time.UTC)

// NewChatTemplate reads tokenizer.chat_template and the names of the special tokens from m. That there is none, or none
// that can be read, is an error only where a conversation needs it.
func NewChatTemplate(m tokenizer.Metadata) *ChatTemplate {
	const key = "tokenizer.chat_template"
	v, ok := m.Meta(key)
	if !ok {
		return &ChatTemplate{err: fmt.Errorf(`"messages" need a chat template, and the model has no %s`, key)}
	}
	source, ok := v.(string)
	if !ok {
		return &ChatTemplate{err: fmt.Errorf("%s is %T, want string", key, v)}
	}
	c := &ChatTemplate{special: map[string]any{}}
	tokens, _ := m.Meta("tokenizer.ggml.tokens")
	names, _ := tokens.([]string)
	for variable, name := range specialTokens {
		id, _ := m.Meta("tokenizer.ggml." + name + "_token_id")
		if i, ok := id.(uint32); ok && int64(i) < int64(len(names)) {
			c.special[variable] = names[i]
		}
	}
	var err error
	if c.template, err = jinja.Parse(source); err != nil {
		c.err = fmt.Errorf("%s: %w", key, shorten(err))
	}
	return c
}

// specialTokens are the variables that hold special tokens, which are undefined where the model has none, with GGUF's
// names of them.
var specialTokens = map[string]string{
	"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",
	"cls_token": "cls", "mask_token": "mask",
}

// maxGrowth bounds what a template may make of a record, in bytes of output per byte of it, with something for what a
// template says of its own accord; maxWork and maxOwnWork bound what it may do for that, in package jinja's units.
const (
	maxGrowth    = 16
	maxOwnOutput = 64 << 10
	maxWork      = 1 << 10
	maxOwnWork   = 64 << 20
)

// render renders the messages of a record. Of the record's other members, which may be nil, "tools" and "documents" reach
// the template, and those of "chat_template_kwargs" are variables of it.
func (c *ChatTemplate) render(messages []byte, record map[string]json.RawMessage) (string, error) {
	if c == nil {
		return "", errors.New(`"messages" need a chat template, and none is given`)
	}
	if c.err != nil {
		return "", c.err
	}
	size := len(messages)
	member := func(name string) (any, error) {
		raw, ok := record[name]
		if !ok {
			return nil, nil
		}
		size += len(raw)
		v, err := jinja.Decode(raw)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		return v, nil
	}
	turns, err := jinja.Decode(messages)
	if err != nil {
		return "", fmt.Errorf(`"messages": %w`, err)
	}
	list, ok := jinja.List(turns)
	if !ok {
		return "", errors.New(`"messages" is not an array`)
	}
	if len(list) == 0 {
		return "", errors.New(`"messages" is empty`)
	}
	for i, m := range list {
		if _, _, ok := jinja.Members(m); !ok {
			return "", fmt.Errorf(`"messages"[%d] is not an object`, i)
		}
		if role, ok := jinja.Member(m, "role").(string); !ok || role == "" {
			return "", fmt.Errorf(`"messages"[%d] has no "role"`, i)
		}
	}
	vars := map[string]any{"messages": turns, "add_generation_prompt": false}
	for name, v := range c.special {
		vars[name] = v
	}
	for _, name := range []string{"tools", "documents"} {
		v, err := member(name)
		if err != nil {
			return "", err
		}
		vars[name] = v
		if v == nil {
			continue
		}
		items, ok := jinja.List(v)
		for _, item := range items {
			_, _, isObject := jinja.Members(item)
			ok = ok && isObject
		}
		if !ok {
			return "", fmt.Errorf("%q is not an array of objects", name)
		}
	}
	kwargs, err := member("chat_template_kwargs")
	if err != nil {
		return "", err
	}
	if kwargs != nil {
		names, values, ok := jinja.Members(kwargs)
		if !ok {
			return "", errors.New(`"chat_template_kwargs" is not an object`)
		}
		for i, name := range names {
			if slices.Contains([]string{"messages", "tools", "documents"}, name) {
				return "", fmt.Errorf(`"chat_template_kwargs" has %q, which has its place in the record`, name)
			}
			vars[name] = values[i]
		}
	}
	out, err := c.template.Render(vars, jinja.Options{
		Now:    chatDate,
		Limits: jinja.Limits{Output: maxGrowth*size + maxOwnOutput, Work: maxWork*size + maxOwnWork},
	})
	if err != nil {
		return "", fmt.Errorf("the chat template: %w", shorten(err))
	}
	return out, nil
}

// shorten keeps the beginning of a message that has a template's words in it.
func shorten(err error) error {
	const most = 300
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + " ..."
	}
	return errors.New(s)
}
