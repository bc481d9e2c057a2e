package jinja

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Decode reads one JSON value as Python's json.loads does: members keep their order, of two alike the last one counts,
// whole numbers are integers.
func Decode(b []byte) (any, error) {
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	v, err := decode(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text after the JSON value")
	}
	return v, nil
}

func decode(dec *json.Decoder, depth int) (any, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("JSON nested more than %d deep", maxNesting)
	}
	t, err := dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Number:
		s := string(t)
		if !strings.ContainsAny(s, ".eE") {
			if n, err := strconv.ParseInt(s, 10, 64); err == nil {
				return n, nil
			}
			return bigInt(s), nil
		}
		f, _ := strconv.ParseFloat(s, 64) // ±Inf if it is too large, as in Python
		return f, nil
	case json.Delim:
		if t == '[' {
			l := &list{}
			for dec.More() {
				v, err := decode(dec, depth+1)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, v)
			}
			_, err := dec.Token()
			return l, err
		}
		d := newDict()
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := decode(dec, depth+1)
			if err != nil {
				return nil, err
			}
			d.put(k, k, v)
		}
		_, err := dec.Token()
		return d, err
	}
	return t, nil // nil, bool, string
}

// List returns the items of a decoded array.
func List(v any) (items []any, ok bool) {
	l, ok := v.(*list)
	if !ok {
		return nil, false
	}
	return l.items, true
}

// Members returns the names and values of a decoded object.
func Members(v any) (names []string, values []any, ok bool) {
	d, ok := v.(*dict)
	if !ok {
		return nil, nil, false
	}
	for _, k := range d.keys {
		names = append(names, k.(string))
	}
	return names, d.values, true
}

// Member returns a member of a decoded object, or nil if there is none.
func Member(v any, name string) any {
	d, ok := v.(*dict)
	if !ok {
		return nil
	}
	m, _ := d.get(name)
	return m
}
