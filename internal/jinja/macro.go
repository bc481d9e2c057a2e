package jinja

import (
	"errors"
	"fmt"
	"slices"
)

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
