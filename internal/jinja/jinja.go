// Package jinja renders chat templates as Hugging Face's apply_chat_template does: Python's jinja2 3.1
// (jinja.palletsprojects.com) in an ImmutableSandboxedEnvironment with trim_blocks and lstrip_blocks, loop controls, and
// {% generation %}, whose body is rendered.
//
// A template is what a stranger wrote. It cannot read files, change its data, or use more than Limits allow. Where
// Python raises, Render returns an error that names the template's line; what Python's jinja2 has and this package has
// not (includes, inheritance, a few filters) is an error by name too. Text is never dropped: an operation on values that
// do not fit it is an error, as it is in Python.
//
// The lexer, the parser and the evaluator follow jinja2's own, function by function; the values are Python's.
package jinja

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
)

// Template is a parsed template. It can be rendered by many goroutines at once.
type Template struct{ body []stmt }

// Error is a fault of a template, or of rendering it, with the template's line, from 1.
type Error struct {
	Line int
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// at adds the line to an error that has none yet.
func at(line int, err error) error {
	var e *Error
	if err == nil || err == errBreak || err == errContinue || errors.As(err, &e) {
		return err
	}
	return &Error{line, err}
}

// Limits bound a rendering.
type Limits struct {
	// Output is the longest rendering, in bytes.
	Output int
	// Work is what the rendering may do: about a unit for each byte that is read or made, and stepCost for each node.
	Work int
}

// Options are what a rendering depends on besides its data.
type Options struct {
	Limits
	// Now is what strftime_now tells.
	Now time.Time
}

// Parse reads a template.
func Parse(source string) (*Template, error) {
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, err := p.parse()
	if err != nil {
		return nil, err
	}
	return &Template{body}, nil
}

// Render renders the template with the variables, whose values come from Decode, or are string, bool or nil (None).
func (t *Template) Render(vars map[string]any, opt Options) (string, error) {
	r := &run{left: opt.Work, outputLeft: opt.Output, now: opt.Now}
	root := &scope{vars: globals(), r: r}
	top := &scope{vars: map[string]any{}, parent: root, r: r}
	maps.Copy(top.vars, vars)
	var out strings.Builder
	r.top = &out
	if err := r.exec(t.body, top, &out); err != nil {
		return "", err
	}
	return out.String(), nil
}

// run is one rendering.
type run struct {
	left, outputLeft int
	depth, calls     int
	top              *strings.Builder // what becomes the rendering
	now              time.Time
}

const (
	// stepCost is the work of evaluating one node, valueCost that of holding one value.
	stepCost, valueCost = 16, 32
	// maxDepth bounds nested evaluations, and so the stack; maxCalls bounds nested calls of macros, of which Python's
	// stack holds about as many; maxNesting bounds nested values and nested syntax.
	maxDepth, maxCalls, maxNesting = 20000, 250, 250
	// maxRange is the sandbox's.
	maxRange = 100000
)

// spend takes n units from the work that is left.
func (r *run) spend(n int) error {
	if n < 0 || n > r.left {
		r.left = 0
		return errors.New("the template's work is out of all proportion to the conversation")
	}
	r.left -= n
	return nil
}

// write appends to out.
func (r *run) write(out *strings.Builder, s string) error {
	if err := r.spend(len(s)); err != nil {
		return err
	}
	if out == r.top {
		if r.outputLeft -= len(s); r.outputLeft < 0 {
			return errors.New("the output is out of all proportion to the conversation")
		}
	}
	out.WriteString(s)
	return nil
}

// scope holds the variables of a block; names that it has not are its parent's.
type scope struct {
	vars   map[string]any
	parent *scope
	r      *run
}

func (s *scope) inner() *scope { return &scope{parent: s, r: s.r} }

func (s *scope) get(name string) any {
	for at := s; at != nil; at = at.parent {
		if v, ok := at.vars[name]; ok {
			return v
		}
	}
	return &undefined{fmt.Sprintf("'%s' is undefined", name)}
}

func (s *scope) set(name string, v any) {
	if s.vars == nil {
		s.vars = map[string]any{}
	}
	s.vars[name] = v
}
