package jinja

import (
	"fmt"
	"slices"
	"strings"
)

// Statements.
type (
	stmt interface{}

	textStmt   struct{ text string }
	outputStmt struct {
		line int
		x    expr
	}
	ifStmt struct {
		line   int
		tests  []expr
		bodies [][]stmt
		orelse []stmt
	}
	forStmt struct {
		line         int
		target, iter expr
		test         expr // or nil
		recursive    bool
		body, orelse []stmt
	}
	setStmt struct {
		line   int
		target expr
		x      expr
	}
	setBlockStmt struct {
		line   int
		target expr
		filter *filterExpr // whose innermost input is the block; or nil
		body   []stmt
	}
	withStmt struct {
		line    int
		targets []expr
		values  []expr
		body    []stmt
	}
	macroStmt struct {
		line int
		macroDef
	}
	callStmt struct {
		line   int
		call   *callExpr
		caller macroDef
	}
	filterStmt struct {
		line   int
		filter *filterExpr
		body   []stmt
	}
	generationStmt struct{ body []stmt }
	jumpStmt       struct{ err error }
)

// macroDef is what a macro, or the body of a call block, is made of.
type macroDef struct {
	name     string
	params   []string
	defaults []expr // of the last parameters
	body     []stmt
	caller   bool // the body uses caller, varargs, kwargs
	varargs  bool
	kwargs   bool
}

// Expressions.
type (
	expr interface{}

	constExpr struct{ v any }
	nameExpr  struct{ name string }
	nsExpr    struct {
		line       int
		name, attr string
	}
	tupleExpr struct{ items []expr }
	listExpr  struct{ items []expr }
	dictExpr  struct{ keys, values []expr }
	attrExpr  struct {
		line int
		x    expr
		name string
	}
	itemExpr struct {
		line   int
		x, key expr
	}
	sliceExpr struct {
		line                 int
		x, start, stop, step expr
	}
	callArgs struct {
		args           []expr
		names          []string
		values         []expr
		dynArgs, dynKw expr
	}
	callExpr struct {
		line int
		x    expr
		callArgs
	}
	filterExpr struct {
		line int
		x    expr // nil: the block's text
		name string
		callArgs
	}
	testExpr struct {
		line int
		x    expr
		name string
		callArgs
	}
	unaryExpr struct {
		line int
		op   string
		x    expr
	}
	binaryExpr struct {
		line int
		op   string
		l, r expr
	}
	concatExpr struct {
		line  int
		items []expr
	}
	compareExpr struct {
		line int
		x    expr
		ops  []string
		rs   []expr
	}
	condExpr struct {
		line               int
		test, then, orelse expr
	}
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

// tuple reads an expression, or a tuple of them if there is a comma. simple: of primaries only.
func (p *parser) tuple(simple, conditional, parentheses bool) expr {
	var items []expr
	isTuple := false
	for {
		if len(items) > 0 {
			p.expect(tokenOperator, ",")
		}
		t := p.cur()
		if t.kind == tokenVariableEnd || t.kind == tokenBlockEnd || t.is(tokenOperator, ")") ||
			simple && t.is(tokenName, "in") || !conditional && t.is(tokenName, "recursive") {
			break
		}
		switch {
		case simple:
			items = append(items, p.primary())
		case conditional:
			items = append(items, p.expression())
		default:
			items = append(items, p.or())
		}
		if !p.cur().is(tokenOperator, ",") {
			break
		}
		isTuple = true
	}
	if !isTuple {
		if len(items) > 0 {
			return items[0]
		}
		if !parentheses {
			p.fail(p.cur().line, "want an expression, not %s", p.cur())
		}
	}
	return &tupleExpr{items}
}

func (p *parser) expression() expr {
	defer p.nest()()
	line := p.cur().line
	x := p.or()
	for p.skipIf(tokenName, "if") {
		c := &condExpr{line: line, then: x, test: p.or()}
		if p.skipIf(tokenName, "else") {
			c.orelse = p.expression()
		}
		x = c
	}
	return x
}

func (p *parser) or() expr {
	x := p.and()
	for p.cur().is(tokenName, "or") {
		line := p.next().line
		x = &binaryExpr{line, "or", x, p.and()}
	}
	return x
}

func (p *parser) and() expr {
	x := p.not()
	for p.cur().is(tokenName, "and") {
		line := p.next().line
		x = &binaryExpr{line, "and", x, p.not()}
	}
	return x
}

func (p *parser) not() expr {
	if p.cur().is(tokenName, "not") {
		defer p.nest()()
		line := p.next().line
		return &unaryExpr{line, "not", p.not()}
	}
	return p.compare()
}

func (p *parser) compare() expr {
	c := &compareExpr{line: p.cur().line, x: p.math1()}
	for {
		t := p.cur()
		switch {
		case t.kind == tokenOperator && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, t.text):
			p.next()
			c.ops = append(c.ops, t.text)
		case t.is(tokenName, "in"):
			p.next()
			c.ops = append(c.ops, "in")
		case t.is(tokenName, "not") && p.look().is(tokenName, "in"):
			p.next()
			p.next()
			c.ops = append(c.ops, "not in")
		default:
			if len(c.ops) == 0 {
				return c.x
			}
			return c
		}
		c.rs = append(c.rs, p.math1())
	}
}

