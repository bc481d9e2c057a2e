package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

var (
	errBreak    = errors.New("{% break %} outside of a loop")
	errContinue = errors.New("{% continue %} outside of a loop")
)

// enter counts one nested evaluation; leave ends it.
func (r *run) enter() error {
	if r.depth++; r.depth > maxDepth {
		return errors.New("nested too deeply")
	}
	return r.spend(stepCost)
}

func (r *run) leave() { r.depth-- }

// called runs f as one call of a macro.
func (r *run) called(f func() error) error {
	if r.calls++; r.calls > maxCalls {
		return errors.New("macros call each other too deeply")
	}
	defer func() { r.calls-- }()
	return f()
}

// capture runs a body in s and returns its text.
func (r *run) capture(body []stmt, s *scope) (string, error) {
	var out strings.Builder
	err := r.exec(body, s, &out)
	return out.String(), err
}

func (r *run) exec(body []stmt, s *scope, out *strings.Builder) error {
	for _, st := range body {
		if err := r.execOne(st, s, out); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) execOne(st stmt, s *scope, out *strings.Builder) error {
	if err := r.enter(); err != nil {
		return err
	}
	defer r.leave()
	switch st := st.(type) {
	case *textStmt:
		return r.write(out, st.text)
	case *outputStmt:
		v, err := r.eval(st.x, s)
		if err != nil {
			return at(st.line, err)
		}
		text, err := r.str(v)
		if err == nil {
			err = r.write(out, text)
		}
		return at(st.line, err)
	case *ifStmt:
		for i, test := range st.tests {
			v, err := r.eval(test, s)
			if err != nil {
				return at(st.line, err)
			}
			if truth(v) {
				return r.exec(st.bodies[i], s, out)
			}
		}
		return r.exec(st.orelse, s, out)
	case *forStmt:
		iter, err := r.eval(st.iter, s)
		if err != nil {
			return at(st.line, err)
		}
		return at(st.line, r.loop(st, iter, s, out, 0))
	case *setStmt:
		v, err := r.eval(st.x, s)
		if err == nil {
			err = r.assign(st.target, v, s)
		}
		return at(st.line, err)
	case *setBlockStmt:
		text, err := r.capture(st.body, s.inner())
		if err != nil {
			return err
		}
		var v any = text
		if st.filter != nil {
			v, err = r.filterBlock(st.filter, text, s)
		}
		if err == nil {
			err = r.assign(st.target, v, s)
		}
		return at(st.line, err)
	case *withStmt:
		inner := s.inner()
		for i, target := range st.targets {
			v, err := r.eval(st.values[i], s)
			if err == nil {
				err = r.assign(target, v, inner)
			}
			if err != nil {
				return at(st.line, err)
			}
		}
		return r.exec(st.body, inner, out)
	case *macroStmt:
		s.set(st.name, &macro{&st.macroDef, s})
		return nil
	case *callStmt:
		return at(st.line, r.execCall(st, s, out))
	case *filterStmt:
		text, err := r.capture(st.body, s.inner())
		if err != nil {
			return err
		}
		v, err := r.filterBlock(st.filter, text, s)
		if err != nil {
			return at(st.line, err)
		}
		if text, err = r.str(v); err == nil {
			err = r.write(out, text)
		}
		return at(st.line, err)
	case *generationStmt:
		text, err := r.capture(st.body, s.inner())
		if err != nil {
			return err
		}
		return r.write(out, text)
	case *jumpStmt:
		return st.err
	}
	panic(fmt.Sprintf("jinja: statement %T", st))
}

// filterBlock applies a filter, or a chain of them, to a block's text.
func (r *run) filterBlock(f *filterExpr, text string, s *scope) (any, error) {
	inner := s.inner()
	inner.set(blockText, text)
	return r.eval(f, inner)
}

// blockText is no name, so that no template can use it.
const blockText = "the block's text"

func (r *run) execCall(st *callStmt, s *scope, out *strings.Builder) error {
	f, err := r.eval(st.call.x, s)
	if err != nil {
		return err
	}
	a, err := r.args(&st.call.callArgs, s)
	if err != nil {
		return err
	}
	a.names = append(a.names, "caller")
	a.values = append(a.values, &macro{&st.caller, s})
	v, err := r.call(f, a)
	if err != nil {
		return err
	}
	text, err := r.str(v)
	if err != nil {
		return err
	}
	return r.write(out, text)
}

// assign binds v to a name, to a namespace's attribute or, item by item, to a tuple of names.
func (r *run) assign(target expr, v any, s *scope) error {
	switch t := target.(type) {
	case *nameExpr:
		s.set(t.name, v)
		return nil
	case *nsExpr:
		ns, ok := s.get(t.name).(*namespace)
		if !ok {
			return errors.New("cannot assign attribute on non-namespace object")
		}
		ns.d.put(t.attr, t.attr, v)
		return nil
	case *tupleExpr:
		items, err := r.items(v)
		if err != nil {
			return err
		}
		if len(items) != len(t.items) {
			return fmt.Errorf("%d values for %d names", len(items), len(t.items))
		}
		for i, target := range t.items {
			if err := r.assign(target, items[i], s); err != nil {
				return err
			}
		}
		return nil
	}
	panic(fmt.Sprintf("jinja: target %T", target))
}

// loop is the variable of that name. Items that a loop's test leaves out are left out as the loop comes to them.
type loop struct {
	pending         []any // items not yet tested
	accept          func(item any) (bool, error)
	ahead           []any // items tested, not yet come to
	item, previous  any
	index0, depth   int
	recurse         func(items any) (any, error) // or nil
	changedLast     *list
	hasItem, hasPrv bool
}

// peek makes sure that the next item, if there is one, is in ahead.
func (l *loop) peek() (bool, error) {
	for len(l.ahead) == 0 && len(l.pending) > 0 {
		item := l.pending[0]
		l.pending = l.pending[1:]
		ok, err := l.accept(item)
		if err != nil {
			return false, err
		}
		if ok {
			l.ahead = append(l.ahead, item)
		}
	}
	return len(l.ahead) > 0, nil
}

func (l *loop) next() (bool, error) {
	ok, err := l.peek()
	if err != nil || !ok {
		return false, err
	}
	l.previous, l.hasPrv = l.item, l.hasItem
	l.item, l.hasItem = l.ahead[0], true
	l.ahead = l.ahead[1:]
	l.index0++
	return true, nil
}

// length tests all items that are left.
func (l *loop) length() (int, error) {
	for len(l.pending) > 0 {
		item := l.pending[0]
		l.pending = l.pending[1:]
		ok, err := l.accept(item)
		if err != nil {
			return 0, err
		}
		if ok {
			l.ahead = append(l.ahead, item)
		}
	}
	return l.index0 + 1 + len(l.ahead), nil
}

func (l *loop) attr(r *run, name string) (any, bool, error) {
	switch name {
	case "index":
		return int64(l.index0 + 1), true, nil
	case "index0":
		return int64(l.index0), true, nil
	case "depth":
		return int64(l.depth + 1), true, nil
	case "depth0":
		return int64(l.depth), true, nil
	case "first":
		return l.index0 == 0, true, nil
	case "last":
		more, err := l.peek()
		return !more, true, err
	case "length", "revindex", "revindex0":
		n, err := l.length()
		switch name {
		case "revindex":
			n -= l.index0
		case "revindex0":
			n -= l.index0 + 1
		}
		return int64(n), true, err
	case "previtem":
		if !l.hasPrv {
			return &undefined{"there is no previous item"}, true, nil
		}
		return l.previous, true, nil
	case "nextitem":
		more, err := l.peek()
		if err != nil || !more {
			return &undefined{"there is no next item"}, true, err
		}
		return l.ahead[0], true, nil
	case "cycle":
		return &function{"loop.cycle", func(_ *run, a *arguments) (any, error) {
			if len(a.args) == 0 {
				return nil, errors.New("no items for cycling given")
			}
			return a.args[l.index0%len(a.args)], nil
		}}, true, nil
	case "changed":
		return &function{"loop.changed", func(r *run, a *arguments) (any, error) {
			now := &list{a.args}
			if l.changedLast != nil {
				same, err := r.equal(l.changedLast, now, 0)
				if err != nil || same {
					return false, err
				}
			}
			l.changedLast = now
			return true, nil
		}}, true, nil
	}
	return nil, false, nil
}

func (r *run) loop(st *forStmt, iter any, s *scope, out *strings.Builder, depth int) error {
	items, err := r.items(iter)
	if err != nil {
		return err
	}
	l := &loop{pending: items, index0: -1, depth: depth}
	l.accept = func(item any) (bool, error) {
		if st.test == nil {
			return true, nil
		}
		inner := s.inner()
		if err := r.assign(st.target, item, inner); err != nil {
			return false, err
		}
		v, err := r.eval(st.test, inner)
		return truth(v), err
	}
	if st.recursive {
		l.recurse = func(items any) (any, error) {
			var text string
			err := r.called(func() error {
				var b strings.Builder
				err := r.loop(st, items, s, &b, depth+1)
				text = b.String()
				return err
			})
			return text, err
		}
	}
	for {
		more, err := l.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := r.spend(stepCost); err != nil {
			return err
		}
		inner := s.inner()
		inner.set("loop", l)
		if err := r.assign(st.target, l.item, inner); err != nil {
			return err
		}
		if err := r.exec(st.body, inner, out); err == errBreak {
			break
		} else if err != nil && err != errContinue {
			return err
		}
	}
	if l.index0 < 0 {
		return r.exec(st.orelse, s.inner(), out)
	}
	return nil
}

// macro is a macro with the scope that it was made in, or the body of a call block.
type macro struct {
	*macroDef
	scope *scope
}

func (m *macro) invoke(r *run, a *arguments) (any, error) {
	s := m.scope.inner()
	kw := newDict()
	for i, name := range a.names {
		kw.put(name, name, a.values[i])
	}
	take := func(name string) (any, bool) {
		v, ok := kw.get(name)
		if ok {
			rest := newDict()
			for i, k := range kw.keys {
				if k != any(name) {
					rest.put(k, k, kw.values[i])
				}
			}
			kw = rest
		}
		return v, ok
	}
	given := min(len(a.args), len(m.params))
	for i, v := range a.args[:given] {
		s.set(m.params[i], v)
	}
	var unset []int
	for i := given; i < len(m.params); i++ {
		if v, ok := take(m.params[i]); ok {
			s.set(m.params[i], v)
		} else {
			unset = append(unset, i)
		}
	}
	if m.caller {
		v, ok := take("caller")
		if !ok || v == nil {
			v = &undefined{"No caller defined"}
		}
		s.set("caller", v)
	}
	if m.kwargs {
		s.set("kwargs", kw)
	} else if len(kw.keys) > 0 {
		return nil, fmt.Errorf("macro '%s' takes no keyword argument '%s'", m.name, kw.keys[0])
	}
	if m.varargs {
		s.set("varargs", &tuple{a.args[given:]})
	} else if len(a.args) > len(m.params) {
		return nil, fmt.Errorf("macro '%s' takes not more than %d argument(s)", m.name, len(m.params))
	}
	var text string
	err := r.called(func() error {
		for _, i := range unset {
			k := i - (len(m.params) - len(m.defaults))
			if k < 0 {
				s.set(m.params[i], &undefined{fmt.Sprintf("parameter '%s' was not provided", m.params[i])})
				continue
			}
			v, err := r.eval(m.defaults[k], s)
			if err != nil {
				return err
			}
			s.set(m.params[i], v)
		}
		var err error
		text, err = r.capture(m.body, s)
		return err
	})
	return text, err
}

// call calls a value.
func (r *run) call(f any, a *arguments) (any, error) {
	switch f := f.(type) {
	case *function:
		a.name = f.name
		return f.call(r, a)
	case *macro:
		return f.invoke(r, a)
	case *undefined:
		return nil, f.fail()
	case *loop:
		if f.recurse == nil {
			return nil, errors.New("the loop is called, but it is not marked recursive")
		}
		v, err := a.bind("iterable")
		if err != nil {
			return nil, err
		}
		return f.recurse(v[0])
	}
	return nil, fmt.Errorf("'%s' object is not callable", typeName(f))
}

// args evaluates a call's arguments.
func (r *run) args(c *callArgs, s *scope) (*arguments, error) {
	a := &arguments{names: slices.Clone(c.names)}
	for _, x := range c.args {
		v, err := r.eval(x, s)
		if err != nil {
			return nil, err
		}
		a.args = append(a.args, v)
	}
	for _, x := range c.values {
		v, err := r.eval(x, s)
		if err != nil {
			return nil, err
		}
		a.values = append(a.values, v)
	}
	if c.dynArgs != nil {
		v, err := r.eval(c.dynArgs, s)
		if err != nil {
			return nil, err
		}
		more, err := r.items(v)
		if err != nil {
			return nil, err
		}
		a.args = append(a.args, more...)
	}
	if c.dynKw != nil {
		v, err := r.eval(c.dynKw, s)
		if err != nil {
			return nil, err
		}
		d, ok := v.(*dict)
		if !ok {
			return nil, fmt.Errorf("argument after ** must be a mapping, not %s", typeName(v))
		}
		for i, k := range d.keys {
			name, ok := text(k)
			if !ok {
				return nil, errors.New("keywords must be strings")
			}
			if slices.Contains(a.names, name) {
				return nil, fmt.Errorf("argument %s is given twice", name)
			}
			a.names = append(a.names, name)
			a.values = append(a.values, d.values[i])
		}
	}
	return a, r.spend(valueCost * (len(a.args) + len(a.values)))
}

// all evaluates expressions.
func (r *run) all(xs []expr, s *scope) ([]any, error) {
	out := make([]any, len(xs))
	for i, x := range xs {
		v, err := r.eval(x, s)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, r.spend(valueCost * len(out))
}

func (r *run) eval(x expr, s *scope) (any, error) {
	if err := r.enter(); err != nil {
		return nil, err
	}
	defer r.leave()
	switch x := x.(type) {
	case *constExpr:
		return x.v, nil
	case *nameExpr:
		return s.get(x.name), nil
	case *tupleExpr:
		items, err := r.all(x.items, s)
		return &tuple{items}, err
	case *listExpr:
		items, err := r.all(x.items, s)
		return &list{items}, err
	case *dictExpr:
		keys, err := r.all(x.keys, s)
		if err != nil {
			return nil, err
		}
		values, err := r.all(x.values, s)
		if err != nil {
			return nil, err
		}
		d := newDict()
		for i, k := range keys {
			h, err := r.hashKey(k)
			if err != nil {
				return nil, err
			}
			d.put(h, k, values[i])
		}
		return d, nil
	case *attrExpr:
		v, err := r.eval(x.x, s)
		if err == nil {
			v, err = r.getattr(v, x.name)
		}
		return v, at(x.line, err)
	case *itemExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		key, err := r.eval(x.key, s)
		if err == nil {
			v, err = r.getitem(v, key)
		}
		return v, at(x.line, err)
	case *sliceExpr:
		v, err := r.slice(x, s)
		return v, at(x.line, err)
	case *callExpr:
		f, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		v, err := r.call(f, a)
		return v, at(x.line, err)
	case *filterExpr:
		v := s.get(blockText)
		if x.x != nil {
			var err error
			if v, err = r.eval(x.x, s); err != nil {
				return nil, err
			}
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		v, err = r.filter(x.name, v, a)
		return v, at(x.line, err)
	case *testExpr:
		v, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		a, err := r.args(&x.callArgs, s)
		if err != nil {
			return nil, err
		}
		ok, err := r.test(x.name, v, a)
		return ok, at(x.line, err)
	case *unaryExpr:
		v, err := r.eval(x.x, s)
		if err == nil {
			v, err = r.unary(x.op, v)
		}
		return v, at(x.line, err)
	case *binaryExpr:
		l, err := r.eval(x.l, s)
		if err != nil {
			return nil, err
		}
		if x.op == "and" && !truth(l) || x.op == "or" && truth(l) {
			return l, nil
		}
		v, err := r.eval(x.r, s)
		if err == nil && x.op != "and" && x.op != "or" {
			v, err = r.binary(x.op, l, v)
		}
		return v, at(x.line, err)
	case *concatExpr:
		items, err := r.all(x.items, s)
		if err != nil {
			return nil, err
		}
		var b strings.Builder
		for _, item := range items {
			text, err := r.str(item)
			if err == nil {
				err = r.write(&b, text)
			}
			if err != nil {
				return nil, at(x.line, err)
			}
		}
		return b.String(), nil
	case *compareExpr:
		l, err := r.eval(x.x, s)
		if err != nil {
			return nil, err
		}
		for i, op := range x.ops {
			v, err := r.eval(x.rs[i], s)
			if err != nil {
				return nil, err
			}
			ok, err := r.relation(op, l, v)
			if err != nil || !ok {
				return ok, at(x.line, err)
			}
			l = v
		}
		return true, nil
	case *condExpr:
		test, err := r.eval(x.test, s)
		if err != nil {
			return nil, err
		}
		switch {
		case truth(test):
			return r.eval(x.then, s)
		case x.orelse != nil:
			return r.eval(x.orelse, s)
		}
		return &undefined{fmt.Sprintf("the inline if-expression on line %d evaluated to false and no else section was defined.", x.line)}, nil
	}
	panic(fmt.Sprintf("jinja: expression %T", x))
}

// noAttribute is what an attribute or an item that is not there gives.
func noAttribute(v, key any) *undefined {
	what := fmt.Sprintf("'%s' object", typeName(v))
	if v == nil {
		what = "None"
	}
	if name, ok := text(key); ok {
		if len(name) > 80 {
			name = strings.ToValidUTF8(name[:80], "") + "…"
		}
		return &undefined{fmt.Sprintf("%s has no attribute '%s'", what, name)}
	}
	if n, ok := integer(key); ok {
		return &undefined{fmt.Sprintf("%s has no element %d", what, n)}
	}
	return &undefined{fmt.Sprintf("%s has no such element", what)}
}

// getattr is v.name: Python's attribute, else the item of that name, else undefined.
func (r *run) getattr(v any, name string) (any, error) {
	if a, ok, err := r.attribute(v, name); ok || err != nil {
		return a, err
	}
	if d, ok := v.(*dict); ok {
		if item, ok := d.get(name); ok {
			return item, nil
		}
	}
	return noAttribute(v, name), nil
}

// getitem is v[key]: Python's item, else the attribute of that name, else undefined.
func (r *run) getitem(v, key any) (any, error) {
	i, isInt := integer(key)
	switch v := v.(type) {
	case *undefined:
		return nil, v.fail()
	case *dict:
		h, err := r.hashKey(key)
		if err == nil {
			if item, ok := v.get(h); ok {
				return item, nil
			}
		}
	case *list, *tuple, rangeValue:
		if isInt {
			n, _ := length(v)
			if i < 0 {
				i += int64(n)
			}
			if i < 0 || i >= int64(n) {
				break
			}
			switch v := v.(type) {
			case *list:
				return v.items[i], nil
			case *tuple:
				return v.items[i], nil
			case rangeValue:
				return v.start + i*v.step, nil
			}
		}
	case string, markup:
		if isInt {
			s, _ := text(v)
			if err := r.spend(len(s)); err != nil {
				return nil, err
			}
			if i < 0 {
				i += int64(utf8.RuneCountInString(s))
			}
			if i < 0 {
				break
			}
			for _, c := range s {
				if i == 0 {
					return like(v, string(c)), nil
				}
				i--
			}
		}
	}
	if name, ok := text(key); ok {
		if a, ok, err := r.attribute(v, name); ok || err != nil {
			return a, err
		}
	}
	return noAttribute(v, key), nil
}

// slice is x[start:stop:step].
func (r *run) slice(x *sliceExpr, s *scope) (any, error) {
	v, err := r.eval(x.x, s)
	if err != nil {
		return nil, err
	}
	var bounds [3]*int64
	for i, b := range []expr{x.start, x.stop, x.step} {
		if b == nil {
			continue
		}
		value, err := r.eval(b, s)
		if err != nil {
			return nil, err
		}
		if n, ok := integer(value); ok {
			bounds[i] = &n
		} else if value != nil {
			return nil, fmt.Errorf("slice indices must be integers or None, not %s", typeName(value))
		}
	}
	var items []any
	switch v := v.(type) {
	case *undefined:
		return nil, v.fail()
	case *list:
		items = v.items
	case *tuple:
		items = v.items
	case string, markup:
	case rangeValue:
		return nil, errors.New("slices of a range are not supported")
	default:
		return nil, fmt.Errorf("'%s' object cannot be sliced", typeName(v))
	}
	str, isText := text(v)
	runes := []rune(str)
	n := int64(len(items))
	if isText {
		n = int64(len(runes))
	}
	if err := r.spend(len(str)); err != nil {
		return nil, err
	}
	step := int64(1)
	if bounds[2] != nil {
		step = *bounds[2]
	}
	if step == 0 {
		return nil, errors.New("slice step cannot be zero")
	}
	low, high := int64(0), n // where indices are clamped
	if step < 0 {
		low, high = -1, n-1
	}
	clamp := func(b *int64, missing int64) int64 {
		if b == nil {
			return missing
		}
		i := *b
		if i < 0 {
			i += n
		}
		return min(max(i, low), high)
	}
	start, stop := clamp(bounds[0], low), clamp(bounds[1], high)
	if step < 0 {
		start, stop = clamp(bounds[0], high), clamp(bounds[1], low)
	}
	var picked []any
	var b strings.Builder
	for i := start; step > 0 && i < stop || step < 0 && i > stop; {
		if isText {
			b.WriteRune(runes[i])
		} else {
			picked = append(picked, items[i])
		}
		if step > n || step < -n {
			break
		}
		i += step
	}
	if err := r.spend(b.Len() + valueCost*len(picked)); err != nil {
		return nil, err
	}
	switch v.(type) {
	case *list:
		return &list{picked}, nil
	case *tuple:
		return &tuple{picked}, nil
	}
	return like(v, b.String()), nil
}

func (r *run) unary(op string, v any) (any, error) {
	if op == "not" {
		return !truth(v), nil
	}
	if u, ok := v.(*undefined); ok {
		return nil, u.fail()
	}
	f, n, whole, ok := number(v)
	switch {
	case !ok:
		return nil, fmt.Errorf("bad operand type for unary %s: '%s'", op, typeName(v))
	case whole && op == "-":
		if n == math.MinInt64 {
			return nil, errOverflow
		}
		return -n, nil
	case whole:
		return n, nil
	case op == "-":
		return -f, nil
	}
	return f, nil
}

// relation is one comparison.
func (r *run) relation(op string, a, b any) (bool, error) {
	switch op {
	case "==":
		return r.equal(a, b, 0)
	case "!=":
		same, err := r.equal(a, b, 0)
		return !same, err
	case "in":
		return r.contains(b, a)
	case "not in":
		in, err := r.contains(b, a)
		return !in, err
	}
	order, unordered, err := r.compare(a, b, 0)
	if err != nil || unordered {
		return false, err
	}
	switch op {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	}
	return order >= 0, nil
}

// contains is v in container.
func (r *run) contains(container, v any) (bool, error) {
	switch c := container.(type) {
	case string, markup:
		s, _ := text(c)
		sub, ok := text(v)
		if !ok {
			return false, fmt.Errorf("'in <string>' requires string as left operand, not %s", typeName(v))
		}
		return strings.Contains(s, sub), r.spend(len(s))
	case *dict:
		h, err := r.hashKey(v)
		if err != nil {
			return false, err
		}
		_, ok := c.get(h)
		return ok, nil
	case nil, bool, int64, bigInt, float64, *function, *macro, *namespace:
		return false, fmt.Errorf("argument of type '%s' is not iterable", typeName(c))
	}
	items, err := r.items(container)
	if err != nil {
		return false, err
	}
	for _, item := range items {
		if same, err := r.equal(item, v, 0); err != nil || same {
			return same, err
		}
	}
	return false, nil
}

var errOverflow = errors.New("an integer beyond 64 bits")

// binary is an arithmetic operation.
func (r *run) binary(op string, a, b any) (any, error) {
	for _, v := range []any{a, b} {
		if u, ok := v.(*undefined); ok {
			if s, isText := text(a); isText && op == "%" {
				return r.printf(s, b)
			}
			return nil, u.fail()
		}
	}
	unsupported := fmt.Errorf("unsupported operand type(s) for %s: '%s' and '%s'", op, typeName(a), typeName(b))
	f, n, whole1, ok1 := number(a)
	g, m, whole2, ok2 := number(b)
	if ok1 && ok2 {
		if whole1 && whole2 {
			return intOp(op, n, m)
		}
		return floatOp(op, f, g)
	}
	s, isText1 := text(a)
	t, isText2 := text(b)
	switch op {
	case "+":
		if isText1 && isText2 {
			_, m1 := a.(markup)
			_, m2 := b.(markup)
			if err := r.spend(len(s) + len(t)); err != nil {
				return nil, err
			}
			switch {
			case m1 && !m2:
				return markup(s + escape(t)), nil
			case m2 && !m1:
				return markup(escape(s) + t), nil
			}
			return like(a, s+t), nil
		}
		var x, y []any
		switch a := a.(type) {
		case *list:
			b, ok := b.(*list)
			if !ok {
				return nil, unsupported
			}
			x, y = a.items, b.items
		case *tuple:
			b, ok := b.(*tuple)
			if !ok {
				return nil, unsupported
			}
			x, y = a.items, b.items
		default:
			return nil, unsupported
		}
		if err := r.spend(valueCost * (len(x) + len(y))); err != nil {
			return nil, err
		}
		items := slices.Concat(x, y)
		if _, ok := a.(*tuple); ok {
			return &tuple{items}, nil
		}
		return &list{items}, nil
	case "*":
		times, ok := integer(b)
		v := a
		if !ok {
			if times, ok = integer(a); !ok {
				return nil, unsupported
			}
			v = b
		}
		times = max(times, 0)
		var items []any
		switch v := v.(type) {
		case string, markup:
			s, _ := text(v)
			if len(s) > 0 && times > int64(r.left/len(s)) {
				return nil, r.spend(r.left + 1)
			}
			if len(s) == 0 {
				return v, nil
			}
			return like(v, strings.Repeat(s, int(times))), r.spend(len(s) * int(times))
		case *list:
			items = v.items
		case *tuple:
			items = v.items
		default:
			return nil, unsupported
		}
		if len(items) > 0 {
			if times > int64(r.left/(valueCost*len(items))) {
				return nil, r.spend(r.left + 1)
			}
			items = slices.Repeat(items, int(times))
		}
		err := r.spend(valueCost * len(items))
		if _, ok := v.(*tuple); ok {
			return &tuple{items}, err
		}
		return &list{items}, err
	case "%":
		if _, ok := a.(markup); ok {
			return nil, errors.New("% of a safe string is not supported")
		}
		if isText1 {
			return r.printf(s, b)
		}
	}
	return nil, unsupported
}

func intOp(op string, a, b int64) (any, error) {
	switch op {
	case "+":
		if c := a + b; (c > a) == (b > 0) {
			return c, nil
		}
	case "-":
		if c := a - b; (c < a) == (b > 0) {
			return c, nil
		}
	case "*":
		if a == 0 || b == 0 {
			return int64(0), nil
		}
		if c := a * b; c/b == a && !(a == -1 && b == math.MinInt64) && !(b == -1 && a == math.MinInt64) {
			return c, nil
		}
	case "/":
		return floatOp(op, float64(a), float64(b))
	case "//", "%":
		if b == 0 {
			return nil, errors.New("integer division or modulo by zero")
		}
		if a == math.MinInt64 && b == -1 {
			break
		}
		q, m := a/b, a%b
		if m != 0 && (m < 0) != (b < 0) {
			q, m = q-1, m+b
		}
		if op == "%" {
			return m, nil
		}
		return q, nil
	case "**":
		if b < 0 {
			return floatOp(op, float64(a), float64(b))
		}
		result := int64(1)
		for range min(b, 64) {
			v, err := intOp("*", result, a)
			if err != nil {
				return nil, err
			}
			result = v.(int64)
		}
		if b > 64 && a < 0 && b%2 != 0 {
			result *= a // what is left after 64 factors without an overflow is 0, 1 or -1
		}
		return result, nil
	}
	return nil, errOverflow
}

func floatOp(op string, a, b float64) (any, error) {
	switch op {
	case "+":
		return a + b, nil
	case "-":
		return a - b, nil
	case "*":
		return a * b, nil
	case "**":
		f := math.Pow(a, b)
		if math.IsInf(f, 0) && !math.IsInf(a, 0) && !math.IsInf(b, 0) || math.IsNaN(f) && a == a && b == b {
			return nil, errors.New("a power out of range")
		}
		return f, nil
	}
	if b == 0 {
		return nil, errors.New("division by zero")
	}
	if op == "/" {
		return a / b, nil
	}
	m := math.Mod(a, b)
	if m != 0 && (m < 0) != (b < 0) {
		m += b
	}
	if op == "%" {
		return m, nil
	}
	return math.Floor((a - m) / b), nil
}
