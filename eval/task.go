package eval

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
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

// LoadTask reads a task. In a .jsonl file each line is either {"question": ..., "choices": [...], "answer": ...}, the
// answer being an index from 0, a letter from A, or a choice's text; or {"text": ...}, whose last word is asked for. Any
// other file has llama.cpp's HellaSwag layout, six lines for each example: the context, the index of the right ending
// from 0, and four endings. Anything else is an error that names the line.
func LoadTask(path string) (*Task, error) {
	content, err := text.ReadUTF8(path)
	if err != nil {
		return nil, err
	}
	t := &Task{Path: path, Kind: HellaSwag}
	if strings.EqualFold(filepath.Ext(path), ".jsonl") {
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
func (t *Task) fail(line int, err error) error { return fmt.Errorf("%s:%d: %w", t.Path, line, err) }

func (t *Task) readRecords(content string) error {
	t.Kind = ""
	lines := bufio.NewReader(strings.NewReader(content))
	for line := 1; ; line++ {
		b, err := lines.ReadBytes('\n') // io.EOF with the last line; a string has no other errors
		if len(bytes.TrimSpace(b)) > 0 {
			e, kind, err := parseRecord(b)
			if err != nil {
				return t.fail(line, err)
			}
			if t.Kind == "" {
				t.Kind = kind
			}
			if kind != t.Kind {
				return t.fail(line, fmt.Errorf("a %s example among %s examples", kind, t.Kind))
			}
			e.Line = line
			t.Examples = append(t.Examples, *e)
		}
		if err != nil {
			return nil
		}
	}
}

// parseRecord reads one line.
func parseRecord(line []byte) (*Example, TaskKind, error) {
	var r struct {
		Text     *string         `json:"text"`
		Question *string         `json:"question"`
		Choices  []string        `json:"choices"`
		Answer   json.RawMessage `json:"answer"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, "", err
	}
	switch {
	case r.Text != nil && r.Question != nil:
		return nil, "", errors.New(`both "text" and "question"`)
	case r.Text != nil:
		e, err := lastWord(*r.Text)
		return e, LastWord, err
	case r.Question == nil:
		return nil, "", errors.New(`no "question", nor "text"`)
	case len(r.Choices) < 2:
		return nil, "", fmt.Errorf(`"choices": %d; need 2 or more`, len(r.Choices))
	}
	e := &Example{Context: *r.Question}
	for i, c := range r.Choices {
		if strings.TrimSpace(c) == "" {
			return nil, "", fmt.Errorf(`"choices"[%d] is empty`, i)
		}
		e.Choices = append(e.Choices, continuation(e.Context, c))
	}
	var err error
	e.Answer, err = parseAnswer(r.Answer, r.Choices)
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
	if len(raw) == 0 || string(raw) == "null" {
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
