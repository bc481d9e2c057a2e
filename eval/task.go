package eval

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/llmq/llmq/internal/text"
)

// TaskKind is how a task is answered and scored.
type TaskKind string

const (
	// MultipleChoice: the continuation of the question that the model thinks likeliest is its answer.
	MultipleChoice TaskKind = "multiple-choice"
	// LastWord: the model is right if it would write the last word of a text, as in LAMBADA (Paperno et al.,
	// arXiv:1606.06031).
	LastWord TaskKind = "last-word"
	// HellaSwag is MultipleChoice over llama.cpp's text layout, scored from the first token in which the endings differ.
	HellaSwag TaskKind = "hellaswag"
)

// Task is a file of examples.
type Task struct {
	Path     string
	Kind     TaskKind
	Examples []Example
}

// Example is one question.
type Example struct {
	Line    int // in the file, from 1
	Context string
	// Choices are continuations of Context with the space that parts them; LastWord has one.
	Choices []string
	Answer  int // index of the right one
}

// LoadTask reads a task. A file of records (text.HoldsRecords: .jsonl, .ndjson or .json, or content like theirs) has
// {"question": ..., "choices": [...], "answer": ...}, the answer being an index from 0, a letter from A, or a choice's text;
// or {"text": ...}, whose last word is asked for. Any other file has llama.cpp's HellaSwag layout, six lines for each
// example: the context, the index of the right ending from 0, and four endings. Anything else is an error that names the
// line.
func LoadTask(path string) (*Task, error) {
	content, err := text.ReadUTF8(path)
	if err != nil {
		return nil, err
	}
	content = string(text.TrimBOM([]byte(content)))
	t := &Task{Path: path, Kind: HellaSwag}
	if text.HoldsRecords(path, []byte(content)) {
		err = t.readRecords(content)
	} else {
		err = t.readHellaSwag(content)
	}
	if err != nil {
		return nil, err
	}
	if len(t.Examples) == 0 {
		return nil, fmt.Errorf("%s: no examples", path)
	}
	return t, nil
}

// fail is an error in a line.
func (t *Task) fail(line int, err error) error { return fmt.Errorf("%s: %w", t.where(line), err) }

func (t *Task) where(line int) string { return fmt.Sprintf("%s:%d", t.Path, line) }

func (t *Task) readRecords(content string) error {
	t.Kind = ""
	return text.EachRecord([]byte(content), t.where, func(line int, r text.Record) error {
		e, kind, err := parseRecord(r)
		if err != nil {
			return err
		}
		if t.Kind == "" {
			t.Kind = kind
		}
		if kind != t.Kind {
			return fmt.Errorf("a %s example among %s examples", kind, t.Kind)
		}
		e.Line = line
		t.Examples = append(t.Examples, *e)
		return nil
	})
}

// parseRecord reads one example.
func parseRecord(r text.Record) (*Example, TaskKind, error) {
	switch {
	case r.Has("text") && r.Has("question"):
		return nil, "", errors.New(`both "text" and "question"`)
	case r.Has("text"):
		s, err := r.String("text")
		if err != nil {
			return nil, "", err
		}
		e, err := lastWord(s)
		return e, LastWord, err
	case !r.Has("question"):
		return nil, "", fmt.Errorf(`no "question", nor "text"; %s`, r.Fields())
	case !r.Has("choices"):
		return nil, "", fmt.Errorf(`no "choices" beside "question"; %s`, r.Fields())
	}
	question, err := r.String("question")
	if err != nil {
		return nil, "", err
	}
	choices, err := r.Strings("choices")
	if err != nil {
		return nil, "", err
	}
	if len(choices) < 2 {
		return nil, "", fmt.Errorf(`"choices": %d; need 2 or more`, len(choices))
	}
	e := &Example{Context: question}
	for i, c := range choices {
		if strings.TrimSpace(c) == "" {
			return nil, "", fmt.Errorf(`"choices"[%d] is empty`, i)
		}
		e.Choices = append(e.Choices, continuation(e.Context, c))
	}
	e.Answer, err = parseAnswer(r["answer"], choices)
	return e, MultipleChoice, err
}

// continuation is a choice with the space before it that the context lacks.
func continuation(context, choice string) string {
	if context == "" || strings.TrimSpace(context[len(context)-1:]) == "" || strings.TrimSpace(choice[:1]) == "" {
		return choice
	}
	return " " + choice
}

// parseAnswer reads an index, a letter or a choice's text.
func parseAnswer(raw json.RawMessage, choices []string) (int, error) {
	if raw == nil {
		return 0, errors.New(`no "answer"`)
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		i, err := strconv.Atoi(string(raw))
		if err != nil || i < 0 || i >= len(choices) {
			return 0, fmt.Errorf(`"answer" %s: want an index below %d, a letter or a choice`, raw, len(choices))
		}
		return i, nil
	}
	if i := slices.Index(choices, s); i >= 0 {
		if slices.Contains(choices[i+1:], s) {
			return 0, fmt.Errorf(`"answer" %q: two choices read so`, s)
		}
		return i, nil
	}
	if len(s) == 1 && s[0] >= 'A' && int(s[0]-'A') < len(choices) {
		return int(s[0] - 'A'), nil
	}
	return 0, fmt.Errorf(`"answer" %q is none of the choices, nor a letter or an index of one`, s)
}

// lastWord parts a text before its last word.
func lastWord(s string) (*Example, error) {
	s = strings.TrimRightFunc(s, unicode.IsSpace)
	i := strings.LastIndexFunc(s, unicode.IsSpace)
	if i < 0 || strings.TrimSpace(s[:i]) == "" {
		return nil, errors.New(`"text" has no word before its last one`)
	}
	return &Example{Context: s[:i], Choices: []string{s[i:]}}, nil
}

func (t *Task) readHellaSwag(content string) error {
	const perExample, endings = 6, 4
	lines := strings.Split(strings.TrimRight(content, "\r\n"), "\n")
	for i := 0; i < len(lines); i += perExample {
		if len(lines)-i < perExample {
			return t.fail(i+1, fmt.Errorf("%d lines are left; an example has a context, the index of its answer and %d endings",
				len(lines)-i, endings))
		}
		part := make([]string, perExample)
		for j := range part {
			if part[j] = strings.TrimSuffix(lines[i+j], "\r"); strings.TrimSpace(part[j]) == "" {
				return t.fail(i+j+1, errors.New("the line is empty"))
			}
		}
		answer, err := strconv.Atoi(strings.TrimSpace(part[1]))
		if err != nil || answer < 0 || answer >= endings {
			return t.fail(i+2, fmt.Errorf("%.40q: want the index of the right ending, 0 to %d", part[1], endings-1))
		}
		e := Example{Line: i + 1, Context: part[0], Answer: answer}
		for _, c := range part[2:] {
			e.Choices = append(e.Choices, " "+c) // whatever the context ends in
		}
		t.Examples = append(t.Examples, e)
	}
	return nil
}
