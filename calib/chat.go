package calib

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"

	"github.com/llmq/llmq/tokenizer"
)

// ChatTemplate renders conversations as a model was trained to see them. It is Jinja, as Hugging Face's
// apply_chat_template runs it: blocks leave no blank lines, raise_exception and strftime_now are there, and nothing can
// be included. The date is always the 26th of July 2024, Llama 3's default, so that the same conversation gives the same
// tokens every day. Keys of objects inside a message, such as a tool call's arguments, are in alphabetical order.
type ChatTemplate struct {
	template *exec.Template
	err      error // instead of template
	bos, eos string
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
	c := &ChatTemplate{}
	tokens, _ := m.Meta("tokenizer.ggml.tokens")
	names, _ := tokens.([]string)
	for name, dst := range map[string]*string{"bos": &c.bos, "eos": &c.eos} {
		id, _ := m.Meta("tokenizer.ggml." + name + "_token_id")
		if i, ok := id.(uint32); ok && int64(i) < int64(len(names)) {
			*dst = names[i]
		}
	}
	cfg := config.New()
	cfg.TrimBlocks, cfg.LeftStripBlocks = true, true
	err := contain(func() (err error) {
		c.template, err = exec.NewTemplate(rootTemplate, cfg, onlyTemplate(source), chatEnvironment())
		return err
	})
	if err != nil {
		c.err = fmt.Errorf("%s: %w", key, shorten(err))
	}
	return c
}

// maxGrowth bounds what a template may make of a conversation, in bytes of output per byte of it, with something for
// what a template says of its own accord.
const (
	maxGrowth    = 16
	maxOwnOutput = 64 << 10
)

// render renders the messages of a record.
func (c *ChatTemplate) render(messages []byte) (string, error) {
	if c == nil {
		return "", errors.New(`"messages" need a chat template, and none is given`)
	}
	if c.err != nil {
		return "", c.err
	}
	dec := json.NewDecoder(bytes.NewReader(messages))
	dec.UseNumber()
	var list []any
	if err := dec.Decode(&list); err != nil {
		return "", fmt.Errorf(`"messages": %w`, err)
	}
	if len(list) == 0 {
		return "", errors.New(`"messages" is empty`)
	}
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return "", fmt.Errorf(`"messages"[%d] is not an object`, i)
		}
		if role, ok := m["role"].(string); !ok || role == "" {
			return "", fmt.Errorf(`"messages"[%d] has no "role"`, i)
		}
		list[i] = numbers(v)
	}
	out := limitedWriter{left: maxGrowth*len(messages) + maxOwnOutput}
	err := contain(func() error {
		return c.template.Execute(&out, exec.NewContext(map[string]any{
			"messages": list, "bos_token": c.bos, "eos_token": c.eos, "add_generation_prompt": false,
			"range": limitedRange(),
		}))
	})
	if err != nil {
		return "", fmt.Errorf("the chat template: %w", shorten(err))
	}
	return out.String(), nil
}

// limitedWriter refuses more than left bytes.
type limitedWriter struct {
	strings.Builder
	left int
}

func (w *limitedWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errors.New("its output is out of all proportion to the conversation")
	}
	return w.Builder.Write(b)
}

// WriteString keeps io.WriteString from going around the limit.
func (w *limitedWriter) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// limitedRange is Python's range, up to maxRange numbers in all: a loop makes all of them before it begins.
func limitedRange() func(*exec.Evaluator, *exec.VarArgs) ([]int, error) {
	const maxRange = 1 << 20
	left := maxRange
	return func(_ *exec.Evaluator, args *exec.VarArgs) ([]int, error) {
		for _, a := range args.Args {
			if !a.IsInteger() {
				return nil, errors.New("range: want integers")
			}
		}
		start, stop, step := 0, 0, 1
		switch a := args.Args; len(a) {
		case 1:
			stop = a[0].Integer()
		case 2, 3:
			start, stop = a[0].Integer(), a[1].Integer()
			if len(a) == 3 {
				step = a[2].Integer()
			}
		default:
			return nil, fmt.Errorf("range takes 1 to 3 integers, not %d", len(a))
		}
		if step == 0 {
			return nil, errors.New("range: a step of 0")
		}
		list := []int{}
		for i := start; (step > 0 && i < stop) || (step < 0 && i > stop); i += step {
			if left--; left < 0 {
				return nil, fmt.Errorf("range: more than %d numbers in one conversation", maxRange)
			}
			list = append(list, i)
		}
		return list, nil
	}
}

// contain makes an error of a panic in the template engine, which runs what a stranger wrote.
func contain(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return f()
}

// shorten keeps the end of the engine's nested messages, where the cause stands.
func shorten(err error) error {
	const most = 300
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) <= most {
		return errors.New(s)
	}
	return fmt.Errorf("... %s", strings.ToValidUTF8(s[len(s)-most:], ""))
}

// numbers replaces JSON numbers by int where they are whole, else by float64, as Python reads them.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return int(i)
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

const rootTemplate = "/chat_template"

// onlyTemplate loads one template and no other: a checkpoint must not read the user's files.
type onlyTemplate string

