package jinja

import (
	"errors"
	"strings"
)

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
