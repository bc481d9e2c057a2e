package calib

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/llmq/llmq/internal/text"
)

// document makes a document of a record, by the first of these layouts whose fields are there; other fields are not read:
//
//	text                        a text
//	messages                    a conversation, as chat templates take it: [{"role", "content"}, …]
//	conversations               ShareGPT's: [{"from", "value"}, …]
//	instruction, input, output  Alpaca's: a user's turn, instruction and input in a line each, and the assistant's
//	prompt, completion          two parts of a text; or of a conversation, where they are lists of messages
//
// "system" opens a conversation of ShareGPT's or Alpaca's, "history", a list of pairs, comes before the turns of the latter:
// these are LLaMA-Factory's names.
func (r *reader) document(rec text.Record) (document, error) {
	first := "" // of those that tell a record's layout by themselves
	for _, name := range []string{"text", "messages", "conversations"} {
		switch {
		case !rec.Has(name):
		case first != "":
			return document{}, fmt.Errorf("both %q and %q", first, name)
		default:
			first = name
		}
	}
	switch {
	case rec.Has("text"):
		s, err := rec.String("text")
		return document{text: s}, err
	case rec.Has("messages"):
		return r.conversation(rec["messages"], rec)
	case rec.Has("conversations"):
		turns, err := shareGPT(rec)
		return r.turns(turns, err)
	case rec.Has("instruction") && rec.Has("output"):
		turns, err := alpaca(rec)
		return r.turns(turns, err)
	case rec.Has("prompt") && rec.Has("completion"):
		return r.completion(rec)
	}
	return document{}, fmt.Errorf(`no "text" field, nor "messages", "conversations", "instruction" with "output" or "prompt" with "completion"; %s`,
		rec.Fields())
}

// turn is a message.
type turn struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// conversation renders messages, and what else the record they are in has for it, by the model's template.
func (r *reader) conversation(messages json.RawMessage, rec text.Record) (document, error) {
	s, err := r.chat.render(messages, rec)
	return document{text: s, chat: true}, err
}

// turns is conversation for turns that were made of a record, if err is nil.
func (r *reader) turns(turns []turn, err error) (document, error) {
	if err != nil {
		return document{}, err
	}
	messages, err := json.Marshal(turns)
	if err != nil {
		return document{}, err
	}
	return r.conversation(messages, nil)
}

// shareGPTRoles are the speakers of ShareGPT's turns that mean the same everywhere.
var shareGPTRoles = map[string]string{
	"system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
}

// shareGPT reads "conversations", whose turns may be messages too.
func shareGPT(rec text.Record) ([]turn, error) {
	const field = "conversations"
	list, err := rec.Records(field)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%q is empty", field)
	}
	turns, err := systemTurn(rec)
	for i, m := range list {
		speaker, content := "from", "value"
		if m.Has("role") {
			speaker, content = "role", "content"
		}
		if err == nil && (!m.Has(speaker) || !m.Has(content)) {
			err = fmt.Errorf(`%q[%d]: want "from" and "value", or "role" and "content"; %s`, field, i, m.Fields())
		}
		who, err1 := m.String(speaker)
		what, err2 := m.String(content)
		if err := cmp.Or(err, err1, err2); err != nil {
			return nil, err
		}
		role := shareGPTRoles[who]
		if role == "" {
			return nil, fmt.Errorf("%q[%d]: %q is %.40q; want system, human, user, gpt, chatgpt or assistant", field, i, speaker, who)
		}
		turns = append(turns, turn{role, what})
	}
	return turns, err
}

// alpaca reads "instruction", "input" and "output".
func alpaca(rec text.Record) ([]turn, error) {
	turns, err := systemTurn(rec)
	if err != nil {
		return nil, err
	}
	history, err := rec.List("history")
	if err != nil {
		return nil, err
	}
	for i, raw := range history {
		pair, err := text.Record{"history": raw}.Strings("history")
		if err != nil || len(pair) != 2 {
			return nil, fmt.Errorf(`"history"[%d] is not a list of two strings`, i)
		}
		turns = append(turns, turn{"user", pair[0]}, turn{"assistant", pair[1]})
	}
	instruction, err1 := rec.String("instruction")
	input, err2 := rec.String("input")
	output, err3 := rec.String("output")
	if err := cmp.Or(err1, err2, err3); err != nil {
		return nil, err
	}
	if instruction != "" && input != "" {
		instruction += "\n"
	}
	return append(turns, turn{"user", instruction + input}, turn{"assistant", output}), nil
}

// systemTurn is the turn that a record's "system" opens a conversation with, if there is one.
func systemTurn(rec text.Record) ([]turn, error) {
	s, err := rec.String("system")
	if s == "" {
		return nil, err
	}
	return []turn{{"system", s}}, nil
}

// completion reads "prompt" and "completion": two texts, or two lists of messages.
func (r *reader) completion(rec text.Record) (document, error) {
	prompt, perr := rec.String("prompt")
	completion, cerr := rec.String("completion")
	if perr == nil && cerr == nil {
		return document{text: prompt + completion}, nil
	}
	var messages []json.RawMessage
	for _, name := range []string{"prompt", "completion"} {
		part, err := rec.List(name)
		if err != nil {
			return document{}, errors.New(`"prompt" and "completion": want two strings, or two lists of messages`)
		}
		messages = append(messages, part...)
	}
	all, err := json.Marshal(messages)
	if err != nil {
		return document{}, err
	}
	return r.conversation(all, nil)
}