func (t onlyTemplate) Read(path string) (io.Reader, error) {
	if path != rootTemplate {
		return nil, fmt.Errorf("%s: a chat template cannot include files", path)
	}
	return strings.NewReader(string(t)), nil
}

func (t onlyTemplate) Resolve(path string) (string, error)    { return path, nil }
func (t onlyTemplate) Inherit(string) (loaders.Loader, error) { return t, nil }

// chatEnvironment is the engine's, with what apply_chat_template adds and where the engine differs from Python.
func chatEnvironment() *exec.Environment {
	filters := exec.NewFilterSet(map[string]exec.FilterFunction{}).Update(builtins.Filters)
	must(filters.Replace("tojson", toJSON))
	str := map[string]exec.Method[string]{"replace": replace}
	for _, name := range strings.Fields(stringMethods) {
		if method, ok := builtins.Methods.Str.Get(name); ok {
			str[name] = method
		}
	}
	methods := builtins.Methods
	methods.Str = exec.NewMethodSet(str)
	context := exec.EmptyContext().Update(builtins.GlobalFunctions)
	context.Set("raise_exception", func(_ *exec.Evaluator, args *exec.VarArgs) (string, error) {
		return "", errors.New(args.First().String())
	})
	context.Set("strftime_now", func(_ *exec.Evaluator, args *exec.VarArgs) string {
		return strftime(args.First().String(), chatDate)
	})
	return &exec.Environment{
		Filters: filters, Tests: builtins.Tests, ControlStructures: builtins.ControlStructures, Methods: methods,
		Context: context,
	}
}

// stringMethods are Python's, as far as a template may want them; the engine cannot list its own.
const stringMethods = `capitalize casefold center count encode endswith expandtabs find format isalnum isalpha isascii
	isdecimal isdigit islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix
	rfind rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill`

func must(err error) {
	if err != nil {
		panic(err) // the engine has lost a builtin
	}
}

// replace is str.replace; the engine's demands a count.
func replace(self string, _ *exec.Value, args *exec.VarArgs) (any, error) {
	if n := len(args.Args); n != 2 && n != 3 {
		return nil, fmt.Errorf("replace takes 2 or 3 arguments, not %d", n)
	}
	count := -1
	if len(args.Args) == 3 {
		count = args.Args[2].Integer()
	}
	return strings.Replace(self, args.Args[0].String(), args.Args[1].String(), count), nil
}

// toJSON is json.dumps(value, ensure_ascii=False, indent=indent): unlike Go's it has spaces after commas and colons.
func toJSON(_ *exec.Evaluator, in *exec.Value, args *exec.VarArgs) *exec.Value {
	indent := 0
	if v, ok := args.KwArgs["indent"]; ok && v.IsInteger() {
		indent = min(max(v.Integer(), 0), 16)
	}
	var b strings.Builder
	if err := writeJSON(&b, in.ToGoSimpleType(false), indent, 1); err != nil {
		return exec.AsValue(err)
	}
	return exec.AsSafeValue(b.String())
}

func writeJSON(b *strings.Builder, v any, indent, depth int) error {
	const maxDepth = 1000
	if depth > maxDepth {
		return errors.New("tojson: nested too deeply")
	}
	list := func(open, end string, n int, item func(i int) error) error {
		b.WriteString(open)
		for i := range n {
			switch {
			case indent > 0 && i > 0:
				b.WriteString(",")
			case i > 0:
				b.WriteString(", ")
			}
			if indent > 0 {
				b.WriteString("\n" + strings.Repeat(" ", indent*depth))
			}
			if err := item(i); err != nil {
				return err
			}
		}
		if indent > 0 && n > 0 {
			b.WriteString("\n" + strings.Repeat(" ", indent*(depth-1)))
		}
		b.WriteString(end)
		return nil
	}
	switch v := v.(type) {
	case error:
		return v
	case []any:
		return list("[", "]", len(v), func(i int) error { return writeJSON(b, v[i], indent, depth+1) })
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		return list("{", "}", len(keys), func(i int) error {
			if err := writeJSON(b, keys[i], indent, depth+1); err != nil {
				return err
			}
			b.WriteString(": ")
			return writeJSON(b, v[keys[i]], indent, depth+1)
		})
	default:
		enc := json.NewEncoder(&trimNewline{b})
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
}

// trimNewline drops the line break that json.Encoder ends a value with.
type trimNewline struct{ b *strings.Builder }

func (w *trimNewline) Write(p []byte) (int, error) {
	w.b.Write(bytes.TrimSuffix(p, []byte("\n")))
	return len(p), nil
}

// strftime formats t by the directives that templates use; others stay as they are.
func strftime(format string, t time.Time) string {
	return strings.NewReplacer(
		"%Y", t.Format("2006"), "%m", t.Format("01"), "%d", t.Format("02"), "%B", t.Format("January"),
		"%b", t.Format("Jan"), "%A", t.Format("Monday"), "%a", t.Format("Mon"), "%H", t.Format("15"),
		"%M", t.Format("04"), "%S", t.Format("05"), "%%", "%",
	).Replace(format)
}