// binary reads operands that next reads, joined by the operators.
func (p *parser) binary(next func() expr, ops ...string) expr {
	x := next()
	for p.cur().kind == tokenOperator && slices.Contains(ops, p.cur().text) {
		t := p.next()
		x = &binaryExpr{t.line, t.text, x, next()}
	}
	return x
}

func (p *parser) math1() expr { return p.binary(p.concat, "+", "-") }

func (p *parser) concat() expr {
	c := &concatExpr{line: p.cur().line, items: []expr{p.math2()}}
	for p.skipIf(tokenOperator, "~") {
		c.items = append(c.items, p.math2())
	}
	if len(c.items) == 1 {
		return c.items[0]
	}
	return c
}

func (p *parser) math2() expr { return p.binary(p.pow, "*", "/", "//", "%") }

func (p *parser) pow() expr { return p.binary(func() expr { return p.unary(true) }, "**") }

func (p *parser) unary(withFilter bool) expr {
	defer p.nest()()
	var x expr
	if t := p.cur(); t.is(tokenOperator, "-") || t.is(tokenOperator, "+") {
		p.next()
		x = &unaryExpr{t.line, t.text, p.unary(false)}
	} else {
		x = p.primary()
	}
	x = p.postfix(x)
	if withFilter {
		x = p.filtersAndTests(x)
	}
	return x
}

func (p *parser) primary() expr {
	t := p.next()
	switch t.kind {
	case tokenName:
		switch t.text {
		case "true", "True":
			return &constExpr{true}
		case "false", "False":
			return &constExpr{false}
		case "none", "None":
			return &constExpr{nil}
		}
		p.use(t.text)
		return &nameExpr{t.text}
	case tokenString:
		var b strings.Builder
		b.WriteString(t.text)
		for p.cur().kind == tokenString {
			b.WriteString(p.next().text)
		}
		return &constExpr{b.String()}
	case tokenInteger, tokenFloat:
		return &constExpr{t.num}
	case tokenOperator:
		switch t.text {
		case "(":
			x := p.tuple(false, true, true)
			p.expect(tokenOperator, ")")
			return x
		case "[":
			x := &listExpr{}
			for !p.cur().is(tokenOperator, "]") {
				if len(x.items) > 0 {
					p.expect(tokenOperator, ",")
				}
				if p.cur().is(tokenOperator, "]") {
					break
				}
				x.items = append(x.items, p.expression())
			}
			p.next()
			return x
		case "{":
			x := &dictExpr{}
			for !p.cur().is(tokenOperator, "}") {
				if len(x.keys) > 0 {
					p.expect(tokenOperator, ",")
				}
				if p.cur().is(tokenOperator, "}") {
					break
				}
				x.keys = append(x.keys, p.expression())
				p.expect(tokenOperator, ":")
				x.values = append(x.values, p.expression())
			}
			p.next()
			return x
		}
	}
	p.fail(t.line, "unexpected %s", t)
	return nil
}

func (p *parser) postfix(x expr) expr {
	for {
		switch t := p.cur(); {
		case t.is(tokenOperator, "."):
			p.next()
			switch name := p.next(); name.kind {
			case tokenName:
				x = &attrExpr{t.line, x, name.text}
			case tokenInteger:
				x = &itemExpr{t.line, x, &constExpr{name.num}}
			default:
				p.fail(name.line, "want a name or a number, not %s", name)
			}
		case t.is(tokenOperator, "["):
			x = p.subscript(x)
		case t.is(tokenOperator, "("):
			x = &callExpr{t.line, x, p.arguments()}
		default:
			return x
		}
	}
}

