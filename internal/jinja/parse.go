package jinja

import (
	"fmt"
	"slices"
)

// parser follows jinja2.parser.
type parser struct {
	tokens []token
	pos    int
	depth  int
	used   []map[string]bool // names used in each macro that is open
}

func (p *parser) cur() token { return p.tokens[p.pos] }

func (p *parser) look() token { return p.tokens[min(p.pos+1, len(p.tokens)-1)] }

func (p *parser) next() token {
	t := p.cur()
	if p.pos < len(p.tokens)-1 {
		p.pos++
	}
	return t
}

func (p *parser) skipIf(kind tokenKind, text string) bool {
	if p.cur().is(kind, text) {
		p.next()
		return true
	}
	return false
}

// syntaxError leaves the parser; parse recovers it.
type syntaxError struct{ *Error }

func (p *parser) fail(line int, format string, args ...any) {
	panic(syntaxError{&Error{line, fmt.Errorf(format, args...)}})
}

func (p *parser) expect(kind tokenKind, text string) token {
	t := p.cur()
	if t.kind != kind || text != "" && t.text != text {
		want := token{kind: kind, text: text}.String()
		if text == "" && kind == tokenName {
			want = "a name"
		}
		p.fail(t.line, "want %s, not %s", want, t)
	}
	return p.next()
}

// nest guards the stack against deep nesting; its result is deferred.
func (p *parser) nest() func() {
	if p.depth++; p.depth > maxNesting {
		p.fail(p.cur().line, "nested too deeply")
	}
	return func() { p.depth-- }
}

func (p *parser) parse() (body []stmt, err error) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case syntaxError:
			body, err = nil, e.Error
		default:
			panic(e)
		}
	}()
	return p.statements(), nil
}

// statements reads up to a block of one of the names, which it leaves after the block's begin, or to the end of the
// template if there are none.
func (p *parser) statements(ends ...string) []stmt {
	defer p.nest()()
	var body []stmt
	begun := p.cur().line
	for {
		switch t := p.next(); t.kind {
		case tokenEOF:
			if len(ends) > 0 {
				p.fail(t.line, "the template ends without the {%% %s %%} of line %d", ends[len(ends)-1], begun)
			}
			return body
		case tokenData:
			body = append(body, &textStmt{t.text})
		case tokenVariableBegin:
			body = append(body, &outputStmt{t.line, p.tuple(false, true, false)})
			p.expect(tokenVariableEnd, "")
		default:
			if c := p.cur(); c.kind == tokenName && slices.Contains(ends, c.text) {
				return body
			}
			body = append(body, p.statement()...)
			p.expect(tokenBlockEnd, "")
		}
	}
}

// block reads the body of a statement whose tag ends here, and the name of the block that ends it.
func (p *parser) block(ends ...string) (body []stmt, end string) {
	p.skipIf(tokenOperator, ":")
	p.expect(tokenBlockEnd, "")
	body = p.statements(ends...)
	return body, p.next().text
}

