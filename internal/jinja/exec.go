package jinja

import (
	"errors"
	"fmt"
	"strings"
)

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
