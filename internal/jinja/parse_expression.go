package jinja

import (
	"slices"
	"strings"
)

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
