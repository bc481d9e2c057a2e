package jinja

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// globals are the names that every template has.
func globals() map[string]any {
	return map[string]any{
		"range": &function{"range", rangeFunction},
		"dict":  &function{"dict", func(r *run, a *arguments) (any, error) { return r.makeDict(a) }},
		"namespace": &function{"namespace", func(r *run, a *arguments) (any, error) {
			d, err := r.makeDict(a)
			return &namespace{d}, err
		}},
		"raise_exception": &function{"raise_exception", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("message")
			if err != nil {
				return nil, err
			}
			s, err := r.str(v[0])
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("the template refuses this: %s", s)
		}},
		"strftime_now": &function{"strftime_now", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("format")
			if err != nil {
				return nil, err
			}
			s, ok := text(v[0])
			if !ok {
				return nil, errors.New("strftime_now wants a string")
			}
			return strftime(s, r.now)
		}},
		"joiner": &function{"joiner", func(r *run, a *arguments) (any, error) {
			v, err := a.bind("sep?")
			if err != nil {
				return nil, err
			}
			sep := v[0]
			if sep == any(missing) {
				sep = ", "
			}
			used := false
			return &function{"joiner", func(*run, *arguments) (any, error) {
				if !used {
					used = true
					return "", nil
				}
				return sep, nil
			}}, nil
		}},
		"cycler": &function{"cycler", func(r *run, a *arguments) (any, error) {
			if len(a.args) == 0 {
				return nil, errors.New("at least one item has to be provided")
			}
			at, items := 0, a.args
			d := newDict()
			d.put("current", "current", items[0])
			d.put("next", "next", &function{"next", func(*run, *arguments) (any, error) {
				v := items[at]
				at = (at + 1) % len(items)
				d.put("current", "current", items[at])
				return v, nil
			}})
			d.put("reset", "reset", &function{"reset", func(*run, *arguments) (any, error) {
				at = 0
				d.put("current", "current", items[0])
				return nil, nil
			}})
			return &namespace{d}, nil
		}},
		"lipsum": &function{"lipsum", func(*run, *arguments) (any, error) {
			return nil, errors.New("lipsum is random, and not supported")
		}},
	}
}

func rangeFunction(r *run, a *arguments) (any, error) {
	if len(a.names) > 0 || len(a.args) < 1 || len(a.args) > 3 {
		return nil, errors.New("range wants 1 to 3 integers")
	}
	v := rangeValue{step: 1}
	for i, arg := range a.args {
		n, ok := integer(arg)
		if !ok || n > math.MaxInt32*1024 || n < -math.MaxInt32*1024 {
			return nil, fmt.Errorf("range wants integers, not %s", typeName(arg))
		}
		switch {
		case len(a.args) == 1 || i == 1:
			v.stop = n
		case i == 0:
			v.start = n
		default:
			v.step = n
		}
	}
	switch {
	case v.step == 0:
		return nil, errors.New("range: a step of 0")
	case v.step > 0 && v.stop > v.start:
		v.n = (v.stop - v.start + v.step - 1) / v.step
	case v.step < 0 && v.stop < v.start:
		v.n = (v.start - v.stop - v.step - 1) / -v.step
	}
	if v.n > maxRange {
		return nil, fmt.Errorf("range: more than %d numbers", maxRange)
	}
	return v, nil
}

// makeDict is dict(mapping or pairs, name=value).
func (r *run) makeDict(a *arguments) (*dict, error) {
	d := newDict()
	if len(a.args) > 1 {
		return nil, errors.New("dict wants at most one value without a name")
	}
	for _, v := range a.args {
		if from, ok := v.(*dict); ok {
			for i, k := range from.keys {
				h, _ := r.hashKey(k)
				d.put(h, k, from.values[i])
			}
			continue
		}
		pairs, err := r.items(v)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			kv, err := r.items(p)
			if err != nil {
				return nil, err
			}
			if len(kv) != 2 {
				return nil, errors.New("dict wants pairs")
			}
			h, err := r.hashKey(kv[0])
			if err != nil {
				return nil, err
			}
			d.put(h, kv[0], kv[1])
		}
	}
	for i, name := range a.names {
		d.put(name, name, a.values[i])
	}
	return d, r.spend(valueCost * len(d.keys))
}

// strftime formats t as Python's strftime does in the C locale.
func strftime(format string, t time.Time) (string, error) {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'H': "15", 'I': "03",
		'M': "04", 'S': "05", 'p': "PM", 'y': "06", 'j': "002", 'e': "_2", 'D': "01/02/06", 'F': "2006-01-02", 'T': "15:04:05",
		'R': "15:04", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05", 'f': "000000",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		c := format[i]
		pad := true
		if c == '-' && i+1 < len(format) { // glibc: without padding
			i++
			c, pad = format[i], false
		}
		layout, ok := layouts[c]
		s := t.Format(layout)
		switch {
		case c == '%':
			s = "%"
		case c == 'n':
			s = "\n"
		case c == 't':
			s = "\t"
		case c == 'Z' || c == 'z': // of a time without a zone
			s = ""
		case c == 'u':
			s = strconv.Itoa((int(t.Weekday())+6)%7 + 1)
		case c == 'w':
			s = strconv.Itoa(int(t.Weekday()))
		case c == 's':
			s = strconv.FormatInt(t.Unix(), 10)
		case !ok:
			return "", fmt.Errorf("strftime_now: %%%c is not supported", c)
		}
		if !pad {
			if trimmed := strings.TrimLeft(s, "0 "); trimmed != "" {
				s = trimmed
			} else {
				s = "0"
			}
		}
		b.WriteString(s)
	}
	return b.String(), nil
}