func (p *parser) statement() []stmt {
	t := p.expect(tokenName, "")
	line := t.line
	switch t.text {
	case "if":
		s := &ifStmt{line: line}
		for {
			s.tests = append(s.tests, p.tuple(false, false, false))
			body, end := p.block("elif", "else", "endif")
			s.bodies = append(s.bodies, body)
			if end == "elif" {
				continue
			}
			if end == "else" {
				s.orelse, _ = p.block("endif")
			}
			return []stmt{s}
		}
	case "for":
		s := &forStmt{line: line, target: p.target()}
		p.expect(tokenName, "in")
		s.iter = p.tuple(false, false, false)
		if p.skipIf(tokenName, "if") {
			s.test = p.expression()
		}
		s.recursive = p.skipIf(tokenName, "recursive")
		var end string
		if s.body, end = p.block("endfor", "else"); end == "else" {
			s.orelse, _ = p.block("endfor")
		}
		return []stmt{s}
	case "set":
		var target expr
		if p.look().is(tokenOperator, ".") {
			ns := p.expect(tokenName, "")
			p.use(ns.text)
			p.next()
			target = &nsExpr{ns.line, ns.text, p.expect(tokenName, "").text}
		} else {
			target = p.target()
		}
		if p.skipIf(tokenOperator, "=") {
			return []stmt{&setStmt{line, target, p.tuple(false, true, false)}}
		}
		s := &setBlockStmt{line: line, target: target}
		if p.cur().is(tokenOperator, "|") {
			s.filter = p.filters(nil).(*filterExpr)
		}
		s.body, _ = p.block("endset")
		return []stmt{s}
	case "with":
		s := &withStmt{line: line}
		for p.cur().kind != tokenBlockEnd {
			if len(s.targets) > 0 {
				p.expect(tokenOperator, ",")
			}
			s.targets = append(s.targets, p.target())
			p.expect(tokenOperator, "=")
			s.values = append(s.values, p.expression())
		}
		s.body, _ = p.block("endwith")
		return []stmt{s}
	case "macro":
		s := &macroStmt{line: line}
		s.name = p.storeName()
		p.signature(&s.macroDef)
		p.macroBody(&s.macroDef, "endmacro")
		return []stmt{s}
	case "call":
		s := &callStmt{line: line}
		s.caller.name = "caller"
		if p.cur().is(tokenOperator, "(") {
			p.signature(&s.caller)
		}
		call, ok := p.expression().(*callExpr)
		if !ok {
			p.fail(line, "want a call")
		}
		s.call = call
		p.macroBody(&s.caller, "endcall")
		return []stmt{s}
	case "filter":
		s := &filterStmt{line: line, filter: p.filter(nil)}
		if p.cur().is(tokenOperator, "|") {
			s.filter = p.filters(s.filter).(*filterExpr)
		}
		s.body, _ = p.block("endfilter")
		return []stmt{s}
	case "print":
		var out []stmt
		for p.cur().kind != tokenBlockEnd {
			if len(out) > 0 {
				p.expect(tokenOperator, ",")
			}
			out = append(out, &outputStmt{line, p.expression()})
		}
		return out
	case "generation":
		body, _ := p.block("endgeneration")
		return []stmt{&generationStmt{body}}
	case "break":
		return []stmt{&jumpStmt{errBreak}}
	case "continue":
		return []stmt{&jumpStmt{errContinue}}
	case "include", "import", "from", "extends", "block", "autoescape":
		p.fail(line, "{%% %s %%} is not supported: a chat template stands alone", t.text)
	}
	p.fail(line, "an unknown block {%% %s %%}", t.text)
	return nil
}

func (p *parser) signature(m *macroDef) {
	p.expect(tokenOperator, "(")
	for !p.cur().is(tokenOperator, ")") {
		if len(m.params) > 0 {
			p.expect(tokenOperator, ",")
		}
		line := p.cur().line
		m.params = append(m.params, p.storeName())
		if p.skipIf(tokenOperator, "=") {
			m.defaults = append(m.defaults, p.expression())
		} else if len(m.defaults) > 0 {
			p.fail(line, "a parameter without a default after one with")
		}
	}
	p.next()
}

func (p *parser) macroBody(m *macroDef, end string) {
	used := map[string]bool{}
	p.used = append(p.used, used)
	m.body, _ = p.block(end)
	p.used = p.used[:len(p.used)-1]
	m.caller = used["caller"] && !slices.Contains(m.params, "caller")
	m.varargs, m.kwargs = used["varargs"], used["kwargs"]
}

// use notes that the open macros use a name.
func (p *parser) use(name string) {
	for _, u := range p.used {
		u[name] = true
	}
}

// storeName reads a name that can be assigned to.
func (p *parser) storeName() string {
	t := p.expect(tokenName, "")
	if slices.Contains([]string{"true", "false", "none", "True", "False", "None"}, t.text) {
		p.fail(t.line, "%s cannot be assigned to", t.text)
	}
	return t.text
}

// target reads a name or a tuple of them.
func (p *parser) target() expr {
	line := p.cur().line
	x := p.tuple(true, false, false)
	p.assignable(line, x)
	return x
}

func (p *parser) assignable(line int, x expr) {
	switch x := x.(type) {
	case *nameExpr:
	case *tupleExpr:
		for _, item := range x.items {
			p.assignable(line, item)
		}
	default:
		p.fail(line, "what is assigned to must be names")
	}
}