func (p *parser) subscript(x expr) expr {
	line := p.next().line
	colon := func() bool { return p.cur().is(tokenOperator, ":") }
	end := func() bool { return p.cur().is(tokenOperator, "]") || p.cur().is(tokenOperator, ",") }
	var items []expr
	for !p.cur().is(tokenOperator, "]") {
		if len(items) > 0 {
			p.expect(tokenOperator, ",")
		}
		var item expr
		if !colon() {
			item = p.expression()
		}
		if !colon() {
			items = append(items, item)
			continue
		}
		p.next()
		s := &sliceExpr{line: line, x: x, start: item}
		if !colon() && !end() {
			s.stop = p.expression()
		}
		if p.skipIf(tokenOperator, ":") && !end() {
			s.step = p.expression()
		}
		if len(items) > 0 || !p.cur().is(tokenOperator, "]") {
			p.fail(line, "a slice among other items")
		}
		p.next()
		return s
	}
	p.next()
	if len(items) == 1 {
		return &itemExpr{line, x, items[0]}
	}
	return &itemExpr{line, x, &tupleExpr{items}}
}

func (p *parser) arguments() callArgs {
	var c callArgs
	line := p.expect(tokenOperator, "(").line
	ensure := func(ok bool) {
		if !ok {
			p.fail(line, "arguments out of order")
		}
	}
	for comma := false; !p.cur().is(tokenOperator, ")"); comma = true {
		if comma {
			p.expect(tokenOperator, ",")
			if p.cur().is(tokenOperator, ")") {
				break
			}
		}
		switch {
		case p.skipIf(tokenOperator, "*"):
			ensure(c.dynArgs == nil && c.dynKw == nil)
			c.dynArgs = p.expression()
		case p.skipIf(tokenOperator, "**"):
			ensure(c.dynKw == nil)
			c.dynKw = p.expression()
		case p.cur().kind == tokenName && p.look().is(tokenOperator, "="):
			ensure(c.dynKw == nil)
			name := p.next().text
			p.next()
			if slices.Contains(c.names, name) {
				p.fail(line, "argument %s is given twice", name)
			}
			c.names = append(c.names, name)
			c.values = append(c.values, p.expression())
		default:
			ensure(c.dynArgs == nil && c.dynKw == nil && len(c.names) == 0)
			c.args = append(c.args, p.expression())
		}
	}
	p.next()
	return c
}

func (p *parser) filtersAndTests(x expr) expr {
	for {
		switch t := p.cur(); {
		case t.is(tokenOperator, "|"):
			x = p.filters(x)
		case t.is(tokenName, "is"):
			x = p.test(x)
		case t.is(tokenOperator, "("):
			x = &callExpr{t.line, x, p.arguments()}
		default:
			return x
		}
	}
}

func (p *parser) filters(x expr) expr {
	for p.skipIf(tokenOperator, "|") {
		x = p.filter(x)
	}
	return x
}

// filter reads a filter's name and arguments.
func (p *parser) filter(x expr) *filterExpr {
	line := p.cur().line
	f := &filterExpr{line: line, x: x, name: p.dotted()}
	if p.cur().is(tokenOperator, "(") {
		f.callArgs = p.arguments()
	}
	return f
}

func (p *parser) dotted() string {
	name := p.expect(tokenName, "").text
	for p.skipIf(tokenOperator, ".") {
		name += "." + p.expect(tokenName, "").text
	}
	return name
}

func (p *parser) test(x expr) expr {
	line := p.next().line
	negated := p.skipIf(tokenName, "not")
	t := &testExpr{line: line, x: x, name: p.dotted()}
	switch c := p.cur(); {
	case c.is(tokenOperator, "("):
		t.callArgs = p.arguments()
	case c.is(tokenName, "is"):
		p.fail(c.line, "tests with is cannot be chained")
	case c.kind == tokenName && c.text != "else" && c.text != "or" && c.text != "and",
		c.kind == tokenString, c.kind == tokenInteger, c.kind == tokenFloat,
		c.is(tokenOperator, "["), c.is(tokenOperator, "{"):
		t.args = []expr{p.postfix(p.primary())}
	}
	if negated {
		return &unaryExpr{line, "not", t}
	}
	return t
}
