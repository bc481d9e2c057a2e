package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
)

// object reads the members of a JSON object. The first failure, which names the file, the key and the value, is kept
// in *err; later reads return zero.
type object struct {
	file   string
	prefix string // of the keys, in messages: "rope_scaling."
	fields map[string]json.RawMessage
	err    *error
}

// parseObject parses a file that holds one JSON object.
func parseObject(file string, data []byte) (*object, error) {
	o := &object{file: file, err: new(error)}
	err := json.Unmarshal(data, &o.fields)
	if err != nil {
		if what := notTheFile(data); what != "" {
			return nil, fmt.Errorf("%s: %s", file, what)
		}
		if quoted := quoteNonNumbers(data); quoted != nil {
			o.fields = nil
			err = json.Unmarshal(quoted, &o.fields)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: not a JSON object: %w", file, err)
	}
	if o.fields == nil {
		return nil, fmt.Errorf("%s: not a JSON object: null", file)
	}
	return o, nil
}

// nonNumbers are what Python's json module writes for floats that JSON has no numbers for.
var nonNumbers = [][]byte{[]byte("NaN"), []byte("Infinity"), []byte("-Infinity")}

// quoteNonNumbers makes strings of non-numbers outside strings, so that a member that is not read does no harm, and one
// that is read as a number is refused with its value. It returns nil if there are none.
func quoteNonNumbers(data []byte) []byte {
	var out []byte
	from := 0 // what is not yet in out
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString || c != 'N' && c != 'I' && c != '-':
		default:
			for _, word := range nonNumbers {
				if bytes.HasPrefix(data[i:], word) {
					out = append(append(append(append(out, data[from:i]...), '"'), word...), '"')
					from = i + len(word)
					i = from - 1
					break
				}
			}
		}
	}
	if from == 0 {
		return nil
	}
	return append(out, data[from:]...)
}

func (o *object) fail(key, format string, args ...any) {
	if *o.err == nil {
		*o.err = fmt.Errorf("%s: %s%s: %s", o.file, o.prefix, key, fmt.Sprintf(format, args...))
	}
}

// get returns a member's text; null counts as absent.
func (o *object) get(key string) (json.RawMessage, bool) {
	if o == nil {
		return nil, false
	}
	v, ok := o.fields[key]
	return v, ok && !bytes.Equal(bytes.TrimSpace(v), []byte("null"))
}

func (o *object) has(key string) bool {
	_, ok := o.get(key)
	return ok
}

// excerpt shortens a value for a message.
func excerpt(v []byte) string {
	const limit = 60
	if len(v) > limit {
		return string(v[:limit]) + "…"
	}
	return string(v)
}

// int returns a number in [lo,hi], or absent if there is none. absent < 0 makes the key required.
func (o *object) int(key string, absent, lo, hi int) int {
	v, ok := o.get(key)
	if !ok {
		if absent < 0 {
			o.fail(key, "is missing")
		}
		return absent
	}
	var n json.Number
	if err := json.Unmarshal(v, &n); err != nil || v[0] == '"' {
		o.fail(key, "is %s, want an integer", excerpt(v))
		return 0
	}
	i, err := n.Int64()
	if err != nil {
		o.fail(key, "is %s, want an integer", excerpt(v))
		return 0
	}
	if i < int64(lo) || i > int64(hi) {
		o.fail(key, "is %s, want %d to %d", excerpt(v), lo, hi)
		return 0
	}
	return int(i)
}

// float returns a number in (lo,hi], or absent if there is none. An absent NaN makes the key required.
func (o *object) float(key string, absent, lo, hi float64) float64 {
	v, ok := o.get(key)
	if !ok {
		if math.IsNaN(absent) {
			o.fail(key, "is missing")
		}
		return absent
	}
	var f float64
	if err := json.Unmarshal(v, &f); err != nil {
		o.fail(key, "is %s, want a number", excerpt(v))
		return 0
	}
	if !(f > lo && f <= hi) {
		o.fail(key, "is %s, want more than %g, at most %g", excerpt(v), lo, hi)
		return 0
	}
	return f
}

func (o *object) string(key, absent string) string {
	v, ok := o.get(key)
	if !ok {
		return absent
	}
	var s string
	if json.Unmarshal(v, &s) != nil {
		o.fail(key, "is %s, want a string", excerpt(v))
	}
	return s
}

func (o *object) bool(key string, absent bool) bool {
	v, ok := o.get(key)
	if !ok {
		return absent
	}
	var b bool
	if json.Unmarshal(v, &b) != nil {
		o.fail(key, "is %s, want true or false", excerpt(v))
	}
	return b
}

// object returns a member that is an object, nil if it is absent.
func (o *object) object(key string) *object {
	v, ok := o.get(key)
	if !ok {
		return nil
	}
	member := &object{file: o.file, prefix: o.prefix + key + ".", err: o.err}
	if json.Unmarshal(v, &member.fields) != nil {
		o.fail(key, "is %s, want an object", excerpt(v))
		return nil
	}
	return member
}

// list returns the elements of a member that is a list of objects, none if it is absent.
func (o *object) list(key string) []*object {
	v, ok := o.get(key)
	if !ok {
		return nil
	}
	var raw []map[string]json.RawMessage
	if json.Unmarshal(v, &raw) != nil {
		o.fail(key, "is %s, want a list of objects", excerpt(v))
		return nil
	}
	elements := make([]*object, len(raw))
	for i, fields := range raw {
		elements[i] = &object{file: o.file, prefix: fmt.Sprintf("%s%s[%d].", o.prefix, key, i), fields: fields, err: o.err}
	}
	return elements
}
